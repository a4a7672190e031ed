//! Chunks that were committed without sync and are not yet known to survive power loss, by the files that refer
//! to them: what an fsync of a file has to see to, whoever wrote it and through whichever mount it comes.
//!
//! Each of them has a row, so that a restart forgets none. This index beside the rows says which files are
//! concerned. Nothing of an earlier run is in it, nor what was too much for it: then it is not complete, and
//! extents say which chunks a file has (`ops/unsynced.rs`), until the worker (`workers/sync.rs`) has had those
//! chunks synced.
//!
//! Entries are made when a commit is executed, so that no reader of committed rows can come before them; a commit
//! that fails leaves an entry, which ends because its chunk is not there. They end when enough members of the chunk's
//! set have synced it, or when nothing refers to it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{ChunkId, InodeId, SessionId};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock::{self, Instant};

/// Pairs of a file and a chunk that are kept, about 50 bytes each.
const PAIRS_MAX: usize = 262_144;
/// Synced chunks whose rows wait to be deleted. Rows of more of them stay until the worker meets them.
const SETTLED_MAX: usize = 65_536;

/// The index.
#[derive(Debug)]
pub(crate) struct UnsyncedFiles(Mutex<State>);

#[derive(Debug)]
struct State {
    chunks: BTreeMap<ChunkId, Entry>,
    by_chunk: BTreeSet<(ChunkId, InodeId)>,
    by_file: BTreeSet<(InodeId, ChunkId)>,
    pairs_max: usize,
    /// Every unsynced chunk is in here, with all files that refer to it.
    complete: bool,
    /// How often something was left out.
    omissions: u64,
    /// Synced; their rows are still there.
    settled: BTreeSet<ChunkId>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    session: SessionId,
    since: Instant,
}

/// What the index knows of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) chunks: Vec<ChunkId>,
    /// There are no others.
    pub(crate) complete: bool,
}

impl UnsyncedFiles {
    /// `rows`: there are some, of an earlier run.
    pub(crate) fn new(rows: bool) -> Self {
        Self::with_room(rows, PAIRS_MAX)
    }

