//! A directory of the local file system.
#![allow(clippy::disallowed_methods)] // the one place that touches files

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::ReadWriteFlags;

use super::{Disk, DiskFile, Space};

/// A directory of the local file system, locked for this process as long as the value lives, or only
/// looked at.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// `None`: opened for reading alone.
    lock: Option<File>,
}

impl RealDisk {
    /// Opens `root`, making it when it is missing, and takes its lock file (`LOCK`).
    ///
    /// `ResourceBusy`: another process holds the lock.
    pub fn open(root: &Path) -> io::Result<Self> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", root.display()));
        fs::create_dir_all(root).map_err(explain)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join("LOCK"))
            .map_err(explain)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "{} is in use by another process; stop it, or choose another directory",
                    root.display()
                ),
            ),
            other => explain(other.into()),
        })?;
        Ok(Self { root: root.to_owned(), lock: Some(lock) })
    }

    /// Opens an existing directory for reading alone: takes no lock, makes no file, opens files so
    /// that they can not be written. For tools that look at what a service has left.
    pub fn open_read_only(root: &Path) -> io::Result<Self> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", root.display()));
        fs::read_dir(root).map_err(explain)?;
        Ok(Self { root: root.to_owned(), lock: None })
    }

    fn check_writable(&self) -> io::Result<()> {
        let refused = || {
            let message = format!("{} was opened for reading alone", self.root.display());
            io::Error::new(io::ErrorKind::ReadOnlyFilesystem, message)
        };
        self.lock.as_ref().map(|_| ()).ok_or_else(refused)
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }
}

impl Disk for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.check_writable()?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.path(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(self.lock.is_some()).open(self.path(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_writable()?;
        fs::rename(self.path(from), self.path(to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.check_writable()?;
        fs::remove_file(self.path(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check_writable()?;
        fs::create_dir_all(self.path(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(self.path(path))?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(self.path(path))?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Space { capacity: stat.f_blocks * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
    }

    fn filesystem(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt;
        // The same for all containers of a machine, and as long as devices keep their numbers.
        let machine = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(format!("{}/{}", machine.trim(), fs::metadata(&self.root).ok()?.dev()))
    }

    fn describe(&self) -> String {
        self.root.display().to_string()
    }
}

/// Bytes that this process can still use where `path` is.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// The kernel reads no more at once than the device's read-ahead, which is this by default, and says nothing.
const READ_AHEAD: NonZeroU64 = NonZeroU64::new(128 << 10).unwrap();

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let mut rest = [io::IoSliceMut::new(&mut buffer[done..])];
            let at = offset + done as u64;
            match rustix::io::preadv2(&self.0, &mut rest, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::OPNOTSUPP) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, flags, offset, length)?)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, FallocateFlags::empty(), offset, length)?)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn expect_scattered_reads(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.0, 0, None, Advice::Random)?)
    }

    fn read_ahead(&self, offset: u64, length: u64) -> io::Result<()> {
        for piece in (offset..offset + length).step_by(READ_AHEAD.get() as usize) {
            rustix::fs::fadvise(&self.0, piece, Some(READ_AHEAD), Advice::WillNeed)?;
        }
        Ok(())
    }

    fn drop_cache(&self, offset: u64, length: u64) -> io::Result<()> {
        let length = NonZeroU64::new(length);
        Ok(rustix::fs::fadvise(&self.0, offset, length, Advice::DontNeed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_ahead_comes_from_memory() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        let file = disk.create_new(Path::new("log")).unwrap();
        // More than the kernel takes at once.
        let length = 4 * READ_AHEAD.get() + 1;
        file.write_at(&vec![7; length as usize], 0).unwrap();
        file.sync().unwrap();
        let mut byte = [0];
        if file.try_read_at(&mut byte, 0).is_err() {
            return; // a file system that can not tell what is in memory
        }
        file.drop_cache(0, length).unwrap();
        file.read_ahead(0, length).unwrap();
        for offset in [0, length / 2, length - 1] {
            // It is on its way, as long as that takes.
            while file.try_read_at(&mut byte, offset).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            assert_eq!(byte, [7]);
        }
    }
}
