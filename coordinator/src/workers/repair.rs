//! Makes copies again: first those known to be missing or bad, the worst protected ones before the
//! others, then all those that new members of sets are to get.
//!
//! The datanode that shall hold a copy fetches it (`CopyChunks`): it knows its disks, and it verifies what
//! it gets against the checksum that the metadata has, so a bad copy is never spread. A source that turns
//! out to be bad becomes a fault itself. A member is active when one whole pass over the chunks of its set
//! has found each of them there, or recorded it as a fault, and the set did not change meanwhile.

mod plan;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_proto::{ChunkId, ErrorKind, NodeId, ReplicaSetId, WireError, v1};
use cairn_runtime::clock::{self, Instant};
use futures::StreamExt;
use futures::future::join_all;

use super::placement::PlacementWorker;
use super::{Next, Progress, Worker};
use crate::datanodes::{COPY_TIME, refusal};
use crate::error::OpError;
use crate::membership::state::NodeState;
use crate::ops;
use crate::service::Shared;
use crate::store::Count;
use plan::{Fills, Job, View};

/// Faults that one job of the executor records or clears.
const ROWS_AT_ONCE: usize = 1024;
/// Chunks, and bytes, that one call to a datanode asks for: some seconds of work.
const BATCH_CHUNKS: usize = 512;
const BATCH_BYTES: u64 = 128 << 20;
/// Answers of a datanode that are recorded together, when so many are there.
const RECORD_MAX: usize = 64;
/// A datanode that could not take copies is left alone for so long.
const REST: Duration = Duration::from_secs(10);
/// How often the queues are looked at without being told to.
const LOOK: Duration = Duration::from_secs(2);
/// Faults go before the filling of members; so often they are looked for meanwhile.
const FAULTS_EVERY: Duration = Duration::from_secs(2);
/// Datanodes whose copy is missing or bad look at it again so often while no other copy can be had.
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(10);

/// Copies chunks.
#[derive(Debug)]
pub(crate) struct RepairWorker {
    /// Bytes per second that each datanode fetches at most; 0: no limit.
    rate: u64,
    queue: VecDeque<Job>,
    fill: Option<Fill>,
    faults_looked: Option<Instant>,
    looked_again: Option<Instant>,
    /// When members may be filled again, after a pass that some of them failed.
    fill_after: Option<Instant>,
    resting: BTreeMap<NodeId, Instant>,
}

/// A pass over the chunks of sets that have new members.
#[derive(Debug)]
struct Fill {
    sets: Fills,
    after: Option<ChunkId>,
    /// All chunks were looked at.
    at_end: bool,
    /// Members that did not get all of them.
    failed: BTreeSet<(ReplicaSetId, NodeId)>,
}

