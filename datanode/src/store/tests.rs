//! The chunk store against a model, and against disks that fail.
#![allow(clippy::disallowed_methods)] // damages files behind the store's back

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cairn_proto::checksum::{block_crcs, crc32c};
use cairn_proto::limits::FRAME_SIZE;
use cairn_runtime::disk::{Disk, DiskFile, RealDisk, Space};
use proptest::prelude::*;

use super::*;

const SEGMENT: u64 = 1 << 20;

fn options(sync: bool) -> StoreOptions {
    StoreOptions { segment_size: SEGMENT, reserve: 0, sync, trash_time: Duration::ZERO }
}

/// A store that keeps what is deleted.
fn open_with_trash(dir: &Path) -> DiskStore {
    let options = StoreOptions { trash_time: Duration::from_secs(3600), ..options(true) };
    DiskStore::open(Arc::new(RealDisk::open(dir).unwrap()), options, Arc::default()).unwrap()
}

fn id(chunk: u64) -> ChunkId {
    ChunkId::new(chunk).unwrap()
}

fn open(dir: &Path) -> DiskStore {
    DiskStore::open(Arc::new(RealDisk::open(dir).unwrap()), options(true), Arc::default()).unwrap()
}

/// Bytes that tell their chunk and position.
fn content(chunk: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(chunk | 1).wrapping_add(chunk >> 3) as u8).collect()
}

fn store(store: &DiskStore, chunk: u64, data: &[u8]) -> Result<(), StoreError> {
    let mut writer = store.begin(id(chunk), 1, data.len() as u32, Purpose::New)?;
    for frame in data.chunks(128 << 10) {
        writer.write(frame, &block_crcs(frame))?;
    }
    writer.finish()
}

fn sync(store: &DiskStore, chunk: u64) -> Result<(), StoreError> {
    let (done, result) = mpsc::channel();
    store.sync(id(chunk), Box::new(move |outcome| done.send(outcome).unwrap()));
    result.recv().unwrap()
}

fn read(store: &DiskStore, chunk: u64) -> Result<Vec<u8>, StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut reader = store.reader(id(chunk))?;
        reader.prepare().await?;
        let mut data = Vec::new();
        while (data.len() as u64) < reader.length() {
            data.extend_from_slice(&reader.read(data.len() as u64, reader.length()).await?.data);
        }
        assert_eq!(reader.whole_crc(), crc32c(&data));
        Ok(data)
    })
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir.join(SEGMENTS)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn flip(path: &Path, offset: u64, bit: u8) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).unwrap();
}

#[test]
fn chunks_of_all_sizes_come_back_after_a_clean_stop_and_after_a_crash() {
    for clean in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let sizes = [1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144, 700_000, 3 << 20];
        let first = open(dir.path());
        for (chunk, &size) in (1u64..).zip(&sizes) {
            store(&first, chunk, &content(chunk, size)).unwrap();
            assert_eq!(read(&first, chunk).unwrap(), content(chunk, size));
        }
        sync(&first, 3).unwrap();
        if clean {
            first.close();
        }
        drop(first);
        let again = open(dir.path());
        for (chunk, &size) in (1u64..).zip(&sizes) {
            assert_eq!(read(&again, chunk).unwrap(), content(chunk, size), "clean {clean}");
            assert!(again.find(id(chunk)).unwrap().synced);
        }
        assert_eq!(again.health().quarantined, 0);
    }
}

#[test]
fn a_chunk_is_stored_once_and_unfinished_ones_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    store(&disk, 1, &content(1, 100)).unwrap();
    assert!(matches!(store(&disk, 1, &content(1, 100)), Err(StoreError::Exists(_))));
    let mut writer = disk.begin(id(2), 1, 200_000, Purpose::New).unwrap();
    let part = content(2, 128 << 10);
    writer.write(&part, &block_crcs(&part)).unwrap();
    assert!(matches!(disk.begin(id(2), 1, 5, Purpose::New), Err(StoreError::Exists(_))));
    assert!(disk.find(id(2)).is_none());
    drop(writer);
    store(&disk, 2, &content(2, 5)).unwrap();
    drop(disk);
    let disk = open(dir.path());
    assert_eq!(read(&disk, 2).unwrap(), content(2, 5));
    assert_eq!((disk.chunks(), disk.health().quarantined), (2, 0));
}

