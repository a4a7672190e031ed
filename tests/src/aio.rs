//! Asynchronous writes as databases make them (io_submit(2)).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// IOCB_CMD_PWRITE of linux/aio_abi.h.
const WRITE: u16 = 1;

/// struct iocb of linux/aio_abi.h, on a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// struct io_event of linux/aio_abi.h.
#[repr(C)]
#[derive(Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// A queue of one asynchronous write at a time.
#[derive(Debug)]
pub struct Aio(libc::c_ulong);

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Aio {
    pub fn new() -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word to a place that lives.
        check(unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) })?;
        Ok(Self(context))
    }

    /// Submits a write and waits for its completion; how many bytes were written.
    pub fn write(&self, file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        let mut request = Request {
            opcode: WRITE,
            fd: file.as_raw_fd().cast_unsigned(),
            buffer: data.as_ptr() as u64,
            length: data.len() as u64,
            offset: offset.cast_signed(),
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        // SAFETY: the request and its data live until the completion, which is waited for below.
        check(unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, requests.as_mut_ptr()) })?;
        let mut event = Event::default();
        let no_limit: *mut libc::timespec = std::ptr::null_mut();
        // SAFETY: the kernel writes one event to a place that lives.
        check(unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, &raw mut event, no_limit) })?;
        if event.result < 0 {
            return Err(io::Error::from_raw_os_error(-event.result as i32));
        }
        Ok(event.result as usize)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: no request is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}
