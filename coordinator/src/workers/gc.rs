//! Deletes what nothing refers to: chunks in the table of garbage, and strays.
//!
//! A step takes a page of rows whose time has come, lets the executor decide, asks every datanode
//! concerned, and removes the rows of which all have said yes. Rows of datanodes that do not answer stay
//! and are asked for again. What may be deleted at all, and why, is in [`crate::ops::gc`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::{ChunkId, NodeId, v1};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock;
use futures::StreamExt;

use super::strays::Strays;
use super::{Next, Progress, Worker};
use crate::error::OpError;
use crate::membership::state::NodeState;
use crate::ops::gc::{self, Position, Stopped};
use crate::service::Shared;
use crate::store::{Count, Garbage};

/// Rows of one step: as many ids as a datanode deletes in well under a second.
const PAGE: usize = 2048;
/// Datanodes that delete at once.
const NODES_AT_ONCE: usize = 8;
/// Ids within which strays are looked at together: what one listing can hold.
const STRAY_SPAN: u64 = 65_536;
/// How often the queue is looked at when nothing happens.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// And when what is due can not be deleted: datanodes are away.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is known of deletion besides the rows, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct GcState {
    pub(crate) strays: Strays,
    pub(crate) deleted: AtomicU64,
    pub(crate) strays_deleted: AtomicU64,
    /// When every datanode that is up had been compared, ns; 0: not yet.
    pub(crate) reconciled_ns: AtomicI64,
    /// What became garbage before this time, ns, goes without its grace: an operator wants its room back.
    pub(crate) hurried_ns: AtomicI64,
    last: Mutex<LastPass>,
}

#[derive(Debug, Default, Clone)]
struct LastPass {
    overdue: u64,
    waiting_for: BTreeSet<NodeId>,
    error: String,
}

impl GcState {
    fn last(&self) -> std::sync::MutexGuard<'_, LastPass> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker.
#[derive(Debug, Default)]
pub(crate) struct Gc {
    /// Where the pass over the table has come to.
    after: Option<Garbage>,
    pass: LastPass,
    pass_deleted: u64,
    pause: Duration,
}

impl Worker for Gc {
    const NAME: &'static str = "gc";

    /// One page of rows, or, when a pass is over, the strays.
    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        let began = clock::now();
        if stopped(shared).await?.is_some() {
            self.after = None;
            return Ok(Next::Idle(PAUSE_MIN));
        }
        if self.after.is_none() {
            progress.begin(shared.read(true, |reader| Ok(crate::store::count(reader, Count::Garbage)?))?);
        }
        let fence_ns = due_ns(shared, fence_ns(shared));
        let after = self.after.clone();
        let rows =
            shared.read_many(move |reader| Ok(gc::due(reader, after.as_ref(), fence_ns, PAGE)?)).await?;
        let Some(last) = rows.last().cloned() else {
            progress.finish();
            return self.end_of_pass(shared).await;
        };
        let count = rows.len();
        self.delete(shared, rows).await?;
        progress.add(count as u64, 0);
        self.after = Some(last);
        // As long idle as busy: users come first.
        Ok(Next::Throttled(began.elapsed()))
    }
}

