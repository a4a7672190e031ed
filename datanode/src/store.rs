//! The chunk store of one disk: append-only segment files, an index in memory, one thread that
//! groups `fdatasync`, and a few for what else blocks, so that no disk waits for another.
//!
//! Sits below the service and the replication; above [`cairn_runtime::disk`]. Invariants:
//! - A chunk is visible only when all its bytes and checksums are written; bytes are never returned
//!   unverified, and what fails verification is set aside for good.
//! - Space is reserved (and preallocated) before the first byte, so a full disk refuses chunks and
//!   damages none.
//! - A sync is acknowledged only after `fdatasync` of the segment and, when that is new, of its
//!   directory. A failed sync is final: unsynced chunks of the segment are given up.
//! - What a start finds after a crash (see `recovery`) is a subset of what was written, never a mix.

mod deletion;
mod error;
mod health;
mod reader;
mod record;
mod recovery;
mod state;
mod syncer;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::limits::CHUNK_SIZE_MAX;
use cairn_proto::{ChunkId, ErrorKind, v1};
use cairn_runtime::disk::Disk;
use cairn_runtime::threads::{self, Pool, Repeating, Wake};
use cairn_runtime::{clock, random};
use tracing::{error, warn};

use crate::bad::BadChunks;

pub use error::StoreError;
pub(crate) use health::Recent;
pub(crate) use reader::{ChunkReader, verify_on_device};
pub(crate) use state::SyncCallback;
pub(crate) use writer::Writer;

use record::{ALIGN, SegmentHeader, footer_len, record_len};
use state::{SegmentFile, SegmentState, State};

/// The directory of the segment files.
const SEGMENTS: &str = "segments";
/// Smallest segment, and the smallest that is made when the disk is nearly full.
const SEGMENT_SIZE_MIN: u64 = 1 << 20;
/// A segment is prepared ahead of time only when the disk has room for this many more.
const SPARE_ROOM: u64 = 4;
/// Chunks that one step takes out of the trash.
const PURGED_AT_ONCE: usize = 256;

/// Threads of each disk for reads that miss the page cache, deletions and verification.
const THREADS: usize = 4;
/// Work that may wait for one of them; what is more gets `Overloaded`.
const QUEUE: usize = 256;

/// How a disk's store behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreOptions {
    /// Bytes of a segment file; a larger record gets a segment of its own size.
    pub(crate) segment_size: u64,
    /// Bytes that stay free on the disk; at most 5 % of it count.
    pub(crate) reserve: u64,
    /// Whether syncs reach the disk. Without, only a crash of the process is survived.
    pub(crate) sync: bool,
    /// How long deleted chunks can be brought back; zero: not at all.
    pub(crate) trash_time: Duration,
}

/// Why a chunk is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is new: a sound copy that is held already refuses it.
    New,
    /// A repaired copy, which takes the place of one that turned out not to be what was committed. The
    /// caller sets that one aside before it finishes the new one.
    Replacement,
}

/// What is known about a chunk without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) length: u32,
    pub(crate) synced: bool,
    pub(crate) quarantined: bool,
    pub(crate) trash: bool,
}

impl Found {
    /// Whether it is a copy that is served.
    pub(crate) fn is_sound(self) -> bool {
        !self.quarantined && !self.trash
    }

    /// Of several copies of a chunk the one with the lowest rank counts.
    pub(crate) fn rank(self) -> u8 {
        if self.quarantined { 2 } else { u8::from(self.trash) }
    }
}

/// The chunk store of one disk. Dropping it stops its thread; [`Self::close`] seals it first.
pub(crate) struct DiskStore {
    shared: Arc<Shared>,
    syncer: Mutex<Option<Repeating>>,
}

/// What writers, readers and the syncer share.
pub(crate) struct Shared {
    disk: Arc<dyn Disk>,
    /// Where it is, for messages.
    name: String,
    options: StoreOptions,
    /// Where copies that turn out bad are reported.
    bad: Arc<BadChunks>,
    state: Mutex<State>,
    /// Held while records are deleted or brought back; taken before `state`.
    changes: Mutex<()>,
    /// Runs what blocks.
    pool: Pool,
    /// Wakes the syncer.
    work: Arc<Wake>,
    /// Bytes above the reserve when last asked.
    available: AtomicU64,
    /// Whether the file system told its room when last asked.
    space_told: AtomicBool,
}

