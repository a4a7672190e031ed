//! ConfirmUpload: stored chunks become part of files.
//!
//! Chunks are checked against the plan that granted them; each file is committed as a whole or not
//! at all. A chunk that ends up in no file is garbage at once. An id can be committed once, which
//! its plan remembers even when the chunk is gone again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_proto::limits::CHUNK_SIZE_MAX;
use cairn_proto::mode::without_privileges;
use cairn_proto::{ByteRange, ChunkId, ErrorKind, InodeId, NodeId, ReplicaSetId, SessionId};

use super::chunks::{self, LiveChanges};
use super::extents::{self, Ahead};
use super::{Applied, clone_range, xattr};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{
    Chunk, Count, Counter, Extent, Fault, Key, Member, MemberState, Plan, ReplicaSet, Scan, Unsynced,
};

/// A chunk as the client says it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredChunk {
    pub(crate) id: ChunkId,
    pub(crate) set: ReplicaSetId,
    pub(crate) epoch: u64,
    pub(crate) length: u64,
    pub(crate) crc32c: u32,
    pub(crate) stored_by: BTreeSet<NodeId>,
    /// On their disks.
    pub(crate) synced: bool,
}

/// A run of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewExtent {
    pub(crate) range: ByteRange,
    pub(crate) chunk: ChunkId,
    pub(crate) chunk_offset: u64,
}

/// New content of one file.
#[derive(Debug, Clone)]
pub(crate) struct FileCommit {
    pub(crate) inode: InodeId,
    pub(crate) extents: Vec<NewExtent>,
    /// `None`: the coordinator's clock.
    pub(crate) mtime_ns: Option<i64>,
    pub(crate) keep_privileges: bool,
    pub(crate) drop_capability: bool,
}

/// Chunks and the files that they become part of.
#[derive(Debug, Clone)]
pub(crate) struct Confirm {
    pub(crate) session: SessionId,
    pub(crate) chunks: Vec<StoredChunk>,
    pub(crate) files: Vec<FileCommit>,
}

/// What is known of a chunk of this request.
enum Checked {
    /// It may be committed.
    Good { row: Chunk, missing: Vec<NodeId> },
    /// Files that refer to it get this error.
    Bad { kind: ErrorKind, message: String },
}

/// Commits file after file; one that fails stops no other. `Leased`: others may show a file as it was.
pub(crate) fn confirm(tx: &mut Tx, op: &Confirm) -> Result<Vec<Result<Applied, OpError>>, OpError> {
    let mut checked = BTreeMap::new();
    for chunk in &op.chunks {
        let state = match check_chunk(tx, op.session, chunk) {
            Ok((row, missing)) => Checked::Good { row, missing },
            Err(OpError::Refused { kind, message }) => Checked::Bad { kind, message },
            Err(error) => return Err(error),
        };
        if checked.insert(chunk.id, state).is_some() {
            return Err(OpError::invalid(format!("chunk {} is named twice", chunk.id)));
        }
    }
    // Their rows first, without live bytes, so that extents find them.
    for state in checked.values() {
        if let Checked::Good { row, missing } = state {
            add_chunk(tx, row.clone(), missing)?;
        }
    }
    let mut live = LiveChanges::default();
    let mut results = Vec::with_capacity(op.files.len());
    for file in &op.files {
        let result = tx.nested(|tx| commit_file(tx, file, &checked));
        results.push(match result {
            Ok((applied, changes)) => {
                live.merge(changes);
                Ok(applied)
            }
            Err(error @ OpError::Later(_)) => return Err(error),
            Err(error) => Err(error),
        });
    }
    live.apply(tx)?;
    drop_unused(tx, checked.values())?;
    note_unsynced(tx, op, &results)?;
    tx.settle_for(op.session)?;
    Ok(results)
}