#[test]
fn a_torn_tail_is_truncated_and_everything_before_it_kept() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for chunk in 1..=3 {
        store(&disk, chunk, &content(chunk, 100_000)).unwrap();
    }
    // In the middle of the third.
    let cut = ALIGN + 2 * record_len(100_000) + 50_000;
    drop(disk);
    let file = segment_files(dir.path()).remove(0);
    std::fs::File::options().write(true).open(&file).unwrap().set_len(cut).unwrap();
    let disk = open(dir.path());
    assert_eq!(read(&disk, 1).unwrap(), content(1, 100_000));
    assert_eq!(read(&disk, 2).unwrap(), content(2, 100_000));
    assert!(matches!(read(&disk, 3), Err(StoreError::NotFound(_))));
    assert_eq!(disk.health().quarantined, 0);
    store(&disk, 4, &content(4, 10)).unwrap();
    assert_eq!(read(&disk, 4).unwrap(), content(4, 10));
}

#[test]
fn a_chunk_cut_off_by_a_crash_while_it_was_written_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    store(&disk, 1, &content(1, 10)).unwrap();
    let mut writer = disk.begin(id(2), 1, 200_000, Purpose::New).unwrap();
    let part = content(2, 128 << 10);
    writer.write(&part, &block_crcs(&part)).unwrap();
    store(&disk, 3, &content(3, 10)).unwrap();
    std::mem::forget(writer); // as kill -9 would
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join(SEGMENTS)).unwrap();
    for file in segment_files(dir.path()) {
        std::fs::copy(&file, copy.path().join(SEGMENTS).join(file.file_name().unwrap())).unwrap();
    }
    let after = open(copy.path());
    assert_eq!(read(&after, 1).unwrap(), content(1, 10));
    assert_eq!(read(&after, 3).unwrap(), content(3, 10));
    assert!(after.find(id(2)).is_none());
    assert_eq!(after.health().quarantined, 0);
}

#[test]
fn damage_in_the_middle_is_quarantined_and_not_taken_for_a_torn_tail() {
    // In the payload, in the table of checksums, in the header of the second of three records; with
    // the segment sealed or not.
    for sealed in [true, false] {
        for within in [ALIGN + 500, 66, 3] {
            let dir = tempfile::tempdir().unwrap();
            let disk = open(dir.path());
            for chunk in 1..=3 {
                store(&disk, chunk, &content(chunk, 100_000)).unwrap();
            }
            sync(&disk, 3).unwrap();
            if sealed {
                disk.close();
            }
            drop(disk);
            flip(&segment_files(dir.path())[0], ALIGN + record_len(100_000) + within, 3);
            let disk = open(dir.path());
            assert_eq!(read(&disk, 1).unwrap(), content(1, 100_000));
            assert_eq!(read(&disk, 3).unwrap(), content(3, 100_000), "sealed {sealed} within {within}");
            let second = read(&disk, 2);
            assert!(
                matches!(second, Err(StoreError::Corrupt { .. } | StoreError::NotFound(_))),
                "{second:?}"
            );
            assert_eq!(disk.health().quarantined, 1, "sealed {sealed} within {within}");
            assert!(sync(&disk, 2).is_err(), "what is damaged survives nothing");
            drop(disk);
            // It stays set aside, and counted.
            let disk = open(dir.path());
            assert!(read(&disk, 2).is_err());
            assert_eq!(disk.health().quarantined, 1, "again: sealed {sealed} within {within}");
            // A repaired copy takes its place.
            store(&disk, 2, &content(2, 100_000)).unwrap();
            assert_eq!(read(&disk, 2).unwrap(), content(2, 100_000));
        }
    }
}

#[test]
fn a_damaged_last_record_that_was_synced_is_not_dropped_silently() {
    for within in [70, 3] {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path());
        store(&disk, 1, &content(1, 5000)).unwrap();
        store(&disk, 2, &content(2, 5000)).unwrap();
        sync(&disk, 2).unwrap();
        drop(disk);
        flip(&segment_files(dir.path())[0], ALIGN + record_len(5000) + within, 0);
        let disk = open(dir.path());
        assert_eq!(read(&disk, 1).unwrap(), content(1, 5000));
        assert!(read(&disk, 2).is_err());
        assert_eq!(disk.health().quarantined, 1);
    }
}

#[test]
fn a_damaged_footer_costs_a_scan_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for chunk in 1..=3 {
        store(&disk, chunk, &content(chunk, 100_000)).unwrap();
    }
    assert!(disk.delete(&[id(2)]).is_empty());
    disk.close();
    drop(disk);
    let file = segment_files(dir.path()).remove(0);
    let len = std::fs::metadata(&file).unwrap().len();
    flip(&file, len - record::TRAILER_LEN as u64 - 5, 1);
    let disk = open(dir.path());
    assert_eq!(read(&disk, 1).unwrap(), content(1, 100_000));
    assert_eq!(read(&disk, 3).unwrap(), content(3, 100_000));
    assert!(disk.find(id(2)).is_none());
    assert_eq!(disk.health().quarantined, 0);
}

