//! The binary as it is shipped, hit at the Nth time that it writes, syncs or renames: killed there, or
//! told that the disk has failed or is full. Afterwards it is started again as usual, and all that was
//! acknowledged must be there.
//!
//! One datanode and one copy: nothing can be made good by another. A call is counted for each thread;
//! a point that is never reached ends the sweep of its call.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cairn_tests::cluster::forget;
use cairn_tests::inject::{Effect, Injection, Point};
use cairn_tests::{Cluster, KIB, need_root, pattern, rounds, wait, workload};

/// How long the workload may take in all, the restart included.
const ROUND_LIMIT: Duration = Duration::from_secs(60);
/// How long a process that was told of an error may go on, before it is started again.
const AFTER_FAULT: Duration = Duration::from_millis(150);
/// A workload that is still waiting after this time waits for a service that was hit.
const WORK_LIMIT: Duration = Duration::from_secs(4);

/// Which process is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Datanode,
    Coordinator,
}

/// What was acknowledged of one round's files.
#[derive(Debug, Default)]
struct Kept {
    /// Path, seed, length.
    files: Vec<(PathBuf, u64, u64)>,
    gone: Vec<PathBuf>,
    acknowledged: u64,
}

/// A fixed sequence: files of several sizes, synced, some renamed, overwritten, removed. Ends at the
/// first error, with what was acknowledged until then.
fn work(directory: &Path, files: u64, began: &AtomicU64) -> (Kept, Option<io::Error>) {
    workload::keep_files_apart();
    let mut kept = Kept::default();
    let mut run = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        for number in 0..files {
            began.store(number + 1, Ordering::SeqCst);
            let length = [300, 70 * KIB, 5000, 700 * KIB][(number % 4) as usize] + number;
            let first = directory.join(format!("new-{number}"));
            let file = File::create(&first)?;
            file.write_all_at(&pattern::bytes(number, 0, length as usize), 0)?;
            file.sync_all()?;
            kept.acknowledged += 1;
            match number % 3 {
                1 => {
                    let second = directory.join(format!("old-{number}"));
                    fs::rename(&first, &second)?;
                    workload::sync_directory(directory)?;
                    kept.acknowledged += 1;
                    kept.files.push((second, number, length));
                }
                2 => {
                    fs::remove_file(&first)?;
                    workload::sync_directory(directory)?;
                    kept.acknowledged += 1;
                    kept.gone.push(first);
                }
                _ => kept.files.push((first, number, length)),
            }
        }
        Ok(())
    };
    let error = run().err();
    (kept, error)
}

impl Kept {
    fn check(&self, point: &Point) {
        for (path, seed, length) in &self.files {
            let data = fs::read(path).unwrap_or_else(|error| panic!("{point}: {}: {error}", path.display()));
            assert_eq!(data.len() as u64, *length, "{point}: length of {}", path.display());
            let wrong = pattern::first_difference(*seed, 0, &data);
            assert_eq!(wrong, None, "{point}: first wrong byte of {}", path.display());
        }
        for path in &self.gone {
            assert!(!path.exists(), "{point}: {} is back", path.display());
        }
    }
}

struct Sweep {
    cluster: Cluster,
    target: Target,
    round: u64,
    files: u64,
    acknowledged: u64,
    hits: u64,
}

impl Sweep {
    fn new(target: Target, files: u64) -> Self {
        need_root();
        let cluster = Cluster::builder().datanodes(1).env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB").start();
        Self { cluster, target, round: 0, files, acknowledged: 0, hits: 0 }
    }

    fn runs(&mut self) -> bool {
        match self.target {
            Target::Datanode => self.cluster.node_runs(0),
            Target::Coordinator => self.cluster.coordinator_runs(),
        }
    }

    fn stop(&mut self) {
        match self.target {
            Target::Datanode => self.cluster.kill9_node(0),
            Target::Coordinator => self.cluster.kill9_coordinator(),
        }
    }

    fn start(&mut self, wrapper: &[std::ffi::OsString]) -> bool {
        match self.target {
            Target::Datanode => self.cluster.try_start_node_under(0, wrapper),
            Target::Coordinator => self.cluster.try_start_coordinator_under(wrapper),
        }
    }

