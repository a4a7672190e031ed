//! The one that changes things: a thread that owns the writer of the store.
//!
//! Mutations are jobs. The thread takes all that wait, executes them one after another against a
//! [`Tx`] (committed rows overlaid with the changes of this group), writes the changes of all in
//! one transaction, and only then answers. While it commits, the next group gathers in the queue.
//! A job that fails leaves no change; a group without changes commits nothing. Executing and
//! committing share one thread because each hop between threads costs a lone caller about 30 µs.

mod tx;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_proto::ErrorKind;
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::net::Held;
use cairn_runtime::threads::{self, Inbox, Refused};
use tokio::sync::oneshot;

use crate::error::OpError;
use crate::metrics;
use crate::store::StoreError;

pub(crate) use tx::{Steps, Tx};

/// Jobs that may wait; more are refused with `Overloaded`, which clients answer with backoff.
const QUEUE_DEPTH: usize = 4096;
/// Jobs in one transaction.
const GROUP_JOBS_MAX: usize = 512;
/// Changed rows after which a group is closed, so that a commit stays short.
const GROUP_ROWS_MAX: usize = 8192;
/// Bytes of changed rows after which a group is closed: a message more than this is what it can have.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Time after which a group is closed, so that the first of it are answered.
const GROUP_TIME_MAX: Duration = Duration::from_millis(50);
/// No job should hold up the others for longer. One that does is counted and logged.
const JOB_TIME_MAX: Duration = Duration::from_millis(100);
/// Slow jobs are logged this often at most.
const SLOW_LOGGED_EVERY: Duration = Duration::from_secs(10);
/// A job that is not answered by then gets `TimedOut`; what became of it is unknown.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// One job: executed once, then answered once its group is committed.
trait Job: Send {
    fn execute(&mut self, tx: &mut Tx);
    /// Of the function that made it, for logs.
    fn name(&self) -> &'static str;
    /// `failure`: why the group could not be committed.
    fn answer(self: Box<Self>, failure: Option<&StoreError>);
}

struct Task<T, F> {
    run: Option<F>,
    result: Option<Result<T, OpError>>,
    /// What the request that asks for it takes of the server's memory.
    _held: Held,
    answer: oneshot::Sender<Result<T, OpError>>,
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnOnce(&mut Tx) -> Result<T, OpError> + Send,
{
    fn execute(&mut self, tx: &mut Tx) {
        if let Some(run) = self.run.take() {
            self.result = Some(tx.attempt(run));
        }
    }

    fn name(&self) -> &'static str {
        std::any::type_name::<F>()
    }

    fn answer(self: Box<Self>, failure: Option<&StoreError>) {
        let result = match (failure, self.result) {
            (None, Some(result)) => result,
            (Some(failure), _) => Err(OpError::new(failure.kind(), failure.to_string())),
            (None, None) => Err(OpError::new(ErrorKind::Internal, "a job was not executed")),
        };
        // Whoever asked may be gone; the change stands all the same.
        let _ = self.answer.send(result);
    }
}

/// Hands jobs to the thread. Clones share it; the thread ends when the last is dropped.
#[derive(Clone)]
pub(crate) struct Executor {
    queue: Inbox<Box<dyn Job>>,
    failed: Arc<AtomicBool>,
}

impl Executor {
    /// Starts the thread. The receiver resolves when it has ended and closed the store.
    pub(crate) fn start(mut tx: Tx) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (ended, end) = oneshot::channel();
        let failed = Arc::new(AtomicBool::new(false));
        let failing = Arc::clone(&failed);
        let mut slow = SlowJobs::default();
        let queue = threads::serve(
            "executor",
            QUEUE_DEPTH,
            move |first, more: &mut dyn FnMut() -> Option<Box<dyn Job>>| {
                run_group(&mut tx, first, more, &failing, &mut slow);
            },
            move || {
                let _ = ended.send(());
            },
        )?;
        Ok((Self { queue, failed }, end))
    }

    /// Runs `job` against the rows and returns its result once its changes are durable. When it
    /// fails, it has changed nothing.
    pub(crate) async fn run<T, F>(&self, job: F) -> Result<T, OpError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx) -> Result<T, OpError> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let task = Task { run: Some(job), result: None, _held: Held::current(), answer };
        self.queue.try_send(Box::new(task)).map_err(|error| match error {
            Refused::Full => OpError::new(ErrorKind::Overloaded, "too many requests wait"),
            Refused::Ended => stopped(),
        })?;
        match clock::timeout(ANSWER_TIME, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(OpError::new(ErrorKind::TimedOut, "the metadata store does not answer")),
        }
    }

    /// Whether the store has failed for good.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

fn stopped() -> OpError {
    OpError::new(ErrorKind::Unavailable, "the coordinator is stopping")
}

/// Jobs that took longer than any should.
#[derive(Debug, Default)]
struct SlowJobs {
    logged: Option<Instant>,
    /// Since the last was logged.
    more: u64,
}

impl SlowJobs {
    fn note(&mut self, job: &dyn Job, took: Duration) {
        if took <= JOB_TIME_MAX {
            return;
        }
        metrics::slow_job();
        if self.logged.is_some_and(|logged| logged.elapsed() < SLOW_LOGGED_EVERY) {
            self.more += 1;
            return;
        }
        let (job, not_logged) = (job.name(), std::mem::take(&mut self.more));
        tracing::warn!(job, ?took, not_logged, "a change of metadata held up all others");
        self.logged = Some(clock::now());
    }
}

/// Executes the jobs that wait, commits what they changed, answers them.
fn run_group(
    tx: &mut Tx,
    first: Box<dyn Job>,
    more: &mut dyn FnMut() -> Option<Box<dyn Job>>,
    failed: &AtomicBool,
    slow: &mut SlowJobs,
) {
    let began = clock::now();
    let mut group = Vec::with_capacity(8);
    let mut next = Some(first);
    while let Some(mut job) = next {
        let started = clock::now();
        job.execute(tx);
        slow.note(&*job, started.elapsed());
        group.push(job);
        let full = group.len() >= GROUP_JOBS_MAX
            || tx.changed_rows() >= GROUP_ROWS_MAX
            || tx.changed_bytes() >= GROUP_BYTES_MAX
            || began.elapsed() >= GROUP_TIME_MAX;
        next = if full { None } else { more() };
    }
    let rows = tx.changed_rows();
    if planted(Bug::AnswerBeforeCommit) && cairn_runtime::random::below(4) > 0 {
        return group.into_iter().for_each(|job| job.answer(None)); // written with a later group
    }
    let committed = tx.commit();
    tx.context.leases.group_ended();
    if let Err(error) = &committed {
        tracing::error!(%error, jobs = group.len(), "a group of changes could not be committed");
        failed.store(
            matches!(error, StoreError::Failed(_) | StoreError::Engine { .. } | StoreError::Fenced { .. }),
            Ordering::Relaxed,
        );
    }
    metrics::group(group.len(), rows, began.elapsed());
    for job in group {
        job.answer(committed.as_ref().err());
    }
}

#[cfg(test)]
mod tests;
