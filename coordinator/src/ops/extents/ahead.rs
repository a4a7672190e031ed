//! Extents that a commit reads ahead of the runs that it replaces, so that many runs close to one another cost few
//! looks into the store, and runs far apart no more rows than they need.

use std::collections::VecDeque;

use cairn_proto::ByteRange;

use super::{Extent, Inode, LiveChanges, cut, touching, trim};
use crate::error::OpError;
use crate::executor::Tx;

/// Extents that one look reads: at first, and at least and most.
const PAGE: usize = 8;
const PAGE_MIN: usize = 2;
const PAGE_MAX: usize = 512;

/// The extents of one file in front of the run that comes next. Runs come in order, and do not overlap.
#[derive(Debug)]
pub(crate) struct Ahead {
    found: VecDeque<Extent>,
    /// All extents that start before this have been read.
    known: u64,
    /// No run ends behind this.
    end: u64,
    page: usize,
    /// Runs since the last look.
    served: usize,
}

impl Ahead {
    /// For runs that end at `end` at the latest.
    pub(crate) fn new(end: u64) -> Self {
        Self { found: VecDeque::new(), known: 0, end, page: PAGE, served: 0 }
    }

    /// Makes a hole of the next run, as [`cut`] does.
    pub(crate) fn cut(
        &mut self,
        tx: &mut Tx,
        inode: &mut Inode,
        run: ByteRange,
        live: &mut LiveChanges,
    ) -> Result<(), OpError> {
        if inode.allocated == 0 || inode.dead_ranges() > 0 {
            self.known = 0;
            return cut(tx, inode, run, live);
        }
        if self.known < run.end() {
            self.look(tx, inode, run)?;
        }
        if self.known < run.end() {
            // The run is longer than a page.
            self.known = 0;
            return cut(tx, inode, run, live);
        }
        self.served += 1;
        while let Some(extent) = self.found.pop_front() {
            if extent.offset >= run.end() {
                self.found.push_front(extent);
                break;
            }
            trim(tx, inode, &extent, run, live)?;
            // What reaches out of this run may reach into the next one.
            let tail = ByteRange::between(run.end(), extent.end()).and_then(|tail| extent.part(tail));
            if let Some(tail) = tail {
                self.found.push_front(tail);
                break;
            }
        }
        Ok(())
    }

    fn look(&mut self, tx: &mut Tx, inode: &Inode, run: ByteRange) -> Result<(), OpError> {
        self.page = match self.served >= self.page / 2 {
            true => (self.page * 2).min(PAGE_MAX),
            false => (self.page / 2).max(PAGE_MIN),
        };
        self.served = 0;
        let range = ByteRange::between(run.start(), self.end.max(run.end())).unwrap_or(run);
        self.found = touching(tx, inode, range, self.page)?.into();
        self.known = match self.found.back() {
            Some(last) if self.found.len() >= self.page => last.end(),
            _ => range.end(),
        };
        Ok(())
    }
}
