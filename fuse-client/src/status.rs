//! What the kernel's text files in `/proc` say: `/proc/PID/status` about the caller of a request.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Longest text that is read; a list of groups or mounts can be long.
const TEXT_MAX: usize = 4 << 20;

/// The fields of `/proc/PID/status` that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Signals that wait for the thread or its process.
    pub(crate) pending: u64,
    /// Signals that wait but may not be delivered: blocked or ignored.
    pub(crate) held: u64,
    /// Capabilities in effect, bit n for number n of capabilities(7).
    pub(crate) capabilities: u64,
}

impl Status {
    /// Of a thread; `None` when it is gone, or lives where this process can not see it.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        if pid == 0 {
            return None; // the kernel itself, or a caller in another pid namespace
        }
        read(&format!("/proc/{pid}/status")).ok().map(|text| Self::parse(&text))
    }

    fn parse(text: &[u8]) -> Self {
        let mut status = Self::default();
        for line in text.split(|&byte| byte == b'\n') {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let value = std::str::from_utf8(&line[colon + 1..]).unwrap_or_default().trim();
            let mask = || u64::from_str_radix(value, 16).unwrap_or(0);
            match &line[..colon] {
                b"Groups" => {
                    status.groups = value.split_whitespace().filter_map(|gid| gid.parse().ok()).collect();
                }
                b"SigPnd" | b"ShdPnd" => status.pending |= mask(),
                b"SigBlk" | b"SigIgn" => status.held |= mask(),
                b"CapEff" => status.capabilities = mask(),
                _ => {}
            }
        }
        status
    }

    /// Whether a signal waits that asks the caller to stop what it is doing.
    ///
    /// SIGKILL always; of the others only those by which people and service managers stop a program.
    /// A timer or a child's end (SIGALRM, SIGCHLD) interrupts no file operation on a local file
    /// system either, and programs rely on that.
    pub(crate) fn wants_out(&self) -> bool {
        const STOP: u64 = bit(libc::SIGINT) | bit(libc::SIGTERM) | bit(libc::SIGHUP) | bit(libc::SIGQUIT);
        self.pending & bit(libc::SIGKILL) != 0 || self.pending & !self.held & STOP != 0
    }
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The whole text of a file that the kernel makes up.
pub(crate) fn read(path: &str) -> Result<Vec<u8>, Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::read(&file, &mut part[..]) {
            Ok(0) => return Ok(text),
            Ok(n) if text.len() + n <= TEXT_MAX => text.extend_from_slice(&part[..n]),
            Ok(_) => return Ok(text),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_signals_and_capabilities_are_read() {
        let text = b"Name:\tcat\nGroups:\t4 24 1000 \nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000002\n\
                     SigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\nCapEff:\t0000000000000003\n";
        let status = Status::parse(text);
        assert_eq!((&status.groups[..], status.capabilities), (&[4, 24, 1000][..], 3));
        assert!(status.wants_out());
    }

    #[test]
    fn only_what_stops_a_program_interrupts() {
        let pending = |signal, held| Status { pending: bit(signal), held, ..Status::default() }.wants_out();
        assert!(pending(libc::SIGKILL, u64::MAX));
        assert!(!pending(libc::SIGINT, bit(libc::SIGINT)));
        assert!(!pending(libc::SIGALRM, 0) && !pending(libc::SIGCHLD, 0));
    }

    #[test]
    fn this_process_has_a_status() {
        assert!(Status::of(std::process::id()).is_some_and(|status| !status.wants_out()));
        assert_eq!(Status::of(0), None);
    }
}
