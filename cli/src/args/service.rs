//! `cairn coordinator` and `cairn datanode`.

use std::path::PathBuf;

use cairn_coordinator::Until;
use cairn_runtime::config::ByteSize;
use clap::{Args, Subcommand};

/// What a parent process that starts a service tells it; not for people.
#[derive(Debug, Clone, Default, Args)]
pub struct ChildArgs {
    /// Write addresses and pid to FILE (JSON, appears whole) as soon as the service can be used.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Stop when standard input ends, that is, when the parent is gone.
    #[arg(long, hide = true)]
    pub stop_with_parent: bool,
    /// Go on without the parent as long as the process does that wrote this ready-file.
    #[arg(long, hide = true, value_name = "FILE")]
    pub outlive: Option<PathBuf>,
    /// The output goes to this file, which is kept below a size.
    #[arg(long, hide = true, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Leave the terminal and session of the parent.
    #[arg(long, hide = true)]
    pub new_session: bool,
}

/// What else can be done for a coordinator.
#[derive(Debug, Subcommand)]
pub enum CoordinatorCommand {
    /// Write all metadata to a file, while the coordinator goes on.
    Backup(BackupArgs),
    /// Make the directory of a coordinator from backups.
    Restore(RestoreArgs),
}

/// Arguments of `cairn coordinator backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn coordinator backup /backup/metadata-$(date +%F).cairn
  cairn coordinator backup            in the place that coordinator.log_ship names

What is in the file can be restored by `cairn coordinator restore --from FILE`.")]
pub struct BackupArgs {
    /// File to write, on this machine; without it the coordinator makes a backup in its second place.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Replace a file that exists.
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `cairn coordinator restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn coordinator restore --from /mnt/backup/cairn --data /var/lib/cairn/coordinator
  cairn coordinator restore --from datanode:storage2:7080 --from datanode:storage3:7080 --data DIR
  cairn coordinator restore --from /mnt/backup/cairn --data DIR --until '2026-03-01 12:00:00'

The old coordinator must not run any more. What to do before and after is in docs/operations.md.")]
pub struct RestoreArgs {
    /// A directory with backups (log_ship, or metalog/ of a datanode), a backup file, or
    /// datanode:HOST:PORT; with several, the one that reaches furthest is taken.
    #[arg(long, required = true, value_name = "PLACE")]
    pub from: Vec<String>,
    /// Directory to make; it must be empty.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Stop behind this commit, or before what was committed after this time (UTC).
    #[arg(long, value_name = "SEQUENCE|TIME", value_parser = parse_until)]
    pub until: Option<Until>,
}

fn parse_until(text: &str) -> Result<Until, String> {
    if let Ok(sequence) = text.parse() {
        return Ok(Until::Sequence(sequence));
    }
    let expected = "a number of a commit, or a time such as '2026-03-01 12:00:00' (UTC), was expected";
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| expected.to_owned())?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| expected.to_owned())?;
    Ok(Until::TimeNs(i64::try_from(since.as_nanos()).map_err(|_| expected.to_owned())?))
}

/// Arguments of `cairn coordinator`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  cairn coordinator --data /var/lib/cairn/coordinator
  cairn coordinator backup /backup/metadata.cairn
  cairn coordinator --listen 10.0.0.1:7070 --insecure --config /etc/cairn.toml

The service runs in the foreground until SIGTERM or Ctrl-C. Everything else is set in the section
[coordinator] of the configuration file or by CAIRN_COORDINATOR__* variables."
)]
pub struct CoordinatorArgs {
    /// Something else than to run it.
    #[command(subcommand)]
    pub command: Option<CoordinatorCommand>,
    /// Where to listen for gRPC; port 0 takes a free one [default: 127.0.0.1:7070].
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Directory of the metadata store [default: /var/lib/cairn/coordinator].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where to serve /metrics, /healthz and /readyz [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
    /// Copies of each chunk [default: 3].
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// Copies that must be stored before a write is acknowledged [default: 2].
    #[arg(long, value_name = "N")]
    pub min_replicas: Option<u32>,
    /// Listen on an address that others can reach although connections are not encrypted.
    #[arg(long)]
    pub insecure: bool,
    /// For the parent process.
    #[command(flatten)]
    pub child: ChildArgs,
}

/// Arguments of `cairn datanode`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn datanode --coordinator storage1:7070 --data /disk1/cairn --data /disk2/cairn --label rack=r1

The service runs in the foreground until SIGTERM or Ctrl-C. Everything else is set in the section
[datanode] of the configuration file or by CAIRN_DATANODE__* variables.")]
pub struct DatanodeArgs {
    /// Where to listen for gRPC; port 0 takes a free one [default: 127.0.0.1:7080].
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Address that others reach this node at, when it is not the one it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Directory for chunks, one for each disk; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub data: Vec<PathBuf>,
    /// Where the node stands: host, rack, zone. Copies are spread over different values.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// Room that stays free on each disk.
    #[arg(long, value_name = "SIZE", value_parser = super::parse_size)]
    pub reserve: Option<ByteSize>,
    /// Where to serve /metrics, /healthz and /readyz [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
    /// Listen on an address that others can reach although connections are not encrypted.
    #[arg(long)]
    pub insecure: bool,
    /// For the parent process.
    #[command(flatten)]
    pub child: ChildArgs,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE was expected, such as rack=r1".to_owned()),
    }
}
