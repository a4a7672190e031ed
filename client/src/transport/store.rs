//! Sending chunks: one long-lived `StoreChunk` stream for each datanode, on which chunks
//! interleave, and the acknowledgements that come back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_proto::checksum::{block_crcs, crc32c};
use cairn_proto::limits::{BLOCK_SIZE, FRAME_SIZE};
use cairn_proto::{ChunkId, ErrorKind, NodeId, WireError, v1};
use cairn_runtime::clock;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Rpc;
use crate::error::{ClientError, Result};
use crate::retry::TRY_TIME;

/// Frames between a sender and the connection; with 256 KiB each this is one stream window.
const FRAMES_QUEUED: usize = 16;
/// Without any sign of progress for this long a store counts as failed. Disks may be slow; nodes
/// that are gone show earlier, as a broken connection or in the map.
pub(crate) const STALL_TIME: Duration = Duration::from_secs(10);
/// How often the caller's view of the node is asked while nothing moves.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The content of one chunk, cut into frames, with the checksums that travel with it.
#[derive(Debug, Clone)]
pub(crate) struct ChunkContent {
    pub(crate) frames: Vec<Frame>,
    pub(crate) length: u64,
    /// Of the whole chunk.
    pub(crate) crc: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) offset: u64,
    pub(crate) data: Bytes,
    pub(crate) crcs: Vec<u32>,
}

impl ChunkContent {
    /// Joins pieces, computing each checksum once. Copies only where pieces are not whole blocks.
    pub(crate) fn join(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut content = Self { frames: Vec::new(), length: 0, crc: 0 };
        let mut gathered = BytesMut::new();
        for mut piece in pieces {
            while !piece.is_empty() {
                let whole = piece.len().min(FRAME_SIZE) / BLOCK_SIZE * BLOCK_SIZE;
                if gathered.is_empty() && whole > 0 {
                    content.push(piece.split_to(whole));
                    continue;
                }
                let part = piece.split_to(piece.len().min(FRAME_SIZE - gathered.len()));
                gathered.extend_from_slice(&part);
                if gathered.len() == FRAME_SIZE {
                    content.push(gathered.split().freeze());
                }
            }
        }
        if !gathered.is_empty() {
            content.push(gathered.freeze());
        }
        content.crc = cairn_proto::checksum::whole(content.frames.iter().map(|frame| &frame.data[..]));
        content
    }

    fn push(&mut self, data: Bytes) {
        let crcs = if data.len() <= BLOCK_SIZE { vec![crc32c(&data)] } else { block_crcs(&data) };
        let offset = self.length;
        self.length += data.len() as u64;
        self.frames.push(Frame { offset, data, crcs });
    }

    fn message(&self, index: usize, chunk: ChunkId, header: &v1::StoreHeader) -> v1::StoreFrame {
        let frame = &self.frames[index];
        v1::StoreFrame {
            chunk: chunk.get(),
            header: (index == 0).then(|| header.clone()),
            offset: frame.offset,
            data: frame.data.clone(),
            crc32c: frame.crcs.clone(),
            is_final: index + 1 == self.frames.len(),
            abort: false,
        }
    }
}

/// What became of a stored chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) by: Vec<NodeId>,
    pub(crate) synced: bool,
    pub(crate) failed: Vec<(NodeId, WireError)>,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    received: u64,
    result: Option<std::result::Result<Stored, WireError>>,
}

/// An open stream to a primary.
#[derive(Debug)]
pub(crate) struct StoreStream {
    frames: mpsc::Sender<v1::StoreFrame>,
    waiting: Mutex<HashMap<u64, watch::Sender<Progress>>>,
    broken: CancellationToken,
}

impl StoreStream {
    /// A stream and the task that must be run for it.
    pub(super) fn open(rpc: Rpc) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let (frames, outgoing) = mpsc::channel(FRAMES_QUEUED);
        let stream = Arc::new(Self { frames, waiting: Mutex::default(), broken: CancellationToken::new() });
        let task = Arc::clone(&stream).run(rpc, outgoing);
        (stream, task)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    pub(super) fn close(&self) {
        self.broken.cancel();
    }

