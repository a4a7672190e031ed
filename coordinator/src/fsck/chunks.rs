//! Extents and chunks: every extent lies in its file and in its chunk, every chunk counts what refers to it.

use std::collections::BTreeSet;

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ChunkId, InodeId, ReplicaSetId};

use super::report::{Finding, Report};
use super::{Abort, Mend, PAGE};
use crate::ops::mend::Delta;
use crate::store::{
    Chunk, Count, DeadRange, Extent, Fault, Inode, Key, Kind, Reader, ReplicaSet, Scan, Table, list,
};

/// Chunk ids whose extents are gathered in one run over the extents: 12 bytes each.
const WINDOW: u64 = 4 << 20;
/// Chunks without good copies that are remembered, to name their files.
pub(super) const LOST_MAX: usize = 1 << 20;

/// Returns the chunks that extents name and that do not exist.
pub(super) fn check(reader: &dyn Reader, report: &mut Report) -> Result<BTreeSet<ChunkId>, Abort> {
    check_files(reader, report)?;
    let sets: BTreeSet<ReplicaSetId> =
        list::<ReplicaSet>(reader, &Scan::all(Table::ReplicaSet))?.into_iter().map(|set| set.id).collect();
    let next = crate::store::count(reader, Count::NextChunk)?;
    let chunks = crate::store::count(reader, Count::Chunks)?;
    report.begin("extents and chunks", chunks)?;
    let mut check = Chunks { reader, sets, next, lost: BTreeSet::new(), rows: 0, bytes: 0, faults: 0 };
    let mut first = 1;
    loop {
        let more = check.window(report, first)?;
        match more {
            Some(next) => first = next,
            None => break,
        }
    }
    let Chunks { lost, rows, bytes, faults, .. } = check;
    report.summary.chunks = rows;
    for (name, found) in [(Count::Chunks, rows), (Count::Bytes, bytes), (Count::Faults, faults)] {
        let counted = crate::store::count(reader, name)?;
        if counted != found {
            let text = format!("the counter {name:?} says {counted}, there are {found}");
            report.found_with(
                Finding::error("COUNTER", text),
                Mend::Counter(name, Delta::between(counted, found)),
            )?;
        }
    }
    Ok(lost)
}

/// Extents of each file, merged with the inodes.
fn check_files(reader: &dyn Reader, report: &mut Report) -> Result<(), Abort> {
    report.begin("extents of files", crate::store::count(reader, Count::Inodes)?)?;
    let mut extents = Rows::<Extent>::new(Table::Extent);
    let mut dead = Rows::<DeadRange>::new(Table::DeadRange);
    let mut last: Option<Key> = None;
    loop {
        let page: Vec<Inode> = list(reader, &Scan::behind(Table::Inode, last).limit(PAGE))?;
        let Some(end) = page.last() else { break };
        last = Some(Key::Inode(end.id));
        report.step(page.len() as u64)?;
        for inode in page {
            while let Some(extent) = extents.next_if(reader, |extent| extent.inode < inode.id)? {
                no_inode(report, &extent)?;
            }
            let dead = check_dead(reader, report, &inode, &mut dead)?;
            check_file(reader, report, &inode, &mut extents, &dead)?;
        }
    }
    while let Some(range) = dead.next_if(reader, |_| true)? {
        dead_without_file(report, &range)?;
    }
    while let Some(extent) = extents.next_if(reader, |_| true)? {
        no_inode(report, &extent)?;
    }
    report.summary.extents = extents.seen;
    Ok(())
}

fn no_inode(report: &mut Report, extent: &Extent) -> Result<(), Abort> {
    let text = format!("an extent at {} of inode {}, which does not exist", extent.offset, extent.inode);
    report.found(Finding::error("EXTENT_WITHOUT_INODE", text).of_inode(extent.inode).of_chunk(extent.chunk))
}

