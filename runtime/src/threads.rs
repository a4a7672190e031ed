//! Threads for work that blocks: disks, SQLite, checksums of much data.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The pool takes no work now: its queue is full or it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread pool {0} has too much to do")]
pub struct PoolBusy(pub &'static str);

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
                        Ok(job) => job(),
                        Err(mpsc::RecvError) => break,
                    }
                }
            })?;
        }
        Ok(Self { name, queue })
    }

    /// Runs `work` on one of the threads. Dropping the future leaves the work running.
    pub async fn run<T, F>(&self, work: F) -> Result<T, PoolBusy>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(work());
        });
        self.queue.try_send(job).map_err(|_| PoolBusy(self.name))?;
        result.await.map_err(|_| PoolBusy(self.name))
    }
}

/// Starts a thread that owns something (a database writer, a disk).
pub fn spawn<F>(name: &str, body: F) -> io::Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    Builder::new().name(name.to_owned()).spawn(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_instead_of_growing() -> anyhow::Result<()> {
        let pool = Pool::start("test", 1, 1)?;
        let (release, wait) = mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move || {
                    let _ = started.send(());
                    let _ = wait.recv();
                })
                .await
            }
        });
        running.await?;
        let second = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(|| 2).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(pool.run(|| 3).await, Err(PoolBusy("test")));
        release.send(())?;
        first.await??;
        assert_eq!(second.await?, Ok(2));
        Ok(())
    }
}
