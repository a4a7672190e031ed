//! The extents of a file: found, cut, replaced. Those that are part of the file never overlap; what they leave
//! out is a hole.
//!
//! What one job would take too long to remove it only declares *dead* ([`dead`]): the rows are gone for every
//! reader from that commit on, and removed step by step.

mod ahead;
mod dead;

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ByteRange, InodeId};

use super::chunks::LiveChanges;
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{DeadRange, Extent, Inode, Key, Reader, Record, Scan, StoreError};
pub(super) use ahead::Ahead;
use dead::DeadRanges;
#[cfg(test)]
pub(super) use dead::RANGES_MAX as DEAD_RANGES_MAX;
pub(super) use dead::reap;

/// Rows are read from it.
pub(super) trait Rows {
    fn rows<R: Record>(&mut self, scan: &Scan) -> Result<Vec<R>, StoreError>;
}

impl Rows for Tx {
    fn rows<R: Record>(&mut self, scan: &Scan) -> Result<Vec<R>, StoreError> {
        self.list(scan)
    }
}

impl Rows for &dyn Reader {
    fn rows<R: Record>(&mut self, scan: &Scan) -> Result<Vec<R>, StoreError> {
        crate::store::list(*self, scan)
    }
}

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

    fn key(&self) -> Key {
        Key::Extent(self.inode, self.offset)
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

/// The extents of a file that touch a range, whole and in order; at most `limit`, the first ones.
pub(super) fn touching(
    rows: &mut impl Rows,
    inode: &Inode,
    range: ByteRange,
    limit: usize,
) -> Result<Vec<Extent>, StoreError> {
    if inode.allocated == 0 {
        return Ok(Vec::new());
    }
    let dead = DeadRanges::of(inode);
    let first = last_before(rows, dead, range.start())?;
    let mut found: Vec<Extent> = first.into_iter().filter(|extent| extent.end() > range.start()).collect();
    let mut at = range.start() + 1;
    while found.len() < limit
        && let Some((start, end)) = dead.next_gap(rows, at, range.end())?
    {
        found.extend(rows.rows::<Extent>(&starting_in(inode.id, start, end).limit(limit - found.len()))?);
        at = end;
    }
    Ok(found)
}

/// Whether a row is no part of its file any more.
pub(crate) fn is_dead(reader: &dyn Reader, extent: &Extent) -> Result<bool, StoreError> {
    let around = dead::up_to(extent.inode, extent.offset);
    Ok(crate::store::list::<DeadRange>(reader, &around)?.iter().any(|range| extent.offset < range.end))
}

/// The extent of the file that starts last at or before `offset`.
fn last_before(rows: &mut impl Rows, dead: DeadRanges, offset: u64) -> Result<Option<Extent>, StoreError> {
    let mut at = Some(offset);
    while let Some(offset) = at {
        if let Some(range) = dead.around(rows, offset)? {
            at = range.start.checked_sub(1);
            continue;
        }
        let Some(found) = rows.rows::<Extent>(&before(dead.inode, offset))?.pop() else { break };
        match dead.around(rows, found.offset)? {
            Some(range) => at = range.start.checked_sub(1),
            None => return Ok(Some(found)),
        }
    }
    Ok(None)
}

/// Makes a hole; what reaches over its edges is trimmed. The caller puts the inode.
///
/// `Later`: too much of the file waits to be removed.
pub(super) fn cut(
    tx: &mut Tx,
    inode: &mut Inode,
    range: ByteRange,
    live: &mut LiveChanges,
) -> Result<(), OpError> {
    if inode.allocated == 0 {
        return Ok(());
    }
    let dead = DeadRanges::of(inode);
    if !dead.touch(tx, range)? {
        let limit = tx.extents_left();
        let found = touching(tx, inode, range, limit + 1)?;
        if found.len() <= limit {
            return found.iter().try_for_each(|extent| trim(tx, inode, extent, range, live));
        }
    }
    dead.add(tx, inode, range, live)
}

/// Takes a range out of an extent.
fn trim(
    tx: &mut Tx,
    inode: &mut Inode,
    extent: &Extent,
    range: ByteRange,
    live: &mut LiveChanges,
) -> Result<(), OpError> {
    let Some(gone) = extent.part(range) else { return Ok(()) };
    live.remove(extent.chunk, gone.length);
    inode.allocated = inode.allocated.saturating_sub(gone.length);
    let whole = ByteRange::between(extent.offset, extent.end());
    let (head, tail) = whole.map_or((None, None), |whole| whole.without(range));
    match head.and_then(|head| extent.part(head)) {
        Some(head) => tx.put(head),
        None => tx.delete(extent.key()),
    }
    match tail.and_then(|tail| extent.part(tail)) {
        Some(tail) => dead::place(tx, inode, tail, live),
        None => Ok(()),
    }
}

/// Puts an extent where nothing is. The caller puts the inode.
///
/// `Later`: too much of the file waits to be removed.
pub(super) fn insert(
    tx: &mut Tx,
    inode: &mut Inode,
    extent: Extent,
    live: &mut LiveChanges,
) -> Result<(), OpError> {
    live.add(extent.chunk, extent.length);
    inode.allocated += extent.length;
    dead::place(tx, inode, extent, live)
}

/// Removes up to `limit` extents that start in `[start, end)`, whether they are part of the file or not; returns
/// how many there were, and where the last of them starts.
fn remove(
    tx: &mut Tx,
    inode: &mut Inode,
    (start, end): (u64, u64),
    limit: usize,
    live: &mut LiveChanges,
) -> Result<(usize, Option<u64>), OpError> {
    let extents: Vec<Extent> = tx.list(&starting_in(inode.id, start, end).limit(limit))?;
    for extent in &extents {
        live.remove(extent.chunk, extent.length);
        inode.allocated = inode.allocated.saturating_sub(extent.length);
        tx.delete(extent.key());
    }
    Ok((extents.len(), extents.last().map(|extent| extent.offset)))
}

/// Removes up to `limit` extents of a file that nobody can reach any more, and with the last of them its dead
/// ranges. Whether none is left.
pub(super) fn remove_first(
    tx: &mut Tx,
    inode: &mut Inode,
    limit: usize,
    live: &mut LiveChanges,
) -> Result<bool, OpError> {
    if inode.allocated > 0 && remove(tx, inode, (0, FILE_SIZE_MAX), limit, live)?.0 >= limit {
        return Ok(false);
    }
    dead::forget(tx, inode, limit)
}

#[cfg(test)]
mod tests;
