//! What a disk's store knows in memory: index, segments, and what waits for the syncer.
//!
//! Plain data behind the one mutex of [`super::Shared`]; nothing here touches the disk. Lock order:
//! this mutex is taken last and never held during a call that may block on the device, except for the
//! creation of a segment when no spare one is ready.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use cairn_proto::ChunkId;
use cairn_runtime::clock::Instant;
use cairn_runtime::disk::{Disk, DiskFile};

use super::error::StoreError;
use super::health::Latencies;
use super::record::{ALIGN, record_len};
use super::segment_path;

/// Called once a chunk is durable, or never will be. Runs on the syncer thread: must not block.
pub(crate) type SyncCallback = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// An open segment file.
pub(super) struct SegmentFile {
    pub(super) id: u32,
    pub(super) salt: u64,
    pub(super) file: Arc<dyn DiskFile>,
    scattered: OnceLock<Arc<dyn DiskFile>>,
}

impl SegmentFile {
    pub(super) fn new(id: u32, salt: u64, file: Arc<dyn DiskFile>) -> Self {
        Self { id, salt, file, scattered: OnceLock::new() }
    }

    /// The same file, without the kernel's read-ahead: in a chunk that is read from one end to the other it would
    /// reach far into the next one, which others read, or nobody.
    pub(super) fn scattered(&self, disk: &dyn Disk) -> &Arc<dyn DiskFile> {
        self.scattered.get_or_init(|| {
            let opened = disk.open(&segment_path(self.id));
            let advised = opened.and_then(|file| file.expect_scattered_reads().map(|()| file));
            // Deleted meanwhile, or too many files are open: then with read-ahead.
            advised.unwrap_or_else(|_| Arc::clone(&self.file))
        })
    }
}

/// Where a chunk lies. 16 bytes, so that a million chunks take some 40 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) segment: u32,
    /// In units of 4 KiB.
    page: u32,
    pub(super) length: u32,
    pub(super) synced: bool,
    pub(super) quarantined: bool,
    /// Deleted, and can still be brought back.
    pub(super) trash: bool,
}

impl Entry {
    /// `None` when the offset is no multiple of 4 KiB or past 16 TiB.
    pub(super) fn new(segment: u32, offset: u64, length: u32) -> Option<Self> {
        let page = u32::try_from(offset / ALIGN).ok().filter(|_| offset.is_multiple_of(ALIGN))?;
        Some(Self { segment, page, length, synced: false, quarantined: false, trash: false })
    }

    pub(super) fn offset(self) -> u64 {
        u64::from(self.page) * ALIGN
    }

    pub(super) fn record_len(self) -> u64 {
        record_len(self.length)
    }

    /// Of two copies of a chunk the one with the lower rank counts.
    pub(super) fn rank(self) -> u8 {
        if self.quarantined { 2 } else { u8::from(self.trash) }
    }

    /// Whether both are the same copy.
    pub(super) fn same_place(self, other: Self) -> bool {
        (self.segment, self.page) == (other.segment, other.page)
    }
}

/// Where the footer of a sealed segment lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct FooterPlace {
    pub(super) offset: u64,
    pub(super) count: u32,
}

pub(super) struct SegmentState {
    pub(super) file: Arc<SegmentFile>,
    /// Where the next record goes.
    pub(super) tail: u64,
    /// Bytes that are preallocated.
    pub(super) allocated: u64,
    /// Offsets of records that are being written.
    pub(super) pending: BTreeSet<u64>,
    /// Chunks completed here, in that order, until all are synced and the segment is sealed.
    pub(super) records: Vec<ChunkId>,
    /// How many of `records` are synced.
    pub(super) synced: usize,
    /// All records before this offset are complete and synced.
    pub(super) watermark: u64,
    /// Records in use, the quarantined ones included.
    pub(super) live: u32,
    /// The directory entry is not durable yet.
    pub(super) is_new: bool,
    /// Takes no more records; is sealed when the last pending one ends.
    pub(super) retired: bool,
    pub(super) footer: Option<FooterPlace>,
    /// Seconds of the syncer's clock since something was written that is not synced.
    pub(super) dirty_ticks: u32,
}

impl SegmentState {
    pub(super) fn new(file: Arc<SegmentFile>, allocated: u64) -> Self {
        Self {
            file,
            tail: ALIGN,
            allocated,
            pending: BTreeSet::new(),
            records: Vec::new(),
            synced: 0,
            watermark: ALIGN,
            live: 0,
            is_new: true,
            retired: false,
            footer: None,
            dirty_ticks: 0,
        }
    }

    /// Bytes for more records, room for the footer set aside.
    pub(super) fn room(&self) -> u64 {
        let count = self.records.len() + self.pending.len() + 1;
        self.allocated.saturating_sub(self.tail).saturating_sub(super::record::footer_len(count))
    }

