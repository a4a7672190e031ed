//! Compares what each datanode holds with what the metadata says: at its registration, when a disk of it
//! fails or vanishes, when chunks are committed that it may have lost meanwhile, and every now and then.
//!
//! Digests of ranges of ids first, so that equal inventories cost little; where they differ, lists. Rows
//! are read before the datanode is asked, so that a chunk committed in between is extra (and looked into)
//! and never missing. What is missing becomes a fault, which repair mends; what is extra is remembered as
//! a stray, which gc deletes when it is seen again after the grace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_proto::digest::IdDigest;
use cairn_proto::{ChunkId, NodeId, v1};
use cairn_runtime::clock::{self, Instant};
use uuid::Uuid;

use super::{Next, Progress, Worker};
use crate::error::OpError;
use crate::membership::state::NodeState;
use crate::ops::reconcile::{self, Difference, Duties, Duty, Expected};
use crate::ops::rollback;
use crate::service::Shared;
use crate::store::{Chunk, Count, Garbage, Key, Scan, Table};

/// Ids in one range of a summary: a list of one costs about as much as its place in a summary.
const SPAN: u64 = 1024;
/// Ranges in one summary.
const RANGES: u64 = 4096;
/// Ids of the widest range that a datanode sums up.
const SKIP_MAX: u64 = 1 << 32;
/// Rows that are read at once.
const PAGE: usize = 8192;
/// Missing chunks that one job of the executor records.
const MISSING_STEP: usize = 1024;
/// Ids of garbage that are kept during a pass, 8 bytes each. With more, strays are not looked for.
const GARBAGE_MAX: usize = 4 << 20;
/// How often it is looked whether a datanode has to be compared.
const PAUSE: Duration = Duration::from_millis(500);
/// A datanode that could not be compared is tried again after so long.
const RETRY: Duration = Duration::from_secs(30);
/// For chunks that it may have lost a datanode is compared no sooner than this after the last time, and no
/// sooner than so many times what that took: after a restart of it many commits raise that doubt.
const DOUBT_TIME: Duration = Duration::from_secs(10);
const DOUBT_SHARE: u32 = 20;

/// When a datanode was compared last, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Compared {
    /// `None`: it has not been up all the time since.
    identity: Option<Identity>,
    doubts: u64,
    began: Instant,
    /// How long the comparison took, or the one before while it is under way.
    took: Duration,
    next: Instant,
}

/// Changes when the datanode has started anew, or its disks are no longer what they were.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    incarnation: Option<Uuid>,
    disks: Vec<Standing>,
}

/// How a disk stands. A faulty one may turn out to be lost later, and then has no capacity any more.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    path: String,
    sound: bool,
    counts: bool,
}

impl Standing {
    fn of(disk: &v1::DiskHealth) -> Self {
        Self { path: disk.path.clone(), sound: disk.fault.is_empty(), counts: disk.capacity > 0 }
    }
}

/// The worker.
#[derive(Debug)]
pub(crate) struct Reconcile {
    every: Duration,
    compared: BTreeMap<NodeId, Compared>,
    pass: Option<Pass>,
}

/// One comparison under way.
#[derive(Debug)]
struct Pass {
    node: NodeId,
    next: u64,
    /// Ids are granted up to here when it begins.
    end: u64,
    /// Sorted; `None`: too many.
    garbage: Option<Vec<u64>>,
    missing: u64,
    extra: u64,
}

impl Worker for Reconcile {
    const NAME: &'static str = "reconcile";

    /// One summary of one datanode, with the lists that follow from it.
    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        let began = clock::now();
        let Some(mut pass) = self.pass.take() else { return self.choose(shared, progress).await };
        let from = pass.next;
        let compared = pass.step(shared).await;
        progress.add(pass.next.saturating_sub(from), 0);
        match compared {
            Ok(false) => self.pass = Some(pass),
            Ok(true) => {
                progress.finish();
                let Pass { node, missing, extra, .. } = pass;
                if let Some(compared) = self.compared.get_mut(&node) {
                    compared.took = compared.began.elapsed();
                }
                if missing > 0 || extra > 0 {
                    tracing::info!(node = %node, missing, extra, "inventory compared");
                }
                self.note_all_compared(shared);
            }
            Err(error) => {
                // Nothing was concluded from what could not be had.
                if let Some(compared) = self.compared.get_mut(&pass.node) {
                    compared.next = clock::now() + RETRY.min(self.every);
                }
                return Err(error);
            }
        }
        Ok(Next::Throttled(began.elapsed()))
    }
}

