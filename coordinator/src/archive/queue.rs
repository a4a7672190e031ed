//! What the executor hands over: commits that are on their way to the second place.
//!
//! A commit is encoded on the executor's thread and put into a queue that is bounded in bytes. When the
//! place can not keep up and the queue is full, it is emptied: from then on there is a *gap*, which only
//! a new base closes. So metadata never waits for the place, and memory stays bounded.
//!
//! With `log_ack = shipped` a commit that carries the reply of a client's request waits until it is
//! durable in the place. When that takes too long the reply is withheld ("unknown"; the client asks
//! again) and requests that change something are refused until all that was committed has arrived.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_proto::ErrorKind;
use cairn_runtime::clock::{self, Instant};
use tokio::sync::Notify;

use super::file::BODY_MAX;
use super::record::encode_batch;
use crate::config::LogAck;
use crate::error::OpError;
use crate::store::{Batch, Key, Row, StoreError};

/// Bytes of commits that may wait for the place.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A commit that shall be acknowledged waits so long for the place; clients give a call 5 s.
const ACK_TIME: Duration = Duration::from_secs(4);

/// One commit on its way.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) time_ns: i64,
    pub(crate) body: Bytes,
    pub(crate) committed: Instant,
}

/// A base backup that was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BaseDone {
    pub(crate) name: String,
    pub(crate) sequence: u64,
    pub(crate) time_ns: i64,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Entry>,
    bytes: usize,
    /// Commits were dropped: what follows needs a base of its own.
    gap: bool,
    /// The last commit of the store.
    committed: u64,
    /// The last commit that is durable in the place.
    shipped: u64,
    /// A base and the log after it reach `shipped`.
    covered: bool,
    /// An acknowledgement was withheld since the place last had everything.
    withheld: bool,
    /// Since when something is missing in the place.
    behind_since: Option<Instant>,
    /// Why the last try failed.
    error: Option<String>,
    base: Option<BaseDone>,
    base_error: Option<String>,
    /// The executor has ended: nothing follows.
    closed: bool,
    /// The shipper has ended: nothing will arrive.
    stopped: bool,
}

/// How the second place stands, for status and metrics.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) ack: LogAck,
    pub(crate) committed: u64,
    pub(crate) shipped: u64,
    pub(crate) covered: bool,
    /// For how long something has been missing.
    pub(crate) behind: Duration,
    pub(crate) error: Option<String>,
    pub(crate) base: Option<BaseDone>,
    pub(crate) base_error: Option<String>,
}

/// Commits on their way to the second place, and how it stands. Shared by the executor, which adds, the
/// shipper, which takes, and whoever asks.
#[derive(Debug)]
pub(crate) struct Shipping {
    /// `None`: there is no second place.
    ack: Option<LogAck>,
    state: Mutex<State>,
    arrived: Condvar,
    pub(crate) wake: Notify,
}

impl Shipping {
    /// `committed`: the last commit of the store as it was opened.
    pub(crate) fn new(ack: Option<LogAck>, committed: u64) -> Self {
        // What was committed before is to be found in the place first, so there is a gap for now.
        let state = State {
            committed,
            gap: true,
            withheld: true,
            behind_since: Some(clock::now()),
            ..State::default()
        };
        Self { ack, state: Mutex::new(state), arrived: Condvar::new(), wake: Notify::new() }
    }

