//! `CopyChunks`: this node makes itself hold copies of chunks. The way in which repair, backfill and
//! rebalance bring a chunk to where it is missing.
//!
//! The destination pulls. A source verifies each block when it reads it, this node verifies each block
//! when it arrives and the whole against the checksum that was committed, so that no damage spreads.
//! A chunk counts as copied when it would survive power loss here. What is here already and is what
//! was committed is not fetched again, and what lies in the trash is brought back.
//!
//! Bounded: [`AT_ONCE`] chunks of a request are under way, each holding one frame. The work is driven
//! by the stream of answers: who drops it stops the work, and nothing half copied stays behind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::checksum::{combine_blocks, verify_blocks};
use cairn_proto::limits::{CHUNK_SIZE_MAX, MESSAGE_SIZE_MAX};
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::v1::{CopyChunk, CopyChunksRequest, CopyChunksResponse, FailedMember, RetrieveChunkRequest};
use cairn_proto::{ChunkId, ErrorKind, NodeId, ReplicaSetId, WireError, wire_error_of};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::{clock, net};
use futures::{Stream, StreamExt};
use tonic::Status;
use tonic::transport::Channel;
use tracing::{debug, warn};

use crate::metrics;
use crate::node::Node;
use crate::pace::Pace;
use crate::store::{StoreError, Writer};

/// Chunks of one request that are under way at once: small ones wait for their sync most of the time.
const AT_ONCE: usize = 8;
/// Chunks in one request.
const CHUNKS_MAX: usize = 4096;
/// Sources of one chunk; no set has more members.
const SOURCES_MAX: usize = 32;
/// A source that sends nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Where a copy can be fetched.
struct Source {
    node: NodeId,
    address: String,
}

/// One chunk that is wanted here.
struct Wanted {
    chunk: ChunkId,
    set: u64,
    length: u32,
    crc: u32,
    sources: Vec<Source>,
}

/// Checks a request and returns its answers, which do the work while they are read.
pub(crate) fn serve(
    node: Arc<Node>,
    request: CopyChunksRequest,
) -> Result<impl Stream<Item = Result<CopyChunksResponse, Status>> + Send, WireError> {
    let wanted = check(request.chunks)?;
    let copier = Arc::new(Copier {
        stop: node.stop.clone(),
        node,
        pace: Pace::new(request.bytes_per_second),
        channels: Mutex::default(),
    });
    let copies = futures::stream::iter(wanted).map(move |wanted| {
        let copier = Arc::clone(&copier);
        async move { Ok(copier.run(wanted).await) }
    });
    Ok(copies.buffer_unordered(AT_ONCE))
}

fn check(chunks: Vec<CopyChunk>) -> Result<Vec<Wanted>, WireError> {
    if !(1..=CHUNKS_MAX).contains(&chunks.len()) {
        return Err(invalid(format!("{} chunks; 1 to {CHUNKS_MAX} were expected", chunks.len())));
    }
    let mut seen = HashSet::with_capacity(chunks.len());
    chunks
        .into_iter()
        .map(|asked| {
            let chunk = ChunkId::new(asked.chunk).map_err(|error| invalid(error.to_string()))?;
            if !seen.insert(chunk) {
                return Err(invalid(format!("chunk {chunk} is asked for twice")));
            }
            check_one(chunk, asked)
        })
        .collect()
}

