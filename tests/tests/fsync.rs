//! `fsync` through a mount that did not write, and power cuts after it: what has reached the block device of all
//! services must have everything that was committed before.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use cairn_tests::disk::{FreezableDisk, SmallDisk};
use cairn_tests::{Cluster, KIB, need_root, pattern, workload};

/// Files of each kind: small ones share chunks.
const FILES: u64 = 3;
const LENGTH: u64 = 700 * KIB;

fn builder(place: &Path) -> cairn_tests::Builder {
    Cluster::builder().place(place).env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB")
}

fn sync(path: &Path) {
    File::open(path).and_then(|file| file.sync_all()).expect("fsync");
}

fn clone(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).expect("open"), File::create(to).expect("create"));
    let length = usize::try_from(LENGTH).expect("a length");
    let copied = rustix::fs::copy_file_range(from.as_fd(), None, to.as_fd(), None, length).expect("copy");
    assert_eq!(copied, length);
}

#[test]
fn what_one_mount_closed_and_another_synced_survives_a_power_cut() {
    need_root();
    let workspace = cairn_tests::process::Workspace::new();
    let disk = FreezableDisk::new(workspace.path());
    {
        let cluster = builder(disk.path()).start();
        let writer = cluster.mount_path();
        let other = cluster.mount_at_with(Path::new("other"), &[]);
        for number in 0..FILES {
            for kind in ["synced", "cloned"] {
                pattern::write_file(&writer.join(format!("{kind}-{number}")), number, LENGTH);
            }
        }
        for number in 0..FILES {
            sync(&other.path().join(format!("synced-{number}")));
            let clone_path = other.path().join(format!("clone-{number}"));
            clone(&other.path().join(format!("cloned-{number}")), &clone_path);
            sync(&clone_path);
        }
        workload::sync_directory(other.path()).expect("fsync of the directory");
        disk.freeze("cut");
    }
    let image = workspace.path().join("beneath").join("cut");
    let frozen = SmallDisk::mounted(&workspace.path().join("cut"), &image);
    {
        let cluster = builder(frozen.path()).start();
        for number in 0..FILES {
            for kind in ["synced", "clone"] {
                pattern::check_file(&cluster.mount_path().join(format!("{kind}-{number}")), number, LENGTH);
            }
        }
    }
    drop(frozen);
    fs::remove_file(image).expect("remove the checked image");
}
