//! System calls on a real mount, where they are easy to get wrong.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_tests::cluster::forget;
use cairn_tests::mapping::Mapping;
use cairn_tests::{Cluster, GIB, KIB, MIB, pattern, shell};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

fn mounted() -> (Cluster, std::path::PathBuf) {
    let cluster = Cluster::builder().start();
    let path = cluster.mount_path();
    (cluster, path)
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

/// A small generator, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn a_shared_mapping_and_writes_beside_it_show_the_same_file() {
    let (_cluster, mount) = mounted();
    let path = mount.join("mapped");
    let length = 3 * MIB as usize + 777;
    let file = open(&path);
    file.set_len(length as u64).expect("truncate");
    let mapping = Mapping::shared(&file, length);
    let mut want = vec![0; length];
    let mut random = Random(7);
    for round in 0..1500 {
        let at = random.below(length as u64 - 5000) as usize;
        let data = pattern::bytes(round, 0, 1 + random.below(4999) as usize);
        mapping.write(at, &data);
        want[at..at + data.len()].copy_from_slice(&data);
        if round % 100 == 0 {
            let at = random.below(length as u64 - 5000);
            let data = pattern::bytes(round + 1, 0, 100);
            file.write_all_at(&data, at).expect("pwrite");
            let at = at as usize;
            want[at..at + 100].copy_from_slice(&data);
            assert_eq!(mapping.read(at, 100), data, "the mapping shows a write");
            let mut seen = vec![0; 3000];
            let at = random.below(length as u64 - 5000) as usize;
            file.read_exact_at(&mut seen, at as u64).expect("pread");
            assert!(seen == want[at..at + 3000], "a read shows the mapping");
        }
        if round % 400 == 0 {
            mapping.sync().expect("msync");
        }
    }
    mapping.sync().expect("msync");
    drop(mapping);
    drop(file);
    forget(&mount);
    assert!(fs::read(&path).expect("read") == want, "content after close");
    // A mapping outlives the descriptor, a rename and the name.
    let file = open(&path);
    let mapping = Mapping::shared(&file, length);
    drop(file);
    fs::rename(&path, mount.join("renamed")).expect("rename");
    mapping.write(0, b"abc");
    mapping.sync().expect("msync");
    assert_eq!(&fs::read(mount.join("renamed")).expect("read")[..3], b"abc");
    fs::remove_file(mount.join("renamed")).expect("unlink");
    mapping.write(length - 1, b"z");
    assert_eq!(mapping.read(length - 1, 1), b"z");
}

#[test]
fn a_private_mapping_does_not_change_the_file() {
    let (_cluster, mount) = mounted();
    let path = mount.join("private");
    fs::write(&path, [b'x'; 8192]).expect("write");
    let file = open(&path);
    let mapping = Mapping::private(&file, 8192);
    mapping.write(4000, b"yyyy");
    assert_eq!(mapping.read(3999, 6), b"xyyyyx");
    drop(mapping);
    forget(&path);
    assert!(fs::read(&path).expect("read").iter().all(|&byte| byte == b'x'));
}