fn check_one(chunk: ChunkId, asked: CopyChunk) -> Result<Wanted, WireError> {
    let set = ReplicaSetId::new(asked.set).map_err(|error| invalid(error.to_string()))?;
    let length = u32::try_from(asked.length)
        .ok()
        .filter(|&length| length > 0 && u64::from(length) <= CHUNK_SIZE_MAX)
        .ok_or_else(|| {
            invalid(format!("chunk {chunk} of {} bytes; 1 to {CHUNK_SIZE_MAX} were expected", asked.length))
        })?;
    let count = asked.sources.len();
    if !(1..=SOURCES_MAX).contains(&count) {
        return Err(invalid(format!("{count} sources of chunk {chunk}; 1 to {SOURCES_MAX} were expected")));
    }
    let sources = asked
        .sources
        .into_iter()
        .map(|source| {
            let node = NodeId::from_wire(&source.node).map_err(|error| invalid(error.to_string()))?;
            net::check_address(&source.address).map_err(|error| invalid(error.to_string()))?;
            Ok(Source { node, address: source.address })
        })
        .collect::<Result<_, WireError>>()?;
    Ok(Wanted { chunk, set: set.get(), length, crc: asked.crc32c, sources })
}

/// What the copies of one request share.
struct Copier {
    node: Arc<Node>,
    stop: tokio_util::sync::CancellationToken,
    pace: Pace,
    /// By address; no more than the request names.
    channels: Mutex<HashMap<String, Channel>>,
}

impl Copier {
    /// Brings one chunk here and says how that went.
    async fn run(&self, wanted: Wanted) -> CopyChunksResponse {
        let mut failed = Vec::new();
        let result = tokio::select! {
            result = self.copy(&wanted, &mut failed) => result,
            () = self.stop.cancelled() => {
                Err(WireError::new(ErrorKind::Unavailable, "this datanode is stopping"))
            }
        };
        let mut answer =
            CopyChunksResponse { chunk: wanted.chunk.get(), failed, ..CopyChunksResponse::default() };
        match result {
            Ok(bytes) => {
                self.node.disks.bad().forget(wanted.chunk);
                answer.bytes = bytes;
                ::metrics::counter!(metrics::COPIED).increment(1);
                debug!(chunk = %wanted.chunk, bytes, "a copy is here");
            }
            Err(error) => {
                ::metrics::counter!(metrics::COPY_FAILED).increment(1);
                warn!(chunk = %wanted.chunk, %error, "a chunk could not be copied");
                answer.error = error.kind.number();
                answer.message = error.message;
            }
        }
        answer
    }

    /// Bytes that were fetched; 0 when a good copy was here.
    async fn copy(&self, wanted: &Wanted, failed: &mut Vec<FailedMember>) -> Result<u64, WireError> {
        let disks = &self.node.disks;
        let local = |error: StoreError| error.to_wire();
        if disks.find(wanted.chunk).is_some_and(|(_, found)| found.trash) {
            let failed = disks.restore([wanted.chunk].into()).await.map_err(local)?;
            if let Some((_, error)) = failed.into_iter().next() {
                return Err(local(error));
            }
        }
        // What is here, when it is sound in itself and yet not what was committed.
        let other = match disks.verified(wanted.chunk).await {
            Ok((reader, crc)) if crc == wanted.crc && reader.length() == u64::from(wanted.length) => {
                disks.synced(wanted.chunk).await.map_err(local)?;
                return Ok(0);
            }
            Ok((reader, _)) => Some(reader),
            Err(StoreError::NotFound(_) | StoreError::Corrupt { .. }) => None,
            Err(error) => return Err(local(error)),
        };
        let mut last = WireError::new(ErrorKind::ChunkNotFound, "no source holds it");
        for source in &wanted.sources {
            if source.node == self.node.id {
                continue;
            }
            let begun = disks.begin_replacement(wanted.chunk, wanted.set, wanted.length);
            let mut writer = begun.map_err(local)?;
            match self.fetch(wanted, source, &mut writer).await {
                Ok(()) => {
                    if let Some(other) = other {
                        // Only now that the right one is at hand: it may be the last of its kind.
                        let set_aside = move || other.set_aside("it is not what was committed");
                        let done = disks.pool().run(set_aside).await;
                        done.map_err(|error| local(error.into()))?;
                    }
                    writer.finish().map_err(local)?;
                    disks.synced(wanted.chunk).await.map_err(local)?;
                    return Ok(wanted.length.into());
                }
                Err(Failed::Here(error)) => return Err(local(error)),
                Err(Failed::There(error)) => {
                    debug!(chunk = %wanted.chunk, source = %source.node, %error, "a source can not serve a copy");
                    failed.push(FailedMember {
                        node: source.node.to_wire(),
                        error: error.kind.number(),
                        message: error.message.clone(),
                    });
                    // What may go better next time is the answer, rather than that all is lost.
                    if error.kind.is_retryable() || !last.kind.is_retryable() {
                        last = error;
                    }
                }
            }
        }
        Err(last)
    }

