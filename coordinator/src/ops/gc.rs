//! Deleting chunks for good: what may be deleted, and where it has to be asked for.
//!
//! A chunk lies in the table of garbage from the transaction on in which its last extent went, and
//! never comes back: its id can not be committed again, and extents can name only chunks that have a
//! row. So a row of garbage may be acted upon at any later time. Three things delay it:
//!
//! * the grace (`not_before_ns`), in which a client may still read by a layout that it got before;
//! * the *session fence*: since then every session has shown itself, and none is missing that an earlier
//!   reign has left. A client that was cut off for a while is either heard again or its session is over;
//! * an operator who has stopped it, or metadata that went backwards ([`super::rollback`]).
//!
//! None of the three is needed for correctness: a client whose chunk is gone is told so
//! (`ChunkNotFound`), fetches the layout again and reads the file as it is now. They keep that rare.
//!
//! A *stray* is a copy that no row accounts for: of a chunk that was stored and never committed, or was
//! deleted while the datanode was away, or whose set the datanode has left. A copy is a stray only for a
//! datanode that says so in a complete listing, twice, with a grace between; [`claim_strays`] then decides.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::{ChunkId, ErrorKind, NodeId};
use cairn_runtime::bugs::{Bug, planted};

use crate::error::OpError;
use crate::executor::Tx;
use crate::membership::state::NodeState;
use crate::store::{
    AdminState, Chunk, Count, Counter, Garbage, Key, MemberState, Plan, Reader, ReplicaSet, Scan, StoreError,
    Table,
};

/// A position of the metadata, which datanodes compare with what they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
}

/// Chunks to delete, by datanode, and the rows that go when all of these have done it.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    pub(crate) rows: Vec<Garbage>,
    pub(crate) ask: BTreeMap<NodeId, Vec<ChunkId>>,
}

/// Why nothing is deleted at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    ByOperator { since_ns: i64 },
    RolledBack { since_ns: i64 },
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ByOperator { .. } => "stopped by an operator; `cairn gc resume` lets it go on",
            Self::RolledBack { .. } => {
                "stopped because the metadata is older than what datanodes have seen; see METADATA_ROLLED_BACK"
            }
        })
    }
}

/// The latest position; what is deleted by it is deleted by everything committed so far.
pub(crate) fn position(tx: &mut Tx) -> Result<Position, OpError> {
    let epoch = tx.find::<Counter>(&Key::Counter(Count::Epoch))?.map_or(0, |row| row.value);
    Ok(Position { term: tx.context.cluster.term(), epoch, sequence: tx.context.sequence.get() })
}

/// Whether deletion is stopped, from the rows of the store.
pub(crate) fn stopped(
    count: &mut dyn FnMut(Count) -> Result<u64, StoreError>,
) -> Result<Option<Stopped>, StoreError> {
    let time = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let restored = count(Count::Restored)?;
    Ok(match (count(Count::RolledBack)?.max(restored), count(Count::GcPaused)?) {
        (0, 0) => None,
        (0, since) => Some(Stopped::ByOperator { since_ns: time(since) }),
        (since, _) => Some(Stopped::RolledBack { since_ns: time(since) }),
    })
}

/// `Busy`: nothing may be deleted now.
pub(crate) fn need_running(tx: &mut Tx) -> Result<(), OpError> {
    let stopped =
        stopped(&mut |name| Ok(tx.find::<Counter>(&Key::Counter(name))?.map_or(0, |row| row.value)))?;
    match stopped {
        None => Ok(()),
        Some(stopped) => Err(OpError::new(ErrorKind::Busy, stopped.to_string())),
    }
}

/// An operator ends a pause. `Busy`: that is not why nothing is deleted.
pub(crate) fn resume(tx: &mut Tx) -> Result<(), OpError> {
    if super::rollback::is_rolled_back(tx)? {
        let message = "metadata has gone backwards: look at the cluster with `cairn fsck`, then let deletion go \
                       on with `cairn gc resume --accept-rollback`";
        return Err(OpError::new(ErrorKind::Busy, message));
    }
    set_paused(tx, false)
}

/// An operator stops deletion, or lets it go on. It stays so over restarts.
pub(crate) fn set_paused(tx: &mut Tx, paused: bool) -> Result<(), OpError> {
    let value = if paused { tx.now_ns().unsigned_abs().max(1) } else { 0 };
    let old = tx.find::<Counter>(&Key::Counter(Count::GcPaused))?.map_or(0, |row| row.value);
    if (old == 0) != (value == 0) {
        tx.put(Counter { name: Count::GcPaused, value });
    }
    Ok(())
}

/// Rows behind `after` whose time has come at `fence_ns`, at most `limit`, oldest first.
pub(crate) fn due(
    reader: &dyn Reader,
    after: Option<&Garbage>,
    fence_ns: i64,
    limit: usize,
) -> Result<Vec<Garbage>, StoreError> {
    let after = after.map(|row| Key::Garbage(row.not_before_ns, row.chunk));
    let mut rows: Vec<Garbage> =
        crate::store::list(reader, &Scan::behind(Table::Garbage, after).limit(limit))?;
    rows.retain(|row| row.not_before_ns <= fence_ns);
    Ok(rows)
}