    /// Hits one point; gives whether it was reached.
    fn hit(&mut self, point: &Point) -> bool {
        self.round += 1;
        let record = self.cluster.path().join("strace");
        let injection = Injection::new(point, &record);
        self.stop();
        // The point may lie in its start: then that fails, which is as good a place as any.
        if self.start(injection.wrapper()) && self.target == Target::Datanode {
            self.cluster.wait_formed_or(|cluster| !cluster.node_runs(0));
        }
        let directory = self.cluster.mount_path().join(format!("round-{}", self.round));
        let (began, files) = (AtomicU64::new(0), self.files);
        let (kept, error, hit) = std::thread::scope(|scope| {
            let (directory, began) = (&directory, &began);
            let worker = scope.spawn(move || work(directory, files, began));
            let limit = Instant::now() + WORK_LIMIT;
            while !worker.is_finished() && self.runs() && Instant::now() < limit && !injection.has_hit() {
                std::thread::sleep(Duration::from_millis(10));
            }
            if self.runs() && injection.has_hit() {
                let limit = Instant::now() + AFTER_FAULT;
                while !worker.is_finished() && Instant::now() < limit {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            let hit = if point.effect == Effect::Kill { !self.runs() } else { injection.has_hit() };
            // Started again, without faults: what waits goes on.
            self.stop();
            assert!(self.start(&[]), "{point}: it does not start again: {}", self.log());
            self.cluster.wait_formed();
            wait::until_true(&format!("the work to end after {point}"), ROUND_LIMIT, || worker.is_finished());
            let (kept, error) = worker.join().expect("the work");
            (kept, error, hit)
        });
        if let Some(error) = &error {
            assert!(hit, "an error without a fault: {error}");
            println!("{point}: the application saw {error} after {} files", began.load(Ordering::SeqCst));
        }
        self.acknowledged += kept.acknowledged;
        self.hits += u64::from(hit);
        forget(&self.cluster.mount_path());
        // Nothing in the memory of the mount either, whenever the datanode holds the only copy.
        kept.check(point);
        let path = self.cluster.mount_path().join("after");
        pattern::write_file(&path, self.round, 10_000);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .unwrap_or_else(|e| panic!("{point}: after it: {e}"));
        let _ = OpenOptions::new().write(true).open(&path).expect("open again");
        if !kept.files.is_empty() {
            self.check_elsewhere(&kept, point);
        }
        fs::remove_dir_all(&directory).unwrap_or_else(|e| {
            assert!(e.kind() == io::ErrorKind::NotFound, "{point}: {e}");
        });
        hit
    }

    /// Reads with the eyes of a process that has cached nothing.
    fn check_elsewhere(&self, kept: &Kept, point: &Point) {
        let inside = |path: &PathBuf| {
            format!("/{}", path.strip_prefix(self.cluster.mount_path()).expect("below the mount").display())
        };
        let mut arguments = vec!["cat".to_owned()];
        arguments.extend(kept.files.iter().map(|(path, ..)| inside(path)));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = self.cluster.run(&arguments);
        assert!(output.status.success(), "{point}: cat: {}", String::from_utf8_lossy(&output.stderr));
        let want: Vec<u8> = kept
            .files
            .iter()
            .flat_map(|(_, seed, length)| pattern::bytes(*seed, 0, *length as usize))
            .collect();
        assert!(output.stdout == want, "{point}: a client that has cached nothing reads something else");
    }

    fn log(&self) -> String {
        let name = match self.target {
            Target::Datanode => "datanode0",
            Target::Coordinator => "coordinator",
        };
        let log = self.cluster.log_of(name);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

fn calls(target: Target) -> &'static [&'static str] {
    match target {
        // Segments; identity.json and fence.json.
        Target::Datanode => &["fdatasync", "pwrite64", "fsync", "rename", "write", "fallocate"],
        // SQLite: its log and database. It truncates and removes its log at times.
        Target::Coordinator => &["fdatasync", "pwrite64", "fsync", "write", "ftruncate", "unlink"],
    }
}

/// Visits points until `count` were hit, the first of each call and effect before the second.
fn sweep(target: Target, count: u64, files: u64) {
    let mut sweep = Sweep::new(target, files);
    // A client comes back to a full node only after 10 s, which makes those points slow.
    let effects: &[Effect] = match rounds::is_long() {
        true => &[Effect::Kill, Effect::Eio, Effect::Enospc],
        false => &[Effect::Kill, Effect::Eio],
    };
    let all = calls(target).iter().flat_map(|&call| effects.iter().map(move |&effect| (call, effect)));
    // By `write` threads also wake each other, where an error has no meaning: there, only the end.
    let mut open: Vec<(&str, Effect)> =
        all.filter(|&(call, effect)| call != "write" || effect == Effect::Kill).collect();
    let mut nth = 0;
    while sweep.hits < count && !open.is_empty() {
        nth += 1;
        open.retain(|&(call, effect)| sweep.hits >= count || sweep.hit(&Point { call, nth, effect }));
    }
    let depth = format!("{:?}, up to number {nth} of each call, 0 lost", target);
    rounds::report("crash points", sweep.hits, sweep.acknowledged, &depth);
    assert!(sweep.hits >= count.min(50), "only {} points were reached", sweep.hits);
}

/// Points of each process, when `scripts/reliability` does not ask for more.
const POINTS: u64 = 50;

#[test]
fn a_datanode_hit_at_any_write_or_sync_loses_nothing_acknowledged() {
    sweep(Target::Datanode, rounds::count(POINTS), if rounds::is_long() { 60 } else { 12 });
}

#[test]
fn a_coordinator_hit_at_any_write_or_sync_loses_nothing_acknowledged() {
    sweep(Target::Coordinator, rounds::count(POINTS), if rounds::is_long() { 60 } else { 12 });
}
