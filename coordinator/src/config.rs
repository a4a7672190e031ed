//! Settings of the coordinator.

use std::path::PathBuf;
use std::time::Duration;

use cairn_proto::limits::{CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN};
use cairn_runtime::config::{ByteSize, ConfigError, Validate};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::memory::{MEMORY_MAX, MEMORY_MIN};

/// Where metadata is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A file `meta.db` in the data directory.
    #[default]
    Sqlite,
    /// Nowhere: everything is lost when the process ends. For tests and simulation.
    Memory,
}

/// When changes of metadata are answered, while they are also written to a second place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogAck {
    /// Once they are durable here; the second place follows within about a second.
    #[default]
    Async,
    /// Once they are durable in the second place, too.
    Shipped,
}

/// Value of `log_ship` that names the datanodes of the cluster.
pub(crate) const SHIP_TO_DATANODES: &str = "datanode";

/// Settings of the coordinator. Times are written like `10s`, sizes like `8 MiB`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Address of the gRPC server, host:port; port 0 takes a free one.
    pub listen: String,
    /// Directory of the metadata store; made when it is missing.
    pub data: PathBuf,
    /// Address for `/metrics`, `/healthz` and `/readyz`; none: they are off.
    pub metrics_listen: Option<String>,
    /// Where metadata is kept.
    pub engine: Engine,
    /// The cluster that the store must belong to; none: whichever it is.
    pub cluster: Option<Uuid>,
    /// How long a mount may be silent before its session ends, 1 s to 10 min.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How often datanodes report, 50 ms to 1 min.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A datanode silent for so long gets no new chunks; more than `heartbeat`.
    #[serde(with = "humantime_serde")]
    pub suspect_after: Duration,
    /// A datanode silent for so long counts as absent; at least `suspect_after`.
    #[serde(with = "humantime_serde")]
    pub down_after: Duration,
    /// A datanode silent for so long is given up: its copies are made again elsewhere. `down_after` to 30 days.
    #[serde(with = "humantime_serde")]
    pub lost_after: Duration,
    /// Bytes per second that each datanode fetches at most to make copies again; 0: no limit.
    pub repair_rate: ByteSize,
    /// How often it is looked whether datanodes are evenly full, 1 s to 30 days.
    #[serde(with = "humantime_serde")]
    pub rebalance_every: Duration,
    /// Copies of each chunk, 1 to 16.
    pub replicas: u32,
    /// Copies without which no write is acknowledged, 1 to `replicas`.
    pub min_replicas: u32,
    /// Bytes of a chunk unless a client asks for another size, 64 KiB to 64 MiB.
    pub chunk_size: ByteSize,
    /// How long granted chunk ids can be used, 1 s to 1 day.
    #[serde(with = "humantime_serde")]
    pub plan_time: Duration,
    /// How long chunks are kept after the last file that used them: at least twice `lease`, up to 365 days; or 0,
    /// for tests: at once.
    #[serde(with = "humantime_serde")]
    pub garbage_grace: Duration,
    /// How often what each datanode holds is compared with the metadata, 1 s to 30 days.
    #[serde(with = "humantime_serde")]
    pub reconcile_every: Duration,
    /// Whether changes of metadata survive a power cut when they are answered.
    pub metadata_sync: bool,
    /// A second place for every change of metadata: a directory on another disk or a network mount, or
    /// `datanode` for the datanodes of the cluster; none: changes are kept in `data` alone.
    pub log_ship: Option<String>,
    /// When changes are answered, with `log_ship`.
    pub log_ack: LogAck,
    /// Datanodes that hold the log each, with `log_ship = "datanode"`, 1 to 16.
    pub log_copies: u32,
    /// How often all metadata is written to the second place, 1 min to 30 days.
    #[serde(with = "humantime_serde")]
    pub backup_every: Duration,
    /// Backups kept in the second place, each with the changes after it, 1 to 1000.
    pub backup_keep: u32,
    /// Memory for remembered rows and replies, and for requests and replies under way, 512 MiB to 1 TiB.
    pub memory: ByteSize,
    /// Allows `listen` to be reachable from other machines although nothing is encrypted.
    pub insecure: bool,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7070".into(),
            data: "/var/lib/cairn/coordinator".into(),
            metrics_listen: None,
            engine: Engine::Sqlite,
            cluster: None,
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_secs(1),
            suspect_after: Duration::from_secs(3),
            down_after: Duration::from_secs(10),
            lost_after: Duration::from_secs(600),
            repair_rate: ByteSize::mib(64),
            rebalance_every: Duration::from_secs(60),
            replicas: 3,
            min_replicas: 2,
            chunk_size: ByteSize(CHUNK_SIZE_DEFAULT),
            plan_time: Duration::from_secs(600),
            garbage_grace: Duration::from_secs(600),
            reconcile_every: Duration::from_secs(6 * 3600),
            metadata_sync: true,
            log_ship: None,
            log_ack: LogAck::Async,
            log_copies: 2,
            backup_every: Duration::from_secs(24 * 3600),
            backup_keep: 7,
            memory: ByteSize::mib(1024),
            insecure: false,
        }
    }
}

