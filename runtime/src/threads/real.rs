//! Threads of the operating system.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Cause, PoolError, Refused, Turn};
use crate::telemetry;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads behind a bounded queue. Dropping the last clone ends the threads once
/// the queue is empty.
#[derive(Debug, Clone)]
pub struct Pool {
    name: &'static str,
    queue: mpsc::SyncSender<Job>,
}

impl Pool {
    /// Starts `threads` threads that share a queue of `depth` jobs.
    pub fn start(name: &'static str, threads: usize, depth: usize) -> io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<Job>(depth);
        let jobs = Arc::new(Mutex::new(jobs));
        for index in 0..threads.max(1) {
            let jobs = Arc::clone(&jobs);
            Builder::new().name(format!("{name}-{index}")).spawn(move || {
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        Ok(job) => run_caught(name, job),
                        Err(mpsc::RecvError) => break,
                    }
                }
            })?;
        }
        Ok(Self { name, queue })
    }

    /// Runs `work` on one of the threads. Dropping the future leaves the work running.
    pub async fn run<T, F>(&self, work: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(work());
        });
        self.queue.try_send(job).map_err(|_| PoolError::Busy(self.name))?;
        result.await.map_err(|_| PoolError::Failed(self.name))
    }
}

/// A job that panics ends itself alone: whoever waits for it learns of it, and the thread goes on. What it had locked
/// is poisoned, which is for the owners of the locks to judge.
fn run_caught(pool: &'static str, job: Job) {
    if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
        telemetry::job_panicked(pool);
    }
}

/// Runs work that may block on this thread; where other tasks share it, they move to another one first.
/// That costs two switches of threads, so it is for work that is known to block.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Runs work of its own on a thread.
pub fn spawn<F>(name: &str, body: F) -> io::Result<()>
where
    F: FnOnce() + Send + 'static,
{
    Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

/// Where jobs for an owner are left. Clones share it; the owner ends when the last is dropped.
#[derive(Debug)]
pub struct Inbox<J>(mpsc::SyncSender<J>);

impl<J> Clone for Inbox<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<J> Inbox<J> {
    /// Leaves a job, when there is room for it.
    pub fn try_send(&self, job: J) -> Result<(), Refused> {
        self.0.try_send(job).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => Refused::Full,
            mpsc::TrySendError::Disconnected(_) => Refused::Ended,
        })
    }
}

/// Starts an owner (of a database writer): `each` gets a job, and what gives it further ones that
/// wait. `end` runs when all inboxes are gone and `each` was dropped.
pub fn serve<J, F, E>(name: &str, depth: usize, mut each: F, end: E) -> io::Result<Inbox<J>>
where
    J: Send + 'static,
    F: FnMut(J, &mut dyn FnMut() -> Option<J>) + Send + 'static,
    E: FnOnce() + Send + 'static,
{
    let (queue, jobs) = mpsc::sync_channel::<J>(depth);
    spawn(name, move || {
        while let Ok(first) = jobs.recv() {
            each(first, &mut || jobs.try_recv().ok());
        }
        drop(each);
        end();
    })?;
    Ok(Inbox(queue))
}

/// Calls those who [`repeat`] out of their waits. A call while nobody waits counts for the next wait.
#[derive(Debug, Default)]
pub struct Wake {
    called: Mutex<bool>,
    condvar: Condvar,
}

impl Wake {
    /// One that nobody has called yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the wait.
    pub fn notify_one(&self) {
        *self.called.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.condvar.notify_one();
    }

    fn wait(&self, longest: Duration) -> Cause {
        let called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.condvar.wait_timeout_while(called, longest, |called| !*called);
        let (mut called, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *called) {
            true => Cause::Called,
            false => Cause::TimedOut,
        }
    }
}

/// Steps that are taken until one says [`Turn::End`].
#[derive(Debug)]
pub struct Repeating(JoinHandle<()>);

impl Repeating {
    /// Blocks until the last step is done. `false`: a step panicked.
    pub fn join(self) -> bool {
        self.0.join().is_ok()
    }
}

/// Takes steps on a thread of their own.
pub fn repeat<F>(name: &str, wake: &Arc<Wake>, mut step: F) -> io::Result<Repeating>
where
    F: FnMut(Cause) -> Turn + Send + 'static,
{
    let wake = Arc::clone(wake);
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        let mut cause = Cause::Called;
        loop {
            cause = match step(cause) {
                Turn::Again => Cause::Called,
                Turn::Wait(longest) => wake.wait(longest),
                Turn::End => return,
            };
        }
    })?;
    Ok(Repeating(thread))
}
