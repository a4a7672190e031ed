//! Ranges of bytes in a file or chunk.

use crate::limits::FILE_SIZE_MAX;

/// A half-open range of bytes `[start, end)`; never empty, never past 2^63 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `None` when `len` is zero or the end lies past the largest file.
    pub fn new(start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (len > 0 && end <= FILE_SIZE_MAX).then_some(Self { start, end })
    }

    /// `None` when `end <= start` or `end` lies past the largest file.
    pub fn between(start: u64, end: u64) -> Option<Self> {
        (start < end && end <= FILE_SIZE_MAX).then_some(Self { start, end })
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// How many bytes; at least 1.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether `offset` lies inside.
    pub const fn contains(self, offset: u64) -> bool {
        self.start <= offset && offset < self.end
    }

    /// What both cover.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// What of `self` lies before and after `other`.
    pub fn without(self, other: Self) -> (Option<Self>, Option<Self>) {
        (
            Self::between(self.start, self.end.min(other.start)),
            Self::between(self.start.max(other.end), self.end),
        )
    }

    /// The smallest range that starts and ends at multiples of `block` and holds this one.
    pub fn aligned_to(self, block: u64) -> Self {
        let start = self.start / block * block;
        let end = self.end.div_ceil(block).saturating_mul(block).min(FILE_SIZE_MAX);
        Self { start, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_and_overflowing_ranges_do_not_exist() {
        assert_eq!(ByteRange::new(5, 0), None);
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(FILE_SIZE_MAX, 1), None);
        assert!(ByteRange::new(FILE_SIZE_MAX - 1, 1).is_some());
    }

    proptest! {
        #[test]
        fn without_and_intersection_part_a_range(a in 0u64..100, la in 1u64..50, b in 0u64..100, lb in 1u64..50) {
            let (Some(x), Some(y)) = (ByteRange::new(a, la), ByteRange::new(b, lb)) else { unreachable!() };
            let (before, after) = x.without(y);
            let parts = [before, x.intersection(y), after];
            let covered: u64 = parts.iter().flatten().map(|r| r.len()).sum();
            prop_assert_eq!(covered, x.len());
            for part in parts.iter().flatten() {
                prop_assert!(part.start() >= x.start() && part.end() <= x.end());
            }
        }
    }
}
