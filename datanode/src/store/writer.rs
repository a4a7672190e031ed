//! Writing one chunk: room is reserved first, bytes go to their place as they arrive, and the chunk
//! becomes visible when the last of them is written.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use cairn_proto::ChunkId;
use cairn_proto::checksum::crc32c;
use cairn_proto::limits::BLOCK_SIZE;
use tracing::warn;

use super::Shared;
use super::error::StoreError;
use super::record::{RecordHeader, RecordState, blocks, encode_table, payload_start, record_len};
use super::state::{Entry, SegmentFile, SegmentState, State};
use super::{Failed, Purpose, SPARE_ROOM, record};

/// Up to this size header, checksums and payload go to the disk in one write.
const ONE_WRITE_MAX: usize = BLOCK_SIZE;

/// One chunk on its way to the disk. Dropped before [`Self::finish`], it gives its room back.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    segment: Arc<SegmentFile>,
    header: RecordHeader,
    crcs: Vec<u32>,
    written: u32,
    /// A header is on the disk.
    has_header: bool,
    finished: bool,
}

impl Writer {
    pub(super) fn begin(
        shared: &Arc<Shared>,
        chunk: ChunkId,
        set: u64,
        length: u32,
        purpose: Purpose,
    ) -> Result<Self, StoreError> {
        let needed = record_len(length);
        let mut state = shared.lock();
        if let Some(fault) = &state.fault {
            return Err(shared.faulty(fault));
        }
        let held = state.index.get(&chunk.get()).is_some_and(|entry| !entry.quarantined);
        if (held && purpose == Purpose::New) || state.writing.contains(&chunk.get()) {
            return Err(StoreError::Exists(chunk));
        }
        let segment = segment_with_room(shared, &mut state, needed)?;
        let offset = segment.tail;
        if Entry::new(segment.file.id, offset, length).is_none() {
            return Err(StoreError::NoSpace(needed));
        }
        segment.tail += needed;
        segment.pending.insert(offset);
        let header = RecordHeader {
            state: RecordState::Intent,
            chunk,
            set,
            length,
            table_crc: 0,
            offset,
            watermark: segment.watermark,
        };
        let (file, half_full) = (Arc::clone(&segment.file), segment.room() < segment.allocated / 2);
        state.writing.insert(chunk.get());
        let wake = !state.seal_queue.is_empty() || (half_full && state.spare.is_none());
        drop(state);
        if wake {
            shared.work.notify_one();
        }
        Ok(Self {
            shared: Arc::clone(shared),
            segment: file,
            header,
            crcs: Vec::with_capacity(blocks(length)),
            written: 0,
            has_header: false,
            finished: false,
        })
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        u64::from(self.written)
    }

    /// Appends whole blocks (the last of the chunk may be shorter) with their checksums, which the
    /// caller has verified.
    ///
    /// `NoSpace` or `Io`: nothing of the chunk is kept.
    pub(crate) fn write(&mut self, data: &[u8], crcs: &[u32]) -> Result<(), StoreError> {
        let end = u32::try_from(data.len()).ok().and_then(|len| self.written.checked_add(len));
        assert!(
            end.is_some_and(|end| end <= self.header.length) && crcs.len() == data.len().div_ceil(BLOCK_SIZE),
            "{} bytes with {} checksums at {} of {}",
            data.len(),
            crcs.len(),
            self.written,
            self.header.length
        );
        let first = self.written == 0;
        self.crcs.extend_from_slice(crcs);
        self.written += u32::try_from(data.len()).unwrap_or(u32::MAX); // checked above
        let complete = self.written == self.header.length;
        if first && complete && data.len() <= ONE_WRITE_MAX {
            return self.write_at_once(data);
        }
        if first && !complete {
            // Lets a scan after a crash step over the record.
            self.write_header(RecordState::Intent)?;
        }
        let at = self.header.offset + payload_start(self.header.length) + u64::from(self.written)
            - data.len() as u64;
        self.put(data, at)?;
        if complete { self.write_header(RecordState::Complete) } else { Ok(()) }
    }

