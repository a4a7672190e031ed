//! Bytes of what is known of the cluster and can be asked for again at any time: layouts of files, pages of open
//! directories, extended attributes. Each kind is counted, and who adds to one that is too large drops some of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One kind. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Tally(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: AtomicUsize,
    max: usize,
}

impl Tally {
    pub(crate) fn new(max: u64) -> Self {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        Self(Arc::new(Inner { bytes: AtomicUsize::new(0), max }))
    }

    /// The bound, bytes.
    pub(crate) fn max(&self) -> usize {
        self.0.max
    }

    /// Bytes counted.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether some of it is to be dropped; then half of the bound may stay, so that it is not dropped all the time.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes() > self.0.max
    }

    /// Whether enough has been dropped.
    pub(crate) fn is_low(&self) -> bool {
        self.bytes() <= self.0.max / 2
    }

    /// One part of it, without bytes yet.
    pub(crate) fn begin(&self) -> Counted {
        Counted { tally: Some(self.clone()), bytes: 0 }
    }
}

/// A part that is counted; when it is dropped, no more.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// `None`: nobody counts.
    tally: Option<Tally>,
    bytes: usize,
}

impl Counted {
    /// It has so many bytes now.
    pub(crate) fn set(&mut self, bytes: usize) {
        if let Some(Tally(inner)) = &self.tally {
            if bytes >= self.bytes {
                inner.bytes.fetch_add(bytes - self.bytes, Ordering::Relaxed);
            } else {
                inner.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
            self.bytes = bytes;
        }
    }

    /// The bound of its kind; `usize::MAX` when nobody counts.
    pub(crate) fn max(&self) -> usize {
        self.tally.as_ref().map_or(usize::MAX, Tally::max)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_the_sum_of_the_parts_that_are_there() {
        let tally = Tally::new(100);
        let (mut one, mut two) = (tally.begin(), tally.begin());
        one.set(60);
        two.set(50);
        assert!(tally.is_over());
        one.set(10);
        assert!(!tally.is_over() && !tally.is_low());
        two.set(40);
        assert!(tally.is_low());
        drop(two);
        assert_eq!(tally.bytes(), 10);
        Counted::default().set(7);
        drop(one);
        assert_eq!(tally.bytes(), 0);
    }
}