impl DiskStore {
    /// Opens the store of a disk, rebuilding the index.
    ///
    /// `Unusable`: a newer format. `Io`: the disk can not be listed or read at all.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        bad: Arc<BadChunks>,
    ) -> Result<Self, StoreError> {
        let name = disk.describe();
        let pool = Pool::start("disk", THREADS, QUEUE).map_err(|source| StoreError::Io {
            disk: name.clone(),
            doing: "starting threads",
            source,
        })?;
        let shared = Arc::new(Shared {
            disk,
            name,
            options,
            bad,
            state: Mutex::default(),
            changes: Mutex::default(),
            pool,
            work: Arc::default(),
            available: AtomicU64::new(0),
            space_told: AtomicBool::new(true),
        });
        recovery::recover(&shared)?;
        shared.refresh_space();
        let thread = threads::repeat("disk-sync", &shared.work, {
            let shared = Arc::clone(&shared);
            move |cause| syncer::step(&shared, cause)
        })
        .map_err(|source| shared.io("starting the sync thread", source))?;
        Ok(Self { shared, syncer: Mutex::new(Some(thread)) })
    }

    /// Reserves room for a chunk of `length` bytes (1 to 64 MiB) and lets it be written.
    ///
    /// `Exists`, `NoSpace`, `Faulty`, `Io`. Dropping the writer gives the room back.
    pub(crate) fn begin(
        &self,
        chunk: ChunkId,
        set: u64,
        length: u32,
        purpose: Purpose,
    ) -> Result<Writer, StoreError> {
        assert!(length > 0 && u64::from(length) <= CHUNK_SIZE_MAX, "a chunk of {length} bytes");
        // A segment may have to be made for it.
        self.shared.timed_write(|| Writer::begin(&self.shared, chunk, set, length, purpose))
    }

    /// Calls back when the chunk would survive power loss, at once when it does already. A damaged copy
    /// never does.
    pub(crate) fn sync(&self, chunk: ChunkId, done: SyncCallback) {
        let mut state = self.shared.lock();
        match state.index.get(&chunk.get()).copied() {
            Some(entry) if entry.trash => {
                drop(state);
                done(Err(StoreError::NotFound(chunk)));
            }
            Some(entry) if entry.quarantined => {
                drop(state);
                let (disk, what) = (self.shared.name.clone(), "it was set aside earlier".to_owned());
                done(Err(StoreError::Corrupt { chunk, disk, what }));
            }
            Some(entry) if !entry.synced && self.shared.options.sync => {
                state.sync_queue.push((entry.segment, done));
                drop(state);
                self.shared.work.notify_one();
            }
            found => {
                drop(state);
                done(found.map(drop).ok_or(StoreError::NotFound(chunk)));
            }
        }
    }

    /// Makes a chunk durable; returns when it is.
    pub(crate) async fn synced(&self, chunk: ChunkId) -> Result<(), StoreError> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.sync(chunk, Box::new(move |outcome| _ = done.send(outcome)));
        // The callback is dropped only when the store is.
        result.await.unwrap_or(Err(StoreError::NotFound(chunk)))
    }

    /// What is known about a chunk.
    pub(crate) fn find(&self, chunk: ChunkId) -> Option<Found> {
        let state = self.shared.lock();
        let entry = state.index.get(&chunk.get()).filter(|_| !state.lost);
        entry.map(|entry| self.shared.found(entry))
    }

    /// A reader of a chunk; reads nothing yet. `NotFound`, `Corrupt` when set aside.
    pub(crate) fn reader(&self, chunk: ChunkId) -> Result<ChunkReader, StoreError> {
        ChunkReader::new(&self.shared, chunk)
    }

    /// Deletes chunks; a chunk that is not there counts as deleted. Blocks; durable on return.
    pub(crate) fn delete(&self, chunks: &[ChunkId]) -> Vec<(ChunkId, StoreError)> {
        deletion::delete(&self.shared, chunks)
    }

    /// Brings chunks back from the trash. Blocks; durable on return.
    pub(crate) fn restore(&self, chunks: &[ChunkId]) -> Vec<(ChunkId, StoreError)> {
        deletion::restore(&self.shared, chunks)
    }

    /// One step of emptying the trash: what has been there long enough, and more when the disk has
    /// reached its reserve. True when there is more to do. Blocks.
    pub(crate) fn empty_trash(&self) -> bool {
        let old = clock::now().checked_sub(self.shared.options.trash_time);
        if self.shared.lock().trash.front().is_none() {
            return false;
        }
        let short = self.shared.refresh_space() == 0;
        let bytes = if short { self.shared.options.segment_size } else { 0 };
        deletion::purge(&self.shared, old, bytes, PURGED_AT_ONCE) > 0
    }

    /// Gives up what is in the trash, oldest first, so that `bytes` more have room; true when something
    /// was given up. Blocks.
    pub(crate) fn make_room(&self, bytes: u64) -> bool {
        let wanted = bytes.max(self.shared.options.segment_size / 4);
        deletion::purge(&self.shared, None, wanted, usize::MAX) > 0
    }

    /// Bytes that new chunks could take: room on the disk above the reserve and in open segments.
    pub(crate) fn room(&self) -> u64 {
        let state = self.shared.lock();
        if state.fault.is_some() {
            return 0;
        }
        let active = state.active.and_then(|id| state.segments.get(&id)).map_or(0, SegmentState::room);
        let spare = state.spare.as_ref().map_or(0, SegmentState::room);
        self.shared.available.load(Ordering::Relaxed) + active + spare
    }

    /// What is held with ids from `first` on, in their order, at most `count`. Reads nothing.
    pub(crate) fn held_from(&self, first: u64, count: usize) -> Vec<(ChunkId, Found)> {
        let state = self.shared.lock();
        let count = if state.lost { 0 } else { count };
        let found = state.index.range(first..).take(count);
        found
            .filter_map(|(&chunk, entry)| Some((ChunkId::new(chunk).ok()?, self.shared.found(entry))))
            .collect()
    }

    /// Chunks whose only copy on this disk is set aside.
    pub(crate) fn set_aside(&self) -> Vec<ChunkId> {
        let state = self.shared.lock();
        let aside = state.index.iter().filter(|(_, entry)| entry.quarantined);
        aside.filter_map(|(&chunk, _)| ChunkId::new(chunk).ok()).collect()
    }

    /// The highest id of a chunk that is held in any form; 0 when there is none.
    pub(crate) fn chunk_max(&self) -> u64 {
        self.shared.lock().index.last_key_value().map_or(0, |(&chunk, _)| chunk)
    }

    /// Chunks that are served.
    pub(crate) fn chunks(&self) -> u64 {
        let state = self.shared.lock();
        state.index.len() as u64 - state.trashed
    }

    /// Bytes of the records in use.
    pub(crate) fn used(&self) -> u64 {
        self.shared.lock().used
    }

    /// How the disk is; asks the file system for its room.
    pub(crate) fn health(&self) -> v1::DiskHealth {
        self.shared.refresh_space();
        let room = self.room();
        let state = self.shared.lock();
        if state.lost {
            let fault = state.fault.clone().unwrap_or_default();
            return v1::DiskHealth { path: self.shared.name.clone(), fault, ..v1::DiskHealth::default() };
        }
        v1::DiskHealth {
            path: self.shared.name.clone(),
            capacity: state.used + state.trash_bytes + room,
            used: state.used,
            // With less, not even a small segment can be made.
            writable: state.fault.is_none() && room + state.trash_bytes >= SEGMENT_SIZE_MIN,
            fault: state.fault.clone().unwrap_or_default(),
            chunks: state.index.len() as u64 - state.trashed,
            quarantined: state.quarantined,
            trash: state.trash_bytes,
            slow: state.latency.is_slow(),
            filesystem: self.shared.disk.filesystem().unwrap_or_default(),
        }
    }

    /// Where it is, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// Does what blocks on one of the disk's threads. `Overloaded`.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(self);
        self.shared.run(move || work(&store)).await
    }

    /// The disk below.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.shared.disk
    }

    /// Seals and syncs everything, so that the next start is quick. Blocks.
    pub(crate) fn close(&self) {
        {
            let mut state = self.shared.lock();
            if let Some(active) = state.active.take() {
                if let Some(segment) = state.segments.get_mut(&active) {
                    segment.retired = true;
                }
                state.seal_if_done(active);
            }
        }
        self.stop();
        syncer::finish(&self.shared);
    }

    fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_one();
        let thread = self.syncer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && !thread.join()
        {
            error!(disk = self.name(), "the sync thread panicked");
        }
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what blocks on one of the disk's threads. `Overloaded`.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        Ok(self.pool.run(work).await?)
    }

    fn lock_changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self, entry: &state::Entry) -> Found {
        let synced = entry.synced || !self.options.sync;
        Found { length: entry.length, synced, quarantined: entry.quarantined, trash: entry.trash }
    }

    fn io(&self, doing: &'static str, source: std::io::Error) -> StoreError {
        StoreError::Io { disk: self.name.clone(), doing, source }
    }

    fn faulty(&self, fault: &str) -> StoreError {
        StoreError::Faulty { disk: self.name.clone(), fault: fault.to_owned() }
    }

    /// Stops taking new chunks. The first fault is the one that is shown.
    fn fail(&self, state: &mut State, fault: String) {
        if state.fault.is_none() {
            error!(disk = %self.name, fault, "the disk failed and takes no new chunks");
            metrics::counter!(crate::metrics::DISK_FAULTS).increment(1);
            state.fault = Some(fault);
            state.undecided = true;
        }
    }

    /// Turns a failed write into an error; anything but a full disk marks the disk as faulty.
    fn write_failed(&self, doing: &'static str, source: std::io::Error, needed: u64) -> StoreError {
        if error::is_full(&source) {
            return StoreError::NoSpace(needed);
        }
        self.fail(&mut self.lock(), format!("{doing}: {source}"));
        self.io(doing, source)
    }

    /// Asks the file system for its room. Returns what lies above the reserve.
    fn refresh_space(&self) -> u64 {
        match self.disk.space() {
            Ok(space) => {
                self.space_told.store(true, Ordering::Relaxed);
                let reserve = self.options.reserve.min(space.capacity / 20);
                let available = space.available.saturating_sub(reserve);
                self.available.store(available, Ordering::Relaxed);
                available
            }
            Err(error) => {
                // Asked with every heartbeat: once is enough.
                if self.space_told.swap(false, Ordering::Relaxed) {
                    warn!(disk = %self.name, %error, "the file system does not tell its room");
                }
                self.available.load(Ordering::Relaxed)
            }
        }
    }

    /// Makes a segment file with room for a record of `needed` bytes, preallocated. Does not take the
    /// lock.
    fn create_segment(&self, id: u32, needed: u64) -> Result<SegmentState, Failed> {
        let smallest = ALIGN + needed + record::align_up(footer_len(1));
        let available = self.refresh_space() / ALIGN * ALIGN;
        let wished = self.options.segment_size.max(smallest);
        // A nearly full disk still takes what fits, in a smaller segment.
        let size = wished.min(available);
        if size < smallest || (size < wished && size < SEGMENT_SIZE_MIN) {
            return Err(Failed::Full);
        }
        let path = segment_path(id);
        let file = self.disk.create_new(&path).map_err(|e| Failed::new("making a segment", e))?;
        let salt = random::uuid().as_u64_pair().0;
        let prepared =
            file.allocate(0, size).and_then(|()| file.write_at(&SegmentHeader { id, salt }.encode(), 0));
        if let Err(source) = prepared {
            if let Err(error) = self.disk.unlink(&path) {
                warn!(disk = %self.name, %error, "a segment that could not be made stays behind");
            }
            return Err(Failed::new("preallocating a segment", source));
        }
        Ok(SegmentState::new(Arc::new(SegmentFile::new(id, salt, file)), size))
    }

    /// Sets a record aside, in memory and on the disk.
    fn quarantine(&self, chunk: ChunkId, entry: state::Entry, what: &str) -> StoreError {
        let fresh = self.lock().quarantine(chunk, entry);
        if fresh {
            error!(
                disk = %self.name, %chunk, segment = entry.segment, offset = entry.offset(), what,
                "a record is damaged and set aside"
            );
            metrics::counter!(crate::metrics::QUARANTINED).increment(1);
            self.bad.report(chunk, ErrorKind::Corrupt);
            deletion::mark_quarantined(self, entry);
        }
        StoreError::Corrupt { chunk, disk: self.name.clone(), what: what.to_owned() }
    }
}

/// Why no segment could be made.
enum Failed {
    /// The disk is full, or its reserve is reached.
    Full,
    /// What was being done, and what the disk said.
    Io(&'static str, std::io::Error),
}

impl Failed {
    fn new(doing: &'static str, source: std::io::Error) -> Self {
        if error::is_full(&source) { Self::Full } else { Self::Io(doing, source) }
    }
}

/// Where a segment file lies below the data directory.
fn segment_path(id: u32) -> PathBuf {
    Path::new(SEGMENTS).join(format!("{id:08x}.seg"))
}

/// The id in the name of a segment file.
fn segment_id(name: &std::ffi::OsStr) -> Option<u32> {
    let digits = name.to_str()?.strip_suffix(".seg")?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// Bytes that a chunk of `length` bytes takes on a disk.
pub(crate) fn disk_bytes(length: u32) -> u64 {
    record_len(length)
}
