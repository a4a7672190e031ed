//! System calls that no safe library has.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of a handle that a kernel may use (MAX_HANDLE_SZ).
const BYTES_MAX: usize = 128;

/// truncate(2), by a name and without a descriptor.
pub fn truncate(path: &Path, length: i64) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a NUL and lives until the call returns.
    let done = unsafe { libc::truncate(path.as_ptr(), length) };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Gives this thread a working directory of its own.
pub fn leave_working_directory() -> Result<()> {
    // SAFETY: what other threads share with this one (root, working directory, umask) stays as it is for them.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?)
}

/// What stands for a file as long as it exists.
#[derive(Debug, Clone)]
#[repr(C)]
pub struct FileHandle {
    bytes: u32,
    kind: i32,
    data: [u8; BYTES_MAX],
}

impl FileHandle {
    pub fn of(path: &Path) -> Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut handle = Self { bytes: BYTES_MAX as u32, kind: 0, data: [0; BYTES_MAX] };
        let mut mount = 0i32;
        let (at, out, mount_out) = (libc::AT_FDCWD, &raw mut handle, &raw mut mount);
        // SAFETY: the path ends with a NUL; the handle has the layout of `struct file_handle` with room for
        // `bytes` bytes behind its header; both places live until the call returns.
        let done =
            unsafe { libc::syscall(libc::SYS_name_to_handle_at, at, path.as_ptr(), out, mount_out, 0) };
        if done < 0 { Err(Error::last_os_error()) } else { Ok(handle) }
    }

    /// Opens it. `place`: any open file or directory of the same mount.
    pub fn open(&self, place: &File, flags: i32) -> Result<File> {
        let mut handle = self.clone();
        let flags = flags | libc::O_CLOEXEC;
        // SAFETY: a handle as the kernel has filled it in, alive until the call returns.
        let fd =
            unsafe { libc::syscall(libc::SYS_open_by_handle_at, place.as_raw_fd(), &raw mut handle, flags) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(unsafe { File::from_raw_fd(fd as i32) })
    }
}
