//! What leaves a file's buffer at one moment: the unit of its commit.
//!
//! Flights of one file are committed in the order in which they left, so that a crash can lose the
//! end of what was written but never the beginning alone. A flight's bytes stay readable until its
//! commit is part of the layout.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cairn_proto::ByteRange;
use cairn_runtime::bugs::{Bug, planted};
use tokio::sync::watch;

use crate::budget::Reservation;
use crate::content::FileContent;

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) file: Arc<FileContent>,
    /// Sorted and disjoint; never empty.
    pub(crate) runs: Vec<(u64, Bytes)>,
    pub(crate) bytes: u64,
    pub(crate) mtime_ns: i64,
    /// To be stored with sync.
    pub(crate) durable: bool,
    previous: Mutex<Option<Arc<Flight>>>,
    landed: watch::Sender<bool>,
    memory: Mutex<Option<Reservation>>,
}

impl Flight {
    pub(crate) fn new(
        file: Arc<FileContent>,
        runs: Vec<(u64, Bytes)>,
        mtime_ns: i64,
        durable: bool,
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
            previous: Mutex::new(previous),
            landed: watch::Sender::new(false),
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

    /// It is committed or has failed; its bytes are no longer needed.
    pub(crate) fn land(&self) {
        drop(self.memory.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.landed.send_replace(true);
    }
}
