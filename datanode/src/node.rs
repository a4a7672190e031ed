//! What all parts of a running datanode share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{ErrorKind, NodeId, WireError, v1};
use cairn_runtime::clock::{self, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::disks::Disks;
use crate::identity::{self, Fence};
use crate::map::Maps;
use crate::reads::Reads;
use crate::replication::Partners;
use crate::scrub::{Scrub, ScrubOptions};
use crate::store::StoreError;

/// Unit of the memory budget's permits.
const MEMORY_UNIT: usize = 1 << 10;

/// The work of clients may hold work in the background up for so long, a chunk.
const GIVE_WAY_MAX: Duration = Duration::from_millis(500);
const GIVE_WAY_STEP: Duration = Duration::from_millis(50);
/// The sequence of the metadata rises all the time: it is recorded at most this often, and at each deletion.
const FENCE_INTERVAL: Duration = Duration::from_secs(10);

/// What all parts of a running datanode share.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) disks: Disks,
    pub(crate) maps: Maps,
    pub(crate) partners: Partners,
    /// Streams of chunks under way.
    pub(crate) streams: AtomicU32,
    pub(crate) reads: Reads,
    /// Chunks that are arriving.
    pub(crate) transfers: Arc<AtomicU32>,
    pub(crate) scrub: Scrub,
    /// Cancelled when no new chunks are to be taken.
    pub(crate) stop: CancellationToken,
    pub(crate) facts: Facts,
    memory: Arc<Semaphore>,
    memory_total: u32,
    fence: Mutex<FenceState>,
    /// Held while the fence is written.
    fence_file: Mutex<()>,
}

/// What is known of the metadata's position.
#[derive(Debug, Clone, Copy)]
struct FenceState {
    seen: Fence,
    /// What the disks have.
    stored: Fence,
    stored_at: Option<Instant>,
}

/// What the node may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of chunks on their way to others.
    pub(crate) memory_bytes: u64,
    pub(crate) scrub: ScrubOptions,
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
        limits: Limits,
        fence: Fence,
        stop: CancellationToken,
    ) -> Self {
        let units = u32::try_from(limits.memory_bytes / MEMORY_UNIT as u64).unwrap_or(u32::MAX);
        Self {
            id,
            disks,
            maps: Maps::new(id),
            partners,
            streams: AtomicU32::new(0),
            transfers: Arc::default(),
            scrub: Scrub::new(limits.scrub),
            reads: Reads::new(),
            stop,
            facts,
            memory: Arc::new(Semaphore::new(units as usize)),
            memory_total: units,
            fence: Mutex::new(FenceState { seen: fence, stored: fence, stored_at: None }),
            fence_file: Mutex::new(()),
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

    /// Waits a little while clients or other datanodes are being served.
    pub(crate) async fn give_way(&self) {
        let is_busy = || self.transfers.load(Ordering::Relaxed) > 0 || self.reads.are_under_way();
        let until = clock::now() + GIVE_WAY_MAX;
        while is_busy() && clock::now() < until {
            clock::sleep(GIVE_WAY_STEP).await;
        }
    }

    /// The highest position of the metadata that this node has seen.
    pub(crate) fn fence(&self) -> Fence {
        self.lock_fence().seen
    }

    /// Checks that a deletion is not older than what this node has seen, and records what is new.
    /// Durable on return. Blocks.
    ///
    /// `StaleEpoch`: delete nothing.
    pub(crate) fn pass_fence(&self, asked: Fence) -> Result<(), WireError> {
        let seen = self.fence();
        if asked.is_behind(seen) {
            let text = format!(
                "a deletion at {asked} is behind {seen}, which this datanode has seen: \
                 the coordinator is an old one, or its metadata went backwards"
            );
            return Err(WireError::new(ErrorKind::StaleEpoch, text));
        }
        self.see_fence(asked);
        self.store_fence().map_err(|error| error.to_wire())
    }

    /// Takes note of a position; true when it is time to [`Self::store_fence`].
    pub(crate) fn see_fence(&self, seen: Fence) -> bool {
        if !seen.is_possible() {
            return false;
        }
        let mut fence = self.lock_fence();
        fence.seen = fence.seen.join(seen);
        let (seen, stored) = (fence.seen, fence.stored);
        let is_due = fence.stored_at.is_none_or(|at| at.elapsed() >= FENCE_INTERVAL);
        seen.term > stored.term || seen.epoch > stored.epoch || (seen != stored && is_due)
    }

    /// Records the highest position seen. Durable on return. Blocks.
    pub(crate) fn store_fence(&self) -> Result<(), StoreError> {
        let _writing = self.fence_file.lock().unwrap_or_else(PoisonError::into_inner);
        let FenceState { seen, stored, .. } = *self.lock_fence();
        if seen == stored {
            return Ok(());
        }
        identity::write_fence(&self.disks.raw(), seen)?;
        let mut fence = self.lock_fence();
        fence.stored = seen;
        fence.stored_at = Some(clock::now());
        Ok(())
    }

    fn lock_fence(&self) -> MutexGuard<'_, FenceState> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner)
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
