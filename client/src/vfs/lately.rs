//! What makes an open work although the file was removed a moment before: files closed lately are
//! kept open a little longer, and own removals are known.
//!
//! A program may find a name, and open what it names after another program has replaced that file:
//! on a local file system it gets the old one. Here the old one would be deleted with its last name,
//! and the open fail with ESTALE. A kernel tries such an open once more; while a file is replaced
//! again and again that is not enough. Files that are replaced often were also closed a moment
//! before, so holding them for that moment helps; and what a kernel looks up again after ESTALE is held open
//! from the look-up on, so that the open which follows finds it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::InodeId;
use cairn_runtime::clock::{self, Instant};
use tokio::runtime::Handle as Runtime;

use super::handles::Handle;
use crate::OpenGuard;

/// How long a closed file is held: longer than the way from a look-up to the open that follows it.
const CLOSED: Duration = Duration::from_millis(300);
/// Files held at most, of each kind; more push out the oldest.
const HELD_MAX: usize = 4096;
/// After an ESTALE what is looked up is held; the look-up comes at once, unless the machine is busy.
const AGAIN: Duration = Duration::from_secs(2);

struct State<T> {
    held: VecDeque<(Instant, T)>,
    /// A task is at work that drops them in time.
    tended: bool,
}

/// What is held for a time, in the order in which that ends.
struct Held<T>(Arc<Mutex<State<T>>>);

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { held: VecDeque::new(), tended: false })))
    }
}

impl<T: Send + 'static> Held<T> {
    fn add(&self, held: T, time: Duration, runtime: &Runtime) {
        let mut pushed_out = None;
        let start = self.with(|state| {
            state.held.push_back((clock::now() + time, held));
            if state.held.len() > HELD_MAX {
                pushed_out = state.held.pop_front();
            }
            !std::mem::replace(&mut state.tended, true)
        });
        drop(pushed_out); // outside of the lock: it tells the session
        if start {
            runtime.spawn(self.clone().tend());
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut State<T>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_all(&self) -> VecDeque<(Instant, T)> {
        self.with(|state| std::mem::take(&mut state.held))
    }

    async fn tend(self) {
        loop {
            let next = self.with(|state| {
                let next = state.held.front().map(|(until, _)| *until);
                state.tended = next.is_some();
                next
            });
            let Some(next) = next else { return };
            clock::sleep_until(next).await;
            // All that are due at once, so that their closes travel together.
            let now = clock::now();
            let due = self.with(|state| {
                let count = state.held.partition_point(|(until, _)| *until <= now);
                state.held.drain(..count).collect::<Vec<_>>()
            });
            drop(due);
        }
    }
}

/// The files closed lately.
#[derive(Default)]
pub(super) struct ClosedLately(Held<Arc<Handle>>);

impl ClosedLately {
    pub(super) fn add(&self, handle: Arc<Handle>, runtime: &Runtime) {
        self.0.add(handle, CLOSED, runtime);
    }
}

/// The files that a kernel has looked up again after it was told ESTALE.
#[derive(Default)]
pub(super) struct LookedUpAgain {
    is_on: AtomicBool,
    until: Mutex<Option<Instant>>,
    held: Held<OpenGuard>,
}

impl LookedUpAgain {
    /// A kernel is told ESTALE: what it looks up next is to be there when it is opened.
    pub(super) fn begin(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now() + AGAIN);
        self.is_on.store(true, Ordering::SeqCst);
    }

    /// Whether what is looked up now is to be held.
    pub(super) fn is_on(&self) -> bool {
        if !self.is_on.load(Ordering::SeqCst) {
            return false;
        }
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let is_on = until.is_some_and(|until| clock::now() < until);
        if !is_on {
            *until = None;
            self.is_on.store(false, Ordering::SeqCst);
            // A kernel may keep what it looks up from now on: a later open must not pass for the one that was waited for.
            drop(self.held.take_all());
        }
        is_on
    }

    /// Holds a file until it is opened, unless what is looked up now is not to be held any more.
    pub(super) fn add(&self, guard: OpenGuard, runtime: &Runtime) {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some() {
            self.held.add(guard, AGAIN, runtime);
        }
    }

    /// What holds a file for the open that follows its look-up, so that it may be opened also when it has no name any
    /// more. Each look-up is good for one open.
    pub(super) fn take(&self, inode: InodeId) -> Option<OpenGuard> {
        self.held.with(|state| {
            let at = state.held.iter().position(|(_, guard)| guard.inode() == inode)?;
            state.held.remove(at).map(|(_, guard)| guard)
        })
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
