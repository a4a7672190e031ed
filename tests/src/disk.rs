//! Small disks, to be filled.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system of a given size; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// A tmpfs of `bytes` at `path`, which is made.
    pub fn tmpfs(path: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(path).expect("mountpoint");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}")])
            .arg("tmpfs")
            .arg(path));
        Self { path: path.to_owned() }
    }

    /// An ext4 of `bytes` in the file `image`, over a loop device that goes with the mount.
    pub fn ext4(path: &Path, image: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(path).expect("mountpoint");
        std::fs::File::create(image).and_then(|file| file.set_len(bytes)).expect("image");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image));
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(path));
        Self { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes in use below `path`, as the disk counts them.
pub fn usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    let below = if meta.is_dir() {
        std::fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|e| usage(&e.path())).sum())
    } else {
        0
    };
    meta.blocks() * 512 + below
}

/// An ext4 whose image lies on an XFS that can share blocks between files: a copy of the image, made
/// in an instant while all goes on, is the disk as a power cut would leave it. It has what reached
/// the block device, and nothing that only the page cache had.
#[derive(Debug)]
pub struct FreezableDisk {
    // Dropped in this order.
    disk: SmallDisk,
    beneath: SmallDisk,
}

/// Size of the XFS and of the ext4 on it. Only what is written takes room.
const BENEATH_BYTES: u64 = 24 << 30;
const FREEZABLE_BYTES: u64 = 3 << 30;

impl FreezableDisk {
    /// Makes the disks below `directory`.
    pub fn new(directory: &Path) -> Self {
        let beneath = directory.join("beneath");
        let image = directory.join("beneath.img");
        std::fs::create_dir_all(&beneath).expect("mountpoint");
        std::fs::File::create(&image).and_then(|file| file.set_len(BENEATH_BYTES)).expect("image");
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&beneath));
        let beneath = SmallDisk { path: beneath };
        let disk = SmallDisk::ext4(&directory.join("disk"), &beneath.path.join("disk.img"), FREEZABLE_BYTES);
        Self { disk, beneath }
    }

    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// Takes the disk as it is at this moment.
    pub fn freeze(&self, name: &str) -> PathBuf {
        let copy = self.beneath.path.join(name);
        run(Command::new("cp").arg("--reflink=always").arg(self.beneath.path.join("disk.img")).arg(&copy));
        copy
    }
}

impl SmallDisk {
    /// Mounts an image that exists; its journal is replayed.
    pub fn mounted(path: &Path, image: &Path) -> Self {
        std::fs::create_dir_all(path).expect("mountpoint");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(path));
        Self { path: path.to_owned() }
    }
}
