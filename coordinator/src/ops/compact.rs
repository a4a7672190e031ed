//! Mostly dead chunks become small ones: what files still use of some chunks is copied into a new one by a
//! datanode, and the extents are turned to it. The old chunks become garbage by themselves, with the last
//! extent that leaves them.
//!
//! Found outside of the executor and beside everything else, what is in use may change until the commit. The
//! commit therefore looks at the extents as they are then: those that still lie in what was copied are
//! turned, others stay as they are, and so does the chunk that they use. A file's version stays, since its
//! content does: a client that reads by the old layout gets the same bytes, or `ChunkNotFound` and the
//! new layout.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_proto::{ByteRange, ChunkId, ErrorKind, ReplicaSetId};

use super::chunks::{self, LiveChanges};
use super::commit::{StoredChunk, add_chunk, check_chunk};
use super::extents;
use crate::error::OpError;
use crate::executor::Tx;
use crate::sessions::NOBODY;
use crate::store::{
    Chunk, Count, Extent, Inode, Key, MemberState, Plan, Reader, ReplicaSet, Scan, StoreError,
};

/// Chunks shorter than this are left alone: a datanode gives back whole pages.
const LENGTH_MIN: u64 = 64 << 10;
/// A chunk with less than one part in so many in use is mostly dead.
const LIVE_PART: u64 = 4;
/// Chunks younger than this are still being written over.
const AGE_MIN_NS: i64 = 60_000_000_000;

/// Whether a chunk is worth it.
pub(crate) fn is_mostly_dead(chunk: &Chunk, now_ns: i64) -> bool {
    chunk.length >= LENGTH_MIN
        && chunk.live.saturating_mul(LIVE_PART) < chunk.length
        && chunk.faults == 0
        && now_ns.saturating_sub(chunk.created_ns) >= AGE_MIN_NS
}

/// A run of an old chunk, and where it lies in the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) chunk: ChunkId,
    pub(crate) range: ByteRange,
    pub(crate) to: u64,
}

/// One new chunk out of parts of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) parts: Vec<Part>,
    pub(crate) length: u64,
    /// Extents that lay in the parts when they were looked for.
    pub(crate) extents: Vec<Extent>,
}

/// Parts of one new chunk: what one commit turns in a moment.
const PARTS_MAX: usize = 2048;

/// Extents that are looked at in the place of one; when it was written over with more, the rest stays as it is.
const PLACE_MAX: usize = 16;

/// Packs what `extents` use of their chunks into new chunks of at most `size` bytes. A run that several
/// extents use is copied once.
pub(crate) fn pack(mut used: Vec<Extent>, size: u64) -> Vec<Packed> {
    used.sort_unstable_by_key(|extent| (extent.chunk, extent.chunk_offset));
    let mut all: Vec<Packed> = Vec::new();
    let mut open = Packed::default();
    let mut rest = used.into_iter().peekable();
    while let Some(first) = rest.next() {
        let (chunk, start) = (first.chunk, first.chunk_offset);
        let mut end = start.saturating_add(first.length);
        let mut extents = vec![first];
        while let Some(next) = rest.next_if(|next| next.chunk == chunk && next.chunk_offset <= end) {
            end = end.max(next.chunk_offset.saturating_add(next.length));
            extents.push(next);
        }
        let Some(range) = ByteRange::between(start, end).filter(|range| range.len() <= size) else {
            continue;
        };
        let full = open.length + range.len() > size || open.extents.len() + extents.len() > PARTS_MAX;
        if full && !open.parts.is_empty() {
            all.push(std::mem::take(&mut open));
        }
        open.parts.push(Part { chunk, range, to: open.length });
        open.length += range.len();
        open.extents.extend(extents);
    }
    if !open.parts.is_empty() {
        all.push(open);
    }
    all
}

