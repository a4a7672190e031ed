//! Work in the background: each worker does one bounded step after another, and shows how far it is.
//!
//! A step says what comes next: at once another one, nothing for a while, or a pause because a limit is
//! reached. What fails is tried again after a growing pause; the error is shown until a step succeeds.
//! Between steps a worker can be paused, resumed, and woken before its time. Workers hold no strong
//! reference to what they work on while they wait, and end with the service.

pub(crate) mod compact;
pub(crate) mod gc;
pub(crate) mod placement;
pub(crate) mod reap;
pub(crate) mod reconcile;
pub(crate) mod repair;
pub(crate) mod strays;
pub(crate) mod sync;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cairn_proto::v1;
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::random;
use tokio::sync::Notify;

use crate::error::OpError;
use crate::service::Shared;

/// Pause after a step that failed; doubles up to the other bound.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What comes after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// There is more to do.
    Busy,
    /// Nothing to do for so long, unless woken.
    Idle(Duration),
    /// There is more to do, but a limit says to wait so long.
    Throttled(Duration),
}

/// Something that works in the background.
pub(crate) trait Worker: Send + 'static {
    /// By which people know it.
    const NAME: &'static str;

    /// Does one bounded part of the work. Dropping the future must leave nothing half done that a later
    /// step can not take up.
    fn step(
        &mut self,
        shared: &Arc<Shared>,
        progress: &Progress,
    ) -> impl Future<Output = Result<Next, OpError>> + Send;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Idle,
    Busy,
    Throttled,
}

#[derive(Debug)]
struct State {
    standing: Standing,
    paused: bool,
    done: u64,
    total: u64,
    bytes: u64,
    /// When the pass under way began, and when the last one ended.
    began: Option<Instant>,
    finished_ns: i64,
    error: String,
}

/// How far a worker is; shared by itself and by those who ask.
#[derive(Debug)]
pub(crate) struct Progress {
    state: Mutex<State>,
    wake: Notify,
}

impl Progress {
    fn new() -> Self {
        let state = State {
            standing: Standing::Idle,
            paused: false,
            done: 0,
            total: 0,
            bytes: 0,
            began: None,
            finished_ns: 0,
            error: String::new(),
        };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass over `total` things begins; 0 when nobody knows how many.
    pub(crate) fn begin(&self, total: u64) {
        let mut state = self.lock();
        (state.done, state.total, state.bytes) = (0, total, 0);
        state.began = Some(clock::now());
    }

    /// So many things, and so many bytes of them, are done.
    pub(crate) fn add(&self, things: u64, bytes: u64) {
        let mut state = self.lock();
        state.done += things;
        state.bytes += bytes;
        state.total = state.total.max(state.done);
    }

    /// The pass has ended, when one was under way.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        if state.began.take().is_some() {
            state.finished_ns = clock::wall_ns();
        }
    }

    fn set(&self, standing: Standing, error: Option<&OpError>) {
        let mut state = self.lock();
        state.standing = standing;
        match error {
            Some(error) => state.error = error.to_string(),
            None => state.error.clear(),
        }
    }

    /// Work may have come up: look before the time.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    fn is_paused(&self) -> bool {
        self.lock().paused
    }

    fn show(&self, name: &str) -> v1::WorkerStatus {
        let state = self.lock();
        let elapsed = state.began.map_or(Duration::ZERO, |began| began.elapsed());
        let per_second = |amount: u64| amount as f64 / elapsed.as_secs_f64().max(0.001);
        let left = state.total.saturating_sub(state.done);
        let eta = (state.began.is_some() && state.done > 0 && left > 0)
            .then(|| Duration::from_secs_f64(left as f64 / per_second(state.done)));
        let standing = match (state.paused, state.standing) {
            (true, _) => v1::WorkerState::Paused,
            (false, Standing::Idle) => v1::WorkerState::Idle,
            (false, Standing::Busy) => v1::WorkerState::Busy,
            (false, Standing::Throttled) => v1::WorkerState::Throttled,
        };
        v1::WorkerStatus {
            name: name.to_owned(),
            state: standing.into(),
            done: state.done,
            total: state.total,
            bytes: state.bytes,
            bytes_per_second: if state.began.is_some() { per_second(state.bytes) as u64 } else { 0 },
            eta_ms: eta.map_or(0, |eta| u64::try_from(eta.as_millis()).unwrap_or(u64::MAX).max(1)),
            error: state.error.clone(),
            finished_ns: state.finished_ns,
        }
    }
}