#[test]
fn ten_thousand_files_in_a_directory_are_listed_and_removed_once_each() {
    // One after the other, as the kernel changes a directory: here not each waits for the disk.
    let cluster = Cluster::builder().env("CAIRN_COORDINATOR__METADATA_SYNC", false).start();
    let mount = cluster.mount_path();
    let directory = mount.join("big");
    fs::create_dir(&directory).expect("mkdir");
    let names: BTreeSet<String> = (0..10_000).map(|i| format!("{i:05}-{}", "n".repeat(i % 40))).collect();
    let in_parallel = |names: &[&String], work: &(dyn Fn(&Path) + Sync)| {
        std::thread::scope(|scope| {
            for part in names.chunks(names.len().div_ceil(8)) {
                let directory = &directory;
                scope.spawn(move || part.iter().for_each(|name| work(&directory.join(name))));
            }
        });
    };
    in_parallel(&names.iter().collect::<Vec<_>>(), &|path| drop(File::create(path).expect("create")));
    let listed = || -> Vec<String> {
        let entries = fs::read_dir(&directory).expect("readdir");
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("name")).collect()
    };
    let seen = listed();
    assert_eq!(seen.len(), names.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
    assert_eq!(fs::metadata(&directory).expect("stat").nlink(), 2);
    // Removing every fifth while reading: all are seen exactly once.
    let mut seen = Vec::new();
    for entry in fs::read_dir(&directory).expect("readdir") {
        let entry = entry.expect("entry");
        if seen.len() % 5 == 0 {
            fs::remove_file(entry.path()).expect("unlink");
        }
        seen.push(entry.file_name().into_string().expect("name"));
    }
    assert_eq!(seen.len(), names.len());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
    let left = listed();
    assert_eq!(left.len(), names.len() - names.len() / 5);
    in_parallel(&left.iter().collect::<Vec<_>>(), &|path| fs::remove_file(path).expect("unlink"));
    assert_eq!(listed().len(), 0);
    for i in 0..200 {
        fs::create_dir(directory.join(format!("d{i}"))).expect("mkdir");
    }
    assert_eq!(fs::metadata(&directory).expect("stat").nlink(), 202);
    fs::remove_dir(&directory).expect_err("rmdir of a directory with entries");
}

#[test]
fn names_are_any_bytes_but_slash_and_nul_up_to_255() {
    let (_cluster, mount) = mounted();
    let mut names: Vec<Vec<u8>> = vec![
        vec![b'n'; 255],
        "é".repeat(127).into_bytes(),
        b" ".to_vec(),
        b"-rf".to_vec(),
        b"new\nline".to_vec(),
        b"\xff\xfe not utf8".to_vec(),
        b"back\\slash".to_vec(),
        b"*?[]".to_vec(),
        b"...".to_vec(),
        "e\u{301}".into(),
        "é".into(),
        b"A".to_vec(),
        b"a".to_vec(),
        b"trailing.".to_vec(),
    ];
    names.extend((1..=255).filter(|&byte| byte != b'/').map(|byte| vec![b'x', byte]));
    names.sort();
    for (index, name) in names.iter().enumerate() {
        fs::write(mount.join(OsStr::from_bytes(name)), index.to_string()).expect("write");
    }
    forget(&mount);
    let mut listed: Vec<Vec<u8>> = fs::read_dir(&mount)
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name().as_bytes().to_vec())
        .collect();
    listed.sort();
    assert_eq!(listed, names);
    for (index, name) in names.iter().enumerate() {
        let content = fs::read(mount.join(OsStr::from_bytes(name))).expect("read");
        assert_eq!(content, index.to_string().as_bytes(), "{name:?}");
    }
    let error = fs::write(mount.join("n".repeat(256)), "").expect_err("a name of 256 bytes");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    std::os::unix::fs::symlink("t".repeat(4000), mount.join("long")).expect("symlink");
    assert_eq!(fs::read_link(mount.join("long")).expect("readlink").as_os_str().len(), 4000);
}

#[test]
fn paths_longer_than_path_max_can_be_walked() {
    let (cluster, mount) = mounted();
    let script = format!(
        r#"
        cd "{}"
        d=$(printf 'd%.0s' $(seq 200))
        for i in $(seq 30); do mkdir $d; cd $d; done
        echo deep >f
        same "$(cat f)" deep "content"
        "#,
        mount.display()
    );
    shell::bash(&cluster.local(), Duration::from_secs(60), &script);
}

