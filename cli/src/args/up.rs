//! `cairn up` and `cairn down`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `cairn up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn up ~/cairn                 three datanodes; Ctrl-C stops everything cleanly
  cairn up ~/cairn --detach        returns when the directory can be used; `cairn down` stops it
  cairn up ~/try --datanodes 1 --data /tmp/try-data

Coordinator, datanodes and mount are processes of their own, so that one can be killed and the rest
goes on; one that dies is started again. Data, ports and logs stay under --data, and starting again
with the same --data finds everything. While it runs, other commands find its coordinator by a file
in $CAIRN_RUNTIME_DIR/up (else $XDG_RUNTIME_DIR/cairn/up, /run/cairn/up for root, ~/.cache/cairn/up).
Of several clusters they take the one whose directory they are called in; elsewhere --coordinator
must tell.")]
pub struct UpArgs {
    /// Directory to mount the cluster at; made when it is missing.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Datanodes to run [default: as many as the data was made with; 3 for new data].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub datanodes: Option<u32>,
    /// Copies of each chunk [default: 3, or the number of datanodes when that is less].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub replicas: Option<u32>,
    /// Where everything is kept [default: ~/.local/share/cairn/up; for root /var/lib/cairn/up].
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Go on in the background; return when the directory can be used.
    #[arg(short, long)]
    pub detach: bool,
    /// Stay in the foreground; that is the default.
    #[arg(short, long, conflicts_with = "detach")]
    pub foreground: bool,
    /// Do not start again what dies.
    #[arg(long)]
    pub no_restart: bool,
    /// Let other users into the directory (root's `cairn up` always does).
    #[arg(long)]
    pub allow_other: bool,
    /// Leave the covered directory writable while nothing is mounted on it.
    #[arg(long)]
    pub no_protect: bool,
    /// Write what is running to FILE (JSON, appears whole) when the directory can be used.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Leave the terminal and session of the parent.
    #[arg(long, hide = true)]
    pub new_session: bool,
}

/// Arguments of `cairn down`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn down
  cairn down ~/cairn
  cairn down --data /tmp/try-data")]
pub struct DownArgs {
    /// The directory that it is mounted at.
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub directory: Option<PathBuf>,
    /// Where its data is, as given to `cairn up` [default: as there].
    #[arg(long, value_name = "PATH", conflicts_with = "directory")]
    pub data: Option<PathBuf>,
}
