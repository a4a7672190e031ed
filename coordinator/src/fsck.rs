//! Checks the metadata against itself and against what datanodes hold, while the cluster is in use.
//!
//! ```text
//! thread:  names, inodes ▸ extents, chunks, faults ▸ garbage, orphans, counters   on one snapshot
//! task:    inventories, window by window                                          on what is now
//! thread:  paths of the files that are hit
//! ```
//!
//! The first part reads one snapshot, so that whatever differs is damage and no change under way. Memory
//! does not grow with the store: tables are merged in the order of their keys, and what has to be gathered
//! by another order (names by inode, extents by chunk) is gathered for a window of ids at a time, in as
//! many runs over the table as there are windows. Figures: 30 bytes for each of the 1,048,576 inodes of a
//! window, 12 bytes for each of the 4,194,304 chunk ids of a window (48 MiB), and 17 bytes for each
//! directory, of which there is no window.
//!
//! Repairs are jobs of the executor ([`crate::ops::mend`]). They apply the difference that was found, not
//! the value, so that changes made meanwhile count.

mod chunks;
mod copies;
mod names;
mod paths;
mod report;
mod rest;

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ErrorKind, v1};
use cairn_runtime::{clock, threads};
use tokio::sync::mpsc;
use tonic::Status;

use crate::error::OpError;
use crate::ops::mend::{self, Mend};
use crate::service::Shared;
use crate::store::{Count, StoreError};
pub(crate) use report::{Finding, Report, Severity};

/// Messages on their way to the client.
const MESSAGES: usize = 64;
/// A client that takes nothing for so long is given up: meanwhile nobody else can check, and the store's log
/// can not be reused.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Findings that are sent; more are only counted.
const FINDINGS_MAX: u64 = 10_000;
/// Rows read at once.
const PAGE: usize = 4096;

/// What comes out of the check.
enum Event {
    Progress { phase: &'static str, done: u64, total: u64 },
    Finding(Finding, Option<Mend>),
}

/// Why the check ends before its end.
#[derive(Debug, thiserror::Error)]
enum Abort {
    /// Nobody listens any more.
    #[error("the client has gone")]
    Gone,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Abort> for OpError {
    fn from(abort: Abort) -> Self {
        match abort {
            Abort::Gone => Self::new(ErrorKind::Interrupted, "the client has gone"),
            Abort::Store(error) => Self::Store(error),
        }
    }
}

type Answers = mpsc::Sender<Result<v1::FsckResponse, Status>>;

/// Runs one check; what it finds goes to `answers`. `Busy`: another one runs.
pub(crate) fn start(
    shared: &Arc<Shared>,
    request: v1::FsckRequest,
) -> Result<mpsc::Receiver<Result<v1::FsckResponse, Status>>, OpError> {
    let running = Arc::clone(&shared.fsck)
        .try_acquire_owned()
        .map_err(|_| OpError::new(ErrorKind::Busy, "another check is running; wait for its end"))?;
    let (answers, stream) = mpsc::channel(MESSAGES);
    let work = Run {
        shared: Arc::clone(shared),
        answers: answers.clone(),
        repair: request.repair,
        summary: v1::FsckSummary::default(),
        sent: 0,
    };
    let stop = shared.shutdown.requested();
    shared.shutdown.spawn(async move {
        let end = tokio::select! {
            end = work.run(!request.skip_datanodes) => end,
            () = stop => Err(OpError::new(ErrorKind::Unavailable, "the coordinator is stopping")),
        };
        if let Err(error) = end {
            let _ = answers.try_send(Err(crate::service::refuse("Fsck", &error)));
        }
        drop(running);
    });
    Ok(stream)
}

/// One check under way, as its task sees it.
struct Run {
    shared: Arc<Shared>,
    answers: Answers,
    repair: bool,
    summary: v1::FsckSummary,
    sent: u64,
}

impl Run {
    async fn run(mut self, datanodes: bool) -> Result<(), OpError> {
        let lost = self.on_thread(move |reader, report| {
            report.summary.sequence = crate::store::count(reader, Count::Sequence)?;
            names::check(reader, report)?;
            let lost = chunks::check(reader, report)?;
            rest::check(reader, report)?;
            Ok(lost)
        });
        let mut lost = lost.await?;
        if datanodes {
            lost.extend(copies::check(&mut self).await?);
        }
        if !lost.is_empty() {
            self.on_thread(move |reader, report| paths::name_files(reader, report, &lost)).await?;
        }
        let summary = self.summary;
        self.send(v1::fsck_response::Message::Summary(summary)).await?;
        Ok(())
    }

