//! Keeps one service running: starts it, waits until it can be used, starts it again when it dies.
//!
//! ```text
//! starting -> running -> (died) -> waiting -> starting ...
//!     |          |                    |
//!     +----------+------- stop -------+--> ended
//! ```

use std::time::Duration;

use cairn_runtime::clock;
use rustix::process::Signal;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::service::{Role, Service};
use crate::background;
use crate::failure::Failure;
use crate::notes::{self, Ready};
use crate::unmount;

/// A service must be usable within this time: a datanode may have much to scan.
pub(super) const START_LIMIT: Duration = Duration::from_secs(120);
/// The first restart comes after this long; each further one takes twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// But never longer.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A service that ran this long is forgiven its earlier deaths.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// After SIGKILL a process ends at once, unless the kernel holds it.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// What happened to a service, for the supervisor.
#[derive(Debug)]
pub(super) enum Event {
    /// It can be used again, after a restart.
    Back(Role, Ready),
    /// It died, or could not start again; the next try comes after this time, if any.
    Died(Role, String, Option<Duration>),
    /// The mount was undone by somebody.
    Unmounted,
}

/// Handle of a service that is kept running.
#[derive(Debug)]
pub(super) struct Keeper {
    role: Role,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Starts the service and waits until it can be used.
    pub(super) async fn start(
        service: Service,
        restart: bool,
        events: mpsc::Sender<Event>,
        abort: &CancellationToken,
        force: &CancellationToken,
    ) -> Result<(Self, Ready), Failure> {
        let role = service.role;
        let (first, outcome) = oneshot::channel();
        let stop = CancellationToken::new();
        let keep =
            Keep { service, restart, events, stop: stop.clone(), force: force.clone(), first: Some(first) };
        let keeper = Self { role, stop, task: tokio::spawn(keep.run()) };
        let failure = tokio::select! {
            outcome = outcome => match outcome {
                Ok(Ok(ready)) => return Ok((keeper, ready)),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::new("", "it ended while it was started"),
            },
            () = abort.cancelled() => Failure::new("", "stopped"),
        };
        keeper.stop().await;
        let what =
            if failure.what.is_empty() { role.name() } else { format!("{}: {}", role.name(), failure.what) };
        Err(Failure { what, ..failure })
    }

    /// What the service does.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// Stops the service in good order and waits for its end.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(service = self.role.name(), %error, "its keeper failed");
        }
    }
}

struct Keep {
    service: Service,
    restart: bool,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
    force: CancellationToken,
    first: Option<oneshot::Sender<Result<Ready, Failure>>>,
}

impl Keep {
    async fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let started = clock::now();
            let why = match self.once().await {
                Once::Ended => return,
                Once::Died(why) => why,
            };
            if started.elapsed() >= STABLE_AFTER {
                backoff = BACKOFF_FIRST;
            }
            let next = self.restart.then_some(backoff);
            self.tell(Event::Died(self.service.role, why, next)).await;
            if next.is_none() {
                return;
            }
            if clock::timeout(backoff, self.stop.cancelled()).await.is_ok() {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if self.service.role == Role::Mount {
                unmount::clear(self.service.directory());
            }
        }
    }

    /// One life of the service.
    async fn once(&mut self) -> Once {
        let (ready_file, log) = (self.service.ready_file(), self.service.log());
        notes::remove(&ready_file);
        let mut child = match background::spawn(&self.service.arguments(), &log, true, true) {
            Ok(child) => child,
            Err(failure) => return self.failed(failure),
        };
        // Kept apart: waiting for a child closes its standard input, which tells it to stop.
        let tie = child.stdin.take();
        let ready = tokio::select! {
            ready = background::await_ready(&mut child, &ready_file, &log, START_LIMIT) => ready,
            () = self.stop.cancelled() => return self.terminate(child).await,
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(failure) => {
                self.terminate(child).await;
                return self.failed(failure);
            }
        };
        self.service.adopt(&ready);
        match self.first.take() {
            Some(first) => drop(first.send(Ok(ready))),
            None => self.tell(Event::Back(self.service.role, ready)).await,
        }
        let status = tokio::select! {
            status = child.wait() => status,
            () = self.stop.cancelled() => return self.terminate(child).await,
        };
        drop(tie);
        match status {
            Ok(status) if status.success() && self.service.role == Role::Mount => {
                self.tell(Event::Unmounted).await;
                Once::Ended
            }
            Ok(status) => Once::Died(status.to_string()),
            Err(error) => Once::Died(error.to_string()),
        }
    }

    /// A start that did not work: final the first time, one more death later.
    fn failed(&mut self, failure: Failure) -> Once {
        match self.first.take() {
            Some(first) => {
                let _ = first.send(Err(failure));
                Once::Ended
            }
            None => Once::Died(failure.to_string()),
        }
    }

    async fn tell(&self, event: Event) {
        // The supervisor listens until all keepers have ended, or it is stopping and does not care.
        let _ = self.events.try_send(event);
    }

    /// SIGTERM, time to finish, SIGKILL.
    async fn terminate(&self, mut child: Child) -> Once {
        let Some(pid) = child.id() else { return Once::Ended };
        unmount::send(pid, Signal::TERM);
        let limit = self.service.role.stop_limit();
        let ended = tokio::select! {
            ended = clock::timeout(limit, child.wait()) => ended.is_ok(),
            () = self.force.cancelled() => false,
        };
        if !ended {
            tracing::warn!(service = self.service.role.name(), "it does not stop and is killed");
            unmount::send(pid, Signal::KILL);
            let _ = clock::timeout(KILL_LIMIT, child.wait()).await;
            if self.service.role == Role::Mount {
                unmount::clear(self.service.directory());
            }
        }
        notes::remove(&self.service.ready_file());
        Once::Ended
    }
}

/// How one life of a service ended.
enum Once {
    /// For good.
    Ended,
    /// Unasked, for this reason.
    Died(String),
}
