//! The services that `cairn up` runs: what each is called, and with which arguments it starts.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::state::State;
use super::wishes::Wishes;
use crate::args::GlobalArgs;
use crate::notes::Ready;

/// A free port, chosen by the system.
const ANY_PORT: &str = "127.0.0.1:0";

/// What a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Coordinator,
    /// Counted from 1.
    Datanode(u32),
    Mount,
}

/// The label by which the cluster knows a datanode that `cairn up` runs.
pub(super) const HOST: &str = "host";

/// Its value. A host of its own for each, so that copies are spread over them.
pub(super) fn host(number: u32) -> String {
    format!("node-{number}")
}

impl Role {
    pub(super) fn name(self) -> String {
        match self {
            Self::Coordinator => "coordinator".to_owned(),
            Self::Datanode(number) => format!("datanode-{number}"),
            Self::Mount => "mount".to_owned(),
        }
    }

    /// How long an orderly stop may take: a mount stores what it holds.
    pub(super) fn stop_limit(self) -> Duration {
        match self {
            Self::Mount => Duration::from_secs(120),
            Self::Coordinator | Self::Datanode(_) => Duration::from_secs(20),
        }
    }
}

/// What all services of one cluster have in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) data: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) config: Option<PathBuf>,
    pub(super) verbose: u8,
    pub(super) quiet: bool,
    pub(super) replicas: u32,
    pub(super) min_replicas: u32,
    /// Where the coordinator shall listen, for gRPC and for metrics, when somebody has set that.
    pub(super) listen: [Option<String>; 2],
    pub(super) allow_other: bool,
    pub(super) protect: bool,
}

impl Common {
    pub(super) fn new(
        data: &Path,
        state: &State,
        global: &GlobalArgs,
        wishes: Wishes,
        allow_other: bool,
        protect: bool,
    ) -> Self {
        // Children run in "/", so that the path must not depend on where this process runs.
        let config =
            global.config.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        Self {
            data: data.to_owned(),
            directory: state.directory.clone(),
            config,
            verbose: global.verbose,
            quiet: global.quiet,
            replicas: state.replicas,
            min_replicas: wishes.min_replicas.unwrap_or_else(|| state.min_replicas()),
            listen: [wishes.listen, wishes.metrics_listen],
            allow_other,
            protect,
        }
    }
}

/// One service and where it listens; after its first start that stays.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) role: Role,
    common: Common,
    /// Of the coordinator, once it is known.
    coordinator: String,
    listen: String,
    metrics: String,
}

impl Service {
    /// A service that takes the ports of last time where they are still free.
    pub(super) async fn new(role: Role, common: &Common, coordinator: &str, last: Option<&Ready>) -> Self {
        let set = |index: usize| match role {
            Role::Coordinator => common.listen[index].clone(),
            Role::Datanode(_) | Role::Mount => None,
        };
        let listen = match set(0) {
            Some(address) => address,
            None => free(last.and_then(|ready| ready.address.as_deref())).await,
        };
        let metrics = match set(1) {
            Some(address) => address,
            None => free(last.and_then(|ready| ready.metrics_address.as_deref())).await,
        };
        Self { role, common: common.clone(), coordinator: coordinator.to_owned(), listen, metrics }
    }

    /// Keeps the ports that the service got, for its restarts.
    pub(super) fn adopt(&mut self, ready: &Ready) {
        if let Some(address) = &ready.address {
            self.listen.clone_from(address);
        }
        if let Some(address) = &ready.metrics_address {
            self.metrics.clone_from(address);
        }
    }

    pub(super) fn ready_file(&self) -> PathBuf {
        self.common.data.join("run").join(format!("{}.json", self.role.name()))
    }

    pub(super) fn log(&self) -> PathBuf {
        self.common.data.join("log").join(format!("{}.log", self.role.name()))
    }

    /// Where it is mounted, for a mount.
    pub(super) fn directory(&self) -> &Path {
        &self.common.directory
    }

    pub(super) fn arguments(&self) -> Vec<OsString> {
        let common = &self.common;
        let mut line = Line::default();
        match self.role {
            Role::Coordinator => {
                line.word("coordinator").pair("--listen", &self.listen);
                line.pair("--data", common.data.join("coordinator"));
                line.pair("--replicas", common.replicas.to_string());
                line.pair("--min-replicas", common.min_replicas.to_string());
            }
            Role::Datanode(number) => {
                line.word("datanode").pair("--listen", &self.listen);
                line.pair("--data", common.data.join(self.role.name()));
                line.pair("--coordinator", &self.coordinator);
                line.pair("--label", format!("{HOST}={}", host(number)));
            }
            Role::Mount => {
                line.word("mount").word(&common.directory).word("--foreground");
                line.pair("--coordinator", &self.coordinator);
                if common.allow_other {
                    line.word("--allow-other");
                }
                if common.protect {
                    line.word("--protect");
                }
            }
        }
        if self.role != Role::Mount {
            line.pair("--outlive", common.data.join("run").join(format!("{}.json", Role::Mount.name())));
        }
        line.pair("--metrics-listen", &self.metrics).pair("--output", self.log());
        line.pair("--ready-file", self.ready_file()).word("--stop-with-parent");
        if let Some(config) = &common.config {
            line.pair("--config", config);
        }
        if common.quiet {
            line.word("--quiet");
        }
        for _ in 0..common.verbose {
            line.word("--verbose");
        }
        line.0
    }
}

/// A command line in the making.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn word(&mut self, word: impl Into<OsString>) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) -> &mut Self {
        self.word(flag).word(value)
    }
}

/// The address of last time when nobody else listens there now, else any.
async fn free(address: Option<&str>) -> String {
    match address {
        Some(address) if cairn_runtime::net::listen(address).await.is_ok() => address.to_owned(),
        _ => ANY_PORT.to_owned(),
    }
}
