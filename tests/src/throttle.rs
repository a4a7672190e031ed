//! A slow device: what one process writes to it is limited by the kernel, also what it syncs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The control group that a process was put into; the limit and the group go when it is dropped.
#[derive(Debug)]
pub struct Throttle {
    group: PathBuf,
    limit: Limit,
    device: String,
    parent: PathBuf,
    pid: u32,
}

/// How the two versions of control groups name the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Blkio,
    Io,
}

impl Throttle {
    /// Lets `pid` write `bytes_per_second` to the device below the file system at `mountpoint`.
    pub fn begin(mountpoint: &Path, pid: u32, bytes_per_second: u64) -> Self {
        let dev = fs::metadata(mountpoint).expect("mountpoint").dev();
        let device = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        let blkio = PathBuf::from("/sys/fs/cgroup/blkio");
        let (parent, limit) = match blkio.is_dir() {
            true => (blkio, Limit::Blkio),
            false => (PathBuf::from("/sys/fs/cgroup"), Limit::Io),
        };
        if limit == Limit::Io {
            fs::write(parent.join("cgroup.subtree_control"), "+io +memory").expect("the controller io");
        }
        let group = parent.join(format!("cairn-test-{pid}"));
        fs::create_dir_all(&group).expect("a control group");
        let throttle = Self { group, limit, device, parent, pid };
        throttle.set(Some(bytes_per_second));
        fs::write(throttle.group.join("cgroup.procs"), pid.to_string()).expect("into the group");
        throttle
    }

    fn set(&self, limit: Option<u64>) {
        let (file, text) = match (self.limit, limit) {
            // 0: none.
            (Limit::Blkio, limit) => {
                ("blkio.throttle.write_bps_device", format!("{} {}", self.device, limit.unwrap_or(0)))
            }
            (Limit::Io, Some(limit)) => ("io.max", format!("{} wbps={limit}", self.device)),
            (Limit::Io, None) => ("io.max", format!("{} wbps=max", self.device)),
        };
        fs::write(self.group.join(file), text).expect("the limit");
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.set(None);
        let _ = fs::write(self.parent.join("cgroup.procs"), self.pid.to_string());
        let _ = fs::remove_dir(&self.group);
    }
}
