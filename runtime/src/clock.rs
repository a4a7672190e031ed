//! Clocks: one for waits, one for what others count while this machine is suspended, one for the times that people see.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[cfg(feature = "sim")]
mod simulated;

#[cfg(feature = "sim")]
pub use simulated::{Interval, interval, sleep, sleep_until, timeout, timeout_at};
pub use tokio::time::Instant;
#[cfg(not(feature = "sim"))]
pub use tokio::time::{interval, sleep, sleep_until, timeout, timeout_at};

/// Now, for intervals and deadlines; follows simulated time. Stands still while this machine is suspended, as all
/// waits do.
pub fn now() -> Instant {
    Instant::now()
}

/// A point in time on a clock that goes on while this machine is suspended (CLOCK_BOOTTIME of clock_gettime(2)): for
/// times that another machine counts as well, such as how long a lease may be trusted. Nothing can be waited for by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(Instant);

/// Now, with the time for which this machine was suspended; follows simulated time.
pub fn boot_now() -> BootInstant {
    BootInstant(now() + suspended())
}

impl BootInstant {
    /// How long ago that was; zero when it is still to come.
    pub fn elapsed(self) -> Duration {
        boot_now().saturating_since(self)
    }

    /// Zero when `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

/// The longest time for which this machine was seen to be suspended, ns.
static SUSPENDED_NS: AtomicU64 = AtomicU64::new(0);
/// What a test adds to it, ns.
static PRETENDED_NS: AtomicU64 = AtomicU64::new(0);
/// Shorter ones do not count: they can not be told from the time between two looks.
const SUSPENDED_MIN: u64 = 1_000_000;

/// For how long this machine was suspended since it was started. Changes only when it is again.
pub fn suspended() -> Duration {
    let known = SUSPENDED_NS.load(Ordering::Relaxed);
    let found = find_suspended().unwrap_or(0);
    let real = if found >= known + SUSPENDED_MIN {
        SUSPENDED_NS.fetch_max(found, Ordering::Relaxed).max(found)
    } else {
        known
    };
    Duration::from_nanos(real.saturating_add(PRETENDED_NS.load(Ordering::Relaxed)))
}

/// For tests: as if this machine had just been suspended for so long.
pub fn pretend_suspended(time: Duration) {
    PRETENDED_NS.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// At most the time for which it was: the later look, at the clock that stands still, comes second.
#[cfg(not(feature = "sim"))]
fn find_suspended() -> Option<u64> {
    use rustix::time::{ClockId, clock_gettime};
    let nanos = |clock| {
        let time = clock_gettime(clock);
        u64::try_from(time.tv_sec)
            .ok()?
            .checked_mul(1_000_000_000)?
            .checked_add(u64::try_from(time.tv_nsec).ok()?)
    };
    let running_and_suspended = nanos(ClockId::Boottime)?;
    running_and_suspended.checked_sub(nanos(ClockId::Monotonic)?)
}

/// Simulated machines are not suspended.
#[cfg(feature = "sim")]
fn find_suspended() -> Option<u64> {
    None
}

/// Nanoseconds since the Unix epoch, for file times and logs; never for ordering events.
#[cfg(not(feature = "sim"))]
#[allow(clippy::disallowed_methods)] // the one place that reads the wall clock
pub fn wall_ns() -> i64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(feature = "sim")]
pub use crate::sim::wall_ns;

/// A duration as whole nanoseconds, saturating at about 292 years.
pub fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_of_leases_follows_simulated_time_and_counts_when_the_machine_was_suspended() {
        let before = boot_now();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(before.elapsed(), Duration::from_secs(10));
        let waits_until = now() + Duration::from_secs(1);
        pretend_suspended(Duration::from_secs(60));
        assert_eq!(before.elapsed(), Duration::from_secs(70));
        assert_eq!(waits_until - now(), Duration::from_secs(1));
    }
}
