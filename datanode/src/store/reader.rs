//! Reading chunks: from memory where the kernel has the pages, else on the threads of its disk;
//! every block is verified before it is handed out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use cairn_proto::ChunkId;
use cairn_proto::checksum::{combine_blocks, verify_blocks};
use cairn_proto::limits::{BLOCK_SIZE, FRAME_SIZE};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::disk::DiskFile;

use super::Shared;
use super::error::StoreError;
use super::record::{HEADER_LEN, RecordHeader, RecordState, blocks, decode_table, payload_start};
use super::state::{Entry, SegmentFile};

/// Header, checksums and payload are fetched in one read when they are no larger than this.
const ONE_READ_MAX: u64 = 2 * BLOCK_SIZE as u64;

/// So much of what was asked for is read ahead on a disk, once a part of it is not in memory.
const AHEAD_MAX: u64 = 2 << 20;

/// Reads one chunk. Holds the segment open, so that the chunk can be deleted meanwhile.
#[derive(Clone)]
pub(crate) struct ChunkReader {
    shared: Arc<Shared>,
    segment: Arc<SegmentFile>,
    chunk: ChunkId,
    entry: Entry,
    /// The replica set that it was stored for, once the header is read.
    set: u64,
    crcs: Vec<u32>,
    /// The whole record, when it is small.
    record: Option<Bytes>,
    /// The offset in the segment up to which was read ahead.
    ahead: Arc<AtomicU64>,
}

/// Whole blocks of a chunk, verified.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    pub(crate) offset: u64,
    pub(crate) data: Bytes,
    pub(crate) crcs: Vec<u32>,
}

impl ChunkReader {
    pub(super) fn new(shared: &Arc<Shared>, chunk: ChunkId) -> Result<Self, StoreError> {
        let state = shared.lock();
        let entry = *state.index.get(&chunk.get()).ok_or(StoreError::NotFound(chunk))?;
        if entry.trash {
            return Err(StoreError::NotFound(chunk));
        }
        if entry.quarantined {
            let what = "it was set aside earlier".into();
            return Err(StoreError::Corrupt { chunk, disk: shared.name.clone(), what });
        }
        let segment = state.segments.get(&entry.segment).ok_or(StoreError::NotFound(chunk))?;
        let segment = Arc::clone(&segment.file);
        Ok(Self {
            shared: Arc::clone(shared),
            segment,
            chunk,
            entry,
            set: 0,
            crcs: Vec::new(),
            record: None,
            ahead: Arc::default(),
        })
    }

    /// Bytes of the chunk.
    pub(crate) fn length(&self) -> u64 {
        self.entry.length.into()
    }

    /// The replica set that it was stored for; known after [`Self::prepare`].
    pub(crate) fn set(&self) -> u64 {
        self.set
    }

    /// Fetches the checksums; needed before [`Self::read`].
    pub(crate) async fn prepare(&mut self) -> Result<(), StoreError> {
        let payload = payload_start(self.entry.length);
        let whole = payload + u64::from(self.entry.length);
        let table_end = HEADER_LEN + 4 * blocks(self.entry.length);
        let wanted = if whole <= ONE_READ_MAX { whole as usize } else { table_end };
        let head = self.fetch(&self.segment.file, self.entry.offset(), wanted, 0).await?;
        self.adopt(head, whole <= ONE_READ_MAX)
    }

    /// Verifies header and table.
    fn adopt(&mut self, head: Bytes, is_whole: bool) -> Result<(), StoreError> {
        let header = RecordHeader::decode(&head, self.segment.salt, self.entry.offset())
            .map_err(|_| self.damaged("its header is unreadable"))?;
        let fits = header.chunk == self.chunk
            && header.length == self.entry.length
            && header.state == RecordState::Complete;
        if !fits {
            return Err(self.damaged("its header is another record's"));
        }
        self.set = header.set;
        self.crcs = decode_table(&head[HEADER_LEN..], &header)
            .ok_or_else(|| self.damaged("its table of checksums is damaged"))?;
        self.record = is_whole.then_some(head);
        Ok(())
    }

    /// Fetches and verifies the blocks from `offset` (a multiple of 64 KiB within the chunk), at most
    /// one frame and not past `end`, rounded up to whole blocks.
    pub(crate) async fn read(&self, offset: u64, end: u64) -> Result<Blocks, StoreError> {
        let length = self.length();
        assert!(
            offset.is_multiple_of(BLOCK_SIZE as u64) && offset < end && end <= length,
            "{offset}..{end} of {length}"
        );
        let stop = end.next_multiple_of(BLOCK_SIZE as u64).min(length).min(offset + FRAME_SIZE as u64);
        let wanted = (stop - offset) as usize;
        let start = payload_start(self.entry.length) + offset;
        let data = match &self.record {
            Some(record) => record.slice(start as usize..start as usize + wanted),
            None => {
                let file = self.segment.scattered(&*self.shared.disk);
                let start = self.entry.offset() + start;
                self.fetch(file, start, wanted, start + (end - offset)).await?
            }
        };
        let first = (offset / BLOCK_SIZE as u64) as usize;
        let crcs = self.crcs[first..first + wanted.div_ceil(BLOCK_SIZE)].to_vec();
        if !planted(Bug::ChecksumSkipped) && !planted(Bug::RepairUnverified) {
            verify_blocks(&data, &crcs)
                .map_err(|mismatch| self.damaged(&format!("at {offset}: {mismatch}")))?;
        }
        Ok(Blocks { offset, data, crcs })
    }