    pub(crate) fn off() -> Self {
        Self::new(None, 0)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.ack.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests that change something may be executed, and earlier replies be repeated.
    ///
    /// `Unavailable`: acknowledgements wait for the second place, which does not have everything.
    pub(crate) fn check(&self) -> Result<(), OpError> {
        if self.ack != Some(LogAck::Shipped) {
            return Ok(());
        }
        let state = self.state();
        if state.covered && !state.withheld {
            return Ok(());
        }
        let why = state.error.clone().or_else(|| state.base_error.clone());
        let why = why.unwrap_or_else(|| "it is being brought up to date".into());
        let message = format!("changes wait for the second place of the metadata log: {why}");
        Err(OpError::new(ErrorKind::Unavailable, message))
    }

    /// Takes a commit that the store has made durable, and waits where it must.
    ///
    /// `NotShipped`: what was asked is in the store but not in the place.
    pub(crate) fn add(&self, sequence: u64, batch: &Batch) -> Result<(), StoreError> {
        let Some(ack) = self.ack else { return Ok(()) };
        let mut body = BytesMut::new();
        encode_batch(batch, &mut body);
        let committed = clock::now();
        let entry = Entry { sequence, time_ns: clock::wall_ns(), body: body.freeze(), committed };
        let mut state = self.state();
        state.committed = sequence;
        state.behind_since.get_or_insert(committed);
        let full = state.bytes + entry.body.len() > QUEUE_BYTES_MAX || entry.body.len() > BODY_MAX;
        if full && !state.gap {
            tracing::error!(
                bytes = state.bytes,
                "the second place of the metadata log is too slow or away: a new base backup is needed"
            );
        }
        if full {
            state.queue.clear();
            state.bytes = 0;
            state.gap = true;
            state.covered = false;
        } else if !state.gap {
            state.bytes += entry.body.len();
            state.queue.push_back(entry);
        }
        self.wake.notify_one();
        // What is kept of a session that has ended is no reply to anybody.
        let ends = |session| batch.deletes.contains(&Key::Session(session));
        let is_reply = |row: &Row| matches!(row, Row::Slot(slot) if !ends(slot.session));
        if ack == LogAck::Shipped && batch.puts.iter().any(is_reply) {
            return self.wait(state, sequence);
        }
        Ok(())
    }

    fn wait(&self, mut state: MutexGuard<'_, State>, sequence: u64) -> Result<(), StoreError> {
        let deadline = clock::now() + ACK_TIME;
        loop {
            if state.covered && !state.withheld && state.shipped >= sequence {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() || state.stopped || !state.covered || state.withheld {
                state.withheld = true;
                let why = state.error.clone().unwrap_or_else(|| "it does not answer in time".into());
                return Err(StoreError::NotShipped(why));
            }
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Begins to collect commits, after which a base will hold all earlier ones. Returns the sequence of
    /// the last commit that is not collected.
    pub(super) fn collect(&self) -> u64 {
        let mut state = self.state();
        if state.gap {
            state.gap = false;
            state.queue.clear();
            state.bytes = 0;
        }
        state.queue.front().map_or(state.committed, |entry| entry.sequence.saturating_sub(1))
    }

    /// Whether commits were dropped since [`Self::collect`].
    pub(super) fn has_gap(&self) -> bool {
        self.state().gap
    }

    /// The oldest commits, of about so many bytes; at least one unless none waits. They stay in the queue
    /// until [`Self::shipped`].
    pub(super) fn oldest(&self, bytes: usize) -> Vec<Entry> {
        let state = self.state();
        let mut left = bytes;
        let fits = |entry: &&Entry| {
            let fits = left > 0;
            left = left.saturating_sub(entry.body.len());
            fits
        };
        state.queue.iter().take_while(fits).cloned().collect()
    }

    /// All up to `sequence` is durable in the place.
    pub(super) fn shipped(&self, sequence: u64) {
        let mut state = self.state();
        while state.queue.front().is_some_and(|entry| entry.sequence <= sequence) {
            let gone = state.queue.pop_front().map_or(0, |entry| entry.body.len());
            state.bytes = state.bytes.saturating_sub(gone);
        }
        state.shipped = sequence;
        state.error = None;
        self.settle(&mut state);
    }

    /// A base and the log reach what was shipped.
    pub(super) fn covered(&self, base: Option<BaseDone>) {
        let mut state = self.state();
        state.covered = !state.gap;
        state.base = base.or_else(|| state.base.take());
        state.base_error = None;
        self.settle(&mut state);
    }

    /// What is in the place is not enough to restore from, until a base is made.
    pub(super) fn uncovered(&self) {
        let mut state = self.state();
        state.covered = false;
        state.behind_since.get_or_insert_with(clock::now);
        self.arrived.notify_all();
    }

    pub(super) fn failed(&self, error: &str) {
        self.state().error = Some(error.to_owned());
    }

    pub(super) fn base_failed(&self, error: &str) {
        self.state().base_error = Some(error.to_owned());
    }

    /// What is remembered of being late once nothing is missing any more.
    fn settle(&self, state: &mut State) {
        state.behind_since = match state.queue.front() {
            Some(entry) => Some(entry.committed),
            None if state.covered => None,
            None => state.behind_since,
        };
        if state.covered && state.shipped >= state.committed {
            state.withheld = false;
        }
        self.arrived.notify_all();
    }

    /// Nothing follows; for the executor's end.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.wake.notify_one();
    }

    /// Whether nothing follows, and whether all has arrived.
    pub(super) fn closing(&self) -> Option<bool> {
        let state = self.state();
        state.closed.then(|| state.queue.is_empty() && !state.gap)
    }

    /// Nobody carries commits away any more.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.arrived.notify_all();
    }

    /// `None`: there is no second place.
    pub(crate) fn standing(&self) -> Option<Standing> {
        let ack = self.ack?;
        let state = self.state();
        Some(Standing {
            ack,
            committed: state.committed,
            shipped: state.shipped,
            covered: state.covered,
            behind: state.behind_since.map_or(Duration::ZERO, |since| since.elapsed()),
            error: state.error.clone(),
            base: state.base.clone(),
            base_error: state.base_error.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
