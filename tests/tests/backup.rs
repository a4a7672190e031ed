//! The metadata is lost and comes back: the procedure of docs/operations.md, followed literally.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cairn_tests::{Cluster, need_root, pattern, rounds, wait};
use serde_json::Value;

/// Files whose content is known.
#[derive(Default)]
struct Known(BTreeMap<PathBuf, (u64, usize)>);

impl Known {
    /// Writes `count` files and notes each that `fsync` has returned for.
    fn write(&mut self, mount: &Path, directory: &str, count: u64) {
        let directory = PathBuf::from(directory);
        std::fs::create_dir_all(mount.join(&directory)).unwrap();
        for number in 0..count {
            let path = directory.join(format!("file-{number}"));
            let length = usize::try_from(1000 + number * 37_501).unwrap();
            let mut file = std::fs::File::create(mount.join(&path)).unwrap();
            std::io::Write::write_all(&mut file, &pattern::bytes(number, 0, length)).unwrap();
            file.sync_all().unwrap();
            self.0.insert(path, (number, length));
        }
    }

    #[track_caller]
    fn check(&self, mount: &Path) {
        assert!(!self.0.is_empty(), "nothing was written");
        for (path, (seed, length)) in &self.0 {
            let found = std::fs::read(mount.join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(found == pattern::bytes(*seed, 0, *length), "{} has other bytes", path.display());
        }
    }
}

fn status(cluster: &Cluster) -> Value {
    let output = cluster.run(&["status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn wait_shipped(cluster: &Cluster) {
    wait::until_true("the second place to have everything", Duration::from_secs(60), || {
        let log = &status(cluster)["metadata_log"];
        log["covered"] == true && log["shipped"] == log["committed"]
    });
}

/// Destroys the coordinator's directory with the coordinator, restores it, starts everything again.
fn lose_and_restore(cluster: &mut Cluster, from: &[&str]) -> Value {
    cluster.kill9_mount();
    cluster.kill9_coordinator();
    let data = cluster.coordinator_data().to_owned();
    std::fs::remove_dir_all(&data).unwrap();
    let data = data.display().to_string();
    let mut arguments = vec!["coordinator", "restore", "--json", "--data", &data];
    for place in from {
        arguments.extend(["--from", place]);
    }
    let restored: Value = serde_json::from_str(&cluster.run_ok(&arguments)).unwrap();
    cluster.restart();
    restored
}

#[test]
fn what_was_acknowledged_is_there_after_the_coordinators_disk_is_lost() {
    need_root();
    let place = tempfile::tempdir().unwrap();
    let shown = place.path().display().to_string();
    let mut cluster = Cluster::builder()
        .env("CAIRN_COORDINATOR__LOG_SHIP", &shown)
        .env("CAIRN_COORDINATOR__LOG_ACK", "shipped")
        .start();
    let mut known = Known::default();
    known.write(&cluster.mount_path(), "before", 30);
    let told = cluster.run_ok(&["coordinator", "backup"]);
    assert!(told.contains("base-"), "{told}");
    known.write(&cluster.mount_path(), "after", 30);
    std::fs::rename(cluster.mount_path().join("before/file-3"), cluster.mount_path().join("renamed"))
        .unwrap();
    cairn_tests::workload::sync_directory(&cluster.mount_path()).unwrap();
    let moved = known.0.remove(Path::new("before/file-3")).unwrap();
    known.0.insert("renamed".into(), moved);
    // The last thing before the end: acknowledged, so in the place, without a wait.
    known.write(&cluster.mount_path(), "last", 1);
    let restored = lose_and_restore(&mut cluster, &[&shown]);
    assert!(restored["sequence"].as_u64() > restored["base_sequence"].as_u64(), "{restored}");
    assert_eq!(restored["warnings"], serde_json::json!([]));
    known.check(&cluster.mount_path());
    assert!(!cluster.mount_path().join("before/file-3").exists());
    // It can be written to, and lost once more.
    known.write(&cluster.mount_path(), "again", 10);
    lose_and_restore(&mut cluster, &[&shown]);
    known.check(&cluster.mount_path());
}

/// How far the second place is behind while names are made as fast as eight programs can.
#[test]
fn the_second_place_keeps_up() {
    need_root();
    let seconds = rounds::count(4);
    for place in ["directory", "datanode"] {
        let directory = tempfile::tempdir().unwrap();
        let shown = match place {
            "datanode" => place.to_owned(),
            _ => directory.path().display().to_string(),
        };
        let cluster = Cluster::builder().env("CAIRN_COORDINATOR__LOG_SHIP", &shown).start();
        wait_shipped(&cluster);
        let (wire, mount) = (cluster.wire(), cluster.mount_path());
        let end = Instant::now() + Duration::from_secs(seconds);
        let make = |thread: u64| {
            let directory = mount.join(format!("{thread}"));
            std::fs::create_dir(&directory).unwrap();
            let mut made = 0;
            while Instant::now() < end {
                std::fs::write(directory.join(format!("{made}")), pattern::bytes(made, 0, 1000)).unwrap();
                made += 1;
            }
            made
        };
        let (made, looks, longest_ms) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || make(thread))).collect();
            let (mut looks, mut longest_ms) = (0, 0);
            while Instant::now() < end {
                let log = wire.status().metadata_log.expect("a second place");
                (looks, longest_ms) = (looks + 1, longest_ms.max(log.behind_ms));
                std::thread::sleep(Duration::from_millis(10));
            }
            (threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>(), looks, longest_ms)
        });
        wait_shipped(&cluster);
        let more = format!("{looks} looks, behind for {longest_ms} ms at most");
        rounds::report_load(&format!("shipping to a {place}"), made, &more);
    }
}

