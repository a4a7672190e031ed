//! The settings of a datanode.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cairn_proto::limits::{CHUNK_SIZE_MAX, FRAME_SIZE_MAX};
use cairn_runtime::config::{ByteSize, ConfigError, Validate};
use serde::{Deserialize, Serialize};

/// Least memory for transfers: a few of the largest frames.
const MEMORY_MIN: u64 = 8 * FRAME_SIZE_MAX as u64;
/// Most memory for transfers: their permits are counted in 32 bits of KiB.
const MEMORY_MAX: u64 = 1 << 40;
/// Segments are numbered in 4 KiB pages of 32 bits and preallocated whole.
const SEGMENT_SIZE_MAX: u64 = 16 << 30;
/// Labels and their lengths are shown and sent with every map.
const LABELS_MAX: usize = 16;
const LABEL_LEN_MAX: usize = 64;
/// Bounds of the time for a pass of the scrub, and its slowest rate.
const SCRUB_PERIOD_MIN: Duration = Duration::from_secs(60);
const SCRUB_PERIOD_MAX: Duration = Duration::from_secs(365 * 86_400);
const SCRUB_RATE_MIN: u64 = 64 << 10;
/// Longest that a slow disk keeps its chunks.
const DRAIN_SLOW_AFTER_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Longest stay in the trash.
const TRASH_TIME_MAX: Duration = Duration::from_secs(365 * 86_400);

/// The settings of a datanode.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatanodeConfig {
    /// Where to listen, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// How others reach this node, `host:port`; by default the address it listens on.
    pub advertise: Option<String>,
    /// Address of the coordinator, `host:port`.
    pub coordinator: String,
    /// Data directories, one per disk, at least one. Made when missing.
    pub data: Vec<PathBuf>,
    /// Failure domains: `zone`, `rack`, `host`.
    pub labels: BTreeMap<String, String>,
    /// Room that stays free on each disk; never more than 5 % of it count.
    pub reserve: ByteSize,
    /// Size of a segment file, 64 MiB to 16 GiB.
    pub segment_size: ByteSize,
    /// Bytes of chunks on their way to other datanodes, 8 MiB to 1 TiB; a bound of the whole process.
    pub memory: ByteSize,
    /// Where to serve `/metrics`, `/healthz` and `/readyz`; off when missing.
    pub metrics_listen: Option<String>,
    /// Whether syncs reach the disk. `false` promises only what a crash of the process leaves: power
    /// loss may then take chunks whose sync was acknowledged.
    pub sync: bool,
    /// How long deleted chunks can still be brought back; they go earlier when room is short. 0: not at
    /// all.
    #[serde(with = "humantime_serde")]
    pub trash_time: Duration,
    /// Time in which the scrub reads the whole store once, 1 min to 365 days.
    #[serde(with = "humantime_serde")]
    pub scrub_period: Duration,
    /// How long a disk may be slow before its chunks go to the others of this node, at most 365 days. 0: they
    /// stay.
    #[serde(with = "humantime_serde")]
    pub drain_slow_after: Duration,
    /// Bytes per second that the scrub reads at most, also when that takes longer, and that a slow disk is
    /// drained by; at least 64 KiB.
    pub scrub_rate: ByteSize,
    /// Permits listening on an address that is not loopback, where everyone who reaches it may read
    /// and write.
    pub insecure: bool,
}

impl Default for DatanodeConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7080".into(),
            advertise: None,
            coordinator: "127.0.0.1:7070".into(),
            data: vec!["/var/lib/cairn/datanode".into()],
            labels: BTreeMap::new(),
            reserve: ByteSize::gib(1),
            segment_size: ByteSize::mib(256),
            memory: ByteSize::mib(128),
            metrics_listen: None,
            sync: true,
            trash_time: Duration::from_secs(600),
            scrub_period: Duration::from_secs(14 * 86_400),
            drain_slow_after: Duration::from_secs(600),
            scrub_rate: ByteSize::mib(32),
            insecure: false,
        }
    }
}