#[test]
fn a_sparse_file_of_100_gib_reads_zeros_takes_no_room_and_ends_where_it_should() {
    let (_cluster, mount) = mounted();
    let file = open(&mount.join("sparse"));
    file.set_len(100 * GIB).expect("truncate up");
    file.write_all_at(b"mid", 50 * GIB + 12_345).expect("pwrite");
    file.write_all_at(b"end", 100 * GIB - 3).expect("pwrite");
    file.sync_all().expect("fsync");
    let meta = file.metadata().expect("stat");
    assert_eq!(meta.len(), 100 * GIB);
    assert!(meta.blocks() * 512 < MIB, "{} blocks", meta.blocks());
    let read = |at: u64, length: usize| {
        let mut data = vec![1; length];
        file.read_exact_at(&mut data, at).expect("pread");
        data
    };
    forget(&mount);
    assert_eq!(read(30 * GIB, 100_000), vec![0; 100_000]);
    assert_eq!(read(50 * GIB + 12_344, 5), b"\0mid\0");
    assert_eq!(read(100 * GIB - 4, 4), b"\0end");
    // What is cut off does not come back.
    file.set_len(50 * GIB + 12_347).expect("truncate down");
    file.set_len(60 * GIB).expect("truncate up");
    assert_eq!(read(50 * GIB + 12_345, 5), b"mi\0\0\0");
    let data = seek(&file, SeekFrom::Data(0)).expect("SEEK_DATA");
    assert!(data <= 50 * GIB + 12_345 && data > 49 * GIB, "SEEK_DATA gives {data}");
    let hole = seek(&file, SeekFrom::Hole(data)).expect("SEEK_HOLE");
    assert!(hole > 50 * GIB + 12_345 && hole < 51 * GIB, "SEEK_HOLE gives {hole}");
    let none = seek(&file, SeekFrom::Data(55 * GIB)).expect_err("no data there");
    assert_eq!(none, rustix::io::Errno::NXIO);
}

#[test]
fn offsets_near_the_largest_file_are_refused_or_work() {
    let (_cluster, mount) = mounted();
    let file = open(&mount.join("large"));
    let largest = i64::MAX as u64;
    // The file may be that long, or is said not to.
    match file.set_len(largest) {
        Ok(()) => assert_eq!(file.metadata().expect("stat").len(), largest),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EFBIG)),
    }
    for at in [largest - 1, largest - 4096] {
        match file.write_at(b"0123456789", at) {
            Ok(written) => assert!(written <= 10),
            Err(error) => {
                assert!(matches!(error.raw_os_error(), Some(libc::EFBIG | libc::EINVAL)), "{error}");
            }
        }
    }
    file.set_len(3).expect("truncate");
    file.write_all_at(b"abc", 0).expect("the file is usable");
    drop(file);
    assert_eq!(fs::read(mount.join("large")).expect("read"), b"abc");
}

#[test]
fn appends_of_several_processes_are_all_there_and_whole() {
    let (cluster, mount) = mounted();
    let script = format!(
        r#"
        : >"{0}/log"
        pids=()
        for p in 1 2 3 4; do
            (
                exec 3>>"{0}/log"
                for i in $(seq 300); do printf '%d %04d %s\n' $p $i {1} >&3; done
            ) &
            pids+=($!)
        done
        for p in "${{pids[@]}}"; do wait $p; done
        "#,
        mount.display(),
        "abcdefghij".repeat(9)
    );
    shell::bash(&cluster.local(), Duration::from_secs(60), &script);
    let log = fs::read_to_string(mount.join("log")).expect("read");
    let lines: Vec<&str> = log.lines().collect();
    let whole: BTreeSet<&str> =
        lines.iter().copied().filter(|line| line.len() == 97 && line.ends_with("ghij")).collect();
    assert_eq!((lines.len(), whole.len()), (1200, 1200), "lines; whole and distinct ones");
}

