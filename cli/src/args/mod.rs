//! What can be typed after `cairn`. These types end in [`crate::main`]: what they say becomes
//! configuration ([`crate::config`]) or arguments of a command, and goes no further.

use std::path::PathBuf;
use std::time::Duration;

use cairn_runtime::config::ByteSize;
use clap::{Args, Parser, Subcommand};

mod admin;
mod care;
mod files;
mod mount;
mod remote;
mod service;
mod transfer;
mod up;

pub use admin::{
    CompletionsArgs, ConfigCommand, ConfigInitArgs, ConfigShowArgs, ExplainArgs, ManArgs, NodeCommand,
    NodeDrainArgs, NodeNameArgs, NodeRemoveArgs, NodeReplaceArgs, SalvageArgs, StatusArgs, WorkerCommand,
    WorkerNameArgs,
};
pub use care::{FsckArgs, GcCommand, GcResumeArgs, GcRunArgs, ScrubCommand, ScrubNodeArgs, ScrubStartArgs};
pub use files::{CatArgs, CpArgs, DfArgs, DuArgs, LocateArgs, LsArgs, MkdirArgs, MvArgs, RmArgs, StatArgs};
pub use mount::{MountArgs, MountOption, UmountArgs};
pub use remote::{BadRemotePath, RemotePath};
pub use service::{BackupArgs, ChildArgs, CoordinatorArgs, CoordinatorCommand, DatanodeArgs, RestoreArgs};
pub use transfer::{GetArgs, PutArgs, TransferOptions};
pub use up::{DownArgs, UpArgs};

const AFTER_HELP: &str = "\
Examples:
  cairn up ~/cairn                      a whole cluster on this machine, mounted at ~/cairn
  cairn put -r photos /photos           copy a directory into the cluster
  cairn status                          is all well, and if not, what to do
  cairn mount /mnt/cairn --coordinator storage1:7070

Paths in the cluster are absolute (/photos/2026); put, get and cp also take cairn:/photos/2026.

Settings: flags, then CAIRN_* variables (CAIRN_CLIENT__MEMORY=1GiB is client.memory; CAIRN_COORDINATOR
is --coordinator), then the TOML file of --config or CAIRN_CONFIG, then a running `cairn up` (for the
coordinator's address only), then defaults. `cairn config show --origin` tells which one won.

Exit status: 0 it worked; 1 it failed, or part of it did; 2 the command line or configuration is wrong;
3 the cluster can not be reached; 4 it was reached, and `status`, `locate`, `df`, `scrub` or `fsck` found damage.";

/// Cairn: a distributed file system that you mount as a local directory.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, max_term_width = 100, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// TOML file with settings; `cairn config init` writes one with all of them explained.
    #[arg(long, global = true, value_name = "FILE", env = "CAIRN_CONFIG", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Address of the coordinator [env: CAIRN_COORDINATOR; default: that of a running `cairn up`,
    /// else 127.0.0.1:7070].
    #[arg(long, global = true, value_name = "HOST:PORT", help_heading = "Global options")]
    pub coordinator: Option<String>,
    /// How long a command tries to reach the cluster, such as 30s or 5min [default: 15s, for put and get 2min].
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_time, help_heading = "Global options")]
    pub timeout: Option<Duration>,
    /// Print JSON with stable keys instead of text for people.
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Say less: errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
    /// Say more; twice for what happens inside.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// No colour; the variable NO_COLOR does the same.
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_color: bool,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time =
        humantime::parse_duration(text).map_err(|_| "a time such as 500ms, 30s or 5min was expected")?;
    if time.is_zero() { Err("a time of more than 0 was expected".into()) } else { Ok(time) }
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "a size such as 512MiB, 1.5GiB or 4096 (bytes) was expected".into())
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster on this machine and mount it at a directory.
    Up(UpArgs),
    /// Stop the cluster that `cairn up --detach` started.
    Down(DownArgs),
    /// Run a coordinator: the metadata of a cluster.
    Coordinator(CoordinatorArgs),
    /// Run a datanode: it keeps the bytes.
    Datanode(DatanodeArgs),
    /// Mount the cluster at a directory.
    Mount(MountArgs),
    /// Unmount a directory, and wait until its last byte is stored.
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// Copy local files and directories into the cluster.
    Put(PutArgs),
    /// Copy files and directories from the cluster to this machine.
    Get(GetArgs),
    /// Write the content of files to standard output.
    Cat(CatArgs),
    /// List directories.
    Ls(LsArgs),
    /// Show all attributes of files.
    Stat(StatArgs),
    /// Make directories.
    Mkdir(MkdirArgs),
    /// Remove files and directories.
    Rm(RmArgs),
    /// Rename or move files and directories.
    Mv(MvArgs),
    /// Copy inside the cluster; no byte moves, copies share their chunks.
    Cp(CpArgs),
    /// Show how much space files and directories use.
    Du(DuArgs),
    /// Show how much space the cluster has.
    Df(DfArgs),
    /// Show on which datanodes the chunks of a file lie, and whether each copy is good.
    Locate(LocateArgs),
    /// Show whether the cluster is well, and what to do if it is not.
    Status(StatusArgs),
    /// Say what a health code of `cairn status` means, and what to do. Needs no cluster.
    Explain(ExplainArgs),
    /// List datanodes, empty, replace or remove them.
    #[command(subcommand)]
    Node(NodeCommand),
    /// List work in the background, pause it, let it go on.
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Look after the deletion of chunks that nothing uses any more.
    #[command(subcommand)]
    Gc(GcCommand),
    /// Look after the scrub: datanodes reading everything they hold, to find what has gone bad.
    #[command(subcommand)]
    Scrub(ScrubCommand),
    /// Check metadata against itself and against what datanodes hold; name the files that are damaged.
    Fsck(FsckArgs),
    /// Read content from the directories of datanodes when the metadata is lost.
    Salvage(SalvageArgs),
    /// Show or write the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completion script of a shell.
    Completions(CompletionsArgs),
    /// Write the man pages of all commands into a directory.
    Man(ManArgs),
}
