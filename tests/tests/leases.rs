//! Names that a mount changes under leases: what other mounts see, and what a crash leaves.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
