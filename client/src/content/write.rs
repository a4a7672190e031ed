//! Writing: into the buffer, and out of it.

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ByteRange, ErrorKind};
use cairn_runtime::clock;

use super::{FileContent, State, Told};
use crate::budget::Reservation;
use crate::error::{ClientError, Result};
use crate::writer::dirty::{self, cost_max};
use crate::writer::flight::{self, Flight};

/// Larger writes are taken piece by piece, so that one does not need all the memory at once.
const PIECE: usize = 1 << 20;
/// A file with this many chunks' worth of scattered writes, or this many runs, is sent on its way.
const SCATTERED_CHUNKS: u64 = 4;
const RUNS_MAX: usize = 8192;

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From this byte of the file on.
    At(u64),
    /// To the end of the file as it is when the write is taken: a truncation that comes before it counts (O_APPEND).
    End,
}

impl From<u64> for Place {
    fn from(offset: u64) -> Self {
        Self::At(offset)
    }
}

impl Place {
    /// `FileTooLarge`: it is known already that the write ends past the largest size.
    fn check(self, len: usize) -> Result<()> {
        match self {
            Self::At(offset) => check(offset, len),
            Self::End => Ok(()),
        }
    }

    /// Where the next piece goes when one of `len` bytes was taken.
    fn behind(self, len: usize) -> Self {
        match self {
            Self::At(offset) => Self::At(offset + len as u64),
            Self::End => Self::End,
        }
    }
}

/// What falls away from a file with a write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Drops {
    /// Set-user-ID, and set-group-ID where the group may execute.
    pub(crate) set_id: bool,
    /// `security.capability`.
    pub(crate) capability: bool,
}

impl std::ops::BitOrAssign for Drops {
    fn bitor_assign(&mut self, other: Self) {
        self.set_id |= other.set_id;
        self.capability |= other.capability;
    }
}

impl FileContent {
    /// Buffers a write when that needs no waiting. `Ok(false)`: nothing was taken, use [`Self::write`].
    ///
    /// An error that an earlier write of this file met in the background is reported here, once to each
    /// descriptor.
    pub fn try_write(&self, told: &Told, place: impl Into<Place>, data: &[u8]) -> Result<bool> {
        self.try_write_for(told, Drops::default(), place.into(), data)
    }

    /// [`Self::try_write`] by somebody whose writes take something from the file.
    pub(crate) fn try_write_for(&self, told: &Told, drops: Drops, place: Place, data: &[u8]) -> Result<bool> {
        place.check(data.len())?;
        if data.is_empty() {
            return Ok(true);
        }
        if self.engine.lacks_space() {
            return Ok(false);
        }
        let Some(memory) = self.engine.budget.writes.try_take(cost_max(data.len())) else { return Ok(false) };
        Ok(self.buffer(told, drops, place, data, memory)?.is_none())
    }

