//! The memory of one client, counted in bytes and divided once, at start:
//!
//! * three eighths for the block cache,
//! * three eighths for written data until it is committed, with what each run of it costs besides its bytes,
//! * an eighth for fetches under way (they end in the cache),
//! * an eighth for what is known of the cluster: layouts of files (half of it), pages of directories (a quarter open, an
//!   eighth kept), extended attributes.
//!
//! The parts are fixed so that a stuck writer can not starve readers, nor the other way round.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::tally::Tally;

/// The division of the memory.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) cache: u64,
    pub(crate) writes: Share,
    pub(crate) fetches: Share,
    pub(crate) layouts: Tally,
    pub(crate) pages: Tally,
    /// Bytes of pages that are kept for later listings.
    pub(crate) kept_pages: u64,
    pub(crate) xattrs: Tally,
}

impl Budget {
    pub(crate) fn new(memory: u64) -> Self {
        let known = memory / 8;
        Self {
            cache: memory / 8 * 3,
            writes: Share::new(memory / 8 * 3),
            fetches: Share::new(memory / 8),
            layouts: Tally::new(known / 2),
            pages: Tally::new(known / 4),
            kept_pages: known / 8,
            xattrs: Tally::new(known / 8),
        }
    }
}

/// A part of the memory that is handed out in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    free: Arc<Semaphore>,
    size: usize,
}

impl Share {
    fn new(bytes: u64) -> Self {
        let size = usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(size)), size }
    }

    /// Bytes in all.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Bytes handed out.
    pub(crate) fn used(&self) -> usize {
        self.size - self.free.available_permits().min(self.size)
    }

    fn permits(&self, bytes: usize) -> u32 {
        // More than all there is would never be granted: it then takes everything.
        u32::try_from(bytes.min(self.size)).unwrap_or(u32::MAX)
    }

    /// Takes `bytes` when they are free now.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Reservation> {
        let permits = self.permits(bytes);
        self.free.try_acquire_many(permits).ok()?.forget();
        Some(Reservation { free: Arc::clone(&self.free), bytes: permits as usize })
    }

    /// Takes `bytes` as soon as they are free.
    pub(crate) async fn take(&self, bytes: usize) -> Reservation {
        let permits = self.permits(bytes);
        // The semaphore is never closed, so that the wait can only end with permits.
        if let Ok(taken) = self.free.acquire_many(permits).await {
            taken.forget();
        }
        Reservation { free: Arc::clone(&self.free), bytes: permits as usize }
    }

    /// Nothing yet; grows by [`Reservation::absorb`].
    pub(crate) fn nothing(&self) -> Reservation {
        Reservation { free: Arc::clone(&self.free), bytes: 0 }
    }
}

/// Bytes of a [`Share`] in use; dropping gives them back.
#[derive(Debug)]
pub(crate) struct Reservation {
    free: Arc<Semaphore>,
    bytes: usize,
}

impl Reservation {
    /// Gives back all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let excess = self.bytes.saturating_sub(bytes);
        self.bytes -= excess;
        self.free.add_permits(excess);
    }

    /// Joins another reservation of the same share.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives away up to `bytes` of it.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { free: Arc::clone(&self.free), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.free.add_permits(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_once() {
        let share = Share::new(100);
        let mut one = share.try_take(60).unwrap();
        assert!(share.try_take(50).is_none());
        one.shrink_to(10);
        let two = share.try_take(50).unwrap();
        assert_eq!(share.used(), 60);
        one.absorb(two);
        let all = one.split(60);
        drop(one);
        assert_eq!(share.used(), 60);
        drop(all);
        assert_eq!(share.used(), 0);
    }

    #[test]
    fn more_than_everything_takes_everything() {
        let share = Share::new(100);
        let all = share.try_take(1 << 20).unwrap();
        assert_eq!(share.used(), 100);
        drop(all);
        assert_eq!(share.used(), 0);
    }
}