/// The dead ranges of a file; they are in order, apart, and as many as the inode says.
fn check_dead(
    reader: &dyn Reader,
    report: &mut Report,
    inode: &Inode,
    ranges: &mut Rows<DeadRange>,
) -> Result<Vec<DeadRange>, Abort> {
    while let Some(range) = ranges.next_if(reader, |range| range.inode < inode.id)? {
        dead_without_file(report, &range)?;
    }
    let mut found: Vec<DeadRange> = Vec::new();
    while let Some(range) = ranges.next_if(reader, |range| range.inode == inode.id)? {
        if inode.kind != Kind::File {
            dead_without_file(report, &range)?;
            continue;
        }
        if range.end <= range.start || found.last().is_some_and(|last| range.start < last.end) {
            let text = format!("the dead range at {} of inode {} overlaps another", range.start, inode.id);
            report.found(Finding::error("DEAD_RANGE", text).of_inode(inode.id))?;
        }
        found.push(range);
    }
    if found.len() as u64 != inode.dead_ranges() {
        let counted = inode.dead_ranges();
        let text = format!("inode {} counts {counted} dead ranges, there are {}", inode.id, found.len());
        let mend = Mend::DeadRanges(inode.id, Delta::between(counted, found.len() as u64));
        report.found_with(Finding::error("DEAD_RANGES", text).of_inode(inode.id), mend)?;
    }
    Ok(found)
}

fn dead_without_file(report: &mut Report, range: &DeadRange) -> Result<(), Abort> {
    let text = format!("a dead range at {} of inode {}, which is no file", range.start, range.inode);
    let finding = Finding::error("DEAD_RANGE_WITHOUT_FILE", text).of_inode(range.inode);
    report.found_with(finding, Mend::DropDeadRange(range.inode, range.start))
}

fn check_file(
    reader: &dyn Reader,
    report: &mut Report,
    inode: &Inode,
    extents: &mut Rows<Extent>,
    dead: &[DeadRange],
) -> Result<(), Abort> {
    let (mut covered, mut allocated) = (0, 0u64);
    let mut dead = dead.iter().peekable();
    while let Some(extent) = extents.next_if(reader, |extent| extent.inode == inode.id)? {
        let end = extent.offset.saturating_add(extent.length);
        while dead.next_if(|range| range.end <= extent.offset).is_some() {}
        if dead.peek().is_some_and(|range| range.start <= extent.offset) {
            // No part of the file any more; its bytes count until it is removed.
            allocated = allocated.saturating_add(extent.length);
            continue;
        }
        let wrong = if inode.kind != Kind::File {
            Some("belongs to an inode that is no file")
        } else if extent.length == 0 || end > FILE_SIZE_MAX {
            Some("has an impossible length")
        } else if extent.offset < covered {
            Some("overlaps the one before it")
        } else if end > inode.size {
            Some("reaches past the end of the file")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let text = format!("the extent at {} of inode {} {wrong}", extent.offset, inode.id);
            report.found(Finding::error("EXTENT", text).of_inode(inode.id).of_chunk(extent.chunk))?;
        }
        covered = covered.max(end);
        allocated = allocated.saturating_add(extent.length);
    }
    if allocated != inode.allocated {
        let text = format!("inode {} counts {} bytes, extents {allocated}", inode.id, inode.allocated);
        let mend = Mend::Allocated(inode.id, Delta::between(inode.allocated, allocated));
        report.found_with(Finding::error("ALLOCATED", text).of_inode(inode.id), mend)?;
    }
    Ok(())
}

struct Chunks<'a> {
    reader: &'a dyn Reader,
    sets: BTreeSet<ReplicaSetId>,
    next: u64,
    lost: BTreeSet<ChunkId>,
    rows: u64,
    bytes: u64,
    faults: u64,
}

