//! Applications that write while something breaks, and remember what they were promised: a note is
//! taken only after `fsync` returned, in the memory of the test, which nobody kills.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use scopeguard::defer;

use crate::pattern;

const PAGE: usize = 4096;
/// One write of a stream.
const PIECE: usize = 64 << 10;
/// Writes of a stream between two `fdatasync`.
const PIECES_PER_SYNC: u64 = 24;
/// Pages of the file that is overwritten in place.
const PAGES: usize = 200;

/// Runs writers until it is told to stop, or until one sees an error.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    synced: AtomicU64,
}

impl Control {
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    /// How many `fsync` have returned so far, over all writers.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::SeqCst)
    }

    /// Waits until `count` more `fsync` have returned.
    #[track_caller]
    pub fn wait_synced(&self, count: u64, limit: Duration) {
        let goal = self.synced() + count;
        crate::wait::until_true("the writers to sync", limit, || self.synced() >= goal);
    }
}

/// What one writer did.
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended before it was told to.
    pub error: Option<io::Error>,
    /// The longest that one call took.
    pub slowest: Duration,
    /// Bytes handed to `write`.
    pub written: u64,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    /// Whole files: number, length; all synced.
    Files { directory: PathBuf, synced: Vec<(u64, u64)> },
    /// One file, written from start to end.
    Stream { path: PathBuf, seed: u64, synced: u64 },
    /// One file, overwritten page by page: the version of each page that was synced, and the last.
    Pages { path: PathBuf, synced: Vec<u64>, last: Vec<u64> },
}

struct Clock {
    slowest: Duration,
}

impl Clock {
    fn time<T>(&mut self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let start = Instant::now();
        let result = call();
        self.slowest = self.slowest.max(start.elapsed());
        result
    }
}

/// Gives this thread open files of its own. Otherwise a process that the test starts meanwhile would
/// inherit them, and before it can run, the kernel closes (and so flushes) its copies: it would wait
/// for the very cluster that it is to bring back.
pub fn keep_files_apart() {
    #[allow(unsafe_code)]
    // SAFETY: the thread was made for this work and uses no descriptor that another thread opens later.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }.expect("unshare");
}

/// One application on a mount.
pub type Writer = fn(&Path, &Control) -> Outcome;

/// Runs writers on a mount while something is done to the cluster; what they did, and what that gave.
pub fn alongside<T>(
    mount: &Path,
    writers: &[Writer],
    during: impl FnOnce(&Control) -> T,
) -> (Vec<Outcome>, T) {
    let control = Control::default();
    let (outcomes, given) = std::thread::scope(|scope| {
        let start = |writer: &Writer| {
            let (writer, control) = (*writer, &control);
            scope.spawn(move || {
                keep_files_apart();
                writer(mount, control)
            })
        };
        let writers: Vec<_> = writers.iter().map(start).collect();
        let given = {
            // Also when it panics, since the scope waits for the writers.
            defer! { control.stop() }
            during(&control)
        };
        let join = |writer: std::thread::ScopedJoinHandle<'_, Outcome>| writer.join().expect("writer");
        (writers.into_iter().map(join).collect::<Vec<_>>(), given)
    });
    for outcome in &outcomes {
        println!("{} bytes, slowest call {:?}, error {:?}", outcome.written, outcome.slowest, outcome.error);
    }
    (outcomes, given)
}

