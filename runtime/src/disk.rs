//! The disk as the project sees it: a few operations on files below one directory.
//!
//! [`RealDisk`] is a directory of the local file system. Tests and simulations wrap or replace it
//! (faults, lost writes, full disks).

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

mod overlay;
mod real;
mod whole;
pub use overlay::OverlayDisk;
pub use real::{RealDisk, free_bytes};
pub use whole::{open_if_present, remove_if_present, replace};

/// A directory tree that holds the data of one service. Paths are relative to it.
///
/// All calls block; call them from a thread of [`crate::threads`].
pub trait Disk: Send + Sync + 'static {
    /// Makes a file that must not exist yet. Durable only after [`Self::sync_dir`] of its directory.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Moves a file over another. Durable only after [`Self::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory and those above it; one that exists is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// Room on the disk.
    fn space(&self) -> io::Result<Space>;
    /// Which file system of which machine it is on, so that two directories on the same one are told from two that are
    /// not; `None` when that is not known.
    fn filesystem(&self) -> Option<String> {
        None
    }
    /// Where it is, for messages.
    fn describe(&self) -> String;
}

/// An open file. Calls may overlap on different ranges.
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all of `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Fills `buffer` from `offset`; `UnexpectedEof` when the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Like [`Self::read_at`], but only from memory: `WouldBlock` when the disk would be needed.
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable (fdatasync). A failure is final: what was written since the
    /// last success is lost, and asking again proves nothing.
    fn sync(&self) -> io::Result<()>;
    /// Gives the bytes of a range back to the disk; they read as zeros.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Reserves room for a range, so that writes into it can not run out of space. Extends the file.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Length of the file.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads through this handle come in no order: the kernel shall read what they ask for, and no more.
    fn expect_scattered_reads(&self) -> io::Result<()> {
        Ok(())
    }
    /// Has what is not in memory of a range read soon; does not wait for it.
    fn read_ahead(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }
    /// Forgets cached pages of a range, so that the next read comes from the device.
    fn drop_cache(&self, offset: u64, length: u64) -> io::Result<()>;
}

/// Room on a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub capacity: u64,
    /// What this process can still use of it.
    pub available: u64,
}