    /// Where a sync that starts now would move the watermark.
    pub(super) fn next_watermark(&self) -> u64 {
        self.pending.first().copied().unwrap_or(self.tail)
    }

    /// Whether completed records wait to be synced.
    pub(super) fn is_dirty(&self) -> bool {
        self.synced < self.records.len()
    }
}

/// All that one disk's store knows.
#[derive(Default)]
pub(super) struct State {
    /// Ordered, so that inventories and the scrub walk it by ranges of ids.
    pub(super) index: BTreeMap<u64, Entry>,
    pub(super) segments: BTreeMap<u32, SegmentState>,
    pub(super) active: Option<u32>,
    /// Made ahead of time by the syncer.
    pub(super) spare: Option<SegmentState>,
    pub(super) next_segment: u32,
    /// Chunks that are being written.
    pub(super) writing: HashSet<u64>,
    /// Why no new chunks are taken.
    pub(super) fault: Option<String>,
    /// The disk can not be read: what it holds does not count.
    pub(super) lost: bool,
    /// Until when writes are taken for ones that wait for the device.
    pub(super) held_up_until: Option<Instant>,
    /// It is being found out whether it can.
    pub(super) undecided: bool,
    /// Checks in a row that went well or not.
    pub(super) good_checks: u32,
    pub(super) bad_checks: u32,
    /// The last reads that failed.
    pub(super) read_faults: VecDeque<Instant>,
    pub(super) latency: Latencies,
    /// Since when the disk is slow.
    pub(super) slow_since: Option<Instant>,
    pub(super) quarantined: u64,
    /// Bytes of the records in use, those in the trash left out.
    pub(super) used: u64,
    /// Bytes and number of the records in the trash.
    pub(super) trash_bytes: u64,
    pub(super) trashed: u64,
    /// What is in the trash since when, oldest first.
    pub(super) trash: VecDeque<(Instant, ChunkId)>,
    pub(super) sync_queue: Vec<(u32, SyncCallback)>,
    pub(super) seal_queue: Vec<u32>,
    pub(super) stop: bool,
}

impl State {
    /// Makes a chunk visible; an older copy (only a quarantined one can exist) stays on the disk.
    pub(super) fn insert(&mut self, chunk: ChunkId, entry: Entry) {
        if let Some(segment) = self.segments.get_mut(&entry.segment) {
            segment.live += 1;
        }
        self.count(entry);
        if let Some(old) = self.index.insert(chunk.get(), entry)
            && old.trash
        {
            // Replaced by a copy; its record stays until its segment goes.
            self.uncount(old);
            self.used += old.record_len();
        }
    }

    fn count(&mut self, entry: Entry) {
        if entry.trash {
            self.trash_bytes += entry.record_len();
            self.trashed += 1;
        } else {
            self.used += entry.record_len();
        }
    }

    fn uncount(&mut self, entry: Entry) {
        if entry.trash {
            self.trash_bytes = self.trash_bytes.saturating_sub(entry.record_len());
            self.trashed = self.trashed.saturating_sub(1);
        } else {
            self.used = self.used.saturating_sub(entry.record_len());
        }
    }

    /// Moves a chunk into the trash or out of it.
    pub(super) fn set_trash(&mut self, chunk: ChunkId, trash: bool) {
        let Some(mut entry) = self.index.get(&chunk.get()).copied() else { return };
        self.uncount(entry);
        entry.trash = trash;
        self.count(entry);
        self.index.insert(chunk.get(), entry);
    }

    /// Takes a chunk out of the index and out of the count of its segment.
    pub(super) fn remove(&mut self, chunk: ChunkId) -> Option<Entry> {
        let entry = self.index.remove(&chunk.get())?;
        if let Some(segment) = self.segments.get_mut(&entry.segment) {
            segment.live = segment.live.saturating_sub(1);
        }
        self.uncount(entry);
        Some(entry)
    }

    /// Sets a record aside; false when it was already, or is no longer this copy.
    pub(super) fn quarantine(&mut self, chunk: ChunkId, entry: Entry) -> bool {
        match self.index.get_mut(&chunk.get()) {
            Some(found) if found.same_place(entry) && !found.quarantined => {
                found.quarantined = true;
                self.quarantined += 1;
                true
            }
            _ => false,
        }
    }

    /// Queues a segment for sealing when it is retired and nothing is being written to it.
    pub(super) fn seal_if_done(&mut self, id: u32) {
        let done = self
            .segments
            .get(&id)
            .is_some_and(|segment| segment.retired && segment.footer.is_none() && segment.pending.is_empty());
        if done && !self.seal_queue.contains(&id) {
            self.seal_queue.push(id);
        }
    }
}
