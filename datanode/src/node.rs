//! What all parts of a running datanode share.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::{ErrorKind, NodeId, WireError, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::disks::Disks;
use crate::identity::{self, Fence};
use crate::map::Maps;
use crate::replication::Partners;
use crate::store::StoreError;

/// Unit of the memory budget's permits.
const MEMORY_UNIT: usize = 1 << 10;
/// `RetrieveChunk` streams at once, each holding some frames; others wait, then get `Overloaded`.
const READS_MAX: usize = 128;

/// What all parts of a running datanode share.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) disks: Disks,
    pub(crate) maps: Maps,
    pub(crate) partners: Partners,
    /// Streams of chunks under way.
    pub(crate) streams: AtomicU32,
    pub(crate) reads: Arc<Semaphore>,
    /// Cancelled when no new chunks are to be taken.
    pub(crate) stop: CancellationToken,
    pub(crate) facts: Facts,
    memory: Arc<Semaphore>,
    memory_total: u32,
    fence: Mutex<Fence>,
}

/// What the node tells others about itself.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) address: String,
    pub(crate) metrics_address: String,
    pub(crate) labels: std::collections::BTreeMap<String, String>,
}

impl Node {
    pub(crate) fn new(
        id: NodeId,
        disks: Disks,
        partners: Partners,
        facts: Facts,
        memory_bytes: u64,
        fence: Fence,
        stop: CancellationToken,
    ) -> Self {
        let units = u32::try_from(memory_bytes / MEMORY_UNIT as u64).unwrap_or(u32::MAX);
        Self {
            id,
            disks,
            maps: Maps::new(id),
            partners,
            streams: AtomicU32::new(0),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            stop,
            facts,
            memory: Arc::new(Semaphore::new(units as usize)),
            memory_total: units,
            fence: Mutex::new(fence),
        }
    }

    /// Waits for memory for `bytes` that others have to take before it is free again.
    ///
    /// Only frames from clients are counted: those from other datanodes are written and dropped, and
    /// must not wait for memory that is freed only when *they* are answered.
    pub(crate) async fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX).min(self.memory_total);
        // The semaphore is never closed.
        Arc::clone(&self.memory).acquire_many_owned(units).await.ok()
    }

    /// Checks that a deletion is not older than what this node has seen, and records what is new.
    /// Durable on return. Blocks.
    ///
    /// `StaleEpoch`: delete nothing.
    pub(crate) fn pass_fence(&self, asked: Fence) -> Result<(), WireError> {
        let mut fence = self.fence.lock().unwrap_or_else(PoisonError::into_inner);
        if asked < *fence {
            let text = format!(
                "term {} epoch {} is behind term {} epoch {}",
                asked.term, asked.epoch, fence.term, fence.epoch
            );
            return Err(WireError::new(ErrorKind::StaleEpoch, text));
        }
        self.raise(&mut fence, asked).map_err(|error| error.to_wire())
    }

    /// Records that a map of this position was seen. Blocks.
    pub(crate) fn raise_fence(&self, seen: Fence) -> Result<(), StoreError> {
        let mut fence = self.fence.lock().unwrap_or_else(PoisonError::into_inner);
        self.raise(&mut fence, seen)
    }

    fn raise(&self, fence: &mut Fence, to: Fence) -> Result<(), StoreError> {
        if to > *fence {
            identity::write_fence(&self.disks.raw(), to)?;
            *fence = to;
        }
        Ok(())
    }

    /// The node as others see it.
    pub(crate) fn describe(&self) -> v1::Node {
        let disks = self.disks.health();
        v1::Node {
            node: self.id.to_wire(),
            address: self.facts.address.clone(),
            state: v1::NodeState::Up.into(),
            labels: self.facts.labels.clone(),
            capacity: disks.iter().map(|disk| disk.capacity).sum(),
            used: disks.iter().map(|disk| disk.used).sum(),
            last_seen_ns: cairn_runtime::clock::wall_ns(),
            metrics_address: self.facts.metrics_address.clone(),
            disks,
            version: cairn_runtime::VERSION.into(),
            admin: v1::AdminState::Unspecified.into(),
        }
    }
}
