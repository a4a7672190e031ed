//! What operations need to know besides rows: who is connected, and the rules of this cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_proto::limits::{CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MIN};

use crate::archive::queue::Shipping;
use crate::attendance::Attendance;
use crate::cluster_clock::ClusterClock;
use crate::config::CoordinatorConfig;
use crate::leases::Leases;
use crate::membership::Cluster;
use crate::memory::Shares;
use crate::sessions::Sessions;
use crate::unsynced::UnsyncedFiles;

/// The rules that the configuration sets for operations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Copies of each chunk.
    pub(crate) replicas: u32,
    /// Copies without which a chunk is not acknowledged.
    pub(crate) min_replicas: u32,
    /// Bytes of a chunk, unless the client asks for another size.
    pub(crate) chunk_size: u64,
    /// How long a plan can be used, ns.
    pub(crate) plan_ns: i64,
    /// How long a chunk stays after the last extent that used it, ns.
    pub(crate) garbage_ns: i64,
    pub(crate) memory: Shares,
}

impl Policy {
    pub(crate) fn new(config: &CoordinatorConfig) -> Self {
        Self {
            replicas: config.replicas,
            min_replicas: config.min_replicas,
            chunk_size: config.chunk_size.as_u64().max(CHUNK_SIZE_MIN),
            plan_ns: cairn_runtime::clock::nanos(config.plan_time),
            garbage_ns: cairn_runtime::clock::nanos(config.garbage_grace),
            memory: Shares::of(config.memory),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            replicas: 3,
            min_replicas: 2,
            chunk_size: CHUNK_SIZE_DEFAULT,
            plan_ns: 600_000_000_000,
            garbage_ns: 600_000_000_000,
            memory: Shares::default(),
        }
    }
}

/// How many commits the store has seen since it was made. Raised by the executor in each commit, so
/// a store that was put back to an earlier state shows by it.
#[derive(Debug)]
pub(crate) struct Sequence(AtomicU64);

impl Sequence {
    pub(crate) fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// That of the last commit.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// For the executor alone.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
}

/// Shared by the executor and the services.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) policy: Policy,
    pub(crate) sessions: Sessions,
    pub(crate) leases: Leases,
    pub(crate) cluster: Cluster,
    pub(crate) sequence: Sequence,
    pub(crate) unsynced: UnsyncedFiles,
    /// The way of commits to the second place.
    pub(crate) shipping: Arc<Shipping>,
    /// Counts how long others are silent.
    pub(crate) attendance: Arc<Attendance>,
    /// Gives files their times.
    pub(crate) clock: ClusterClock,
}
