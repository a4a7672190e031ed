//! The incoming half of a stream of chunks, from a client (primary) or another datanode (replica).
//!
//! Each frame is verified, forwarded and written here by the same task, in that order of starting:
//! a frame that waits for room on a link is written here first. What fails is told in the chunk's
//! acknowledgement, nothing of it is kept here, and the stream goes on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cairn_proto::v1::{StoreFrame, StoreHeader};
use cairn_proto::{ChunkId, Epoch, ErrorKind, NodeId, ReplicaSetId, WireError};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock;
use futures::{Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, Streaming};
use tracing::debug;

use crate::assembly::Assembly;
use crate::frame_queue::Forward;
use crate::map::Map;
use crate::metrics;
use crate::node::Node;
use crate::outbox::{OPEN_MAX, Outbox};
use crate::replication::{LIFE_INTERVAL, Lane};
use crate::store::Writer;
use crate::transfer::{Transfer, error_ack, unavailable};

/// Chunks that are under way when the node stops may take this long.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Failed chunks whose further frames are passed over in silence.
const REFUSED_MAX: usize = 4 * OPEN_MAX;
/// Members that one header may name.
const FORWARD_MAX: usize = 32;

/// Whom a stream comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// From a client; chunks are forwarded.
    Primary,
    /// From a primary; chunks stay here.
    Replica,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// One chunk that is arriving.
struct Upload {
    _counted: Counted,
    assembly: Assembly,
    transfer: Arc<Transfer>,
    writer: Writer,
    lanes: Vec<Lane>,
    sync: bool,
}

/// Counts a chunk for as long as it is arriving.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The incoming half of one stream.
pub(crate) struct Intake {
    node: Arc<Node>,
    role: Role,
    outbox: Arc<Outbox>,
    uploads: HashMap<ChunkId, Upload>,
    refused: VecDeque<ChunkId>,
}

impl Intake {
    pub(crate) fn new(node: Arc<Node>, role: Role, outbox: Arc<Outbox>) -> Self {
        node.streams.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self { node, role, outbox, uploads: HashMap::new(), refused: VecDeque::new() }
    }

    /// Handles frames until the stream ends, breaks, or the node stops. Returns why it broke: a
    /// message that can not be read is its sender's mistake, and it shall know.
    pub(crate) async fn run<S>(mut self, mut frames: S) -> Option<Status>
    where
        S: Stream<Item = Result<StoreFrame, Status>> + Unpin,
    {
        let mut failure = None;
        let mut life = clock::interval(LIFE_INTERVAL);
        let stop = self.node.stop.clone();
        loop {
            tokio::select! {
                frame = frames.next() => match frame {
                    Some(Ok(frame)) => {
                        self.on_frame(frame).await;
                        self.outbox.give_way().await;
                    }
                    None => break,
                    Some(Err(status)) => {
                        debug!(role = self.role.name(), error = status.message(), "a stream broke");
                        failure = Some(status);
                        break;
                    }
                },
                _ = life.tick(), if self.role == Role::Replica => {
                    if self.outbox.open() > 0 {
                        self.outbox.credit(0, 0);
                    }
                }
                () = stop.cancelled() => {
                    self.wind_down(&mut frames).await;
                    break;
                }
            }
        }
        let open: Vec<ChunkId> = self.uploads.keys().copied().collect();
        for chunk in open {
            let (got, length) = match self.uploads.get(&chunk) {
                Some(upload) => (upload.assembly.received(), upload.assembly.length()),
                None => continue,
            };
            let text = format!("a short chunk: the stream ended at {got} of {length}");
            self.fail(chunk, WireError::new(ErrorKind::InvalidArgument, text));
        }
        failure
    }

    /// Lets the chunks that are under way arrive, for a moment.
    async fn wind_down<S>(&mut self, frames: &mut S)
    where
        S: Stream<Item = Result<StoreFrame, Status>> + Unpin,
    {
        let deadline = clock::now() + STOP_GRACE;
        while !self.uploads.is_empty() {
            match clock::timeout_at(deadline, frames.next()).await {
                Ok(Some(Ok(frame))) => {
                    self.on_frame(frame).await;
                    self.outbox.give_way().await;
                }
                _ => break,
            }
        }
        let open: Vec<ChunkId> = self.uploads.keys().copied().collect();
        for chunk in open {
            self.fail(chunk, unavailable("this datanode is stopping"));
        }
    }

