//! The commented file that `cairn config init` writes.

use serde_json::Value;

use super::Config;
use crate::failure::Failure;

/// What each setting means. A test sees to it that none is missing.
const MEANINGS: &[(&str, &str)] = &[
    ("coordinator.listen", "Where the coordinator listens for gRPC, host:port; port 0 takes a free one."),
    ("coordinator.data", "Directory of the metadata store; made when it is missing."),
    (
        "coordinator.metrics_listen",
        "Where to serve /metrics, /healthz and /readyz, host:port; nowhere when not set.",
    ),
    (
        "coordinator.engine",
        "Where metadata is kept: sqlite (in the data directory) or memory (lost at the end; for tests).",
    ),
    ("coordinator.cluster", "Id of the cluster that the store must belong to; any when not set."),
    ("coordinator.lease", "A mount that is silent for so long loses its session, 1s to 10min."),
    ("coordinator.heartbeat", "How often datanodes report, 50ms to 1min."),
    ("coordinator.suspect_after", "A datanode silent for so long gets no new chunks; more than heartbeat."),
    ("coordinator.down_after", "A datanode silent for so long counts as absent; at least suspect_after."),
    (
        "coordinator.lost_after",
        "A datanode silent for so long is given up: its copies are made again elsewhere; down_after to 30days.",
    ),
    (
        "coordinator.repair_rate",
        "Bytes per second that each datanode fetches at most to make copies again; 0: no limit.",
    ),
    (
        "coordinator.rebalance_every",
        "How often it is looked whether datanodes are evenly full, 1s to 30days.",
    ),
    ("coordinator.replicas", "Copies of each chunk, 1 to 16."),
    ("coordinator.min_replicas", "Copies that must be stored before a write is acknowledged, 1 to replicas."),
    ("coordinator.chunk_size", "Bytes of a chunk unless a client asks for another size, 64 KiB to 64 MiB."),
    ("coordinator.plan_time", "How long a client may use chunk ids that it was given, 1s to 1day."),
    (
        "coordinator.garbage_grace",
        "How long chunks are kept after the last file that used them: at least twice lease, up to 365days.",
    ),
    (
        "coordinator.reconcile_every",
        "How often what each datanode holds is compared with the metadata, 1s to 30days.",
    ),
    ("coordinator.metadata_sync", "Whether changes of metadata survive a power cut when they are answered."),
    (
        "coordinator.log_ship",
        "A second place for every change of metadata: a directory, or datanode for the datanodes themselves.",
    ),
    (
        "coordinator.log_ack",
        "When changes are answered: async (once durable here) or shipped (once durable in log_ship, too).",
    ),
    ("coordinator.log_copies", "Datanodes that hold the log each, with log_ship = datanode; 1 to 16."),
    ("coordinator.backup_every", "How often all metadata is written to log_ship, 1min to 30days."),
    ("coordinator.backup_keep", "Backups kept in log_ship, each with the changes after it, 1 to 1000."),
    (
        "coordinator.memory",
        "Memory for remembered rows and replies, and for requests and replies under way, 512 MiB to 1 TiB.",
    ),
    (
        "coordinator.insecure",
        "Allow listen to be reachable from other machines although nothing is encrypted.",
    ),
    ("datanode.listen", "Where the datanode listens for gRPC, host:port; port 0 takes a free one."),
    ("datanode.advertise", "How others reach this node, host:port; the address it listens on when not set."),
    ("datanode.coordinator", "Address of the coordinator, host:port."),
    ("datanode.data", "Directories for chunks, one for each disk; made when they are missing."),
    ("datanode.labels", "Where the node stands: host, rack, zone. Copies are spread over different values."),
    ("datanode.reserve", "Room that stays free on each disk; never more than 5 % of it count."),
    ("datanode.segment_size", "Size of the files that chunks are kept in, 64 MiB to 16 GiB."),
    ("datanode.memory", "Memory for chunks on their way, 8 MiB to 1 TiB."),
    (
        "datanode.metrics_listen",
        "Where to serve /metrics, /healthz and /readyz, host:port; nowhere when not set.",
    ),
    ("datanode.sync", "Whether syncs reach the disk; false risks acknowledged data when the power fails."),
    (
        "datanode.trash_time",
        "How long deleted chunks can still be brought back, unless room is short; at most 365days.",
    ),
    ("datanode.scrub_period", "Time in which every chunk is read from its disk once, 1min to 365days."),
    (
        "datanode.scrub_rate",
        "Bytes per second that the scrub reads at most, also when it takes longer then; a slow disk is drained by as many.",
    ),
    (
        "datanode.drain_slow_after",
        "How long a disk may be slow before its chunks go to the others of its node, at most 365days; 0s: they stay.",
    ),
    ("datanode.insecure", "Allow listen to be reachable from other machines although nothing is encrypted."),
    (
        "client.coordinator",
        "Address of the coordinator, host:port; also --coordinator and CAIRN_COORDINATOR.",
    ),
    ("client.memory", "Memory for unwritten data, read-ahead and cache together, 32 MiB to 1 TiB."),
    ("client.chunk_size", "Bytes of a chunk, 64 KiB to 64 MiB; 8 MiB when not set."),
    ("client.read_ahead", "What is fetched ahead of a sequential reader; 0 to an eighth of memory."),
    ("client.write_back", "Written data leaves at the latest after this time; at most 300s."),
    (
        "client.unreachable",
        "While the cluster does not answer: hard waits, soft=SECONDS fails with EIO after that time.",
    ),
    ("client.durable_close", "Whether close waits until data would survive power loss, as fsync does."),
    (
        "client.durable_names",
        "Whether each change of names is durable when it is answered, rather than milliseconds later.",
    ),
    ("mount.mountpoint", "The directory to mount at; cairn mount takes it as its argument."),
    ("mount.allow_other", "Let other users in; permission bits decide what they may do."),
    ("mount.read_only", "Refuse every change."),
    ("mount.nonempty", "Mount over a directory that has entries; they are hidden meanwhile."),
    ("mount.suid", "Let set-user-ID, set-group-ID and file capabilities count; needs root."),
    ("mount.dev", "Let devices be opened; needs root."),
    ("mount.read_ahead", "What the kernel reads ahead of a sequential reader, at most 64 MiB; needs root."),
    ("mount.attr_timeout", "How long the kernel may show names and attributes without asking; at most 1s."),
    ("mount.protect_mountpoint", "Keep the covered directory unwritable while nothing is mounted on it."),
    ("mount.threads", "Threads that take the kernel's requests, 1 to 16."),
    ("mount.unmount_grace", "How long an unmount waits for programs to leave before it detaches the mount."),
    ("log.level", "error, warn, info, debug or trace; also for one module: info,cairn_client=debug."),
    ("log.json", "JSON lines instead of text."),
];

