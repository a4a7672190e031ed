//! The configuration of all parts in one place: one TOML file with the sections `[coordinator]`,
//! `[datanode]`, `[client]`, `[mount]` and `[log]`.
//!
//! Flags win over `CAIRN_*` variables, those over the file, that over the address that a running
//! `cairn up` has left (for the coordinator's address alone), that over the defaults. An unknown key anywhere is an
//! error; a value is judged when its section is used. Errors name source, key, value and what was
//! expected.

use std::path::Path;

use cairn_client::ClientConfig;
use cairn_coordinator::CoordinatorConfig;
use cairn_datanode::DatanodeConfig;
use cairn_fuse::MountConfig;
use cairn_runtime::config::{ENV_PREFIX, Validate};
use cairn_runtime::telemetry::LogConfig;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

mod complaint;
mod environment;
mod template;

pub use environment::check_variables;
pub use template::template;

/// The variable that stands for `--coordinator`.
pub const COORDINATOR_ENV: &str = "CAIRN_COORDINATOR";
/// The keys that `--coordinator` and [`COORDINATOR_ENV`] set.
const COORDINATOR_KEYS: [&str; 2] = ["client.coordinator", "datanode.coordinator"];

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `cairn coordinator`.
    pub coordinator: CoordinatorConfig,
    /// `cairn datanode`.
    pub datanode: DatanodeConfig,
    /// Everything that uses a cluster: mounts and commands.
    pub client: ClientConfig,
    /// `cairn mount`.
    pub mount: MountConfig,
    /// Logs of all of them.
    pub log: LogConfig,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody has set it.
    Default,
    /// A running `cairn up`.
    Up,
    /// The configuration file.
    File(String),
    /// A variable.
    Env(String),
    /// A flag.
    Flag(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Up => f.write_str("running cairn up"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Env(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One setting in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Such as `client.memory`.
    pub key: String,
    /// As JSON; null when it is not set.
    pub value: serde_json::Value,
    /// Who has set it.
    pub origin: Origin,
}

/// A setting that a flag makes.
#[derive(Debug, Clone)]
pub struct Flag {
    key: String,
    name: &'static str,
    value: Value,
}

/// Settings that flags make, collected in one expression.
#[derive(Debug, Clone, Default)]
pub struct Flags(Vec<Flag>);

impl Flags {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one when the flag was given.
    #[must_use]
    pub fn set<T: Serialize>(mut self, key: &str, name: &'static str, value: Option<T>) -> Self {
        // What flags hold (numbers, text, lists) always serializes.
        if let Some(value) = value.and_then(|value| Value::serialize(value).ok()) {
            self.0.push(Flag { key: key.to_owned(), name, value });
        }
        self
    }

    /// Adds one when the flag, which takes no value, was given.
    #[must_use]
    pub fn switch(self, key: &str, name: &'static str, given: bool) -> Self {
        self.set(key, name, given.then_some(true))
    }

    /// `--coordinator`.
    #[must_use]
    pub fn coordinator(self, address: Option<&str>) -> Self {
        COORDINATOR_KEYS.iter().fold(self, |flags, key| flags.set(key, "--coordinator", address))
    }
}

/// Values from one source, under its name.
struct Named {
    name: String,
    data: Dict,
}

impl Provider for Named {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.data.clone())]))
    }
}

/// Prefixes of the names of sources, by which [`Origin`]s are told apart.
const FROM_UP: &str = "up";
const FROM_FILE: &str = "file ";
const FROM_ENV: &str = "variable ";
const FROM_FLAG: &str = "flag ";

/// All sources merged, not yet judged.
#[derive(Debug, Clone)]
pub struct Settings {
    figment: Figment,
}

