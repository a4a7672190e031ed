//! What the node holds, as the coordinator compares it with its metadata: digests of ranges of ids
//! first, lists only where they differ.
//!
//! Only sound chunks count. One that was set aside, that lies in the trash, or whose disk can not be
//! read is no copy. Indexes are walked in small pages, so that writers wait for no more than one.

use std::collections::BTreeMap;

use cairn_proto::digest::IdDigest;
use cairn_proto::limits::LIST_MAX;
use cairn_proto::{ChunkId, ErrorKind, WireError, v1};

use crate::disks::Disks;
use crate::store::Found;

/// Entries of one disk's index that are looked at under one lock.
const PAGE: usize = 4096;
/// Ranges in one summary.
const RANGES_MAX: u32 = 4096;
/// Ids in one range.
const SPAN_MAX: u64 = 1 << 32;

/// Counts and digests of ranges of ids.
pub(crate) fn summarize(
    disks: &Disks,
    request: &v1::SummarizeChunksRequest,
) -> Result<v1::SummarizeChunksResponse, WireError> {
    let first = chunk_id(request.first)?;
    let (span, count) = (request.span, request.ranges);
    if !(1..=SPAN_MAX).contains(&span) || !(1..=RANGES_MAX).contains(&count) {
        return Err(invalid(format!(
            "{count} ranges of {span} ids; 1 to {RANGES_MAX} of 1 to {SPAN_MAX} were expected"
        )));
    }
    // At most 2^44 ids from one below 2^63: this does not overflow.
    let last = first.get() + span * u64::from(count) - 1;
    let mut ranges = vec![IdDigest::default(); count as usize];
    Walk::new(disks, first.get(), last).for_each(|chunk, found| {
        if found.is_sound() {
            ranges[((chunk.get() - first.get()) / span) as usize].add(chunk.get());
        }
        true
    });
    let ranges = ranges.iter().map(|range| v1::ChunkSummary { count: range.count, digest: range.digest });
    Ok(v1::SummarizeChunksResponse { ranges: ranges.collect() })
}

/// Chunk by chunk, in the order of ids.
pub(crate) fn list(
    disks: &Disks,
    request: &v1::ListChunksRequest,
) -> Result<v1::ListChunksResponse, WireError> {
    let (first, last) = (chunk_id(request.first)?, chunk_id(request.last)?);
    let limit = request.limit as usize;
    if first > last || !(1..=LIST_MAX).contains(&limit) {
        return Err(invalid(format!(
            "{limit} chunks of ids {first} to {last}; 1 to {LIST_MAX} of rising ids were expected"
        )));
    }
    let mut chunks = Vec::new();
    let mut complete = !disks.stores().iter().any(|store| store.is_undecided());
    Walk::new(disks, first.get(), last.get()).for_each(|chunk, found| {
        if chunks.len() == limit {
            complete = false;
            return false;
        }
        chunks.push(v1::HeldChunk {
            chunk: chunk.get(),
            length: found.length.into(),
            quarantined: found.quarantined,
            trash: found.trash,
        });
        true
    });
    Ok(v1::ListChunksResponse { chunks, complete })
}

/// Chunks of all disks in the order of their ids, each once.
pub(crate) struct Walk<'a> {
    disks: &'a Disks,
    next: u64,
    last: u64,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(disks: &'a Disks, first: u64, last: u64) -> Self {
        Self { disks, next: first, last }
    }

    /// Calls for each chunk until that says `false`.
    pub(crate) fn for_each(mut self, mut visit: impl FnMut(ChunkId, Found) -> bool) {
        while self.next <= self.last {
            for (chunk, found) in self.page() {
                if !visit(chunk, found) {
                    return;
                }
            }
        }
    }

    /// The next chunks; may be empty before the end.
    fn page(&mut self) -> BTreeMap<ChunkId, Found> {
        let mut page = BTreeMap::new();
        // What all disks were asked for: to the end, or to where the first full page of a disk ends.
        let mut horizon = self.last;
        for store in self.disks.stores() {
            let held = store.held_from(self.next, PAGE);
            if let (true, Some((last, _))) = (held.len() == PAGE, held.last()) {
                horizon = horizon.min(last.get());
            }
            for (chunk, found) in held {
                let kept = page.entry(chunk).or_insert(found);
                if found.rank() < kept.rank() {
                    *kept = found;
                }
            }
        }
        page.retain(|chunk, _| chunk.get() <= horizon);
        self.next = horizon + 1; // ids stay below 2^63
        page
    }
}

fn chunk_id(raw: u64) -> Result<ChunkId, WireError> {
    ChunkId::new(raw).map_err(|error| invalid(error.to_string()))
}

fn invalid(message: String) -> WireError {
    WireError::new(ErrorKind::InvalidArgument, message)
}
