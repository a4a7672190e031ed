//! The order in which services start and stop, and what is said while they run.

use std::path::{Path, PathBuf};

use cairn_runtime::clock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::keeper::{Event, Keeper};
use super::service::{Common, Role, Service};
use super::state::State;
use super::summary;
use crate::args::{GlobalArgs, UpArgs};
use crate::cluster::Cluster;
use crate::failure::{Context, Failure};
use crate::notes::{self, Ready, UpNote};
use crate::output::Output;
use crate::{background, places};

/// Events that may wait for the supervisor; there are at most a few for each service.
const EVENTS_MAX: usize = 1024;
/// Datanodes are known to the coordinator within this time after they are ready.
const NODES_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// A running cluster.
pub(super) struct Supervisor {
    data: PathBuf,
    state: State,
    output: Output,
    stopping: CancellationToken,
    force: CancellationToken,
    events: mpsc::Receiver<Event>,
    // In the order in which they were started.
    keepers: Vec<Keeper>,
}

impl Supervisor {
    /// Starts everything; on return the directory can be used.
    pub(super) async fn start(
        data: &Path,
        state: State,
        args: &UpArgs,
        global: &GlobalArgs,
        output: Output,
    ) -> Result<Self, Failure> {
        let allow_other = args.allow_other || places::is_root();
        let common = Common::new(data, &state, global, allow_other, !args.no_protect);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (stopping, force) = (CancellationToken::new(), CancellationToken::new());
        watch_signals(&stopping, &force)?;
        let mut this =
            Self { data: data.to_owned(), state, output, stopping, force, events, keepers: Vec::new() };
        let started = this.start_all(&common, !args.no_restart, sender).await;
        let announced = match started {
            Ok(()) => this.announce(args.ready_file.as_deref()),
            Err(failure) => Err(failure),
        };
        match announced {
            Ok(()) => Ok(this),
            Err(failure) => {
                this.stop().await;
                Err(failure)
            }
        }
    }

    async fn start_all(
        &mut self,
        common: &Common,
        restart: bool,
        events: mpsc::Sender<Event>,
    ) -> Result<(), Failure> {
        let coordinator = self.start_one(Role::Coordinator, common, "", restart, &events).await?;
        let address = coordinator.address.unwrap_or_default();
        let roles: Vec<Role> = (1..=self.state.datanodes).map(Role::Datanode).collect();
        let starts = roles.iter().map(|&role| {
            let last = self.state.services.get(&role.name()).cloned();
            let (events, stopping, force) = (events.clone(), self.stopping.clone(), self.force.clone());
            let address = &address;
            async move {
                let service = Service::new(role, common, address, last.as_ref()).await;
                (role, Keeper::start(service, restart, events, &stopping, &force).await)
            }
        });
        // All are awaited, also when one fails, so that each that runs is stopped again.
        let mut first_failure = None;
        for (role, result) in futures::future::join_all(starts).await {
            match result {
                Ok((keeper, ready)) => {
                    self.keepers.push(keeper);
                    self.state.services.insert(role.name(), ready);
                }
                Err(failure) => first_failure = first_failure.or(Some(failure)),
            }
        }
        if let Some(failure) = first_failure {
            return Err(failure);
        }
        self.await_nodes(&address).await?;
        self.start_one(Role::Mount, common, &address, restart, &events).await?;
        // Returns only when the kernel has asked the mount, which has asked the coordinator.
        rustix::fs::statvfs(&self.state.directory)
            .doing(format!("use {}", self.state.directory.display()))?;
        Ok(())
    }

    async fn start_one(
        &mut self,
        role: Role,
        common: &Common,
        coordinator: &str,
        restart: bool,
        events: &mpsc::Sender<Event>,
    ) -> Result<Ready, Failure> {
        let last = self.state.services.get(&role.name()).cloned();
        let service = Service::new(role, common, coordinator, last.as_ref()).await;
        let (keeper, ready) =
            Keeper::start(service, restart, events.clone(), &self.stopping, &self.force).await?;
        self.keepers.push(keeper);
        self.state.services.insert(role.name(), ready.clone());
        // Written after each, so that a later `up` finds the leftovers of one that was killed here.
        self.state.write(&self.data)?;
        Ok(ready)
    }

