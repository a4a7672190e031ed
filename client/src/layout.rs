//! Where the bytes of a file lie, as the coordinator answers it.

use std::collections::BTreeMap;

use cairn_proto::{ByteRange, ChunkId, NodeId, ReplicaSetId, v1};

use crate::attr::Attr;
use crate::error::{ClientError, Result};

const PEER: &str = "the coordinator";

/// The extents of a part of a file, and the file's attributes at that moment.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The attributes.
    pub attr: Attr,
    pub(crate) from: u64,
    pub(crate) covered: u64,
    pub(crate) extents: Vec<Extent>,
    pub(crate) chunks: BTreeMap<ChunkId, ChunkInfo>,
}

/// A run of file bytes that lies in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) range: ByteRange,
    pub(crate) chunk: ChunkId,
    pub(crate) chunk_offset: u64,
}

/// A chunk that a file refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkInfo {
    pub(crate) set: ReplicaSetId,
    pub(crate) length: u64,
    pub(crate) missing: Vec<NodeId>,
}

impl Layout {
    /// Checks an answer to a question about `[from, ..)`.
    pub(crate) fn from_wire(from: u64, answer: v1::DownloadFileResponse) -> Result<Self> {
        let attr = Attr::required(answer.attr)?;
        Self::checked(attr, (from, answer.covered), answer.extents, answer.chunks)
    }

    /// The layout of `[from, covered)` of the file with these attributes.
    pub(crate) fn checked(
        attr: Attr,
        (from, covered): (u64, u64),
        named: Vec<v1::Extent>,
        refs: Vec<v1::ChunkRef>,
    ) -> Result<Self> {
        let bad = |what: String| ClientError::protocol(PEER, what);
        let mut chunks = BTreeMap::new();
        for chunk in refs {
            let id = ChunkId::new(chunk.chunk).map_err(|error| bad(error.to_string()))?;
            let info = ChunkInfo {
                set: ReplicaSetId::new(chunk.set).map_err(|error| bad(error.to_string()))?,
                length: chunk.length,
                missing: chunk.missing.iter().filter_map(|node| NodeId::from_wire(node).ok()).collect(),
            };
            chunks.insert(id, info);
        }
        let mut extents = Vec::with_capacity(named.len());
        let mut end = 0;
        for extent in named {
            let range = ByteRange::new(extent.offset, extent.length).filter(|range| range.start() >= end);
            let chunk = ChunkId::new(extent.chunk).ok().filter(|chunk| {
                chunks.get(chunk).is_some_and(|info| {
                    extent.chunk_offset.checked_add(extent.length).is_some_and(|end| end <= info.length)
                })
            });
            let (Some(range), Some(chunk)) = (range, chunk) else {
                return Err(bad(format!("an impossible extent at {}", extent.offset)));
            };
            end = range.end();
            extents.push(Extent { range, chunk, chunk_offset: extent.chunk_offset });
        }
        Ok(Self { attr, from, covered, extents, chunks })
    }
}