/// Makes what was renamed and removed in a directory survive.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes file after file, each synced.
pub fn files(mount: &Path, control: &Control) -> Outcome {
    let directory = mount.join("files");
    let mut synced = Vec::new();
    let mut clock = Clock { slowest: Duration::ZERO };
    let mut written = 0;
    let mut work = || -> io::Result<()> {
        clock.time(|| fs::create_dir_all(&directory))?;
        for number in 0.. {
            if !control.goes_on() {
                break;
            }
            let length = 1 + number * 7919 % 200_000;
            let path = directory.join(number.to_string());
            let mut file = clock.time(|| File::create(&path))?;
            clock.time(|| file.write_all(&pattern::bytes(number, 0, length as usize)))?;
            written += length;
            clock.time(|| file.sync_all())?;
            synced.push((number, length));
            control.synced.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    };
    let error = work().err();
    Outcome { error, slowest: clock.slowest, written, kept: Kept::Files { directory, synced } }
}

/// Writes one file from start to end, at most `limit` bytes, with a sync now and then.
pub fn stream(mount: &Path, name: &str, limit: u64, control: &Control) -> Outcome {
    let path = mount.join(name);
    let seed = name.bytes().map(u64::from).sum();
    let mut clock = Clock { slowest: Duration::ZERO };
    let (mut written, mut synced) = (0, 0);
    let mut work = || -> io::Result<()> {
        let file = clock.time(|| File::create(&path))?;
        while control.goes_on() && written < limit {
            let data = pattern::bytes(seed, written, PIECE);
            clock.time(|| file.write_all_at(&data, written))?;
            written += PIECE as u64;
            if (written / PIECE as u64).is_multiple_of(PIECES_PER_SYNC) {
                clock.time(|| file.sync_data())?;
                synced = written;
                control.synced.fetch_add(1, Ordering::SeqCst);
            }
        }
        clock.time(|| file.sync_data())?;
        synced = written;
        Ok(())
    };
    let error = work().err();
    Outcome { error, slowest: clock.slowest, written, kept: Kept::Stream { path, seed, synced } }
}

/// Overwrites pages of one file again and again, with a sync now and then.
pub fn pages(mount: &Path, control: &Control) -> Outcome {
    let path = mount.join("pages");
    let mut clock = Clock { slowest: Duration::ZERO };
    let (mut synced, mut last) = (vec![0; PAGES], vec![0; PAGES]);
    let mut version = 0;
    let mut work = || -> io::Result<()> {
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = clock.time(open)?;
        while control.goes_on() {
            version += 1;
            let page = (version * 67 % PAGES as u64) as usize;
            // Noted before the call: what fails may still arrive.
            last[page] = version;
            let data = pattern::bytes(version, 0, PAGE);
            clock.time(|| file.write_all_at(&data, (page * PAGE) as u64))?;
            if version.is_multiple_of(10) {
                clock.time(|| file.sync_all())?;
                synced.clone_from(&last);
                control.synced.fetch_add(1, Ordering::SeqCst);
            }
        }
        clock.time(|| file.sync_all())?;
        synced.clone_from(&last);
        Ok(())
    };
    let error = work().err();
    Outcome {
        error,
        slowest: clock.slowest,
        written: version * PAGE as u64,
        kept: Kept::Pages { path, synced, last },
    }
}

impl Outcome {
    /// The writer saw no error, and no call took longer than `limit`.
    #[track_caller]
    pub fn saw_nothing(&self, limit: Duration) {
        assert!(self.error.is_none(), "the application saw an error: {:?}", self.error);
        assert!(self.slowest < limit, "a call took {:?}", self.slowest);
    }

    /// The error came soon.
    #[track_caller]
    pub fn saw_only_errors_within(&self, limit: Duration) {
        assert!(self.slowest < limit, "a call took {:?}", self.slowest);
    }

    /// Everything that was promised is there, and nothing that was never written. Panics when nothing
    /// was promised: then nothing was tried.
    #[track_caller]
    pub fn check(&self) {
        match &self.kept {
            Kept::Files { directory, synced } => {
                assert!(!synced.is_empty(), "no file was synced: the test proves nothing");
                for &(number, length) in synced {
                    pattern::check_file(&directory.join(number.to_string()), number, length);
                }
            }
            Kept::Stream { path, seed, synced } => {
                assert!(*synced > 0, "nothing of the stream was synced: the test proves nothing");
                let data = fs::read(path).expect("read the stream");
                let length = data.len() as u64;
                assert!(length >= *synced, "{length} bytes are there, {synced} were synced");
                assert!(length <= self.written, "{length} bytes are there, {} were written", self.written);
                // Also what was not synced: a part from the start, with no gap and nothing foreign.
                let wrong = pattern::first_difference(*seed, 0, &data);
                assert_eq!(wrong, None, "first wrong byte of {length}, of which {synced} were synced");
            }
            Kept::Pages { path, synced, last } => {
                assert!(synced.iter().any(|&version| version > 0), "no page was synced");
                let data = fs::read(path).expect("read the pages");
                for (page, (&synced, &last)) in synced.iter().zip(last).enumerate() {
                    let at = page * PAGE;
                    let here = data.get(at..at + PAGE).unwrap_or_default();
                    if here.len() < PAGE || here.iter().all(|&byte| byte == 0) {
                        assert_eq!(synced, 0, "page {page} is gone, version {synced} was synced");
                        continue;
                    }
                    let found = (1..=last).rev().find(|&v| pattern::first_difference(v, 0, here).is_none());
                    let found = found.unwrap_or_else(|| panic!("page {page} is of no version"));
                    assert!(found >= synced, "page {page}: version {found}, {synced} was synced");
                }
            }
        }
    }

    /// It ended because there is no space.
    pub fn is_full(&self) -> bool {
        self.error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOSPC))
    }
}
