//! The writer's connection, and who else may read on it.
//!
//! SQLite drops the page cache of a reader's connection with each commit of the writer's; that of the writer's own
//! stays, and holds what was changed lately. So readers use it while the writer has nothing to do, and
//! never wait for it; the writer waits for one of them at most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::Connected;

#[derive(Debug)]
pub(super) struct SharedConnection {
    connected: Mutex<Connected>,
    writer_waits: AtomicBool,
}

impl SharedConnection {
    pub(super) fn new(connected: Connected) -> Self {
        Self { connected: Mutex::new(connected), writer_waits: AtomicBool::new(false) }
    }

    /// For the writer.
    pub(super) fn take(&self) -> MutexGuard<'_, Connected> {
        if let Some(connected) = self.take_now() {
            return connected;
        }
        // Else a reader could be faster again and again.
        self.writer_waits.store(true, Ordering::Relaxed);
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        self.writer_waits.store(false, Ordering::Relaxed);
        connected
    }

    /// For a reader; `None`: the writer is at work, or another reader.
    pub(super) fn try_take(&self) -> Option<MutexGuard<'_, Connected>> {
        if self.writer_waits.load(Ordering::Relaxed) { None } else { self.take_now() }
    }

    fn take_now(&self) -> Option<MutexGuard<'_, Connected>> {
        match self.connected.try_lock() {
            Ok(connected) => Some(connected),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rusqlite::Connection;

    use super::*;

    fn connection() -> SharedConnection {
        SharedConnection::new(Connected::new(Connection::open_in_memory().unwrap(), Arc::from([])))
    }

    #[test]
    fn readers_do_not_wait_for_the_writer_and_give_way_to_it() {
        let shared = connection();
        let writing = shared.take();
        assert!(shared.try_take().is_none());
        drop(writing);
        let reading = shared.try_take().unwrap();
        std::thread::scope(|threads| {
            let writer = threads.spawn(|| drop(shared.take()));
            while !shared.writer_waits.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            drop(reading);
            writer.join().unwrap();
        });
        assert!(shared.try_take().is_some());
        shared.writer_waits.store(true, Ordering::Relaxed);
        assert!(shared.try_take().is_none(), "the writer comes first");
    }

    #[test]
    fn a_reader_that_panics_does_not_end_the_writer() {
        let shared = connection();
        std::thread::scope(|threads| {
            let reader = threads.spawn(|| {
                let _reading = shared.take();
                panic!("in the middle of a read");
            });
            reader.join().unwrap_err();
        });
        drop(shared.take());
        assert!(shared.try_take().is_some());
    }
}
