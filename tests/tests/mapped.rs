//! What the kernel's page cache holds and the file system does not see: dirty pages of mappings, pages beside direct
//! writes. Each promise is checked on a local file system as well.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use cairn_tests::aio::Aio;
use cairn_tests::cluster::forget;
use cairn_tests::mapping::Mapping;
use cairn_tests::{Cluster, KIB, MIB, pattern, process};
use rustix::fs::{
    FallocateFlags, SeekFrom, Timespec, Timestamps, copy_file_range, fallocate, futimens, seek,
};

/// A cluster, and the places where the same must be so.
fn places() -> (Cluster, Vec<PathBuf>) {
    let cluster = Cluster::builder().start();
    let local = cluster.local().join("compared");
    fs::create_dir(&local).expect("mkdir");
    let places = vec![local, cluster.mount_path()];
    (cluster, places)
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

/// A file of holes.
fn sparse(path: &Path, length: u64) -> File {
    let file = open(path);
    file.set_len(length).expect("truncate");
    file
}

fn set_times(file: &File, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 7 };
    futimens(file, &Timestamps { last_access: time, last_modification: time }).expect("futimens");
}

#[test]
fn times_that_are_set_stay_when_dirty_pages_are_written_back_later() {
    let (_cluster, places) = places();
    for place in places {
        let path = place.join("times");
        let file = sparse(&path, 3 * MIB);
        let mapping = Mapping::shared(&file, 3 * MIB as usize);
        mapping.write(5, b"before");
        mapping.write(2 * MIB as usize, b"before");
        set_times(&file, 1_000_000);
        // By the name as well: the mapping is what keeps the file open.
        drop(file);
        let mtime = || fs::metadata(&path).expect("stat").mtime();
        assert_eq!(mtime(), 1_000_000, "at once");
        mapping.write(5, b"BEFORE");
        set_times(&File::open(&path).expect("open"), 2_000_000);
        drop(mapping);
        forget(&place);
        assert_eq!(mtime(), 2_000_000, "after the write-back, in {}", place.display());
        let written = fs::read(&path).expect("read");
        assert_eq!((&written[5..11], &written[2 * MIB as usize..][..6]), (&b"BEFORE"[..], &b"before"[..]));

        // What is written after that is a change again.
        let file = open(&path);
        let mapping = Mapping::shared(&file, 4096);
        set_times(&file, 3_000_000);
        mapping.write(5, b"after!");
        drop((mapping, file));
        assert!(mtime() > 3_000_000, "a later change, in {}", place.display());
    }
}

/// A shell that runs one line after the other. It is there before anything is mapped: a process that is made later
/// has the mapping, too, and its end makes the kernel write the pages back.
struct Shell(Child);

