//! Dead ranges: how a file loses millions of extents in one commit.
//!
//! An extent whose offset lies in a dead range of its file is no part of the file: nobody reads it, and nothing
//! else remembers it. A worker removes such rows step by step ([`reap`]). Until then they count in `allocated`
//! and in the live bytes of their chunks, so that every count agrees with the rows in every commit.
//!
//! Only the *offset* of a row decides. So an extent that is part of the file may reach over dead ones, and to put
//! one where dead ones are takes two rows: the key of the new extent is taken out of the range ([`place`]).
//! The dead ranges of a file neither overlap nor touch; how many there are stands in its inode.

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ByteRange, InodeId};

use super::{Extent, Inode, LiveChanges, Rows, before, last_before, remove, trim};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{DeadRange, Key, Scan, StoreError, Table};

/// Dead ranges of one file. Whoever would need more has to wait until some are removed, and they are removed
/// first; one job reads and joins all of them.
pub(in crate::ops) const RANGES_MAX: u64 = 4096;
/// Dead ranges that one step of the worker looks at.
const REAP_RANGES: usize = 256;

/// The scan for the dead ranges of a file.
fn all_of(inode: InodeId) -> Scan {
    Scan::between(Key::DeadRange(inode, 0), Key::DeadRange(inode, FILE_SIZE_MAX))
}

/// The scan for the dead range that starts last at or before `offset`.
pub(super) fn up_to(inode: InodeId, offset: u64) -> Scan {
    Scan::between(Key::DeadRange(inode, 0), Key::DeadRange(inode, offset)).reverse().limit(1)
}

/// The dead ranges of a file, looked up one by one: a change is about few of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeadRanges {
    pub(super) inode: InodeId,
    are_any: bool,
}

impl DeadRanges {
    pub(super) fn of(inode: &Inode) -> Self {
        Self { inode: inode.id, are_any: inode.dead_ranges() > 0 }
    }

    /// The one that holds `offset`.
    pub(super) fn around(self, rows: &mut impl Rows, offset: u64) -> Result<Option<DeadRange>, StoreError> {
        if !self.are_any {
            return Ok(None);
        }
        let last = rows.rows::<DeadRange>(&up_to(self.inode, offset))?.pop();
        Ok(last.filter(|range| offset < range.end))
    }

    /// Whether one of them lies in a range or at its edge.
    pub(super) fn touch(self, rows: &mut impl Rows, range: ByteRange) -> Result<bool, StoreError> {
        if !self.are_any {
            return Ok(false);
        }
        let last = rows.rows::<DeadRange>(&up_to(self.inode, range.end()))?.pop();
        Ok(last.is_some_and(|dead| dead.end >= range.start()))
    }

    /// The first part of `[start, end)` that none of them holds.
    pub(super) fn next_gap(
        self,
        rows: &mut impl Rows,
        mut start: u64,
        end: u64,
    ) -> Result<Option<(u64, u64)>, StoreError> {
        if let Some(dead) = self.around(rows, start)? {
            // They do not touch, so that nothing is dead here.
            start = dead.end;
        }
        if start >= end {
            return Ok(None);
        }
        if !self.are_any {
            return Ok(Some((start, end)));
        }
        let next = Scan::between(Key::DeadRange(self.inode, start), Key::DeadRange(self.inode, end - 1));
        let next = rows.rows::<DeadRange>(&next.limit(1))?.pop();
        Ok(Some((start, next.map_or(end, |dead| dead.start))))
    }

    /// Makes a hole in a file: all extents that start in `range` are dead, and others are trimmed.
    pub(super) fn add(
        self,
        tx: &mut Tx,
        inode: &mut Inode,
        range: ByteRange,
        live: &mut LiveChanges,
    ) -> Result<(), OpError> {
        let reaching_in = match range.start().checked_sub(1) {
            Some(before) => last_before(tx, self, before)?,
            None => None,
        };
        let reaching_in = reaching_in.filter(|extent| extent.end() > range.start());
        let last = last_before(tx, self, range.end() - 1)?;
        let reaching_out = last.filter(|extent| extent.offset >= range.start() && extent.end() > range.end());
        // Behind the last row there is nothing to remove.
        let last_row = tx.list::<Extent>(&before(inode.id, range.end() - 1))?.pop();
        let end = last_row.map_or(0, |row| row.offset + 1);
        if let Some(range) = ByteRange::between(range.start(), end.min(range.end())) {
            self.join(tx, inode, range)?;
        }
        if let Some(extent) = reaching_in {
            trim(tx, inode, &extent, range, live)?;
        }
        if let Some(extent) = reaching_out {
            split(tx, inode, &extent, range, live)?;
        }
        if inode.dead_ranges() > RANGES_MAX { Err(too_many(tx, inode)) } else { Ok(()) }
    }

    /// Makes one dead range of `range` and all that touch it.
    fn join(self, tx: &mut Tx, inode: &mut Inode, range: ByteRange) -> Result<(), OpError> {
        let mut touching: Vec<DeadRange> = Vec::new();
        if self.are_any {
            let inside = Scan::between(
                Key::DeadRange(inode.id, range.start() + 1),
                Key::DeadRange(inode.id, range.end()),
            );
            let before = tx.list::<DeadRange>(&up_to(inode.id, range.start()))?;
            touching.extend(before.into_iter().filter(|dead| dead.end >= range.start()));
            touching.extend(tx.list::<DeadRange>(&inside)?);
        }
        let start = touching.iter().map(|dead| dead.start).fold(range.start(), u64::min);
        let end = touching.iter().map(|dead| dead.end).fold(range.end(), u64::max);
        touching.iter().for_each(|dead| tx.delete(Key::DeadRange(inode.id, dead.start)));
        tx.put(DeadRange { inode: inode.id, start, end });
        inode.set_dead_ranges(inode.dead_ranges().saturating_sub(touching.len() as u64) + 1);
        Ok(())
    }
}

