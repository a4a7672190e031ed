//! Verified blocks of chunks. Chunks never change, so nothing here is ever stale.

use std::ops::RangeInclusive;

use bytes::Bytes;
use cairn_proto::ChunkId;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// What an entry costs besides its bytes.
const ENTRY_OVERHEAD: usize = 128;

/// Names a block of 64 KiB of a chunk.
type Key = (u64, u32);

/// The blocks used last, bounded by their bytes.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Cache<Key, Bytes>,
}

impl BlockCache {
    pub(crate) fn new(bytes: u64) -> Self {
        let weigh = |_: &Key, block: &Bytes| u32::try_from(block.len() + ENTRY_OVERHEAD).unwrap_or(u32::MAX);
        let blocks = Cache::builder()
            .name("blocks")
            .max_capacity(bytes)
            .weigher(weigh)
            // Not by frequency: what was fetched ahead has never been used and must stay until it is.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { blocks }
    }

    pub(crate) fn get(&self, chunk: ChunkId, block: u32) -> Option<Bytes> {
        self.blocks.get(&(chunk.get(), block))
    }

    pub(crate) fn contains(&self, chunk: ChunkId, block: u32) -> bool {
        self.blocks.contains_key(&(chunk.get(), block))
    }

    /// Keeps a copy of a block and returns it. A copy, because a slice of a received message would keep
    /// the whole buffer of the connection alive, many times what is accounted for here.
    pub(crate) fn insert(&self, chunk: ChunkId, block: u32, data: &[u8]) -> Bytes {
        let data = Bytes::copy_from_slice(data);
        self.blocks.insert((chunk.get(), block), data.clone());
        data
    }

    /// Does not keep these any more: nobody is expected to come back for them.
    pub(crate) fn forget(&self, chunk: ChunkId, blocks: RangeInclusive<u32>) {
        blocks.for_each(|block| self.blocks.invalidate(&(chunk.get(), block)));
    }

    /// Bytes kept, about.
    pub(crate) fn weight(&self) -> u64 {
        self.blocks.weighted_size()
    }
}