impl RepairWorker {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            queue: VecDeque::new(),
            fill: None,
            faults_looked: None,
            looked_again: None,
            fill_after: None,
            resting: BTreeMap::new(),
        }
    }

    fn resting(&mut self) -> BTreeSet<NodeId> {
        let now = clock::now();
        self.resting.retain(|_, until| *until > now);
        self.resting.keys().copied().collect()
    }

    /// Looks at the queue of faults, unless that was done a moment ago. True: there are copies to make.
    async fn plan_faults(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<bool, OpError> {
        if self.faults_looked.is_some_and(|at| at.elapsed() < FAULTS_EVERY) {
            return Ok(false);
        }
        let waiting = shared.read(true, |reader| Ok(crate::store::count(reader, Count::Faults)?))?;
        if waiting == 0 {
            shared.lost_chunks.store(0, Ordering::Relaxed);
            self.faults_looked = Some(clock::now());
            return Ok(false);
        }
        let (view, resting) = (View::of(&shared.context.cluster.members()), self.resting());
        let look = self.looked_again.is_none_or(|at| at.elapsed() >= LOOK_AGAIN_EVERY);
        let plan = shared.read_many(move |reader| Ok(plan::faults(reader, &view, &resting, look)?)).await?;
        self.faults_looked = Some(clock::now());
        if look {
            self.looked_again = self.faults_looked;
        }
        shared.lost_chunks.store(plan.lost, Ordering::Relaxed);
        if !plan.obsolete.is_empty() {
            for some in plan.obsolete.chunks(ROWS_AT_ONCE).map(<[_]>::to_vec) {
                shared.executor.run(move |tx| clear_all(tx, &some)).await?;
            }
        }
        if plan.jobs.is_empty() {
            return Ok(false);
        }
        progress.begin(plan.jobs.len() as u64);
        // A pass of filling that was under way finds its jobs again.
        self.fill = None;
        self.queue = plan.jobs.into();
        Ok(true)
    }

    /// Takes the next page of what new members are to get. True: there is more to do.
    async fn plan_fill(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<bool, OpError> {
        let view = View::of(&shared.context.cluster.members());
        if self.fill.is_none() {
            if self.fill_after.is_some_and(|at| at > clock::now()) {
                return Ok(false);
            }
            let sets = plan::fills(&view, &self.resting());
            if sets.is_empty() {
                return Ok(false);
            }
            progress.begin(shared.read(true, |reader| Ok(crate::store::count(reader, Count::Chunks)?))?);
            self.fill = Some(Fill { sets, after: None, at_end: false, failed: BTreeSet::new() });
        }
        let Some(fill) = &mut self.fill else { return Ok(false) };
        if fill.at_end {
            return self.end_fill(shared, progress).await.map(|()| true);
        }
        let (sets, after) = (fill.sets.clone(), fill.after);
        let page = shared.read_many(move |reader| Ok(plan::fill_page(reader, &view, &sets, after)?)).await?;
        if !page.missing.is_empty() {
            for some in page.missing.chunks(ROWS_AT_ONCE).map(<[_]>::to_vec) {
                shared.executor.run(move |tx| record_all(tx, &some)).await?;
            }
        }
        fill.failed.extend(page.blocked);
        fill.at_end = page.last.is_none();
        fill.after = page.last.or(fill.after);
        progress.add(page.visited.saturating_sub(page.jobs.len() as u64), 0);
        self.queue = page.jobs.into();
        Ok(true)
    }

    /// Members that got everything are active, when their set is still what it was.
    async fn end_fill(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<(), OpError> {
        let Some(fill) = self.fill.take() else { return Ok(()) };
        // What is missing is away: it is not there a moment later either.
        self.fill_after = (!fill.failed.is_empty()).then(|| clock::now() + REST);
        let view = View::of(&shared.context.cluster.members());
        for (set, (epoch, nodes)) in fill.sets {
            let mut unchanged = view.epoch(set) == Some(epoch);
            for node in nodes {
                if unchanged && !fill.failed.contains(&(set, node)) {
                    // The first one raises the epoch; another member of the set has its turn next time.
                    unchanged = false;
                    shared.executor.run(move |tx| ops::members::activate(tx, set, node)).await?;
                }
            }
        }
        progress.finish();
        shared.workers.wake(PlacementWorker::NAME);
        Ok(())
    }

    /// The next jobs of each datanode, within the bounds of a batch.
    fn take_batches(&mut self) -> BTreeMap<NodeId, Vec<Job>> {
        let mut batches: BTreeMap<NodeId, Vec<Job>> = BTreeMap::new();
        let mut left = VecDeque::new();
        for job in self.queue.drain(..) {
            let batch = batches.entry(job.to).or_default();
            let bytes: u64 = batch.iter().map(|job| job.length).sum();
            if batch.len() < BATCH_CHUNKS && (batch.is_empty() || bytes + job.length <= BATCH_BYTES) {
                batch.push(job);
            } else {
                left.push_back(job);
            }
        }
        self.queue = left;
        batches
    }

    async fn copy(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<(), OpError> {
        let rate = self.rate;
        let batches = self.take_batches();
        let calls = batches.into_iter().map(|(node, jobs)| copy_batch(shared, node, jobs, rate, progress));
        let mut first_error = None;
        for batch in join_all(calls).await {
            if let Some(fill) = &mut self.fill {
                fill.failed.extend(batch.failed);
            }
            if let Some(error) = batch.error {
                self.resting.insert(batch.node, clock::now() + REST);
                self.queue.retain(|job| job.to != batch.node);
                if let Some(fill) = &mut self.fill {
                    let unfilled = fill.sets.iter().filter(|(_, (_, nodes))| nodes.contains(&batch.node));
                    fill.failed.extend(unfilled.map(|(&set, _)| (set, batch.node)).collect::<Vec<_>>());
                }
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

impl Worker for RepairWorker {
    const NAME: &'static str = "repair";

    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        if self.queue.is_empty() || self.fill.is_some() {
            self.plan_faults(shared, progress).await?;
        }
        if self.queue.is_empty() && !self.plan_fill(shared, progress).await? {
            progress.finish();
            let waits = !self.resting().is_empty();
            return Ok(if waits { Next::Throttled(LOOK) } else { Next::Idle(LOOK) });
        }
        self.copy(shared, progress).await?;
        Ok(Next::Busy)
    }
}

fn clear_all(tx: &mut crate::executor::Tx, faults: &[(ChunkId, NodeId)]) -> Result<(), OpError> {
    faults.iter().try_for_each(|&(chunk, node)| ops::faults::clear(tx, chunk, node))
}

fn record_all(tx: &mut crate::executor::Tx, faults: &[(ChunkId, NodeId)]) -> Result<(), OpError> {
    faults.iter().try_for_each(|&(chunk, node)| ops::faults::record(tx, chunk, node).map(drop))
}

/// What came of one call.
struct Batch {
    node: NodeId,
    /// Members that lack a chunk which they should have got by it.
    failed: BTreeSet<(ReplicaSetId, NodeId)>,
    /// The datanode itself could not go on.
    error: Option<OpError>,
}

async fn copy_batch(
    shared: &Arc<Shared>,
    node: NodeId,
    jobs: Vec<Job>,
    rate: u64,
    progress: &Progress,
) -> Batch {
    let mut open: BTreeMap<ChunkId, Job> = jobs.into_iter().map(|job| (job.chunk, job)).collect();
    let mut failed = BTreeSet::new();
    let result = run_batch(shared, node, &mut open, &mut failed, rate, progress).await;
    failed.extend(open.values().map(|job| (job.set, node)));
    Batch { node, failed, error: result.err() }
}

async fn run_batch(
    shared: &Arc<Shared>,
    node: NodeId,
    open: &mut BTreeMap<ChunkId, Job>,
    failed: &mut BTreeSet<(ReplicaSetId, NodeId)>,
    rate: u64,
    progress: &Progress,
) -> Result<(), OpError> {
    let request = v1::CopyChunksRequest {
        chunks: open.values().map(|job| to_wire(shared, job)).collect(),
        bytes_per_second: rate,
    };
    let answers = shared.datanodes.copy(&shared.context.cluster, node, request).await?;
    // What is there when the one before is recorded goes into one commit: copies do not wait for commits.
    let mut answers = answers.ready_chunks(RECORD_MAX);
    let silent = || OpError::new(ErrorKind::TimedOut, format!("datanode {} makes no progress", node.short()));
    while !open.is_empty() {
        let answers = clock::timeout(COPY_TIME, answers.next()).await.map_err(|_| silent())?;
        let Some(answers) = answers else { break };
        record(shared, node, answers, open, failed, progress).await?;
    }
    Ok(())
}

/// Records what became of some copies. An error: the datanode could not go on.
async fn record(
    shared: &Arc<Shared>,
    node: NodeId,
    answers: Vec<Result<v1::CopyChunksResponse, tonic::Status>>,
    open: &mut BTreeMap<ChunkId, Job>,
    failed: &mut BTreeSet<(ReplicaSetId, NodeId)>,
    progress: &Progress,
) -> Result<(), OpError> {
    let (mut copied, mut bad, mut end) = (Vec::new(), Vec::new(), Ok(()));
    let (mut answered, mut bytes) = (0, 0);
    for answer in answers {
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => {
                end = end.and(Err(refusal(node, &status)));
                break;
            }
        };
        let job = ChunkId::new(answer.chunk).ok().and_then(|chunk| open.remove(&chunk));
        let Some(job) = job else { continue };
        let chunk = job.chunk;
        bad.extend(answer.failed.iter().filter_map(|source| bad_source(chunk, source)));
        (answered, bytes) = (answered + 1, bytes + answer.bytes);
        let error = WireError::from_fields(answer.error, &answer.message);
        if error.is_none() || !job.is_look() {
            crate::metrics::repaired(error.is_none(), answer.bytes);
        }
        let Some(error) = error else {
            if job.is_look() {
                tracing::info!(%chunk, node = %node, "a copy of a chunk that was lost is there again");
            }
            copied.push(chunk);
            continue;
        };
        failed.insert((job.set, node));
        if job.is_look() {
            tracing::debug!(%chunk, node = %node, %error, "a lost chunk stays lost");
        } else {
            tracing::warn!(%chunk, node = %node, %error, "a copy could not be made");
        }
        if concerns_destination(error.kind) {
            let text = format!("datanode {}: {}", node.short(), error.message);
            end = end.and(Err(OpError::new(error.kind, text)));
        }
    }
    let recorded = move |tx: &mut crate::executor::Tx| {
        record_all(tx, &bad)?;
        copied.iter().try_for_each(|&chunk| ops::faults::clear(tx, chunk, node))
    };
    shared.executor.run(recorded).await?;
    progress.add(answered, bytes);
    end
}

/// Whether an error is about the datanode that was to take the copy, so that its other copies fare alike.
fn concerns_destination(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NoSpace | ErrorKind::Io | ErrorKind::Overloaded)
}

fn bad_source(chunk: ChunkId, source: &v1::FailedMember) -> Option<(ChunkId, NodeId)> {
    let error = WireError::from_fields(source.error, &source.message)?;
    let bad =
        matches!(error.kind, ErrorKind::Corrupt | ErrorKind::ChunkNotFound | ErrorKind::ChecksumMismatch);
    bad.then(|| NodeId::from_wire(&source.node).ok()).flatten().map(|node| (chunk, node))
}

fn to_wire(shared: &Shared, job: &Job) -> v1::CopyChunk {
    let members = shared.context.cluster.members();
    let source = |node: &NodeId| {
        let entry = members.nodes.get(node).filter(|entry| entry.state == NodeState::Up)?;
        Some(v1::CopySource { node: node.to_wire(), address: entry.row.address.clone() })
    };
    v1::CopyChunk {
        chunk: job.chunk.get(),
        set: job.set.get(),
        length: job.length,
        crc32c: job.crc32c,
        sources: job.sources.iter().filter_map(source).collect(),
    }
}