impl Settings {
    /// Merges all sources. `up`: the coordinator's address of a running `cairn up`.
    pub fn load(file: Option<&Path>, up: Option<&str>, flags: Flags) -> Result<Self, Failure> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(address) = up {
            figment = merge_keys(figment, FROM_UP.to_owned(), &COORDINATOR_KEYS, &Value::from(address));
        }
        if let Some(path) = file {
            figment = merge_file(figment, path)?;
        }
        if let Some(address) = std::env::var(COORDINATOR_ENV).ok().filter(|address| !address.is_empty()) {
            let name = format!("{FROM_ENV}{COORDINATOR_ENV}");
            figment = merge_keys(figment, name, &COORDINATOR_KEYS, &Value::from(address));
        }
        // Only names with "__" are settings: CAIRN_CONFIG and whatever scripts use are not.
        let env = Env::prefixed(ENV_PREFIX).filter(|key| key.as_str().contains("__")).split("__");
        let data = env.data().map_err(|error| Failure::usage("read CAIRN_* variables", error))?;
        let data = data.into_iter().next().map(|(_, dict)| dict).unwrap_or_default();
        figment = figment.merge(Named { name: FROM_ENV.to_owned(), data });
        for Flag { key, name, value } in flags.0 {
            figment = merge_keys(figment, format!("{FROM_FLAG}{name}"), &[&key], &value);
        }
        let settings = Self { figment };
        settings.whole()?;
        Ok(settings)
    }

    /// Every section, each of the right form, none judged yet.
    pub fn whole(&self) -> Result<Config, Failure> {
        self.figment.extract().map_err(|error| complaint::form(self, error))
    }

    /// One section, judged.
    pub fn section<T: DeserializeOwned + Validate>(&self, name: &str) -> Result<T, Failure> {
        let section: T = self.figment.extract_inner(name).map_err(|error| complaint::form(self, error))?;
        section.validate().map_err(|error| complaint::range(self, name, &error))?;
        Ok(section)
    }

    /// Every setting in force, in the order of their keys.
    pub fn entries(&self) -> Result<Vec<Entry>, Failure> {
        let whole = serde_json::to_value(self.whole()?)
            .map_err(|error| Failure::new("show the configuration", error))?;
        let mut entries = Vec::new();
        flatten(self, String::new(), whole, &mut entries);
        Ok(entries)
    }

    /// Who has set a key.
    pub fn origin(&self, key: &str) -> Origin {
        let name = self.figment.find_metadata(key).map(|metadata| metadata.name.to_string());
        let name = name.unwrap_or_default();
        if name == FROM_UP {
            Origin::Up
        } else if let Some(path) = name.strip_prefix(FROM_FILE) {
            Origin::File(path.to_owned())
        } else if let Some(variable) = name.strip_prefix(FROM_ENV) {
            match variable {
                "" => Origin::Env(format!("{ENV_PREFIX}{}", key.to_uppercase().replace('.', "__"))),
                _ => Origin::Env(variable.to_owned()),
            }
        } else if let Some(flag) = name.strip_prefix(FROM_FLAG) {
            Origin::Flag(flag.to_owned())
        } else {
            Origin::Default
        }
    }

    /// What was given for a key, as it was given.
    fn given(&self, key: &str) -> Option<serde_json::Value> {
        serde_json::to_value(self.figment.find_value(key).ok()?).ok()
    }
}

fn merge_keys(figment: Figment, name: String, keys: &[&str], value: &Value) -> Figment {
    keys.iter().fold(figment, |figment, key| {
        let data = figment::util::nest(key, value.clone()).into_dict().unwrap_or_default();
        figment.merge(Named { name: name.clone(), data })
    })
}

fn merge_file(figment: Figment, path: &Path) -> Result<Figment, Failure> {
    let what = format!("read the configuration file {}", path.display());
    // Looked at first, so that a file that is not there is an error and not an empty one.
    let text = crate::local::read_text(path).map_err(|error| {
        Failure::usage(&what, error).next("name one that exists, or write one with `cairn config init FILE`")
    })?;
    let data = Toml::string(&text).data().map_err(|error| Failure::usage(&what, error))?;
    let data = data.into_iter().next().map(|(_, dict)| dict).unwrap_or_default();
    Ok(figment.merge(Named { name: format!("{FROM_FILE}{}", path.display()), data }))
}

fn flatten(settings: &Settings, key: String, value: serde_json::Value, into: &mut Vec<Entry>) {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(settings, key, value, into);
            }
        }
        value => into.push(Entry { origin: settings.origin(&key), key, value }),
    }
}
