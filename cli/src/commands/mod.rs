//! The commands: one file for each family.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cairn_client::{Client, ClientConfig, ClientError, Unreachable};
use cairn_runtime::clock;
use cairn_runtime::config::ByteSize;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::telemetry::{self, LogConfig};

use crate::args::{Cli, Command, ConfigCommand, CoordinatorCommand, GlobalArgs, NodeCommand};
use crate::cluster::Cluster;
use crate::config::{Flags, Origin, Settings};
use crate::failure::{Context, Exit, Failure};
use crate::output::Output;
use crate::{notes, up};

mod about;
mod backup;
mod care;
mod client_error;
mod config;
mod explain;
mod files;
mod locate;
mod ls;
mod mount;
mod node;
mod rename;
mod salvage;
mod serve;
mod space;
mod status;
mod worker;

/// A command gives up on an unreachable cluster after this long, where a mount would wait.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause before the library is told to try again.
const AGAIN: Duration = Duration::from_millis(200);
/// Transfers ride out a restart of the coordinator.
pub(crate) const TRANSFER_PATIENCE: Duration = Duration::from_secs(120);

/// What a command has written is stored within this time, or given up.
const CLOSE_LIMIT: Duration = Duration::from_secs(60);

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Tool {
    /// Options that every command takes.
    pub global: GlobalArgs,
    /// How to print.
    pub output: Output,
}

/// Carries out what the command line says.
pub(crate) async fn run(cli: Cli) -> Result<Exit, Failure> {
    let tool = Tool { output: Output::new(&cli.global), global: cli.global };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for sentence in crate::config::check_variables(names)? {
        tool.output.note(sentence);
    }
    let done = |()| Exit::Done;
    match cli.command {
        Command::Up(args) => {
            tool.init_command_logs()?;
            up::up(args, &tool.global, tool.output).await.map(done)
        }
        Command::Down(args) => up::down(&args, tool.output).await.map(done),
        Command::Coordinator(mut args) => match args.command.take() {
            None => serve::coordinator(&tool, args).await.map(done),
            Some(CoordinatorCommand::Backup(args)) => backup::backup(&tool, &args).await.map(done),
            Some(CoordinatorCommand::Restore(args)) => backup::restore(&tool, args).await.map(done),
        },
        Command::Datanode(args) => serve::datanode(&tool, args).await.map(done),
        Command::Mount(args) => mount::mount(&tool, args).await.map(done),
        Command::Umount(args) => mount::umount(&tool, &args).await.map(done),
        Command::Put(args) => crate::transfer::put(&tool, args).await,
        Command::Get(args) => crate::transfer::get(&tool, args).await,
        Command::Cat(args) => files::cat(&tool, &args).await,
        Command::Ls(args) => ls::ls(&tool, args).await,
        Command::Stat(args) => files::stat(&tool, &args).await,
        Command::Mkdir(args) => files::mkdir(&tool, &args).await,
        Command::Rm(args) => files::rm(&tool, &args).await,
        Command::Mv(args) => rename::mv(&tool, &args).await,
        Command::Cp(args) => rename::cp(&tool, &args).await,
        Command::Du(args) => space::du(&tool, args).await,
        Command::Df(args) => space::df(&tool, &args).await.map(done),
        Command::Locate(args) => locate::locate(&tool, &args).await,
        Command::Status(args) => status::status(&tool, &args).await,
        Command::Explain(args) => explain::explain(&tool, &args).map(done),
        Command::Node(NodeCommand::List) => status::node_list(&tool).await.map(done),
        Command::Node(NodeCommand::Drain(args)) => node::drain(&tool, &args).await.map(done),
        Command::Node(NodeCommand::Undrain(args)) => node::undrain(&tool, &args).await.map(done),
        Command::Node(NodeCommand::Remove(args)) => node::remove(&tool, &args).await.map(done),
        Command::Node(NodeCommand::Replace(args)) => node::replace(&tool, &args).await.map(done),
        Command::Worker(command) => worker::run(&tool, &command).await.map(done),
        Command::Gc(command) => care::gc(&tool, &command).await.map(done),
        Command::Scrub(command) => care::scrub(&tool, &command).await,
        Command::Fsck(args) => care::fsck(&tool, &args).await,
        Command::Salvage(args) => salvage::salvage(&tool, args).await,
        Command::Config(ConfigCommand::Show(args)) => config::show(&tool, &args).map(done),
        Command::Config(ConfigCommand::Init(args)) => config::init(&tool, &args).map(done),
        Command::Completions(args) => about::completions(&args, tool.output).map(done),
        Command::Man(args) => about::man(&args, tool.output).map(done),
    }
}

