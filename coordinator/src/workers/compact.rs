//! Makes small chunks of mostly dead ones, so that their room comes back.
//!
//! One pass: chunks that are worth it (a page of rows after the other), one run over the extents to find what
//! uses them, then one new chunk after the other: planned, made by a member that holds all parts, committed.
//! A run over all extents is dear, so it is made for many chunks at once, and seldom.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ChunkId, NodeId, ReplicaSetId, v1};
use cairn_runtime::clock;

use super::gc::stopped;
use super::{Next, Progress, Worker};
use crate::error::OpError;
use crate::membership::state::NodeState;
use crate::ops::commit::StoredChunk;
use crate::ops::compact::{self, Packed};
use crate::service::Shared;
use crate::store::{Chunk, Key, MemberState, Reader, Scan, Table};

/// Chunks of one pass; their extents are in memory, about 100 bytes each.
const CHUNKS_MAX: usize = 4096;
/// Extents of one pass. With more, the pass is made with half as many chunks.
const EXTENTS_MAX: usize = 262_144;
/// Rows read at once.
const PAGE: usize = 4096;
/// Between two passes: what is overwritten again and again shall be copied seldom.
const PAUSE: Duration = Duration::from_secs(60);

/// The worker.
#[derive(Debug)]
pub(crate) struct Compact {
    /// Where the look at the chunks has come to.
    after: Option<ChunkId>,
    chunks_max: usize,
    queue: VecDeque<(ReplicaSetId, Packed)>,
}

impl Compact {
    pub(crate) fn new() -> Self {
        Self { after: None, chunks_max: CHUNKS_MAX, queue: VecDeque::new() }
    }

    /// Finds what the next pass packs. False: nothing is worth it.
    async fn find(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<bool, OpError> {
        let (after, limit, size) = (self.after, self.chunks_max, shared.context.policy.chunk_size);
        let whole = whole_sets(shared);
        let now_ns = clock::wall_ns();
        let (found, end) =
            shared.read_many(move |reader| candidates(reader, after, &whole, now_ns, limit)).await?;
        self.after = end;
        if found.is_empty() {
            return Ok(false);
        }
        let ids: BTreeSet<ChunkId> = found.keys().copied().collect();
        let used = shared.read_many(move |reader| Ok(compact::users(reader, &ids, EXTENTS_MAX)?)).await?;
        let Some(used) = used else {
            // Few chunks with very many extents: fewer at once.
            self.chunks_max = (self.chunks_max / 2).max(1);
            return Ok(false);
        };
        self.chunks_max = CHUNKS_MAX;
        let mut by_set: BTreeMap<ReplicaSetId, Vec<_>> = BTreeMap::new();
        for extent in used {
            if let Some(set) = found.get(&extent.chunk) {
                by_set.entry(*set).or_default().push(extent);
            }
        }
        for (set, used) in by_set {
            self.queue.extend(compact::pack(used, size).into_iter().map(|packed| (set, packed)));
        }
        progress.begin(self.queue.len() as u64);
        Ok(!self.queue.is_empty())
    }
}

impl Worker for Compact {
    const NAME: &'static str = "compact";

    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        if stopped(shared).await?.is_some() {
            self.queue.clear();
            return Ok(Next::Idle(PAUSE));
        }
        let began = clock::now();
        let Some((set, packed)) = self.queue.pop_front() else {
            if !self.find(shared, progress).await? && self.after.is_none() {
                progress.finish();
                return Ok(Next::Idle(PAUSE));
            }
            return Ok(Next::Throttled(began.elapsed()));
        };
        // What fails is found again by a later pass.
        let bytes = repack(shared, set, packed).await?;
        progress.add(1, bytes);
        Ok(Next::Throttled(began.elapsed()))
    }
}

/// Sets of which every member is there and holds everything.
fn whole_sets(shared: &Shared) -> BTreeSet<ReplicaSetId> {
    let members = shared.context.cluster.members();
    let whole = members.sets.values().filter(|set| {
        set.members.0.iter().all(|member| member.state == MemberState::Active && members.is_up(member.node))
    });
    whole.map(|set| set.id).collect()
}

type Found = (BTreeMap<ChunkId, ReplicaSetId>, Option<ChunkId>);

/// Chunks behind `after` that are worth it; and where to go on, `None` at the end.
fn candidates(
    reader: &dyn Reader,
    after: Option<ChunkId>,
    whole: &BTreeSet<ReplicaSetId>,
    now_ns: i64,
    limit: usize,
) -> Result<Found, OpError> {
    let mut found = BTreeMap::new();
    let mut after = after;
    while found.len() < limit {
        let page: Vec<Chunk> =
            crate::store::list(reader, &Scan::behind(Table::Chunk, after.map(Key::Chunk)).limit(PAGE))?;
        let Some(last) = page.last() else { return Ok((found, None)) };
        after = Some(last.id);
        let worth = page
            .iter()
            .filter(|chunk| whole.contains(&chunk.replica_set) && compact::is_mostly_dead(chunk, now_ns));
        found.extend(worth.map(|chunk| (chunk.id, chunk.replica_set)));
    }
    Ok((found, after))
}

/// Makes one new chunk and turns the extents to it. Returns how many bytes.
async fn repack(shared: &Arc<Shared>, set: ReplicaSetId, packed: Packed) -> Result<u64, OpError> {
    let Some(maker) = first_up(shared, set) else { return Ok(0) };
    let plan = shared.executor.run(move |tx| compact::plan(tx, set)).await?;
    let part = |part: &compact::Part| v1::ChunkPart {
        chunk: part.chunk.get(),
        offset: part.range.start(),
        length: part.range.len(),
    };
    let header = v1::StoreHeader {
        set: set.get(),
        epoch: plan.epoch,
        length: packed.length,
        sync: true,
        ..v1::StoreHeader::default()
    };
    let request = v1::RepackChunksRequest {
        chunk: plan.first.get(),
        header: Some(header),
        parts: packed.parts.iter().map(part).collect(),
    };
    let made = shared.datanodes.repack(&shared.context.cluster, maker, request).await?;
    let stored_by = made.stored_by.iter().map(|node| NodeId::from_wire(node)).collect::<Result<_, _>>()?;
    let stored = StoredChunk {
        id: plan.first,
        set,
        epoch: plan.epoch,
        length: packed.length,
        crc32c: made.crc32c,
        stored_by,
    };
    shared.executor.run(move |tx| compact::commit(tx, &stored, &packed)).await
}

/// The member that makes the chunk, and forwards it to the others.
fn first_up(shared: &Shared, set: ReplicaSetId) -> Option<NodeId> {
    let members = shared.context.cluster.members();
    let is_up = |node: &NodeId| members.nodes.get(node).is_some_and(|entry| entry.state == NodeState::Up);
    members.sets.get(&set)?.members.nodes().find(is_up)
}
