//! How much of each chunk is in use. A chunk that nothing uses any more becomes garbage in the same
//! transaction.

use std::collections::BTreeMap;

use cairn_proto::{ChunkId, ErrorKind, NodeId, ReplicaSetId};
use cairn_runtime::bugs::{Bug, planted};
use uuid::Uuid;

use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Chunk, Count, Fault, Garbage, Key, Scan};

/// Changes of live bytes, gathered over an operation and applied at its end, so that a chunk which
/// loses one extent and gains another is not thrown away in between.
#[derive(Debug, Default, Clone)]
pub(super) struct LiveChanges(BTreeMap<ChunkId, i64>);

impl LiveChanges {
    /// `length` more bytes of the chunk are in use.
    pub(super) fn add(&mut self, chunk: ChunkId, length: u64) {
        *self.0.entry(chunk).or_insert(0) += signed(length);
    }

    /// `length` fewer bytes of the chunk are in use.
    pub(super) fn remove(&mut self, chunk: ChunkId, length: u64) {
        *self.0.entry(chunk).or_insert(0) -= signed(length);
    }

    /// Adds what another part of the operation has gathered.
    pub(super) fn merge(&mut self, other: Self) {
        for (chunk, change) in other.0 {
            *self.0.entry(chunk).or_insert(0) += change;
        }
    }

    /// Writes the changes to the rows of the chunks, and counts the bytes.
    pub(super) fn apply(self, tx: &mut Tx) -> Result<(), OpError> {
        let mut total = 0;
        for (id, change) in self.0 {
            if change == 0 {
                continue;
            }
            total += change;
            let mut chunk = need_chunk(tx, id)?;
            let live = chunk.live.checked_add_signed(change).ok_or_else(|| {
                let message = format!("chunk {id} has {} live bytes, {change} of them go", chunk.live);
                OpError::new(ErrorKind::Internal, message)
            })?;
            if live == 0 || (planted(Bug::GcTakesLive) && live < chunk.length / 2) {
                discard(tx, &chunk)?;
            } else {
                chunk.live = live;
                tx.put(chunk);
            }
        }
        tx.count(Count::Bytes, total)?;
        Ok(())
    }
}

/// Extents are shorter than 2^63.
fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// A chunk that an extent names.
fn need_chunk(tx: &mut Tx, id: ChunkId) -> Result<Chunk, OpError> {
    let lost = || OpError::new(ErrorKind::Corrupt, format!("an extent names chunk {id}, which has no row"));
    tx.find(&Key::Chunk(id))?.ok_or_else(lost)
}

/// Removes the rows of a chunk and queues it for deletion.
pub(super) fn discard(tx: &mut Tx, chunk: &Chunk) -> Result<(), OpError> {
    if chunk.faults > 0 {
        let [first, last] = [Uuid::nil(), Uuid::max()].map(|id| Key::Fault(chunk.id, NodeId::from_uuid(id)));
        let faults: Vec<Fault> = tx.list(&Scan::between(first, last))?;
        tx.count(Count::Faults, -(faults.len() as i64))?;
        faults.into_iter().for_each(|fault| tx.delete(Key::Fault(fault.chunk, fault.node)));
    }
    tx.delete(Key::Chunk(chunk.id));
    tx.count(Count::Chunks, -1)?;
    throw_away(tx, chunk.id, chunk.replica_set)
}

/// Queues a chunk that datanodes hold for nothing.
fn throw_away(tx: &mut Tx, chunk: ChunkId, replica_set: ReplicaSetId) -> Result<(), OpError> {
    let not_before_ns = tx.job_ns().saturating_add(tx.context.policy.garbage_ns);
    tx.put(Garbage { not_before_ns, chunk, replica_set });
    tx.count(Count::Garbage, 1)?;
    Ok(())
}