pub(super) fn check_chunk(
    tx: &mut Tx,
    session: SessionId,
    chunk: &StoredChunk,
) -> Result<(Chunk, Vec<NodeId>), OpError> {
    let id = chunk.id;
    if tx.get(&Key::Chunk(id))?.is_some() {
        return Err(already(id));
    }
    let plan = find_plan(tx, id)?;
    if plan.session != session {
        return Err(foreign(id));
    }
    if is_used(&plan, id) {
        return Err(already(id));
    }
    if plan.expires_ns <= tx.now_ns() {
        return Err(OpError::new(ErrorKind::PlanExpired, format!("the plan of chunk {id} has expired")));
    }
    if chunk.length == 0 || chunk.length > CHUNK_SIZE_MAX {
        let message = format!("chunk {id} has {} bytes; 1 to {CHUNK_SIZE_MAX} are possible", chunk.length);
        return Err(OpError::invalid(message));
    }
    if chunk.set != plan.replica_set {
        let message = format!("chunk {id} was planned for set {}, not {}", plan.replica_set, chunk.set);
        return Err(OpError::invalid(message));
    }
    let lost = || OpError::new(ErrorKind::Corrupt, format!("replica set {} has no row", chunk.set));
    let set: ReplicaSet = tx.find(&Key::ReplicaSet(chunk.set))?.ok_or_else(lost)?;
    if chunk.epoch != set.epoch {
        let message = format!("set {} is at epoch {}, not {}", set.id, set.epoch, chunk.epoch);
        return Err(OpError::new(ErrorKind::StaleEpoch, message));
    }
    if let Some(stranger) = chunk.stored_by.iter().find(|node| !set.members.contains(**node)) {
        let message = format!("datanode {} is no member of set {}", stranger.short(), set.id);
        return Err(OpError::invalid(message));
    }
    let needed = set.min_replicas as usize;
    if chunk.stored_by.len() < needed {
        let message =
            format!("{} members have stored chunk {id}; {needed} are needed", chunk.stored_by.len());
        return Err(OpError::new(ErrorKind::TooFewReplicas, message));
    }
    let lacks =
        |member: &&Member| member.state != MemberState::Lost && !chunk.stored_by.contains(&member.node);
    let missing: Vec<_> = set.members.0.iter().filter(lacks).map(|member| member.node).collect();
    // Whether it was synced is not known here: a comparison costs little.
    let granted_ns = plan.expires_ns.saturating_sub(tx.context.policy.plan_ns);
    let doubted: Vec<NodeId> = {
        let members = tx.context.cluster.members();
        chunk.stored_by.iter().copied().filter(|node| members.may_have_lost(*node, granted_ns)).collect()
    };
    tx.doubted.extend(doubted);
    let row = Chunk {
        id,
        replica_set: set.id,
        length: chunk.length,
        crc32c: chunk.crc32c,
        live: 0,
        faults: u32::try_from(missing.len()).unwrap_or(u32::MAX),
        created_ns: tx.now_ns(),
    };
    Ok((row, missing))
}

/// The plan that granted an id. `PlanForeign`: none did. `PlanExpired`: one did, long ago.
fn find_plan(tx: &mut Tx, id: ChunkId) -> Result<Plan, OpError> {
    let next = tx.find::<Counter>(&Key::Counter(Count::NextChunk))?.map_or(1, |row| row.value);
    if id.get() >= next {
        return Err(foreign(id));
    }
    let first = Key::Plan(ChunkId::new(1)?);
    let plan = tx.list::<Plan>(&Scan::between(first, Key::Plan(id)).reverse().limit(1))?.pop();
    let plan = plan.filter(|plan| id.get() - plan.first.get() < plan.count.into());
    plan.ok_or_else(|| OpError::new(ErrorKind::PlanExpired, format!("the plan of chunk {id} is over")))
}

fn foreign(id: ChunkId) -> OpError {
    OpError::new(ErrorKind::PlanForeign, format!("chunk {id} was not granted to this session"))
}

fn already(id: ChunkId) -> OpError {
    OpError::new(ErrorKind::AlreadyCommitted, format!("chunk {id} was committed before"))
}

fn bit_of(plan: &Plan, id: ChunkId) -> (usize, u8) {
    let index = id.get().saturating_sub(plan.first.get());
    (usize::try_from(index / 8).unwrap_or(usize::MAX), 1 << (index % 8))
}

fn is_used(plan: &Plan, id: ChunkId) -> bool {
    let (byte, bit) = bit_of(plan, id);
    plan.used.get(byte).is_some_and(|bits| bits & bit != 0)
}

/// Puts the row of a chunk, its faults, and the mark that its id is used.
pub(super) fn add_chunk(tx: &mut Tx, row: Chunk, missing: &[NodeId]) -> Result<(), OpError> {
    let mut plan = find_plan(tx, row.id)?;
    let (byte, bit) = bit_of(&plan, row.id);
    let mut used = plan.used.to_vec();
    used.resize(used.len().max(byte + 1), 0);
    used[byte] |= bit;
    plan.used = Bytes::from(used);
    tx.put(plan);
    let noticed_ns = tx.now_ns();
    for &node in missing {
        tx.put(Fault { chunk: row.id, node, noticed_ns });
    }
    tx.count(Count::Faults, missing.len() as i64)?;
    tx.count(Count::Chunks, 1)?;
    tx.put(row);
    Ok(())
}

