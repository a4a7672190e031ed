//! What differs from seed to seed: sizes, times, how often what goes wrong.

use std::time::Duration;

use cairn_client::ClientConfig;
use cairn_coordinator::{CoordinatorConfig, Engine};
use cairn_datanode::DatanodeConfig;
use cairn_runtime::config::ByteSize;
use rand::Rng;
use rand::rngs::StdRng;

/// Where the coordinator listens.
pub(crate) const COORDINATOR: &str = "c";
/// The same with its port.
pub(crate) const COORDINATOR_ADDRESS: &str = "c:7070";
const COORDINATOR_PORT: u16 = 7070;
const DATANODE_PORT: u16 = 7080;
/// The shortest that can be set.
const SCRUB_PERIOD: Duration = Duration::from_secs(60);

/// The choices of one seed.
#[derive(Debug, Clone)]
pub(crate) struct Knobs {
    pub(crate) datanodes: usize,
    pub(crate) disks: usize,
    pub(crate) clients: usize,
    pub(crate) latency_max: Duration,
    pub(crate) disk_delay_max: Duration,
    /// Mean time between two faults.
    pub(crate) fault_every: Duration,
    /// Longest pause of a client between two operations.
    pub(crate) think_max: Duration,
    /// Share of writes that are followed by `fsync`.
    pub(crate) fsync: f64,
    pub(crate) file_size_max: usize,
    pub(crate) disk_capacity: u64,
    pub(crate) skew_max: Duration,
    /// Whether clients change names locally, under leases.
    name_leases: bool,
    pub(crate) lease: Duration,
    suspect_after: Duration,
    down_after: Duration,
    chunk_size: u64,
    write_back: Duration,
    garbage_grace: Duration,
    plan_time: Duration,
    lost_after: Duration,
    reconcile_every: Duration,
    rebalance_every: Duration,
    trash_time: Duration,
}

fn millis(rng: &mut StdRng, least: u64, most: u64) -> Duration {
    Duration::from_millis(rng.random_range(least..=most))
}

impl Knobs {
    pub(crate) fn new(rng: &mut StdRng) -> Self {
        let lease = millis(rng, 1500, 8000);
        let suspect_after = millis(rng, 400, 2000);
        let down_after = suspect_after + millis(rng, 200, 3000);
        Self {
            datanodes: rng.random_range(3..=5),
            disks: if rng.random_bool(0.25) { 2 } else { 1 },
            clients: rng.random_range(2..=3),
            latency_max: millis(rng, 2, 30),
            // A slow disk leaves much unsynced at any moment.
            disk_delay_max: if rng.random_bool(0.15) { millis(rng, 50, 400) } else { millis(rng, 1, 15) },
            fault_every: millis(rng, 400, 3000),
            think_max: millis(rng, 20, 400),
            fsync: rng.random_range(0.5..1.0),
            file_size_max: 1 << rng.random_range(12..20),
            disk_capacity: 2 << 30,
            skew_max: millis(rng, 0, 5000),
            name_leases: rng.random_bool(0.7),
            lease,
            suspect_after,
            down_after,
            chunk_size: 65_536 << rng.random_range(0..4),
            write_back: millis(rng, 50, 4000),
            garbage_grace: lease * 2 + millis(rng, 0, 6000),
            trash_time: millis(rng, 500, 8000),
            reconcile_every: millis(rng, 1500, 8000),
            rebalance_every: millis(rng, 2000, 15_000),
            plan_time: millis(rng, 5000, 30_000),
            lost_after: down_after + millis(rng, 5000, 20_000),
        }
    }

    /// Bytes of a full chunk.
    pub(crate) fn chunk_bytes(&self) -> usize {
        self.chunk_size as usize // at most 512 KiB
    }

    pub(crate) fn coordinator(&self) -> CoordinatorConfig {
        CoordinatorConfig {
            listen: format!("0.0.0.0:{COORDINATOR_PORT}"),
            engine: Engine::Memory,
            insecure: true,
            lease: self.lease,
            heartbeat: Duration::from_millis(200),
            suspect_after: self.suspect_after,
            down_after: self.down_after,
            lost_after: self.lost_after,
            garbage_grace: self.garbage_grace,
            plan_time: self.plan_time,
            reconcile_every: self.reconcile_every,
            rebalance_every: self.rebalance_every,
            chunk_size: ByteSize(self.chunk_size),
            ..CoordinatorConfig::default()
        }
    }

    pub(crate) fn datanode(&self, name: &str) -> DatanodeConfig {
        DatanodeConfig {
            listen: format!("0.0.0.0:{DATANODE_PORT}"),
            advertise: Some(datanode_address(name)),
            coordinator: format!("{COORDINATOR}:{COORDINATOR_PORT}"),
            data: (0..self.disks).map(|disk| format!("/{name}/{disk}").into()).collect(),
            insecure: true,
            reserve: ByteSize::mib(1),
            segment_size: ByteSize::mib(64),
            trash_time: self.trash_time,
            scrub_period: SCRUB_PERIOD,
            ..DatanodeConfig::default()
        }
    }

    pub(crate) fn client(&self) -> ClientConfig {
        ClientConfig {
            coordinator: format!("{COORDINATOR}:{COORDINATOR_PORT}"),
            memory: ByteSize::mib(64),
            chunk_size: Some(ByteSize(self.chunk_size)),
            write_back: self.write_back,
            durable_names: !self.name_leases,
            ..ClientConfig::default()
        }
    }
}

/// How others reach a datanode.
pub(crate) fn datanode_address(name: &str) -> String {
    format!("{name}:{DATANODE_PORT}")
}
