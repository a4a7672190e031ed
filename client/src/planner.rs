//! The stock of chunk ids. Plans are asked for ahead and for any file, so that a small write needs
//! no question before its data can leave. The first stock is small, since a command that stores one
//! file needs no more; it grows while it is used up quickly.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ChunkId, ErrorKind, NodeId, ReplicaSetId, SessionId, v1};
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::telemetry::RequestId;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::coordinator::Coordinator;
use crate::error::{ClientError, Result};
use crate::map::{Liveness, Map};
use crate::retry::Patience;

/// Chunk ids in the first and the largest plan.
const BATCH_MIN: u32 = 8;
const BATCH_MAX: u32 = 512;
/// A stock used up faster than this is doubled.
const QUICK: Duration = Duration::from_secs(5);
/// Plans are not used in the last part of their life, so that a slow store still ends in time; at most half
/// of it.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// A node without room is left out of plans for this long.
const FULL_TIME: Duration = Duration::from_secs(10);
/// A node that has just failed a store is left out of plans for this long.
const FAILED_TIME: Duration = Duration::from_secs(5);
/// A plan that leaves nodes out gets this long before it is asked for without that wish.
const PICKY_TIME: Duration = Duration::from_millis(200);

/// The right to store one chunk once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) session: SessionId,
    pub(crate) chunk: ChunkId,
    pub(crate) set: ReplicaSetId,
    pub(crate) token: Bytes,
}

#[derive(Debug, Clone)]
struct Range {
    first: u64,
    count: u32,
    set: ReplicaSetId,
    token: Bytes,
    until: Instant,
}

#[derive(Debug, Default)]
struct Stock {
    session: Option<SessionId>,
    ranges: VecDeque<Range>,
    batch: u32,
    refilled: Option<Instant>,
    refilling: bool,
    avoid: HashMap<NodeId, (Instant, Reason)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Failed,
    Full,
}

/// Hands out chunk ids.
#[derive(Debug)]
pub(crate) struct Planner {
    coordinator: Coordinator,
    chunk_size: u64,
    stock: Mutex<Stock>,
    refill: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
}

