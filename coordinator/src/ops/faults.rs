//! Copies that are missing or bad, and those that were made again.

use cairn_proto::{ChunkId, NodeId};

use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Chunk, Count, Fault, Key, MemberState, ReplicaSet};

/// Records that a datanode has no good copy of a chunk. Nothing comes of it when the datanode is no member of
/// its set (or a lost one), or when it is known; of a chunk that is in no file it is remembered that there was
/// one, since it may be committed later. True when it was news.
pub(crate) fn record(tx: &mut Tx, chunk: ChunkId, node: NodeId) -> Result<bool, OpError> {
    let Some(mut row) = tx.find::<Chunk>(&Key::Chunk(chunk))? else {
        tx.context.cluster.members().gave_up(node, tx.now_ns());
        return Ok(false);
    };
    let set = tx.find::<ReplicaSet>(&Key::ReplicaSet(row.replica_set))?;
    let counts = |set: ReplicaSet| {
        set.members.0.iter().any(|member| member.node == node && member.state != MemberState::Lost)
    };
    let key = Key::Fault(chunk, node);
    if !set.is_some_and(counts) || tx.get(&key)?.is_some() {
        return Ok(false);
    }
    row.faults += 1;
    tx.put(row);
    tx.put(Fault { chunk, node, noticed_ns: tx.now_ns() });
    tx.count(Count::Faults, 1)?;
    Ok(true)
}

/// A datanode has a sound, durable copy again, or none is wanted there any more.
pub(crate) fn clear(tx: &mut Tx, chunk: ChunkId, node: NodeId) -> Result<(), OpError> {
    let key = Key::Fault(chunk, node);
    if tx.get(&key)?.is_none() {
        return Ok(());
    }
    tx.delete(key);
    tx.count(Count::Faults, -1)?;
    if let Some(mut row) = tx.find::<Chunk>(&Key::Chunk(chunk))? {
        row.faults = row.faults.saturating_sub(1);
        tx.put(row);
    }
    Ok(())
}