#[test]
fn an_unlinked_file_works_until_it_is_closed() {
    let (_cluster, mount) = mounted();
    let path = mount.join("u");
    let file = open(&path);
    file.write_all_at(&b"abc".repeat(50_000), 0).expect("write");
    fs::remove_file(&path).expect("unlink");
    assert_eq!(file.metadata().expect("stat").nlink(), 0);
    let read = |file: &File, at: u64, length: usize| {
        let mut data = vec![1; length];
        file.read_exact_at(&mut data, at).expect("pread");
        data
    };
    file.sync_all().expect("fsync");
    forget(&mount);
    assert_eq!(read(&file, 149_994, 6), b"abcabc");
    file.write_all_at(b"zzz", 300_000).expect("write");
    file.set_len(400_000).expect("truncate");
    file.sync_all().expect("fsync");
    file.set_permissions(fs::Permissions::from_mode(0o640)).expect("chmod");
    let meta = file.metadata().expect("stat");
    assert_eq!((meta.len(), meta.mode() & 0o777), (400_000, 0o640));
    assert_eq!(read(&file, 300_000, 3), b"zzz");
    assert_eq!(read(&file, 200_000, 5), [0; 5]);
    // A new file of the same name is another one.
    let second = open(&path);
    second.write_all_at(b"new", 0).expect("write");
    assert_ne!(second.metadata().expect("stat").ino(), file.metadata().expect("stat").ino());
    assert_eq!(read(&file, 0, 3), b"abc");
    // One that is replaced by a rename while it is open.
    fs::write(mount.join("u2"), "other").expect("write");
    fs::rename(mount.join("u2"), &path).expect("rename");
    assert_eq!(read(&second, 0, 3), b"new");
    assert_eq!(second.metadata().expect("stat").nlink(), 0);
    assert_eq!(fs::read(&path).expect("read"), b"other");
}

#[test]
fn a_file_replaced_by_rename_is_always_whole() {
    let (_cluster, mount) = mounted();
    let path = mount.join("settings");
    let put = |number: u64| {
        let temporary = mount.join("settings.tmp");
        let mut file = File::create(&temporary).expect("create");
        file.write_all(format!("{number:08}").repeat(3000).as_bytes()).expect("write");
        file.sync_all().expect("fsync");
        fs::rename(&temporary, &path).expect("rename");
    };
    put(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut last, mut reads) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                let text = fs::read_to_string(&path).expect("read");
                assert_eq!(text.len(), 24_000, "length of what is there");
                assert_eq!(text, text[..8].repeat(3000), "torn");
                let number: u64 = text[..8].parse().expect("number");
                assert!(number >= last, "went back from {last} to {number}");
                (last, reads) = (number, reads + 1);
            }
            reads
        });
        (1..150).for_each(put);
        done.store(true, Ordering::SeqCst);
        assert!(reader.join().expect("reader") > 10);
    });
    assert!(fs::read_to_string(&path).expect("read").starts_with("00000149"));
}

#[test]
fn holes_are_punched_zeroed_and_found() {
    let (_cluster, mount) = mounted();
    let path = mount.join("holes");
    pattern::write_file(&path, 3, 4 * MIB);
    let file = open(&path);
    let mut want = pattern::bytes(3, 0, 4 * MIB as usize);
    let check = |want: &[u8], what: &str| {
        forget(&path);
        let mut got = Vec::new();
        File::open(&path).expect("open").read_to_end(&mut got).expect("read");
        let wrong = got.iter().zip(want).position(|(a, b)| a != b);
        assert_eq!((got.len(), wrong), (want.len(), None), "{what}: length, first wrong byte");
    };
    file.sync_all().expect("fsync");
    let full = file.metadata().expect("stat").blocks();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, MIB + 100, MIB).expect("punch");
    want[MIB as usize + 100..2 * MIB as usize + 100].fill(0);
    check(&want, "after a hole was punched");
    assert!(file.metadata().expect("stat").blocks() + 1900 < full, "a hole gives room back");
    assert_eq!(seek(&file, SeekFrom::Hole(0)).expect("SEEK_HOLE"), MIB + 100);
    assert_eq!(seek(&file, SeekFrom::Data(MIB + 100)).expect("SEEK_DATA"), 2 * MIB + 100);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 3 * MIB, 3 * MIB).expect("zero range");
    want.resize(6 * MIB as usize, 0);
    want[3 * MIB as usize..].fill(0);
    check(&want, "after a range was zeroed");
    fallocate(&file, FallocateFlags::KEEP_SIZE, 6 * MIB, MIB).expect("keep size");
    assert_eq!(file.metadata().expect("stat").len(), 6 * MIB);
    fallocate(&file, FallocateFlags::empty(), 6 * MIB, MIB).expect("allocate");
    want.resize(7 * MIB as usize, 0);
    check(&want, "after allocating past the end");
    // Unsaved data is punched too.
    file.write_all_at(&[7; 10_000], 5 * MIB).expect("write");
    fallocate(&file, punch, 5 * MIB + 2000, 3000).expect("punch");
    let at = 5 * MIB as usize;
    want[at..at + 10_000].fill(7);
    want[at + 2000..at + 5000].fill(0);
    check(&want, "after punching what was not saved yet");
    let error = fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 10).expect_err("without KEEP_SIZE");
    assert!(matches!(error, rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL), "{error}");
}