#[test]
fn damage_is_found_when_a_chunk_is_read_or_verified() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    store(&disk, 1, &content(1, 300_000)).unwrap();
    store(&disk, 2, &content(2, 300_000)).unwrap();
    sync(&disk, 1).unwrap();
    let file = segment_files(dir.path()).remove(0);
    flip(&file, ALIGN + record::payload_start(300_000) + 200_000, 0);
    flip(&file, ALIGN + record_len(300_000) + record::payload_start(300_000) + 5, 0);
    assert!(matches!(read(&disk, 1), Err(StoreError::Corrupt { .. })));
    assert!(matches!(verify_on_device(disk.reader(id(2)).unwrap()), Err(StoreError::Corrupt { .. })));
    assert!(matches!(disk.reader(id(2)), Err(StoreError::Corrupt { .. })));
    assert_eq!(disk.health().quarantined, 2);
    assert!(disk.delete(&[id(1), id(2)]).is_empty());
    assert!(matches!(read(&disk, 1), Err(StoreError::NotFound(_))));
}

#[test]
fn deletion_gives_room_back_at_once_and_stays_after_a_crash() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for chunk in 1..=8 {
        store(&disk, chunk, &content(chunk, 600_000)).unwrap();
    }
    sync(&disk, 8).unwrap();
    let blocks = || {
        segment_files(dir.path()).iter().map(|f| std::fs::metadata(f).unwrap().blocks() * 512).sum::<u64>()
    };
    let before = blocks();
    let all: Vec<_> = (1..=7).map(id).collect();
    assert!(disk.delete(&all).is_empty());
    assert!(disk.delete(&all).is_empty(), "a repeated deletion is fine");
    assert!(blocks() + 3_000_000 < before, "{} of {before} bytes are left", blocks());
    drop(disk);
    let disk = open(dir.path());
    assert_eq!(disk.chunks(), 1);
    assert_eq!(read(&disk, 8).unwrap(), content(8, 600_000));
}

#[test]
fn what_is_deleted_can_be_brought_back_until_it_is_given_up() {
    for (sealed, restart) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = open_with_trash(dir.path());
        for chunk in 1..=3 {
            store(&disk, chunk, &content(chunk, 100_000)).unwrap();
        }
        let used = disk.health().used;
        if sealed {
            disk.close();
            drop(disk);
            disk = open_with_trash(dir.path());
        }
        assert!(disk.delete(&[id(1), id(2)]).is_empty());
        assert!(disk.delete(&[id(1)]).is_empty(), "a repeated deletion is fine");
        if restart {
            drop(disk);
            disk = open_with_trash(dir.path());
        }
        let about = disk.health();
        assert_eq!((about.trash, about.used, about.chunks), (2 * record_len(100_000), used / 3, 1));
        assert!(matches!(read(&disk, 1), Err(StoreError::NotFound(_))));
        assert!(matches!(sync(&disk, 1), Err(StoreError::NotFound(_))));
        assert!(matches!(store(&disk, 1, &content(1, 10)), Err(StoreError::Exists(_))));
        assert!(disk.find(id(1)).unwrap().trash);

        let failed = disk.restore(&[id(1), id(3), id(9)]);
        assert!(matches!(failed.as_slice(), [(chunk, StoreError::NotFound(_))] if *chunk == id(9)));
        assert_eq!(read(&disk, 1).unwrap(), content(1, 100_000));
        assert!(disk.make_room(1) && !disk.make_room(1));
        assert!(disk.find(id(2)).is_none() && disk.restore(&[id(2)]).len() == 1);
        assert_eq!(disk.health().trash, 0);
        drop(disk);
        let disk = open_with_trash(dir.path());
        assert_eq!(read(&disk, 1).unwrap(), content(1, 100_000), "sealed {sealed} restart {restart}");
        assert_eq!(read(&disk, 3).unwrap(), content(3, 100_000));
        assert!(disk.find(id(2)).is_none());
        assert_eq!(disk.health().quarantined, 0);
    }
}

#[test]
fn the_trash_is_emptied_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { trash_time: Duration::from_millis(300), ..options(true) };
    let disk =
        DiskStore::open(Arc::new(RealDisk::open(dir.path()).unwrap()), options, Arc::default()).unwrap();
    store(&disk, 1, &content(1, 100_000)).unwrap();
    assert!(disk.delete(&[id(1)]).is_empty());
    assert!(!disk.empty_trash() && disk.health().trash > 0);
    std::thread::sleep(Duration::from_millis(350));
    assert!(disk.empty_trash());
    assert_eq!((disk.health().trash, disk.find(id(1))), (0, None));
}

