//! The write path behind the buffers: flights are cut into chunks, stored on their members,
//! committed, and only then taken out of the buffers they came from.
//!
//! * A flight with much data is a batch of its own. Small flights of any files wait in one queue and
//!   are packed together; a lone one leaves at once.
//! * Order: store on the members, then wait for the file's previous flight, then commit. All extents
//!   of a chunk are committed in one call.
//! * A chunk that could not be stored is stored again from the buffer, under a new id, elsewhere.

pub(crate) mod cut;
pub(crate) mod dirty;
pub(crate) mod flight;
mod store;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::limits::COMMIT_FILES_MAX;
use cairn_proto::{ErrorKind, WireError, v1};
use futures::future::try_join_all;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::attr::Attr;
use crate::engine::Engine;
use crate::error::{ClientError, Result};
use crate::layout::{ChunkInfo, Extent};
use crate::transport::store::ChunkContent;
use cut::{Draft, Use};
use flight::Flight;
use store::StoredDraft;

/// Flights up to this size are packed with others.
const PACKED_BYTES_MAX: u64 = 1 << 20;
/// Packs on their way at once. Few, so that many small flushes at a time share one.
const PACKS_RUNNING_MAX: usize = 2;
/// Files and runs in one pack, which bound its commit.
const PACK_FILES_MAX: usize = COMMIT_FILES_MAX;
const PACK_RUNS_MAX: usize = flight::RUNS_MAX;
/// Large chunks on their way at once; four keep the datanodes busy.
const STORES_MAX: usize = 8;
/// How often bytes are stored anew because their commit was refused for a reason that this cures.
const STORES_TRIED_MAX: usize = 8;

/// The extents that a commit gave to a file.
#[derive(Debug)]
pub(crate) struct Landing {
    pub(crate) attr: Attr,
    pub(crate) extents: Vec<(Extent, ChunkInfo)>,
    /// All of the file survives power loss, whoever wrote it.
    pub(crate) synced: bool,
}

#[derive(Debug)]
pub(crate) struct Writer {
    packs: Mutex<Packs>,
    stores: Semaphore,
}

#[derive(Debug, Default)]
struct Packs {
    queue: VecDeque<Arc<Flight>>,
    running: usize,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { packs: Mutex::default(), stores: Semaphore::new(STORES_MAX) }
    }

    /// Sends a flight on its way; callable from any thread.
    pub(crate) fn submit(&self, engine: &Arc<Engine>, flight: Arc<Flight>) {
        if flight.bytes > PACKED_BYTES_MAX {
            let engine_of_batch = Arc::clone(engine);
            drop(engine.spawn(async move { run_batch(&engine_of_batch, vec![flight]).await }));
            return;
        }
        let start = {
            let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
            packs.queue.push_back(flight);
            let start = packs.running < PACKS_RUNNING_MAX;
            packs.running += usize::from(start);
            start
        };
        if start {
            let engine_of_packs = Arc::clone(engine);
            drop(engine.spawn(async move {
                while let Some(flights) = engine_of_packs.writer.next_pack(engine_of_packs.chunk_size) {
                    run_batch(&engine_of_packs, flights).await;
                }
            }));
        }
    }

    /// What leaves together next; `None` ends a runner.
    fn next_pack(&self, chunk_size: u64) -> Option<Vec<Arc<Flight>>> {
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        let pack = packs.take(chunk_size);
        if pack.is_empty() {
            packs.running -= 1;
            return None;
        }
        Some(pack)
    }
}

impl Packs {
    /// At most one flight of each file: were there two, with a large flight between them, the
    /// second would wait for the large one and that for the first.
    fn take(&mut self, chunk_size: u64) -> Vec<Arc<Flight>> {
        let mut pack: Vec<Arc<Flight>> = Vec::new();
        let mut files = HashSet::new();
        let (mut bytes, mut runs) = (0, 0);
        let mut left = VecDeque::new();
        while let Some(flight) = self.queue.pop_front() {
            bytes += flight.bytes;
            runs += flight.runs.len();
            let full = bytes > chunk_size || runs > PACK_RUNS_MAX || pack.len() == PACK_FILES_MAX;
            if full && !pack.is_empty() {
                left.push_back(flight);
                break;
            }
            if files.insert(flight.file.inode()) {
                pack.push(flight);
            } else {
                left.push_back(flight);
            }
        }
        left.append(&mut self.queue);
        self.queue = left;
        pack
    }
}

/// Stores and commits flights together and lands each with its own outcome.
async fn run_batch(engine: &Arc<Engine>, flights: Vec<Arc<Flight>>) {
    let outcomes = match store_and_commit(engine, &flights).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            // The order within each file is kept also by those that fail.
            for flight in &flights {
                flight.wait_for_previous().await;
            }
            flights.iter().map(|_| Err(error.clone())).collect()
        }
    };
    for (flight, outcome) in flights.iter().zip(outcomes) {
        if let Err(error) = &outcome {
            if error.kind() == ErrorKind::NoSpace {
                engine.had_no_space();
            }
            warn!(inode = %flight.file.inode(), bytes = flight.bytes, %error, "buffered writes are lost");
        }
        flight.file.on_landed(flight, outcome);
        flight.land();
    }
}

