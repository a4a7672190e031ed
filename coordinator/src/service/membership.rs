//! Datanodes: registration, heartbeats; and what people ask about the cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_proto::limits::BATCH_MAX;
use cairn_proto::{ChunkId, ClusterId, ErrorKind, NodeId, v1};
use cairn_runtime::clock;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::{Replies, Shared, refuse};
use crate::archive::queue::Standing;
use crate::config::LogAck;
use crate::error::OpError;
use crate::membership::map::admin_to_wire;
use crate::membership::state::{Event, Report};
use crate::ops;
use crate::ops::gc::Position;
use crate::ops::members::NodeWish;
use crate::ops::rollback::Seen;
use crate::status;
use crate::store::{AdminState, Count, Datanode, Labels};
use crate::workers::repair::RepairWorker;
use crate::workers::{Worker, placement};

/// Answers under way to one datanode.
const ANSWERS: usize = 16;
/// A datanode that takes nothing for so long is given up.
const SEND_TIME: Duration = Duration::from_secs(10);
/// Heartbeats that may be missing before the stream itself is given up.
const SILENT_BEATS: u32 = 30;
const LABELS_MAX: usize = 16;
const DISKS_MAX: usize = 256;
/// Longest address, label, version or fault, bytes.
const TEXT_MAX: usize = 1024;

pub(super) async fn register(
    shared: &Shared,
    request: v1::RegisterDataNodeRequest,
) -> Result<v1::RegisterDataNodeResponse, OpError> {
    let cluster = &shared.context.cluster;
    let id = NodeId::from_wire(&request.node)?;
    let incarnation = incarnation(&request.incarnation)?;
    if !request.cluster.is_empty() {
        let theirs = ClusterId::from_wire(&request.cluster)?;
        if theirs != cluster.id() {
            let message = format!(
                "the datanode's data belongs to cluster {theirs}, this is {}; give it that cluster's coordinator (a \
                 store that was lost comes back by `cairn coordinator restore`). With an empty data directory it \
                 joins this cluster as a new datanode",
                cluster.id()
            );
            return Err(OpError::new(ErrorKind::WrongCluster, message));
        }
    }
    check_address(&request.address)?;
    let report = report(request.capacity, request.used, request.disks)?;
    let row = Datanode {
        id,
        address: request.address,
        metrics_address: text("metrics_address", request.metrics_address)?,
        labels: labels(request.labels)?,
        capacity: report.capacity,
        used: report.used,
        version: text("version", request.version)?,
        last_seen_ns: clock::wall_ns(),
        admin: AdminState::In,
    };
    let seen = seen(request.fence.unwrap_or_default(), request.chunk_max)?;
    shared.executor.run(move |tx| ops::rollback::compare(tx, id, &seen)).await?;
    let (now, now_ns) = (shared.context.attendance.now(), clock::wall_ns());
    cluster.apply(Event::Registered { row: row.clone(), incarnation, report, now, now_ns })?;
    shared.executor.run(move |tx| ops::members::record(tx, row)).await?;
    Ok(v1::RegisterDataNodeResponse {
        cluster: cluster.id().to_wire(),
        map: Some(v1::ClusterMap::clone(&cluster.map())),
        heartbeat_ms: u64::try_from(shared.heartbeat.as_millis()).unwrap_or(u64::MAX),
    })
}

/// What a datanode says it has seen; numbers that can not be are refused, since ids are skipped by them.
fn seen(fence: v1::Fence, chunk_max: u64) -> Result<Seen, OpError> {
    let v1::Fence { term, epoch, sequence } = fence;
    match [term, epoch, sequence, chunk_max].into_iter().find(|&value| value > i64::MAX as u64) {
        None => Ok(Seen { position: Position { term, epoch, sequence }, chunk_max }),
        Some(value) => Err(OpError::invalid(format!("{value} in a fence; at most 2^63 - 1 is possible"))),
    }
}

fn incarnation(bytes: &[u8]) -> Result<Uuid, OpError> {
    Uuid::from_slice(bytes).map_err(|_| {
        OpError::invalid(format!("incarnation has {} bytes; a UUID of 16 was expected", bytes.len()))
    })
}

fn text(what: &str, text: String) -> Result<String, OpError> {
    if text.len() > TEXT_MAX {
        return Err(OpError::invalid(format!("{what} has {} bytes; {TEXT_MAX} are possible", text.len())));
    }
    Ok(text)
}

pub(super) fn check_address(address: &str) -> Result<(), OpError> {
    let split = address.rsplit_once(':').filter(|(host, _)| !host.is_empty() && address.len() <= TEXT_MAX);
    match split.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(OpError::invalid(format!("address {address:?}; host:port was expected"))),
    }
}

pub(super) fn labels(labels: std::collections::BTreeMap<String, String>) -> Result<Labels, OpError> {
    if labels.len() > LABELS_MAX {
        return Err(OpError::invalid(format!("{} labels; {LABELS_MAX} are possible", labels.len())));
    }
    let plain = |text: &str| text.len() <= TEXT_MAX && !text.contains(char::is_control);
    match labels
        .iter()
        .find(|(name, value)| name.is_empty() || name.contains('=') || !plain(name) || !plain(value))
    {
        None => Ok(Labels(labels)),
        Some((name, _)) => Err(OpError::invalid(format!("label {name:?}: names without '=' and plain text"))),
    }
}