impl Planner {
    pub(crate) fn new(coordinator: Coordinator, chunk_size: u64, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self {
            coordinator,
            chunk_size,
            stock: Mutex::default(),
            refill: tokio::sync::Mutex::default(),
            tasks,
            runtime: tokio::runtime::Handle::current(),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Stock) -> T) -> T {
        f(&mut self.stock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Data is being written that will need chunk ids soon.
    pub(crate) fn warm(self: &Arc<Self>) {
        self.refill_in_background(|stock| stock.available() == 0);
    }

    /// A node could not store: plans leave it out for a while.
    pub(crate) fn avoid(&self, node: NodeId, reason: Reason) {
        self.with(|stock| stock.avoid.insert(node, (clock::now(), reason)));
    }

    /// Whether a node has lately failed to store.
    pub(crate) fn avoids(&self, node: NodeId) -> bool {
        self.with(|stock| {
            stock.nodes_avoided();
            stock.avoid.contains_key(&node)
        })
    }

    /// The right to store one chunk, on a set whose members are all well where there is one.
    ///
    /// `NoSpace`: no set has room. Unreachable coordinators and missing datanodes are waited for
    /// within `patience`.
    pub(crate) async fn take(self: &Arc<Self>, patience: &mut Patience) -> Result<Grant> {
        loop {
            if let Some(grant) = self.take_stocked(true) {
                self.refill_in_background(|stock| stock.available() < stock.batch / 2);
                return Ok(grant);
            }
            let alone = self.refill.lock().await;
            if let Some(grant) = self.take_stocked(true) {
                return Ok(grant); // another one has refilled meanwhile
            }
            self.replenish(patience).await?;
            drop(alone);
            // A set with a bad member is better than none, as long as enough others are well.
            if let Some(grant) = self.take_stocked(true).or_else(|| self.take_stocked(false)) {
                return Ok(grant);
            }
            let error = ClientError::new(ErrorKind::Unavailable, "too few datanodes are up to store a chunk");
            patience.pause(&error).await?;
        }
    }

    fn take_stocked(&self, picky: bool) -> Option<Grant> {
        let session = self.coordinator.session().identity().ok()?.session;
        let map = self.coordinator.map().get();
        self.with(|stock| stock.take(session, &map, picky))
    }

    fn refill_in_background(self: &Arc<Self>, wanted: impl FnOnce(&Stock) -> bool) {
        let start = self.with(|stock| {
            let start = !stock.refilling && wanted(stock);
            stock.refilling |= start;
            start
        });
        if !start {
            return;
        }
        let this = Arc::clone(self);
        let work = async move {
            let alone = this.refill.lock().await;
            let mut patience = Patience::limited("plan ahead", Some(Duration::from_secs(5)));
            if let Err(error) = this.replenish(&mut patience).await {
                debug!(%error, "no plan ahead of need"); // the next one who needs it asks again
            }
            drop(alone);
            this.with(|stock| stock.refilling = false);
        };
        self.tasks.spawn_on(RequestId::fresh().scope(work), &self.runtime);
    }

    /// Asks for a plan without the nodes to avoid; where that can not be, for any.
    async fn replenish(&self, patience: &mut Patience) -> Result<()> {
        let batch = self.with(Stock::next_batch);
        let (failed, full) = self.with(Stock::nodes_avoided);
        if !failed.is_empty() || !full.is_empty() {
            let both: Vec<_> = failed.iter().chain(&full).copied().collect();
            let mut short = Patience::limited("plan without failed nodes", Some(PICKY_TIME));
            match self.ask(batch, &both, &mut short).await {
                Err(error) if error.kind() == ErrorKind::NoSpace && failed.is_empty() => return Err(error),
                Err(error) => debug!(%error, "no plan without the nodes that failed"),
                Ok(()) => return Ok(()),
            }
        }
        if !full.is_empty() {
            let mut short = Patience::limited("plan without full nodes", Some(PICKY_TIME));
            match self.ask(batch, &full, &mut short).await {
                Err(error) if error.kind() == ErrorKind::NoSpace => return Err(error),
                Err(error) => debug!(%error, "no plan without the nodes that were full"),
                Ok(()) => return Ok(()),
            }
        }
        // Whether those have room by now, the coordinator knows. With the nodes left out that were full
        // when this began, a client that waits without an end would never come back to them.
        self.ask(batch, &[], patience).await
    }

    async fn ask(&self, batch: u32, exclude: &[NodeId], patience: &mut Patience) -> Result<()> {
        let (identity, plan) = self.coordinator.plan(batch, self.chunk_size, exclude, patience).await?;
        let taken = self.with(|stock| stock.add(identity.session, plan));
        taken.map_err(|error| ClientError::protocol("the coordinator", error))
    }
}

impl Stock {
    fn available(&self) -> u32 {
        self.ranges.iter().map(|range| range.count).sum()
    }

    fn next_batch(&mut self) -> u32 {
        let quick = self.refilled.is_some_and(|at| at.elapsed() < QUICK);
        self.batch = match self.batch {
            0 => BATCH_MIN,
            batch if quick => (batch * 2).min(BATCH_MAX),
            batch => (batch / 2).max(BATCH_MIN),
        };
        self.refilled = Some(clock::now());
        self.batch
    }

    fn nodes_avoided(&mut self) -> (Vec<NodeId>, Vec<NodeId>) {
        self.avoid.retain(|_, (since, reason)| {
            let time = if *reason == Reason::Full { FULL_TIME } else { FAILED_TIME };
            since.elapsed() < time
        });
        let of = |wanted| {
            let nodes = self.avoid.iter().filter(move |(_, (_, reason))| *reason == wanted);
            nodes.map(|(node, _)| *node).collect()
        };
        (of(Reason::Failed), of(Reason::Full))
    }

    fn add(&mut self, session: SessionId, plan: v1::UploadFileResponse) -> Result<(), cairn_proto::IdError> {
        self.keep_only(session);
        let life = Duration::from_millis(plan.expires_in_ms);
        let until = clock::now() + (life - EXPIRY_MARGIN.min(life / 2));
        for range in plan.ranges {
            ChunkId::new(range.first)?;
            ChunkId::new(range.first.saturating_add(range.count.into()))?;
            let set = ReplicaSetId::new(range.set)?;
            self.ranges.push_back(Range {
                first: range.first,
                count: range.count,
                set,
                token: range.token,
                until,
            });
        }
        Ok(())
    }

    /// Chunk ids are granted to one session alone.
    fn keep_only(&mut self, session: SessionId) {
        if self.session != Some(session) {
            self.session = Some(session);
            self.ranges.clear();
        }
    }

    fn take(&mut self, session: SessionId, map: &Map, picky: bool) -> Option<Grant> {
        self.keep_only(session);
        let now = clock::now();
        self.ranges.retain(|range| range.count > 0 && range.until > now);
        self.nodes_avoided();
        let at = self.ranges.iter().position(|range| self.is_usable(map, range.set, picky))?;
        let range = self.ranges.get_mut(at)?;
        let chunk = ChunkId::new(range.first).ok()?;
        range.first += 1;
        range.count -= 1;
        let grant = Grant { session, chunk, set: range.set, token: range.token.clone() };
        // The next chunk goes to the next set, which spreads them.
        if let Some(range) = self.ranges.remove(at) {
            self.ranges.push_back(range);
        }
        Some(grant)
    }

    fn is_usable(&self, map: &Map, set: ReplicaSetId, picky: bool) -> bool {
        let Some(set) = map.sets.get(&set) else { return false };
        let well = |node: &&NodeId| map.liveness(**node) == Liveness::Up && !self.avoid.contains_key(*node);
        if picky {
            return set.members.iter().all(|node| well(&node));
        }
        let full = |node: &NodeId| self.avoid.get(node).is_some_and(|(_, reason)| *reason == Reason::Full);
        let live = |node: &&NodeId| map.liveness(**node) != Liveness::Down && !full(node);
        set.members.iter().filter(live).count() >= set.min_replicas
    }
}

#[cfg(test)]
mod tests;