#[test]
fn random_writes_truncates_and_reads_agree_with_a_copy_in_memory() {
    let cluster = Cluster::builder().chunk_size(64 * KIB).start();
    let path = cluster.mount_path().join("random");
    let mut file = open(&path);
    let mut want: Vec<u8> = Vec::new();
    let mut random = Random(0x1234_5678_9abc);
    for round in 0..1500_u64 {
        let at = random.below(700_000);
        match random.below(12) {
            0..=5 => {
                let data = pattern::bytes(round, at, 1 + random.below(150_000) as usize);
                file.write_all_at(&data, at).expect("pwrite");
                let end = at as usize + data.len();
                want.resize(want.len().max(end), 0);
                want[at as usize..end].copy_from_slice(&data);
            }
            6..=8 => {
                let mut got = vec![0; 1 + random.below(150_000) as usize];
                let count = file.read_at(&mut got, at).expect("pread");
                let have = want.get(at as usize..).unwrap_or_default();
                let have = &have[..have.len().min(got.len())];
                assert_eq!(count, have.len(), "round {round}: bytes read at {at}");
                assert!(got[..count] == *have, "round {round}: content at {at}");
            }
            9 => {
                file.set_len(at).expect("truncate");
                want.resize(at as usize, 0);
            }
            10 => file.sync_data().expect("fdatasync"),
            _ => {
                drop(file);
                if round % 5 == 0 {
                    forget(&path);
                }
                file = open(&path);
            }
        }
        assert_eq!(file.metadata().expect("stat").len(), want.len() as u64, "round {round}: size");
    }
    drop(file);
    forget(&path);
    assert!(fs::read(&path).expect("read") == want, "content at the end");
}

#[test]
fn attributes_extended_ones_and_times_are_kept() {
    let (_cluster, mount) = mounted();
    let path = mount.join("attributes");
    fs::write(&path, "x").expect("write");
    for index in 0..100 {
        let value = pattern::bytes(index, 0, index as usize * 30);
        xattr::set(&path, format!("user.a{index}"), &value).expect("setxattr");
    }
    xattr::remove(&path, "user.a7").expect("removexattr");
    let error = xattr::remove(&path, "user.a7").expect_err("twice");
    assert_eq!(error.raw_os_error(), Some(libc::ENODATA));
    assert_eq!(xattr::get(&path, "user.a7").expect("getxattr"), None);
    let names: BTreeSet<_> = xattr::list(&path).expect("listxattr").collect();
    assert_eq!(names.len(), 99);
    for index in (0..100).filter(|&index| index != 7) {
        let value = xattr::get(&path, format!("user.a{index}")).expect("getxattr").expect("value");
        assert_eq!(value, pattern::bytes(index, 0, index as usize * 30));
    }
    let largest = vec![5; 64 << 10];
    let error = xattr::set(&path, "user.too-big", &vec![5; (64 << 10) + 1]).expect_err("65537 bytes");
    assert!(matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ERANGE)), "{error}");
    fs::write(mount.join("large"), "").expect("write");
    xattr::set(mount.join("large"), "user.largest", &largest).expect("65536 bytes");
    assert_eq!(xattr::get(mount.join("large"), "user.largest").expect("get"), Some(largest));
    // Times to the nanosecond, before 1970 and far ahead.
    for seconds in [-1_000_000_000_i64, 0, 1, 4_000_000_000] {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty())
            .expect("utimensat");
        let meta = fs::metadata(&path).expect("stat");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (seconds, 123_456_789));
        assert_eq!((meta.atime(), meta.atime_nsec()), (seconds, 123_456_789));
    }
}

