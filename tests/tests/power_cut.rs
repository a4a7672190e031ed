//! Power cuts: the disks of all services, frozen in the middle of their work and started again.
//!
//! The manifest is in the memory of the test, outside of all that is cut. It says for each file which
//! changes have begun and which have been acknowledged; a frozen disk must show each file as it was
//! after some change between the last one acknowledged before the cut and the last one begun before
//! its end. What is shown is what had reached the block device; a device with a volatile cache is not.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_tests::disk::{FreezableDisk, SmallDisk};
use cairn_tests::{Cluster, KIB, MIB, need_root, pattern, rounds, wait, workload};
use scopeguard::defer;

/// Cuts of one cluster; the long form takes several clusters.
const CUTS_PER_CLUSTER: u64 = 8;
/// Writers at once, each with files of its own.
const WRITERS: u64 = 2;
const PAGE: usize = 4096;

/// The changes of one file, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Written under its first name and synced.
    Written,
    /// Renamed, and the directory synced.
    Renamed,
    /// One page replaced and synced.
    Replaced,
    /// Removed, and the directory synced.
    Removed,
}

/// What happens to file `number`.
fn stages(number: u64) -> &'static [Stage] {
    use Stage::{Removed, Renamed, Replaced, Written};
    match number % 5 {
        0 => &[Written],
        1 => &[Written, Renamed],
        2 => &[Written, Renamed, Replaced],
        3 => &[Written, Replaced, Renamed, Removed],
        _ => &[Written, Replaced],
    }
}

fn length(number: u64) -> u64 {
    if number % 11 == 10 { 3 * MIB + number } else { 1 + number * 7919 % (180 * KIB) }
}

fn first_name(number: u64) -> String {
    format!("new-{number}")
}

fn second_name(number: u64) -> String {
    format!("old-{number}")
}

/// How many changes of one file have begun, and how many were acknowledged.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    begun: usize,
    acknowledged: usize,
}

/// Of each writer, the progress of each of its files.
type Manifest = Vec<Vec<Progress>>;

/// The manifest before and after the moment of a cut.
struct Cut {
    name: String,
    before: Manifest,
    after: Manifest,
}

fn write_files(mount: &Path, writer: u64, manifest: &Mutex<Manifest>, stop: &AtomicBool) {
    workload::keep_files_apart();
    let note = |index: usize, change: &dyn Fn(&mut Progress)| {
        change(&mut manifest.lock().expect("manifest")[writer as usize][index]);
    };
    for index in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let number = index as u64 * WRITERS + writer;
        manifest.lock().expect("manifest")[writer as usize].push(Progress::default());
        let (first, second) = (mount.join(first_name(number)), mount.join(second_name(number)));
        let mut path = first.clone();
        for stage in stages(number) {
            note(index, &|progress| progress.begun += 1);
            match stage {
                Stage::Written => {
                    let file = File::create(&first).expect("create");
                    let data = pattern::bytes(number, 0, length(number) as usize);
                    file.write_all_at(&data, 0).expect("write");
                    file.sync_all().expect("fsync");
                }
                Stage::Renamed => {
                    fs::rename(&first, &second).expect("rename");
                    workload::sync_directory(mount).expect("fsync of the directory");
                    path.clone_from(&second);
                }
                Stage::Replaced => {
                    let file = OpenOptions::new().write(true).open(&path).expect("open");
                    file.write_all_at(&page_of(number), 0).expect("write");
                    file.sync_data().expect("fdatasync");
                }
                Stage::Removed => {
                    fs::remove_file(&path).expect("unlink");
                    workload::sync_directory(mount).expect("fsync of the directory");
                }
            }
            note(index, &|progress| progress.acknowledged += 1);
        }
    }
}

/// What replaces the start of a file.
fn page_of(number: u64) -> Vec<u8> {
    pattern::bytes(number + 1_000_000, 0, PAGE.min(length(number) as usize))
}

/// The files of `number` as they are after `done` changes: their name and content.
fn expected(number: u64, done: usize) -> Option<(String, Vec<u8>)> {
    let (mut name, mut content) = (None, Vec::new());
    for stage in &stages(number)[..done] {
        match stage {
            Stage::Written => {
                name = Some(first_name(number));
                content = pattern::bytes(number, 0, length(number) as usize);
            }
            Stage::Renamed => name = Some(second_name(number)),
            Stage::Replaced => {
                let page = page_of(number);
                content[..page.len()].copy_from_slice(&page);
            }
            Stage::Removed => name = None,
        }
    }
    name.map(|name| (name, content))
}