#[test]
fn a_mark_that_fails_leaves_the_chunk_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults { room: AtomicI64::new(-1), ..Faults::default() });
    let disk = FaultyDisk { inner: RealDisk::open(dir.path()).unwrap(), faults: Arc::clone(&faults) };
    let options = StoreOptions { trash_time: Duration::from_secs(3600), ..options(true) };
    let disk = DiskStore::open(Arc::new(disk), options, Arc::default()).unwrap();
    store(&disk, 1, &content(1, 5000)).unwrap();
    sync(&disk, 1).unwrap();
    faults.fail_sync.store(true, Ordering::SeqCst);
    assert_eq!(disk.delete(&[id(1)]).len(), 1);
    assert!(!disk.find(id(1)).unwrap().trash && disk.health().trash == 0);
    faults.fail_sync.store(false, Ordering::SeqCst);
    assert!(disk.delete(&[id(1)]).is_empty());
    faults.fail_sync.store(true, Ordering::SeqCst);
    assert_eq!(disk.restore(&[id(1)]).len(), 1);
    assert!(disk.find(id(1)).unwrap().trash);
    // Nor is room promised by what could not be given up: who asked would ask for ever.
    assert!(!disk.make_room(1));
    assert!(disk.find(id(1)).unwrap().trash);
    faults.fail_sync.store(false, Ordering::SeqCst);
    assert!(disk.make_room(1) && disk.find(id(1)).is_none());
}

#[test]
fn a_segment_of_a_newer_format_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    store(&disk, 1, &content(1, 10)).unwrap();
    disk.close();
    drop(disk);
    let path = segment_files(dir.path()).remove(0);
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut header = [0u8; 64];
    file.read_exact_at(&mut header, 0).unwrap();
    header[8] = 3;
    let crc = crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).unwrap());
    let error = DiskStore::open(disk, options(true), Arc::default()).err().unwrap().to_string();
    assert!(error.contains("newer version") && error.contains("format 3"), "{error}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _held = open(dir.path());
    let error = RealDisk::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

/// Faults to inject; shared by a disk and its files.
#[derive(Default)]
struct Faults {
    fail_sync: AtomicBool,
    fail_read: AtomicBool,
    /// Reads from the device take more than a second.
    slow_read: AtomicBool,
    /// Bytes that can still be allocated; negative: no limit.
    room: AtomicI64,
    /// The next write fails for want of room.
    full_write: AtomicBool,
    /// Writes wait for this.
    gate: Mutex<Option<Arc<Gate>>>,
    /// Nothing is in memory.
    cold: AtomicBool,
    fail_open: AtomicBool,
    /// What was read ahead: offset, length, and whether with the handle for scattered reads.
    ahead: Mutex<Vec<(u64, u64, bool)>>,
}

/// Holds one write up until it is opened.
#[derive(Default)]
struct Gate {
    reached: AtomicBool,
    open: AtomicBool,
}

struct FaultyDisk {
    inner: RealDisk,
    faults: Arc<Faults>,
}

struct FaultyFile {
    inner: Arc<dyn DiskFile>,
    faults: Arc<Faults>,
    scattered: AtomicBool,
}

impl FaultyDisk {
    fn wrap(&self, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { inner, faults: Arc::clone(&self.faults), scattered: AtomicBool::new(false) })
    }
}

impl Disk for FaultyDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.inner.create_new(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.faults.fail_open.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(24)),
            false => Ok(self.wrap(self.inner.open(path)?)),
        }
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.inner.unlink(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        self.inner.list(path)
    }
    fn space(&self) -> io::Result<Space> {
        let room = self.faults.room.load(Ordering::SeqCst);
        let space = self.inner.space()?;
        Ok(if room < 0 { space } else { Space { capacity: 100 << 20, available: room as u64 } })
    }
    fn describe(&self) -> String {
        "faulty".into()
    }
}

impl DiskFile for FaultyFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.faults.full_write.swap(false, Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let gate = self.faults.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.reached.store(true, Ordering::SeqCst);
            let end = std::time::Instant::now() + Duration::from_secs(20);
            while !gate.open.load(Ordering::SeqCst) {
                assert!(std::time::Instant::now() < end, "nobody else could go on");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.inner.write_at(data, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.faults.slow_read.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1100));
        }
        match self.faults.fail_read.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => self.inner.read_at(buffer, offset),
        }
    }
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.faults.fail_read.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.faults.cold.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inner.try_read_at(buffer, offset)
    }
    fn expect_scattered_reads(&self) -> io::Result<()> {
        self.scattered.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn read_ahead(&self, offset: u64, length: u64) -> io::Result<()> {
        let scattered = self.scattered.load(Ordering::SeqCst);
        self.faults.ahead.lock().unwrap().push((offset, length, scattered));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        match self.faults.fail_sync.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => self.inner.sync(),
        }
    }
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.punch(offset, length)
    }
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let room = self.faults.room.load(Ordering::SeqCst);
        if room >= 0 {
            if (room as u64) < length {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.faults.room.fetch_sub(length as i64, Ordering::SeqCst);
        }
        self.inner.allocate(offset, length)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.inner.set_len(length)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn drop_cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.drop_cache(offset, length)
    }
}

