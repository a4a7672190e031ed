//! `RepackChunks`: one new chunk out of parts of others, all of which this node holds. The way in which
//! mostly dead chunks become small ones.
//!
//! The parts are read verified, cut into frames, and go the way of a chunk that a client sends: through
//! an intake with the role of the primary, which stores and forwards them. Holds a few frames.

use std::sync::Arc;

use bytes::BytesMut;
use cairn_proto::checksum::{block_crcs, combine_blocks};
use cairn_proto::limits::{BLOCK_SIZE, CHUNK_SIZE_MAX, FRAME_SIZE, LIST_MAX};
use cairn_proto::v1::{RepackChunksRequest, RepackChunksResponse, StoreAck, StoreFrame, StoreHeader};
use cairn_proto::{ChunkId, ErrorKind, WireError};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::intake::{Intake, Role};
use crate::metrics;
use crate::node::Node;
use crate::outbox::{AckStream, Outbox};
use crate::store::ChunkReader;
use crate::transfer::result_of;

/// Frames between the reading and the storing half.
const FRAMES_QUEUED: usize = 4;

/// A run of bytes of a chunk.
struct Part {
    chunk: ChunkId,
    offset: u64,
    length: u64,
}

/// Makes the chunk; it is stored and synced on return, here at least.
pub(crate) async fn repack(
    node: &Arc<Node>,
    request: RepackChunksRequest,
) -> Result<RepackChunksResponse, WireError> {
    let (chunk, header, parts) = check(request)?;
    let (frames, queue) = mpsc::channel(FRAMES_QUEUED);
    let outbox = Arc::new(Outbox::default());
    let intake = Intake::new(Arc::clone(node), Role::Primary, Arc::clone(&outbox));
    let mut acks = AckStream::new(outbox, intake.run(ReceiverStream::new(queue)));
    let mut making = std::pin::pin!(make(node, chunk, header, parts, frames));
    let mut made = None;
    loop {
        tokio::select! {
            result = &mut making, if made.is_none() => made = Some(result?),
            ack = acks.next() => {
                let Some(ack) = ack else {
                    return Err(WireError::new(ErrorKind::Internal, "the chunk was not answered"));
                };
                let ack = ack.map_err(|status| cairn_proto::wire_error_of(&status))?;
                match result_of(&ack) {
                    None => continue,
                    Some(Err(error)) => return Err(error),
                    Some(Ok(())) => {}
                }
                let crc32c = match made {
                    Some(crc) => crc,
                    None => making.await?, // it has sent the last frame
                };
                ::metrics::counter!(metrics::REPACKED).increment(1);
                let StoreAck { stored_by, failed, .. } = ack;
                return Ok(RepackChunksResponse { crc32c, stored_by, failed });
            }
        }
    }
}

fn check(request: RepackChunksRequest) -> Result<(ChunkId, StoreHeader, Vec<Part>), WireError> {
    let id = |raw| ChunkId::new(raw).map_err(|error| invalid(error.to_string()));
    let chunk = id(request.chunk)?;
    let header = request.header.ok_or_else(|| invalid("no header; one was expected".into()))?;
    if !(1..=LIST_MAX).contains(&request.parts.len()) {
        return Err(invalid(format!("{} parts; 1 to {LIST_MAX} were expected", request.parts.len())));
    }
    let mut parts = Vec::with_capacity(request.parts.len());
    let mut total = 0;
    for part in request.parts {
        let source = id(part.chunk)?;
        let fits = part.length > 0
            && part.offset.checked_add(part.length).is_some_and(|end| end <= CHUNK_SIZE_MAX)
            && source != chunk;
        if !fits {
            return Err(invalid(format!(
                "{} bytes at {} of chunk {source}: not a part of another chunk",
                part.length, part.offset
            )));
        }
        total += part.length; // 2^16 parts of 2^26 bytes at most
        parts.push(Part { chunk: source, offset: part.offset, length: part.length });
    }
    if total != header.length || total > CHUNK_SIZE_MAX {
        return Err(invalid(format!(
            "parts of {total} bytes for a chunk of {}; as many, and at most {CHUNK_SIZE_MAX}, were expected",
            header.length
        )));
    }
    Ok((chunk, StoreHeader { sync: true, ..header }, parts))
}

/// Reads the parts and sends them as frames. Returns the CRC-32C of the new chunk.
///
/// A part that can not be read ends it: the frames end, and nothing is kept.
async fn make(
    node: &Node,
    chunk: ChunkId,
    header: StoreHeader,
    parts: Vec<Part>,
    frames: mpsc::Sender<Result<StoreFrame, Status>>,
) -> Result<u32, WireError> {
    let mut cutter =
        Cutter { chunk, length: header.length, header: Some(header), offset: 0, crcs: Vec::new(), frames };
    let mut pending = BytesMut::with_capacity(2 * FRAME_SIZE);
    let mut source: Option<(ChunkId, ChunkReader)> = None;
    for part in parts {
        let reader = match source.take() {
            Some((held, reader)) if held == part.chunk => reader,
            _ => node.disks.reader(part.chunk).await.map_err(|error| error.to_wire())?,
        };
        let end = part.offset + part.length;
        if end > reader.length() {
            return Err(invalid(format!(
                "{} bytes at {} of chunk {}, which has {}",
                part.length,
                part.offset,
                part.chunk,
                reader.length()
            )));
        }
        let mut at = part.offset;
        while at < end {
            let start = at / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
            let blocks = reader.read(start, end).await.map_err(|error| error.to_wire())?;
            let stop = (blocks.offset + blocks.data.len() as u64).min(end);
            pending.extend_from_slice(
                &blocks.data[(at - blocks.offset) as usize..(stop - blocks.offset) as usize],
            );
            at = stop;
            while pending.len() >= FRAME_SIZE {
                cutter.send(pending.split_to(FRAME_SIZE)).await?;
            }
        }
        source = Some((part.chunk, reader));
    }
    if !pending.is_empty() {
        cutter.send(pending).await?;
    }
    Ok(combine_blocks(&cutter.crcs, cutter.length))
}

/// Makes frames of bytes.
struct Cutter {
    chunk: ChunkId,
    length: u64,
    /// Until the first frame has it.
    header: Option<StoreHeader>,
    offset: u64,
    crcs: Vec<u32>,
    frames: mpsc::Sender<Result<StoreFrame, Status>>,
}

impl Cutter {
    async fn send(&mut self, data: BytesMut) -> Result<(), WireError> {
        let data = data.freeze();
        let crc32c = block_crcs(&data);
        self.crcs.extend_from_slice(&crc32c);
        let offset = self.offset;
        self.offset += data.len() as u64;
        let frame = StoreFrame {
            chunk: self.chunk.get(),
            header: self.header.take(),
            offset,
            is_final: self.offset == self.length,
            data,
            crc32c,
            abort: false,
        };
        let sent = self.frames.send(Ok(frame)).await;
        sent.map_err(|_| WireError::new(ErrorKind::Unavailable, "this datanode is stopping"))
    }
}

fn invalid(message: String) -> WireError {
    WireError::new(ErrorKind::InvalidArgument, message)
}
