//! What was stored without sync and is not yet known to survive power loss, by file: `fsync` has to
//! see to it, also when it comes through another handle than the writes did. What stays here for
//! long is synced in the background, so that the list stays short.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::limits::LIST_MAX;
use cairn_proto::{ChunkId, ErrorKind, InodeId, NodeId, ReplicaSetId};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock::{self, Instant};
use futures::future::join_all;
use tracing::debug;

use super::Writer;
use super::cut::Use;
use super::store::StoredDraft;
use crate::engine::Engine;
use crate::error::{ClientError, Result};
use crate::retry::Patience;
use crate::transport::store::ChunkContent;

/// By then the disks have most likely been written anyway.
const OLD: Duration = Duration::from_secs(30);
/// How often old entries are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// More entries than this are synced whatever their age; about 100 bytes each.
const ENTRIES_MAX: usize = 100_000;
/// A sync that too few members answer is given up after this long, also by a `hard` client: their
/// promise can not be had from others.
const SYNC_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
struct Chunk {
    id: ChunkId,
    set: ReplicaSetId,
    by: Arc<[NodeId]>,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<InodeId, Vec<Chunk>>,
    entries: usize,
    looked: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    state: Mutex<State>,
}

impl Unsynced {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the chunks that hold parts of the file with this index in its batch.
    pub(super) fn add(
        &self,
        inode: InodeId,
        index: usize,
        drafts: &[(ChunkContent, Vec<Use>)],
        stored: &[StoredDraft],
    ) {
        let since = clock::now();
        let of_file = |uses: &[Use]| uses.iter().any(|used| used.file == index);
        self.with(|state| {
            let file = state.files.entry(inode).or_default();
            for (_, stored) in drafts.iter().zip(stored).filter(|((_, uses), _)| of_file(uses)) {
                let by = stored.by.iter().copied().collect();
                file.push(Chunk { id: stored.grant.chunk, set: stored.grant.set, by, since });
                state.entries += 1;
            }
        });
    }

    /// A file that refers to chunks of another one needs them as much.
    pub(crate) fn copy(&self, source: InodeId, destination: InodeId) {
        self.with(|state| {
            let Some(chunks) = state.files.get(&source).filter(|_| source != destination).cloned() else {
                return;
            };
            state.entries += chunks.len();
            state.files.entry(destination).or_default().extend(chunks);
        });
    }

    pub(crate) fn contains(&self, inode: InodeId) -> bool {
        self.with(|state| state.files.contains_key(&inode))
    }

    fn all(&self) -> Vec<Chunk> {
        self.with(|state| state.files.values().flatten().cloned().collect())
    }

    fn of(&self, inode: InodeId) -> Vec<Chunk> {
        self.with(|state| state.files.get(&inode).cloned().unwrap_or_default())
    }

    /// Those old enough, or all when there are too many; asked for at most every few seconds.
    fn old(&self) -> Vec<Chunk> {
        self.with(|state| {
            let full = state.entries > ENTRIES_MAX;
            if !full && state.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return Vec::new();
            }
            state.looked = Some(clock::now());
            let old = |chunk: &&Chunk| full || chunk.since.elapsed() > OLD;
            state.files.values().flatten().filter(old).cloned().collect()
        })
    }

    fn remove(&self, chunks: &HashSet<ChunkId>) {
        self.with(|state| {
            state.files.retain(|_, file| {
                file.retain(|chunk| !chunks.contains(&chunk.id));
                !file.is_empty()
            });
            state.entries = state.files.values().map(Vec::len).sum();
        });
    }
}

impl Writer {
    /// Makes everything committed of a file survive power loss.
    pub(crate) async fn sync_file(&self, engine: &Engine, inode: InodeId) -> Result<()> {
        if planted(Bug::UnsyncedForgotten) {
            return Ok(());
        }
        self.sync_until_done(engine, || self.unsynced.of(inode)).await
    }

    /// The same for all files.
    pub(crate) async fn sync_all(&self, engine: &Engine) -> Result<()> {
        self.sync_until_done(engine, || self.unsynced.all()).await
    }

    async fn sync_until_done(&self, engine: &Engine, chunks: impl Fn() -> Vec<Chunk>) -> Result<()> {
        let limit = engine.config.unreachable.limit().unwrap_or(SYNC_LIMIT).min(SYNC_LIMIT);
        let mut patience = Patience::limited("sync chunks", Some(limit));
        loop {
            let chunks = chunks();
            if chunks.is_empty() {
                return Ok(());
            }
            match self.sync(engine, &chunks).await {
                Ok(()) => return Ok(()),
                Err(error) => patience.pause(&error).await?,
            }
        }
    }

    /// Background part of it.
    pub(crate) async fn sync_old(&self, engine: &Engine) {
        let chunks = self.unsynced.old();
        if chunks.is_empty() {
            return;
        }
        if let Err(error) = self.sync(engine, &chunks).await {
            debug!(%error, "old chunks could not be synced; trying again later");
        }
    }

    /// Asks every member concerned; a chunk is done when as many as the policy demands have synced it.
    async fn sync(&self, engine: &Engine, chunks: &[Chunk]) -> Result<()> {
        let mut by_node: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
        let unique: HashMap<ChunkId, &Chunk> = chunks.iter().map(|chunk| (chunk.id, chunk)).collect();
        for chunk in unique.values() {
            for node in chunk.by.iter() {
                by_node.entry(*node).or_default().push(chunk.id);
            }
        }
        let answers = join_all(by_node.into_iter().map(|(node, ids)| sync_on(engine, node, ids))).await;
        let mut synced: HashMap<ChunkId, usize> = HashMap::new();
        let mut last = None;
        for answer in answers {
            match answer {
                Ok(outcomes) => {
                    for (chunk, outcome) in outcomes {
                        match outcome {
                            None => *synced.entry(chunk).or_default() += 1,
                            Some(kind) => {
                                last = Some(ClientError::new(kind, "a datanode could not sync a chunk"))
                            }
                        }
                    }
                }
                Err(error) => last = Some(error),
            }
        }
        let map = engine.coordinator.map().get();
        let demanded = |set: ReplicaSetId| map.sets.get(&set).map_or(1, |set| set.min_replicas);
        // A member that does not hold the chunk any more has lost it: that is no success.
        let is_done = |chunk: &Chunk| synced.get(&chunk.id).copied().unwrap_or(0) >= demanded(chunk.set);
        let (done, open): (Vec<_>, Vec<_>) = unique.into_values().partition(|chunk| is_done(chunk));
        self.unsynced.remove(&done.into_iter().map(|chunk| chunk.id).collect());
        match open.first() {
            None => Ok(()),
            Some(chunk) => Err(last.unwrap_or_else(|| {
                let message =
                    format!("too few members of replica set {} have synced chunk {}", chunk.set, chunk.id);
                ClientError::new(ErrorKind::TooFewReplicas, message)
            })),
        }
    }
}

type Outcome = (ChunkId, Option<ErrorKind>);

async fn sync_on(engine: &Engine, node: NodeId, chunks: Vec<ChunkId>) -> Result<Vec<Outcome>> {
    let link = engine.transport.link(&engine.coordinator.map().get(), node)?;
    let mut outcomes = Vec::with_capacity(chunks.len());
    for part in chunks.chunks(LIST_MAX) {
        let failed: HashMap<_, _> = link.sync(part).await?.into_iter().collect();
        outcomes.extend(part.iter().map(|chunk| (*chunk, failed.get(chunk).copied())));
    }
    Ok(outcomes)
}
