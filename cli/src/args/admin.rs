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

/// Subcommands of `cairn node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the datanodes with state, space and disks.
    #[command(alias = "ls")]
    List,
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
