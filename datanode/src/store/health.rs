//! How a disk is doing: reads that fail, a directory that is gone, answers that come late.
//!
//! ```text
//! sound ──▶ faulty (takes no new chunks, is read) ──▶ lost (counts for nothing)
//!                        ▲──────────────────────────────┘ answers again
//! ```
//!
//! A failed write or sync makes a disk faulty at once, failed reads when several come together: one may
//! be a bad sector, whose chunk is set aside. Whether a faulty disk can still be read is found out by
//! reading from it. A fault stays until the next start.

use std::io;
use std::path::Path;
use std::time::Duration;

use cairn_runtime::clock;
use cairn_runtime::disk::DiskFile;
use cairn_runtime::threads;
use tracing::{error, info, warn};

use super::record::ALIGN;
use super::{DiskStore, Shared};

/// So many failed reads within so long make a disk faulty.
const READ_FAULTS_MAX: usize = 3;
const READ_FAULTS_WITHIN: Duration = Duration::from_secs(60);
/// Segments that are read from to find out whether a disk can be read.
const SAMPLES: usize = 4;
/// Checks in a row after which a disk is lost, or found again.
const LOST_AFTER: u32 = 2;
const FOUND_AFTER: u32 = 3;
/// A disk whose syncs or reads take less than this is not slow, whatever is usual.
const SLOW_MIN: Duration = Duration::from_secs(1);
/// Slow is so many times what is usual, for this disk or the others; not slow any more below the second.
const SLOW_FACTOR: f64 = 8.0;
const WELL_FACTOR: f64 = 3.0;
/// Weights of a new measurement in what is recent and in what is usual.
const RECENT_WEIGHT: f64 = 1.0 / 8.0;
const USUAL_WEIGHT: f64 = 1.0 / 256.0;
/// A write that takes longer has waited for the device.
const WAITED_MIN: Duration = Duration::from_millis(100);
/// So long after such a write the next ones are taken for slow.
const HELD_UP_TIME: Duration = Duration::from_secs(30);
/// What is written and synced to time a disk that gets nothing else to do.
const PROBE: &str = "probe";

/// How long the two kinds of work that wait for the device take. Writes that had to wait, most go no further
/// than memory, count as syncs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Latencies {
    pub(super) syncs: Latency,
    pub(super) reads: Latency,
}

impl Latencies {
    pub(super) fn is_slow(self) -> bool {
        self.syncs.slow || self.reads.slow
    }
}

/// Seconds that work of one kind took lately on a disk; `None` before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Recent {
    pub(crate) syncs: Option<f64>,
    pub(crate) reads: Option<f64>,
}

/// How long one kind of work takes, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Latency {
    recent: f64,
    usual: f64,
    slow: bool,
}

impl Latency {
    fn recent(self) -> Option<f64> {
        (self.recent > 0.0).then_some(self.recent)
    }

    pub(super) fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        if self.usual == 0.0 {
            (self.recent, self.usual) = (took, took);
        }
        self.recent += (took - self.recent) * RECENT_WEIGHT;
        if !self.slow {
            self.usual += (took - self.usual) * USUAL_WEIGHT;
        }
    }

    /// Decides anew; `others`: what is recent on the other disks, the median.
    fn judge(&mut self, others: Option<f64>) -> bool {
        let usual = others.map_or(self.usual, |others| others.min(self.usual));
        let factor = if self.slow { WELL_FACTOR } else { SLOW_FACTOR };
        self.slow = self.recent > SLOW_MIN.as_secs_f64() && self.recent > factor * usual;
        self.slow
    }
}

impl Shared {
    /// A read failed for another reason than what it read.
    pub(super) fn on_read_fault(&self, error: &io::Error) {
        metrics::counter!(crate::metrics::READ_FAULTS).increment(1);
        warn!(disk = %self.name, %error, "a read failed");
        let now = clock::now();
        let mut state = self.lock();
        state.read_faults.push_back(now);
        while state.read_faults.len() > READ_FAULTS_MAX {
            state.read_faults.pop_front();
        }
        let first = state.read_faults.front().copied().unwrap_or(now);
        if state.read_faults.len() == READ_FAULTS_MAX && now - first <= READ_FAULTS_WITHIN {
            self.fail(
                &mut state,
                format!("{READ_FAULTS_MAX} reads failed within a minute, the last: {error}"),
            );
        }
    }

