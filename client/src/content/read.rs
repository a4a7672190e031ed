//! Reading: through the layers, and ahead.

use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use cairn_proto::{ByteRange, ErrorKind};

use super::extents::Part;
use super::{FileContent, State};
use crate::error::Result;
use crate::layout::{ChunkInfo, Extent};
use crate::reader::{Block, Fetches, blocks_in, trim};
use crate::retry::same_call_may_succeed;

/// Extents in one answer of the coordinator.
const LAYOUT_EXTENTS: u32 = 1024;
/// Bytes of a file that is fetched when it is opened: two blocks.
const SHORT: u64 = 128 << 10;
/// How often a layout that names deleted chunks is fetched anew.
const STALE_MAX: usize = 3;

/// A part of an answer.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    Zeros(usize),
    Chunk(Extent, ChunkInfo),
}

impl FileContent {
    /// Reads when everything that is asked for is in memory.
    ///
    /// An error that a write of this file has met in the background and that nobody was told of is given here, too.
    pub fn try_read(&self, offset: u64, len: usize) -> Option<Result<Bytes>> {
        let pieces = match self.look(offset, len) {
            Ok(Ok(pieces)) => pieces,
            Ok(Err(_unknown)) => return None,
            Err(error) => return Some(Err(error)),
        };
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => parts.push(bytes),
                Piece::Zeros(len) => parts.push(Bytes::from(vec![0; len])),
                Piece::Chunk(extent, _) => {
                    let (first, last) = blocks_in(&extent);
                    for block in first..=last {
                        let data = self.engine.cache.get(extent.chunk, block)?;
                        parts.push(trim(&extent, block, &data));
                    }
                }
            }
        }
        self.follow(offset, len);
        Some(Ok(join(parts)))
    }

    /// Reads `len` bytes; fewer only at the end of the file. All of it is held in memory at once.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut patience = self.engine.patience("read file content");
        let mut stale = 0;
        loop {
            let error = match self.read_once(offset, len).await {
                Ok(data) => return Ok(data),
                Err(error) => error,
            };
            self.check_failures()?; // no read makes up for a lost write
            match error.kind() {
                // Overwritten by another client and deleted meanwhile, as far as one can see from here.
                ErrorKind::ChunkNotFound if stale < STALE_MAX => {
                    stale += 1;
                    self.lock().extents.clear();
                    patience.pause(&error).await?;
                }
                kind if same_call_may_succeed(kind) => patience.pause(&error).await?,
                _ => return Err(error),
            }
        }
    }

    async fn read_once(&self, offset: u64, len: usize) -> Result<Bytes> {
        let pieces = loop {
            match self.look(offset, len)? {
                Ok(pieces) => break pieces,
                Err(unknown) => self.fetch_layout(unknown).await?,
            }
        };
        // Everything is asked for before anything is waited for.
        let mut waiting = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let blocks = match piece {
                Piece::Chunk(extent, info) => {
                    Fetches::blocks(&self.engine, extent.chunk, info, blocks_in(extent))
                }
                Piece::Bytes(_) | Piece::Zeros(_) => Vec::new(),
            };
            waiting.push(blocks);
        }
        self.follow(offset, len);
        let mut parts = Vec::with_capacity(pieces.len());
        for (piece, blocks) in pieces.into_iter().zip(waiting) {
            match piece {
                Piece::Bytes(bytes) => parts.push(bytes),
                Piece::Zeros(len) => parts.push(Bytes::from(vec![0; len])),
                Piece::Chunk(extent, _) => wait_for(&extent, blocks, &mut parts).await?,
            }
        }
        Ok(join(parts))
    }

    /// Where the bytes of a read are; a range whose layout has to be fetched first; or the error of a lost
    /// write that nobody was told of.
    fn look(&self, offset: u64, len: usize) -> Result<std::result::Result<Vec<Piece>, ByteRange>> {
        self.read_until.fetch_max(offset.saturating_add(len as u64), Ordering::Relaxed);
        let state = self.lock();
        state.failures.check()?;
        let end = state.size().min(offset.saturating_add(len as u64));
        let mut pieces = Vec::new();
        let found = match ByteRange::between(offset, end) {
            Some(range) => state.buffered(range, &mut pieces),
            None => Ok(()),
        };
        Ok(found.map(|()| pieces))
    }

    /// Learns the layout around `range`.
    pub(super) async fn fetch_layout(&self, range: ByteRange) -> Result<()> {
        let _alone = self.layouts.lock().await;
        if !self.lock().lacks_layout(range) {
            return Ok(()); // somebody else has fetched it meanwhile
        }
        // Up to the end of the file, as far as one answer goes.
        let length = i64::MAX as u64 - range.start();
        self.engine.behind.applied(self.inode).await?;
        let coordinator = &self.engine.coordinator;
        let layout = coordinator.layout(self.inode, range.start(), length, LAYOUT_EXTENTS).await?;
        let mut state = self.lock();
        state.adopt(&layout.attr, false);
        state.learn(&layout);
        drop(state);
        self.engine.trim_layouts(self.inode);
        Ok(())
    }

    /// Begins to fetch a file that is sure to be read soon, when it is short and its layout is known: the bytes are
    /// then on their way before the reader asks.
    pub(crate) fn fetch_if_short(&self) {
        let parts = {
            let state = self.lock();
            let size = state.size();
            if size > SHORT || state.is_dirty() {
                return;
            }
            let parts = ByteRange::between(0, size).map(|all| state.extents.parts(all)).unwrap_or_default();
            parts.into_iter().map(|part| state.with_info(part)).collect::<Vec<_>>()
        };
        for part in parts {
            if let (Part::Data(extent), Some(info)) = part {
                Fetches::ahead(&self.engine, extent.chunk, &info, blocks_in(&extent));
            }
        }
    }

    /// Fetches ahead of a sequential reader, and drops behind it.
    fn follow(&self, offset: u64, len: usize) {
        let engine = &self.engine;
        let limit = engine.config.read_ahead.as_u64().min(engine.budget.fetches.size() as u64 / 2);
        let (ahead, behind) = {
            let mut state = self.lock();
            // Only what is committed can be fetched.
            let size = state.attr.size;
            let step = state.ahead.on_read(offset, len as u64, size, limit);
            let parts = |range| state.extents.parts(range).into_iter().map(|part| state.with_info(part));
            (
                step.ahead.map(|range| (range, parts(range).collect::<Vec<_>>())),
                step.behind.map(|range| parts(range).collect::<Vec<_>>()),
            )
        };
        for (part, _) in behind.into_iter().flatten() {
            if let Part::Data(extent) = part {
                let (first, last) = blocks_in(&extent);
                engine.cache.forget(extent.chunk, first..=last);
            }
        }
        if let Some((range, parts)) = ahead {
            self.read_ahead(range, parts);
        }
    }

    fn read_ahead(&self, range: ByteRange, parts: Vec<(Part, Option<ChunkInfo>)>) {
        let engine = &self.engine;
        for (part, info) in parts {
            let fetched = match (part, info) {
                (Part::Data(extent), Some(info)) => {
                    Fetches::ahead(engine, extent.chunk, &info, blocks_in(&extent))
                }
                (Part::Unknown(unknown), _) => {
                    if let Ok(this) = self.shared() {
                        drop(engine.spawn(async move { this.fetch_layout(unknown).await }));
                    }
                    false
                }
                (Part::Data(_), None) | (Part::Hole(_), _) => true,
            };
            if !fetched {
                return self.lock().ahead.not_fetched(range);
            }
        }
    }
}