    /// Fetches a chunk into a record; verified on return.
    async fn fetch(&self, wanted: &Wanted, source: &Source, writer: &mut Writer) -> Result<(), Failed> {
        let length = u64::from(wanted.length);
        let request = RetrieveChunkRequest {
            chunk: wanted.chunk.get(),
            set: wanted.set,
            length,
            ..RetrieveChunkRequest::default()
        };
        let mut client = DataNodeClient::new(self.channel(&source.address).map_err(Failed::There)?)
            .max_decoding_message_size(MESSAGE_SIZE_MAX);
        // Before the request: a source lets those go that ask for a chunk and do not take it.
        self.pace.take(length).await;
        let answer = clock::timeout(SILENCE_MAX, client.retrieve_chunk(request)).await;
        let mut frames = answer.map_err(|_| silent(source))?.map_err(there)?.into_inner();
        let verify = !planted(Bug::RepairUnverified);
        let mut crcs = Vec::new();
        while writer.written() < length {
            let frame = clock::timeout(SILENCE_MAX, frames.message()).await;
            let frame = frame.map_err(|_| silent(source))?.map_err(there)?;
            let Some(frame) = frame else {
                return Err(bad(ErrorKind::Protocol, "its answer ends before the chunk does"));
            };
            if frame.chunk_length != length {
                let text = format!("its copy has {} bytes, not {length}", frame.chunk_length);
                return Err(bad(ErrorKind::Corrupt, text));
            }
            let end = writer.written() + frame.data.len() as u64;
            let is_whole = frame.data.len().is_multiple_of(cairn_proto::limits::BLOCK_SIZE) || end == length;
            if frame.offset != writer.written() || frame.data.is_empty() || end > length || !is_whole {
                return Err(bad(ErrorKind::Protocol, "its frames do not follow one another"));
            }
            let block_crcs = if verify {
                verify_blocks(&frame.data, &frame.crc32c)
                    .map_err(|mismatch| bad(ErrorKind::ChecksumMismatch, mismatch.to_string()))?;
                frame.crc32c
            } else {
                cairn_proto::checksum::block_crcs(&frame.data)
            };
            crcs.extend_from_slice(&block_crcs);
            let last = end == length;
            if verify && last && combine_blocks(&crcs, length) != wanted.crc {
                return Err(bad(ErrorKind::Corrupt, "its copy is not what was committed"));
            }
            writer.write(&frame.data, &block_crcs).map_err(Failed::Here)?;
            ::metrics::counter!(metrics::COPIED_BYTES).increment(frame.data.len() as u64);
        }
        Ok(())
    }

    fn channel(&self, address: &str) -> Result<Channel, WireError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = net::connect(address).map_err(|error| invalid(error.to_string()))?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// Whose fault it is that a chunk did not arrive.
enum Failed {
    /// Another source does no better.
    Here(StoreError),
    There(WireError),
}

fn there(status: Status) -> Failed {
    Failed::There(wire_error_of(&status))
}

fn silent(source: &Source) -> Failed {
    bad(ErrorKind::TimedOut, format!("{} sends nothing", source.address))
}

fn bad(kind: ErrorKind, message: impl Into<String>) -> Failed {
    Failed::There(WireError::new(kind, message))
}

fn invalid(message: String) -> WireError {
    WireError::new(ErrorKind::InvalidArgument, message)
}
