//! Settings of a client.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cairn_proto::limits::{CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN};
use cairn_runtime::config::{ByteSize, ConfigError, Validate};
use serde::{Deserialize, Serialize};

/// Less does not hold a few chunks in flight.
const MEMORY_MIN: u64 = 32 << 20;
/// More is surely a mistake.
const MEMORY_MAX: u64 = 1 << 40;
/// Dirty data may wait this long at most.
const WRITE_BACK_MAX: Duration = Duration::from_secs(300);

/// Settings of one client (a mount, a command). Sizes are bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// All memory for file content: dirty and in flight data, read-ahead, cache. 32 MiB to 1 TiB.
    pub memory: ByteSize,
    /// Bytes of a chunk, 64 KiB to 64 MiB and at most a sixteenth of `memory`; absent: 8 MiB, or
    /// less where `memory` is small.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<ByteSize>,
    /// Bytes that are fetched ahead of a sequential reader; 0 to `memory` / 8 (more is cut).
    pub read_ahead: ByteSize,
    /// Dirty data leaves at the latest after this long; at most 300 s.
    #[serde(with = "humantime_serde")]
    pub write_back: Duration,
    /// What happens while the cluster does not answer: `hard` or `soft=SECONDS`.
    pub unreachable: Unreachable,
    /// `close` promises what `fsync` promises.
    pub durable_close: bool,
    /// Each change of names is durable when it is answered. Otherwise it is made locally, in directories
    /// whose lease the coordinator grants, and applied some milliseconds later; `fsync` of a file or directory
    /// waits for that.
    pub durable_names: bool,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            coordinator: "127.0.0.1:7070".into(),
            memory: ByteSize::mib(512),
            chunk_size: None,
            read_ahead: ByteSize::mib(32),
            write_back: Duration::from_secs(5),
            unreachable: Unreachable::Hard,
            durable_close: false,
            durable_names: false,
        }
    }
}

impl Validate for ClientConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        fn refuse(key: &'static str, value: impl ToString, expected: impl Into<String>) -> ConfigError {
            ConfigError::out_of_range(key, value, expected)
        }
        cairn_runtime::net::check_address(&self.coordinator)
            .map_err(|error| refuse("coordinator", &self.coordinator, error.to_string()))?;
        let memory = self.memory.as_u64();
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
            return Err(refuse("memory", self.memory, "32 MiB to 1 TiB"));
        }
        if let Some(size) = self.chunk_size {
            let bytes = size.as_u64();
            if !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&bytes) || !bytes.is_multiple_of(CHUNK_SIZE_MIN) {
                return Err(refuse("chunk_size", size, "a multiple of 64 KiB from 64 KiB to 64 MiB"));
            }
            if bytes > memory / 16 {
                let most = ByteSize(memory / 16);
                return Err(refuse("chunk_size", size, format!("at most memory / 16 = {most}")));
            }
        }
        if self.write_back > WRITE_BACK_MAX {
            return Err(refuse("write_back", format!("{:?}", self.write_back), "at most 300s"));
        }
        Ok(())
    }
}

impl ClientConfig {
    /// Bytes of a full chunk; a multiple of 64 KiB.
    pub fn chunk_bytes(&self) -> u64 {
        let most = self.memory.as_u64() / 16;
        let wished = self.chunk_size.map_or(CHUNK_SIZE_DEFAULT, |size| size.as_u64());
        let bytes = wished.min(most).clamp(CHUNK_SIZE_MIN, CHUNK_SIZE_MAX);
        bytes / CHUNK_SIZE_MIN * CHUNK_SIZE_MIN
    }
}

/// What an operation does while the cluster does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unreachable {
    /// It waits, as long as it takes; callers can be interrupted.
    #[default]
    Hard,
    /// It fails with EIO after this long.
    Soft(Duration),
}

impl Unreachable {
    /// How long an operation may try; `None`: for ever.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::Hard => None,
            Self::Soft(limit) => Some(limit),
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hard => f.write_str("hard"),
            Self::Soft(limit) => write!(f, "soft={}", limit.as_secs()),
        }
    }
}

/// The text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: hard or soft=SECONDS (1 to 86400) was expected")]
pub struct BadPolicy(String);

impl FromStr for Unreachable {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bad = || BadPolicy(text.to_owned());
        if text == "hard" {
            return Ok(Self::Hard);
        }
        let seconds: u64 = text.strip_prefix("soft=").ok_or_else(bad)?.parse().map_err(|_| bad())?;
        if !(1..=86_400).contains(&seconds) {
            return Err(bad());
        }
        Ok(Self::Soft(Duration::from_secs(seconds)))
    }
}

impl Serialize for Unreachable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Unreachable {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_back_as_written() {
        for text in ["hard", "soft=1", "soft=30"] {
            assert_eq!(text.parse::<Unreachable>().unwrap().to_string(), text);
        }
        for bad in ["", "soft", "soft=", "soft=0", "soft=-1", "soft=99999999", "Hard"] {
            assert!(bad.parse::<Unreachable>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn defaults_are_valid_and_bad_values_are_not() {
        assert!(ClientConfig::default().validate().is_ok());
        let bad = [
            ClientConfig { coordinator: "nowhere".into(), ..Default::default() },
            ClientConfig { memory: ByteSize::mib(1), ..Default::default() },
            ClientConfig { chunk_size: Some(ByteSize(65537)), ..Default::default() },
            ClientConfig { chunk_size: Some(ByteSize::mib(64)), ..Default::default() },
            ClientConfig { write_back: Duration::from_secs(301), ..Default::default() },
        ];
        for config in bad {
            assert!(config.validate().is_err(), "{config:?}");
        }
        let small = ClientConfig { memory: ByteSize::mib(32), ..Default::default() };
        assert_eq!(small.chunk_bytes(), 2 << 20);
    }
}