/// An extent that starts in `range` reaches out of it: that part becomes an extent of its own, and as many bytes
/// are in use as before.
fn split(
    tx: &mut Tx,
    inode: &mut Inode,
    extent: &Extent,
    range: ByteRange,
    live: &mut LiveChanges,
) -> Result<(), OpError> {
    let out = ByteRange::between(range.end(), extent.end()).and_then(|out| extent.part(out));
    if let Some(dead) = extent.part(range) {
        tx.put(dead);
    }
    match out {
        Some(out) => place(tx, inode, out, live),
        None => Ok(()),
    }
}

/// Puts an extent that becomes part of the file; when a dead one lies under its key, that goes.
pub(super) fn place(
    tx: &mut Tx,
    inode: &mut Inode,
    extent: Extent,
    live: &mut LiveChanges,
) -> Result<(), OpError> {
    let at = extent.offset;
    if let Some(dead) = DeadRanges::of(inode).around(tx, at)? {
        if let Some(old) = tx.find::<Extent>(&extent.key())? {
            live.remove(old.chunk, old.length);
            inode.allocated = inode.allocated.saturating_sub(old.length);
        }
        tx.delete(Key::DeadRange(inode.id, dead.start));
        let parts =
            [(dead.start, at), (at + 1, dead.end)].map(|(start, end)| DeadRange { start, end, ..dead });
        let parts = parts.into_iter().filter(|part| part.start < part.end);
        let mut count = inode.dead_ranges() - 1;
        for part in parts {
            tx.put(part);
            count += 1;
        }
        inode.set_dead_ranges(count);
        if count > RANGES_MAX {
            return Err(too_many(tx, inode));
        }
    }
    tx.put(extent);
    Ok(())
}

fn too_many(tx: &mut Tx, inode: &Inode) -> OpError {
    tx.steps.first = Some(inode.id);
    OpError::Later(format!("inode {} has too many pieces that wait to be removed", inode.id))
}

/// Drops the dead ranges of a file whose extents are all gone, at most `limit`. Whether none is left.
pub(super) fn forget(tx: &mut Tx, inode: &mut Inode, limit: usize) -> Result<bool, OpError> {
    if inode.dead_ranges() == 0 {
        return Ok(true);
    }
    let ranges: Vec<DeadRange> = tx.list(&all_of(inode.id).limit(limit))?;
    ranges.iter().for_each(|range| tx.delete(Key::DeadRange(range.inode, range.start)));
    inode.set_dead_ranges(inode.dead_ranges().saturating_sub(ranges.len() as u64));
    Ok(ranges.len() < limit)
}

/// Removes a bounded number of dead extents, and the ranges that hold none any more. Whether there is more to do.
pub(in crate::ops) fn reap(tx: &mut Tx) -> Result<bool, OpError> {
    let mut ranges: Vec<DeadRange> = match tx.steps.first.take() {
        Some(id) => tx.list(&all_of(id).limit(REAP_RANGES))?,
        None => Vec::new(),
    };
    if ranges.is_empty() {
        ranges = tx.list(&Scan::all(Table::DeadRange).limit(REAP_RANGES))?;
    }
    let mut left = tx.extents_left();
    let is_last = ranges.len() < REAP_RANGES;
    let mut live = LiveChanges::default();
    let mut done = 0;
    for of_file in ranges.chunk_by(|one, next| one.inode == next.inode) {
        done += reap_file(tx, of_file, &mut left, &mut live)?;
        if left == 0 {
            break;
        }
    }
    let more = !is_last || done < ranges.len();
    live.apply(tx)?;
    Ok(more)
}

/// Removes up to `left` extents from dead ranges of one file. How many ranges are done.
fn reap_file(
    tx: &mut Tx,
    ranges: &[DeadRange],
    left: &mut usize,
    live: &mut LiveChanges,
) -> Result<usize, OpError> {
    let Some(first) = ranges.first() else { return Ok(0) };
    let Some(mut inode) = tx.find::<Inode>(&Key::Inode(first.inode))? else {
        // Can not be: a file takes its ranges with it.
        ranges.iter().for_each(|range| tx.delete(Key::DeadRange(range.inode, range.start)));
        return Ok(ranges.len());
    };
    let mut done = 0;
    for range in ranges {
        if *left == 0 {
            break;
        }
        let (removed, last) = remove(tx, &mut inode, (range.start, range.end), *left, live)?;
        tx.delete(Key::DeadRange(range.inode, range.start));
        let rest = last.map(|last| last + 1).filter(|&start| removed >= *left && start < range.end);
        match rest {
            Some(start) => tx.put(DeadRange { start, ..range.clone() }),
            None => {
                inode.set_dead_ranges(inode.dead_ranges().saturating_sub(1));
                done += 1;
            }
        }
        *left -= removed;
    }
    // Its content is what it was, and so is its version.
    tx.put(inode);
    Ok(done)
}
