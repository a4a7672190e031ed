//! The order in which services start and stop, and what is said while they run.

use std::path::{Path, PathBuf};

use cairn_proto::v1;
use cairn_runtime::clock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::keeper::{Event, Keeper};
use super::service::{Common, HOST, Role, Service, host};
use super::state::State;
use super::summary;
use super::wishes::Wishes;
use crate::args::{GlobalArgs, UpArgs};
use crate::cluster::{Cluster, node_name};
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
    /// What a person should know although the cluster starts.
    warnings: Vec<String>,
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
        wishes: Wishes,
        output: Output,
    ) -> Result<Self, Failure> {
        let allow_other = args.allow_other || places::is_root();
        let common = Common::new(data, &state, global, wishes, allow_other, !args.no_protect);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (stopping, force) = (CancellationToken::new(), CancellationToken::new());
        watch_signals(&stopping, &force)?;
        let mut this = Self {
            data: data.to_owned(),
            state,
            output,
            stopping,
            force,
            events,
            warnings: Vec::new(),
            keepers: Vec::new(),
        };
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
        let cluster = Cluster::connect(&address, self.output, None)?;
        let map = cluster.map().await?;
        let all = self.state.datanodes as usize;
        let (mut roles, mut failures) = (Vec::new(), Vec::new());
        for number in 1..=self.state.datanodes {
            let role = Role::Datanode(number);
            match missing_data(number, &self.data, &map) {
                Some(failure) => {
                    self.state.services.remove(&role.name());
                    failures.push(failure);
                }
                None => roles.push(role),
            }
        }
        let starts = roles.iter().map(|&role| {
            let last = self.state.services.get(&role.name()).cloned();
            let (events, stopping, force) = (events.clone(), self.stopping.clone(), self.force.clone());
            let address = &address;
            async move {
                let service = Service::new(role, common, address, last.as_ref()).await;
                (role, Keeper::start(service, restart, events, &stopping, &force).await)
            }
        });
        for (role, result) in futures::future::join_all(starts).await {
            match result {
                Ok((keeper, ready)) => {
                    self.keepers.push(keeper);
                    self.state.services.insert(role.name(), ready);
                }
                Err(failure) => {
                    self.state.services.remove(&role.name());
                    failures.push(failure);
                }
            }
        }
        // What is missing is said and not waited for: the others have copies of its chunks.
        let started = failures.len() < all && !self.stopping.is_cancelled();
        if !started && let Some(failure) = failures.pop() {
            return Err(failure);
        }
        for failure in &failures {
            self.warn(failure.to_string());
        }
        let up = self.await_nodes(&cluster).await?;
        if up < all {
            let text = format!("the cluster starts with {up} of {all} datanodes");
            self.warn(format!("{text}; `cairn status` shows what that means"));
        }
        self.start_one(Role::Mount, common, &address, restart, &events).await?;
        // Returns only when the kernel has asked the mount, which has asked the coordinator.
        rustix::fs::statvfs(&self.state.directory)
            .doing(format!("use {}", self.state.directory.display()))?;
        Ok(())
    }

    /// Says something at once, and to the parent of a background process when everything runs.
    fn warn(&mut self, text: String) {
        self.output.note(&text);
        self.warnings.push(text);
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

    /// Waits until the coordinator counts on the datanodes that were started, and returns how many these are. One that
    /// was removed from the cluster is stopped; one that does not come in time is said.
    async fn await_nodes(&mut self, cluster: &Cluster) -> Result<usize, Failure> {
        let end = clock::now() + NODES_LIMIT;
        let absent = loop {
            let map = cluster.map().await.unwrap_or_default();
            let absent = absent(&self.state, &map);
            if absent.iter().all(|node| node.removed) || clock::now() >= end {
                break absent;
            }
            tokio::select! {
                () = clock::sleep(std::time::Duration::from_millis(20)) => {}
                () = self.stopping.cancelled() => return Err(Failure::new("start the cluster", "stopped")),
            }
        };
        let started = self.state.services.values().filter(|ready| ready.role == "datanode").count();
        let log = self.data.join("log");
        for node in &absent {
            let name = node.role.name();
            let (why, next) = match node.removed {
                true => {
                    let data = self.data.join(&name);
                    let next =
                        format!("move {} away, and a new datanode begins in its place", data.display());
                    ("it was removed from the cluster".to_owned(), next)
                }
                false => {
                    let why = format!("it has not registered within {} s", NODES_LIMIT.as_secs());
                    (why, format!("look into {}", log.join(format!("{name}.log")).display()))
                }
            };
            self.warn(Failure::new(&name, why).next(next).to_string());
        }
        if absent.len() == started {
            return Err(Failure::new("start the cluster", "no datanode has registered")
                .next(format!("look into {}", log.display())));
        }
        for node in absent.iter().filter(|node| node.removed) {
            self.state.services.remove(&node.role.name());
            if let Some(at) = self.keepers.iter().position(|keeper| keeper.role() == node.role) {
                self.keepers.remove(at).stop().await;
            }
        }
        Ok(started - absent.len())
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
            warnings: self.warnings.clone(),
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
        notes::retract_up(std::process::id());
        let mut groups = [Vec::new(), Vec::new(), Vec::new()];
        for keeper in std::mem::take(&mut self.keepers) {
            let group = match keeper.role() {
                Role::Mount => 0,
                Role::Datanode(_) => 1,
                Role::Coordinator => 2,
            };
            groups[group].push(keeper);
        }
        for group in groups {
            futures::future::join_all(group.into_iter().map(Keeper::stop)).await;
        }
        self.state.pid = 0;
        if let Err(failure) = self.state.write(&self.data) {
            self.output.note(failure);
        }
    }
}

/// Why a datanode must not start: the cluster counts on its chunks, and its directory holds none. It would begin as a new
/// one, and nobody would learn that a disk is not mounted.
fn missing_data(number: u32, data: &Path, map: &v1::ClusterMap) -> Option<Failure> {
    let role = Role::Datanode(number);
    let directory = data.join(role.name());
    if super::holds_datanode(&directory) {
        return None;
    }
    let is_it = |node: &&v1::Node| {
        node.labels.get(HOST) == Some(&host(number)) && node.admin() != v1::AdminState::Out
    };
    let node = map.nodes.iter().find(is_it)?;
    let why =
        format!("{} is missing or empty, and the cluster counts on what was in it", directory.display());
    let next = format!(
        "bring it back, or mount its disk; when it is lost for good, `cairn node remove {}` and start again: a new \
         datanode begins in its place",
        node_name(&node.node)
    );
    Some(Failure::new(role.name(), why).next(next))
}

/// A datanode that runs, and that the coordinator does not count on.
struct Absent {
    role: Role,
    /// For good, by an operator.
    removed: bool,
}

fn absent(state: &State, map: &v1::ClusterMap) -> Vec<Absent> {
    let mut absent = Vec::new();
    for number in 1..=state.datanodes {
        let role = Role::Datanode(number);
        let Some(ready) = state.services.get(&role.name()) else { continue };
        let node = map.nodes.iter().find(|node| Some(node_name(&node.node)) == ready.id);
        let removed = node.is_some_and(|node| node.admin() == v1::AdminState::Out);
        if removed || node.is_none_or(|node| node.state() != v1::NodeState::Up) {
            absent.push(Absent { role, removed });
        }
    }
    absent
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