    fn with_room(rows: bool, pairs_max: usize) -> Self {
        Self(Mutex::new(State {
            chunks: BTreeMap::new(),
            by_chunk: BTreeSet::new(),
            by_file: BTreeSet::new(),
            pairs_max,
            complete: !rows,
            omissions: 0,
            settled: BTreeSet::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `session` commits a chunk without sync.
    pub(crate) fn add(&self, session: SessionId, chunk: ChunkId) {
        self.lock().chunks.entry(chunk).or_insert_with(|| Entry { session, since: clock::now() });
    }

    /// A file refers to a chunk, which may be an unsynced one.
    pub(crate) fn refer(&self, file: InodeId, chunk: ChunkId) {
        self.lock().refer(file, chunk);
    }

    /// A file now refers to chunks of another one, and needs them as much.
    pub(crate) fn copy(&self, source: InodeId, destination: InodeId) {
        let mut state = self.lock();
        for chunk in state.of_file(source) {
            state.refer(destination, chunk);
        }
    }

    /// Those of a file.
    pub(crate) fn of_file(&self, file: InodeId) -> Known {
        if planted(Bug::UnsyncedForgotten) {
            return Known { chunks: Vec::new(), complete: true };
        }
        let state = self.lock();
        Known { chunks: state.of_file(file), complete: state.complete }
    }

    /// Those that a session has committed.
    pub(crate) fn of_session(&self, session: SessionId) -> Known {
        let state = self.lock();
        let own = state.chunks.iter().filter(|(_, entry)| entry.session == session);
        Known { chunks: own.map(|(&chunk, _)| chunk).collect(), complete: state.complete }
    }

    /// Whether all of a file is known to survive power loss.
    pub(crate) fn is_synced(&self, file: InodeId) -> bool {
        let known = self.of_file(file);
        known.complete && known.chunks.is_empty()
    }

    /// Whether a chunk that has a row is in here, or is settled.
    pub(crate) fn has(&self, chunk: ChunkId) -> bool {
        let state = self.lock();
        state.chunks.contains_key(&chunk) || state.settled.contains(&chunk)
    }

    /// Those behind `after` that have been in here for `age`, at most `limit`, in the order of their ids.
    pub(crate) fn older_than(&self, age: Duration, after: Option<ChunkId>, limit: usize) -> Vec<ChunkId> {
        let state = self.lock();
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let old = state.chunks.range(behind).filter(|(_, entry)| entry.since.elapsed() >= age);
        old.map(|(&chunk, _)| chunk).take(limit).collect()
    }

    /// Whether chunks should be synced before their time.
    pub(crate) fn is_filling(&self) -> bool {
        let state = self.lock();
        state.by_file.len() > state.pairs_max / 2
    }

    /// These survive power loss. Their rows are to go.
    pub(crate) fn settle(&self, chunks: &[ChunkId]) {
        let mut state = self.lock();
        for &chunk in chunks {
            state.remove(chunk);
            if state.settled.len() < SETTLED_MAX {
                state.settled.insert(chunk);
            }
        }
    }

    /// Synced chunks whose rows are still there, at most `limit`.
    pub(crate) fn settled(&self, limit: usize) -> Vec<ChunkId> {
        self.lock().settled.iter().take(limit).copied().collect()
    }

    /// Their rows are gone, or nothing refers to them any more.
    pub(crate) fn forget(&self, chunks: &[ChunkId]) {
        let mut state = self.lock();
        for &chunk in chunks {
            state.remove(chunk);
            state.settled.remove(&chunk);
        }
    }

    /// How often something was left out so far.
    pub(crate) fn omissions(&self) -> u64 {
        self.lock().omissions
    }

    /// All rows were found in here. Nothing comes of it when something was left out since `omissions`.
    pub(crate) fn found_complete(&self, omissions: u64) {
        let mut state = self.lock();
        state.complete |= state.omissions == omissions;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.lock().complete
    }
}

impl State {
    fn of_file(&self, file: InodeId) -> Vec<ChunkId> {
        let first = (file, ChunkId::MIN);
        self.by_file.range(first..).take_while(|(of, _)| *of == file).map(|&(_, chunk)| chunk).collect()
    }

    fn refer(&mut self, file: InodeId, chunk: ChunkId) {
        if !self.chunks.contains_key(&chunk) || self.by_file.contains(&(file, chunk)) {
            return;
        }
        if self.by_file.len() >= self.pairs_max {
            // Not in here at all is better than with some of its files.
            self.remove(chunk);
            self.complete = false;
            self.omissions += 1;
            return;
        }
        self.by_file.insert((file, chunk));
        self.by_chunk.insert((chunk, file));
    }

    fn remove(&mut self, chunk: ChunkId) {
        self.chunks.remove(&chunk);
        while let Some(&(of, file)) = self.by_chunk.range((chunk, InodeId::MIN)..).next()
            && of == chunk
        {
            self.by_chunk.remove(&(chunk, file));
            self.by_file.remove(&(file, chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_runtime::random;

    fn chunk(id: u64) -> ChunkId {
        ChunkId::new(id).unwrap()
    }

    fn file(id: u64) -> InodeId {
        InodeId::new(id).unwrap()
    }

    fn commit(unsynced: &UnsyncedFiles, chunk: ChunkId, files: &[InodeId]) -> SessionId {
        let session = SessionId::from_uuid(random::uuid());
        unsynced.add(session, chunk);
        files.iter().for_each(|&file| unsynced.refer(file, chunk));
        session
    }

    #[test]
    fn a_file_is_synced_when_all_its_chunks_are_and_a_clone_needs_them_too() {
        let unsynced = UnsyncedFiles::new(false);
        let session = commit(&unsynced, chunk(1), &[file(2), file(3)]);
        commit(&unsynced, chunk(2), &[file(3)]);
        unsynced.copy(file(3), file(4));
        assert_eq!(unsynced.of_file(file(4)).chunks, [chunk(1), chunk(2)]);
        assert_eq!(unsynced.of_session(session).chunks, [chunk(1)]);
        unsynced.settle(&[chunk(1)]);
        assert!(unsynced.is_synced(file(2)));
        assert!(!unsynced.is_synced(file(3)) && !unsynced.is_synced(file(4)));
        assert!(unsynced.has(chunk(1)), "its row is still there");
        assert_eq!(unsynced.settled(10), [chunk(1)]);
        assert_eq!(unsynced.older_than(Duration::ZERO, None, 10), [chunk(2)]);
        assert_eq!(unsynced.older_than(Duration::ZERO, Some(chunk(2)), 10), []);
        assert_eq!(unsynced.older_than(Duration::from_secs(60), None, 10), []);
        unsynced.forget(&[chunk(1), chunk(2)]);
        assert!(unsynced.is_synced(file(3)) && unsynced.is_synced(file(4)));
        let state = unsynced.lock();
        assert!(state.by_chunk.is_empty() && state.by_file.is_empty() && state.settled.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_left_out_as_a_whole_and_told() {
        let unsynced = UnsyncedFiles::with_room(false, 2);
        commit(&unsynced, chunk(1), &[file(2)]);
        let before = unsynced.omissions();
        commit(&unsynced, chunk(2), &[file(2), file(3)]);
        assert!(!unsynced.has(chunk(2)));
        assert_eq!(unsynced.of_file(file(2)), Known { chunks: vec![chunk(1)], complete: false });
        assert!(!unsynced.is_synced(file(3)));
        unsynced.found_complete(before);
        assert!(!unsynced.is_complete(), "something was left out meanwhile");
        unsynced.found_complete(unsynced.omissions());
        assert!(unsynced.is_synced(file(3)));
    }

    #[test]
    fn after_a_start_with_rows_no_file_is_taken_for_synced() {
        assert!(!UnsyncedFiles::new(true).is_synced(file(2)));
        assert!(UnsyncedFiles::new(false).is_synced(file(2)));
    }
}