impl Chunks<'_> {
    /// Looks at the ids from `first` on; returns where the next window begins.
    fn window(&mut self, report: &mut Report, first: u64) -> Result<Option<u64>, Abort> {
        let last = first.saturating_add(WINDOW - 1);
        let width =
            usize::try_from(WINDOW.min(self.next.saturating_sub(first).saturating_add(1))).unwrap_or(0);
        // By id: bytes that extents refer to, and how far they reach into the chunk.
        let (mut live, mut reach) = (vec![0u64; width], vec![0u32; width]);
        let mut beyond = None;
        let mut extents = Rows::<Extent>::new(Table::Extent);
        while let Some(extent) = extents.next_if(self.reader, |_| true)? {
            let id = extent.chunk.get();
            if id < first {
                continue;
            }
            let at = usize::try_from(id - first).unwrap_or(usize::MAX);
            if at >= width {
                if id > last {
                    beyond = Some(beyond.map_or(id, |other: u64| other.min(id)));
                } else {
                    // Past all ids that were ever granted.
                    self.no_chunk(report, extent.chunk, extent.inode)?;
                }
                continue;
            }
            live[at] = live[at].saturating_add(extent.length);
            let end = u32::try_from(extent.chunk_offset.saturating_add(extent.length)).unwrap_or(u32::MAX);
            reach[at] = reach[at].max(end);
        }
        let more = self.rows(report, (first, last), &mut live, &reach)?;
        for (id, live) in (first..).zip(&live).filter(|(_, live)| **live > 0) {
            if let Ok(chunk) = ChunkId::new(id) {
                let text = format!("{live} bytes of files lie in chunk {id}, which has no row");
                report.found(Finding::loss("CHUNK_WITHOUT_ROW", text).of_chunk(chunk))?;
                self.remember(chunk);
            }
        }
        Ok(match (more, beyond) {
            (Some(row), Some(extent)) => Some(row.min(extent)),
            (more, beyond) => more.or(beyond),
        })
    }

    /// The rows of a window; takes what they account for out of `live`. Returns the next row's id.
    fn rows(
        &mut self,
        report: &mut Report,
        (first, last): (u64, u64),
        live: &mut [u64],
        reach: &[u32],
    ) -> Result<Option<u64>, Abort> {
        let mut faults = Rows::<Fault>::behind(first.checked_sub(1).and_then(|id| ChunkId::new(id).ok()));
        let mut after = first.checked_sub(1).and_then(|id| ChunkId::new(id).ok()).map(Key::Chunk);
        loop {
            let page: Vec<Chunk> = list(self.reader, &Scan::behind(Table::Chunk, after).limit(PAGE))?;
            let Some(end) = page.last() else { break };
            after = Some(Key::Chunk(end.id));
            report.step(page.len() as u64)?;
            for row in page {
                if row.id.get() > last {
                    self.stray_faults(report, &mut faults, row.id)?;
                    return Ok(Some(row.id.get()));
                }
                self.stray_faults(report, &mut faults, row.id)?;
                let mut counted = 0;
                while faults.next_if(self.reader, |fault| fault.chunk == row.id)?.is_some() {
                    counted += 1;
                }
                self.faults += u64::from(counted);
                let at = usize::try_from(row.id.get() - first).unwrap_or(usize::MAX);
                let found = (live.get(at).copied().unwrap_or(0), reach.get(at).copied().unwrap_or(0));
                if let Some(live) = live.get_mut(at) {
                    *live = 0;
                }
                self.check_row(report, &row, found, counted)?;
            }
        }
        while let Some(fault) = faults.next_if(self.reader, |_| true)? {
            self.stray_fault(report, &fault)?;
        }
        Ok(None)
    }

    fn check_row(
        &mut self,
        report: &mut Report,
        row: &Chunk,
        (live, reach): (u64, u32),
        faults: u32,
    ) -> Result<(), Abort> {
        let id = row.id;
        self.rows += 1;
        self.bytes = self.bytes.saturating_add(live);
        if row.live != live {
            let text = format!("chunk {id} counts {} bytes in use, extents {live}", row.live);
            let mend = Mend::Live(id, Delta::between(row.live, live));
            report.found_with(Finding::error("LIVE_BYTES", text).of_chunk(id), mend)?;
        }
        if u64::from(reach) > row.length {
            let text = format!("extents reach {reach} bytes into chunk {id}, which has {}", row.length);
            report.found(Finding::loss("CHUNK_TOO_SHORT", text).of_chunk(id))?;
            self.remember(id);
        }
        if row.faults != faults {
            let text = format!("chunk {id} counts {} bad copies, there are rows for {faults}", row.faults);
            let mend = Mend::Faults(id, Delta::between(row.faults.into(), faults.into()));
            report.found_with(Finding::error("FAULTS", text).of_chunk(id), mend)?;
        }
        if !self.sets.contains(&row.replica_set) {
            let text = format!("chunk {id} lies on set {}, which does not exist", row.replica_set);
            report.found(Finding::loss("CHUNK_WITHOUT_SET", text).of_chunk(id))?;
            self.remember(id);
        }
        if id.get() >= self.next {
            let text = format!("chunk {id} was never granted; the next one is {}", self.next);
            report.found_with(Finding::error("NEXT_ID", text).of_chunk(id), Mend::NextChunk(id))?;
        }
        Ok(())
    }

    fn no_chunk(&mut self, report: &mut Report, chunk: ChunkId, inode: InodeId) -> Result<(), Abort> {
        if self.reader.get(&Key::Chunk(chunk))?.is_some() {
            return Ok(()); // its row is looked at, and says so
        }
        let text = format!("inode {inode} refers to chunk {chunk}, which has no row");
        report.found(Finding::loss("CHUNK_WITHOUT_ROW", text).of_chunk(chunk).of_inode(inode))?;
        self.remember(chunk);
        Ok(())
    }

    fn remember(&mut self, chunk: ChunkId) {
        if self.lost.len() < LOST_MAX {
            self.lost.insert(chunk);
        }
    }

    /// Faults of chunks before `chunk` that have no row.
    fn stray_faults(
        &mut self,
        report: &mut Report,
        faults: &mut Rows<Fault>,
        chunk: ChunkId,
    ) -> Result<(), Abort> {
        while let Some(fault) = faults.next_if(self.reader, |fault| fault.chunk < chunk)? {
            self.stray_fault(report, &fault)?;
        }
        Ok(())
    }

    fn stray_fault(&mut self, report: &mut Report, fault: &Fault) -> Result<(), Abort> {
        self.faults += 1;
        let text = format!("a bad copy of chunk {} is noted, which has no row", fault.chunk);
        report.found_with(
            Finding::error("FAULT_WITHOUT_CHUNK", text).of_chunk(fault.chunk),
            Mend::DropFault(fault.chunk, fault.node),
        )
    }
}

