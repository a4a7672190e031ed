//! What leaves a file's buffer at one moment: the unit of its commit.
//!
//! Flights of one file are committed in the order in which they left, so that a crash can lose the
//! end of what was written but never the beginning alone. A flight's bytes stay readable until its
//! commit is part of the layout.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cairn_proto::ByteRange;
use cairn_proto::limits::COMMIT_EXTENTS_MAX;
use cairn_runtime::bugs::{Bug, planted};
use tokio::sync::watch;

use crate::budget::Reservation;
use crate::content::{Drops, FileContent};

/// Runs and whole chunks of one flight: each becomes an extent of its commit, and one more where a run is cut.
pub(crate) const RUNS_MAX: usize = COMMIT_EXTENTS_MAX / 2;
const CHUNKS_MAX: u64 = COMMIT_EXTENTS_MAX as u64 / 4;

/// Buffered runs in groups that each fit one commit, in their order.
pub(crate) fn groups(runs: Vec<(u64, Bytes)>, chunk_size: u64) -> Vec<Vec<(u64, Bytes)>> {
    let bytes_max = CHUNKS_MAX.saturating_mul(chunk_size);
    let mut groups: Vec<Vec<(u64, Bytes)>> = Vec::new();
    let mut bytes = 0;
    for run in runs {
        let length = run.1.len() as u64;
        bytes += length;
        match groups.last_mut().filter(|group| group.len() < RUNS_MAX && bytes <= bytes_max) {
            Some(group) => group.push(run),
            None => {
                bytes = length;
                groups.push(vec![run]);
            }
        }
    }
    groups
}

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) file: Arc<FileContent>,
    /// Sorted and disjoint; never empty.
    pub(crate) runs: Vec<(u64, Bytes)>,
    pub(crate) bytes: u64,
    pub(crate) mtime_ns: i64,
    /// To be stored with sync.
    pub(crate) durable: bool,
    pub(crate) drops: Drops,
    previous: Mutex<Option<Arc<Flight>>>,
    landed: watch::Sender<bool>,
    /// With its commit all of the file was known to survive power loss, also what others had committed.
    left_synced: AtomicBool,
    memory: Mutex<Option<Reservation>>,
}

impl Flight {
    pub(crate) fn new(
        file: Arc<FileContent>,
        runs: Vec<(u64, Bytes)>,
        mtime_ns: i64,
        durable: bool,
        drops: Drops,
        previous: Option<Arc<Self>>,
        memory: Reservation,
    ) -> Arc<Self> {
        let bytes = runs.iter().map(|(_, run)| run.len() as u64).sum();
        Arc::new(Self {
            file,
            runs,
            bytes,
            mtime_ns,
            durable,
            drops,
            previous: Mutex::new(previous),
            landed: watch::Sender::new(false),
            left_synced: AtomicBool::new(false),
            memory: Mutex::new(Some(memory)),
        })
    }

    /// One past the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.runs.last().map_or(0, |(start, run)| start + run.len() as u64)
    }

    /// The bytes within `range`, in order.
    pub(crate) fn within(&self, range: ByteRange) -> impl Iterator<Item = (u64, Bytes)> {
        let first = self.runs.partition_point(|(start, run)| start + run.len() as u64 <= range.start());
        let runs = self.runs[first..].iter().take_while(move |(start, _)| *start < range.end());
        runs.filter_map(move |(start, run)| {
            let here = ByteRange::new(*start, run.len() as u64)?.intersection(range)?;
            let from = (here.start() - start) as usize; // within a run
            Some((here.start(), run.slice(from..from + here.len() as usize)))
        })
    }

    /// Waits until the flight before this one has landed.
    pub(crate) async fn wait_for_previous(&self) {
        let previous = self.previous.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(previous) = previous
            && !planted(Bug::CommitOrderIgnored)
        {
            previous.wait().await;
        }
    }

    /// Waits until the flight is committed or has failed.
    pub(crate) async fn wait(&self) {
        // The sender is part of the flight, so that the wait can only end by landing.
        let _ = self.landed.subscribe().wait_for(|landed| *landed).await;
    }

    /// It is committed, and with it everything of the file survives power loss.
    pub(crate) fn leave_synced(&self) {
        self.left_synced.store(true, Ordering::Release);
    }

    /// Whether it has landed so.
    pub(crate) fn has_left_synced(&self) -> bool {
        self.left_synced.load(Ordering::Acquire)
    }

    /// It is committed or has failed; its bytes are no longer needed.
    pub(crate) fn land(&self) {
        drop(self.memory.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.landed.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::cut::cut;

    #[test]
    fn each_group_of_runs_fits_one_commit_and_all_are_there_in_their_order() {
        let scattered: Vec<_> = (0..10_000u64).map(|n| (n * 8192, Bytes::from_static(&[7; 3]))).collect();
        let long: Vec<_> = (0..600u64).map(|n| (n << 18, Bytes::from_static(&[7; 1 << 18]))).collect();
        for (runs, chunk_size) in [(scattered, 8 << 20), (long, 64 << 10)] {
            let groups = groups(runs.clone(), chunk_size);
            assert!(groups.len() > 1);
            for group in &groups {
                let drafts = cut([&group[..]], chunk_size);
                let extents: usize = drafts.iter().map(|draft| draft.uses.len()).sum();
                assert!(extents <= COMMIT_EXTENTS_MAX && drafts.len() <= COMMIT_EXTENTS_MAX, "{extents}");
            }
            assert_eq!(groups.concat(), runs);
        }
        assert!(groups(Vec::new(), 64 << 10).is_empty());
    }
}
