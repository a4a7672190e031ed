//! A slow device: what one process writes to it is limited by the kernel, also what it syncs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The control group that a process was put into; the limit and the group go when it is dropped.
#[derive(Debug)]
pub struct Throttle {
    root: Root,
    group: PathBuf,
    device: String,
    pid: u32,
}

/// Where control groups with the controller of block devices are.
#[derive(Debug)]
enum Root {
    /// Version 1, as it is mounted.
    Blkio(PathBuf),
    /// Version 1, mounted here for this.
    Mounted(PathBuf),
    /// Version 2.
    Unified(PathBuf),
}

impl Root {
    fn find() -> Self {
        let blkio = PathBuf::from("/sys/fs/cgroup/blkio");
        if blkio.is_dir() {
            return Self::Blkio(blkio);
        }
        let unified = PathBuf::from("/sys/fs/cgroup");
        let controllers = fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|controller| controller == "io") {
            fs::write(unified.join("cgroup.subtree_control"), "+io +memory").expect("the controller io");
            return Self::Unified(unified);
        }
        let here = tempfile::tempdir().expect("a directory").keep();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "cgroup", "-o", "blkio", "blkio"]).arg(&here).status();
        assert!(mounted.is_ok_and(|status| status.success()), "no control groups can be had: {mount:?}");
        Self::Mounted(here)
    }

    fn path(&self) -> &Path {
        let (Self::Blkio(path) | Self::Mounted(path) | Self::Unified(path)) = self;
        path
    }

    /// The file for a limit of written bytes per second, and what it takes.
    fn limit(&self, device: &str, bytes_per_second: Option<u64>) -> (&'static str, String) {
        match (self, bytes_per_second) {
            (Self::Unified(_), Some(limit)) => ("io.max", format!("{device} wbps={limit}")),
            (Self::Unified(_), None) => ("io.max", format!("{device} wbps=max")),
            // 0: none.
            (_, limit) => ("blkio.throttle.write_bps_device", format!("{device} {}", limit.unwrap_or(0))),
        }
    }
}

impl Throttle {
    /// Lets `pid` write `bytes_per_second` to the device below the file system at `mountpoint`.
    pub fn begin(mountpoint: &Path, pid: u32, bytes_per_second: u64) -> Self {
        let root = Root::find();
        let dev = fs::metadata(mountpoint).expect("mountpoint").dev();
        let device = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        let group = root.path().join(format!("cairn-test-{pid}"));
        fs::create_dir_all(&group).expect("a control group");
        let throttle = Self { root, group, device, pid };
        throttle.set(Some(bytes_per_second)).expect("the limit");
        fs::write(throttle.group.join("cgroup.procs"), pid.to_string()).expect("into the group");
        throttle
    }

    fn set(&self, limit: Option<u64>) -> std::io::Result<()> {
        let (file, text) = self.root.limit(&self.device, limit);
        fs::write(self.group.join(file), text)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let _ = self.set(None);
        let _ = fs::write(self.root.path().join("cgroup.procs"), self.pid.to_string());
        let _ = fs::remove_dir(&self.group);
        if let Root::Mounted(path) = &self.root {
            let _ = Command::new("umount").arg(path).status();
            let _ = fs::remove_dir(path);
        }
    }
}