fn faulty(dir: &Path, room: i64) -> (DiskStore, Arc<Faults>) {
    let faults = Arc::new(Faults { room: AtomicI64::new(room), ..Faults::default() });
    let disk = FaultyDisk { inner: RealDisk::open(dir).unwrap(), faults: Arc::clone(&faults) };
    (DiskStore::open(Arc::new(disk), options(true), Arc::default()).unwrap(), faults)
}

#[test]
fn what_is_not_in_memory_is_read_ahead_to_the_end_of_what_was_asked_for_and_no_further() {
    const LENGTH: usize = 5 << 20;
    let dir = tempfile::tempdir().unwrap();
    let (disk, faults) = faulty(dir.path(), -1);
    let (large, small) = (content(1, LENGTH), content(2, 100_000));
    store(&disk, 1, &large).unwrap();
    store(&disk, 2, &small).unwrap();
    let ahead = || std::mem::take(&mut *faults.ahead.lock().unwrap());
    assert_eq!((read(&disk, 1).unwrap(), ahead()), (large.clone(), vec![]), "it is in memory");
    faults.cold.store(true, Ordering::SeqCst);
    assert_eq!(read(&disk, 1).unwrap(), large);
    let payload = ALIGN + super::record::payload_start(LENGTH as u32);
    let frame = FRAME_SIZE as u64;
    let step = 2 << 20;
    let rest = LENGTH as u64 - 2 * step - frame;
    assert_eq!(
        ahead(),
        [
            (payload + frame, step, true),
            (payload + frame + step, step, true),
            (payload + frame + 2 * step, rest, true)
        ]
    );
    // A part of a chunk.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let part = runtime.block_on(async {
        let mut reader = disk.reader(id(1)).unwrap();
        reader.prepare().await.unwrap();
        reader.read(frame, 3 * frame).await.unwrap()
    });
    assert_eq!(part.data, large[FRAME_SIZE..2 * FRAME_SIZE]);
    assert_eq!(ahead(), [(payload + 2 * frame, frame, true)]);
    // Small ones lie side by side, and are left to the kernel.
    assert_eq!((read(&disk, 2).unwrap(), ahead()), (small, vec![]));
    drop(disk);
    let (disk, faults) = faulty(dir.path(), -1);
    faults.cold.store(true, Ordering::SeqCst);
    faults.fail_open.store(true, Ordering::SeqCst);
    assert_eq!(read(&disk, 1).unwrap(), large, "too many files are open");
    assert!(faults.ahead.lock().unwrap().iter().all(|&(_, _, scattered)| !scattered));
}

/// A file that is in every directory of a node.
const KNOWN: &str = "identity.json";

/// A disk that can be checked for whether it is there.
fn faulty_with_identity() -> (tempfile::TempDir, DiskStore, Arc<Faults>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(KNOWN), "{}").unwrap();
    let (disk, faults) = faulty(dir.path(), -1);
    (dir, disk, faults)
}

#[test]
fn what_is_read_while_it_is_deleted_is_gone_and_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open_with_trash(dir.path());
    store(&disk, 1, &content(1, 5000)).unwrap();
    let mut reader = disk.reader(id(1)).unwrap();
    assert!(disk.delete(&[id(1)]).is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let read_late = runtime.block_on(reader.prepare());
    assert!(matches!(read_late, Err(StoreError::NotFound(_))), "{read_late:?}");
    assert!(matches!(verify_on_device(reader), Err(StoreError::NotFound(_))));
    // It can still be brought back.
    assert!(disk.restore(&[id(1)]).is_empty());
    assert_eq!(read(&disk, 1).unwrap(), content(1, 5000));
}