/// Decides in the executor which of these rows can be acted upon, and who has to be asked for each.
///
/// Asked are the members of the set but for those that count for nothing: lost, or removed by the
/// operator. When such a node returns, its copies are strays. `Busy`: deletion is stopped.
pub(crate) fn claim(tx: &mut Tx, rows: &[Garbage]) -> Result<Claim, OpError> {
    need_running(tx)?;
    let mut claim = Claim::default();
    for row in rows {
        if tx.get(&Key::Garbage(row.not_before_ns, row.chunk))?.is_none() {
            continue;
        }
        if tx.get(&Key::Chunk(row.chunk))?.is_some() {
            // Can not be. Whatever made it so, nothing is deleted that a file may refer to.
            tracing::error!(chunk = %row.chunk, "a chunk that files refer to is queued for deletion; it stays");
            continue;
        }
        for node in asked(tx, row)? {
            claim.ask.entry(node).or_default().push(row.chunk);
        }
        claim.rows.push(row.clone());
    }
    Ok(claim)
}

fn asked(tx: &mut Tx, row: &Garbage) -> Result<Vec<NodeId>, OpError> {
    let set = tx.find::<ReplicaSet>(&Key::ReplicaSet(row.replica_set))?;
    let members = tx.context.cluster.members();
    let counts = |node: &NodeId| {
        members
            .nodes
            .get(node)
            .is_some_and(|entry| entry.state != NodeState::Lost && entry.row.admin != AdminState::Out)
    };
    Ok(match set {
        Some(set) => {
            let of_set = set.members.0.iter().filter(|member| member.state != MemberState::Lost);
            of_set.map(|member| member.node).filter(counts).collect()
        }
        // A set that is no more: whoever may have been in it.
        None => members.nodes.keys().copied().filter(counts).collect(),
    })
}

/// Every datanode that had to be asked has deleted these. Returns how many rows went.
pub(crate) fn finish(tx: &mut Tx, rows: &[Garbage]) -> Result<u64, OpError> {
    let mut gone = 0;
    for row in rows {
        let key = Key::Garbage(row.not_before_ns, row.chunk);
        if tx.get(&key)?.is_some() {
            tx.delete(key);
            gone += 1;
        }
    }
    tx.count(Count::Garbage, -(gone as i64))?;
    Ok(gone)
}

/// Of copies that `node` was twice seen to hold for nothing, those that may be deleted.
///
/// Never one that may yet be committed (its plan lives), that the set of its chunk has the node for, or
/// that may be needed (another copy is bad, or the set is not whole). One that waits as garbage did so
/// when it was first seen, so its grace is over as well. `Busy`: deletion is stopped.
pub(crate) fn claim_strays(
    tx: &mut Tx,
    node: NodeId,
    chunks: &BTreeSet<ChunkId>,
) -> Result<Vec<ChunkId>, OpError> {
    need_running(tx)?;
    let next = tx.find::<Counter>(&Key::Counter(Count::NextChunk))?.map_or(1, |row| row.value);
    let mut strays = Vec::new();
    for &chunk in chunks {
        // What is committed was: its plan means nothing any more.
        let committed = tx.get(&Key::Chunk(chunk))?.is_some();
        if chunk.get() < next
            && (committed || planted(Bug::GcTakesStraysAtOnce) || !is_planned(tx, chunk)?)
            && is_for_nothing(tx, node, chunk)?
        {
            strays.push(chunk);
        }
    }
    Ok(strays)
}

/// Whether a session may still commit it.
fn is_planned(tx: &mut Tx, chunk: ChunkId) -> Result<bool, OpError> {
    let scan = Scan::between(Key::Plan(ChunkId::new(1)?), Key::Plan(chunk)).reverse().limit(1);
    let plan = tx.list::<Plan>(&scan)?.pop();
    let plan = plan.filter(|plan| chunk.get() - plan.first.get() < plan.count.into());
    Ok(plan.is_some_and(|plan| plan.expires_ns > tx.now_ns()))
}

fn is_for_nothing(tx: &mut Tx, node: NodeId, chunk: ChunkId) -> Result<bool, OpError> {
    let Some(row) = tx.find::<Chunk>(&Key::Chunk(chunk))? else { return Ok(true) };
    let Some(set) = tx.find::<ReplicaSet>(&Key::ReplicaSet(row.replica_set))? else { return Ok(false) };
    let whole = set.members.0.len() >= set.replicas as usize
        && set.members.0.iter().all(|member| member.state == MemberState::Active);
    Ok(!set.members.contains(node) && row.faults == 0 && whole)
}

#[cfg(test)]
mod tests;
