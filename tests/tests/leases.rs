//! Names that a mount changes under leases: what other mounts see, and what a crash leaves.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use cairn_tests::{Cluster, wait, workload};
use rustix::process::Signal;

/// Longer than any session lives without a word.
const EXPIRY: Duration = Duration::from_secs(25);

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("readdir");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("name")).collect();
    names.sort();
    names
}

/// Directories and files as one program after another makes them; the names of those that are there at the end.
fn make_tree(top: &Path) -> Vec<String> {
    fs::create_dir(top).expect("mkdir");
    for number in 0..50 {
        let directory = top.join(format!("d{number}"));
        fs::create_dir(&directory).expect("mkdir");
        fs::write(directory.join("new"), number.to_string()).expect("write");
        fs::rename(directory.join("new"), directory.join("old")).expect("rename");
        if number % 5 == 0 {
            fs::remove_file(directory.join("old")).expect("unlink");
            fs::remove_dir(&directory).expect("rmdir");
        }
    }
    (0..50).filter(|number| number % 5 != 0).map(|number| format!("d{number}")).collect()
}

#[test]
fn another_mount_sees_every_name_the_moment_it_looks() {
    let cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    for round in 0..5 {
        let top = format!("round{round}");
        // The mounts change roles.
        let (maker, reader) = match round % 2 {
            0 => (cluster.mount_path(), second.path().to_path_buf()),
            _ => (second.path().to_path_buf(), cluster.mount_path()),
        };
        let mut expected = make_tree(&maker.join(&top));
        expected.sort();
        assert_eq!(names(&reader.join(&top)), expected);
        for directory in &expected {
            let content = fs::read_to_string(reader.join(&top).join(directory).join("old")).expect("read");
            assert_eq!(format!("d{content}"), *directory);
        }
        // And what the reader does is seen in turn.
        fs::create_dir(reader.join(&top).join("by the reader")).expect("mkdir");
        assert!(maker.join(&top).join("by the reader").exists());
    }
}

/// What makes this mount list the directory in between has brought the new attributes here, but not to the kernel.
#[test]
fn an_open_shows_all_that_another_mount_has_closed_whatever_was_looked_for_before() {
    let cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    for round in 0..3 {
        let here = cluster.mount_path().join(format!("round{round}"));
        let there = second.path().join(format!("round{round}"));
        fs::create_dir(&here).expect("mkdir");
        for name in ["grown", "x", "y", "z"] {
            fs::write(here.join(name), [0; 5000]).expect("write");
        }
        std::thread::sleep(Duration::from_millis(1200)); // what the kernel knows of them has become old
        fs::metadata(here.join("grown")).expect("stat");
        let mut grown = File::options().append(true).open(there.join("grown")).expect("open");
        grown.write_all(&[1; 5000]).expect("append");
        grown.sync_all().expect("fsync");
        drop(grown);
        for number in 0..2 {
            assert!(!here.join(format!("absent{number}")).exists());
        }
        let mut opened = File::options().read(true).write(true).open(here.join("grown")).expect("open");
        let mut content = Vec::new();
        opened.read_to_end(&mut content).expect("read");
        assert_eq!(content.len(), 10_000, "round {round}");
        assert_eq!(opened.seek(SeekFrom::End(0)).expect("seek"), 10_000);
    }
}

/// Programs that change a file by its path within the second in which the kernel keeps what the name led to.
#[test]
fn what_another_mount_has_replaced_is_not_changed_instead_of_what_has_its_name() {
    let cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let (here, there) = (cluster.mount_path(), second.path().to_path_buf());
    type Change = fn(&Path) -> std::io::Result<()>;
    let changes: [(&str, Change); 3] = [
        ("chmod", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600))),
        ("utimes", |path| File::open(path)?.set_modified(SystemTime::UNIX_EPOCH)),
        ("setxattr", |path| xattr::set(path, "user.k", b"v")),
    ];
    for (name, change) in changes {
        let (file, new) = (here.join(name), there.join("new"));
        fs::write(&file, "old").expect("write");
        std::thread::sleep(Duration::from_millis(1200));
        fs::read(&file).expect("read");
        fs::metadata(&file).expect("stat");
        fs::write(&new, "NEW").expect("write");
        fs::rename(&new, there.join(name)).expect("rename");
        change(&file).expect(name);
        assert_eq!(fs::read_to_string(&file).expect("read"), "NEW", "{name}");
        let mut appended = File::options().append(true).open(&file).expect("open");
        appended.write_all(b"+A").expect("append");
        appended.sync_all().expect("fsync");
        assert_eq!(fs::read_to_string(there.join(name)).expect("read"), "NEW+A", "{name}");
    }
    assert_eq!(fs::metadata(there.join("chmod")).expect("stat").permissions().mode() & 0o777, 0o600);
    assert_eq!(xattr::get(there.join("setxattr"), "user.k").expect("getxattr").as_deref(), Some(&b"v"[..]));
}