#[test]
fn a_full_disk_refuses_chunks_and_damages_none() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, faults) = faulty(dir.path(), (5 << 20) / 2);
    let mut stored = Vec::new();
    let refused = (1..100).find_map(|chunk| match store(&disk, chunk, &content(chunk, 200_000)) {
        Ok(()) => {
            stored.push(chunk);
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(refused, Some(StoreError::NoSpace(_))), "{refused:?}");
    assert!(stored.len() >= 8, "only {} chunks fit", stored.len());
    for &chunk in &stored {
        assert_eq!(read(&disk, chunk).unwrap(), content(chunk, 200_000));
    }
    let health = disk.health();
    assert!(health.fault.is_empty(), "full is not broken: {}", health.fault);
    // Deleting still works, and a small chunk still fits where a large one did not.
    assert!(disk.delete(&[id(stored[0])]).is_empty());
    faults.room.store(4 << 20, Ordering::SeqCst);
    store(&disk, 500, &content(500, 200_000)).unwrap();
    disk.close();
    drop(disk);
    let disk = open(dir.path());
    for &chunk in &stored[1..] {
        assert_eq!(read(&disk, chunk).unwrap(), content(chunk, 200_000));
    }
}

#[test]
fn a_write_that_finds_no_room_gives_up_its_chunk_only() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, faults) = faulty(dir.path(), -1);
    store(&disk, 1, &content(1, 5000)).unwrap();
    faults.full_write.store(true, Ordering::SeqCst);
    assert!(matches!(store(&disk, 2, &content(2, 5000)), Err(StoreError::NoSpace(_))));
    store(&disk, 3, &content(3, 5000)).unwrap();
    assert!(disk.find(id(2)).is_none() && disk.health().fault.is_empty());
    assert_eq!(read(&disk, 3).unwrap(), content(3, 5000));
}

#[test]
fn a_failed_sync_is_final() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, faults) = faulty(dir.path(), -1);
    store(&disk, 1, &content(1, 5000)).unwrap();
    sync(&disk, 1).unwrap();
    store(&disk, 2, &content(2, 5000)).unwrap();
    faults.fail_sync.store(true, Ordering::SeqCst);
    assert!(matches!(sync(&disk, 2), Err(StoreError::Faulty { .. })));
    faults.fail_sync.store(false, Ordering::SeqCst);
    // Not repeated into success: the chunk is gone, the disk takes no more, what was synced is served.
    assert!(matches!(sync(&disk, 2), Err(StoreError::NotFound(_))));
    assert!(matches!(store(&disk, 3, &content(3, 10)), Err(StoreError::Faulty { .. })));
    assert_eq!(read(&disk, 1).unwrap(), content(1, 5000));
    let health = disk.health();
    assert!(!health.writable && health.fault.contains("fdatasync"), "{}", health.fault);
}

#[test]
fn a_disk_that_can_not_be_read_counts_for_nothing_until_it_can() {
    let (dir, disk, faults) = faulty_with_identity();
    for chunk in 1..=9 {
        store(&disk, chunk, &content(chunk, 100_000)).unwrap();
    }
    sync(&disk, 9).unwrap();
    faults.fail_read.store(true, Ordering::SeqCst);
    for chunk in 1..=2 {
        assert!(matches!(read(&disk, chunk), Err(StoreError::Corrupt { .. })));
    }
    assert!(disk.health().fault.is_empty(), "two bad sectors are no broken disk");
    assert!(read(&disk, 3).is_err());
    assert!(disk.health().fault.contains("reads failed") && disk.is_undecided());
    assert!(matches!(store(&disk, 20, &content(20, 10)), Err(StoreError::Faulty { .. })));
    disk.check(Path::new(KNOWN));
    assert!(disk.find(id(9)).is_some(), "once is not enough");
    disk.check(Path::new(KNOWN));
    assert!(disk.find(id(9)).is_none() && disk.held_from(1, 10).is_empty() && !disk.is_undecided());
    let about = disk.health();
    assert_eq!((about.capacity, about.used, about.chunks), (0, 0, 0));

    faults.fail_read.store(false, Ordering::SeqCst);
    (0..3).for_each(|_| disk.check(Path::new(KNOWN)));
    assert_eq!(read(&disk, 9).unwrap(), content(9, 100_000));
    assert_eq!(disk.held_from(1, 10).iter().filter(|(_, found)| found.is_sound()).count(), 6);
    assert!(!disk.health().writable, "a fault stays");

    std::fs::remove_file(dir.path().join(KNOWN)).unwrap();
    (0..2).for_each(|_| disk.check(Path::new(KNOWN)));
    assert!(disk.find(id(9)).is_none());
}

#[test]
fn a_failed_sync_leaves_a_disk_that_is_read() {
    let (_dir, disk, faults) = faulty_with_identity();
    store(&disk, 1, &content(1, 5000)).unwrap();
    sync(&disk, 1).unwrap();
    store(&disk, 2, &content(2, 5000)).unwrap();
    faults.fail_sync.store(true, Ordering::SeqCst);
    assert!(sync(&disk, 2).is_err() && disk.is_undecided());
    (0..3).for_each(|_| disk.check(Path::new(KNOWN)));
    assert!(!disk.is_undecided() && !disk.health().writable);
    assert_eq!(read(&disk, 1).unwrap(), content(1, 5000));
}

