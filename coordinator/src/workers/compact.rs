//! Makes small chunks of mostly dead ones, so that their room comes back.
//!
//! One pass: chunks that are worth it, a run over the extents to find what uses them, then one new chunk after the
//! other: planned, made by a member that holds all parts, committed. A run over all extents is dear, so it is made for
//! many chunks at once, and seldom. Both looks go by pages, one in each step, since a listing may wait for the same
//! thread; what changes between two pages the commit of the new chunk finds out.

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
use crate::store::{Chunk, Extent, Key, MemberState, Reader, Scan, Table};

/// Chunks of one pass; their extents are in memory, about 100 bytes each.
const CHUNKS_MAX: usize = 4096;
/// Extents of one pass. With more, the pass is made with half as many chunks.
const EXTENTS_MAX: usize = 262_144;
/// Rows read at once: some milliseconds.
const PAGE: usize = 4096;
/// So many times as long as it has read, the worker rests: others need the thread.
const REST: u32 = 3;
/// Between two passes: what is overwritten again and again shall be copied seldom.
const PAUSE: Duration = Duration::from_secs(60);

/// The worker.
#[derive(Debug)]
pub(crate) struct Compact {
    look: Look,
    chunks_max: usize,
    queue: VecDeque<(ReplicaSetId, Packed)>,
}

/// Where the search has come to.
#[derive(Debug)]
enum Look {
    /// For chunks that are worth it, behind `after`.
    Chunks { after: Option<ChunkId>, found: BTreeMap<ChunkId, ReplicaSetId> },
    /// For the extents in them, behind `after`. The next search for chunks begins behind `then`.
    Extents {
        chunks: BTreeMap<ChunkId, ReplicaSetId>,
        after: Option<Key>,
        used: Vec<Extent>,
        then: Option<ChunkId>,
    },
}

impl Look {
    fn behind(after: Option<ChunkId>) -> Self {
        Self::Chunks { after, found: BTreeMap::new() }
    }
}

impl Compact {
    pub(crate) fn new() -> Self {
        Self { look: Look::behind(None), chunks_max: CHUNKS_MAX, queue: VecDeque::new() }
    }

    /// Looks at one page. False: nothing in the whole store is worth it.
    async fn look_on(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<bool, OpError> {
        match std::mem::replace(&mut self.look, Look::behind(None)) {
            Look::Chunks { after, found } => self.look_for_chunks(shared, after, found).await,
            Look::Extents { chunks, after, used, then } => {
                let ids: BTreeSet<ChunkId> = chunks.keys().copied().collect();
                let (more, next) =
                    shared.read_many(move |reader| Ok(compact::users(reader, &ids, after, PAGE)?)).await?;
                let used = [used, more].concat();
                if used.len() > EXTENTS_MAX {
                    // Few chunks with very many extents: fewer at once.
                    self.chunks_max = (self.chunks_max / 2).max(1);
                    self.look = Look::behind(then);
                    return Ok(then.is_some());
                }
                match next {
                    Some(_) => self.look = Look::Extents { chunks, after: next, used, then },
                    None => {
                        self.chunks_max = CHUNKS_MAX;
                        self.look = Look::behind(then);
                        self.pack(shared, &chunks, used);
                        progress.begin(self.queue.len() as u64);
                    }
                }
                Ok(true)
            }
        }
    }

    async fn look_for_chunks(
        &mut self,
        shared: &Arc<Shared>,
        after: Option<ChunkId>,
        mut found: BTreeMap<ChunkId, ReplicaSetId>,
    ) -> Result<bool, OpError> {
        let whole = whole_sets(shared);
        let now_ns = clock::wall_ns();
        let (more, end) = shared.read_many(move |reader| candidates(reader, after, &whole, now_ns)).await?;
        found.extend(more);
        self.look = match end {
            Some(_) if found.len() < self.chunks_max => Look::Chunks { after: end, found },
            None if found.is_empty() => return Ok(false),
            _ => Look::Extents { chunks: found, after: None, used: Vec::new(), then: end },
        };
        Ok(true)
    }

    fn pack(&mut self, shared: &Shared, chunks: &BTreeMap<ChunkId, ReplicaSetId>, used: Vec<Extent>) {
        let mut by_set: BTreeMap<ReplicaSetId, Vec<_>> = BTreeMap::new();
        for extent in used {
            if let Some(set) = chunks.get(&extent.chunk) {
                by_set.entry(*set).or_default().push(extent);
            }
        }
        for (set, used) in by_set {
            let packed = compact::pack(used, shared.context.policy.chunk_size);
            self.queue.extend(packed.into_iter().map(|packed| (set, packed)));
        }
    }
}

impl Worker for Compact {
    const NAME: &'static str = "compact";

    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        if stopped(shared).await?.is_some() {
            *self = Self::new();
            return Ok(Next::Idle(PAUSE));
        }
        let began = clock::now();
        let Some((set, packed)) = self.queue.pop_front() else {
            if !self.look_on(shared, progress).await? {
                progress.finish();
                return Ok(Next::Idle(PAUSE));
            }
            return Ok(Next::Throttled(began.elapsed() * REST));
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

/// Of a page of chunks behind `after`, those that are worth it; and where to go on, `None` at the end.
fn candidates(
    reader: &dyn Reader,
    after: Option<ChunkId>,
    whole: &BTreeSet<ReplicaSetId>,
    now_ns: i64,
) -> Result<(BTreeMap<ChunkId, ReplicaSetId>, Option<ChunkId>), OpError> {
    let page: Vec<Chunk> =
        crate::store::list(reader, &Scan::behind(Table::Chunk, after.map(Key::Chunk)).limit(PAGE))?;
    let end = page.last().map(|chunk| chunk.id);
    let worth = page
        .iter()
        .filter(|chunk| whole.contains(&chunk.replica_set) && compact::is_mostly_dead(chunk, now_ns));
    Ok((worth.map(|chunk| (chunk.id, chunk.replica_set)).collect(), end))
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
        synced: true,
    };
    shared.executor.run(move |tx| compact::commit(tx, &stored, &packed)).await
}

/// The member that makes the chunk, and forwards it to the others.
fn first_up(shared: &Shared, set: ReplicaSetId) -> Option<NodeId> {
    let members = shared.context.cluster.members();
    let is_up = |node: &NodeId| members.nodes.get(node).is_some_and(|entry| entry.state == NodeState::Up);
    members.sets.get(&set)?.members.nodes().find(is_up)
}
