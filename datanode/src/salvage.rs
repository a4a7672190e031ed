//! Chunks of a data directory without a running datanode: for `cairn salvage`.
//!
//! The store is opened as a datanode opens it, on a disk whose changes stay in memory
//! ([`OverlayDisk`]), so that nothing in the directory is touched, whatever state it is in.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::ChunkId;
use cairn_runtime::disk::{OverlayDisk, RealDisk};

use crate::store::{DiskStore, StoreError, StoreOptions};

/// Deleted chunks stay what they are while the tool runs; nothing is written in any case.
const KEEP: std::time::Duration = std::time::Duration::from_secs(1 << 20);

/// The chunks of one data directory.
pub struct Salvage {
    store: DiskStore,
}

impl Salvage {
    /// Opens a data directory for reading. Blocks while its records are read.
    ///
    /// # Errors
    /// The directory can not be read, or is of a newer format.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io {
            disk: directory.display().to_string(),
            doing: "opening it for reading",
            source,
        };
        let disk = RealDisk::open_read_only(directory).map_err(failed)?;
        let options = StoreOptions { segment_size: 256 << 20, reserve: 0, sync: false, trash_time: KEEP };
        let store = DiskStore::open(Arc::new(OverlayDisk::new(Arc::new(disk))), options, Arc::default())?;
        Ok(Self { store })
    }

    /// The ids of all chunks that are held and not set aside, in order.
    pub fn chunks(&self) -> Vec<u64> {
        let held = self.store.held_from(1, usize::MAX);
        held.into_iter().filter(|(_, found)| found.is_sound()).map(|(id, _)| id.get()).collect()
    }

    /// Damaged records that are not among them.
    pub fn damaged(&self) -> u64 {
        self.store.health().quarantined
    }

    /// Reads a chunk and verifies it.
    ///
    /// # Errors
    /// It is not here, or damaged, or the disk can not be read.
    pub async fn read(&self, chunk: u64) -> Result<Vec<Bytes>, StoreError> {
        let id = ChunkId::new(chunk).map_err(|error| StoreError::Unusable(error.to_string()))?;
        let mut reader = self.store.reader(id)?;
        reader.prepare().await?;
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < reader.length() {
            let blocks = reader.read(at, reader.length()).await?;
            at += blocks.data.len() as u64;
            pieces.push(blocks.data);
        }
        Ok(pieces)
    }
}
