//! Chunks that were committed without sync: which of them a file refers to, who holds them, and the end of their
//! rows.

use std::collections::BTreeSet;

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ChunkId, InodeId, NodeId, ReplicaSetId};
use uuid::Uuid;

use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Chunk, Extent, Fault, Key, Reader, Scan, StoreError, Table, Unsynced};

/// Extents that are read at once.
const EXTENTS_PAGE: usize = 4096;

/// A chunk that is to be synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) chunk: ChunkId,
    pub(crate) set: ReplicaSetId,
    /// Members of the set without a good copy.
    pub(crate) missing: Vec<NodeId>,
}

/// Rows behind a chunk, in the order of their ids.
pub(crate) fn page(
    reader: &dyn Reader,
    after: Option<ChunkId>,
    limit: usize,
) -> Result<Vec<ChunkId>, StoreError> {
    let rows: Vec<Unsynced> =
        crate::store::list(reader, &Scan::behind(Table::Unsynced, after.map(Key::Unsynced)).limit(limit))?;
    Ok(rows.into_iter().map(|row| row.chunk).collect())
}

/// The chunks of a file that have rows. Reads all its extents, unless there are no rows at all.
pub(crate) fn of_extents(reader: &dyn Reader, file: InodeId) -> Result<Vec<ChunkId>, OpError> {
    let mut found = BTreeSet::new();
    if page(reader, None, 1)?.is_empty() {
        return Ok(Vec::new());
    }
    let mut from = 0;
    loop {
        let scan = Scan::between(Key::Extent(file, from), Key::Extent(file, FILE_SIZE_MAX));
        let extents: Vec<Extent> = crate::store::list(reader, &scan.limit(EXTENTS_PAGE))?;
        let Some(last) = extents.last() else { break };
        from = last.offset + 1;
        let named: BTreeSet<ChunkId> = extents.iter().map(|extent| extent.chunk).collect();
        for chunk in named {
            if reader.get(&Key::Unsynced(chunk))?.is_some() {
                found.insert(chunk);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Where these chunks are; of one that nothing refers to any more nothing is said.
pub(crate) fn wanted(reader: &dyn Reader, chunks: &[ChunkId]) -> Result<Vec<Wanted>, OpError> {
    let mut found = Vec::with_capacity(chunks.len());
    for &id in chunks {
        let Some(chunk) = crate::store::find::<Chunk>(reader, &Key::Chunk(id))? else { continue };
        let missing = match chunk.faults {
            0 => Vec::new(),
            _ => {
                let [first, last] =
                    [Uuid::nil(), Uuid::max()].map(|node| Key::Fault(id, NodeId::from_uuid(node)));
                let faults: Vec<Fault> = crate::store::list(reader, &Scan::between(first, last))?;
                faults.into_iter().map(|fault| fault.node).collect()
            }
        };
        found.push(Wanted { chunk: id, set: chunk.replica_set, missing });
    }
    Ok(found)
}

/// The rows of chunks that were synced go.
pub(crate) fn delete_rows(tx: &mut Tx, chunks: &[ChunkId]) -> Result<(), OpError> {
    chunks.iter().for_each(|&chunk| tx.delete(Key::Unsynced(chunk)));
    Ok(())
}

/// Ends what is kept of chunks that nothing refers to any more. Only here, in the order of everything that is
/// executed, is it sure that they are not just being committed.
pub(crate) fn forget_gone(tx: &mut Tx, chunks: &[ChunkId]) -> Result<(), OpError> {
    for &chunk in chunks {
        if tx.get(&Key::Chunk(chunk))?.is_none() {
            tx.delete(Key::Unsynced(chunk));
            tx.context.unsynced.forget(&[chunk]);
        }
    }
    Ok(())
}