/// Chunks of this request that no file took.
fn drop_unused<'a>(tx: &mut Tx, checked: impl Iterator<Item = &'a Checked>) -> Result<(), OpError> {
    for state in checked {
        let Checked::Good { row, .. } = state else { continue };
        if let Some(chunk) = tx.find::<Chunk>(&Key::Chunk(row.id))?.filter(|chunk| chunk.live == 0) {
            chunks::discard(tx, &chunk)?;
        }
    }
    Ok(())
}

/// Chunks that were stored without sync get a row, and are known by the files that now refer to them.
fn note_unsynced(tx: &mut Tx, op: &Confirm, results: &[Result<Applied, OpError>]) -> Result<(), OpError> {
    for chunk in op.chunks.iter().filter(|chunk| !chunk.synced) {
        if tx.get(&Key::Chunk(chunk.id))?.is_some() {
            tx.put(Unsynced { chunk: chunk.id, committed_ns: tx.job_ns() });
            tx.context.unsynced.add(op.session, chunk.id);
        }
    }
    for (file, _) in op.files.iter().zip(results).filter(|(_, result)| result.is_ok()) {
        let mut last = None;
        for extent in &file.extents {
            // Also chunks that were committed before.
            if last.replace(extent.chunk) != Some(extent.chunk) {
                tx.context.unsynced.refer(file.inode, extent.chunk);
            }
        }
    }
    Ok(())
}

fn commit_file(
    tx: &mut Tx,
    file: &FileCommit,
    checked: &BTreeMap<ChunkId, Checked>,
) -> Result<(Applied, LiveChanges), OpError> {
    let mut inode = tx.inode(file.inode)?;
    clone_range::need_file(&inode)?;
    let mut new = file.extents.clone();
    new.sort_unstable_by_key(|extent| extent.range);
    for pair in new.windows(2) {
        if let [a, b] = pair
            && b.range.start() < a.range.end()
        {
            let message = format!("two extents cover offset {} of inode {}", b.range.start(), inode.id);
            return Err(OpError::invalid(message));
        }
    }
    for extent in &new {
        check_extent(tx, extent, checked)?;
    }
    let mut live = LiveChanges::default();
    // Run after run, so that a look for what one replaces ends at what the one before has put.
    let mut ahead = Ahead::new(new.last().map_or(0, |extent| extent.range.end()));
    for (run, extents) in runs(&new) {
        ahead.cut(tx, &mut inode, run, &mut live)?;
        for extent in extents {
            let row = Extent {
                inode: inode.id,
                offset: extent.range.start(),
                length: extent.range.len(),
                chunk: extent.chunk,
                chunk_offset: extent.chunk_offset,
            };
            extents::insert(tx, &mut inode, row, &mut live)?;
        }
        inode.size = inode.size.max(run.end());
    }
    let now_ns = tx.now_ns();
    inode.mtime_ns = file.mtime_ns.unwrap_or(now_ns);
    if !file.keep_privileges {
        inode.mode = without_privileges(inode.mode);
    }
    if file.drop_capability {
        xattr::drop_capability(tx, &mut inode)?;
    }
    inode.changed(now_ns);
    tx.put(inode.clone());
    Ok((Applied::inode(inode), live))
}

fn check_extent(
    tx: &mut Tx,
    extent: &NewExtent,
    checked: &BTreeMap<ChunkId, Checked>,
) -> Result<(), OpError> {
    let length = match checked.get(&extent.chunk) {
        Some(Checked::Good { row, .. }) => row.length,
        Some(Checked::Bad { kind, message }) => return Err(OpError::new(*kind, message.clone())),
        None => match tx.find::<Chunk>(&Key::Chunk(extent.chunk))? {
            Some(row) => row.length,
            None => return Err(foreign(extent.chunk)),
        },
    };
    let end = extent.chunk_offset.checked_add(extent.range.len());
    if end.is_none_or(|end| end > length) {
        let message = format!(
            "bytes {} and {} more of chunk {}, which has {length}",
            extent.chunk_offset,
            extent.range.len(),
            extent.chunk
        );
        return Err(OpError::invalid(message));
    }
    Ok(())
}

/// Neighbouring extents with the range that they are together, so that what they replace is looked for once.
fn runs(extents: &[NewExtent]) -> impl Iterator<Item = (ByteRange, &[NewExtent])> {
    let neighbours = extents.chunk_by(|one, next| one.range.end() == next.range.start());
    neighbours.filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some((ByteRange::between(first.range.start(), last.range.end())?, run))
    })
}

#[cfg(test)]
mod tests;