impl Shell {
    fn start(directory: &Path) -> Self {
        let mut command = process::command("bash");
        command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().expect("bash"))
    }

    fn run(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().expect("stdin"), "{line}; echo $?").expect("tell");
        let mut status = String::new();
        let out = self.0.stdout.as_mut().expect("stdout");
        // One byte at a time, so that nothing is lost with the reader.
        BufReader::with_capacity(1, out).read_line(&mut status).expect("read");
        assert_eq!(status, "0\n", "{line}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_copy_of_a_file_that_is_written_through_a_mapping_has_every_byte() {
    let (_cluster, places) = places();
    for place in places {
        let path = place.join("mapped");
        let length = 4 * MIB;
        let mut shell = Shell::start(&place);
        let file = sparse(&path, length);
        let mapping = Mapping::shared(&file, length as usize);
        let mut want = vec![0; length as usize];
        for (round, at) in [0, 900 * KIB + 5, 3 * MIB, length - 3].into_iter().enumerate() {
            // Each has a dirty page of its own before it. tar may say that the file changed: its time does, when the
            // page is written back.
            let copies =
                ["cp mapped copy", "{ tar -cSf archive mapped || [ $? = 1 ]; } && tar -xOf archive >copy"];
            for (at, copy) in [at, at / 3].into_iter().zip(copies) {
                let data = pattern::bytes(round as u64, 0, 3);
                mapping.write(at as usize, &data);
                want[at as usize..][..3].copy_from_slice(&data);
                shell.run(copy);
                assert!(fs::read(place.join("copy")).expect("read") == want, "{copy}, round {round}");
            }
            shell.run("rm -f copy archive");
        }
        // From where the pages are clean on, holes are holes.
        let data = seek(&file, SeekFrom::Data(2 * MIB)).expect("SEEK_DATA");
        assert_eq!(data, 3 * MIB, "in {}", place.display());
        assert_eq!(seek(&file, SeekFrom::Hole(3 * MIB)).expect("SEEK_HOLE"), 3 * MIB + 4096);
        mapping.write(2 * MIB as usize, b"new");
        assert_eq!(
            seek(&file, SeekFrom::Data(2 * MIB - 5)).expect("SEEK_DATA"),
            2 * MIB,
            "a dirty page is data"
        );
        mapping.write(3 * MIB as usize + 4096, b"new");
        assert_eq!(seek(&file, SeekFrom::Hole(3 * MIB)).expect("SEEK_HOLE"), 3 * MIB + 8192);
        assert_eq!(seek(&file, SeekFrom::Data(length)).expect_err("no data there"), rustix::io::Errno::NXIO);
        drop((mapping, file));
        let file = File::open(&path).expect("open");
        assert_eq!(seek(&file, SeekFrom::Hole(0)).expect("SEEK_HOLE"), 4096, "in {}", place.display());
        assert!(file.metadata().expect("stat").blocks() * 512 < MIB);
    }
}

#[test]
fn what_is_written_and_not_closed_takes_room() {
    let (_cluster, places) = places();
    for place in places {
        let path = place.join("written");
        let file = open(&path);
        assert_eq!(file.metadata().expect("stat").blocks(), 0);
        file.write_all_at(&pattern::bytes(1, 0, 1 << 20), 0).expect("write");
        let blocks = fs::metadata(&path).expect("stat").blocks() * 512;
        assert!(blocks >= MIB, "{blocks} bytes in {}", place.display());
    }
}

/// How a file of 5000 bytes grows.
#[derive(Debug, Clone, Copy)]
enum Growth {
    Truncate(u64),
    Allocate,
    Write(u64),
    DirectWrite,
    Copy,
}

impl Growth {
    fn apply(self, path: &Path, file: &File) {
        match self {
            Self::Truncate(size) => file.set_len(size).expect("truncate"),
            Self::Allocate => fallocate(file, FallocateFlags::empty(), 0, 20_000).expect("fallocate"),
            Self::Write(at) => file.write_all_at(b"x", at).expect("pwrite"),
            Self::DirectWrite => {
                let file =
                    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).expect("open");
                write_direct(&file, 0, 3 * 4096);
            }
            Self::Copy => {
                let source = path.with_extension("source");
                fs::write(&source, b"copied").expect("write");
                let source = File::open(&source).expect("open");
                let (mut from, mut to) = (0, 3 * 4096);
                copy_file_range(source, Some(&mut from), file, Some(&mut to), 6).expect("copy_file_range");
            }
        }
    }
}

/// Writes 4 KiB of `value`, from memory that O_DIRECT takes.
fn write_direct(file: &File, value: u8, at: u64) {
    let mut memory = vec![value; 2 * 4096];
    let from = memory.as_ptr().align_offset(4096);
    memory.truncate(from + 4096);
    file.write_all_at(&memory[from..], at).expect("direct write");
}