    /// Reads from the device, and takes the time.
    pub(super) fn timed_read(&self, file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let started = clock::now();
        let result = file.read_at(buffer, offset);
        if result.is_ok() {
            self.lock().latency.reads.note(started.elapsed());
        }
        result
    }

    /// What a small read from the device takes, whatever may be in the cache.
    fn time_a_read(&self, file: &dyn DiskFile) {
        let _ = file.drop_cache(0, ALIGN);
        let _ = self.timed_read(file, &mut [0; ALIGN as usize], 0);
    }

    /// Writes, on a thread that serves others too. A device that is behind holds writes up, for seconds: from
    /// the second on they leave the thread to the others, so that a slow disk slows its own chunks only.
    pub(super) fn timed_write<T>(&self, write: impl FnOnce() -> T) -> T {
        let held_up = self.is_held_up();
        let started = clock::now();
        let result = if held_up { threads::in_place(write) } else { write() };
        let took = started.elapsed();
        if took >= WAITED_MIN {
            let mut state = self.lock();
            state.latency.syncs.note(took);
            state.held_up_until = Some(clock::now() + HELD_UP_TIME);
        }
        result
    }

    /// Whether writes had to wait for the device lately.
    fn is_held_up(&self) -> bool {
        self.lock().held_up_until.is_some_and(|until| clock::now() < until)
    }

    /// Whether a disk that is there answers; `Err` says how it does not.
    fn probe(&self, known: &Path) -> Result<(), String> {
        let mut byte = [0u8];
        let present = self.disk.open(known).and_then(|file| file.read_at(&mut byte, 0));
        if let Err(error) = present
            && is_disk_fault(&error)
        {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => "the data directory has vanished".into(),
                _ => format!("the data directory can not be read: {error}"),
            });
        }
        if self.lock().fault.is_none() {
            return Ok(());
        }
        let files: Vec<_> = {
            let state = self.lock();
            let step = (state.segments.len() / SAMPLES).max(1);
            state.segments.values().step_by(step).map(|segment| segment.file.clone()).collect()
        };
        let mut failed = Ok(());
        for file in &files {
            let _ = file.file.drop_cache(0, ALIGN);
            match file.file.read_at(&mut byte, 0) {
                Err(error) if is_disk_fault(&error) => {
                    failed = Err(format!("its segments can not be read: {error}"));
                }
                _ => return Ok(()), // some of it can be read
            }
        }
        failed
    }
}

impl DiskStore {
    /// Looks how the disk is; `known` is a file that every data directory has. Blocks.
    pub(crate) fn check(&self, known: &Path) {
        let result = self.shared.probe(known);
        let mut state = self.shared.lock();
        state.undecided = false;
        match result {
            Ok(()) => {
                state.bad_checks = 0;
                state.good_checks += 1;
                if state.lost && state.good_checks >= FOUND_AFTER {
                    info!(disk = %self.shared.name, "the disk can be read again");
                    state.lost = false;
                }
            }
            Err(fault) => {
                state.good_checks = 0;
                state.bad_checks += 1;
                self.shared.fail(&mut state, fault.clone());
                if state.bad_checks < LOST_AFTER {
                    state.undecided = !state.lost;
                } else if !state.lost {
                    error!(disk = %self.shared.name, fault, "the disk is lost: its chunks do not count any more");
                    state.lost = true;
                }
            }
        }
        let latency = state.latency;
        let file = state.segments.first_key_value().map(|(_, segment)| segment.file.clone());
        let lost = state.lost;
        drop(state);
        if latency.is_slow() && !lost {
            self.time_a_probe(file.is_none());
        }
        if let (true, false, Some(file)) = (latency.reads.slow, lost, file) {
            self.shared.time_a_read(&*file.file);
        }
    }

