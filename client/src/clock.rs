//! The cluster's clock as this client knows it: every time that a change gets here is taken from it.
//!
//! It is a hybrid clock. Answered keep-alives tell what the coordinator's clock shows; the one with the shortest trip
//! tells it best, since half a trip is the most that it can be wrong by. Every answer carries the coordinator's time,
//! and this clock is never behind the latest one seen; every request carries the time of this clock, and the coordinator
//! is never behind that. So a change that is made after another one was answered has no earlier time, whoever made them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::limits::CLOCKS_APART;
use cairn_runtime::clock::{self, BootInstant};
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;

/// Keep-alives remembered: those of some 30 s, in which clocks hardly drift apart.
const SAMPLES_MAX: usize = 8;

/// What the coordinator's clock showed.
#[derive(Debug, Clone, Copy)]
struct Sample {
    taken: BootInstant,
    /// At that time, ns since the epoch.
    shown_ns: i64,
    /// How long the question and the answer took together; `MAX`: not known.
    trip: Duration,
}

impl Sample {
    fn now_ns(&self) -> i64 {
        self.shown_ns.saturating_add(clock::nanos(self.taken.elapsed()))
    }
}

#[derive(Debug, Default)]
struct State {
    samples: VecDeque<Sample>,
    /// The latest time that was given to anything here, or seen in an answer.
    last_ns: i64,
}

impl State {
    /// What the coordinator's clock shows by the best sample; before the first one, what this machine's does.
    fn estimate(&self) -> i64 {
        let best = self.samples.iter().min_by_key(|sample| sample.trip);
        best.map_or_else(clock::wall_ns, Sample::now_ns)
    }
}

/// The clock of one client.
#[derive(Debug, Default)]
pub(crate) struct ClusterClock(Mutex<State>);

impl ClusterClock {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The time of a change that is made now, ns since the epoch. Never runs backwards, unless the coordinator's clock
    /// was set back by more than [`CLOCKS_APART`].
    pub(crate) fn now_ns(&self) -> i64 {
        self.with(|state| {
            let estimate = state.estimate();
            let latest = estimate.saturating_add(clock::nanos(CLOCKS_APART));
            state.last_ns = if state.last_ns > latest { estimate } else { state.last_ns.max(estimate) };
            state.last_ns
        })
    }

    /// A connection stands, over which the coordinator has shown its clock. What was known of another one is void.
    pub(crate) fn on_welcome(&self, shown_ns: i64) {
        let sample = Sample { taken: clock::boot_now(), shown_ns, trip: Duration::MAX };
        self.with(|state| {
            state.samples.clear();
            state.samples.push_back(sample);
        });
    }

    /// A keep-alive that was sent at `sent` is answered.
    pub(crate) fn on_keep_alive(&self, sent: BootInstant, shown_ns: i64) {
        let taken = clock::boot_now();
        let trip = taken.saturating_since(sent);
        let shown_ns = shown_ns.saturating_add(clock::nanos(trip / 2));
        self.with(|state| {
            if state.samples.len() >= SAMPLES_MAX {
                state.samples.pop_front();
            }
            state.samples.push_back(Sample { taken, shown_ns, trip });
        });
    }

    /// The coordinator's time came with an answer. One that is far from what its clock can show is not believed.
    pub(crate) fn on_answer(&self, metadata: &MetadataMap) {
        let shown = metadata.get(cairn_proto::CLOCK_KEY).and_then(|value| value.to_str().ok()?.parse().ok());
        let Some(shown_ns) = shown else { return };
        self.with(|state| {
            if shown_ns > state.last_ns
                && shown_ns <= state.estimate().saturating_add(clock::nanos(CLOCKS_APART))
            {
                state.last_ns = shown_ns;
            }
        });
    }

    /// The latest time given or seen.
    fn last_ns(&self) -> i64 {
        self.with(|state| state.last_ns)
    }
}

/// Writes the request id and the time of this clock into each request.
#[derive(Debug, Clone)]
pub(crate) struct Stamp(pub(crate) std::sync::Arc<ClusterClock>);

impl Interceptor for Stamp {
    fn call(&mut self, request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let mut request = cairn_runtime::telemetry::stamp_request(request)?;
        request.metadata_mut().insert(cairn_proto::CLOCK_KEY, self.0.last_ns().into());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn answer(shown_ns: i64) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(cairn_proto::CLOCK_KEY, shown_ns.into());
        metadata
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_trip_tells_the_clock_and_half_of_it_is_added() {
        let clock = ClusterClock::default();
        clock.on_welcome(100 * SECOND);
        assert_eq!(clock.now_ns(), 100 * SECOND, "the least that it can show");
        let sent = clock::boot_now();
        clock::sleep(Duration::from_millis(600)).await;
        // Shown in the middle of the trip.
        clock.on_keep_alive(sent, 100 * SECOND + SECOND * 3 / 10);
        assert_eq!(clock.now_ns(), 100 * SECOND + SECOND * 6 / 10);
        let sent = clock::boot_now();
        clock::sleep(Duration::from_millis(4000)).await;
        // A late answer: shown at the beginning of the trip.
        clock.on_keep_alive(sent, 100 * SECOND + SECOND * 6 / 10);
        assert_eq!(clock.now_ns(), 104 * SECOND + SECOND * 6 / 10);
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_runs_backwards_and_is_never_behind_what_an_answer_has_shown() {
        let clock = ClusterClock::default();
        clock.on_welcome(100 * SECOND);
        clock.on_answer(&answer(100 * SECOND + 5));
        assert_eq!((clock.now_ns(), clock.last_ns()), (100 * SECOND + 5, 100 * SECOND + 5));
        clock.on_answer(&answer(100 * SECOND + 3));
        clock.on_welcome(100 * SECOND - SECOND / 2);
        assert_eq!(clock.now_ns(), 100 * SECOND + 5);
        clock::sleep(Duration::from_secs(1)).await;
        assert_eq!(clock.now_ns(), 100 * SECOND + SECOND / 2);
        clock.on_answer(&answer(500 * SECOND));
        assert_eq!(clock.now_ns(), 100 * SECOND + SECOND / 2, "that can not be");
        clock.on_welcome(50 * SECOND);
        assert_eq!(clock.now_ns(), 50 * SECOND, "the coordinator's clock was set back");
    }
}
