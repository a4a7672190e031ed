//! What makes an open work although the file was removed a moment before: files closed lately are
//! kept open a little longer, and own removals are known.
//!
//! A program may find a name, and open what it names after another program has replaced that file:
//! on a local file system it gets the old one. Here the old one would be deleted with its last name,
//! and the open fail with ESTALE. A kernel tries such an open once more; while a file is replaced
//! again and again that is not enough. Files that are replaced often were also closed a moment
//! before, so holding them for that moment is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_runtime::clock::{self, Instant};
use tokio::runtime::Handle as Runtime;

use super::handles::Handle;

/// Longer than the way from a look-up to the open that follows it.
const HELD: Duration = Duration::from_millis(300);
/// Closed files held at most; more push out the oldest.
const HELD_MAX: usize = 4096;

#[derive(Default)]
struct State {
    closed: VecDeque<(Instant, Arc<Handle>)>,
    /// A task is at work that drops them in time.
    tended: bool,
}

/// The files closed lately, in the order of their close.
#[derive(Clone, Default)]
pub(super) struct ClosedLately(Arc<Mutex<State>>);

impl ClosedLately {
    pub(super) fn add(&self, handle: Arc<Handle>, runtime: &Runtime) {
        let mut pushed_out = None;
        let start = self.with(|state| {
            state.closed.push_back((clock::now() + HELD, handle));
            if state.closed.len() > HELD_MAX {
                pushed_out = state.closed.pop_front();
            }
            !std::mem::replace(&mut state.tended, true)
        });
        drop(pushed_out); // outside of the lock: it tells the session
        if start {
            runtime.spawn(self.clone().tend());
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn tend(self) {
        loop {
            let next = self.with(|state| {
                let next = state.closed.front().map(|(until, _)| *until);
                state.tended = next.is_some();
                next
            });
            let Some(next) = next else { return };
            clock::sleep_until(next).await;
            // All that are due at once, so that their closes travel together.
            let now = clock::now();
            let due = self.with(|state| {
                let count = state.closed.partition_point(|(until, _)| *until <= now);
                state.closed.drain(..count).collect::<Vec<_>>()
            });
            drop(due);
        }
    }
}

/// Counts the removals of names that this mount has under way: what they remove shows at the
/// coordinator a moment before their answer comes here.
#[derive(Default)]
pub(super) struct Removals(AtomicUsize);

impl Removals {
    /// Counts one until the guard is dropped.
    pub(super) fn begin(&self) -> impl Drop + '_ {
        self.0.fetch_add(1, Ordering::SeqCst);
        UnderWay(self)
    }

    pub(super) fn under_way(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

struct UnderWay<'a>(&'a Removals);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}