/// Compares one frozen disk with what was promised; gives how many changes were.
fn check(mount: &Path, cut: &Cut) -> u64 {
    let mut promised = 0;
    let found = |name: String| match fs::read(mount.join(&name)) {
        Ok(content) => Some((name, content)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {name}: {error}", cut.name),
    };
    for writer in 0..WRITERS {
        for (index, after) in cut.after[writer as usize].iter().enumerate() {
            let number = index as u64 * WRITERS + writer;
            let acknowledged =
                cut.before[writer as usize].get(index).map_or(0, |progress| progress.acknowledged);
            promised += acknowledged as u64;
            let first = found(first_name(number));
            let second = found(second_name(number));
            assert!(first.is_none() || second.is_none(), "{}: file {number} has two names", cut.name);
            let shown = first.or(second);
            // Before its first sync a file may be there or not, with any part of its content.
            let unsynced = shown.as_ref().is_none_or(|(name, _)| *name == first_name(number));
            let anything = acknowledged == 0 && unsynced;
            let fits = (acknowledged..=after.begun).any(|done| expected(number, done) == shown);
            let shown_is = shown.map(|(name, content)| (name, content.len()));
            assert!(
                fits || anything,
                "{}: file {number} (of {} bytes) is {shown_is:?} after {acknowledged} acknowledged changes of {:?}",
                cut.name,
                length(number),
                stages(number),
            );
        }
    }
    // Nothing that was never made.
    for entry in fs::read_dir(mount).expect("readdir") {
        let name = entry.expect("entry").file_name().into_string().expect("name");
        let number: u64 = name.split('-').next_back().and_then(|text| text.parse().ok()).expect("a number");
        let made = cut.after[(number % WRITERS) as usize].len() as u64;
        assert!(number / WRITERS < made, "{}: {name} was never made", cut.name);
    }
    promised
}

/// Small segments, so that many fit on the disk and some get full.
fn builder(place: &Path) -> cairn_tests::Builder {
    Cluster::builder().place(place).env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB")
}

/// Runs writers on a cluster whose disks are frozen `count` times; gives how many changes were
/// acknowledged before the cuts, summed over them.
fn cut_power(count: u64) -> u64 {
    let workspace = cairn_tests::process::Workspace::new();
    let disk = FreezableDisk::new(workspace.path());
    let mut cuts = Vec::new();
    {
        let cluster = builder(disk.path()).start();
        let mount = cluster.mount_path();
        let manifest = Mutex::new(vec![Vec::new(); WRITERS as usize]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            defer! { stop.store(true, Ordering::SeqCst) }
            for writer in 0..WRITERS {
                let (manifest, stop, mount) = (&manifest, &stop, &mount);
                scope.spawn(move || write_files(mount, writer, manifest, stop));
            }
            let acknowledged = || -> usize {
                let manifest = manifest.lock().expect("manifest");
                manifest.iter().flatten().map(|progress| progress.acknowledged).sum()
            };
            for number in 0..count {
                let goal = acknowledged() + 12 + 3 * (number as usize % 7);
                wait::until_true("the writers to go on", Duration::from_secs(60), || acknowledged() >= goal);
                let name = format!("cut-{number}");
                let before = manifest.lock().expect("manifest").clone();
                disk.freeze(&name);
                let after = manifest.lock().expect("manifest").clone();
                cuts.push(Cut { name, before, after });
            }
        });
    }
    let mut promised = 0;
    for cut in &cuts {
        let place = workspace.path().join(&cut.name);
        let image = workspace.path().join("beneath").join(&cut.name);
        let frozen = SmallDisk::mounted(&place, &image);
        {
            let cluster = builder(frozen.path()).start();
            promised += check(&cluster.mount_path(), cut);
            // And what was left can be worked with.
            let path = cluster.mount_path().join(first_name(0));
            pattern::write_file(&path, 77, MIB);
            File::open(&path).and_then(|file| file.sync_all()).expect("fsync after the cut");
            pattern::check_file(&path, 77, MIB);
        }
        drop(frozen);
        fs::remove_file(image).expect("remove a checked image");
    }
    promised
}

#[test]
fn no_acknowledged_change_is_lost_when_the_power_is_cut() {
    need_root();
    let cuts = rounds::count(8);
    let mut promised = 0;
    let mut done = 0;
    while done < cuts {
        let here = CUTS_PER_CLUSTER.min(cuts - done);
        promised += cut_power(here);
        done += here;
        println!("{done} cuts, {promised} changes compared");
    }
    rounds::report("power cuts", done, promised, "0 lost");
}
