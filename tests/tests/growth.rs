//! Files that become longer without being written: ftruncate(2), fallocate(2).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use cairn_tests::cluster::forget;
use cairn_tests::{Cluster, KIB, MIB};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("open")
}

#[test]
fn fallocate_refuses_more_than_there_is_room_for() {
    let cluster = Cluster::builder().start();
    let place = cluster.mount_path();
    let file = open(&place.join("large"));
    let room = statvfs(&place).expect("statvfs");
    let available = room.f_bavail * room.f_frsize;
    for flags in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
        assert_eq!(fallocate(&file, flags, 0, 2 * available), Err(Errno::NOSPC), "{flags:?}");
    }
    assert_eq!(file.metadata().expect("stat").len(), 0);
    fallocate(&file, FallocateFlags::empty(), 0, MIB).expect("room for 1 MiB");
    assert_eq!(file.metadata().expect("stat").len(), MIB);
    // A hole needs no room.
    file.set_len(2 * available).expect("truncate");
}

#[test]
fn a_file_that_grows_in_many_ways_is_what_it_would_be_on_a_local_file_system() {
    let cluster = Cluster::builder().start();
    let local = cluster.local().join("compared");
    fs::create_dir(&local).expect("mkdir");
    let other = cluster.mount_at_with(Path::new("other"), &[]);
    let mut contents = Vec::new();
    for place in [local, cluster.mount_path()] {
        let path = place.join("grown");
        let file = open(&path);
        let mut sizes = Vec::new();
        for step in 1..=60_u64 {
            let before = file.metadata().expect("stat");
            match step % 5 {
                0 => file.set_len(step * 3 * KIB + 1).expect("truncate"),
                1 => fallocate(&file, FallocateFlags::empty(), step * KIB, 4 * KIB).expect("fallocate"),
                2 => file.write_all_at(&[step as u8; 700], step * 2 * KIB).expect("pwrite"),
                3 => fallocate(&file, FallocateFlags::KEEP_SIZE, step * KIB, 99 * KIB).expect("fallocate"),
                _ => file.set_len(file.metadata().expect("stat").len() + 10).expect("truncate"),
            }
            let after = file.metadata().expect("stat");
            assert!((after.mtime(), after.mtime_nsec()) >= (before.mtime(), before.mtime_nsec()));
            sizes.push(after.len());
            if step % 20 == 0 {
                file.sync_all().expect("fsync");
            }
        }
        drop(file);
        contents.push((sizes, fs::read(&path).expect("read")));
    }
    assert!(contents[0] == contents[1]);
    assert!(fs::read(other.path().join("grown")).expect("read") == contents[0].1, "on another mount");
    forget(&cluster.mount_path());
    assert!(fs::read(cluster.mount_path().join("grown")).expect("read") == contents[0].1);
}