#[test]
fn what_a_mapping_wrote_behind_the_end_is_no_part_of_the_file_when_it_grows() {
    let (_cluster, places) = places();
    let growths = [
        Growth::Truncate(8192),
        Growth::Truncate(6000),
        Growth::Truncate(100_000),
        Growth::Allocate,
        Growth::Write(3 * 4096),
        Growth::Write(7000),
        Growth::DirectWrite,
        Growth::Copy,
    ];
    for (place, local) in places.into_iter().zip([true, false]) {
        // ext4 of Linux 6.18 shows what it should not after a direct write.
        let compared = |growth: &Growth| !(local && matches!(growth, Growth::DirectWrite));
        for (index, growth) in growths.into_iter().filter(compared).enumerate() {
            for synced in [false, true] {
                let path = place.join(format!("tail-{index}-{synced}"));
                fs::write(&path, [b'a'; 5000]).expect("write");
                let file = open(&path);
                let mapping = Mapping::shared(&file, 8192);
                mapping.write(4990, &[b'b'; 2000]);
                if synced {
                    mapping.sync().expect("msync");
                }
                growth.apply(&path, &file);
                let check = |when: &str| {
                    let content = fs::read(&path).expect("read");
                    let context = format!("{growth:?}, synced {synced}, {when}, in {}", place.display());
                    assert_eq!(content[4980..5000], *b"aaaaaaaaaabbbbbbbbbb", "{context}");
                    let end = content.len().min(6990);
                    assert!(content[5000..end].iter().all(|&byte| byte == 0), "{context}");
                };
                check("at once");
                drop((mapping, file));
                check("after the close");
                forget(&place);
                check("from the cluster");
            }
        }
    }
}

#[test]
fn a_mapping_may_write_to_what_the_file_has_grown_by() {
    let (_cluster, places) = places();
    for place in places {
        let path = place.join("grown");
        fs::write(&path, [b'a'; 5000]).expect("write");
        let file = open(&path);
        let mapping = Mapping::shared(&file, 8192);
        for (size, at) in [(5100, 5050), (6000, 5990), (8192, 6500)] {
            mapping.write(8000, b"lost");
            file.set_len(size).expect("truncate");
            mapping.write(at, b"kept");
            assert_eq!(mapping.read(at, 4), b"kept");
        }
        drop((mapping, file));
        forget(&place);
        let content = fs::read(&path).expect("read");
        for at in [5050, 5990, 6500] {
            assert_eq!(content[at..at + 4], *b"kept", "{at} in {}", place.display());
        }
        assert_eq!(content[8000..8004], [0; 4]);
    }
}

#[test]
fn an_asynchronous_direct_write_shows_in_reads_of_the_page_cache_beside_it() {
    /// Large enough that readers come while it is on its way.
    const LENGTH: usize = MIB as usize;
    /// A page near its end.
    const AT: u64 = MIB - 8192;
    let (_cluster, places) = places();
    for place in places {
        let path = place.join("direct");
        fs::write(&path, vec![0; 2 * LENGTH]).expect("write");
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).expect("open");
        let (reader, aio) = (File::open(&path).expect("open"), Aio::new().expect("io_setup"));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also when this panics.
            let _end = scopeguard::guard((), |()| over.store(true, Ordering::Relaxed));
            for _ in 0..3 {
                scope.spawn(|| {
                    let file = File::open(&path).expect("open");
                    while !over.load(Ordering::Relaxed) {
                        file.read_exact_at(&mut [0; 4096], AT).expect("read");
                    }
                });
            }
            for round in 1..=300 {
                let memory = vec![round as u8; LENGTH + 4096];
                let from = memory.as_ptr().align_offset(4096);
                assert_eq!(aio.write(&direct, &memory[from..][..LENGTH], 0).expect("io_submit"), LENGTH);
                let mut page = [0; 4096];
                reader.read_exact_at(&mut page, AT).expect("read");
                assert_eq!(page[0], round as u8, "round {round} in {}", place.display());
            }
        });
    }
}

#[test]
fn a_mount_says_that_reading_changes_no_access_times() {
    let cluster = Cluster::builder().start();
    let mount = cluster.mount_path();
    let lines = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = lines.lines().find(|line| line.contains(&format!(" {} ", mount.display()))).expect("mounted");
    let options = line.split(' ').nth(5).expect("options");
    assert!(options.split(',').any(|option| option == "noatime"), "{line}");
}
