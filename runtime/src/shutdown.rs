//! Orderly ends: a token that says stop, and a count of the tasks that have yet to.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Tasks are awaited this long after they were told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// The life of one service: its tasks and the token that ends them. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A service that runs until told otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that [`Self::drain`] waits for.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        #[cfg(feature = "sim")]
        let task = crate::sim::while_running(task);
        self.tasks.spawn(task)
    }

    /// Resolves when the service shall stop.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + 'static {
        self.token.clone().cancelled_owned()
    }

    /// Whether the service shall stop.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The token itself, for code that hands it on.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tells every task to stop.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Tells every task to stop and waits for them, at most ten seconds.
    pub async fn drain(&self) {
        self.request();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_TIME, self.tasks.wait()).await.is_err() {
            warn!(tasks = self.tasks.len(), "tasks did not end in time and are dropped");
        }
    }

    /// Requests the end on the first SIGINT or SIGTERM.
    pub fn on_signals(&self) -> io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let token = self.token.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => info!("SIGINT: stopping"),
                _ = terminate.recv() => info!("SIGTERM: stopping"),
                () = token.cancelled() => {}
            }
            token.cancel();
        });
        Ok(())
    }
}