impl State {
    fn lacks_layout(&self, range: ByteRange) -> bool {
        let parts = self.extents.parts(range);
        matches!(parts.first(), Some(Part::Unknown(_)))
    }

    fn with_info(&self, part: Part) -> (Part, Option<ChunkInfo>) {
        let info = match &part {
            Part::Data(extent) => self.extents.chunk(extent.chunk).cloned(),
            Part::Hole(_) | Part::Unknown(_) => None,
        };
        (part, info)
    }

    /// The buffer, and below it the rest.
    fn buffered(&self, range: ByteRange, pieces: &mut Vec<Piece>) -> std::result::Result<(), ByteRange> {
        let mut at = range.start();
        for (start, bytes) in self.dirty.within(range) {
            if let Some(gap) = ByteRange::between(at, start) {
                self.flying(self.flights.len(), gap, pieces)?;
            }
            at = start + bytes.len() as u64;
            // The buffer may be overwritten in place, so that its bytes can not be shared.
            pieces.push(Piece::Bytes(Bytes::copy_from_slice(bytes)));
        }
        match ByteRange::between(at, range.end()) {
            Some(rest) => self.flying(self.flights.len(), rest, pieces),
            None => Ok(()),
        }
    }

    /// The newest `depth` flights, and below them the extents.
    fn flying(
        &self,
        depth: usize,
        range: ByteRange,
        pieces: &mut Vec<Piece>,
    ) -> std::result::Result<(), ByteRange> {
        let Some(below) = depth.checked_sub(1) else { return self.committed(range, pieces) };
        let mut at = range.start();
        for (start, bytes) in self.flights[below].within(range) {
            if let Some(gap) = ByteRange::between(at, start) {
                self.flying(below, gap, pieces)?;
            }
            at = start + bytes.len() as u64;
            pieces.push(Piece::Bytes(bytes));
        }
        match ByteRange::between(at, range.end()) {
            Some(rest) => self.flying(below, rest, pieces),
            None => Ok(()),
        }
    }

    fn committed(&self, range: ByteRange, pieces: &mut Vec<Piece>) -> std::result::Result<(), ByteRange> {
        let zeros = |range: ByteRange| Piece::Zeros(usize::try_from(range.len()).unwrap_or(usize::MAX));
        let inside = ByteRange::between(range.start(), range.end().min(self.attr.size));
        let parts = inside.map(|inside| self.extents.parts(inside)).unwrap_or_default();
        for part in parts {
            let (part, info) = self.with_info(part);
            match (part, info) {
                (Part::Data(extent), Some(info)) => pieces.push(Piece::Chunk(extent, info)),
                (Part::Hole(hole), _) => pieces.push(zeros(hole)),
                (Part::Unknown(unknown), _) => return Err(unknown),
                (Part::Data(extent), None) => return Err(extent.range),
            }
        }
        pieces.extend(ByteRange::between(range.start().max(self.attr.size), range.end()).map(zeros));
        Ok(())
    }
}

async fn wait_for(extent: &Extent, blocks: Vec<Block>, parts: &mut Vec<Bytes>) -> Result<()> {
    let (first, _) = blocks_in(extent);
    for (index, block) in (first..).zip(blocks) {
        let data = block.wait().await?;
        parts.push(trim(extent, index, &data));
    }
    Ok(())
}

/// One piece is handed on as it is; several are copied together, since a kernel takes one.
fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() <= 1 {
        return parts.pop().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}