impl Validate for CoordinatorConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let address = "host:port was expected, such as 127.0.0.1:7070";
        check_address("listen", &self.listen, address)?;
        if let Some(listen) = &self.metrics_listen {
            check_address("metrics_listen", listen, address)?;
        }
        if self.data.as_os_str().is_empty() {
            return Err(ConfigError::out_of_range("data", "\"\"", "a directory was expected"));
        }
        let second = Duration::from_secs(1);
        let minute = 60 * second;
        let times = [
            ("lease", self.lease, second, 10 * minute),
            ("heartbeat", self.heartbeat, second / 20, minute),
            ("plan_time", self.plan_time, second, 24 * 60 * minute),
            ("garbage_grace", self.garbage_grace, Duration::ZERO, 365 * 24 * 60 * minute),
            ("backup_every", self.backup_every, minute, 30 * 24 * 60 * minute),
            ("reconcile_every", self.reconcile_every, second, 30 * 24 * 60 * minute),
            ("down_after", self.down_after, self.suspect_after, 60 * minute),
            ("rebalance_every", self.rebalance_every, second, 30 * 24 * 60 * minute),
            ("lost_after", self.lost_after, self.down_after, 30 * 24 * 60 * minute),
        ];
        for (key, value, min, max) in times {
            if value < min || value > max {
                let expected = format!("{min:?} to {max:?} was expected");
                return Err(ConfigError::out_of_range(key, format!("{value:?}"), expected));
            }
        }
        // A session that was cut off is heard again or over by then, so that whoever reads by an old layout
        // still finds the chunks.
        if !self.garbage_grace.is_zero() && self.garbage_grace < 2 * self.lease {
            let expected =
                format!("at least twice lease = {:?} was expected, or 0s: at once, for tests", self.lease);
            return Err(ConfigError::out_of_range(
                "garbage_grace",
                format!("{:?}", self.garbage_grace),
                expected,
            ));
        }
        if self.suspect_after <= self.heartbeat {
            let expected = format!("more than heartbeat = {:?} was expected", self.heartbeat);
            return Err(ConfigError::out_of_range(
                "suspect_after",
                format!("{:?}", self.suspect_after),
                expected,
            ));
        }
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            let expected = format!("1 to {REPLICAS_MAX} was expected");
            return Err(ConfigError::out_of_range("replicas", self.replicas, expected));
        }
        if !(1..=self.replicas).contains(&self.min_replicas) {
            let expected = format!("1 to replicas = {} was expected", self.replicas);
            return Err(ConfigError::out_of_range("min_replicas", self.min_replicas, expected));
        }
        if !(1..=REPLICAS_MAX).contains(&self.log_copies) {
            let expected = format!("1 to {REPLICAS_MAX} was expected");
            return Err(ConfigError::out_of_range("log_copies", self.log_copies, expected));
        }
        if !(1..=BACKUPS_MAX).contains(&self.backup_keep) {
            let expected = format!("1 to {BACKUPS_MAX} was expected");
            return Err(ConfigError::out_of_range("backup_keep", self.backup_keep, expected));
        }
        if self.log_ship.as_ref().is_some_and(String::is_empty) {
            let expected = "a directory, or \"datanode\", was expected";
            return Err(ConfigError::out_of_range("log_ship", "\"\"", expected));
        }
        if self.log_ack == LogAck::Shipped && self.log_ship.is_none() {
            let expected = "\"async\" was expected, or a place in log_ship";
            return Err(ConfigError::out_of_range("log_ack", "\"shipped\"", expected));
        }
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&self.memory) {
            return Err(ConfigError::out_of_range("memory", self.memory, "512 MiB to 1 TiB was expected"));
        }
        if !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&self.chunk_size.as_u64()) {
            let expected = "64 KiB to 64 MiB was expected";
            return Err(ConfigError::out_of_range("chunk_size", self.chunk_size, expected));
        }
        Ok(())
    }
}

/// Most backups that can be kept; each is listed whenever one is made.
const BACKUPS_MAX: u32 = 1000;
/// Most copies of a chunk that can be asked for.
const REPLICAS_MAX: u32 = 16;

fn check_address(key: &'static str, value: &str, expected: &str) -> Result<(), ConfigError> {
    let port = value.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    match port.map(str::parse::<u16>) {
        Some(Ok(_)) => Ok(()),
        _ => Err(ConfigError::out_of_range(key, format!("{value:?}"), expected)),
    }
}

#[cfg(test)]
mod tests;
