//! Chunks whose copy here turned out bad or missing, until the coordinator has recorded them.
//!
//! Reported by reads, the scrub and start-up; told with the next heartbeat, and forgotten once the
//! coordinator has answered a beat that told of them. Each is told once on a connection and again after
//! [`TELL_AGAIN`] beats without an answer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cairn_proto::{ChunkId, ErrorKind, v1};
use tracing::warn;

/// Chunks in one beat.
const TOLD_AT_ONCE: usize = 4096;
/// Chunks that wait to be told, some 40 MiB; of more the coordinator learns from the inventory.
const WAITING_MAX: usize = 1 << 20;
/// Beats without an answer after which a chunk is told again.
const TELL_AGAIN: u64 = 30;

/// Chunks that the coordinator is still to hear of.
#[derive(Debug, Default)]
pub(crate) struct BadChunks(Mutex<BTreeMap<ChunkId, Bad>>);

#[derive(Debug)]
struct Bad {
    kind: ErrorKind,
    /// The last beat that told of it.
    told: Option<u64>,
}

impl BadChunks {
    /// The copy of a chunk here is bad (`Corrupt`) or gone (`ChunkNotFound`).
    pub(crate) fn report(&self, chunk: ChunkId, kind: ErrorKind) {
        let mut waiting = self.lock();
        if waiting.len() >= WAITING_MAX && !waiting.contains_key(&chunk) {
            return warn!(%chunk, "too many bad chunks wait to be told to the coordinator");
        }
        waiting.insert(chunk, Bad { kind, told: None });
    }

    /// A sound copy is here after all.
    pub(crate) fn forget(&self, chunk: ChunkId) {
        self.lock().remove(&chunk);
    }

    /// What a beat is to tell.
    pub(crate) fn tell(&self, beat: u64) -> Vec<v1::BadChunk> {
        let mut waiting = self.lock();
        let untold = waiting
            .iter_mut()
            .filter(|(_, bad)| bad.told.is_none_or(|told| beat >= told.saturating_add(TELL_AGAIN)));
        untold
            .take(TOLD_AT_ONCE)
            .map(|(chunk, bad)| {
                bad.told = Some(beat);
                v1::BadChunk { chunk: chunk.get(), error: bad.kind.number() }
            })
            .collect()
    }

    /// A beat was not sent.
    pub(crate) fn on_unsent(&self, beat: u64) {
        for bad in self.lock().values_mut().filter(|bad| bad.told == Some(beat)) {
            bad.told = None;
        }
    }

    /// The connection is a new one: what was not answered is told again.
    pub(crate) fn on_reconnect(&self) {
        for bad in self.lock().values_mut() {
            bad.told = None;
        }
    }

    /// All that was told up to a beat is recorded.
    pub(crate) fn on_recorded(&self, beat: u64) {
        self.lock().retain(|_, bad| bad.told.is_none_or(|told| told > beat));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ChunkId, Bad>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(chunk: u64) -> ChunkId {
        ChunkId::new(chunk).unwrap()
    }

    fn told(bad: &BadChunks, beat: u64) -> Vec<u64> {
        bad.tell(beat).iter().map(|chunk| chunk.chunk).collect()
    }

    #[test]
    fn a_bad_chunk_is_told_until_it_is_recorded() {
        let bad = BadChunks::default();
        bad.report(id(5), ErrorKind::Corrupt);
        assert_eq!(told(&bad, 1), [5]);
        bad.report(id(6), ErrorKind::ChunkNotFound);
        assert_eq!(told(&bad, 2), [6], "once is enough while the connection lives");
        bad.on_recorded(1);
        bad.on_reconnect();
        assert_eq!(told(&bad, 3), [6]);
        bad.on_unsent(3);
        assert_eq!(told(&bad, 4), [6]);
        assert_eq!(told(&bad, 4 + TELL_AGAIN), [6], "an answer that does not come");
        // Found bad again while the answer was on its way: that is news.
        bad.report(id(6), ErrorKind::Corrupt);
        bad.on_recorded(4 + TELL_AGAIN);
        assert_eq!(told(&bad, 100), [6]);
        bad.on_recorded(100);
        assert!(told(&bad, 101).is_empty());
    }

    #[test]
    fn beats_stay_small() {
        let bad = BadChunks::default();
        (1..=5000).for_each(|chunk| bad.report(id(chunk), ErrorKind::Corrupt));
        assert_eq!((bad.tell(1).len(), bad.tell(2).len(), bad.tell(3).len()), (4096, 904, 0));
    }
}
