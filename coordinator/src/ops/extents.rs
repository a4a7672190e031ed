//! The extents of a file: found, cut, replaced. They never overlap; what is absent is a hole.

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ByteRange, InodeId};

use super::chunks::LiveChanges;
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Extent, Inode, Key, Reader, Scan, StoreError};

impl Extent {
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// The part of it that lies in `range`.
    fn part(&self, range: ByteRange) -> Option<Self> {
        let part = ByteRange::between(self.offset, self.end())?.intersection(range)?;
        Some(Self {
            offset: part.start(),
            length: part.len(),
            chunk_offset: self.chunk_offset + (part.start() - self.offset),
            ..self.clone()
        })
    }
}

/// The scan for the extent that starts last at or before `offset`.
fn before(inode: InodeId, offset: u64) -> Scan {
    Scan::between(Key::Extent(inode, 0), Key::Extent(inode, offset)).reverse().limit(1)
}

/// The scan for the extents that start in `[start, end)`.
fn starting_in(inode: InodeId, start: u64, end: u64) -> Scan {
    Scan::between(Key::Extent(inode, start), Key::Extent(inode, end.saturating_sub(1)))
}

/// The extents that touch a range, whole and in order.
pub(super) fn touching(tx: &mut Tx, inode: InodeId, range: ByteRange) -> Result<Vec<Extent>, OpError> {
    let first = tx.list::<Extent>(&before(inode, range.start()))?;
    let first = first.into_iter().filter(|extent| extent.end() > range.start());
    let rest = tx.list::<Extent>(&starting_in(inode, range.start() + 1, range.end()))?;
    Ok(first.chain(rest).collect())
}

/// The same on committed state, at most `limit` of them.
pub(super) fn read_touching(
    reader: &dyn Reader,
    inode: InodeId,
    range: ByteRange,
    limit: usize,
) -> Result<Vec<Extent>, StoreError> {
    let first = crate::store::list::<Extent>(reader, &before(inode, range.start()))?;
    let mut found: Vec<_> = first.into_iter().filter(|extent| extent.end() > range.start()).collect();
    if range.len() > 1 && found.len() < limit {
        let rest = starting_in(inode, range.start() + 1, range.end()).limit(limit - found.len());
        found.extend(crate::store::list::<Extent>(reader, &rest)?);
    }
    Ok(found)
}

/// Makes a hole; what reaches over its edges is trimmed. The caller puts the inode.
pub(super) fn cut(
    tx: &mut Tx,
    inode: &mut Inode,
    range: ByteRange,
    live: &mut LiveChanges,
) -> Result<(), OpError> {
    if inode.allocated == 0 {
        return Ok(());
    }
    for extent in touching(tx, inode.id, range)? {
        let Some(gone) = extent.part(range) else { continue };
        live.remove(extent.chunk, gone.length);
        inode.allocated = inode.allocated.saturating_sub(gone.length);
        let whole = ByteRange::between(extent.offset, extent.end());
        let (head, tail) = whole.map_or((None, None), |whole| whole.without(range));
        if head.is_none() {
            tx.delete(Key::Extent(inode.id, extent.offset));
        }
        for rest in [head, tail].into_iter().flatten().filter_map(|rest| extent.part(rest)) {
            tx.put(rest);
        }
    }
    Ok(())
}

/// Puts an extent where nothing is. The caller puts the inode.
pub(super) fn insert(tx: &mut Tx, inode: &mut Inode, extent: Extent, live: &mut LiveChanges) {
    live.add(extent.chunk, extent.length);
    inode.allocated += extent.length;
    tx.put(extent);
}

/// Removes up to `limit` extents, the first ones; returns how many there were.
pub(super) fn remove_first(
    tx: &mut Tx,
    inode: &mut Inode,
    limit: usize,
    live: &mut LiveChanges,
) -> Result<usize, OpError> {
    if inode.allocated == 0 {
        return Ok(0);
    }
    let extents: Vec<Extent> = tx.list(&starting_in(inode.id, 0, FILE_SIZE_MAX).limit(limit))?;
    for extent in &extents {
        live.remove(extent.chunk, extent.length);
        inode.allocated = inode.allocated.saturating_sub(extent.length);
        tx.delete(Key::Extent(inode.id, extent.offset));
    }
    Ok(extents.len())
}

#[cfg(test)]
mod tests;
