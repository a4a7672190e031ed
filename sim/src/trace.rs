//! What happened, in order: printed on demand, and digested into one number that must repeat.

use std::fmt::Arguments;

use crate::os;

/// The events of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    digest: u64,
    events: u64,
    print: bool,
}

impl Trace {
    /// Nothing yet; `print`: each event goes to standard output.
    pub(crate) fn new(print: bool) -> Self {
        Self { digest: 0xcbf2_9ce4_8422_2325, events: 0, print }
    }

    /// Something happened at a time of the simulation.
    pub(crate) fn event(&mut self, time: std::time::Duration, what: Arguments<'_>) {
        let line = format!("{:9.3} {what}", time.as_secs_f64());
        if self.print {
            println!("{line}");
        }
        self.events += 1;
        self.add(line.as_bytes());
    }

    /// FNV-1a: quick, and not to withstand anybody.
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The digest of all events, and of how much randomness was taken on the way: code that took another
    /// turn without a trace took other random numbers.
    pub(crate) fn finish(mut self) -> u64 {
        self.add(&os::taken().to_le_bytes());
        self.add(&cairn_runtime::random::below(u64::MAX).to_le_bytes());
        self.digest
    }

    /// Events so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }
}