#[test]
fn a_disk_that_is_slow_to_read_is_slow_until_it_is_not() {
    let (_dir, disk, faults) = faulty_with_identity();
    store(&disk, 1, &content(1, 5000)).unwrap();
    sync(&disk, 1).unwrap();
    faults.slow_read.store(true, Ordering::SeqCst);
    verify_on_device(disk.reader(id(1)).unwrap()).unwrap();
    disk.judge_latency(Recent::default());
    assert!(!disk.is_slow(), "it was never faster, and there is nothing to compare it with");
    let others = Recent { syncs: None, reads: Some(0.01) };
    disk.judge_latency(others);
    assert!(disk.is_slow() && disk.health().slow, "the others read in 10 ms");
    // Nobody reads: it is timed all the same.
    faults.slow_read.store(false, Ordering::SeqCst);
    (0..40).for_each(|_| {
        disk.check(Path::new(KNOWN));
        disk.judge_latency(others);
    });
    assert!(!disk.is_slow());
}

#[test]
fn a_disk_that_holds_writes_up_does_not_hold_others_up() {
    let (_dir, disk, faults) = faulty_with_identity();
    let disk = Arc::new(disk);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // The first write that has to wait takes the thread with it.
    let gate = Arc::new(Gate::default());
    *faults.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let opener = std::thread::spawn({
        let gate = Arc::clone(&gate);
        move || {
            while !gate.reached.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(150));
            gate.open.store(true, Ordering::SeqCst);
        }
    });
    store(&disk, 1, &content(1, 5000)).unwrap();
    opener.join().unwrap();
    // While the next one waits, the only thread of the runtime does what lets it go on.
    let gate = Arc::new(Gate::default());
    *faults.gate.lock().unwrap() = Some(Arc::clone(&gate));
    let writer = runtime.spawn({
        let disk = Arc::clone(&disk);
        async move { store(&disk, 2, &content(2, 5000)).unwrap() }
    });
    let other = runtime.spawn(async move {
        while !gate.reached.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gate.open.store(true, Ordering::SeqCst);
    });
    runtime.block_on(async {
        writer.await.unwrap();
        other.await.unwrap();
    });
    *faults.gate.lock().unwrap() = None;
    assert_eq!(read(&disk, 2).unwrap(), content(2, 5000));
}

#[test]
fn many_waiters_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let (done, results) = mpsc::channel();
    for chunk in 1..=200 {
        store(&disk, chunk, &content(chunk, 100)).unwrap();
        let done = done.clone();
        disk.sync(id(chunk), Box::new(move |outcome| done.send(outcome.is_ok()).unwrap()));
    }
    drop(done);
    assert_eq!(results.iter().filter(|&ok| ok).count(), 200);
    assert!((1..=200).all(|chunk| disk.find(id(chunk)).unwrap().synced));
}