    /// Makes the chunk visible. It survives a crash of the process, and power loss after a sync.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        assert!(self.written == self.header.length, "{} of {} bytes", self.written, self.header.length);
        let (chunk, offset) = (self.header.chunk, self.header.offset);
        let mut state = self.shared.lock();
        if let Some(fault) = &state.fault {
            return Err(self.shared.faulty(fault));
        }
        let Some(entry) = Entry::new(self.segment.id, offset, self.header.length) else {
            return Err(StoreError::NoSpace(record_len(self.header.length)));
        };
        self.finished = true;
        state.writing.remove(&chunk.get());
        if let Some(segment) = state.segments.get_mut(&self.segment.id) {
            segment.pending.remove(&offset);
            segment.records.push(chunk);
        }
        state.insert(chunk, entry);
        state.seal_if_done(self.segment.id);
        let wake = !state.seal_queue.is_empty();
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// A small chunk in one system call; the copy costs less than a second call.
    fn write_at_once(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let table = encode_table(&self.crcs);
        self.header.state = RecordState::Complete;
        self.header.table_crc = crc32c(&table);
        let mut record = BytesMut::with_capacity(record::HEADER_LEN + table.len() + data.len());
        record.put_slice(&self.header.encode(self.segment.salt));
        record.put_slice(&table);
        record.resize(usize::try_from(payload_start(self.header.length)).unwrap_or(usize::MAX), 0);
        record.put_slice(data);
        self.has_header = true;
        self.put(&record, self.header.offset)
    }

    fn write_header(&mut self, state: RecordState) -> Result<(), StoreError> {
        self.header.state = state;
        let mut bytes = Vec::new();
        if state == RecordState::Complete {
            let table = encode_table(&self.crcs);
            self.header.table_crc = crc32c(&table);
            bytes.extend_from_slice(&self.header.encode(self.segment.salt));
            bytes.extend_from_slice(&table);
        } else {
            bytes.extend_from_slice(&self.header.encode(self.segment.salt));
        }
        self.has_header = true;
        self.put(&bytes, self.header.offset)
    }

    fn put(&self, data: &[u8], at: u64) -> Result<(), StoreError> {
        self.shared
            .timed_write(|| self.segment.file.write_at(data, at))
            .map_err(|source| self.shared.write_failed("writing", source, record_len(self.header.length)))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let (offset, length) = (self.header.offset, record_len(self.header.length));
        self.header.state = RecordState::Abandoned;
        // A header that says so keeps later starts from taking the gap for damage.
        let rest = length - record::ALIGN;
        let marked = self.shared.timed_write(|| {
            self.segment.file.write_at(&self.header.encode(self.segment.salt), offset)?;
            if rest > 0 { self.segment.file.punch(offset + record::ALIGN, rest) } else { Ok(()) }
        });
        if let Err(error) = marked {
            warn!(disk = %self.shared.name, chunk = %self.header.chunk, %error, "an abandoned record keeps its room");
        }
        let mut state = self.shared.lock();
        state.writing.remove(&self.header.chunk.get());
        if let Some(segment) = state.segments.get_mut(&self.segment.id) {
            segment.pending.remove(&offset);
        }
        state.seal_if_done(self.segment.id);
        drop(state);
        self.shared.work.notify_one();
    }
}

/// The active segment, or the next one when its rest is too short.
fn segment_with_room<'a>(
    shared: &Shared,
    state: &'a mut State,
    needed: u64,
) -> Result<&'a mut SegmentState, StoreError> {
    let fits = |segment: &SegmentState| segment.room() >= needed;
    let active = state.active.filter(|id| state.segments.get(id).is_some_and(fits));
    let id = match active {
        Some(id) => id,
        None => {
            let next = match state.spare.take_if(|spare| fits(spare)) {
                Some(spare) => spare,
                None => {
                    let id = state.next_segment;
                    let made = shared.create_segment_locked(state, id, needed)?;
                    state.next_segment = id.saturating_add(1);
                    made
                }
            };
            if let Some(old) = state.active.take() {
                if let Some(segment) = state.segments.get_mut(&old) {
                    segment.retired = true;
                }
                state.seal_if_done(old);
            }
            let id = next.file.id;
            state.segments.insert(id, next);
            state.active = Some(id);
            id
        }
    };
    state.segments.get_mut(&id).ok_or(StoreError::NoSpace(needed))
}

impl Shared {
    /// As `create_segment`, for a caller that holds the lock.
    fn create_segment_locked(
        &self,
        state: &mut State,
        id: u32,
        needed: u64,
    ) -> Result<SegmentState, StoreError> {
        self.create_segment(id, needed).map_err(|error| match error {
            Failed::Full => StoreError::NoSpace(needed),
            Failed::Io(doing, source) => {
                self.fail(state, format!("{doing}: {source}"));
                self.io(doing, source)
            }
        })
    }

    /// Whether the syncer should prepare the next segment: the active one is half full and there is
    /// plenty of room.
    pub(super) fn wants_spare(&self, state: &State) -> bool {
        let half = state
            .active
            .and_then(|id| state.segments.get(&id))
            .is_some_and(|segment| segment.room() < segment.allocated / 2);
        let available = self.available.load(std::sync::atomic::Ordering::Relaxed);
        half && state.spare.is_none()
            && state.fault.is_none()
            && available >= SPARE_ROOM * self.options.segment_size
    }
}
