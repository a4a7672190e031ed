//! Work in the background: each worker does one bounded step, then says what it wants next.

pub(crate) mod gc;
pub(crate) mod reconcile;
pub(crate) mod strays;

use std::sync::{Arc, Weak};
use std::time::Duration;

use cairn_runtime::clock;

use crate::error::OpError;
use crate::service::Shared;

/// What a worker wants after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// To go on at once.
    Busy,
    /// To go on after a pause, so that others get their turn.
    Throttled(Duration),
    /// Nothing to do before this time has passed.
    Idle(Duration),
}

/// After a step that failed.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Starts the workers. They hold no strong reference while they sleep, and end with the service.
pub(crate) fn start(shared: &Arc<Shared>, reconcile_every: Duration) {
    run(shared, "gc", gc::Gc::default());
    run(shared, "reconcile", reconcile::Reconcile::new(reconcile_every));
}

/// One kind of work.
trait Worker: Send + 'static {
    fn step(&mut self, shared: &Arc<Shared>) -> impl Future<Output = Result<Outcome, OpError>> + Send;
}

impl Worker for gc::Gc {
    async fn step(&mut self, shared: &Arc<Shared>) -> Result<Outcome, OpError> {
        self.step(shared).await
    }
}

impl Worker for reconcile::Reconcile {
    async fn step(&mut self, shared: &Arc<Shared>) -> Result<Outcome, OpError> {
        self.step(shared).await
    }
}

fn run(shared: &Arc<Shared>, name: &'static str, mut worker: impl Worker) {
    let stop = shared.shutdown.requested();
    let weak = Arc::downgrade(shared);
    let work = async move {
        let mut retry = RETRY;
        loop {
            let Some(shared) = Weak::upgrade(&weak) else { return };
            let pause = match worker.step(&shared).await {
                Ok(outcome) => {
                    retry = RETRY;
                    match outcome {
                        Outcome::Busy => Duration::ZERO,
                        Outcome::Throttled(pause) | Outcome::Idle(pause) => pause,
                    }
                }
                Err(error) => {
                    tracing::warn!(worker = name, %error, "a step of a worker failed; it is tried again");
                    let pause = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    pause
                }
            };
            drop(shared);
            clock::sleep(pause).await;
        }
    };
    shared.shutdown.spawn(async move {
        tokio::select! { () = work => {}, () = stop => {} }
    });
}
