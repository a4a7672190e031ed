//! Buffered writes of one file: disjoint runs of bytes, the newest write wins.
//!
//! Runs never cross a multiple of [`SEGMENT`] in the file, so that a sequential stream becomes whole
//! frames without copying again, and overwriting happens in place.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use cairn_proto::ByteRange;
use cairn_proto::limits::FRAME_SIZE;

/// Alignment and largest size of a run.
const SEGMENT: u64 = FRAME_SIZE as u64;
/// What a run costs besides its bytes, until it is committed: its place in the map and in the flight, its buffer with
/// the count of references, where it is put in a chunk, its extent.
const RUN_COST: usize = 320;

/// What runs cost that have left.
pub(crate) fn cost_of(runs: &[(u64, Bytes)]) -> usize {
    runs.iter().map(|(_, run)| run.len() + RUN_COST).sum()
}

/// What a write of `len` bytes can cost at most: it adds a run in front, and one in each segment that it enters.
pub(crate) fn cost_max(len: usize) -> usize {
    len + RUN_COST * (2 + len / SEGMENT as usize)
}

#[derive(Debug, Default)]
pub(crate) struct DirtyMap {
    runs: BTreeMap<u64, BytesMut>,
    bytes: usize,
}

impl DirtyMap {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes buffered.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Runs, which cost memory besides their bytes.
    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes of memory that it takes.
    pub(crate) fn cost(&self) -> usize {
        self.bytes + self.runs.len() * RUN_COST
    }

    /// One past the last byte.
    pub(crate) fn end(&self) -> Option<u64> {
        self.runs.last_key_value().map(|(start, run)| start + run.len() as u64)
    }

    /// Takes a write. The caller has made sure that `offset + data.len()` does not overflow.
    pub(crate) fn insert(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let before = self.runs.range_mut(..=offset).next_back();
            let taken = match before {
                Some((&start, run)) if offset < start + run.len() as u64 => {
                    let at = (offset - start) as usize; // less than a run, which fits
                    let len = data.len().min(run.len() - at);
                    run[at..at + len].copy_from_slice(&data[..len]);
                    len
                }
                _ => self.insert_into_gap(offset, data),
            };
            offset += taken as u64;
            data = &data[taken..];
        }
    }

    /// Adds bytes where there are none yet, up to the next run or segment; how many.
    fn insert_into_gap(&mut self, offset: u64, data: &[u8]) -> usize {
        let next = self.runs.range(offset..).next().map_or(u64::MAX, |(&start, _)| start);
        let room = (SEGMENT - offset % SEGMENT).min(next - offset);
        let len = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let data = &data[..len];
        self.bytes += len;
        let before = self.runs.range_mut(..offset).next_back();
        match before {
            Some((&start, run)) if start + run.len() as u64 == offset && !offset.is_multiple_of(SEGMENT) => {
                if run.capacity() - run.len() < len {
                    // Doubles, but not past the segment.
                    let most = (SEGMENT - start % SEGMENT) as usize - run.len();
                    run.reserve(len.max(run.len()).min(most));
                }
                run.extend_from_slice(data);
            }
            _ => {
                self.runs.insert(offset, BytesMut::from(data));
            }
        }
        len
    }

    /// Whether every byte of `range` is buffered.
    pub(crate) fn covers(&self, range: ByteRange) -> bool {
        let mut at = range.start();
        let Some((&first, _)) = self.runs.range(..=at).next_back() else { return false };
        for (&start, run) in self.runs.range(first..range.end()) {
            if start > at {
                return false;
            }
            at = start + run.len() as u64;
        }
        at >= range.end()
    }

    /// The buffered bytes within `range`, in order.
    pub(crate) fn within(&self, range: ByteRange) -> impl Iterator<Item = (u64, &[u8])> {
        let first = self.runs.range(..=range.start()).next_back().map_or(range.start(), |(&start, _)| start);
        self.runs.range(first..range.end()).filter_map(move |(&start, run)| {
            let here = ByteRange::new(start, run.len() as u64)?.intersection(range)?;
            let from = (here.start() - start) as usize;
            Some((here.start(), &run[from..from + here.len() as usize]))
        })
    }

    /// Everything, in order; nothing stays.
    pub(crate) fn take(&mut self) -> Vec<(u64, Bytes)> {
        self.bytes = 0;
        std::mem::take(&mut self.runs).into_iter().map(|(start, run)| (start, run.freeze())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Small segments can not be had, so the writes are spread around a boundary.
    const AREA: u64 = SEGMENT - 200;

    proptest! {
        #[test]
        fn reads_like_an_array_of_bytes(writes in prop::collection::vec((0u64..400, 1usize..120, any::<u8>()), 0..40)) {
            let mut map = DirtyMap::default();
            let mut model: Vec<Option<u8>> = vec![None; 520];
            for (offset, len, value) in writes {
                let data = vec![value; len];
                let before = map.cost();
                map.insert(AREA + offset, &data);
                model[offset as usize..offset as usize + len].fill(Some(value));
                prop_assert_eq!(map.bytes(), model.iter().flatten().count());
                prop_assert!(map.cost() <= before + cost_max(len), "{} after {before} for {len}", map.cost());
            }
            let last = model.iter().rposition(Option::is_some);
            prop_assert_eq!(map.end(), last.map(|last| AREA + last as u64 + 1));
            for (from, to) in [(0u64, 520u64), (7, 300), (199, 201), (250, 251)] {
                let range = ByteRange::between(AREA + from, AREA + to).unwrap();
                let mut seen = vec![None; 520];
                for (offset, bytes) in map.within(range) {
                    for (index, byte) in bytes.iter().enumerate() {
                        seen[(offset - AREA) as usize + index] = Some(*byte);
                    }
                }
                let (from, to) = (from as usize, to as usize);
                prop_assert_eq!(&seen[from..to], &model[from..to]);
                prop_assert!(seen[..from].iter().chain(&seen[to..]).all(Option::is_none));
                prop_assert_eq!(map.covers(range), model[from..to].iter().all(Option::is_some));
            }
            let taken = map.take();
            let mut all = vec![None; 520];
            for (offset, bytes) in &taken {
                let at = (offset - AREA) as usize;
                for (index, byte) in bytes.iter().enumerate() {
                    prop_assert_eq!(all[at + index], None);
                    all[at + index] = Some(*byte);
                }
            }
            prop_assert_eq!(all, model);
            prop_assert!(map.is_empty());
        }
    }

    #[test]
    fn a_sequential_stream_becomes_whole_segments() {
        let mut map = DirtyMap::default();
        for index in 0..(3 * SEGMENT / 4096) {
            map.insert(index * 4096, &[index as u8; 4096]);
        }
        let taken = map.take();
        assert_eq!(taken.iter().map(|(_, run)| run.len()).collect::<Vec<_>>(), [FRAME_SIZE; 3]);
    }
}
