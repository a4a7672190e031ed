//! The scrub: reads every chunk from its device, over and over, so that damage is found while there are
//! other copies to mend it from.
//!
//! One pass over all disks in the order of ids takes about `scrub_period`, at most at `scrub_rate`; a pass
//! that was asked for runs at once, at the rate it was asked for. What fails verification is set aside by the
//! store and told to the coordinator. How far a pass has come is kept in `scrub.json`, so that a restart
//! goes on with it. While clients read or write, each chunk waits a little for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{ErrorKind, v1};
use cairn_runtime::clock::{self, Instant};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::identity;
use crate::inventory::Walk;
use crate::metrics;
use crate::node::Node;
use crate::pace::Pace;
use crate::store::StoreError;

/// Slowest rate of a pass: a small store is not stretched over the whole period.
const RATE_MIN: u64 = 1 << 20;
/// How often progress is written to the disks.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// Chunks that are read from one look at the indexes.
const PAGE: usize = 256;
/// Chunks that are looked at, sound or not, for one page.
const LOOK_MAX: usize = 4096;
/// After an error that is not the chunk's, such as threads that have too much to do.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a waiting worker looks at the time.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How fast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScrubOptions {
    /// Time for a pass over the whole store.
    pub(crate) period: Duration,
    /// Bytes per second, at most.
    pub(crate) rate: u64,
}

/// Progress as it is kept over restarts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    /// Chunks up to this id are done in the pass under way; `None`: none is.
    cursor: Option<u64>,
    started_ns: i64,
    finished_ns: i64,
    chunks_done: u64,
    bytes_done: u64,
    bad: u64,
    bad_last: u64,
}

/// A pass that was asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    rate: u64,
}

#[derive(Debug, Default)]
struct State {
    saved: Saved,
    chunks_total: u64,
    bytes_total: u64,
    /// Asked for and not begun.
    wanted: Option<Asked>,
    /// The pass under way was asked for.
    asked: Option<Asked>,
    error: String,
}

/// The scrub of one node.
pub(crate) struct Scrub {
    options: ScrubOptions,
    state: Mutex<State>,
    wake: Notify,
}

/// What to do next.
enum Step {
    Read(u64),
    Wait(Duration),
}

impl Scrub {
    pub(crate) fn new(options: ScrubOptions) -> Self {
        Self { options, state: Mutex::default(), wake: Notify::new() }
    }

    /// Begins a pass now, unless one that was asked for is running. `rate` 0: as fast as is permitted.
    pub(crate) fn start(&self, rate: u64) {
        let mut state = self.lock();
        if state.asked.is_none() {
            let rate = if rate == 0 { self.options.rate } else { rate };
            state.wanted = Some(Asked { rate });
        }
        drop(state);
        self.wake.notify_one();
    }

