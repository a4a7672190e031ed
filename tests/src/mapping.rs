//! A mapped file.
#![allow(unsafe_code)]

use std::fs::File;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

/// A writable mapping of the first bytes of a file.
#[derive(Debug)]
pub struct Mapping {
    start: *mut std::ffi::c_void,
    length: usize,
}

impl Mapping {
    /// `MAP_SHARED`: what is written here is written to the file.
    pub fn shared(file: &File, length: usize) -> Self {
        Self::new(file, length, MapFlags::SHARED)
    }

    /// `MAP_PRIVATE`: what is written here stays here.
    pub fn private(file: &File, length: usize) -> Self {
        Self::new(file, length, MapFlags::PRIVATE)
    }

    fn new(file: &File, length: usize, flags: MapFlags) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address; nothing else is mapped there.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, access, flags, file, 0) };
        Self { start: start.expect("mmap"), length }
    }

    pub fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.length);
        // SAFETY: in bounds; the source is ordinary memory and does not overlap a fresh mapping.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.start.cast::<u8>().add(at), data.len()) }
    }

    pub fn read(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= self.length);
        let mut data = vec![0; length];
        // SAFETY: in bounds; the destination is fresh memory.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.cast::<u8>().add(at), data.as_mut_ptr(), length);
        }
        data
    }

    /// `msync(MS_SYNC)` of all of it.
    pub fn sync(&self) -> std::io::Result<()> {
        // SAFETY: exactly what was mapped.
        unsafe { rustix::mm::msync(self.start, self.length, MsyncFlags::SYNC) }.map_err(Into::into)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}