impl Tool {
    /// All settings, with those that flags of the command make.
    pub(crate) fn settings(&self, flags: Flags) -> Result<Settings, Failure> {
        let ups = notes::find_ups();
        let up = if let [note] = ups.as_slice() { Some(note.coordinator.as_str()) } else { None };
        let flags = flags.coordinator(self.global.coordinator.as_deref());
        Settings::load(self.global.config.as_deref(), up, flags)
    }

    /// The settings of a client. Which cluster is meant must be clear.
    pub(crate) fn client_config(&self, settings: &Settings) -> Result<ClientConfig, Failure> {
        let ups = notes::find_ups();
        if ups.len() > 1 && settings.origin("client.coordinator") == Origin::Default {
            let all = ups.iter().map(|note| format!("{} at {}", note.coordinator, note.directory.display()));
            let why = format!("several clusters run here ({})", all.collect::<Vec<_>>().join(", "));
            return Err(Failure::usage("choose a cluster", why)
                .next("say which one by --coordinator, or call this in its directory"));
        }
        settings.section("client")
    }

    /// All settings of a service, which logs what `log.level`, -v and -q say.
    /// `output`: the file that the service writes to, when it keeps that small itself.
    pub(crate) fn service_settings(&self, flags: Flags, output: Option<&Path>) -> Result<Settings, Failure> {
        let level = match (self.global.quiet, self.global.verbose) {
            (true, _) => Some("error"),
            (_, 0) => None,
            // What happens inside Cairn, and not each frame of the libraries below it.
            (_, 1) => Some("info,cairn=debug"),
            (_, _) => Some("info,cairn=trace"),
        };
        let name = if self.global.quiet { "--quiet" } else { "--verbose" };
        let settings = self.settings(flags.set("log.level", name, level))?;
        init_logs(&settings.whole()?.log, output)?;
        Ok(settings)
    }

    /// Logs of a command: only errors, unless more is asked for.
    pub(crate) fn init_command_logs(&self) -> Result<(), Failure> {
        let settings = self.settings(Flags::new())?;
        let log = settings.whole()?.log;
        let level = match self.global.verbose {
            0 if settings.origin("log.level") == Origin::Default => "error".to_owned(),
            0 => log.level.clone(),
            1 => "info".to_owned(),
            2 => "info,cairn=debug".to_owned(),
            _ => "info,cairn=trace".to_owned(),
        };
        init_logs(&LogConfig { level, ..log }, None)
    }

    /// A coordinator to ask, with logs set up.
    pub(crate) fn cluster(&self) -> Result<Cluster, Failure> {
        self.init_command_logs()?;
        self.cluster_quietly()
    }

    /// A coordinator to ask, when logs are set up already.
    pub(crate) fn cluster_quietly(&self) -> Result<Cluster, Failure> {
        let config = self.client_config(&self.settings(Flags::new())?)?;
        Cluster::connect(&config.coordinator, self.output, self.global.timeout)
    }

    /// A session with the cluster, for a command that gives up after `patience`.
    pub(crate) async fn client_with(&self, patience: Duration) -> Result<(Arc<Client>, Shutdown), Failure> {
        self.init_command_logs()?;
        self.session(patience, None).await
    }

