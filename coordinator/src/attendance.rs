//! The clock by which silence is counted: it goes on only while this coordinator listens.
//!
//! A coordinator that was stopped, starved or suspended with its machine finds, when it goes on, all deadlines passed
//! and all signs of life still unread in its sockets. So whoever has a time to show itself (sessions, datanodes, holders
//! of leases that are asked back) has it by this clock, which does not count such a pause. After a long one
//! everybody has the whole time again, since connections may have broken meanwhile.
//!
//! A task marks the time every [`TICK`]. A mark that is overdue by the time somebody looks at the clock is the pause,
//! so it does not matter which task runs first afterwards. Giving more time is safe: what clients trust ends by
//! their own clocks.

use std::ops::Add;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock::{self, BootInstant};

/// How often the time is marked.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// What passes without a mark counts up to here.
const UNMARKED_MAX: Duration = Duration::from_millis(500);
/// After a pause of this length everybody has the whole time again. Shorter ones leave connections as they are.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// A point in time on this clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// Zero when `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

#[derive(Debug)]
struct State {
    marked: BootInstant,
    /// When that was by this clock.
    at: Moment,
    /// Since then there was no long pause.
    resumed: Moment,
    unmarked_max: Duration,
}

impl State {
    /// What the clock shows now; a pause that has just ended is left out.
    fn advance(&mut self, now: BootInstant) -> Moment {
        let passed = now.saturating_since(self.marked);
        if passed <= self.unmarked_max || planted(Bug::PauseCountsAsSilence) {
            return self.at + passed;
        }
        self.marked = now;
        self.at = self.at + self.unmarked_max;
        if passed >= LONG_PAUSE {
            self.resumed = self.at;
            tracing::warn!(pause = ?passed, "the coordinator was held up; everybody has the whole time again");
        }
        self.at
    }
}

/// The clock.
#[derive(Debug)]
pub(crate) struct Attendance(Mutex<State>);

impl Attendance {
    pub(crate) fn new() -> Self {
        Self::with(UNMARKED_MAX)
    }

    /// One that counts all time, marked or not.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn unbroken() -> Self {
        Self::with(Duration::MAX)
    }

    fn with(unmarked_max: Duration) -> Self {
        let beginning = Moment::default();
        let state = State { marked: clock::boot_now(), at: beginning, resumed: beginning, unmarked_max };
        Self(Mutex::new(state))
    }

    /// Now, and the end of the last long pause: who was heard before that counts as heard then.
    pub(crate) fn look(&self) -> (Moment, Moment) {
        let mut state = self.lock();
        let now = state.advance(clock::boot_now());
        (now, state.resumed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now.
    pub(crate) fn now(&self) -> Moment {
        self.look().0
    }

    /// To be called every [`TICK`], from where messages are taken.
    pub(crate) fn mark(&self) {
        let mut state = self.lock();
        let now = clock::boot_now();
        state.at = state.advance(now);
        state.marked = now;
    }

    /// Waits until so much time has passed by this clock.
    pub(crate) async fn sleep(&self, time: Duration) {
        let end = self.now() + time;
        loop {
            let left = end.since(self.now());
            if left.is_zero() {
                return;
            }
            clock::sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn attend(clock: &Attendance, time: Duration) {
        let end = clock::now() + time;
        while clock::now() < end {
            clock::sleep(TICK).await;
            clock.mark();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_counts_while_it_is_marked() {
        let clock = Attendance::new();
        attend(&clock, Duration::from_secs(5)).await;
        assert_eq!(clock.look(), (Moment(Duration::from_secs(5)), Moment::default()));
        clock::sleep(Duration::from_millis(300)).await;
        assert_eq!(clock.now(), Moment(Duration::from_millis(5300)));
        // A short hitch is left out, and begins nothing anew.
        clock::sleep(Duration::from_millis(900)).await;
        assert_eq!(clock.look(), (Moment(Duration::from_millis(5500)), Moment::default()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_pause_counts_for_nothing_whoever_looks_first() {
        let clock = Attendance::new();
        attend(&clock, Duration::from_secs(5)).await;
        clock::sleep(Duration::from_secs(60)).await;
        let resumed = Moment(Duration::from_millis(5500));
        assert_eq!(clock.look(), (resumed, resumed));
        clock.mark();
        attend(&clock, Duration::from_secs(1)).await;
        assert_eq!(clock.look(), (resumed + Duration::from_secs(1), resumed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_was_suspended_has_paused() {
        let clock = Attendance::new();
        attend(&clock, Duration::from_secs(5)).await;
        clock::pretend_suspended(Duration::from_secs(3600));
        let resumed = Moment(Duration::from_millis(5500));
        assert_eq!(clock.look(), (resumed, resumed));
    }
}
