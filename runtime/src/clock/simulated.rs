//! Waits that do not end while the machine stands still; see [`crate::sim::pause`].

use std::future::poll_fn;
use std::task::ready;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::sim::{poll_running, while_running};

/// As `tokio::time::sleep`.
pub fn sleep(time: Duration) -> impl Future<Output = ()> {
    while_running(time::sleep(time))
}

/// As `tokio::time::sleep_until`.
pub fn sleep_until(deadline: Instant) -> impl Future<Output = ()> {
    while_running(time::sleep_until(deadline))
}

/// As `tokio::time::timeout`.
pub fn timeout<F: IntoFuture>(time: Duration, work: F) -> impl Future<Output = Result<F::Output, Elapsed>> {
    while_running(time::timeout(time, work))
}

/// As `tokio::time::timeout_at`.
pub fn timeout_at<F: IntoFuture>(
    deadline: Instant,
    work: F,
) -> impl Future<Output = Result<F::Output, Elapsed>> {
    while_running(time::timeout_at(deadline, work))
}

/// As `tokio::time::interval`.
pub fn interval(period: Duration) -> Interval {
    Interval(time::interval(period))
}

/// As `tokio::time::Interval`.
#[derive(Debug)]
pub struct Interval(time::Interval);

impl Interval {
    /// Waits for the next tick.
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| {
            ready!(poll_running(cx));
            self.0.poll_tick(cx)
        })
        .await
    }

    /// What becomes of ticks that nobody waited for.
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.0.set_missed_tick_behavior(behavior);
    }
}
