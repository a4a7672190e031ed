//! Threads for work that blocks: disks, SQLite, checksums of much data.
//!
//! A [`Pool`] runs jobs, [`serve`] gives a queue to an owner, [`repeat`] takes steps until told to end.
//! In a simulation all three are tasks of the one thread that runs everything.

#[cfg(not(feature = "sim"))]
mod real;
#[cfg(feature = "sim")]
mod simulated;

#[cfg(not(feature = "sim"))]
use real as imp;
#[cfg(feature = "sim")]
use simulated as imp;

use std::time::Duration;

use cairn_proto::ErrorKind;

pub use imp::{Inbox, Pool, Repeating, Wake, in_place, repeat, serve, spawn};

/// Why a pool has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// It takes no work now: its queue is full. Try again later.
    #[error("the thread pool {0} has too much to do")]
    Busy(&'static str),
    /// The work panicked, or its thread is gone. How far it came is not known.
    #[error("a job of the thread pool {0} has failed")]
    Failed(&'static str),
}

impl PoolError {
    /// What to act on.
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Busy(_) => ErrorKind::Overloaded,
            Self::Failed(_) => ErrorKind::Internal,
        }
    }
}

/// Why an [`Inbox`] takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As much as may wait does.
    Full,
    /// The owner has ended.
    Ended,
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The next step.
    Again,
    /// A wait for a wake-up, this long at most; then the next step.
    Wait(Duration),
    /// Nothing.
    End,
}

/// Why a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It is the first, follows another at once, or somebody called [`Wake::notify_one`].
    Called,
    /// The time of a wait has run out.
    TimedOut,
}

#[cfg(all(test, not(feature = "sim")))]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

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
        assert_eq!(pool.run(|| 3).await, Err(PoolError::Busy("test")));
        release.send(())?;
        first.await??;
        assert_eq!(second.await?, Ok(2));
        Ok(())
    }

    #[tokio::test]
    async fn a_job_that_panics_is_answered_and_costs_no_thread() -> anyhow::Result<()> {
        let pool = Pool::start("test", 2, 8)?;
        for _ in 0..10 {
            let failed: Result<(), _> = pool.run(|| panic!("on purpose")).await;
            assert_eq!(failed, Err(PoolError::Failed("test")));
        }
        let answered = tokio::time::timeout(Duration::from_secs(30), pool.run(|| 2)).await?;
        assert_eq!(answered, Ok(2));
        Ok(())
    }

    #[test]
    fn a_call_before_the_wait_is_not_lost_and_waits_end_by_themselves() -> anyhow::Result<()> {
        let (seen, causes) = mpsc::channel();
        let wake = std::sync::Arc::new(Wake::new());
        wake.notify_one();
        let mut turns =
            [Turn::Again, Turn::Wait(Duration::from_secs(600)), Turn::Wait(Duration::from_millis(1))]
                .into_iter();
        let steps = repeat("steps", &wake, move |cause| {
            let _ = seen.send(cause);
            turns.next().unwrap_or(Turn::End)
        })?;
        assert!(steps.join());
        let causes: Vec<Cause> = causes.iter().collect();
        assert_eq!(causes, [Cause::Called, Cause::Called, Cause::Called, Cause::TimedOut]);
        Ok(())
    }
}