impl Reconcile {
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, compared: BTreeMap::new(), pass: None }
    }

    /// The next datanode that has to be compared: the one that was longest not, so that none waits for
    /// others that come and go.
    async fn choose(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        let now = clock::now();
        let up = up(shared);
        for (_, compared) in self.compared.iter_mut().filter(|(node, _)| !up.contains_key(*node)) {
            compared.identity = None;
        }
        let due = up.iter().filter(|(node, (identity, doubts))| {
            let is_due = |compared: &Compared| {
                let wait = DOUBT_TIME.max(compared.took * DOUBT_SHARE);
                let doubted = compared.doubts != *doubts && now >= compared.began + wait;
                compared.identity.as_ref() != Some(identity) || compared.next <= now || doubted
            };
            self.compared.get(*node).is_none_or(is_due)
        });
        let longest = due.min_by_key(|(node, _)| self.compared.get(*node).map(|compared| compared.began));
        let Some((&node, (identity, doubts))) = longest else { return Ok(Next::Idle(PAUSE)) };
        let (identity, doubts) = (Some(identity.clone()), *doubts);
        let took = self.compared.get(&node).map_or(Duration::ZERO, |compared| compared.took);
        let next = now + self.every;
        self.compared.insert(node, Compared { identity, doubts, began: now, took, next });
        // The end first: what is granted meanwhile belongs to the next pass, and is no garbage in this one.
        let (end, garbage) = shared
            .read_many(|reader| {
                let [end, garbage] =
                    [Count::NextChunk, Count::Garbage].map(|name| crate::store::count(reader, name));
                Ok((end?, garbage?))
            })
            .await?;
        let garbage = if garbage > GARBAGE_MAX as u64 { None } else { Some(garbage_ids(shared).await?) };
        progress.begin(end);
        self.pass = Some(Pass { node, next: 1, end, garbage, missing: 0, extra: 0 });
        Ok(Next::Busy)
    }

    fn note_all_compared(&self, shared: &Shared) {
        let up = up(shared);
        let all = up.iter().all(|(node, (identity, _))| {
            self.compared.get(node).is_some_and(|compared| compared.identity.as_ref() == Some(identity))
        });
        if all {
            shared.gc.reconciled_ns.store(clock::wall_ns(), Ordering::Relaxed);
        }
    }
}

/// The datanodes that are up, each with the count of doubts about what it holds.
fn up(shared: &Shared) -> BTreeMap<NodeId, (Identity, u64)> {
    let members = shared.context.cluster.members();
    let up = members.nodes.iter().filter(|(_, entry)| entry.state == NodeState::Up);
    let identity = |entry: &crate::membership::state::NodeEntry| Identity {
        incarnation: entry.incarnation(),
        disks: entry.report.disks.iter().map(Standing::of).collect(),
    };
    up.map(|(node, entry)| (*node, (identity(entry), entry.doubts()))).collect()
}

