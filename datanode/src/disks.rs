//! The chunk stores of all data directories of the node, as one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cairn_proto::{ChunkId, ErrorKind, v1};
use cairn_runtime::disk::Disk;
use cairn_runtime::threads::Pool;
use futures::future::try_join_all;

use crate::bad::BadChunks;
use crate::store::{
    ChunkReader, DiskStore, Found, Purpose, Recent, StoreError, StoreOptions, SyncCallback, Writer,
    disk_bytes, verify_on_device,
};

/// Threads for work that concerns the node rather than one of its disks.
const THREADS: usize = 2;
/// Work that may wait for one of them; what is more gets `Overloaded`.
const QUEUE: usize = 256;

/// All chunk stores of the node.
pub(crate) struct Disks {
    stores: Vec<Arc<DiskStore>>,
    bad: Arc<BadChunks>,
    /// Data directories that could not be opened.
    missing: Vec<v1::DiskHealth>,
    pool: Pool,
}

impl Disks {
    /// Opens every store. Blocks while indexes are rebuilt.
    ///
    /// A disk that fails while others can be opened is `missing`, as are those that the caller names.
    pub(crate) fn open(
        disks: &[Arc<dyn Disk>],
        mut missing: Vec<v1::DiskHealth>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let bad = Arc::<BadChunks>::default();
        let mut stores = Vec::new();
        let mut failed = None;
        for disk in disks {
            match DiskStore::open(Arc::clone(disk), options, Arc::clone(&bad)) {
                Ok(store) => stores.push(Arc::new(store)),
                Err(error @ StoreError::Io { .. }) => {
                    missing.push(missing_disk(disk.describe(), error.to_string()));
                    failed = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let (true, Some(error)) = (stores.is_empty(), failed) {
            return Err(error);
        }
        let pool = Pool::start("node", THREADS, QUEUE).map_err(|source| StoreError::Io {
            disk: "the process".into(),
            doing: "starting threads",
            source,
        })?;
        let disks = Self { stores, bad, missing, pool };
        // What was set aside in an earlier run may not have been told then.
        for chunk in disks.stores.iter().flat_map(|store| store.set_aside()) {
            if disks.find(chunk).is_some_and(|(_, found)| !found.is_sound()) {
                disks.bad.report(chunk, ErrorKind::Corrupt);
            }
        }
        Ok(disks)
    }

    /// Copies that turned out bad.
    pub(crate) fn bad(&self) -> &BadChunks {
        &self.bad
    }

    /// Reserves room for a new chunk on the writable disk with the most of it.
    pub(crate) fn begin(&self, chunk: ChunkId, set: u64, length: u32) -> Result<Writer, StoreError> {
        // Ids are used once: one in the trash is in use too.
        if self.find(chunk).is_some_and(|(_, found)| !found.quarantined) {
            return Err(StoreError::Exists(chunk));
        }
        self.begin_as(chunk, set, length, Purpose::New)
    }

    /// As [`Self::begin`], also where a copy is held that the new one is to replace.
    pub(crate) fn begin_replacement(
        &self,
        chunk: ChunkId,
        set: u64,
        length: u32,
    ) -> Result<Writer, StoreError> {
        self.begin_as(chunk, set, length, Purpose::Replacement)
    }

    fn begin_as(
        &self,
        chunk: ChunkId,
        set: u64,
        length: u32,
        purpose: Purpose,
    ) -> Result<Writer, StoreError> {
        let mut refused = match self.begin_with_room(chunk, set, length, purpose) {
            Err(refused @ StoreError::NoSpace(_)) => refused,
            other => return other,
        };
        // What is in the trash gives way to what is stored.
        while self.stores.iter().any(|store| store.make_room(disk_bytes(length))) {
            match self.begin_with_room(chunk, set, length, purpose) {
                Err(again @ StoreError::NoSpace(_)) => refused = again,
                other => return other,
            }
        }
        Err(refused)
    }

    fn begin_with_room(
        &self,
        chunk: ChunkId,
        set: u64,
        length: u32,
        purpose: Purpose,
    ) -> Result<Writer, StoreError> {
        if let [only] = self.stores.as_slice() {
            return only.begin(chunk, set, length, purpose);
        }
        let mut by_room: Vec<_> = self.stores.iter().map(|store| (store.room(), store)).collect();
        by_room.sort_by_key(|(room, store)| (store.is_slow(), std::cmp::Reverse(*room)));
        let mut refused = StoreError::NoSpace(disk_bytes(length));
        for (_, store) in by_room {
            match store.begin(chunk, set, length, purpose) {
                Ok(writer) => return Ok(writer),
                Err(error @ StoreError::Exists(_)) => return Err(error),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// The store that holds a chunk: a sound copy before a damaged one, and one on a slow disk last of its
    /// kind.
    pub(crate) fn find(&self, chunk: ChunkId) -> Option<(&Arc<DiskStore>, Found)> {
        let held = self.stores.iter().filter_map(|store| Some((store, store.find(chunk)?)));
        held.min_by_key(|(store, found)| (found.rank(), store.is_slow()))
    }

    /// The stores, one for each disk.
    pub(crate) fn stores(&self) -> &[Arc<DiskStore>] {
        &self.stores
    }

    /// Opens the copy that counts.
    fn open_copy(&self, chunk: ChunkId) -> Result<(&Arc<DiskStore>, ChunkReader), StoreError> {
        let open = || {
            let (store, _) = self.find(chunk).ok_or(StoreError::NotFound(chunk))?;
            Ok((store, store.reader(chunk)?))
        };
        match open() {
            // It may have gone to another disk between the two looks.
            Err(StoreError::NotFound(_)) => open(),
            other => other,
        }
    }

    /// Verifies the copy that is held on the device, and returns it with its CRC-32C.
    pub(crate) async fn verified(&self, chunk: ChunkId) -> Result<(ChunkReader, u32), StoreError> {
        let (store, reader) = self.open_copy(chunk)?;
        let work = move |_: &DiskStore| verify_on_device(reader.clone()).map(|crc| (reader, crc));
        store.run(work).await?
    }

    /// Makes a chunk durable; returns when it is.
    pub(crate) async fn synced(&self, chunk: ChunkId) -> Result<(), StoreError> {
        let (store, _) = self.find(chunk).ok_or(StoreError::NotFound(chunk))?;
        store.synced(chunk).await
    }

    /// Calls back when the chunk is durable.
    pub(crate) fn sync(&self, chunk: ChunkId, done: SyncCallback) {
        match self.find(chunk) {
            Some((store, _)) => store.sync(chunk, done),
            None => done(Err(StoreError::NotFound(chunk))),
        }
    }

    /// A reader with its checksums at hand.
    pub(crate) async fn reader(&self, chunk: ChunkId) -> Result<ChunkReader, StoreError> {
        let (_, mut reader) = self.open_copy(chunk)?;
        reader.prepare().await?;
        Ok(reader)
    }

    /// Verifies a chunk on the device; its CRC-32C.
    pub(crate) async fn verify(&self, chunk: ChunkId) -> Result<u32, StoreError> {
        let (store, reader) = self.open_copy(chunk)?;
        store.run(move |_| verify_on_device(reader)).await?
    }

    /// Deletes chunks wherever they are; durable on return. Those that could not be, with reasons.
    pub(crate) async fn delete(
        &self,
        chunks: Arc<[ChunkId]>,
    ) -> Result<Vec<(ChunkId, StoreError)>, StoreError> {
        let deletions = self.stores.iter().map(|store| {
            let chunks = Arc::clone(&chunks);
            store.run(move |store| store.delete(&chunks))
        });
        Ok(try_join_all(deletions).await?.into_iter().flatten().collect())
    }

    /// Brings chunks back from the trash; durable on return. Those that could not be, with reasons.
    pub(crate) async fn restore(
        &self,
        chunks: Arc<[ChunkId]>,
    ) -> Result<Vec<(ChunkId, StoreError)>, StoreError> {
        let mut left: BTreeMap<ChunkId, StoreError> =
            chunks.iter().map(|&chunk| (chunk, StoreError::NotFound(chunk))).collect();
        for store in &self.stores {
            let wanted: Vec<ChunkId> = left.keys().copied().collect();
            let failed = store.run(move |store| store.restore(&wanted)).await?;
            let mut failed: BTreeMap<_, _> = failed.into_iter().collect();
            left.retain(|chunk, _| failed.contains_key(chunk));
            failed.retain(|_, error| !matches!(error, StoreError::NotFound(_)));
            left.extend(failed);
        }
        Ok(left.into_iter().collect())
    }

    /// Empties the trash of what has been there long enough, step by step.
    pub(crate) async fn empty_trash(&self) -> Result<(), StoreError> {
        for store in &self.stores {
            while store.run(DiskStore::empty_trash).await? {}
        }
        Ok(())
    }

    /// The threads for work that concerns the node rather than one of its disks.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The disks below.
    pub(crate) fn raw(&self) -> Vec<Arc<dyn Disk>> {
        self.stores.iter().map(|store| Arc::clone(store.disk())).collect()
    }

    /// How each disk is.
    pub(crate) fn health(&self) -> Vec<v1::DiskHealth> {
        let opened = self.stores.iter().map(|store| store.health());
        opened.chain(self.missing.iter().cloned()).collect()
    }

    /// Looks how each disk is; `known` is a file that each has.
    pub(crate) async fn check(&self, known: &'static Path) -> Result<(), StoreError> {
        try_join_all(self.stores.iter().map(|store| store.run(|store| store.check(known)))).await?;
        let recent: Vec<Recent> = self.stores.iter().map(|store| store.recent_latency()).collect();
        for (index, store) in self.stores.iter().enumerate() {
            let others = || recent.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, r)| r);
            store.judge_latency(Recent {
                syncs: median(others().filter_map(|recent| recent.syncs)),
                reads: median(others().filter_map(|recent| recent.reads)),
            });
        }
        Ok(())
    }

    /// Chunks held.
    pub(crate) fn chunks(&self) -> u64 {
        self.stores.iter().map(|store| store.chunks()).sum()
    }

    /// The highest id of a chunk that is held in any form; 0 when there is none.
    pub(crate) fn chunk_max(&self) -> u64 {
        self.stores.iter().map(|store| store.chunk_max()).max().unwrap_or(0)
    }

    /// Bytes of the records in use.
    pub(crate) fn used(&self) -> u64 {
        self.stores.iter().map(|store| store.used()).sum()
    }

    /// Seals and syncs all. Blocks.
    pub(crate) fn close(&self) {
        for store in &self.stores {
            store.close();
        }
    }
}

fn median(seconds: impl Iterator<Item = f64>) -> Option<f64> {
    let mut seconds: Vec<f64> = seconds.collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

/// A data directory that could not be opened, as the coordinator is told of it.
pub(crate) fn missing_disk(path: String, fault: String) -> v1::DiskHealth {
    v1::DiskHealth { path, fault, ..v1::DiskHealth::default() }
}