/// The rows of a table one after another, read in pages.
pub(super) struct Rows<R> {
    table: Table,
    last: Option<Key>,
    page: std::collections::VecDeque<R>,
    ended: bool,
    pub(super) seen: u64,
}

impl Rows<Fault> {
    /// Faults of chunks behind one.
    fn behind(chunk: Option<ChunkId>) -> Self {
        let max = cairn_proto::NodeId::from_uuid(uuid::Uuid::max());
        Self { last: chunk.map(|chunk| Key::Fault(chunk, max)), ..Self::new(Table::Fault) }
    }
}

impl<R: crate::store::Record + Clone> Rows<R> {
    pub(super) fn new(table: Table) -> Self {
        Self { table, last: None, page: std::collections::VecDeque::new(), ended: false, seen: 0 }
    }

    /// The next row, when `wanted` says so of it.
    pub(super) fn next_if(
        &mut self,
        reader: &dyn Reader,
        wanted: impl FnOnce(&R) -> bool,
    ) -> Result<Option<R>, Abort> {
        if self.page.is_empty() && !self.ended {
            let rows = reader.scan(&Scan::behind(self.table, self.last.clone()).limit(PAGE))?;
            match rows.last() {
                Some(last) => self.last = Some(last.key()),
                None => self.ended = true,
            }
            self.page.extend(rows.into_iter().filter_map(R::from_row));
        }
        let found = match self.page.front() {
            Some(row) if wanted(row) => self.page.pop_front(),
            _ => None,
        };
        self.seen += u64::from(found.is_some());
        Ok(found)
    }
}