    /// Waits until the coordinator counts on all datanodes.
    async fn await_nodes(&self, address: &str) -> Result<(), Failure> {
        let cluster = Cluster::connect(address)?;
        let end = clock::now() + NODES_LIMIT;
        loop {
            let up = cluster.nodes_up().await.unwrap_or(0);
            if up >= self.state.datanodes as usize {
                return Ok(());
            }
            if clock::now() >= end {
                let why = format!("{up} of {} datanodes have registered", self.state.datanodes);
                return Err(Failure::new("start the cluster", why)
                    .next(format!("look into {}", self.data.join("log").display())));
            }
            tokio::select! {
                () = clock::sleep(std::time::Duration::from_millis(20)) => {}
                () = self.stopping.cancelled() => return Err(Failure::new("start the cluster", "stopped")),
            }
        }
    }

    /// Tells the person, other commands, and the parent, if there is one.
    fn announce(&self, ready_file: Option<&Path>) -> Result<(), Failure> {
        self.state.write(&self.data)?;
        let coordinator = self.state.services.get(&Role::Coordinator.name());
        let address = coordinator.and_then(|ready| ready.address.clone()).unwrap_or_default();
        let note = UpNote {
            pid: std::process::id(),
            coordinator: address.clone(),
            directory: self.state.directory.clone(),
            data: self.data.clone(),
        };
        if let Err(error) = notes::announce_up(&note) {
            self.output.note(format!("other commands need --coordinator {address}: {error}"));
        }
        let ready = Ready {
            role: "up".to_owned(),
            pid: std::process::id(),
            address: Some(address),
            directory: Some(self.state.directory.clone()),
            ..Ready::default()
        };
        background::tell_ready(ready_file, &ready)?;
        // A background process has nobody to print to: its parent does that.
        if ready_file.is_none() {
            summary::print(&self.state, &self.data, false, self.output)
        } else {
            Ok(())
        }
    }

    /// Watches over everything until it shall stop, then stops it.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        loop {
            let event = tokio::select! {
                event = self.events.recv() => event,
                () = self.stopping.cancelled() => None,
            };
            match event {
                Some(Event::Back(role, ready)) => {
                    self.output.note(format!("{} runs again (pid {})", role.name(), ready.pid));
                    self.state.services.insert(role.name(), ready);
                    if let Err(failure) = self.state.write(&self.data) {
                        self.output.note(failure);
                    }
                }
                Some(Event::Died(role, why, Some(next))) => {
                    let name = role.name();
                    self.output
                        .note(format!("{name} died ({why}); starting it again in {} ms", next.as_millis()));
                }
                Some(Event::Died(role, why, None)) => {
                    self.output.note(format!("{} died ({why}) and stays so (--no-restart)", role.name()));
                }
                Some(Event::Unmounted) => {
                    self.output.note(format!("{} was unmounted: stopping", self.state.directory.display()));
                    break;
                }
                None => break,
            }
        }
        self.output.note("stopping: the mount stores what it holds, then the rest ends");
        self.stop().await;
        Ok(())
    }

    /// The mount first, so that it can store what it holds; then the datanodes, then the coordinator.
    async fn stop(&mut self) {
        notes::retract_up();
        let mut keepers = std::mem::take(&mut self.keepers);
        let coordinator = (!keepers.is_empty()).then(|| keepers.remove(0));
        let datanodes = self.state.datanodes as usize;
        let mounts = keepers.split_off(datanodes.min(keepers.len()));
        for group in [mounts, keepers, coordinator.into_iter().collect()] {
            futures::future::join_all(group.into_iter().map(Keeper::stop)).await;
        }
        self.state.pid = 0;
        if let Err(failure) = self.state.write(&self.data) {
            self.output.note(failure);
        }
    }
}

/// The first SIGINT or SIGTERM asks for an orderly stop, a second one for a quick one.
fn watch_signals(stopping: &CancellationToken, force: &CancellationToken) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).doing("watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).doing("watch for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).doing("watch for SIGHUP")?;
    let (stopping, force) = (stopping.clone(), force.clone());
    tokio::spawn(async move {
        for token in [stopping, force] {
            any_of([&mut interrupt, &mut terminate, &mut hangup]).await;
            token.cancel();
        }
    });
    Ok(())
}

async fn any_of(signals: [&mut Signal; 3]) {
    let [first, second, third] = signals;
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
        _ = third.recv() => {}
    }
}