/// Backups are made without anybody asking, and old ones go.
#[test]
fn backups_are_made_on_schedule() {
    need_root();
    let place = tempfile::tempdir().unwrap();
    let shown = place.path().display().to_string();
    let mut cluster = Cluster::builder()
        .env("CAIRN_COORDINATOR__LOG_SHIP", &shown)
        .env("CAIRN_COORDINATOR__BACKUP_EVERY", "1min")
        .env("CAIRN_COORDINATOR__BACKUP_KEEP", 1)
        .start();
    let mut known = Known::default();
    known.write(&cluster.mount_path(), "files", 20);
    wait_shipped(&cluster);
    let written = status(&cluster)["metadata_log"]["committed"].as_u64().unwrap();
    let listed = || {
        let names = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let bases = names.filter(|name| name.to_string_lossy().starts_with("base-"));
        bases.collect::<Vec<_>>()
    };
    let first = listed();
    assert_eq!(first.len(), 1, "the one that the log begins with: {first:?}");
    wait::until_true("another backup to take its place", Duration::from_secs(120), || {
        let now = listed();
        now.len() == 1 && now != first
    });
    known.write(&cluster.mount_path(), "later", 5);
    wait_shipped(&cluster);
    let restored = lose_and_restore(&mut cluster, &[&shown]);
    assert!(restored["base_sequence"].as_u64() >= Some(written), "{restored}, {written} at the first");
    known.check(&cluster.mount_path());
}

#[test]
fn the_datanodes_can_keep_the_log() {
    need_root();
    let mut cluster = Cluster::builder().env("CAIRN_COORDINATOR__LOG_SHIP", "datanode").start();
    let mut known = Known::default();
    known.write(&cluster.mount_path(), "files", 20);
    wait_shipped(&cluster);
    let places: Vec<String> = (0..cluster.nodes())
        .filter(|&index| cluster.node_data(index).join("metalog").exists())
        .map(|index| format!("datanode:{}", cluster.node_address(index)))
        .collect();
    assert_eq!(places.len(), 2, "as many as log_copies says");
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    lose_and_restore(&mut cluster, &places);
    known.check(&cluster.mount_path());
    // Also from the directory itself, when the datanode does not run.
    known.write(&cluster.mount_path(), "more", 5);
    wait_shipped(&cluster);
    let shelves = (0..cluster.nodes()).map(|index| cluster.node_data(index).join("metalog"));
    let shelves: Vec<String> =
        shelves.filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
    let shelves: Vec<&str> = shelves.iter().map(String::as_str).collect();
    lose_and_restore(&mut cluster, &shelves);
    known.check(&cluster.mount_path());
}

#[test]
fn without_a_second_place_a_backup_file_is_enough_for_what_it_holds() {
    need_root();
    let mut cluster = Cluster::builder().start();
    let mut known = Known::default();
    known.write(&cluster.mount_path(), "files", 20);
    let file = cluster.path().join("metadata.cairn").display().to_string();
    cluster.run_ok(&["coordinator", "backup", &file]);
    let again = cluster.run(&["coordinator", "backup", &file]);
    assert_eq!(again.status.code(), Some(2), "it is not overwritten");
    let refused = cluster.run(&["coordinator", "backup"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("log_ship"), "{why}");
    lose_and_restore(&mut cluster, &[&file]);
    known.check(&cluster.mount_path());
}

/// A place that goes away makes changes wait with `log_ack = shipped`, and they go on when it is back.
#[test]
fn changes_wait_for_a_place_that_is_away() {
    need_root();
    let top = tempfile::tempdir().unwrap();
    let (place, aside) = (top.path().join("place"), top.path().join("aside"));
    std::fs::create_dir(&place).unwrap();
    let mut cluster = Cluster::builder()
        .env("CAIRN_COORDINATOR__LOG_SHIP", place.display())
        .env("CAIRN_COORDINATOR__LOG_ACK", "shipped")
        .start();
    let mut known = Known::default();
    known.write(&cluster.mount_path(), "files", 5);
    cluster.kill9_coordinator();
    std::fs::rename(&place, &aside).unwrap();
    cluster.start_coordinator();
    cluster.wait_formed();
    known.check(&cluster.mount_path());
    let mount = cluster.mount_path();
    let (apart, is_apart) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        // Else a process that is started meanwhile would wait to close the writer's file, too.
        cairn_tests::workload::keep_files_apart();
        apart.send(()).unwrap();
        let mut known = Known::default();
        known.write(&mount, "waits", 1);
        known
    });
    is_apart.recv().unwrap();
    wait::until_true("the health code", Duration::from_secs(60), || {
        let status = status(&cluster);
        let codes = status["health"].as_array().unwrap();
        codes.iter().any(|code| code["code"] == "LOG_BEHIND" && code["error"] == true)
    });
    assert!(!writer.is_finished(), "a change was acknowledged without the place");
    std::fs::rename(&aside, &place).unwrap();
    let waited = writer.join().unwrap();
    known.0.extend(waited.0);
    lose_and_restore(&mut cluster, &[&place.display().to_string()]);
    known.check(&cluster.mount_path());
}