/// Of a page of extents behind `after`, those that lie in these chunks; and where to go on, `None` at the end.
pub(crate) fn users(
    reader: &dyn Reader,
    chunks: &BTreeSet<ChunkId>,
    after: Option<Key>,
    page: usize,
) -> Result<(Vec<Extent>, Option<Key>), StoreError> {
    let rows: Vec<Extent> =
        crate::store::list(reader, &Scan::behind(crate::store::Table::Extent, after).limit(page))?;
    let next = rows.last().map(|last| Key::Extent(last.inode, last.offset));
    Ok((rows.into_iter().filter(|extent| chunks.contains(&extent.chunk)).collect(), next))
}

/// Grants the id of a new chunk on a set, to nobody's session. `Unavailable`: the set is not whole.
pub(crate) fn plan(tx: &mut Tx, set: ReplicaSetId) -> Result<Plan, OpError> {
    super::gc::need_running(tx)?;
    let gone = || OpError::new(ErrorKind::Unavailable, format!("replica set {set} is gone"));
    let set: ReplicaSet = tx.find(&Key::ReplicaSet(set))?.ok_or_else(gone)?;
    if set.members.0.iter().any(|member| member.state != MemberState::Active) {
        return Err(OpError::new(ErrorKind::Unavailable, format!("replica set {} changes", set.id)));
    }
    let plan = Plan {
        first: ChunkId::new(tx.take_ids(Count::NextChunk, 1)?)?,
        count: 1,
        replica_set: set.id,
        epoch: set.epoch,
        session: NOBODY,
        expires_ns: tx.now_ns().saturating_add(tx.context.policy.plan_ns),
        used: Bytes::new(),
    };
    tx.put(plan.clone());
    Ok(plan)
}

/// The new chunk is stored: extents that still lie in its parts are turned to it. Returns how many bytes
/// of them.
pub(crate) fn commit(tx: &mut Tx, stored: &StoredChunk, packed: &Packed) -> Result<u64, OpError> {
    let (row, missing) = check_chunk(tx, NOBODY, stored)?;
    if stored.length != packed.length {
        return Err(OpError::invalid(format!("{} bytes; {} were packed", stored.length, packed.length)));
    }
    add_chunk(tx, row, &missing)?;
    let parts: BTreeMap<(ChunkId, u64), Part> =
        packed.parts.iter().map(|part| ((part.chunk, part.range.start()), *part)).collect();
    let mut live = LiveChanges::default();
    let mut turned = 0;
    for (inode, range) in places(&packed.extents) {
        // An inode that is gone has no extents either.
        let Some(inode) = tx.find::<Inode>(&Key::Inode(inode))? else { continue };
        for extent in extents::touching(tx, &inode, range, PLACE_MAX)? {
            let Some(to) = place_in(&parts, &extent) else { continue };
            live.remove(extent.chunk, extent.length);
            live.add(stored.id, extent.length);
            turned += extent.length;
            tx.put(Extent { chunk: stored.id, chunk_offset: to, ..extent });
        }
    }
    live.apply(tx)?;
    if let Some(chunk) = tx.find::<Chunk>(&Key::Chunk(stored.id))?.filter(|chunk| chunk.live == 0) {
        chunks::discard(tx, &chunk)?;
    }
    Ok(turned)
}

/// Where to look, each place once.
fn places(extents: &[Extent]) -> BTreeSet<(cairn_proto::InodeId, ByteRange)> {
    let range = |extent: &Extent| ByteRange::new(extent.offset, extent.length);
    extents.iter().filter_map(|extent| range(extent).map(|range| (extent.inode, range))).collect()
}

/// Where the bytes of an extent lie in the new chunk; `None`: not all of them.
fn place_in(parts: &BTreeMap<(ChunkId, u64), Part>, extent: &Extent) -> Option<u64> {
    let (_, part) = parts.range(..=(extent.chunk, extent.chunk_offset)).next_back()?;
    let end = extent.chunk_offset.checked_add(extent.length)?;
    (part.chunk == extent.chunk && end <= part.range.end())
        .then(|| part.to + (extent.chunk_offset - part.range.start()))
}

#[cfg(test)]
mod tests;