/// All garbage, sorted by id; page by page, since others need the thread.
async fn garbage_ids(shared: &Shared) -> Result<Vec<u64>, OpError> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let page: Vec<Garbage> = shared
            .read_many(move |reader| {
                Ok(crate::store::list(reader, &Scan::behind(Table::Garbage, after).limit(PAGE))?)
            })
            .await?;
        let Some(last) = page.last() else { break };
        after = Some(Key::Garbage(last.not_before_ns, last.chunk));
        ids.extend(page.iter().map(|row| row.chunk.get()));
        if ids.len() > GARBAGE_MAX {
            break;
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

impl Pass {
    /// Compares the next ids; true at the end.
    async fn step(&mut self, shared: &Arc<Shared>) -> Result<bool, OpError> {
        if self.next >= self.end {
            self.look_beyond(shared).await?;
            return Ok(true);
        }
        if self.skip_nothing(shared).await? {
            return Ok(false);
        }
        let first = self.next;
        let ranges = (self.end - first).div_ceil(SPAN).min(RANGES);
        let wanted = expected_digests(shared, self.node, first, ranges).await?;
        let request = v1::SummarizeChunksRequest { first, span: SPAN, ranges: ranges as u32 };
        let found = shared.datanodes.summarize(&shared.context.cluster, self.node, request).await?;
        let differs = |(index, (wanted, found)): (u64, (&IdDigest, &v1::ChunkSummary))| {
            (wanted.count != found.count || wanted.digest != found.digest).then_some(first + index * SPAN)
        };
        let differing: Vec<u64> = (0..).zip(wanted.iter().zip(&found)).filter_map(differs).collect();
        for range in differing {
            self.compare_range(shared, range).await?;
        }
        self.next = first + ranges * SPAN;
        Ok(false)
    }

    /// Goes over a long run of ids that no row names, when the datanode holds none of them either: after a
    /// restore there are such runs.
    async fn skip_nothing(&mut self, shared: &Arc<Shared>) -> Result<bool, OpError> {
        let first = ChunkId::new(self.next)?;
        let row = shared
            .read_many(move |reader| {
                let last = ChunkId::new(i64::MAX as u64)?;
                let scan = Scan::between(Key::Chunk(first), Key::Chunk(last)).limit(1);
                Ok(crate::store::list::<Chunk>(reader, &scan)?.pop())
            })
            .await?;
        let end = row.map_or(self.end, |row| row.id.get().min(self.end));
        let span = (end - self.next.min(end)).min(SKIP_MAX);
        if span <= SPAN * RANGES {
            return Ok(false);
        }
        let request = v1::SummarizeChunksRequest { first: self.next, span, ranges: 1 };
        let found = shared.datanodes.summarize(&shared.context.cluster, self.node, request).await?;
        let nothing = found.iter().all(|range| range.count == 0);
        if nothing {
            self.next += span;
        }
        Ok(nothing)
    }

    async fn compare_range(&mut self, shared: &Arc<Shared>, first: u64) -> Result<(), OpError> {
        let node = self.node;
        let range = (ChunkId::new(first)?, ChunkId::new(first + SPAN - 1)?);
        let rows = expected(shared, node, range, SPAN as usize).await?;
        let held = shared.datanodes.list(&shared.context.cluster, node, range).await?;
        let Difference { missing, bad, trashed, extra } = reconcile::compare(&rows, &held);
        let missing = self.bring_back(shared, trashed, missing).await?;
        for page in missing.iter().chain(&bad).copied().collect::<Vec<_>>().chunks(MISSING_STEP) {
            let page = page.to_vec();
            self.missing += shared.executor.run(move |tx| reconcile::record_missing(tx, node, &page)).await?;
        }
        if let Some(garbage) = &self.garbage {
            let unknown =
                |chunk: &ChunkId| garbage.binary_search(&chunk.get()).is_err() && chunk.get() < self.end;
            let extra: Vec<ChunkId> = extra.into_iter().filter(unknown).collect();
            self.extra += extra.len() as u64;
            shared.gc.strays.listed(node, range, &extra, clock::wall_ns());
        }
        Ok(())
    }

    /// What is needed and lies in the trash comes back; what does not is missing.
    async fn bring_back(
        &self,
        shared: &Arc<Shared>,
        trashed: Vec<ChunkId>,
        mut missing: Vec<ChunkId>,
    ) -> Result<Vec<ChunkId>, OpError> {
        if trashed.is_empty() {
            return Ok(missing);
        }
        tracing::warn!(node = %self.node, chunks = trashed.len(), "chunks in use are brought back from the trash");
        let ids = trashed.iter().map(|chunk| chunk.get()).collect();
        let failed = shared.datanodes.restore(&shared.context.cluster, self.node, ids).await?;
        let failed: BTreeSet<u64> = failed.iter().map(|failure| failure.chunk).collect();
        missing.extend(trashed.into_iter().filter(|chunk| failed.contains(&chunk.get())));
        Ok(missing)
    }

    /// Chunks that were never granted: then metadata has gone backwards.
    async fn look_beyond(&self, shared: &Arc<Shared>) -> Result<(), OpError> {
        let node = self.node;
        let first = ChunkId::new(self.end)?;
        let last = ChunkId::new(self.end.saturating_add(SPAN * RANGES).min(i64::MAX as u64))?;
        let request = v1::SummarizeChunksRequest { first: first.get(), span: SPAN * RANGES, ranges: 1 };
        let found = shared.datanodes.summarize(&shared.context.cluster, node, request).await?;
        if found.iter().all(|range| range.count == 0) {
            return Ok(());
        }
        let held = shared.datanodes.list(&shared.context.cluster, node, (first, last)).await?;
        // Granted since the pass began, most likely: the store is asked after the datanode.
        let next = shared.read_many(|reader| Ok(crate::store::count(reader, Count::NextChunk)?)).await?;
        if let Some(beyond) = held.last().filter(|held| held.chunk >= next) {
            let chunk_max = beyond.chunk;
            shared.executor.run(move |tx| rollback::note_id(tx, node, chunk_max)).await?;
        }
        Ok(())
    }
}

async fn expected(
    shared: &Shared,
    node: NodeId,
    range: (ChunkId, ChunkId),
    limit: usize,
) -> Result<Vec<Expected>, OpError> {
    let duties = Duties::of(&shared.context.cluster.members(), node);
    shared.read_many(move |reader| Ok(reconcile::expected(reader, &duties, node, range, limit)?)).await
}

/// Digests of what the datanode must hold, for `ranges` ranges from `first` on.
async fn expected_digests(
    shared: &Shared,
    node: NodeId,
    first: u64,
    ranges: u64,
) -> Result<Vec<IdDigest>, OpError> {
    let mut digests = vec![IdDigest::default(); usize::try_from(ranges).unwrap_or(0)];
    let last = ChunkId::new(first + ranges * SPAN - 1)?;
    let mut next = ChunkId::new(first)?;
    loop {
        let rows = expected(shared, node, (next, last), PAGE).await?;
        for row in rows.iter().filter(|row| row.duty == Duty::Must) {
            let range = usize::try_from((row.chunk.get() - first) / SPAN).unwrap_or(usize::MAX);
            if let Some(digest) = digests.get_mut(range) {
                digest.add(row.chunk.get());
            }
        }
        match rows.last() {
            Some(row) if rows.len() == PAGE && row.chunk < last => next = ChunkId::new(row.chunk.get() + 1)?,
            _ => return Ok(digests),
        }
    }
}