    /// `end`: where in the segment ends what will be fetched next; the disk reads on up to there.
    async fn fetch(
        &self,
        file: &Arc<dyn DiskFile>,
        offset: u64,
        len: usize,
        end: u64,
    ) -> Result<Bytes, StoreError> {
        let mut buffer = BytesMut::zeroed(len);
        let result = match file.try_read_at(&mut buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let (shared, file, ahead) =
                    (Arc::clone(&self.shared), Arc::clone(file), Arc::clone(&self.ahead));
                let read = move || {
                    read_on(&*file, &ahead, offset + len as u64, end);
                    shared.timed_read(&*file, &mut buffer, offset).map(|()| buffer)
                };
                self.shared.run(read).await?
            }
            other => other.map(|()| buffer),
        };
        result.map(BytesMut::freeze).map_err(|error| self.unread(offset, &error))
    }

    /// Sets the record aside for a reason that only the caller knows: the copy is sound in itself and yet
    /// not what was committed. Blocks.
    pub(crate) fn set_aside(&self, what: &str) {
        self.damaged(what);
    }

    /// A read failed: the disk's fault, unless the file merely ends too early.
    fn unread(&self, offset: u64, error: &io::Error) -> StoreError {
        if error.kind() != io::ErrorKind::UnexpectedEof {
            self.shared.on_read_fault(error);
        }
        self.damaged(&format!("reading at {offset}: {error}"))
    }

    /// Sets the record aside, unless it was deleted under our hands, for good or into the trash: then it is
    /// the deletion's mark that does not fit.
    fn damaged(&self, what: &str) -> StoreError {
        let entry = self.shared.lock().index.get(&self.chunk.get()).copied();
        if entry.is_some_and(|entry| entry.same_place(self.entry) && !entry.trash) {
            self.shared.quarantine(self.chunk, self.entry, what)
        } else {
            StoreError::NotFound(self.chunk)
        }
    }

    /// Reads and verifies everything. Blocks.
    fn verify_blocking(&mut self) -> Result<u32, StoreError> {
        let (shared, segment) = (Arc::clone(&self.shared), Arc::clone(&self.segment));
        let fetch = |offset: u64, len: usize| {
            let mut buffer = BytesMut::zeroed(len);
            shared.timed_read(&*segment.file, &mut buffer, offset).map(|()| buffer.freeze())
        };
        let table_end = HEADER_LEN + 4 * blocks(self.entry.length);
        let head = fetch(self.entry.offset(), table_end).map_err(|error| self.unread(0, &error))?;
        self.adopt(head, false)?;
        let start = self.entry.offset() + payload_start(self.entry.length);
        let per_frame = FRAME_SIZE / BLOCK_SIZE;
        for (frame, crcs) in self.crcs.chunks(per_frame).enumerate() {
            let offset = frame * FRAME_SIZE;
            let len = FRAME_SIZE.min(self.entry.length as usize - offset);
            let data =
                fetch(start + offset as u64, len).map_err(|error| self.unread(offset as u64, &error))?;
            verify_blocks(&data, crcs)
                .map_err(|mismatch| self.damaged(&format!("at {offset}: {mismatch}")))?;
        }
        Ok(combine_blocks(&self.crcs, self.length()))
    }

    /// CRC-32C of the whole chunk, from the checksums of its blocks.
    pub(crate) fn whole_crc(&self) -> u32 {
        combine_blocks(&self.crcs, self.length())
    }
}

/// Has what follows read, up to `end`, unless that was done before. Blocks.
fn read_on(file: &dyn DiskFile, ahead: &AtomicU64, offset: u64, end: u64) {
    let end = end.min(offset + AHEAD_MAX);
    if offset < end && ahead.load(Ordering::Relaxed) <= offset {
        ahead.store(end, Ordering::Relaxed);
        // Advice only.
        let _ = file.read_ahead(offset, end - offset);
    }
}

/// Verifies every block of a chunk as the device holds it, past the page cache (as far as it is
/// written back). Returns the CRC-32C of the whole. Blocks.
pub(crate) fn verify_on_device(mut reader: ChunkReader) -> Result<u32, StoreError> {
    let (offset, length) = (reader.entry.offset(), reader.entry.record_len());
    // Advice only: where it is refused, the cached pages are verified.
    let _ = reader.segment.file.drop_cache(offset, length);
    reader.verify_blocking()
}