#[test]
fn two_mounts_that_fill_one_directory_lose_no_name_and_make_none_twice() {
    let cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let mounts = [cluster.mount_path(), second.path().to_path_buf()];
    fs::create_dir(mounts[0].join("shared")).expect("mkdir");
    let made: Vec<usize> = std::thread::scope(|scope| {
        let makers: Vec<_> = mounts
            .iter()
            .map(|mount| {
                scope.spawn(move || {
                    let path = |number: usize| mount.join("shared").join(format!("n{number}"));
                    (0..300)
                        .filter(|number| match File::create_new(path(*number)) {
                            Ok(_) => true,
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
                                false
                            }
                        })
                        .count()
                })
            })
            .collect();
        makers.into_iter().map(|maker| maker.join().expect("maker")).collect()
    });
    assert_eq!(made.iter().sum::<usize>(), 300, "each name was made once: {made:?}");
    for mount in &mounts {
        assert_eq!(names(&mount.join("shared")).len(), 300);
    }
}

#[test]
fn two_mounts_that_remove_one_tree_at_once_both_succeed() {
    let cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let mounts = [cluster.mount_path(), second.path().to_path_buf()];
    for maker in &mounts {
        for number in 0..30 {
            let directory = maker.join(format!("tree/d{number}/inner"));
            fs::create_dir_all(&directory).expect("mkdir");
            for file in 0..10 {
                fs::write(directory.join(format!("f{file}")), "content").expect("write");
            }
        }
        let removals: Vec<_> = mounts
            .iter()
            .map(|mount| {
                let mut rm = Command::new("rm");
                rm.arg("-r").arg("-f").arg(mount.join("tree")).stderr(Stdio::piped()).spawn().expect("rm")
            })
            .collect();
        for removal in removals {
            let output = removal.wait_with_output().expect("rm");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && told.is_empty(), "as on a local disk nothing is told: {told}");
        }
        mounts.iter().for_each(|mount| assert!(!mount.join("tree").exists()));
    }
}

#[test]
fn a_killed_mount_keeps_nobody_waiting_for_longer_than_a_lease_and_what_it_synced_is_there() {
    let mut cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let top = cluster.mount_path().join("top");
    fs::create_dir(&top).expect("mkdir");
    for number in 0..20 {
        fs::write(top.join(format!("f{number}")), "content").expect("write");
    }
    fs::rename(top.join("f3"), top.join("renamed")).expect("rename");
    workload::sync_directory(&top).expect("fsync of the directory");
    cluster.kill9_mount();
    let began = Instant::now();
    let found = names(&second.path().join("top"));
    assert!(
        began.elapsed() < Duration::from_secs(14),
        "the leases of the dead were waited for: {:?}",
        began.elapsed()
    );
    assert_eq!(found.len(), 20);
    assert!(found.contains(&"renamed".to_owned()));
    fs::write(second.path().join("top/another"), "content").expect("it can be worked with");
    cluster.restart();
    assert_eq!(names(&cluster.mount_path().join("top")).len(), 21);
}

#[test]
fn a_frozen_mount_loses_its_leases_and_goes_on_when_it_thaws() {
    let mut cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let top = cluster.mount_path().join("top");
    fs::create_dir(&top).expect("mkdir");
    fs::create_dir(top.join("mine")).expect("mkdir");
    workload::sync_directory(&top).expect("fsync of the directory");
    cluster.mount_process().signal(Signal::STOP);
    let theirs = second.path().join("top/theirs");
    wait::until_true("the other mount to get in", EXPIRY, || {
        fs::create_dir(&theirs).is_ok() || theirs.exists()
    });
    cluster.mount_process().signal(Signal::CONT);
    // What it knew of the directory is void.
    wait::until_true("the thawed mount to see it", EXPIRY, || top.join("theirs").exists());
    fs::create_dir(top.join("again")).expect("mkdir after the thaw");
    assert_eq!(names(&second.path().join("top")), ["again", "mine", "theirs"]);
}

#[test]
fn a_restart_of_the_coordinator_takes_no_name_back() {
    let mut cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let top = cluster.mount_path().join("top");
    fs::create_dir(&top).expect("mkdir");
    let stop = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            let mut made = 0;
            while !stop.load(Ordering::SeqCst) {
                fs::create_dir(top.join(format!("d{made}"))).expect("mkdir");
                made += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            made
        });
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            cluster.kill9_coordinator();
            std::thread::sleep(Duration::from_millis(300));
            cluster.start_coordinator();
        }
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::SeqCst);
        maker.join().expect("maker")
    });
    assert!(made > 100, "{made} directories");
    assert_eq!(names(&second.path().join("top")).len(), made);
    assert_eq!(names(&top).len(), made);
}