/// A TOML file with every setting as a comment: what it means, and its default.
pub fn template() -> Result<String, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new("write the configuration", error);
    let defaults = serde_json::to_value(Config::default()).map_err(|error| failed(&error))?;
    let mut text = String::from(
        "# Settings of Cairn. Every line is a comment that shows the default: take away the '#' to change it.\n\
         # Flags and CAIRN_* variables win over this file: CAIRN_CLIENT__MEMORY=1GiB is memory in [client].\n",
    );
    let mut section = "";
    for (key, meaning) in MEANINGS {
        let (name, field) = key.split_once('.').unwrap_or(("", key));
        if name != section {
            section = name;
            text.push_str(&format!("\n[{name}]\n"));
        }
        let value = defaults.get(name).and_then(|section| section.get(field));
        text.push_str(&format!("\n# {meaning}\n#{field} = {}\n", shown(value)));
    }
    Ok(text)
}

/// A default as TOML; settings that are not set get an example of nothing.
fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "  (not set)".to_owned(),
        Some(Value::Object(fields)) if fields.is_empty() => "{}".to_owned(),
        // Strings, numbers, switches and lists are written alike in JSON and TOML.
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_explained_and_none_that_does_not_exist() {
        let defaults = serde_json::to_value(Config::default()).unwrap();
        for (section, fields) in defaults.as_object().unwrap() {
            for field in fields.as_object().unwrap().keys() {
                let key = format!("{section}.{field}");
                assert!(MEANINGS.iter().any(|(known, _)| *known == key), "{key} has no explanation");
            }
        }
        // Settings without a value are skipped by some sections, so that they are tried instead.
        for (key, _) in MEANINGS {
            let (section, field) = key.split_once('.').unwrap();
            let text = format!("[{section}]\n{field} = {{ a = [] }}");
            let error =
                toml::from_str::<Config>(&text).map(|_| String::new()).unwrap_or_else(|e| e.to_string());
            assert!(!error.contains("unknown field"), "{key}: {error}");
        }
    }

    #[test]
    fn the_template_is_a_valid_file_also_without_its_comment_signs() {
        let text = template().unwrap();
        toml::from_str::<Config>(&text).unwrap();
        let is_setting = |line: &&str| !line.starts_with("# ") && !line.contains("(not set)");
        let bare: String = text
            .lines()
            .filter(is_setting)
            .map(|line| format!("{}\n", line.trim_start_matches('#')))
            .collect();
        toml::from_str::<Config>(&bare).unwrap_or_else(|error| panic!("{error}\n{bare}"));
    }
}
