//! Clocks: one for intervals and deadlines, one for the times that people see.

use std::time::Duration;

pub use tokio::time::{Instant, interval, sleep, sleep_until, timeout, timeout_at};

/// Now, for intervals and deadlines; follows simulated time.
pub fn now() -> Instant {
    Instant::now()
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
