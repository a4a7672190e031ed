//! What is known of a file's layout: extents, and for which ranges the knowledge is complete.
//! Everything belongs to one version of the inode; the owner starts anew when that changes.

use std::collections::{BTreeMap, HashMap};

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ByteRange, ChunkId};

use crate::layout::{ChunkInfo, Extent, Layout};
use crate::tally::Counted;

/// Bytes for an extent, a chunk, and a range for which the knowledge is complete; nodes of the maps included.
const EXTENT_COST: usize = 64;
const CHUNK_COST: usize = 128;
const KNOWN_COST: usize = 32;
/// One file may take one part in so many of what all layouts may take. Beyond that all is forgotten and fetched
/// again where needed.
const OF_FILE: usize = 2;
/// But never less than this: an answer of the coordinator can be used before it is forgotten.
const COST_MIN: usize = 1 << 20;
/// And never more, so that what is in use of a file of millions of extents is found quickly.
const COST_LARGEST: usize = 32 << 20;

#[derive(Debug, Default)]
pub(crate) struct ExtentMap {
    extents: BTreeMap<u64, Extent>,
    chunks: HashMap<ChunkId, ChunkInfo>,
    /// Start → end; disjoint, neither overlapping nor touching.
    known: BTreeMap<u64, u64>,
    counted: Counted,
}

/// A part of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Hole(ByteRange),
    Data(Extent),
    Unknown(ByteRange),
}

impl ExtentMap {
    /// Nothing is known.
    pub(crate) fn new(counted: Counted) -> Self {
        Self { counted, ..Self::default() }
    }

    /// The file is known to have no extents at all.
    pub(crate) fn empty(&mut self) {
        self.clear();
        self.known.insert(0, FILE_SIZE_MAX);
    }

    fn cost(&self) -> usize {
        self.extents.len() * EXTENT_COST + self.chunks.len() * CHUNK_COST + self.known.len() * KNOWN_COST
    }

    /// Whether so many extents more are too many.
    fn is_full(&self, more: usize) -> bool {
        let most = (self.counted.max() / OF_FILE).clamp(COST_MIN, COST_LARGEST);
        self.cost() + more * (EXTENT_COST + CHUNK_COST) > most
    }

    /// Whether there is anything that is worth to be dropped.
    pub(crate) fn is_worth_dropping(&self) -> bool {
        self.extents.len() + self.known.len() > 1
    }

    pub(crate) fn chunk(&self, chunk: ChunkId) -> Option<&ChunkInfo> {
        self.chunks.get(&chunk)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(std::mem::take(&mut self.counted));
        self.counted.set(0);
    }

    /// Takes what the coordinator answered.
    pub(crate) fn merge(&mut self, layout: &Layout) {
        if self.is_full(layout.extents.len()) {
            self.clear();
        }
        // Whole extents come along, also where they reach out of the range that was asked for.
        let first = layout.extents.first().map_or(layout.from, |extent| extent.range.start());
        let last = layout.extents.last().map_or(layout.covered, |extent| extent.range.end());
        if let Some(range) = ByteRange::between(layout.from.min(first), layout.covered.max(last)) {
            self.cut(range);
            self.know(range);
        }
        for extent in &layout.extents {
            self.extents.insert(extent.range.start(), *extent);
        }
        self.chunks.extend(layout.chunks.iter().map(|(id, info)| (*id, info.clone())));
        self.counted.set(self.cost());
    }

    /// Takes an extent that this client has committed.
    pub(crate) fn insert(&mut self, extent: Extent, info: &ChunkInfo) {
        if self.is_full(1) {
            self.clear();
        }
        self.cut(extent.range);
        self.know(extent.range);
        self.extents.insert(extent.range.start(), extent);
        self.chunks.entry(extent.chunk).or_insert_with(|| info.clone());
        if self.chunks.len() > 2 * self.extents.len() + 1024 {
            let used: std::collections::HashSet<_> =
                self.extents.values().map(|extent| extent.chunk).collect();
            self.chunks.retain(|chunk, _| used.contains(chunk));
        }
        self.counted.set(self.cost());
    }

    /// The file was cut, or extended by a hole, to `size`.
    pub(crate) fn resize(&mut self, old: u64, size: u64) {
        if let Some(range) = ByteRange::between(size.min(old), FILE_SIZE_MAX) {
            self.cut(range);
            self.know(range);
        }
        self.counted.set(self.cost());
    }

    /// The parts of `range`, in order, without gaps.
    pub(crate) fn parts(&self, range: ByteRange) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.start();
        let first = self.extents.range(..=at).next_back().map_or(at, |(&start, _)| start);
        for extent in self.extents.range(first..range.end()).map(|(_, extent)| extent) {
            let Some(here) = extent.range.intersection(range) else { continue };
            self.gap(at, here.start(), &mut parts);
            let chunk_offset = extent.chunk_offset + (here.start() - extent.range.start());
            parts.push(Part::Data(Extent { range: here, chunk: extent.chunk, chunk_offset }));
            at = here.end();
        }
        self.gap(at, range.end(), &mut parts);
        parts
    }

    fn gap(&self, mut at: u64, end: u64, parts: &mut Vec<Part>) {
        while let Some(range) = ByteRange::between(at, end) {
            let known = self.known.range(..=at).next_back().map(|(_, &end)| end).filter(|&end| end > at);
            let part = match known {
                Some(known) => {
                    at = known.min(range.end());
                    ByteRange::between(range.start(), at).map(Part::Hole)
                }
                None => {
                    at = self.known.range(at..).next().map_or(end, |(&start, _)| start.min(end));
                    ByteRange::between(range.start(), at).map(Part::Unknown)
                }
            };
            parts.extend(part);
        }
    }

    /// Forgets extents within `range`; those that reach out of it are shortened.
    fn cut(&mut self, range: ByteRange) {
        let first =
            self.extents.range(..=range.start()).next_back().map_or(range.start(), |(&start, _)| start);
        let touched: Vec<_> = self
            .extents
            .range(first..range.end())
            .map(|(_, extent)| *extent)
            .filter(|extent| extent.range.intersection(range).is_some())
            .collect();
        for extent in touched {
            self.extents.remove(&extent.range.start());
            let (before, after) = extent.range.without(range);
            for rest in [before, after].into_iter().flatten() {
                let chunk_offset = extent.chunk_offset + (rest.start() - extent.range.start());
                self.extents.insert(rest.start(), Extent { range: rest, chunk: extent.chunk, chunk_offset });
            }
        }
    }

    fn know(&mut self, range: ByteRange) {
        let (mut start, mut end) = (range.start(), range.end());
        if let Some((&before, &until)) = self.known.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = self.known.range(start..=end).next() {
            end = end.max(until);
            self.known.remove(&next);
        }
        self.known.insert(start, end);
    }
}

#[cfg(test)]
mod tests;