impl Gc {
    async fn delete(&mut self, shared: &Arc<Shared>, rows: Vec<Garbage>) -> Result<(), OpError> {
        let claim = shared.executor.run(move |tx| gc::claim(tx, &rows)).await?;
        let asked = claim.ask.into_iter().map(|(node, chunks)| async move {
            let answer = delete_on(shared, node, &chunks).await;
            (node, chunks, answer)
        });
        let mut answers = futures::stream::iter(asked).buffer_unordered(NODES_AT_ONCE);
        let mut kept: BTreeSet<ChunkId> = BTreeSet::new();
        while let Some((node, chunks, answer)) = answers.next().await {
            match answer {
                Ok(failed) if failed.is_empty() => {}
                Ok(failed) => {
                    self.pass.waiting_for.insert(node);
                    kept.extend(failed);
                }
                Err(error) => {
                    self.pass.waiting_for.insert(node);
                    self.pass.error = error.to_string();
                    kept.extend(chunks);
                }
            }
        }
        drop(answers);
        let done: Vec<Garbage> = claim.rows.into_iter().filter(|row| !kept.contains(&row.chunk)).collect();
        self.pass.overdue += kept.len() as u64;
        if !done.is_empty() {
            let gone = shared.executor.run(move |tx| gc::finish(tx, &done)).await?;
            self.pass_deleted += gone;
            shared.gc.deleted.fetch_add(gone, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn end_of_pass(&mut self, shared: &Arc<Shared>) -> Result<Next, OpError> {
        let strays = delete_strays(shared).await?;
        let progress = self.pass_deleted > 0 || strays > 0;
        self.pause = match (progress, self.pass.overdue) {
            (true, _) | (_, 0) => PAUSE_MIN,
            (false, _) => (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
        };
        if self.pass_deleted > 0 || strays > 0 {
            tracing::info!(chunks = self.pass_deleted, strays, overdue = self.pass.overdue, "chunks deleted");
        }
        *shared.gc.last() = std::mem::take(&mut self.pass);
        self.after = None;
        self.pass_deleted = 0;
        Ok(Next::Idle(self.pause))
    }
}

/// Why nothing is deleted at present.
pub(crate) async fn stopped(shared: &Shared) -> Result<Option<Stopped>, OpError> {
    shared.read_many(|reader| Ok(gc::stopped(&mut |name| crate::store::count(reader, name))?)).await
}

/// What became garbage before this, grace included, may go: the time is over, and every session has shown
/// itself since.
fn fence_ns(shared: &Shared) -> i64 {
    let now = clock::wall_ns();
    shared.context.sessions.all_seen_ns().map_or(now, |seen| seen.min(now))
}

/// Rows may go whose grace ends before this. An operator can take the grace of what is garbage by now; what every
/// session must have shown itself after stays.
fn due_ns(shared: &Shared, fence_ns: i64) -> i64 {
    let hurried_ns = shared.gc.hurried_ns.load(Ordering::Relaxed).min(fence_ns);
    fence_ns.max(hurried_ns.saturating_add(shared.context.policy.garbage_ns))
}

/// Takes the grace of everything that is garbage by now. The worker begins at once, and goes on when all sessions have
/// shown themselves.
pub(crate) fn hurry(shared: &Shared) {
    shared.gc.hurried_ns.store(clock::wall_ns(), Ordering::Relaxed);
    shared.workers.wake(Gc::NAME);
}

/// Asks a datanode to delete; returns what it did not.
async fn delete_on(shared: &Shared, node: NodeId, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, OpError> {
    let cluster = &shared.context.cluster;
    // The position as late as possible: the datanode may have heard of later commits meanwhile.
    let position = Position {
        term: cluster.term(),
        epoch: cluster.members().epoch,
        sequence: shared.context.sequence.get(),
    };
    let request = v1::DeleteChunksRequest {
        chunks: chunks.iter().map(|chunk| chunk.get()).collect(),
        term: position.term,
        epoch: position.epoch,
        sequence: position.sequence,
    };
    let failed = shared.datanodes.delete(cluster, node, request).await?;
    for failure in &failed {
        tracing::warn!(node = %node, chunk = failure.chunk, error = failure.message, "a chunk could not be deleted");
    }
    Ok(failed.into_iter().filter_map(|failure| ChunkId::new(failure.chunk).ok()).collect())
}

/// Looks again at strays whose grace is over, and deletes those that are still held for nothing.
async fn delete_strays(shared: &Arc<Shared>) -> Result<u64, OpError> {
    let grace = shared.context.policy.garbage_ns;
    let mut deleted = 0;
    for node in shared.gc.strays.nodes() {
        let grace = if planted(Bug::GcTakesStraysAtOnce) { 0 } else { grace };
        let seen_ns = fence_ns(shared).saturating_sub(grace);
        let due = shared.gc.strays.due(node, seen_ns, STRAY_SPAN, PAGE);
        let (Some(&first), Some(&last)) = (due.first(), due.last()) else { continue };
        let is_up = shared.context.cluster.members().is_up(node);
        if !is_up {
            continue;
        }
        // The second look, by a complete listing as well.
        let cluster = &shared.context.cluster;
        let listing = match shared.datanodes.list(cluster, node, (first, last)).await {
            Ok(listing) => listing,
            Err(error) => {
                tracing::warn!(node = %node, %error, "strays stay: the datanode can not be asked");
                continue;
            }
        };
        let held: BTreeSet<ChunkId> = listing
            .iter()
            .filter(|held| !held.trash)
            .filter_map(|held| ChunkId::new(held.chunk).ok())
            .collect();
        let still: BTreeSet<ChunkId> = due.intersection(&held).copied().collect();
        let gone: BTreeSet<ChunkId> = due.difference(&held).copied().collect();
        shared.gc.strays.forget(node, &gone);
        let asked = still.clone();
        let claimed = shared.executor.run(move |tx| gc::claim_strays(tx, node, &asked)).await?;
        let refused: BTreeSet<ChunkId> =
            still.iter().filter(|chunk| !claimed.contains(chunk)).copied().collect();
        shared.gc.strays.defer(node, &refused, clock::wall_ns());
        if claimed.is_empty() {
            continue;
        }
        match delete_on(shared, node, &claimed).await {
            Ok(failed) => {
                let done: BTreeSet<ChunkId> =
                    claimed.into_iter().filter(|chunk| !failed.contains(chunk)).collect();
                deleted += done.len() as u64;
                shared.gc.strays.forget(node, &done);
            }
            Err(error) => tracing::warn!(node = %node, %error, "strays could not be deleted"),
        }
    }
    shared.gc.strays_deleted.fetch_add(deleted, Ordering::Relaxed);
    Ok(deleted)
}

/// What waits, and why.
pub(crate) async fn status(shared: &Shared) -> Result<v1::GcStatus, OpError> {
    let (stopped, garbage, oldest) = shared
        .read_many(|reader| {
            let stopped = gc::stopped(&mut |name| crate::store::count(reader, name))?;
            let oldest = gc::due(reader, None, i64::MAX, 1)?;
            Ok((stopped, crate::store::count(reader, Count::Garbage)?, oldest))
        })
        .await?;
    let (paused_ns, rolled_back_ns) = match stopped {
        Some(Stopped::ByOperator { since_ns }) => (since_ns, 0),
        Some(Stopped::RolledBack { since_ns }) => (0, since_ns),
        None => (0, 0),
    };
    let last = shared.gc.last().clone();
    Ok(v1::GcStatus {
        paused_ns,
        rolled_back_ns,
        garbage,
        oldest_ns: oldest.first().map_or(0, |row| row.not_before_ns),
        overdue: last.overdue,
        waiting_for: last.waiting_for.into_iter().map(NodeId::to_wire).collect(),
        strays: shared.gc.strays.len(),
        deleted: shared.gc.deleted.load(Ordering::Relaxed),
        strays_deleted: shared.gc.strays_deleted.load(Ordering::Relaxed),
        grace_ms: u64::try_from(shared.context.policy.garbage_ns / 1_000_000).unwrap_or(0),
        session_fence_ns: shared.context.sessions.all_seen_ns().unwrap_or(0),
        error: last.error,
        reconciled_ns: shared.gc.reconciled_ns.load(Ordering::Relaxed),
    })
}

/// How far the scrub of each datanode is; with `start` it begins.
pub(crate) async fn scrub(
    shared: &Shared,
    request: v1::ScrubNodesRequest,
) -> Result<v1::ScrubNodesResponse, OpError> {
    let wanted =
        request.nodes.iter().map(|node| NodeId::from_wire(node)).collect::<Result<BTreeSet<_>, _>>()?;
    let nodes: BTreeMap<NodeId, (String, NodeState)> = {
        let members = shared.context.cluster.members();
        let chosen = members.nodes.iter().filter(|(node, _)| wanted.is_empty() || wanted.contains(*node));
        chosen.map(|(node, entry)| (*node, (entry.row.address.clone(), entry.state))).collect()
    };
    if let Some(unknown) = wanted.iter().find(|node| !nodes.contains_key(*node)) {
        let message = format!("no datanode {unknown} has registered");
        return Err(OpError::new(cairn_proto::ErrorKind::NotFound, message));
    }
    let asked = nodes.into_iter().map(|(node, (address, _))| async move {
        let ask = v1::ScrubRequest { start: request.start, bytes_per_second: request.bytes_per_second };
        let (status, error) = match shared.datanodes.scrub(&shared.context.cluster, node, ask).await {
            Ok(status) => (Some(status), String::new()),
            Err(error) => (None, error.to_string()),
        };
        v1::NodeScrub { node: node.to_wire(), address, status, error }
    });
    let nodes = futures::stream::iter(asked).buffered(NODES_AT_ONCE).collect().await;
    Ok(v1::ScrubNodesResponse { nodes })
}