    /// What a slow disk, which gets no new chunks, takes for a small write; with `read` for a small read too.
    fn time_a_probe(&self, read: bool) {
        let shared = &self.shared;
        let path = Path::new(PROBE);
        let _ = shared.disk.unlink(path);
        let started = clock::now();
        let done = shared.disk.create_new(path).and_then(|file| {
            file.write_at(&[0; ALIGN as usize], 0).and_then(|()| file.sync()).map(|()| file)
        });
        let took = started.elapsed();
        if done.is_ok() {
            shared.lock().latency.syncs.note(took);
        }
        if let (Ok(file), true) = (done, read) {
            shared.time_a_read(&*file);
        }
        let _ = shared.disk.unlink(path);
    }

    /// How long syncs and reads took lately.
    pub(crate) fn recent_latency(&self) -> Recent {
        let latency = self.shared.lock().latency;
        Recent { syncs: latency.syncs.recent(), reads: latency.reads.recent() }
    }

    /// Decides whether the disk is slow, beside the medians of the others.
    pub(crate) fn judge_latency(&self, others: Recent) {
        let mut state = self.shared.lock();
        let before = state.latency.is_slow();
        state.latency.syncs.judge(others.syncs);
        state.latency.reads.judge(others.reads);
        let latency = state.latency;
        state.slow_since = latency.is_slow().then(|| state.slow_since.unwrap_or_else(clock::now));
        drop(state);
        let (syncs, reads) = (latency.syncs.recent, latency.reads.recent);
        match (before, latency.is_slow()) {
            (false, true) => {
                warn!(disk = %self.shared.name, syncs, reads, "the disk is slow: chunks go to others while those have room")
            }
            (true, false) => info!(disk = %self.shared.name, syncs, reads, "the disk is not slow any more"),
            _ => {}
        }
    }

    /// Whether syncs or reads take far longer than usual.
    pub(crate) fn is_slow(&self) -> bool {
        self.shared.lock().latency.is_slow()
    }

    /// How long the disk has been slow; `None` when it is not.
    pub(crate) fn slow_for(&self) -> Option<Duration> {
        self.shared.lock().slow_since.map(|since| since.elapsed())
    }

    /// Lets the disk be slow, from now on.
    #[cfg(test)]
    pub(crate) fn slow_down(&self) {
        let mut state = self.shared.lock();
        state.latency.syncs = Latency { recent: 10.0, usual: 0.01, slow: true };
        state.slow_since = Some(clock::now());
    }

    /// Whether it is being found out whether the disk can be read.
    pub(crate) fn is_undecided(&self) -> bool {
        self.shared.lock().undecided
    }
}

/// Whether an error says that the device or its file system is broken or gone, rather than that this
/// process lacks something.
fn is_disk_fault(error: &io::Error) -> bool {
    use libc::{EIO, ENODEV, ENOENT, ENOTDIR, ENXIO, EREMOTEIO, EROFS, ESTALE, EUCLEAN};
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::NotFound
        || code.is_some_and(|code| {
            [EIO, ENODEV, ENOENT, ENOTDIR, ENXIO, EREMOTEIO, EROFS, ESTALE, EUCLEAN].contains(&code)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(latency: &mut Latency, milliseconds: u64, times: usize) {
        (0..times).for_each(|_| latency.note(Duration::from_millis(milliseconds)));
    }

    #[test]
    fn a_disk_is_slow_when_it_takes_far_longer_than_usual_and_well_when_it_does_not() {
        let mut latency = Latency::default();
        noted(&mut latency, 20, 100);
        assert!(!latency.judge(None));
        noted(&mut latency, 500, 100);
        assert!(!latency.judge(None), "half a second is not slow");
        noted(&mut latency, 3000, 1);
        assert!(!latency.judge(None), "once is nothing");
        noted(&mut latency, 3000, 30);
        let usual = latency.usual;
        assert_eq!(latency.judge(None), 3.0 > SLOW_FACTOR * usual);
        let mut beside = latency;
        assert!(beside.judge(Some(0.02)), "the others do it in 20 ms");
        noted(&mut beside, 3000, 1000);
        assert!(beside.judge(Some(0.02)), "it does not become usual");
        noted(&mut beside, 20, 60);
        assert!(!beside.judge(Some(0.02)));
    }
}
