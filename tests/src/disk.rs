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
