//! Commands about the cluster and about `cairn` itself.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Arguments of `cairn status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn status
  cairn status --json | jq '.health'

Exit status 4 when a health code is an error.")]
pub struct StatusArgs {
    /// Also list the sessions: who has the cluster mounted.
    #[arg(short, long)]
    pub sessions: bool,
}

/// Arguments of `cairn salvage`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn salvage /disk1/cairn /disk2/cairn --to /mnt/rescue --metadata /backup/metadata.cairn
  cairn salvage node1/data node2/data --to rescue

With metadata, files come with their names (files/) as far as their chunks are found; chunks that no file
refers to come by number (chunks/), as all of them do without metadata. The directories are only read; the
datanodes should not run. A tool for the worst case, not a promise: deleted chunks come back, too.

Exit status 4 when something could not be read.")]
pub struct SalvageArgs {
    /// Data directories of datanodes.
    #[arg(required = true, value_name = "DATA_DIR")]
    pub directories: Vec<PathBuf>,
    /// Directory to write to; made when it is missing, must be empty.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// A meta.db, however old, or what `cairn coordinator restore --from` takes.
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
}

/// Subcommands of `cairn node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the datanodes with state, space and disks.
    #[command(alias = "ls")]
    List,
    /// Empty a datanode: it takes no new chunks, and others take its places.
    Drain(NodeDrainArgs),
    /// Let a datanode that is being emptied serve again.
    Undrain(NodeNameArgs),
    /// Take a datanode out of the cluster for good.
    Remove(NodeRemoveArgs),
    /// Let one datanode take all places of another.
    Replace(NodeReplaceArgs),
}

/// One datanode.
#[derive(Debug, Args)]
pub struct NodeNameArgs {
    /// Four digits or more of the beginning of its id, as `cairn node list` shows it, or its address.
    #[arg(value_name = "NODE")]
    pub node: String,
}

/// Arguments of `cairn node drain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn node drain 3f2a9c11 --wait && cairn node remove 3f2a9c11

Nothing is lost when it is interrupted: the datanode goes on serving until its places are filled.")]
pub struct NodeDrainArgs {
    /// Four digits or more of the beginning of its id, as `cairn node list` shows it, or its address.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Wait until it is empty.
    #[arg(short, long)]
    pub wait: bool,
}

/// Arguments of `cairn node remove`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn node remove 3f2a9c11            # after it was drained
  cairn node remove 3f2a9c11 --force    # it is gone: its copies are made again from others at once; asks first
  cairn node remove 3f2a9c11 --force --yes

A datanode that was removed can not come back with its old data directory; with an empty one it joins anew.")]
pub struct NodeRemoveArgs {
    /// Four digits or more of the beginning of its id, as `cairn node list` shows it, or its address.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Also when it still has places in replica sets. What only it holds is lost; asks first.
    #[arg(long)]
    pub force: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}

/// Arguments of `cairn node replace`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn node replace 3f2a9c11 --by 81dd02aa --wait")]
pub struct NodeReplaceArgs {
    /// The one that leaves: the beginning of its id, or its address.
    #[arg(value_name = "NODE")]
    pub node: String,
    /// The one that takes its places.
    #[arg(long, value_name = "NODE")]
    pub by: String,
    /// Wait until the places are taken.
    #[arg(short, long)]
    pub wait: bool,
}

/// Subcommands of `cairn worker`.
#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// List work in the background: what it does, how far it is, what went wrong last.
    #[command(alias = "ls")]
    List,
    /// Have it look for work now.
    Start(WorkerNameArgs),
    /// Have it rest, until it is resumed or the coordinator restarts.
    Pause(WorkerNameArgs),
    /// Let it go on.
    Resume(WorkerNameArgs),
}

/// One kind of work.
#[derive(Debug, Args)]
pub struct WorkerNameArgs {
    /// Its name, as `cairn worker list` shows it.
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Arguments of `cairn explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cairn explain NODE_DOWN\n  cairn explain --json")]
pub struct ExplainArgs {
    /// A health code, in letters of any case; all of them when it is missing.
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

/// Subcommands of `cairn config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the settings that are in force.
    Show(ConfigShowArgs),
    /// Write a file with every setting, its default and its meaning.
    Init(ConfigInitArgs),
}

/// Arguments of `cairn config show`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  CAIRN_CLIENT__MEMORY=1GiB cairn config show --origin")]
pub struct ConfigShowArgs {
    /// Also where each value comes from.
    #[arg(long)]
    pub origin: bool,
}

/// Arguments of `cairn config init`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn config init /etc/cairn.toml")]
pub struct ConfigInitArgs {
    /// File to write; standard output when it is missing.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Replace a file that exists.
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `cairn completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn completions bash > ~/.local/share/bash-completion/completions/cairn
  cairn completions zsh  > ~/.zfunc/_cairn
  cairn completions fish > ~/.config/fish/completions/cairn.fish")]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Arguments of `cairn man`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cairn man ~/.local/share/man/man1 && man cairn-up")]
pub struct ManArgs {
    /// Directory to write to; made when it is missing.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}