/// A full disk is not an error; more used than there is (both move while they are read) is cut.
pub(super) fn report(capacity: u64, used: u64, disks: Vec<v1::DiskHealth>) -> Result<Report, OpError> {
    if disks.len() > DISKS_MAX {
        return Err(OpError::invalid(format!("{} disks; {DISKS_MAX} are possible", disks.len())));
    }
    let long = |disk: &v1::DiskHealth| {
        [&disk.path, &disk.fault, &disk.filesystem].iter().any(|text| text.len() > 4 * TEXT_MAX)
    };
    if disks.iter().any(long) {
        return Err(OpError::invalid("a disk's path or fault is too long"));
    }
    if capacity > i64::MAX as u64 {
        return Err(OpError::invalid(format!(
            "a capacity of {capacity} bytes; at most 2^63 - 1 is possible"
        )));
    }
    Ok(Report { capacity, used: used.min(capacity), disks })
}

pub(super) async fn heartbeat(
    shared: Arc<Shared>,
    requests: Streaming<v1::HeartbeatRequest>,
) -> Result<Replies<v1::HeartbeatResponse>, OpError> {
    let (answers, stream) = mpsc::channel(ANSWERS);
    let number = shared.streams.fetch_add(1, Ordering::Relaxed);
    let beats =
        Beats { shared: Arc::clone(&shared), requests, answers, number, node: None, revision: 0, beat: 0 };
    shared.shutdown.spawn(beats.run());
    Ok(Box::pin(ReceiverStream::new(stream)))
}

/// One stream of heartbeats.
struct Beats {
    shared: Arc<Shared>,
    requests: Streaming<v1::HeartbeatRequest>,
    answers: mpsc::Sender<Result<v1::HeartbeatResponse, Status>>,
    number: u64,
    /// Who sends them; known from the first.
    node: Option<NodeId>,
    /// Of the map that the datanode has.
    revision: u64,
    /// The last beat of which everything is recorded.
    beat: u64,
}

impl Beats {
    async fn run(mut self) {
        let mut maps = self.shared.context.cluster.subscribe();
        let stop = self.shared.shutdown.requested();
        tokio::pin!(stop);
        let context = Arc::clone(&self.shared.context);
        loop {
            let sent = tokio::select! {
                () = &mut stop => break,
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.on_beat(request).await,
                    Ok(None) => break,
                    // A message that can not be read: its sender shall know.
                    Err(status) => {
                        let _ = self.answers.try_send(Err(status));
                        break;
                    }
                },
                changed = maps.changed(), if self.node.is_some() => match changed {
                    Ok(()) => Ok(()),
                    Err(_) => break,
                },
                () = context.attendance.sleep(self.shared.heartbeat * SILENT_BEATS) => break,
            };
            if let Err(error) = sent {
                let status = refuse("Heartbeat", &error);
                let _ = clock::timeout(SEND_TIME, self.answers.send(Err(status))).await;
                break;
            }
            if !self.reply().await {
                break;
            }
        }
        if let Some(node) = self.node {
            context.cluster.stream_lost(node, self.number, context.attendance.now());
        }
    }

    async fn on_beat(&mut self, request: v1::HeartbeatRequest) -> Result<(), OpError> {
        let node = NodeId::from_wire(&request.node)?;
        let incarnation = incarnation(&request.incarnation)?;
        if self.node.is_some_and(|known| known != node) {
            return Err(OpError::invalid("a stream of heartbeats belongs to one datanode"));
        }
        let cluster = &self.shared.context.cluster;
        if request.leaving {
            return cluster.apply(Event::Leaving { node, incarnation });
        }
        let report = report(request.capacity, request.used, request.disks)?;
        let (now, now_ns) = (self.shared.context.attendance.now(), clock::wall_ns());
        cluster.apply(Event::Beat { node, incarnation, stream: self.number, report, now, now_ns })?;
        // The first answer brings the map in any case: the datanode's may be of an earlier reign.
        self.node = Some(node);
        record_bad(&self.shared, node, &request.bad).await?;
        self.beat = self.beat.max(request.beat);
        Ok(())
    }

    /// The term, and the map when it is newer than the datanode's. False: nobody listens.
    async fn reply(&mut self) -> bool {
        let cluster = &self.shared.context.cluster;
        let map = cluster.map_if_newer(self.revision);
        if let Some(map) = &map {
            self.revision = map.revision;
        }
        let fence = v1::Fence {
            term: cluster.term(),
            epoch: cluster.map().epoch,
            sequence: self.shared.context.sequence.get(),
        };
        let response =
            v1::HeartbeatResponse { map, term: cluster.term(), fence: Some(fence), beat: self.beat };
        matches!(clock::timeout(SEND_TIME, self.answers.send(Ok(response))).await, Ok(Ok(())))
    }
}