    async fn on_frame(&mut self, frame: StoreFrame) {
        let chunk = match ChunkId::new(frame.chunk) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.outbox.admit().await;
                let error = WireError::new(ErrorKind::InvalidArgument, error.to_string());
                return self.outbox.finish(error_ack(frame.chunk, &error));
            }
        };
        if frame.abort {
            return self.fail(chunk, WireError::new(ErrorKind::Interrupted, "the sender gave the chunk up"));
        }
        let known = self.uploads.contains_key(&chunk);
        match &frame.header {
            Some(header) if !known => {
                self.outbox.admit().await;
                if let Err(error) = self.begin(chunk, header).await {
                    return self.refuse(chunk, &error);
                }
            }
            Some(_) => {
                let text = "a second header of the same chunk; one in its first frame was expected";
                return self.fail(chunk, WireError::new(ErrorKind::InvalidArgument, text));
            }
            None if !known => {
                if !self.refused.contains(&chunk) {
                    self.outbox.admit().await;
                    let text =
                        "data without a header: the chunk was not begun, or has ended before this frame";
                    self.refuse(chunk, &WireError::new(ErrorKind::InvalidArgument, text));
                }
                return;
            }
            None => {}
        }
        if let Err(error) = self.accept(chunk, frame).await {
            self.fail(chunk, error);
        }
    }

    /// Checks a header, reserves room here, and opens the lanes to the other members.
    async fn begin(&mut self, chunk: ChunkId, header: &StoreHeader) -> Result<(), WireError> {
        if self.node.stop.is_cancelled() {
            return Err(unavailable("this datanode is stopping"));
        }
        let invalid =
            |error: cairn_proto::IdError| WireError::new(ErrorKind::InvalidArgument, error.to_string());
        let set = ReplicaSetId::new(header.set).map_err(invalid)?;
        let epoch = Epoch::new(header.epoch).map_err(invalid)?;
        let assembly = Assembly::new(header.length)?;
        let map = self.node.maps.at(set, epoch).await?;
        let members = self.members(header, &map, set)?;
        let writer =
            self.node.disks.begin(chunk, set.get(), assembly.length()).map_err(|error| error.to_wire())?;
        debug!(%chunk, %set, length = header.length, request = header.request_id, role = self.role.name(), "chunk begins");
        let transfer = Arc::new(Transfer::new(
            chunk,
            header.length,
            header.sync,
            Arc::clone(&self.outbox),
            self.node.id,
            members.clone(),
            self.role.name(),
        ));
        let mut lanes = Vec::with_capacity(members.len());
        for (index, (node, failed)) in members.into_iter().enumerate() {
            if failed.is_some() {
                continue;
            }
            let lane = match self.node.partners.get(node) {
                Some(link) => Lane::open(link, &transfer, index).await,
                None => Err(unavailable("not connected yet")),
            };
            match lane {
                Ok(lane) => lanes.push(lane),
                Err(error) => transfer.on_ended(index, Err(error)),
            }
        }
        self.refused.retain(|refused| *refused != chunk);
        let counted = Counted::new(&self.node.transfers);
        self.uploads.insert(
            chunk,
            Upload { _counted: counted, assembly, transfer, writer, lanes, sync: header.sync },
        );
        Ok(())
    }

    /// Whom to forward to: those the header names, or all other members; those that are down have
    /// failed already.
    fn members(
        &self,
        header: &StoreHeader,
        map: &Map,
        set: ReplicaSetId,
    ) -> Result<Vec<(NodeId, Option<WireError>)>, WireError> {
        let invalid = |text: String| WireError::new(ErrorKind::InvalidArgument, text);
        if self.role == Role::Replica {
            return match header.forward.is_empty() {
                true => Ok(Vec::new()),
                false => {
                    Err(invalid("a forwarded chunk names members to forward to; none were expected".into()))
                }
            };
        }
        let all = map.sets.get(&set).map(|found| found.members.as_slice()).unwrap_or_default();
        if header.forward.len() > FORWARD_MAX {
            return Err(invalid(format!(
                "{} members to forward to; at most {FORWARD_MAX} were expected",
                header.forward.len()
            )));
        }
        let named = header
            .forward
            .iter()
            .map(|bytes| NodeId::from_wire(bytes).map_err(|error| invalid(error.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, node) in named.iter().enumerate() {
            if *node == self.node.id || !all.contains(node) || named[..index].contains(node) {
                return Err(invalid(format!("{node} is no other member of set {set}, or is named twice")));
            }
        }
        let wanted = if named.is_empty() { all } else { &named };
        let others = wanted.iter().filter(|node| **node != self.node.id);
        Ok(others.map(|&node| (node, map.is_down(node).then(|| unavailable("it is down")))).collect())
    }

    async fn accept(&mut self, chunk: ChunkId, frame: StoreFrame) -> Result<(), WireError> {
        let Some(upload) = self.uploads.get_mut(&chunk) else {
            return Ok(());
        };
        let is_last = upload.assembly.accept(&frame)?;
        let memory = if upload.lanes.is_empty() { None } else { self.node.reserve(frame.data.len()).await };
        upload.store(frame, memory).await?;
        let received = upload.writer.written();
        if !is_last {
            upload.transfer.on_received_here(received);
            return Ok(());
        }
        match self.uploads.remove(&chunk) {
            Some(upload) => upload.complete(&self.node),
            None => Ok(()),
        }
    }

    /// Ends a chunk that is arriving: nothing of it is kept here, nor on those it was forwarded to.
    fn fail(&mut self, chunk: ChunkId, error: WireError) {
        if let Some(upload) = self.uploads.remove(&chunk) {
            for lane in &upload.lanes {
                lane.abort();
            }
            drop(upload.writer); // before the sender learns of it
            upload.transfer.on_ended_here(Err(error));
            self.remember(chunk);
        }
    }

    /// Answers an admitted chunk that could not begin.
    fn refuse(&mut self, chunk: ChunkId, error: &WireError) {
        ::metrics::counter!(metrics::STORE_FAILED).increment(1);
        debug!(%chunk, %error, "chunk refused");
        self.outbox.finish(error_ack(chunk.get(), error));
        self.remember(chunk);
    }

    fn remember(&mut self, chunk: ChunkId) {
        if self.refused.len() == REFUSED_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back(chunk);
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // The sender is gone: nobody waits for these chunks any more.
        for upload in self.uploads.values() {
            for lane in &upload.lanes {
                lane.abort();
            }
        }
        self.node.streams.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Upload {
    /// Forwards a verified frame and writes it here.
    async fn store(
        &mut self,
        frame: StoreFrame,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Result<(), WireError> {
        let memory = memory.map(Arc::new);
        let mut waiting = Vec::new();
        for (index, lane) in self.lanes.iter().enumerate() {
            if !self.transfer.is_receiving(lane.member()) {
                continue;
            }
            let mut copy = frame.clone(); // shares the data
            if let Some(header) = &mut copy.header {
                header.forward.clear();
            }
            if let Some(back) = lane.try_send(Forward { frame: copy, _memory: memory.clone() }) {
                waiting.push((index, back));
            }
        }
        self.writer.write(&frame.data, &frame.crc32c).map_err(|error| error.to_wire())?;
        ::metrics::counter!(metrics::WRITTEN_BYTES).increment(frame.data.len() as u64);
        drop(frame);
        for (index, forward) in waiting {
            self.lanes[index].send(forward).await;
        }
        Ok(())
    }

    /// All bytes are here: makes the chunk visible, and durable where that is asked.
    fn complete(self, node: &Node) -> Result<(), WireError> {
        let Self { transfer, writer, lanes, sync, .. } = self;
        let chunk = transfer.chunk();
        if let Err(error) = writer.finish() {
            for lane in &lanes {
                lane.abort();
            }
            transfer.on_ended_here(Err(error.to_wire()));
            return Ok(());
        }
        if !sync {
            transfer.on_ended_here(Ok(()));
            return Ok(());
        }
        if planted(Bug::AckBeforeOwnSync) {
            transfer.on_ended_here(Ok(()));
        }
        let done = move |result: Result<(), crate::store::StoreError>| {
            transfer.on_ended_here(result.map_err(|error| error.to_wire()));
        };
        node.disks.sync(chunk, Box::new(done));
        Ok(())
    }
}

/// Takes the chunks that a client sends, and answers them.
pub(crate) fn serve(node: Arc<Node>, frames: Streaming<StoreFrame>) -> crate::outbox::AckStream {
    let outbox = Arc::new(Outbox::default());
    let intake = Intake::new(node, Role::Primary, Arc::clone(&outbox));
    crate::outbox::AckStream::new(outbox, intake.run(frames))
}