#[test]
fn a_chunk_that_is_brought_back_while_its_segment_is_sealed_stays() {
    for round in 0..200 {
        let dir = tempfile::tempdir().unwrap();
        let disk = open_with_trash(dir.path());
        let chunks: Vec<ChunkId> = (1..=20).map(id).collect();
        for &chunk in &chunks {
            store(&disk, chunk.get(), &content(chunk.get(), 100)).unwrap();
        }
        assert!(disk.delete(&chunks).is_empty());
        std::thread::scope(|scope| {
            let restoring = scope.spawn(|| disk.restore(&chunks));
            disk.close();
            assert!(restoring.join().unwrap().is_empty());
        });
        drop(disk);
        let disk = open_with_trash(dir.path());
        for chunk in &chunks {
            assert!(read(&disk, chunk.get()).is_ok(), "round {round}: chunk {chunk} is in the trash again");
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Store(usize),
    Abandon(usize),
    Delete(usize),
    Restore(usize),
    MakeRoom(u64),
    Sync(usize),
    Restart,
    Crash,
    Truncate(u64),
    Flip(usize, u64, u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop_oneof![1usize..10_000, 60_000usize..70_000, 100_000usize..500_000].prop_map(Op::Store),
        1 => (1usize..300_000).prop_map(Op::Abandon),
        3 => any::<usize>().prop_map(Op::Delete),
        2 => any::<usize>().prop_map(Op::Restore),
        1 => (1u64..2_000_000).prop_map(Op::MakeRoom),
        2 => any::<usize>().prop_map(Op::Sync),
        1 => Just(Op::Restart),
        1 => Just(Op::Crash),
        1 => any::<u64>().prop_map(Op::Truncate),
        1 => (any::<usize>(), any::<u64>(), 0u8..8).prop_map(|(file, at, bit)| Op::Flip(file, at, bit)),
    ]
}

/// What the store must and may hold.
#[derive(Default)]
struct Model {
    next: u64,
    lens: HashMap<u64, usize>,
    deleted: HashSet<u64>,
    /// Deleted and not given up yet, oldest first.
    trash: Vec<(u64, usize)>,
    /// Whether something was damaged: then what is in the trash may be too.
    damaged: bool,
    /// Chunks that damage has taken.
    lost: HashSet<u64>,
}

impl Model {
    fn pick(&self, seed: usize) -> Option<u64> {
        let mut chunks: Vec<_> = self.lens.keys().copied().collect();
        chunks.sort_unstable();
        (!chunks.is_empty()).then(|| chunks[seed % chunks.len()])
    }

    /// Never wrong bytes, never a deleted chunk; at most `may_lose` more chunks are missing.
    fn check(&mut self, disk: &DiskStore, may_lose: usize) {
        let mut newly = 0;
        for (&chunk, &len) in &self.lens {
            match read(disk, chunk) {
                Ok(data) => assert!(data == content(chunk, len), "chunk {chunk} has wrong bytes"),
                Err(error) if self.lost.contains(&chunk) => drop(error),
                Err(error) => {
                    self.lost.insert(chunk);
                    newly += 1;
                    assert!(newly <= may_lose, "chunk {chunk} is lost: {error}");
                }
            }
        }
        for &chunk in self.deleted.iter().chain(self.trash.iter().map(|(chunk, _)| chunk)) {
            assert!(read(disk, chunk).is_err(), "chunk {chunk} is back");
        }
    }
}

fn run(ops: Vec<Op>) {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = open_with_trash(dir.path());
    let mut model = Model::default();
    for op in ops {
        let mut may_lose = 0;
        match op {
            Op::Store(len) => {
                model.next += 1;
                store(&disk, model.next, &content(model.next, len)).unwrap();
                model.lens.insert(model.next, len);
                continue;
            }
            Op::Abandon(len) => {
                model.next += 1;
                let mut writer = disk.begin(id(model.next), 1, len as u32, Purpose::New).unwrap();
                if len > 65_536 {
                    let part = content(9, 65_536);
                    writer.write(&part, &block_crcs(&part)).unwrap();
                }
                continue;
            }
            Op::Delete(seed) => {
                let Some(chunk) = model.pick(seed) else { continue };
                assert!(disk.delete(&[id(chunk)]).is_empty());
                let len = model.lens.remove(&chunk).unwrap();
                // A damaged record may carry no name any more: then its deletion finds nothing.
                if !model.lost.contains(&chunk) {
                    model.trash.push((chunk, len));
                }
                continue;
            }
            Op::Restore(seed) => {
                if model.trash.is_empty() {
                    continue;
                }
                let (chunk, len) = model.trash.remove(seed % model.trash.len());
                let failed = disk.restore(&[id(chunk)]);
                assert!(failed.is_empty() || model.damaged, "{failed:?}");
                match read(&disk, chunk) {
                    Ok(data) => {
                        assert!(data == content(chunk, len), "chunk {chunk} came back wrong");
                        model.lens.insert(chunk, len);
                    }
                    Err(error) => assert!(model.damaged, "chunk {chunk} is lost in the trash: {error}"),
                }
                continue;
            }
            Op::MakeRoom(bytes) => {
                let before = disk.health().trash;
                disk.make_room(bytes);
                let left = disk.health().trash;
                assert!(left == 0 || before - left >= bytes, "{before} {left} {bytes}");
                // Which ones went depends on restarts, after which all are as old.
                for (chunk, len) in std::mem::take(&mut model.trash) {
                    match disk.find(id(chunk)) {
                        Some(found) if found.trash => model.trash.push((chunk, len)),
                        _ => drop(model.deleted.insert(chunk)),
                    }
                }
                continue;
            }
            Op::Sync(seed) => {
                let Some(chunk) = model.pick(seed) else { continue };
                let outcome = sync(&disk, chunk);
                assert!(outcome.is_ok() || model.lost.contains(&chunk), "{outcome:?}");
                continue;
            }
            Op::Restart => {
                disk.close();
                drop(disk);
            }
            Op::Crash => drop(disk),
            Op::Truncate(at) => {
                drop(disk);
                if let Some(last) = segment_files(dir.path()).last() {
                    let len = std::fs::metadata(last).unwrap().len();
                    std::fs::File::options().write(true).open(last).unwrap().set_len(at % (len + 1)).unwrap();
                    may_lose = usize::MAX;
                    model.damaged = true;
                }
            }
            Op::Flip(file, at, bit) => {
                drop(disk);
                let files = segment_files(dir.path());
                if !files.is_empty() {
                    let file = &files[file % files.len()];
                    let len = std::fs::metadata(file).unwrap().len();
                    flip(file, at % len, bit);
                    may_lose = 1;
                    model.damaged = true;
                }
            }
        }
        disk = open_with_trash(dir.path());
        model.check(&disk, may_lose);
    }
    model.check(&disk, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_never_returns_wrong_bytes(ops in prop::collection::vec(op(), 1..40)) {
        run(ops);
    }
}
