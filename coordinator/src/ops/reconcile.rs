//! What a datanode must hold, compared with what it says it holds.
//!
//! *Must* hold it: it is an active or leaving member of the chunk's set, and no fault says otherwise. *May*
//! hold it: it is another kind of member, or the copy is known to be bad or missing. Anything else that
//! it holds is extra.

use std::collections::HashMap;

use cairn_proto::{ChunkId, NodeId, ReplicaSetId, v1};

use crate::error::OpError;
use crate::executor::Tx;
use crate::membership::state::Members;
use crate::store::{Chunk, Key, MemberState, Reader, ReplicaSet, Scan, StoreError};

/// What a datanode is to a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    Must,
    May,
    /// It is no member of the set.
    None,
}

/// What a datanode is to each replica set that it is in.
#[derive(Debug, Default)]
pub(crate) struct Duties(HashMap<ReplicaSetId, Duty>);

impl Duties {
    pub(crate) fn of(members: &Members, node: NodeId) -> Self {
        let of_set = |set: &ReplicaSet| duty_in(set, node).map(|duty| (set.id, duty));
        Self(members.sets.values().filter_map(of_set).collect())
    }
}

fn duty_in(set: &ReplicaSet, node: NodeId) -> Option<Duty> {
    let member = set.members.0.iter().find(|member| member.node == node)?;
    Some(match member.state {
        MemberState::Active | MemberState::Leaving => Duty::Must,
        MemberState::Backfilling | MemberState::Lost => Duty::May,
    })
}

/// One chunk of the metadata, as it concerns a datanode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) chunk: ChunkId,
    pub(crate) length: u64,
    pub(crate) duty: Duty,
}

/// The chunks with ids from `first` to `last`, at most `limit`, in order.
pub(crate) fn expected(
    reader: &dyn Reader,
    duties: &Duties,
    node: NodeId,
    (first, last): (ChunkId, ChunkId),
    limit: usize,
) -> Result<Vec<Expected>, StoreError> {
    let rows: Vec<Chunk> =
        crate::store::list(reader, &Scan::between(Key::Chunk(first), Key::Chunk(last)).limit(limit))?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let mut duty = duties.0.get(&row.replica_set).copied().unwrap_or(Duty::None);
        if duty == Duty::Must && row.faults > 0 && reader.get(&Key::Fault(row.id, node))?.is_some() {
            duty = Duty::May;
        }
        found.push(Expected { chunk: row.id, length: row.length, duty });
    }
    Ok(found)
}

/// Where metadata and a complete listing differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Must be there, and is not.
    pub(crate) missing: Vec<ChunkId>,
    /// Must be there, and is damaged or of another length.
    pub(crate) bad: Vec<ChunkId>,
    /// Must be there, and lies in the trash.
    pub(crate) trashed: Vec<ChunkId>,
    /// There, and nothing says why.
    pub(crate) extra: Vec<ChunkId>,
}

/// Compares; both sides are in the order of ids. The rows have to be older than the listing: a chunk that
/// is committed in between is then extra, which is looked into, and never missing.
pub(crate) fn compare(expected: &[Expected], held: &[v1::HeldChunk]) -> Difference {
    let mut difference = Difference::default();
    let mut held = held.iter().peekable();
    let extra = |difference: &mut Difference, chunk: &v1::HeldChunk| {
        if !chunk.trash
            && let Ok(id) = ChunkId::new(chunk.chunk)
        {
            difference.extra.push(id);
        }
    };
    for row in expected {
        while let Some(chunk) = held.next_if(|chunk| chunk.chunk < row.chunk.get()) {
            extra(&mut difference, chunk);
        }
        let found = held.next_if(|chunk| chunk.chunk == row.chunk.get());
        match (row.duty, found) {
            (Duty::Must, None) => difference.missing.push(row.chunk),
            (Duty::Must, Some(chunk)) if chunk.trash => difference.trashed.push(row.chunk),
            (Duty::Must, Some(chunk)) if chunk.quarantined || chunk.length != row.length => {
                difference.bad.push(row.chunk);
            }
            (Duty::None, Some(chunk)) => extra(&mut difference, chunk),
            (Duty::Must | Duty::May | Duty::None, _) => {}
        }
    }
    held.for_each(|chunk| extra(&mut difference, chunk));
    difference
}

/// Records that `node` has no good copy of these, where it must have one. Returns how many are news.
pub(crate) fn record_missing(tx: &mut Tx, node: NodeId, chunks: &[ChunkId]) -> Result<u64, OpError> {
    let mut news = 0;
    for &id in chunks {
        let Some(chunk) = tx.find::<Chunk>(&Key::Chunk(id))? else { continue };
        let Some(set) = tx.find::<ReplicaSet>(&Key::ReplicaSet(chunk.replica_set))? else { continue };
        let must = duty_in(&set, node) == Some(Duty::Must);
        if must && super::faults::record(tx, id, node)? {
            news += 1;
        }
    }
    Ok(news)
}

#[cfg(test)]
mod tests;
