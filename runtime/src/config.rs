//! Configuration: values from flags, `CAIRN_*` variables, a TOML file and defaults, in that order.
//!
//! Each service has one typed struct with `#[serde(default, deny_unknown_fields)]`, all defaults in
//! one `impl Default`, and a [`Validate`] that relates its fields. Sizes are [`ByteSize`] ("8 MiB"),
//! times durations through `humantime_serde` ("10s").

use std::path::Path;

pub use bytesize::ByteSize;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Prefix of the environment variables; `CAIRN_COORDINATOR__LISTEN` is `coordinator.listen`.
pub const ENV_PREFIX: &str = "CAIRN_";

/// A setting that can not be used, and what would be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value of the wrong type or form, or an unknown key.
    #[error("{0}")]
    Invalid(Box<figment::Error>),
    /// A value that does not go with the others, or lies outside its range.
    #[error("{key} = {value}: {expected}")]
    OutOfRange {
        /// The setting, as it is written in TOML.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is possible.
        expected: String,
    },
    /// The file that was named is not there or can not be read.
    #[error("can not read the configuration file {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl ConfigError {
    /// A value outside its range.
    pub fn out_of_range(key: &'static str, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::OutOfRange { key, value: value.to_string(), expected: expected.into() }
    }
}

/// Relates the fields of a configuration to one another.
pub trait Validate {
    /// The first setting that can not be used.
    fn validate(&self) -> Result<(), ConfigError>;
}

/// Merges defaults, the file (when there is one), `CAIRN_*` variables and flags, which win.
///
/// Flags are any serializable value; fields that are skipped when `None` leave the rest alone.
pub fn sources<T: Default + Serialize>(
    file: Option<&Path>,
    flags: impl Serialize,
) -> Result<Figment, ConfigError> {
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = file {
        // Read here, so that a file that is missing is an error and not an empty one.
        #[allow(clippy::disallowed_methods)]
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.display().to_string(), source })?;
        figment = figment.merge(Toml::string(&text));
    }
    Ok(figment
        .merge(Env::prefixed(ENV_PREFIX).split("__"))
        .merge(Serialized::from(flags, figment::Profile::Default)))
}

/// Reads and validates what [`sources`] merged.
pub fn extract<T: DeserializeOwned + Validate>(figment: &Figment) -> Result<T, ConfigError> {
    let config: T = figment.extract().map_err(|error| ConfigError::Invalid(Box::new(error)))?;
    config.validate()?;
    Ok(config)
}