    /// How far it has come.
    pub(crate) fn status(&self) -> v1::ScrubStatus {
        let state = self.lock();
        let saved = &state.saved;
        v1::ScrubStatus {
            running: saved.cursor.is_some() || state.wanted.is_some(),
            chunks_done: saved.chunks_done,
            chunks_total: state.chunks_total,
            bytes_done: saved.bytes_done,
            bytes_total: state.bytes_total,
            bad: saved.bad,
            started_ns: saved.started_ns,
            finished_ns: saved.finished_ns,
            bad_last: saved.bad_last,
            error: state.error.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses between the pass under way, a new one, and waiting. `total`: chunks and bytes held.
    fn next(&self, now_ns: i64, total: impl Fn() -> (u64, u64)) -> Step {
        let mut state = self.lock();
        if let Some(asked) = state.wanted.take() {
            begin(&mut state, now_ns, total(), Some(asked));
        }
        if let Some(cursor) = state.saved.cursor {
            return Step::Read(cursor);
        }
        let period = clock::nanos(self.options.period);
        let due_ns = state.saved.started_ns.saturating_add(period);
        if state.saved.started_ns == 0 || now_ns >= due_ns {
            begin(&mut state, now_ns, total(), None);
            return Step::Read(0);
        }
        let wait = u64::try_from(due_ns - now_ns).unwrap_or(0);
        Step::Wait(Duration::from_nanos(wait).min(LOOK_EVERY))
    }

    /// Bytes per second of the pass under way.
    fn rate(&self, bytes: u64) -> u64 {
        match self.lock().asked {
            Some(asked) => asked.rate,
            None => {
                let even = bytes as f64 / self.options.period.as_secs_f64().max(1.0);
                (even as u64).max(RATE_MIN).min(self.options.rate)
            }
        }
    }

    fn on_read(&self, chunk: u64, bytes: u64, bad: bool) {
        let mut state = self.lock();
        if state.wanted.is_some() {
            return; // that pass begins anew
        }
        state.saved.cursor = Some(chunk);
        state.saved.chunks_done += 1;
        state.saved.bytes_done += bytes;
        state.saved.bad += u64::from(bad);
    }

    /// The pass has come to `chunk` without reading it.
    fn on_passed(&self, chunk: u64) {
        let mut state = self.lock();
        if state.wanted.is_none() {
            state.saved.cursor = Some(chunk);
        }
    }

    fn on_end(&self, now_ns: i64) {
        let mut state = self.lock();
        if state.wanted.is_some() {
            return;
        }
        state.asked = None;
        state.saved.cursor = None;
        state.saved.finished_ns = now_ns;
        state.saved.bad_last = state.saved.bad;
        info!(chunks = state.saved.chunks_done, bad = state.saved.bad, "a pass of the scrub has ended");
    }
}

fn begin(state: &mut State, now_ns: i64, total: (u64, u64), asked: Option<Asked>) {
    (state.chunks_total, state.bytes_total) = total;
    state.asked = asked;
    let Saved { finished_ns, bad_last, .. } = state.saved;
    state.saved = Saved { cursor: Some(0), started_ns: now_ns, finished_ns, bad_last, ..Saved::default() };
}

/// Runs until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    load(&node).await;
    let mut saved_at = clock::now();
    let mut pace: Option<(u64, Pace)> = None;
    while !node.stop.is_cancelled() {
        let total = || (node.disks.chunks(), node.disks.used());
        match node.scrub.next(clock::wall_ns(), total) {
            Step::Wait(time) => {
                pace = None;
                tokio::select! {
                    () = clock::sleep(time) => {}
                    () = node.scrub.wake.notified() => {}
                    () = node.stop.cancelled() => return,
                }
            }
            Step::Read(cursor) => {
                let rate = node.scrub.rate(node.disks.used());
                if pace.as_ref().is_none_or(|(known, _)| *known != rate) {
                    pace = Some((rate, Pace::new(rate)));
                }
                let Some((_, pace)) = &pace else { continue };
                tokio::select! {
                    ended = pages(&node, cursor, pace) => {
                        if ended {
                            node.scrub.on_end(clock::wall_ns());
                            save(&node).await;
                        }
                    }
                    // A pass that was asked for does not wait for the one under way.
                    () = node.scrub.wake.notified() => {}
                    () = node.stop.cancelled() => return save(&node).await,
                }
                save_in_time(&node, &mut saved_at).await;
            }
        }
    }
}

/// Reads the chunks of the next page; true when there are no more.
async fn pages(node: &Arc<Node>, cursor: u64, pace: &Pace) -> bool {
    let mut page = Vec::with_capacity(PAGE);
    // What is not sound, the trash for the most part, is passed over here: there may be very much of it.
    let (mut looked_at, mut last) = (0, None);
    Walk::new(&node.disks, cursor.saturating_add(1), i64::MAX as u64).for_each(|chunk, found| {
        looked_at += 1;
        last = Some(chunk);
        if found.is_sound() {
            page.push((chunk, found));
        }
        page.len() < PAGE && looked_at < LOOK_MAX
    });
    let ended = page.len() < PAGE && looked_at < LOOK_MAX;
    for (chunk, found) in page {
        pace.take(found.length.into()).await;
        node.give_way().await;
        let bad = loop {
            match node.disks.verify(chunk).await {
                Ok(_) => break false,
                Err(StoreError::Overloaded) => clock::sleep(PAUSE).await,
                Err(StoreError::NotFound(_)) => break false, // deleted meanwhile
                Err(error) => {
                    if error.kind() != ErrorKind::Corrupt {
                        node.scrub.lock().error = error.to_string();
                    }
                    break true;
                }
            }
        };
        ::metrics::counter!(metrics::SCRUBBED_BYTES).increment(found.length.into());
        ::metrics::counter!(metrics::SCRUB_BAD).increment(u64::from(bad));
        node.scrub.on_read(chunk.get(), found.length.into(), bad);
    }
    if let Some(last) = last {
        node.scrub.on_passed(last.get());
    }
    tokio::task::yield_now().await;
    ended
}

async fn load(node: &Arc<Node>) {
    let from = Arc::clone(node);
    let read = node.disks.pool().run(move || identity::read_scrub::<Saved>(&from.disks.raw())).await;
    if let Ok(saved) = read {
        let latest = saved.into_iter().max_by_key(|saved| (saved.started_ns, saved.cursor));
        let (chunks, bytes) = (node.disks.chunks(), node.disks.used());
        let mut state = node.scrub.lock();
        state.saved = latest.unwrap_or_default();
        (state.chunks_total, state.bytes_total) = (chunks, bytes);
    }
}

async fn save_in_time(node: &Arc<Node>, saved_at: &mut Instant) {
    if saved_at.elapsed() >= SAVE_INTERVAL {
        *saved_at = clock::now();
        save(node).await;
    }
}

async fn save(node: &Arc<Node>) {
    let saved = node.scrub.lock().saved.clone();
    let to = Arc::clone(node);
    let written = node.disks.pool().run(move || identity::write_scrub(&to.disks.raw(), &saved)).await;
    if let Ok(Err(error)) = written {
        warn!(%error, "the progress of the scrub could not be recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrub() -> Scrub {
        Scrub::new(ScrubOptions { period: Duration::from_secs(1000), rate: 32 << 20 })
    }

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_pass_begins_when_the_period_is_over_and_goes_on_where_it_was() {
        let scrub = scrub();
        assert!(matches!(scrub.next(5 * SECOND, || (2, 20)), Step::Read(0)));
        scrub.on_read(7, 10, false);
        assert!(matches!(scrub.next(6 * SECOND, || (2, 20)), Step::Read(7)));
        scrub.on_read(9, 10, true);
        scrub.on_end(7 * SECOND);
        let status = scrub.status();
        assert_eq!((status.running, status.chunks_done, status.bytes_done), (false, 2, 20));
        assert_eq!((status.finished_ns, status.bad_last), (7 * SECOND, 1));
        assert!(matches!(scrub.next(8 * SECOND, || (2, 20)), Step::Wait(_)));
        assert!(matches!(scrub.next(1005 * SECOND, || (2, 20)), Step::Read(0)));
        assert_eq!((scrub.status().bad, scrub.status().bad_last), (0, 1));
    }

    #[test]
    fn a_pass_that_is_asked_for_takes_the_place_of_the_one_under_way_once() {
        let scrub = scrub();
        assert!(matches!(scrub.next(SECOND, || (2, 20)), Step::Read(0)));
        scrub.on_read(7, 10, false);
        scrub.start(5 << 20);
        assert!(scrub.status().running);
        scrub.on_read(8, 10, false);
        scrub.on_end(2 * SECOND);
        assert_eq!(scrub.status().finished_ns, 0, "what was under way is no whole pass");
        assert!(matches!(scrub.next(3 * SECOND, || (2, 20)), Step::Read(0)));
        assert_eq!((scrub.rate(20), scrub.status().started_ns), (5 << 20, 3 * SECOND));
        scrub.on_read(7, 10, false);
        scrub.start(0);
        assert!(matches!(scrub.next(4 * SECOND, || (2, 20)), Step::Read(7)), "it is running already");
    }

    #[test]
    fn the_rate_spreads_the_store_over_the_period_within_its_bounds() {
        let scrub = scrub();
        assert_eq!(scrub.rate(0), RATE_MIN);
        assert_eq!(scrub.rate(10_000 << 20), 10 << 20);
        assert_eq!(scrub.rate(1 << 50), 32 << 20);
    }
}
