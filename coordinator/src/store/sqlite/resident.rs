//! Keeps the pages of SQLite's log in the kernel's memory.
//!
//! The log is written over from its start after each checkpoint, in frames that are no whole pages of the kernel's. A
//! page that the kernel has given away meanwhile, to whoever streams through the same machine, is read back
//! in the middle of a commit, one after another: commits took half as long again on a fast disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cairn_runtime::clock::{self, Instant};
use cairn_runtime::disk::{DiskFile, RealDisk, open_if_present};

use super::wal::LOG;

/// Asked for so often at most: pages that are there take the kernel about 0.25 ms for a log of 16 MiB.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The log of one store.
#[derive(Default)]
pub(super) struct ResidentLog {
    /// SQLite makes it with its first commit and keeps it as long as a connection is open.
    file: Option<Arc<dyn DiskFile>>,
    asked: Option<Instant>,
}

impl ResidentLog {
    /// Has what is missing read ahead of its use; called before each commit. Nothing depends on it.
    pub(super) fn keep(&mut self, disk: &RealDisk) {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return;
        }
        self.asked = Some(clock::now());
        if self.file.is_none() {
            self.file = open_if_present(disk, Path::new(LOG)).ok().flatten();
        }
        let Some(file) = &self.file else { return };
        if let Err(error) = file.len().and_then(|length| file.read_ahead(0, length)) {
            tracing::debug!(%error, "the metadata log can not be read ahead");
        }
    }
}
