//! The read path below a file: blocks of chunks from the cache, from a fetch that somebody else has
//! begun, or from a datanode.

pub(crate) mod ahead;
mod fetch;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cairn_proto::ChunkId;
use cairn_proto::limits::BLOCK_SIZE;

use crate::budget::Reservation;
use crate::engine::Engine;
use crate::error::Result;
use crate::layout::{ChunkInfo, Extent};
use crate::metrics;
use fetch::Fetch;

/// Blocks in one request to a datanode: two MiB, so that a chunk is spread over its replicas.
const FETCH_BLOCKS: u32 = 32;

/// Fetches under way, by block. Whoever needs a block joins the fetch that brings it.
#[derive(Debug, Default)]
pub(crate) struct Fetches {
    table: Mutex<HashMap<(ChunkId, u32), Arc<Fetch>>>,
    requests: AtomicU64,
    hedges: AtomicU64,
}

/// A block that is here, or on its way.
#[derive(Debug)]
pub(crate) enum Block {
    Here(Bytes),
    Coming(Arc<Fetch>, u32),
}

impl Block {
    pub(crate) async fn wait(self) -> Result<Bytes> {
        match self {
            Self::Here(data) => Ok(data),
            Self::Coming(fetch, block) => fetch.wait(block).await,
        }
    }
}

/// The 64 KiB blocks of consecutive bytes.
pub(crate) fn blocks_of(data: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..data.len()).step_by(BLOCK_SIZE).map(|from| data.slice(from..data.len().min(from + BLOCK_SIZE)))
}

/// First and last block of a run of a chunk.
pub(crate) fn blocks_in(extent: &Extent) -> (u32, u32) {
    let block = |offset: u64| u32::try_from(offset / BLOCK_SIZE as u64).unwrap_or(u32::MAX);
    (block(extent.chunk_offset), block(extent.chunk_offset + extent.range.len() - 1))
}

/// The run of `extent` within its blocks, given in order.
pub(crate) fn trim(extent: &Extent, index: u32, block: &Bytes) -> Bytes {
    let start = u64::from(index) * BLOCK_SIZE as u64;
    let from = extent.chunk_offset.saturating_sub(start).min(block.len() as u64);
    let to = (extent.chunk_offset + extent.range.len() - start).min(block.len() as u64);
    block.slice(from as usize..to.max(from) as usize) // within a block
}

impl Fetches {
    /// The blocks `first..=last` of a chunk; those that are missing are asked for.
    pub(crate) fn blocks(
        engine: &Arc<Engine>,
        chunk: ChunkId,
        info: &ChunkInfo,
        (first, last): (u32, u32),
    ) -> Vec<Block> {
        let mut blocks = Vec::with_capacity((last - first + 1) as usize);
        let mut started = Vec::new();
        {
            let mut table = engine.fetches.lock();
            let mut at = first;
            while at <= last {
                if let Some(block) = present(engine, &table, chunk, at) {
                    blocks.push(block);
                    at += 1;
                    continue;
                }
                let limit = last.min(at + FETCH_BLOCKS - 1);
                let run =
                    (at + 1..=limit).take_while(|block| present(engine, &table, chunk, *block).is_none());
                let count = 1 + run.count() as u32;
                let fetch = Fetch::new(chunk, info.clone(), at, count);
                for block in at..at + count {
                    table.insert((chunk, block), Arc::clone(&fetch));
                    blocks.push(Block::Coming(Arc::clone(&fetch), block));
                }
                started.push(fetch);
                at += count;
            }
        }
        let hits = blocks.iter().filter(|block| matches!(block, Block::Here(_))).count();
        metrics::blocks_from_cache(hits, blocks.len() - hits);
        for fetch in started {
            Self::start(engine, fetch, None);
        }
        blocks
    }

    /// Starts to fetch blocks that nobody has asked for yet. `false`: memory is short, stop.
    pub(crate) fn ahead(
        engine: &Arc<Engine>,
        chunk: ChunkId,
        info: &ChunkInfo,
        (first, last): (u32, u32),
    ) -> bool {
        let mut at = first;
        while at <= last {
            let limit = last.min(at + FETCH_BLOCKS - 1);
            let mut table = engine.fetches.lock();
            let absent =
                |block: &u32| !table.contains_key(&(chunk, *block)) && !engine.cache.contains(chunk, *block);
            let count = (at..=limit).take_while(absent).count() as u32;
            if count == 0 {
                at += 1;
                continue;
            }
            let Some(memory) = engine.budget.fetches.try_take(count as usize * BLOCK_SIZE) else {
                return false;
            };
            let fetch = Fetch::new(chunk, info.clone(), at, count);
            for block in at..at + count {
                table.insert((chunk, block), Arc::clone(&fetch));
            }
            drop(table);
            Self::start(engine, fetch, Some(memory));
            at += count;
        }
        true
    }

    fn start(engine: &Arc<Engine>, fetch: Arc<Fetch>, memory: Option<Reservation>) {
        let engine_of_fetch = Arc::clone(engine);
        drop(engine.spawn(async move {
            let engine = engine_of_fetch;
            let _memory = match memory {
                Some(memory) => memory,
                None => engine.budget.fetches.take(fetch.bytes()).await,
            };
            fetch.run(&engine).await;
            let mut table = engine.fetches.lock();
            for block in fetch.range() {
                table.remove(&(fetch.chunk(), block));
            }
        }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(ChunkId, u32), Arc<Fetch>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block under way or in the cache. In this order: a fetch fills the cache before it leaves the
/// table, so that a block in neither was never asked for.
fn present(
    engine: &Engine,
    table: &HashMap<(ChunkId, u32), Arc<Fetch>>,
    chunk: ChunkId,
    block: u32,
) -> Option<Block> {
    if let Some(fetch) = table.get(&(chunk, block)) {
        return Some(Block::Coming(Arc::clone(fetch), block));
    }
    engine.cache.get(chunk, block).map(Block::Here)
}
