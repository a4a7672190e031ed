//! Commands that look after what is stored: deletion, scrub, the check of everything.

use cairn_runtime::config::ByteSize;
use clap::{Args, Subcommand};

/// Subcommands of `cairn gc`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Chunks of deleted and overwritten files go by themselves, coordinator.garbage_grace after their last use.
Stop that before you restore metadata, or when you fear that files were lost by mistake.")]
pub enum GcCommand {
    /// Show what waits to be deleted, since when, and what it waits for.
    Status,
    /// Delete what is garbage now, without waiting for its grace: the room of removed files comes back at once.
    Run(GcRunArgs),
    /// Stop the deletion of chunks on all datanodes. It stays so over restarts, until `resume`.
    Pause,
    /// Let deletion go on.
    Resume(GcResumeArgs),
}

/// Arguments of `cairn gc run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rm -r /mnt/cairn/old && sync && cairn gc run --wait

Files that are open keep their chunks. After this, metadata that is restored from an earlier backup names chunks
that are gone: the grace is there for that. A chunk goes once every mount has been heard again, within seconds;
its room can be used at once, and the file system below gets it back after datanode.trash_time.")]
pub struct GcRunArgs {
    /// Wait until it is deleted.
    #[arg(short, long)]
    pub wait: bool,
}

/// Arguments of `cairn gc resume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn gc resume
  cairn fsck && cairn gc resume --accept-rollback     after an old copy of the metadata was restored")]
pub struct GcResumeArgs {
    /// Also when metadata has gone backwards: what was written after the copy that was restored is given up,
    /// and its chunks are deleted.
    #[arg(long)]
    pub accept_rollback: bool,
}

/// Subcommands of `cairn scrub`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Datanodes read and verify everything they hold, again and again, by themselves. What is found bad is repaired
from another copy.")]
pub enum ScrubCommand {
    /// Begin a pass now, on all datanodes or on those named.
    Start(ScrubStartArgs),
    /// Show how far each datanode is, and what was found bad.
    Status(ScrubNodeArgs),
}

/// Arguments of `cairn scrub start`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn scrub start
  cairn scrub start --rate 200MiB 7f3a9c21")]
pub struct ScrubStartArgs {
    /// Bytes a second that each datanode reads in this pass, instead of what it is configured to.
    #[arg(long, value_name = "SIZE", value_parser = super::parse_size)]
    pub rate: Option<ByteSize>,
    /// Which datanodes.
    #[command(flatten)]
    pub nodes: ScrubNodeArgs,
}

/// Which datanodes.
#[derive(Debug, Args)]
pub struct ScrubNodeArgs {
    /// Ids of datanodes, or their first digits; all of them when none is named.
    #[arg(value_name = "DATANODE")]
    pub nodes: Vec<String>,
}

/// Arguments of `cairn fsck`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn fsck
  cairn fsck --repair
  cairn fsck --metadata-only --json | jq -c 'select(.event == \"finding\")'

Exit status 0 when all is well or was repaired, 4 when damage is left. It may run while the cluster is in use. With
--json: one object a line, `event` is progress, finding or summary.")]
pub struct FsckArgs {
    /// Mend what can be mended without losing anything: counters, links, sizes; queue missing copies for
    /// repair; give inodes without names one in /lost+found.
    #[arg(long)]
    pub repair: bool,
    /// Do not ask datanodes what they hold.
    #[arg(long)]
    pub metadata_only: bool,
    /// No progress bar.
    #[arg(long)]
    pub no_progress: bool,
}
