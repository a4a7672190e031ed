//! A limit in bytes per second, shared by all who do one kind of work.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_runtime::clock::{self, Instant};

/// Longest time by which work may run ahead of its limit after a pause.
const BURST: Duration = Duration::from_millis(100);

/// Bytes per second, at most.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When the bytes taken so far have been paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// A limit; 0 is none.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// Takes `bytes`, and waits until what was taken before is paid for.
    pub(crate) async fn take(&self, bytes: u64) {
        if let Some(until) = self.reserve(clock::now(), bytes) {
            clock::sleep_until(until).await;
        }
    }

    fn reserve(&self, now: Instant, bytes: u64) -> Option<Instant> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = free_at.map_or(now, |at| at.max(earliest));
        *free_at = Some(start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64));
        (start > now).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_takes_as_long_as_its_limit_says() {
        let pace = Pace::new(1 << 20);
        let started = clock::now();
        for _ in 0..40 {
            pace.take(256 << 10).await;
        }
        let took = started.elapsed().as_secs_f64();
        assert!((9.5..10.1).contains(&took), "{took} s for 10 MiB at 1 MiB/s");
        // A pause is not saved up.
        clock::sleep(Duration::from_secs(60)).await;
        let started = clock::now();
        for _ in 0..9 {
            pace.take(256 << 10).await;
        }
        assert!(started.elapsed() > Duration::from_millis(1700), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_means_no_wait() {
        let started = clock::now();
        Pace::new(0).take(u64::MAX).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
