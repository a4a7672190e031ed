//! Processes that stand still for longer than a session lives, and go on: nothing that a mount holds open is lost.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use cairn_tests::{Cluster, Process, wait};
use rustix::process::Signal;

/// Longer than any session lives without a word.
const TOO_LONG: Duration = Duration::from_secs(13);
const GRACE: Duration = Duration::from_secs(30);

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(true).open(path).expect("open")
}

fn freeze(process: &mut Process) {
    process.signal(Signal::STOP);
    std::thread::sleep(TOO_LONG);
    process.signal(Signal::CONT);
}

/// A file without a name is whole, and can be written and synced.
fn check_unlinked(file: &File, content: &[u8]) {
    let meta = file.metadata().expect("fstat");
    assert_eq!((meta.nlink(), meta.len()), (0, content.len() as u64));
    file.write_all_at(b"changed", 0).expect("write");
    file.sync_all().expect("fsync");
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
    let mut read = vec![0; content.len()];
    file.read_exact_at(&mut read, 0).expect("read");
    assert!(read[..7] == *b"changed" && read[7..] == content[7..]);
}

#[test]
fn a_file_that_was_open_while_its_mount_was_frozen_lives_when_its_name_goes() {
    let mut cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let content = vec![7; 3_000_000];
    let files = ["here", "there"].map(|name| {
        let file = open(&cluster.mount_path().join(name));
        file.write_all_at(&content, 0).expect("write");
        file.sync_all().expect("fsync");
        file
    });
    // As the temporary file of a program.
    let unlinked = open(&cluster.mount_path().join("temporary"));
    unlinked.write_all_at(&content, 0).expect("write");
    unlinked.sync_all().expect("fsync");
    fs::remove_file(cluster.mount_path().join("temporary")).expect("unlink");
    File::open(cluster.mount_path()).expect("open").sync_all().expect("fsync of the directory");
    freeze(cluster.mount_process());
    let log = "session opened";
    wait::until_true("a new session", GRACE, || cluster.log_of("coordinator").matches(log).count() >= 3);
    // Its name goes only now, through this mount and through the other one.
    fs::remove_file(cluster.mount_path().join("here")).expect("unlink");
    fs::remove_file(second.path().join("there")).expect("unlink");
    files.iter().chain([&unlinked]).for_each(|file| check_unlinked(file, &content));
}

#[test]
fn a_coordinator_that_stood_still_ends_no_session_and_gives_no_datanode_up() {
    let mut cluster = Cluster::builder().start();
    let content = vec![7; 3_000_000];
    let path = cluster.mount_path().join("unlinked");
    let file = open(&path);
    file.write_all_at(&content, 0).expect("write");
    file.sync_all().expect("fsync");
    fs::remove_file(&path).expect("unlink");
    File::open(cluster.mount_path()).expect("open").sync_all().expect("fsync of the directory");
    freeze(cluster.coordinator_process());
    fs::create_dir(cluster.mount_path().join("afterwards")).expect("mkdir");
    // Whatever is given up after the pause would be by then.
    std::thread::sleep(TOO_LONG);
    check_unlinked(&file, &content);
    let log = cluster.log_of("coordinator");
    assert!(log.contains("the coordinator was held up"), "{log}");
    for lost in ["session ended", "datanode is down"] {
        assert!(!log.contains(lost), "{lost}: {log}");
    }
}