#[test]
fn what_one_mount_closed_another_sees() {
    let (cluster, first) = mounted();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let (a, b) = (first.join("f"), second.path().join("f"));
    let mut random = Random(99);
    for round in 0..60 {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let length = [0, 1, 4095, 4096, 70_000, 1_100_000][random.below(6) as usize];
        let mut want = pattern::bytes(round, 0, length);
        fs::write(from, &want).expect("write");
        // Names may be up to a second old; what is opened is not.
        let mut got = Vec::new();
        cairn_tests::wait::until_true("the name on the other mount", Duration::from_secs(3), || {
            File::open(to).is_ok_and(|mut file| {
                got.clear();
                file.read_to_end(&mut got).expect("read");
                true
            })
        });
        assert!(got == want, "round {round}: {length} bytes were written and closed, {} are read", got.len());
        let mut file = OpenOptions::new().append(true).open(to).expect("append");
        file.write_all(b"tail").expect("write");
        drop(file);
        want.extend_from_slice(b"tail");
        assert!(fs::read(from).expect("read") == want, "round {round}: an append is not seen");
    }
    // Of two makers of a name one wins.
    for round in 0..20 {
        let makers = [&first, &second.path().to_path_buf()].map(|mount| {
            let path = mount.join(format!("once{round}"));
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| e.kind())
        });
        let won = makers.iter().filter(|result| result.is_ok()).count();
        assert_eq!(won, 1, "round {round}: makers that won");
        assert!(makers.iter().flat_map(|r| r.as_ref().err()).all(|kind| *kind == ErrorKind::AlreadyExists));
    }
}

#[test]
fn a_file_held_open_shows_what_another_mount_wrote_soon_after() {
    let (cluster, first) = mounted();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let length = 300_000;
    fs::write(first.join("f"), pattern::bytes(0, 0, length)).expect("write");
    let mut held = None;
    cairn_tests::wait::until_true("the name on the other mount", Duration::from_secs(3), || {
        held = File::open(second.path().join("f")).ok();
        held.is_some()
    });
    let held = held.expect("open");
    let mut got = vec![0; length];
    held.read_exact_at(&mut got, 0).expect("read");
    for round in 1..4 {
        // The same size: only the time tells that something has changed.
        let want = pattern::bytes(round, 0, length);
        let file = OpenOptions::new().write(true).open(first.join("f")).expect("open");
        file.write_all_at(&want, 0).expect("write");
        file.sync_all().expect("fsync");
        cairn_tests::wait::until_true("what the other mount synced", Duration::from_secs(20), || {
            held.read_exact_at(&mut got, 0).expect("read");
            got == want
        });
    }
}

#[test]
fn direct_and_synchronous_writes_are_stored_when_they_return() {
    let (cluster, mount) = mounted();
    let path = mount.join("direct");
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_SYNC)
        .open(&path)
        .expect("open");
    for index in 0..4 {
        file.write_all(&pattern::bytes(21, index * 65_536, 65_536)).expect("write");
        let wire = cluster.wire();
        let attr = wire.lookup("direct").expect("lookup");
        assert_eq!(attr.size, (index + 1) * 65_536, "committed when write returns");
        wire.check_replicas(attr.inode, 21, attr.size, 3);
    }
}

#[test]
fn what_permission_bits_forbid_other_users_can_not_do() {
    cairn_tests::need_root();
    let cluster = Cluster::builder().mount_flag("--allow-other").start();
    let mount = cluster.mount_path();
    fs::write(mount.join("secret"), "x").expect("write");
    fs::set_permissions(mount.join("secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::create_dir(mount.join("closed")).expect("mkdir");
    fs::set_permissions(mount.join("closed"), fs::Permissions::from_mode(0o700)).expect("chmod");
    let script = format!(
        r#"
        as() {{ setpriv --reuid nobody --regid nogroup --clear-groups "$@"; }}
        as ls "{0}" >/dev/null
        for c in "cat {0}/secret" "ls {0}/closed" "touch {0}/new" "rm -f {0}/secret" "chmod 777 {0}/secret"; do
            as $c 2>/dev/null && fail "nobody may: $c"
        done
        true
        "#,
        mount.display()
    );
    shell::bash(&cluster.local(), Duration::from_secs(30), &script);
}
