//! `cairn put` and `cairn get`.

use std::path::PathBuf;

use clap::Args;

use super::RemotePath;

/// Options of both directions.
#[derive(Debug, Clone, Args)]
pub struct TransferOptions {
    /// Copy directories with all that is in them.
    #[arg(short, long)]
    pub recursive: bool,
    /// Files under way at once.
    #[arg(short = 'P', long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub parallel: u16,
    /// Compare content, not only size and time, before a file is left out as already there.
    #[arg(long)]
    pub checksum: bool,
    /// Read back each file after it was written and compare.
    #[arg(long)]
    pub verify: bool,
    /// Copy every file, also those that are already there.
    #[arg(long, conflicts_with = "checksum")]
    pub overwrite: bool,
    /// No progress bar.
    #[arg(long)]
    pub no_progress: bool,
}

/// Arguments of `cairn put`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn put report.pdf /documents/
  cairn put -r photos /archive          makes /archive/photos when /archive is a directory

A file appears under its name when it is complete; until then its name starts with '.' and ends in
'.cairn-part'. After an interruption run the same command again: files whose size and time of change
are equal are left out, and a directory that was made as a copy of the same source is filled up, not
copied into (its extended attribute user.cairn.source tells). Mode, times and symlinks are kept. Not
on a terminal, --json prints a line with the progress every second.")]
pub struct PutArgs {
    /// Local files or directories.
    #[arg(value_name = "LOCAL", required = true, num_args = 1..)]
    pub sources: Vec<PathBuf>,
    /// Where to in the cluster: a directory that exists, or a new name.
    #[arg(value_name = "REMOTE")]
    pub destination: RemotePath,
    /// Options of both directions.
    #[command(flatten)]
    pub options: TransferOptions,
}

/// Arguments of `cairn get`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn get /documents/report.pdf .
  cairn get -r /archive/photos /tmp

Every byte is checked against its checksum on the way. A file appears under its name when it is
complete. After an interruption run the same command again, as with put.")]
pub struct GetArgs {
    /// Files or directories in the cluster.
    #[arg(value_name = "REMOTE", required = true, num_args = 1..)]
    pub sources: Vec<RemotePath>,
    /// Where to on this machine: a directory that exists, or a new name.
    #[arg(value_name = "LOCAL")]
    pub destination: PathBuf,
    /// Options of both directions.
    #[command(flatten)]
    pub options: TransferOptions,
}
