//! Tasks in place of threads: each piece of work runs whole, after a simulated delay.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot};

use super::{Cause, PoolError, Refused, Turn};
use crate::sim;

/// As many jobs as the threads of a real pool and its queue hold.
#[derive(Debug, Clone)]
pub struct Pool {
    name: &'static str,
    room: usize,
    jobs: Arc<AtomicUsize>,
}

impl Pool {
    /// A pool for `threads` + `depth` jobs.
    pub fn start(name: &'static str, threads: usize, depth: usize) -> io::Result<Self> {
        Ok(Self { name, room: threads + depth, jobs: Arc::default() })
    }

    /// Runs `work` as a task. Dropping the future leaves the work running.
    pub async fn run<T, F>(&self, work: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        if self.jobs.load(Ordering::Relaxed) >= self.room {
            return Err(PoolError::Busy(self.name));
        }
        self.jobs.fetch_add(1, Ordering::Relaxed);
        let (answer, result) = oneshot::channel();
        let jobs = Arc::clone(&self.jobs);
        tokio::spawn(async move {
            sim::delay().await;
            let _ = answer.send(work());
            jobs.fetch_sub(1, Ordering::Relaxed);
        });
        result.await.map_err(|_| PoolError::Failed(self.name))
    }
}

/// Runs work, which takes no time here.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Runs work as a task.
pub fn spawn<F>(_: &str, body: F) -> io::Result<()>
where
    F: FnOnce() + Send + 'static,
{
    tokio::spawn(async move {
        sim::delay().await;
        body();
    });
    Ok(())
}

/// Where jobs for an owner are left. Clones share it; the owner ends when the last is dropped.
#[derive(Debug)]
pub struct Inbox<J>(mpsc::Sender<J>);

impl<J> Clone for Inbox<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<J> Inbox<J> {
    /// Leaves a job, when there is room for it.
    pub fn try_send(&self, job: J) -> Result<(), Refused> {
        self.0.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Full,
            mpsc::error::TrySendError::Closed(_) => Refused::Ended,
        })
    }
}

/// As the real one; jobs that arrive during the delay are taken together.
pub fn serve<J, F, E>(_: &str, depth: usize, mut each: F, end: E) -> io::Result<Inbox<J>>
where
    J: Send + 'static,
    F: FnMut(J, &mut dyn FnMut() -> Option<J>) + Send + 'static,
    E: FnOnce() + Send + 'static,
{
    let (queue, mut jobs) = mpsc::channel::<J>(depth);
    tokio::spawn(async move {
        while let Some(first) = jobs.recv().await {
            sim::delay().await;
            each(first, &mut || jobs.try_recv().ok());
        }
        drop(each);
        end();
    });
    Ok(Inbox(queue))
}

/// Calls those who [`repeat`] out of their waits. A call while nobody waits counts for the next wait.
#[derive(Debug, Default)]
pub struct Wake(Notify);

impl Wake {
    /// One that nobody has called yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the wait.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
}

type Step = Arc<Mutex<Option<Box<dyn FnMut(Cause) -> Turn + Send>>>>;

/// Steps that are taken until one says [`Turn::End`].
pub struct Repeating(Step);

impl Repeating {
    /// Takes the steps that are left, here and now.
    pub fn join(self) -> bool {
        while take_step(&self.0, Cause::Called) == Turn::Again {}
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        true
    }
}

/// Takes steps in a task.
pub fn repeat<F>(_: &str, wake: &Arc<Wake>, step: F) -> io::Result<Repeating>
where
    F: FnMut(Cause) -> Turn + Send + 'static,
{
    let wake = Arc::clone(wake);
    let step: Step = Arc::new(Mutex::new(Some(Box::new(step))));
    let repeating = Repeating(Arc::clone(&step));
    tokio::spawn(async move {
        let mut cause = Cause::Called;
        loop {
            sim::delay().await;
            cause = match take_step(&step, cause) {
                Turn::Again => Cause::Called,
                Turn::Wait(longest) => match tokio::time::timeout(longest, wake.0.notified()).await {
                    Ok(()) => Cause::Called,
                    Err(_) => Cause::TimedOut,
                },
                Turn::End => return,
            };
        }
    });
    Ok(repeating)
}

fn take_step(step: &Step, cause: Cause) -> Turn {
    match step.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        Some(step) => step(cause),
        None => Turn::End,
    }
}
