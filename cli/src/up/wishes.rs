//! What the configuration asks of `cairn up` itself.
//!
//! Its services get most of their settings from the same file and variables as it does. Where they keep their data,
//! and where datanodes listen, is decided here for all of them: a setting of that kind would be passed over, and is
//! refused by name.

use std::path::Path;

use cairn_coordinator::CoordinatorConfig;

use crate::config::{Flags, Origin, Settings};
use crate::failure::Failure;
use crate::output::Output;

/// Settings that `cairn up` decides by itself.
const DECIDED: [&str; 8] = [
    "coordinator.data",
    "datanode.data",
    "datanode.listen",
    "datanode.advertise",
    "datanode.metrics_listen",
    "datanode.labels",
    "mount.mountpoint",
    "coordinator.engine",
];

/// Settings of the coordinator that `cairn up` takes over; none when nobody has set them.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    pub(super) replicas: Option<u32>,
    pub(super) min_replicas: Option<u32>,
    pub(super) listen: Option<String>,
    pub(super) metrics_listen: Option<String>,
}

impl Wishes {
    /// Reads the file and the variables. A setting that could not have its effect is an error.
    pub(super) fn read(
        file: Option<&Path>,
        coordinator: Option<&str>,
        output: Output,
    ) -> Result<Self, Failure> {
        let settings = Settings::load(file, None, Flags::new().coordinator(coordinator))?;
        let is_set = |key: &str| settings.origin(key) != Origin::Default;
        let decided: Vec<_> = DECIDED
            .iter()
            .filter(|key| is_set(key))
            .map(|key| format!("{key} ({})", settings.origin(key)))
            .collect();
        if !decided.is_empty() {
            let why = "`cairn up` decides this itself, for all services that it starts";
            return Err(Failure::usage(decided.join(", "), why).next(
                "leave it out, or start the services one by one: `cairn coordinator`, `cairn datanode`",
            ));
        }
        if is_set("client.coordinator") {
            let origin = settings.origin("client.coordinator");
            output
                .note(format!("client.coordinator ({origin}) is not used: `cairn up` starts a coordinator"));
        }
        let config: CoordinatorConfig = settings.section("coordinator")?;
        let set = |key: &str, value| is_set(key).then_some(value);
        Ok(Self {
            replicas: set("coordinator.replicas", config.replicas),
            min_replicas: set("coordinator.min_replicas", config.min_replicas),
            listen: is_set("coordinator.listen").then_some(config.listen),
            metrics_listen: config.metrics_listen.filter(|_| is_set("coordinator.metrics_listen")),
        })
    }
}