    /// `write_for` without a descriptor.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.write_for(&self.told, Drops::default(), Place::At(offset), data).await
    }

    /// Buffers a write, waiting for memory. Taken piece by piece when it is large.
    ///
    /// While the cluster has no room it is also stored, so that `NoSpace` is told here.
    pub(crate) async fn write_for(
        &self,
        told: &Told,
        drops: Drops,
        mut place: Place,
        data: Bytes,
    ) -> Result<()> {
        place.check(data.len())?;
        for piece in data.chunks(PIECE) {
            let mut memory = Some(self.wait_for_memory(cost_max(piece.len())).await?);
            while let Some(taken) = memory.take() {
                let released = self.released.notified();
                memory = self.buffer(told, drops, place, piece, taken)?;
                if memory.is_some() {
                    let _ = clock::timeout(crate::retry::TRY_TIME, released).await;
                }
            }
            place = place.behind(piece.len());
        }
        if self.engine.lacks_space() {
            return self.flush_for(told).await;
        }
        Ok(())
    }

    async fn wait_for_memory(&self, bytes: usize) -> Result<Reservation> {
        let writes = &self.engine.budget.writes;
        if let Some(memory) = writes.try_take(bytes) {
            return Ok(memory);
        }
        let mut patience = self.engine.patience("find memory for written data");
        loop {
            self.engine.start_all();
            match clock::timeout(patience.try_time(), writes.take(bytes)).await {
                Ok(memory) => return Ok(memory),
                Err(_) => {
                    let full =
                        ClientError::new(ErrorKind::Unavailable, "all memory for written data is in use");
                    patience.pause(&full).await?;
                }
            }
        }
    }

    /// Takes a write into the buffer; what fills a chunk leaves. Gives the memory back when the
    /// file is held.
    fn buffer(
        &self,
        told: &Told,
        drops: Drops,
        place: Place,
        data: &[u8],
        memory: Reservation,
    ) -> Result<Option<Reservation>> {
        let shared = self.shared()?;
        let mut leaving = Vec::new();
        {
            let mut state = self.lock();
            state.failures.tell(told)?;
            if state.held {
                return Ok(Some(memory));
            }
            let offset = match place {
                Place::At(offset) => offset,
                Place::End => state.size(),
            };
            check(offset, data.len())?;
            if !state.is_dirty() {
                self.engine.add_dirty(Arc::clone(&shared));
            }
            state.memory.absorb(memory);
            state.written_ns = self.engine.coordinator.session().clock.now_ns();
            state.drops |= drops;
            self.insert(&mut state, offset, data, &mut leaving);
            if !state.dirty.is_empty() {
                state.dirty_since.get_or_insert_with(clock::now);
            }
            let cost = state.dirty.cost();
            state.memory.shrink_to(cost);
        }
        self.engine.planner.warm();
        for flight in leaving {
            self.engine.writer.submit(&self.engine, flight);
        }
        Ok(None)
    }

    /// Chunk by chunk: when a stream has come to the end of one, it leaves together with everything older, so that nothing
    /// overtakes.
    fn insert(&self, state: &mut State, mut offset: u64, mut data: &[u8], leaving: &mut Vec<Arc<Flight>>) {
        let size = self.engine.chunk_size;
        while !data.is_empty() {
            let boundary = (offset / size + 1) * size;
            let len = data.len().min(usize::try_from(boundary - offset).unwrap_or(usize::MAX));
            state.dirty.insert(offset, &data[..len]);
            offset += len as u64;
            data = &data[len..];
            let ends_chunk = offset == boundary;
            // Half is enough: a stream may have begun in the middle of this chunk.
            let half = ByteRange::between(boundary - size / 2, boundary);
            let full = || half.is_some_and(|half| state.dirty.covers(half));
            let scattered =
                state.dirty.bytes() as u64 > SCATTERED_CHUNKS * size || state.dirty.runs() > RUNS_MAX;
            if scattered || ends_chunk && full() {
                leaving.extend(self.take_flights(state, false));
            }
        }
    }

    /// Everything buffered, as flights behind those before them, each of which fits one commit.
    fn take_flights(&self, state: &mut State, durable: bool) -> Vec<Arc<Flight>> {
        if state.dirty.is_empty() {
            return Vec::new();
        }
        let Some(file) = self.this.upgrade() else { return Vec::new() };
        let runs = state.dirty.take();
        state.dirty_since = None;
        let drops = std::mem::take(&mut state.drops);
        let mut taken = Vec::with_capacity(1);
        for runs in flight::groups(runs, self.engine.chunk_size) {
            let memory = state.memory.split(dirty::cost_of(&runs));
            let previous = state.flights.back().cloned();
            let flight =
                Flight::new(Arc::clone(&file), runs, state.written_ns, durable, drops, previous, memory);
            state.flights.push_back(Arc::clone(&flight));
            taken.push(flight);
        }
        taken
    }

    /// Sends everything buffered on its way, without waiting; callable from any thread. The last flight, if there
    /// was anything to send.
    pub(crate) fn start_flush(&self, durable: bool) -> Option<Arc<Flight>> {
        let flights = {
            let mut state = self.lock();
            // Who holds the file empties it.
            if state.held { Vec::new() } else { self.take_flights(&mut state, durable) }
        };
        let last = flights.last().cloned();
        for flight in flights {
            self.engine.writer.submit(&self.engine, flight);
        }
        last
    }

    /// For who holds the file: empties the buffer, and waits until everything is committed or has failed.
    pub(super) async fn drain(&self) {
        let flights = self.take_flights(&mut self.lock(), false);
        for flight in flights {
            self.engine.writer.submit(&self.engine, flight);
        }
        while let Some(last) = self.last_flight() {
            last.wait().await;
        }
        assert!(!self.is_dirty(), "inode {} was written while it was held", self.inode);
    }

    fn last_flight(&self) -> Option<Arc<Flight>> {
        self.lock().flights.back().cloned()
    }

    /// Waits until everything buffered so far is committed or has failed; errors stay for the next
    /// one who asks for them. The last flight that left for it, if any had to.
    pub(crate) async fn settle(&self, durable: bool) -> Option<Arc<Flight>> {
        let mut left = None;
        loop {
            let released = self.released.notified();
            left = self.start_flush(durable).or(left);
            let (last, blocked) = {
                let state = self.lock();
                (state.flights.back().cloned(), state.held && !state.dirty.is_empty())
            };
            match last {
                Some(last) => last.wait().await,
                None if blocked => {
                    let _ = clock::timeout(crate::retry::TRY_TIME, released).await;
                }
                None => return left,
            }
            if !blocked {
                return left;
            }
        }
    }

    /// [`Self::flush_for`] without a descriptor.
    pub async fn flush(&self) -> Result<()> {
        self.flush_for(&self.told).await
    }

    /// What close(2) promises: everything is stored and committed. Reports background errors, once to each
    /// descriptor. With `durable_close` it promises what [`Self::fsync_for`] does.
    pub async fn flush_for(&self, told: &Told) -> Result<()> {
        if self.engine.config.durable_close {
            return self.fsync_for(told).await;
        }
        self.settle(false).await;
        self.lock().failures.tell(told)
    }

    /// What [`Self::flush_for`] does, for a file whose last descriptor is gone: an error stays for the next one
    /// who asks. Whether there is none.
    pub(crate) async fn store_untold(&self) -> bool {
        self.settle(self.engine.config.durable_close).await;
        self.check_failures().is_ok()
    }

    /// [`Self::fsync_for`] without a descriptor.
    pub async fn fsync(&self) -> Result<()> {
        self.fsync_for(&self.told).await
    }

    /// What fsync(2) promises: everything committed, by whomever, and surviving the power loss of all machines
    /// and the loss of all but one of those that stored it. Reports background errors, once to each descriptor.
    pub async fn fsync_for(&self, told: &Told) -> Result<()> {
        self.fsync_knowing(told, || false).await
    }

    /// The same. `is_alone`: nobody else can have changed the file until now, so that what is known of it here is
    /// all there is.
    pub(crate) async fn fsync_knowing(&self, told: &Told, is_alone: impl FnOnce() -> bool) -> Result<()> {
        let left = self.settle(true).await;
        let version = {
            let mut state = self.lock();
            state.failures.tell(told)?;
            let is_known = state.synced == Some(state.attr.version);
            // A commit that this call has sent says how it stands; of one sent before, others may have committed
            // since.
            if left.is_some_and(|flight| flight.has_left_synced()) || is_known && is_alone() {
                return Ok(());
            }
            state.attr.version
        };
        self.engine.behind.applied(self.inode).await?;
        self.engine.coordinator.sync(self.inode).await?;
        self.lock().know_synced(version);
        Ok(())
    }
}

fn check(offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= FILE_SIZE_MAX => Ok(()),
        _ => Err(ClientError::new(ErrorKind::FileTooLarge, "a write past 2^63 - 1")),
    }
}
