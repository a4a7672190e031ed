//! What was measured about a datanode: how late its first bytes are, how much it has to do for us,
//! and whether it has failed lately.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cairn_runtime::clock::{self, Instant};

/// A node that failed is avoided this long, where another can serve.
const AVOID_TIME: Duration = Duration::from_secs(5);
/// Weight of a new measurement, as a shift: one eighth.
const SMOOTHING: u32 = 3;

/// Measurements of one node. All in microseconds.
#[derive(Debug, Default)]
pub(crate) struct Health {
    latency: AtomicU64,
    deviation: AtomicU64,
    under_way: AtomicUsize,
    failed: Mutex<Option<Instant>>,
}

impl Health {
    /// A transfer begins; it ends when the guard is dropped.
    pub(crate) fn begin(&self) -> UnderWay<'_> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    /// The first bytes of an answer came after this long. Races lose a measurement at worst.
    pub(crate) fn answered(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mean = self.latency.load(Ordering::Relaxed);
        let deviation = self.deviation.load(Ordering::Relaxed);
        let (mean, deviation) = if mean == 0 {
            (took, took / 2)
        } else {
            let off = mean.abs_diff(took);
            let smooth = |old: u64, new: u64| old - (old >> SMOOTHING) + (new >> SMOOTHING);
            (smooth(mean, took), smooth(deviation, off))
        };
        self.latency.store(mean.max(1), Ordering::Relaxed);
        self.deviation.store(deviation, Ordering::Relaxed);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// It could not serve.
    pub(crate) fn failed(&self) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
    }

    pub(crate) fn has_failed_lately(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| at.elapsed() < AVOID_TIME)
    }

    /// What one more transfer would cost there.
    pub(crate) fn cost(&self) -> u64 {
        let queue = self.under_way.load(Ordering::Relaxed) as u64 + 1;
        self.latency.load(Ordering::Relaxed).max(100).saturating_mul(queue)
    }

    /// An answer later than this is unusual: about the 95th percentile and more (mean plus four mean
    /// deviations, as TCP's retransmission timer has it).
    pub(crate) fn late(&self) -> Option<Duration> {
        let mean = self.latency.load(Ordering::Relaxed);
        let late = mean + 4 * self.deviation.load(Ordering::Relaxed);
        (mean > 0).then(|| Duration::from_micros(late))
    }
}

/// A transfer with a node.
#[derive(Debug)]
pub(crate) struct UnderWay<'a>(&'a Health);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_node_is_avoided_for_a_while_or_until_it_answers() {
        let health = Health::default();
        health.failed();
        assert!(health.has_failed_lately());
        clock::sleep(AVOID_TIME).await;
        assert!(!health.has_failed_lately());
        health.failed();
        health.answered(Duration::from_millis(1));
        assert!(!health.has_failed_lately());
    }

    #[test]
    fn a_busy_node_costs_more() {
        let (busy, idle) = (Health::default(), Health::default());
        busy.answered(Duration::from_millis(1));
        idle.answered(Duration::from_millis(1));
        let _transfer = busy.begin();
        assert!(busy.cost() > idle.cost());
    }
}
