//! How much of a sweep is run: the small form in the tests, the long one by `scripts/reliability`.

/// The variable in which `scripts/reliability` says how many.
const VARIABLE: &str = "RELIABILITY_COUNT";

/// How many faults (or seconds) a test is to have: `usual`, unless the long form asks for more.
pub fn count(usual: u64) -> u64 {
    match std::env::var(VARIABLE) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{VARIABLE}={text} is no number")),
        Err(_) => usual,
    }
}

/// Whether this is a run by `scripts/reliability`.
pub fn is_long() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// One line of figures, which `scripts/reliability` looks for: a run without it does not count, and
/// neither does one without faults or acknowledged operations.
#[track_caller]
pub fn report(subject: &str, faults: u64, acknowledged: u64, more: &str) {
    assert!(faults > 0, "{subject}: no fault was injected: this proves nothing");
    assert!(acknowledged > 0, "{subject}: nothing was acknowledged: this proves nothing");
    // On a line of its own, also behind what the test harness has begun.
    println!("\nRESULT {subject}: {faults} faults injected, {acknowledged} operations acknowledged, {more}");
}

/// As [`report`], of a run that injects no faults.
#[track_caller]
pub fn report_load(subject: &str, acknowledged: u64, more: &str) {
    assert!(acknowledged > 0, "{subject}: nothing was acknowledged: this proves nothing");
    println!("\nRESULT {subject}: {acknowledged} operations acknowledged, {more}");
}

/// Numbers that look random and are the same in every run.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next one below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}