    async fn run(self: Arc<Self>, mut rpc: Rpc, outgoing: mpsc::Receiver<v1::StoreFrame>) {
        tokio::select! {
            result = self.take_acks(&mut rpc, outgoing) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a store stream has ended");
                }
            }
            () = self.broken.cancelled() => {}
        }
        self.broken.cancel();
        // Dropping the senders tells those who wait.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn take_acks(&self, rpc: &mut Rpc, outgoing: mpsc::Receiver<v1::StoreFrame>) -> Result<()> {
        let opened = clock::timeout(TRY_TIME, rpc.store_chunk(ReceiverStream::new(outgoing))).await;
        let timed_out = |_| ClientError::new(ErrorKind::TimedOut, "the store stream was not opened in time");
        let mut acks = opened.map_err(timed_out)??.into_inner();
        while let Some(ack) = acks.message().await? {
            self.on_ack(ack);
        }
        Ok(())
    }

    fn on_ack(&self, ack: v1::StoreAck) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(progress) = waiting.get(&ack.chunk) else { return }; // given up meanwhile
        let chunk = ack.chunk;
        let is_final = ack.stored || ack.error != 0;
        progress.send_modify(|progress| {
            progress.received = progress.received.max(ack.received);
            if is_final {
                progress.result = Some(result_of(ack));
            }
        });
        if is_final {
            waiting.remove(&chunk);
        }
    }

    /// Sends a chunk and waits until its members have stored it.
    ///
    /// `node_is_gone` is asked now and then while nothing moves. On an error replicas may hold parts
    /// of the chunk: its id must not be used again.
    pub(crate) async fn store(
        &self,
        chunk: ChunkId,
        header: &v1::StoreHeader,
        content: &ChunkContent,
        node_is_gone: impl Fn() -> bool,
    ) -> Result<Stored> {
        let mut progress = self.register(chunk)?;
        let _given_up = Unregister { stream: self, chunk };
        let mut next = 0;
        let mut moved = clock::now();
        loop {
            if let Some(result) = progress.borrow_and_update().result.clone() {
                return result.map_err(ClientError::from);
            }
            let sending = next < content.frames.len();
            tokio::select! {
                permit = self.frames.reserve(), if sending => {
                    permit.map_err(|_| broken())?.send(content.message(next, chunk, header));
                    next += 1;
                    moved = clock::now();
                }
                changed = progress.changed() => {
                    // The sender is gone either with a result or because the stream broke.
                    if changed.is_err() && progress.borrow().result.is_none() {
                        return Err(broken());
                    }
                    moved = clock::now();
                }
                () = self.broken.cancelled() => return Err(broken()),
                () = clock::sleep(LOOK_EVERY) => {
                    if moved.elapsed() > STALL_TIME || node_is_gone() {
                        let message = format!("chunk {chunk}: no progress for {:?}", moved.elapsed());
                        return Err(ClientError::new(ErrorKind::TimedOut, message));
                    }
                }
            }
        }
    }

    fn register(&self, chunk: ChunkId) -> Result<watch::Receiver<Progress>> {
        let (sender, receiver) = watch::channel(Progress::default());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, since the task that breaks the stream then empties the table.
        if self.is_broken() {
            return Err(broken());
        }
        waiting.insert(chunk.get(), sender);
        Ok(receiver)
    }
}

fn broken() -> ClientError {
    ClientError::new(ErrorKind::Unavailable, "the connection to the datanode broke")
}

fn result_of(ack: v1::StoreAck) -> std::result::Result<Stored, WireError> {
    if let Some(error) = WireError::from_fields(ack.error, &ack.message) {
        return Err(error);
    }
    let by = ack.stored_by.iter().filter_map(|node| NodeId::from_wire(node).ok()).collect();
    let failed = ack.failed.into_iter().filter_map(|failed| {
        let error = WireError::from_fields(failed.error.max(1), &failed.message)?;
        Some((NodeId::from_wire(&failed.node).ok()?, error))
    });
    Ok(Stored { by, synced: ack.synced, failed: failed.collect() })
}

/// Tells the datanode when a store is given up before its end.
struct Unregister<'a> {
    stream: &'a StoreStream,
    chunk: ChunkId,
}

impl Drop for Unregister<'_> {
    fn drop(&mut self) {
        let removed =
            self.stream.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.chunk.get());
        if removed.is_some() {
            let abort = v1::StoreFrame { chunk: self.chunk.get(), abort: true, ..Default::default() };
            // When the queue is full the datanode finds out by its own deadline.
            let _ = self.stream.frames.try_send(abort);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_are_whole_blocks_that_join_to_the_pieces(sizes in prop::collection::vec(1usize..300_000, 1..8)) {
            let mut all = Vec::new();
            let mut pieces = Vec::new();
            for (index, size) in sizes.iter().enumerate() {
                let piece: Vec<u8> = (0..*size).map(|at| (at.wrapping_mul(7) + index) as u8).collect();
                all.extend_from_slice(&piece);
                pieces.push(Bytes::from(piece));
            }
            let content = ChunkContent::join(pieces);
            prop_assert_eq!(content.length, all.len() as u64);
            prop_assert_eq!(content.crc, crc32c(&all));
            let mut at = 0;
            for (index, frame) in content.frames.iter().enumerate() {
                let last = index + 1 == content.frames.len();
                prop_assert_eq!(frame.offset, at as u64);
                prop_assert_eq!(&frame.data[..], &all[at..at + frame.data.len()]);
                prop_assert!(frame.data.len() <= FRAME_SIZE);
                prop_assert!(last || frame.data.len().is_multiple_of(BLOCK_SIZE));
                prop_assert!(cairn_proto::checksum::verify_blocks(&frame.data, &frame.crcs).is_ok());
                at += frame.data.len();
            }
        }
    }
}