    /// A second session with `memory` bytes of its own, when logs are set up already.
    pub(crate) async fn verifier(
        &self,
        patience: Duration,
        memory: u64,
    ) -> Result<(Arc<Client>, Shutdown), Failure> {
        self.session(patience, Some(memory)).await
    }

    async fn session(
        &self,
        patience: Duration,
        memory: Option<u64>,
    ) -> Result<(Arc<Client>, Shutdown), Failure> {
        let settings = self.settings(Flags::new())?;
        let mut config = self.client_config(&settings)?;
        if self.global.timeout.is_some() || settings.origin("client.unreachable") == Origin::Default {
            config.unreachable = Unreachable::Soft(self.global.timeout.unwrap_or(patience));
        }
        if let Some(memory) = memory {
            config.memory = ByteSize(memory);
            config.chunk_size = None;
        }
        crate::reach::tell_long_waits(self.output);
        let shutdown = Shutdown::new();
        let client = self.connect(&config, describe_process(), &shutdown).await?;
        Ok((client, shutdown))
    }

    /// Opens a session within the time that this person gives it; says what it waits for.
    pub(crate) async fn connect(
        &self,
        config: &ClientConfig,
        description: String,
        shutdown: &Shutdown,
    ) -> Result<Arc<Client>, Failure> {
        let limit = self.global.timeout.unwrap_or(PATIENCE);
        let address = &config.coordinator;
        let what = || {
            let limit = crate::human::span(limit);
            format!("waiting for the coordinator at {address}, for {limit} at most (--timeout)")
        };
        let started = clock::now();
        // The library has a patience of its own, which may end earlier.
        let again = async {
            loop {
                match Client::connect(config.clone(), description.clone(), shutdown).await {
                    Err(error @ ClientError::GaveUp { .. }) if started.elapsed() + AGAIN < limit => {
                        tracing::debug!(%error, "trying again to reach the coordinator");
                        clock::sleep(AGAIN).await;
                    }
                    result => return result,
                }
            }
        };
        let error = match crate::reach::saying(self.output, what, clock::timeout(limit, again)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) if crate::reach::is_about_reaching(error.kind()) => error.to_string(),
            Ok(Err(error)) => return Err(error).doing(format!("connect to the coordinator at {address}")),
            Err(_) => "it does not answer".to_owned(),
        };
        let waited = started.elapsed();
        Err(crate::reach::unreachable(address, (waited >= AGAIN).then_some(waited), &error).await)
    }

    /// A session with the cluster.
    pub(crate) async fn client(&self) -> Result<(Arc<Client>, Shutdown), Failure> {
        self.client_with(PATIENCE).await
    }
}

/// Ends a session: everything stored, said goodbye.
pub(crate) async fn close(client: &Client, shutdown: &Shutdown) -> Result<(), Failure> {
    close_within(client, shutdown, CLOSE_LIMIT).await
}

/// As [`close`]; what is not stored after `limit` is given up.
pub(crate) async fn close_within(
    client: &Client,
    shutdown: &Shutdown,
    limit: Duration,
) -> Result<(), Failure> {
    let what = "store what was written";
    let result = match clock::timeout(limit, client.close()).await {
        Ok(result) => result.doing(what),
        Err(_) => {
            Err(Failure::new(what, format!("the cluster did not take it within {} s", limit.as_secs()))
                .next("`cairn status` shows what it lacks; then run the command again")
                .exit(Exit::Unreachable))
        }
    };
    shutdown.drain().await;
    result
}

fn init_logs(config: &LogConfig, output: Option<&Path>) -> Result<(), Failure> {
    telemetry::init_logs(config, output).map_err(|error| Failure::usage("", error))
}

/// Who this session is, for `cairn status`: command, host and pid.
pub(crate) fn describe_process() -> String {
    let command = std::env::args().nth(1).unwrap_or_default();
    format!("cairn {command} on {} (pid {})", host(), std::process::id())
}

/// The name of this machine.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