/// All workers of this coordinator, by name.
#[derive(Debug, Default)]
pub(crate) struct Workers(Mutex<BTreeMap<&'static str, Arc<Progress>>>);

impl Workers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Arc<Progress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How each of them is.
    pub(crate) fn list(&self) -> Vec<v1::WorkerStatus> {
        self.lock().iter().map(|(name, progress)| progress.show(name)).collect()
    }

    /// Wakes a worker, when it has been started.
    pub(crate) fn wake(&self, name: &str) {
        if let Some(progress) = self.lock().get(name) {
            progress.wake();
        }
    }

    /// Does what an operator asks. A pause ends with the coordinator.
    pub(crate) fn control(&self, name: &str, action: v1::WorkerAction) -> Result<v1::WorkerStatus, OpError> {
        let workers = self.lock();
        let Some(progress) = workers.get(name) else {
            let known: Vec<_> = workers.keys().copied().collect();
            let message = format!("there is no worker {name:?}; there are {}", known.join(", "));
            return Err(OpError::invalid(message));
        };
        match action {
            v1::WorkerAction::Unspecified => return Err(OpError::invalid("no action was named")),
            v1::WorkerAction::Start => {}
            v1::WorkerAction::Pause => progress.lock().paused = true,
            v1::WorkerAction::Resume => progress.lock().paused = false,
        }
        tracing::info!(worker = name, ?action, "an operator controls a worker");
        progress.wake();
        Ok(progress.show(name))
    }
}

/// Starts a worker; it ends with the service.
pub(crate) fn start<W: Worker>(shared: &Arc<Shared>, worker: W) {
    let progress = Arc::new(Progress::new());
    shared.workers.lock().insert(W::NAME, Arc::clone(&progress));
    let (weak, stop) = (Arc::downgrade(shared), shared.shutdown.requested());
    shared.shutdown.spawn(async move {
        tokio::select! { () = run(weak, worker, &progress) => {}, () = stop => {} }
    });
}

async fn run<W: Worker>(shared: Weak<Shared>, mut worker: W, progress: &Progress) {
    let mut pause = BACKOFF_MIN;
    loop {
        while progress.is_paused() {
            progress.wake.notified().await;
        }
        let Some(strong) = shared.upgrade() else { return };
        progress.lock().standing = Standing::Busy;
        let step = worker.step(&strong, progress).await;
        drop(strong);
        let wait = match &step {
            Ok(Next::Busy) => Duration::ZERO,
            Ok(Next::Idle(wait) | Next::Throttled(wait)) => *wait,
            Err(error) => {
                tracing::warn!(worker = W::NAME, %error, "a step of background work failed; it is tried again");
                random::jitter(pause)
            }
        };
        pause = if step.is_ok() { BACKOFF_MIN } else { (pause * 2).min(BACKOFF_MAX) };
        match step {
            Ok(Next::Busy) => {
                progress.set(Standing::Busy, None);
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Next::Idle(_)) => progress.set(Standing::Idle, None),
            Ok(Next::Throttled(_)) => progress.set(Standing::Throttled, None),
            Err(error) => progress.set(Standing::Throttled, Some(&error)),
        }
        // Either is fine: the time is over, or somebody knows of work.
        let _ = clock::timeout(wait, progress.wake.notified()).await;
    }
}
