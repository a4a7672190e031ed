//! `cairn mount` and `cairn umount`.

use std::path::PathBuf;

use cairn_runtime::config::ByteSize;
use clap::{Args, ValueEnum};

use super::ChildArgs;

/// Arguments of `cairn mount`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn mount /mnt/cairn
  cairn mount /mnt/cairn --coordinator storage1:7070 --allow-other
  cairn mount ~/cairn --read-only --unreachable soft=30
  cairn mount /mnt/cairn -o suid,dev    as root: programs may gain privileges, devices may be opened

The command returns when the directory can be used; a background process serves it from then on and
writes its log to --log-file. Undo it with `cairn umount DIR`.")]
pub struct MountArgs {
    /// Directory to mount at; it must exist and be empty.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Stay in the foreground and log to standard error.
    #[arg(short, long)]
    pub foreground: bool,
    /// Refuse every change.
    #[arg(short, long)]
    pub read_only: bool,
    /// Let other users in; permission bits decide what they may do.
    #[arg(long)]
    pub allow_other: bool,
    /// Keep the covered directory unwritable while nothing is mounted on it.
    #[arg(long)]
    pub protect: bool,
    /// Mount over a directory that has entries; they are hidden meanwhile.
    #[arg(long)]
    pub nonempty: bool,
    /// Options as mount(8) has them: ro, rw, suid, nosuid, dev, nodev, allow_other, nonempty. Mounts are nosuid and
    /// nodev unless root says otherwise.
    #[arg(short, long = "option", value_name = "OPTION", value_delimiter = ',')]
    pub options: Vec<MountOption>,
    /// When the cluster is away: `hard` waits, `soft=SECONDS` fails with EIO after that time [default: hard].
    #[arg(long, value_name = "POLICY")]
    pub unreachable: Option<String>,
    /// Memory for unwritten data, read-ahead and cache together [default: 512 MiB].
    #[arg(long, value_name = "SIZE", value_parser = super::parse_size)]
    pub memory: Option<ByteSize>,
    /// `close` waits until data would survive power loss, as `fsync` does.
    #[arg(long)]
    pub durable_close: bool,
    /// Each change of names (create, rename, unlink, ...) is durable when it is answered. Otherwise changes are
    /// made locally, under leases, and applied some milliseconds later; `fsync` waits for them.
    #[arg(long)]
    pub durable_names: bool,
    /// Where to serve /metrics, /healthz and /readyz [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
    /// Log of the background process.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// For the parent process.
    #[command(flatten)]
    pub child: ChildArgs,
}

impl MountArgs {
    /// What `-o` says of an option that has an opposite. `None`: nothing.
    pub fn chosen(&self, on: MountOption, off: Option<MountOption>) -> Option<bool> {
        let named = |&&option: &&MountOption| option == on || Some(option) == off;
        self.options.iter().rev().find(named).map(|&option| option == on)
    }
}

/// What `-o` takes. Of those that exclude each other the last one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum MountOption {
    /// Refuse every change.
    Ro,
    /// Allow changes.
    Rw,
    /// Let set-user-ID, set-group-ID and file capabilities count; needs root.
    Suid,
    /// Let them count for nothing.
    Nosuid,
    /// Let devices be opened; needs root.
    Dev,
    /// Let no device be opened.
    Nodev,
    /// Let other users in.
    AllowOther,
    /// Mount over a directory that has entries.
    Nonempty,
}

/// Arguments of `cairn umount`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn umount /mnt/cairn
  cairn umount --lazy /mnt/cairn    although programs still use it: gone at once, finished when they end
  cairn umount --force /mnt/cairn   although the cluster is away: unwritten data is lost")]
pub struct UmountArgs {
    /// The directory that is mounted.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Take it away at once; it ends when the last program has let go of it.
    #[arg(short, long, conflicts_with = "force")]
    pub lazy: bool,
    /// Do not wait for the cluster: data that is not stored yet is lost.
    #[arg(short, long)]
    pub force: bool,
}
