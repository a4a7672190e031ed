//! Metadata that went backwards: an old copy of the store was put back.
//!
//! Datanodes remember the highest position of the metadata that they have seen and the highest id of a
//! chunk that they hold. When one of them has seen more than this store has, everything that happened
//! between is forgotten here: chunks of files that were written since look like strays, and ids granted
//! since would be granted again. So deletion stops until an operator has looked (the flag is a row), and
//! ids already used are skipped at once.
//!
//! Epochs are no evidence: a map may reach datanodes a moment before its commit. They are only raised, so
//! that datanodes obey.

use cairn_proto::{ErrorKind, NodeId};

use super::gc::Position;
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Count, Counter, Key};

/// Ids skipped behind the highest that a datanode holds: others may hold later ones, and have not told yet.
const IDS_SKIPPED: u64 = 1 << 20;
/// An id so far beyond all that were granted was not granted by any past of this store; to skip all of
/// them would use ids up.
const ID_GAP_MAX: u64 = 1 << 40;

/// What a datanode has seen of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) position: Position,
    /// The highest id of a chunk that it holds; 0: none.
    pub(crate) chunk_max: u64,
}

fn value(tx: &mut Tx, name: Count) -> Result<u64, OpError> {
    Ok(tx.find::<Counter>(&Key::Counter(name))?.map_or(0, |row| row.value))
}

fn raise(tx: &mut Tx, name: Count, to: u64) -> Result<(), OpError> {
    if value(tx, name)? < to {
        tx.put(Counter { name, value: to });
    }
    Ok(())
}

/// Compares what a datanode has seen with the store. Returns whether metadata has gone backwards.
///
/// `NotActive`: it has seen a later reign than this one, or more of this one than there was: then another
/// coordinator is at work with it, or this store is an old one that was put back by hand. It may not
/// register, since it would obey neither this coordinator's map nor its fence.
pub(crate) fn compare(tx: &mut Tx, node: NodeId, seen: &Seen) -> Result<bool, OpError> {
    let term = tx.context.cluster.term();
    let sequence = tx.context.sequence.get();
    let Position { term: seen_term, epoch: seen_epoch, sequence: seen_sequence } = seen.position;
    if seen_term > term || (seen_term == term && seen_sequence > sequence) {
        let message = format!(
            "datanode {} has seen reign {seen_term} of the metadata at commit {seen_sequence}, this coordinator \
             is in reign {term} at commit {sequence}: its metadata is older. If another coordinator of this \
             cluster runs, stop this one. If an old copy of the metadata was put back, stop the coordinator and \
             put it back by `cairn coordinator restore`, which raises the reign",
            node.short()
        );
        return Err(OpError::new(ErrorKind::NotActive, message));
    }
    let next = value(tx, Count::NextChunk)?;
    let ids_forgotten = seen.chunk_max >= next;
    if seen_sequence <= sequence && !ids_forgotten {
        // A map that was never committed, or nothing at all.
        if seen_epoch > value(tx, Count::Epoch)? {
            raise_epoch(tx, seen_epoch)?;
        }
        return Ok(false);
    }
    tracing::error!(
        node = %node, seen_sequence, sequence, chunk_max = seen.chunk_max, next_chunk = next,
        "a datanode has seen later metadata than there is: nothing is deleted until an operator says so"
    );
    if value(tx, Count::RolledBack)? == 0 {
        let now = tx.now_ns().unsigned_abs().max(1);
        tx.put(Counter { name: Count::RolledBack, value: now });
    }
    raise(tx, Count::SeenEpoch, seen_epoch)?;
    raise(tx, Count::SeenSequence, seen_sequence)?;
    if ids_forgotten && seen.chunk_max - next < ID_GAP_MAX {
        tx.put(Counter { name: Count::NextChunk, value: seen.chunk_max + IDS_SKIPPED });
    }
    Ok(true)
}

/// Whether metadata has gone backwards, by what a datanode has seen or because it was restored.
pub(crate) fn is_rolled_back(tx: &mut Tx) -> Result<bool, OpError> {
    Ok(value(tx, Count::RolledBack)? > 0 || value(tx, Count::Restored)? > 0)
}

/// A datanode holds a chunk that was never granted.
pub(crate) fn note_id(tx: &mut Tx, node: NodeId, chunk_max: u64) -> Result<bool, OpError> {
    let position = super::gc::position(tx)?;
    compare(tx, node, &Seen { position, chunk_max })
}

/// An operator has looked, and takes the metadata as it is: from here on datanodes obey again, since epoch
/// and sequence are beyond all that they have seen. Returns whether there was anything to accept.
pub(crate) fn accept(tx: &mut Tx) -> Result<bool, OpError> {
    if !is_rolled_back(tx)? {
        return Ok(false);
    }
    let (epoch, sequence) = (value(tx, Count::SeenEpoch)?, value(tx, Count::SeenSequence)?);
    if epoch >= value(tx, Count::Epoch)? {
        raise_epoch(tx, epoch.saturating_add(1))?;
    }
    // The commit of this job counts on from here. When it fails, the store says where it stands.
    let now = tx.context.sequence.get();
    tx.context.sequence.set(sequence.max(now));
    for name in [Count::RolledBack, Count::Restored, Count::SeenEpoch, Count::SeenSequence] {
        tx.delete(Key::Counter(name));
    }
    tracing::warn!(epoch, sequence, "an operator accepts that metadata went backwards; deletion goes on");
    Ok(true)
}

fn raise_epoch(tx: &mut Tx, epoch: u64) -> Result<(), OpError> {
    raise(tx, Count::Epoch, epoch)?;
    let context = std::sync::Arc::clone(&tx.context);
    let mut members = context.cluster.members();
    if members.epoch < epoch {
        members.add_sets(Vec::new(), epoch);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
