//! Randomness and clocks of the operating system, for code that does not ask our seams: the keys of
//! hash maps, the order in which `select!` looks, timestamps in libraries.
//!
//! The C library's functions are replaced for this program: once [`seed`] was called they give the
//! same in every run of a seed; before, what the kernel gives.
#![allow(unsafe_code)] // defines functions of the C library

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

static SEEDED: AtomicBool = AtomicBool::new(false);
static RANDOM: AtomicU64 = AtomicU64::new(0);
static NOW_NS: AtomicU64 = AtomicU64::new(0);

/// From here on everything is repeatable.
pub(crate) fn seed(seed: u64) {
    RANDOM.store(seed, Ordering::Relaxed);
    NOW_NS.store(Duration::from_secs(1000).as_nanos() as u64, Ordering::Relaxed);
    SEEDED.store(true, Ordering::Relaxed);
}

/// Moves the clocks of the operating system.
pub(crate) fn advance(by: Duration) {
    NOW_NS.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
}

/// A number that tells how much randomness has been taken.
pub(crate) fn taken() -> u64 {
    RANDOM.load(Ordering::Relaxed)
}

fn next() -> u64 {
    // splitmix64
    let mut z = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// getrandom(2).
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    if !SEEDED.load(Ordering::Relaxed) {
        // SAFETY: the arguments are passed on as they came.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    }
    for at in (0..length).step_by(8) {
        let bytes = next().to_ne_bytes();
        let count = (length - at).min(8);
        // SAFETY: `at + count` is at most `length`, the size of the caller's buffer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.add(at), count) };
    }
    length as isize
}

/// clock_gettime(2).
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if !SEEDED.load(Ordering::Relaxed) {
        // SAFETY: the arguments are passed on as they came.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    }
    let now = NOW_NS.load(Ordering::Relaxed);
    // SAFETY: the caller gives room for one value.
    unsafe {
        time.write(libc::timespec {
            tv_sec: (now / 1_000_000_000) as libc::time_t,
            tv_nsec: (now % 1_000_000_000) as libc::c_long,
        });
    }
    0
}