async fn store_and_commit(engine: &Arc<Engine>, flights: &[Arc<Flight>]) -> Result<Vec<Result<Landing>>> {
    let mut patience = engine.patience("store and commit file content");
    let mut outcomes: Vec<Option<Result<Landing>>> = flights.iter().map(|_| None).collect();
    let mut tries = 0;
    loop {
        let open: Vec<usize> = (0..flights.len()).filter(|&index| outcomes[index].is_none()).collect();
        if open.is_empty() {
            return Ok(outcomes.into_iter().flatten().collect());
        }
        let tried: Vec<_> = open.iter().map(|&index| Arc::clone(&flights[index])).collect();
        let results = match store_and_commit_once(engine, &tried).await {
            Ok(results) => results,
            Err(error) if storing_again_helps(error.kind()) => {
                tried.iter().map(|_| Err(error.clone())).collect()
            }
            Err(error) => return Err(error),
        };
        tries += 1;
        let mut again = None;
        for (index, result) in open.into_iter().zip(results) {
            match result {
                Err(error) if storing_again_helps(error.kind()) && tries < STORES_TRIED_MAX => {
                    again = Some(error)
                }
                result => outcomes[index] = Some(result),
            }
        }
        if let Some(error) = again {
            crate::metrics::store_retried();
            patience.pause(&error).await?;
        }
    }
}

async fn store_and_commit_once(
    engine: &Arc<Engine>,
    flights: &[Arc<Flight>],
) -> Result<Vec<Result<Landing>>> {
    flights.iter().for_each(|flight| engine.behind.hurry(flight.file.inode()));
    let durable = flights.iter().any(|flight| flight.durable);
    let drafts = cut::cut(flights.iter().map(|flight| &flight.runs[..]), engine.chunk_size);
    let drafts: Vec<_> = drafts.into_iter().map(content_of).collect();
    let stored =
        try_join_all(drafts.iter().map(|(content, _)| store::store(engine, content, durable))).await?;
    for flight in flights {
        flight.wait_for_previous().await;
        // It may have been made here a moment ago.
        engine.behind.applied(flight.file.inode()).await?;
    }
    commit(engine, flights, &drafts, &stored).await
}

fn content_of(draft: Draft) -> (ChunkContent, Vec<Use>) {
    (ChunkContent::join(draft.pieces), draft.uses)
}

/// The coordinator does not take these chunks, but would take the same bytes in others.
fn storing_again_helps(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::PlanExpired
            | ErrorKind::PlanForeign
            | ErrorKind::AlreadyCommitted
            | ErrorKind::TooFewReplicas
            | ErrorKind::StaleEpoch
            | ErrorKind::SessionExpired
    )
}

async fn commit(
    engine: &Arc<Engine>,
    flights: &[Arc<Flight>],
    drafts: &[(ChunkContent, Vec<Use>)],
    stored: &[StoredDraft],
) -> Result<Vec<Result<Landing>>> {
    let Some(session) = stored.first().map(|stored| stored.grant.session) else { return Ok(Vec::new()) };
    if stored.iter().any(|stored| stored.grant.session != session) {
        return Err(ClientError::new(ErrorKind::PlanForeign, "the session changed while chunks were stored"));
    }
    let chunks = drafts.iter().zip(stored).map(|((content, _), stored)| v1::StoredChunk {
        chunk: stored.grant.chunk.get(),
        set: stored.grant.set.get(),
        epoch: stored.epoch,
        length: content.length,
        crc32c: content.crc,
        stored_by: stored.by.iter().map(|node| node.to_wire()).collect(),
        synced: stored.synced,
    });
    let files = flights.iter().enumerate().map(|(index, flight)| v1::FileCommit {
        inode: flight.file.inode().get(),
        extents: uses_of(drafts, stored, index).map(|(used, stored, _)| wire_extent(used, stored)).collect(),
        mtime_ns: flight.mtime_ns,
        // What was there at the write fell away then; this is for what another mount has given since.
        keep_privileges: !flight.drops.set_id,
        drop_capability: flight.drops.capability,
    });
    let (chunks, files) = (chunks.collect(), files.collect());
    let results = engine.coordinator.confirm(session, chunks, files).await?;
    let landings = results.into_iter().enumerate().map(|(index, result)| {
        if let Some(error) = WireError::from_fields(result.error, &result.message) {
            return Err(error.into());
        }
        let attr = Attr::required(result.attr)?;
        let extents = uses_of(drafts, stored, index).filter_map(|(used, stored, content)| {
            let range = cairn_proto::ByteRange::new(used.offset, used.length)?;
            let extent = Extent { range, chunk: stored.grant.chunk, chunk_offset: used.chunk_offset };
            Some((extent, stored.info(content)))
        });
        Ok(Landing { attr, extents: extents.collect(), synced: result.synced })
    });
    Ok(landings.collect())
}

fn uses_of<'a>(
    drafts: &'a [(ChunkContent, Vec<Use>)],
    stored: &'a [StoredDraft],
    file: usize,
) -> impl Iterator<Item = (&'a Use, &'a StoredDraft, &'a ChunkContent)> {
    let chunks = drafts.iter().zip(stored);
    chunks.flat_map(move |((content, uses), stored)| {
        uses.iter().filter(move |used| used.file == file).map(move |used| (used, stored, content))
    })
}

fn wire_extent(used: &Use, stored: &StoredDraft) -> v1::Extent {
    v1::Extent {
        offset: used.offset,
        length: used.length,
        chunk: stored.grant.chunk.get(),
        chunk_offset: used.chunk_offset,
    }
}