    /// Runs a part of the check on a thread of its own, and takes what it finds.
    async fn on_thread<T: Send + 'static>(
        &mut self,
        check: impl FnOnce(&dyn crate::store::Reader, &mut Report) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, OpError> {
        let (events, mut found) = mpsc::channel(MESSAGES);
        let (ended, end) = tokio::sync::oneshot::channel();
        let readers = Arc::clone(&self.shared.readers);
        threads::spawn("fsck", move || {
            let mut report = Report::new(events);
            let result =
                readers.reader(true).map_err(Abort::from).and_then(|reader| check(&*reader, &mut report));
            let _ = ended.send((result, report.summary));
        })
        .map_err(|error| OpError::new(ErrorKind::Overloaded, format!("no thread for the check: {error}")))?;
        while let Some(event) = found.recv().await {
            self.take(event).await?;
        }
        let stopped = |_| OpError::new(ErrorKind::Internal, "the check has ended without a result");
        let (result, counted) = end.await.map_err(stopped)?;
        let summary = &mut self.summary;
        summary.inodes += counted.inodes;
        summary.dentries += counted.dentries;
        summary.extents += counted.extents;
        summary.chunks += counted.chunks;
        summary.sequence = summary.sequence.max(counted.sequence);
        Ok(result?)
    }

    async fn take(&mut self, event: Event) -> Result<(), OpError> {
        match event {
            Event::Progress { phase, done, total } => self.progress(phase, done, total).await,
            Event::Finding(finding, mend) => self.found(finding, mend).await,
        }
    }

    async fn progress(&mut self, phase: &'static str, done: u64, total: u64) -> Result<(), OpError> {
        let progress = v1::FsckProgress { phase: phase.into(), done, total: total.max(done) };
        self.send(v1::fsck_response::Message::Progress(progress)).await
    }

    /// Mends what was found, when that is wanted and possible, and tells it.
    async fn found(&mut self, finding: Finding, mend: Option<Mend>) -> Result<(), OpError> {
        let repaired = match mend.filter(|_| self.repair) {
            Some(mend) => self.shared.executor.run(move |tx| mend::mend(tx, &mend)).await?,
            None => false,
        };
        self.found_repaired(finding, repaired).await
    }

    async fn found_repaired(&mut self, finding: Finding, repaired: bool) -> Result<(), OpError> {
        let finding = v1::FsckFinding { repaired, ..finding.into_wire() };
        self.summary.repaired += u64::from(repaired);
        match finding.severity() {
            v1::FsckSeverity::Loss => self.summary.losses += 1,
            v1::FsckSeverity::Error => self.summary.errors += 1,
            v1::FsckSeverity::Note | v1::FsckSeverity::Unspecified => {}
        }
        if self.sent >= FINDINGS_MAX {
            self.summary.suppressed += 1;
            return Ok(());
        }
        self.sent += 1;
        self.send(v1::fsck_response::Message::Finding(finding)).await
    }

    async fn send(&self, message: v1::fsck_response::Message) -> Result<(), OpError> {
        let answer = v1::FsckResponse { message: Some(message) };
        deliver(&self.answers, answer, SEND_TIME).await.map_err(OpError::from)
    }
}

/// Hands a message to the client, unless that takes nothing for too long.
async fn deliver(answers: &Answers, answer: v1::FsckResponse, limit: Duration) -> Result<(), Abort> {
    match clock::timeout(limit, answers.send(Ok(answer))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Abort::Gone),
    }
}

#[cfg(test)]
mod tests;