impl Validate for DatanodeConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.data.is_empty() {
            return Err(ConfigError::out_of_range("data", "[]", "at least one directory was expected"));
        }
        for (index, path) in self.data.iter().enumerate() {
            if path.as_os_str().is_empty() || self.data[..index].contains(path) {
                let expected = "directories that differ, none of them empty, were expected";
                return Err(ConfigError::out_of_range("data", path.display(), expected));
            }
        }
        within("segment_size", self.segment_size, CHUNK_SIZE_MAX, SEGMENT_SIZE_MAX)?;
        within("memory", self.memory, MEMORY_MIN, MEMORY_MAX)?;
        at_most("scrub_period", self.scrub_period, SCRUB_PERIOD_MAX)?;
        if self.scrub_period < SCRUB_PERIOD_MIN {
            let given = humantime::format_duration(self.scrub_period);
            return Err(ConfigError::out_of_range("scrub_period", given, "at least 1min was expected"));
        }
        within("scrub_rate", self.scrub_rate, SCRUB_RATE_MIN, MEMORY_MAX)?;
        at_most("drain_slow_after", self.drain_slow_after, DRAIN_SLOW_AFTER_MAX)?;
        at_most("trash_time", self.trash_time, TRASH_TIME_MAX)?;
        if self.labels.len() > LABELS_MAX {
            let expected = format!("at most {LABELS_MAX} labels were expected");
            return Err(ConfigError::out_of_range("labels", self.labels.len(), expected));
        }
        for (name, value) in &self.labels {
            if name.is_empty() || name.len() > LABEL_LEN_MAX || value.len() > LABEL_LEN_MAX {
                let expected =
                    format!("names of 1 to {LABEL_LEN_MAX} bytes and values of as many were expected");
                return Err(ConfigError::out_of_range("labels", format!("{name} = {value}"), expected));
            }
        }
        address("listen", &self.listen, true)?;
        address("coordinator", &self.coordinator, false)?;
        self.advertise.as_deref().map_or(Ok(()), |text| address("advertise", text, false))?;
        self.metrics_listen.as_deref().map_or(Ok(()), |text| address("metrics_listen", text, true))
    }
}

fn within(key: &'static str, value: ByteSize, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value.as_u64()) {
        return Ok(());
    }
    let expected = format!("{} to {} was expected", ByteSize::b(least), ByteSize::b(most));
    Err(ConfigError::out_of_range(key, value, expected))
}

fn at_most(key: &'static str, value: Duration, most: Duration) -> Result<(), ConfigError> {
    if value <= most {
        return Ok(());
    }
    let expected = format!("at most {} was expected", humantime::format_duration(most));
    Err(ConfigError::out_of_range(key, humantime::format_duration(value), expected))
}

fn address(key: &'static str, text: &str, zero_allowed: bool) -> Result<(), ConfigError> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = parts.and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_some_and(|port| port != 0 || zero_allowed) {
        return Ok(());
    }
    Err(ConfigError::out_of_range(key, format!("{text:?}"), "host:port was expected, such as 127.0.0.1:7080"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_each_bad_value_is_named() {
        let good = DatanodeConfig::default();
        assert!(good.validate().is_ok());
        let bad = [
            ("data", DatanodeConfig { data: vec![], ..good.clone() }),
            ("data", DatanodeConfig { data: vec!["/a".into(), "/a".into()], ..good.clone() }),
            ("segment_size", DatanodeConfig { segment_size: ByteSize::mib(1), ..good.clone() }),
            ("memory", DatanodeConfig { memory: ByteSize::kib(1), ..good.clone() }),
            ("scrub_period", DatanodeConfig { scrub_period: Duration::ZERO, ..good.clone() }),
            ("scrub_rate", DatanodeConfig { scrub_rate: ByteSize::b(1), ..good.clone() }),
            ("drain_slow_after", DatanodeConfig { drain_slow_after: Duration::MAX, ..good.clone() }),
            ("trash_time", DatanodeConfig { trash_time: Duration::MAX, ..good.clone() }),
            ("listen", DatanodeConfig { listen: "here".into(), ..good.clone() }),
            ("coordinator", DatanodeConfig { coordinator: "host:0".into(), ..good.clone() }),
            ("advertise", DatanodeConfig { advertise: Some(":1".into()), ..good.clone() }),
        ];
        for (key, config) in bad {
            let error = config.validate().expect_err(key).to_string();
            assert!(error.starts_with(key) && error.contains("expected"), "{error}");
        }
    }
}