/// Records copies that a datanode has found to be bad; durable on return.
async fn record_bad(shared: &Shared, node: NodeId, bad: &[v1::BadChunk]) -> Result<(), OpError> {
    if bad.is_empty() {
        return Ok(());
    }
    if bad.len() > BATCH_MAX {
        return Err(OpError::invalid(format!("{} bad chunks; at most {BATCH_MAX} are possible", bad.len())));
    }
    let chunks = bad.iter().map(|bad| ChunkId::new(bad.chunk)).collect::<Result<Vec<_>, _>>()?;
    let record = move |tx: &mut crate::executor::Tx| {
        let mut news = 0;
        for chunk in chunks {
            news += u64::from(ops::faults::record(tx, chunk, node)?);
        }
        Ok(news)
    };
    let news = shared.executor.run(record).await?;
    if news > 0 {
        tracing::warn!(node = %node, copies = news, "a datanode has found copies that are bad or missing");
        shared.workers.wake(RepairWorker::NAME);
    }
    Ok(())
}

pub(super) async fn list_nodes(shared: &Shared) -> Result<v1::ListNodesResponse, OpError> {
    Ok(v1::ListNodesResponse { map: Some(shared.context.cluster.fresh_map()) })
}

/// Everything that is not well, errors first.
pub(crate) async fn health(shared: &Shared) -> Result<Vec<v1::HealthCode>, OpError> {
    let faults = shared.read(true, |reader| Ok(crate::store::count(reader, Count::Faults)?))?;
    let context = &shared.context;
    let workers = shared.workers.list();
    let facts = status::Facts {
        policy: &context.policy,
        shipping: &context.shipping,
        store_failed: shared.executor.has_failed(),
        faults,
        lost_chunks: shared.lost_chunks.load(Ordering::Relaxed),
        deletion: crate::workers::gc::stopped(shared).await?,
        workers: &workers,
    };
    Ok(status::health(&context.cluster.members(), &facts))
}

pub(super) async fn get_status(shared: &Shared) -> Result<v1::GetStatusResponse, OpError> {
    let counts = [Count::Inodes, Count::Bytes, Count::Chunks, Count::Garbage, Count::Faults];
    let [inodes, bytes, chunks, garbage_chunks, faults] = shared.read(true, |reader| {
        let mut values = [0; 5];
        for (value, count) in values.iter_mut().zip(counts) {
            *value = crate::store::count(reader, count)?;
        }
        Ok(values)
    })?;
    let context = &shared.context;
    let cluster = &context.cluster;
    let sessions = context.sessions.list();
    let workers = shared.workers.list();
    let health = health(shared).await?;
    let session_info = |session: &crate::sessions::SessionView| v1::SessionInfo {
        session: session.id.to_wire(),
        description: session.description.clone(),
        last_seen_ns: session.last_seen_ns,
        open_files: u32::try_from(session.open_files).unwrap_or(u32::MAX),
    };
    Ok(v1::GetStatusResponse {
        map: Some(cluster.fresh_map()),
        health,
        inodes,
        bytes,
        chunks,
        garbage_chunks,
        faults,
        sessions: u32::try_from(sessions.len()).unwrap_or(u32::MAX),
        version: cairn_runtime::VERSION.into(),
        schema: crate::store::SCHEMA,
        started_ns: shared.started_ns,
        session_list: sessions.iter().map(session_info).collect(),
        workers,
        metadata_log: context.shipping.standing().map(metadata_log),
    })
}

fn metadata_log(standing: Standing) -> v1::MetadataLog {
    let base = standing.base.unwrap_or_default();
    v1::MetadataLog {
        committed: standing.committed,
        shipped: standing.shipped,
        covered: standing.covered,
        behind_ms: u64::try_from(standing.behind.as_millis()).unwrap_or(u64::MAX),
        base_sequence: base.sequence,
        base_time_ns: base.time_ns,
        waits: standing.ack == LogAck::Shipped,
    }
}

pub(super) async fn control_worker(
    shared: &Shared,
    request: v1::ControlWorkerRequest,
) -> Result<v1::ControlWorkerResponse, OpError> {
    let worker = shared.workers.control(&request.worker, request.action())?;
    Ok(v1::ControlWorkerResponse { worker: Some(worker) })
}

pub(super) async fn set_node_admin(
    shared: &Shared,
    request: v1::SetNodeAdminRequest,
) -> Result<v1::SetNodeAdminResponse, OpError> {
    let node = NodeId::from_wire(&request.node)?;
    let wish = match request.action() {
        v1::NodeAction::Unspecified => return Err(OpError::invalid("no action was named")),
        v1::NodeAction::Drain => NodeWish::Drain,
        v1::NodeAction::Undrain => NodeWish::Undrain,
        v1::NodeAction::Remove => NodeWish::Remove { force: request.force },
        v1::NodeAction::Replace => NodeWish::Replace { by: NodeId::from_wire(&request.replacement)? },
    };
    let (admin, sets) = shared.executor.run(move |tx| ops::members::set_admin(tx, node, wish)).await?;
    shared.workers.wake(placement::PlacementWorker::NAME);
    Ok(v1::SetNodeAdminResponse { admin: admin_to_wire(admin).into(), sets })
}
