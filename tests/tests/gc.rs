//! Deletion of chunks, strays, the check of everything, and metadata that went backwards, on real processes.
//!
//! Times are short here: chunks go 2 s after their last use instead of 10 min. Nothing may go that a file, an
//! open file or an upload under way refers to.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use cairn_proto::v1;
use cairn_tests::cluster::{Builder, forget};
use cairn_tests::wait::until_true;
use cairn_tests::{Cluster, MIB, Wire, disk, pattern};
use serde_json::Value;

/// Grace, session fence, a worker's pause and the datanodes' trash, and time for a busy machine.
const GONE_LIMIT: Duration = Duration::from_secs(40);
/// Longer than it takes until what is garbage goes.
const STAYS: Duration = Duration::from_secs(8);

/// A cluster that deletes soon.
fn quick() -> Builder {
    Cluster::builder()
        .chunk_size(MIB)
        .env("CAIRN_COORDINATOR__LEASE", "1s")
        .env("CAIRN_COORDINATOR__GARBAGE_GRACE", "2s")
        .env("CAIRN_COORDINATOR__RECONCILE_EVERY", "1s")
        .env("CAIRN_DATANODE__TRASH_TIME", "1s")
}

fn chunks_on(cluster: &Cluster, index: usize) -> u64 {
    let answer = cluster.runtime().block_on(async {
        let mut client = cairn_tests::rpc::datanode_client(cluster.node_address(index));
        client.get_node_status(v1::GetNodeStatusRequest {}).await
    });
    answer.expect("GetNodeStatus").into_inner().chunks
}

fn gc_status(cluster: &Cluster) -> Value {
    serde_json::from_str(&cluster.run_ok(&["gc", "status", "--json"])).expect("JSON")
}

/// What `cairn fsck` found, and its exit status.
fn fsck(cluster: &Cluster, arguments: &[&str]) -> (Vec<Value>, i32) {
    let output = cluster.run(&[&["fsck", "--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let told: Vec<Value> = lines.filter(|line| line["event"] != "progress").collect();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told.last().map(|line| &line["event"]), Some(&"summary".into()), "{text}\n{error}");
    (told, output.status.code().expect("an exit status"))
}

fn codes(told: &[Value]) -> Vec<&str> {
    told.iter().filter_map(|line| line["code"].as_str()).collect()
}

#[track_caller]
fn is_sound(cluster: &Cluster) {
    let (told, exit) = fsck(cluster, &[]);
    assert_eq!(exit, 0, "{told:#?}");
    assert_eq!(codes(&told), [""; 0], "{told:#?}");
}

fn synced(path: &Path, seed: u64, length: u64) {
    pattern::write_file(path, seed, length);
    std::fs::File::open(path).and_then(|file| file.sync_all()).expect("fsync");
}

#[test]
fn room_of_deleted_and_overwritten_files_comes_back() {
    let cluster = quick().start();
    let mount = cluster.mount_path();
    synced(&mount.join("stays"), 1, 2 * MIB);
    synced(&mount.join("goes"), 2, 20 * MIB);
    synced(&mount.join("changes"), 3, 8 * MIB);
    // Segments are preallocated: the room shows when it is given back.
    let full = disk::usage(cluster.node_data(0));
    std::fs::remove_file(mount.join("goes")).expect("unlink");
    // The first half again.
    let file = std::fs::File::options().write(true).open(mount.join("changes")).expect("open");
    file.write_all_at(&pattern::bytes(4, 0, 4 * MIB as usize), 0).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    for index in 0..3 {
        until_true("the deleted chunks to go", GONE_LIMIT, || chunks_on(&cluster, index) == 2 + 8);
        until_true("their room to come back", GONE_LIMIT, || {
            disk::usage(cluster.node_data(index)) < full - 15 * MIB
        });
    }
    until_true("the queue to be empty", GONE_LIMIT, || cluster.wire().status().garbage_chunks == 0);
    assert!(gc_status(&cluster)["deleted"].as_u64() >= Some(24));
    forget(&mount);
    pattern::check_file(&mount.join("stays"), 1, 2 * MIB);
    let mut text = vec![0; 4 * MIB as usize];
    let mut file = std::fs::File::open(mount.join("changes")).expect("open");
    file.read_exact(&mut text).expect("read");
    assert_eq!(pattern::first_difference(4, 0, &text), None);
    file.read_exact(&mut text).expect("read");
    assert_eq!(pattern::first_difference(3, 4 * MIB, &text), None);
    is_sound(&cluster);
}

/// Chunks are left alone for their first minute, in which they may still be written over.
const COMPACT_LIMIT: Duration = Duration::from_secs(100);

#[test]
fn what_is_left_of_mostly_dead_chunks_goes_into_small_ones() {
    const LENGTH: u64 = 8 * MIB;
    const KEPT: u64 = 100_000;
    let cluster = quick().start();
    let mount = cluster.mount_path();
    let path = mount.join("file");
    synced(&path, 8, LENGTH);
    cluster.run_ok(&["cp", "/file", "/copy"]);
    // Of each chunk something in the middle stays.
    let at = |chunk: u64| chunk * MIB + 300_000 + chunk * 5000;
    let punched = |path: &Path| {
        let file = std::fs::File::options().write(true).open(path).expect("open");
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let mut from = 0;
        for chunk in 0..LENGTH / MIB {
            rustix::fs::fallocate(&file, flags, from, at(chunk) - from).expect("punch");
            from = at(chunk) + KEPT;
        }
        rustix::fs::fallocate(&file, flags, from, LENGTH - from).expect("punch");
        file.sync_all().expect("fsync");
    };
    let mut wanted = vec![0; LENGTH as usize];
    for chunk in 0..LENGTH / MIB {
        let range = at(chunk) as usize..(at(chunk) + KEPT) as usize;
        wanted[range].copy_from_slice(&pattern::bytes(8, at(chunk), KEPT as usize));
    }
    let check = |path: &Path| {
        let found = std::fs::read(path).expect("read");
        let wrong = found.iter().zip(&wanted).position(|(a, b)| a != b);
        assert_eq!((found.len(), wrong), (wanted.len(), None), "{}", path.display());
    };
    [path.clone(), mount.join("copy")].iter().for_each(|path| punched(path));
    // Who has it open goes on reading, by the layout of before.
    let mut open = std::fs::File::open(&path).expect("open");
    let full = disk::usage(cluster.node_data(0));
    let wire = cluster.wire();
    let sets = wire.list_nodes().expect("ListNodes").map.expect("map").sets.len() as u64;
    assert!(sets < LENGTH / MIB, "what lies in one set goes into one chunk: {sets} sets");
    for index in 0..3 {
        until_true("the old chunks to give way to new ones", COMPACT_LIMIT, || {
            std::thread::sleep(Duration::from_secs(1));
            cluster.run_ok(&["worker", "start", "compact"]);
            (1..=sets).contains(&chunks_on(&cluster, index))
        });
        until_true("their room to come back", GONE_LIMIT, || {
            disk::usage(cluster.node_data(index)) < full - 6 * MIB
        });
    }
    let mut found = Vec::new();
    open.read_to_end(&mut found).expect("read");
    assert!(found == wanted, "an open file reads something else");
    forget(&mount);
    [path, mount.join("copy")].iter().for_each(|path| check(path));
    is_sound(&cluster);
}

#[test]
fn an_open_file_and_a_copy_keep_the_chunks_of_what_was_deleted() {
    let mut cluster = quick().start();
    let mount = cluster.mount_path();
    synced(&mount.join("open"), 5, 3 * MIB);
    synced(&mount.join("original"), 6, 3 * MIB);
    cluster.run_ok(&["cp", "/original", "/copy"]);
    let mut open = std::fs::File::open(mount.join("open")).expect("open");
    for name in ["open", "original"] {
        std::fs::remove_file(mount.join(name)).expect("unlink");
    }
    std::thread::sleep(STAYS);
    // The coordinator forgets who has what open, and is told again.
    cluster.kill9_coordinator();
    cluster.start_coordinator();
    cluster.wait_formed();
    std::thread::sleep(STAYS);
    forget(&mount);
    let mut text = Vec::new();
    open.seek(SeekFrom::Start(0)).expect("seek");
    open.read_to_end(&mut text).expect("read");
    assert_eq!((text.len() as u64, pattern::first_difference(5, 0, &text)), (3 * MIB, None));
    pattern::check_file(&mount.join("copy"), 6, 3 * MIB);
    assert_eq!(chunks_on(&cluster, 0), 6);
    drop(open);
    until_true("the closed file's chunks to go", GONE_LIMIT, || chunks_on(&cluster, 0) == 3);
    std::fs::remove_file(mount.join("copy")).expect("unlink");
    until_true("the last copy's chunks to go", GONE_LIMIT, || {
        (0..3).all(|index| chunks_on(&cluster, index) == 0)
    });
    is_sound(&cluster);
}

#[test]
fn an_upload_under_way_keeps_its_chunk_and_one_that_is_given_up_does_not() {
    let cluster = quick().unmounted().env("CAIRN_COORDINATOR__PLAN_TIME", "15s").start();
    let wire = cluster.wire();
    let (data, given_up) = (pattern::bytes(7, 0, 300_000), pattern::bytes(8, 0, 300_000));
    let [planned, other] = [wire.plan_one(), wire.plan_one()];
    let ack = wire.store(&planned, &data, true);
    wire.store(&other, &given_up, true);
    // Listed as held for nothing, several times over.
    std::thread::sleep(STAYS);
    let inode = wire.create("late");
    let chunk = wire.stored_chunk(&planned, &data, &ack);
    wire.confirm(wire.commit_of(inode, chunk)).expect("the commit of a chunk that was stored long ago");
    until_true("the upload that was given up to go", GONE_LIMIT, || wire.holders(other.chunk).is_empty());
    assert_eq!(wire.check_replicas(inode, 7, 300_000, 3), 3);
    assert!(gc_status(&cluster)["strays_deleted"].as_u64() >= Some(3));
    is_sound(&cluster);
}

#[test]
fn a_datanode_that_was_away_during_a_deletion_deletes_when_it_returns() {
    let mut cluster = quick().start();
    let mount = cluster.mount_path();
    synced(&mount.join("file"), 9, 4 * MIB);
    synced(&mount.join("stays"), 10, 2 * MIB);
    cluster.kill9_node(1);
    std::fs::remove_file(mount.join("file")).expect("unlink");
    until_true("the others to delete", GONE_LIMIT, || {
        chunks_on(&cluster, 0) == 2 && chunks_on(&cluster, 2) == 2
    });
    until_true("gc to say whom it waits for", GONE_LIMIT, || {
        let status = gc_status(&cluster);
        status["garbage"] == 4
            && status["overdue"] == 4
            && status["waiting_for"].as_array().map(Vec::len) == Some(1)
    });
    cluster.start_node(1);
    cluster.wait_formed();
    until_true("the returned datanode to delete", GONE_LIMIT, || chunks_on(&cluster, 1) == 2);
    until_true("the queue to be empty", GONE_LIMIT, || gc_status(&cluster)["garbage"] == 0);
    forget(&mount);
    pattern::check_file(&mount.join("stays"), 10, 2 * MIB);
}

#[test]
fn deletion_that_an_operator_has_stopped_stays_so_over_a_restart() {
    let mut cluster = quick().start();
    let mount = cluster.mount_path();
    synced(&mount.join("file"), 11, 2 * MIB);
    cluster.run_ok(&["gc", "pause"]);
    std::fs::remove_file(mount.join("file")).expect("unlink");
    cluster.kill9_coordinator();
    cluster.start_coordinator();
    cluster.wait_formed();
    std::thread::sleep(STAYS);
    assert_eq!(chunks_on(&cluster, 0), 2);
    assert!(cluster.wire().status().health.iter().any(|code| code.code == "GC_PAUSED"));
    cluster.run_ok(&["gc", "resume"]);
    until_true("the chunks to go", GONE_LIMIT, || chunks_on(&cluster, 0) == 0);
}

/// Deletes chunks behind the coordinator's back.
fn remove_copies(cluster: &Cluster, wire: &Wire, chunks: &[u64], nodes: usize) {
    let (told, _) = fsck(cluster, &["--metadata-only"]);
    let sequence = told.last().and_then(|line| line["sequence"].as_u64()).expect("a sequence");
    let map = wire.list_nodes().expect("ListNodes").map.expect("map");
    for (_, mut client) in wire.nodes().take(nodes) {
        let request =
            v1::DeleteChunksRequest { chunks: chunks.to_vec(), term: map.term, epoch: map.epoch, sequence };
        // The datanode may have heard of a later commit: then with that.
        until_true("the datanode to delete", Duration::from_secs(10), || {
            let request = v1::DeleteChunksRequest { sequence: sequence + 2, ..request.clone() };
            wire.call(client.delete_chunks(request)).is_ok_and(|answer| answer.failed.is_empty())
        });
    }
}

#[test]
fn fsck_finds_a_sound_cluster_sound_and_names_the_file_that_is_lost() {
    let cluster = quick().env("CAIRN_COORDINATOR__RECONCILE_EVERY", "1h").start();
    let mount = cluster.mount_path();
    std::fs::create_dir_all(mount.join("some/where")).expect("mkdir");
    synced(&mount.join("some/where/lost"), 12, MIB);
    synced(&mount.join("some/fewer"), 13, MIB);
    synced(&mount.join("well"), 14, MIB);
    let (told, exit) = fsck(&cluster, &[]);
    assert_eq!((exit, codes(&told)), (0, vec![]), "{told:#?}");
    let summary = told.last().expect("a summary");
    assert_eq!(
        (&summary["inodes"], &summary["chunks"], &summary["copies"]),
        (&6.into(), &3.into(), &9.into())
    );
    let wire = cluster.wire();
    let chunk_of = |path: &str| {
        let located: Value =
            serde_json::from_str(&cluster.run_ok(&["locate", "--json", path])).expect("JSON");
        let text = located.to_string();
        located
            .pointer("/extents/0/chunk")
            .or_else(|| located.pointer("/0/extents/0/chunk"))
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no chunk in {text}"))
    };
    remove_copies(&cluster, &wire, &[chunk_of("/some/where/lost")], 3);
    remove_copies(&cluster, &wire, &[chunk_of("/some/fewer")], 2);
    let (told, exit) = fsck(&cluster, &["--repair"]);
    assert_eq!(exit, 4, "{told:#?}");
    let damaged: Vec<_> = told.iter().filter(|line| line["code"] == "FILE_DAMAGED").collect();
    assert_eq!(damaged.len(), 1, "{told:#?}");
    assert_eq!((&damaged[0]["path"], &damaged[0]["bytes"]), (&"/some/where/lost".into(), &MIB.into()));
    assert_eq!(told.iter().filter(|line| line["code"] == "CHUNK_LOST").count(), 1, "{told:#?}");
    // Five copies are missing, and now queued for repair.
    let missing: Vec<_> = told.iter().filter(|line| line["code"] == "COPY_MISSING").collect();
    assert_eq!(missing.len(), 5, "{told:#?}");
    assert!(missing.iter().all(|line| line["repaired"] == true), "{told:#?}");
    forget(&mount);
    pattern::check_file(&mount.join("some/fewer"), 13, MIB);
    pattern::check_file(&mount.join("well"), 14, MIB);
}

#[test]
fn an_old_copy_of_the_metadata_deletes_nothing_until_it_is_accepted() {
    // The copy knows of plans that the forgotten files used up: they have to be over, too.
    let mut cluster = quick().env("CAIRN_COORDINATOR__PLAN_TIME", "10s").start();
    let mount = cluster.mount_path();
    synced(&mount.join("before"), 15, 3 * MIB);
    // A copy of the store as of now.
    cluster.kill9_coordinator();
    let store = cluster.coordinator_data().to_owned();
    let copy = cluster.path().join("copy");
    copy_directory(&store, &copy);
    cluster.start_coordinator();
    cluster.wait_formed();
    synced(&mount.join("after"), 16, 3 * MIB);
    std::fs::remove_file(mount.join("before")).expect("unlink");
    // Put back, by hand, while datanodes go on. The reigns until then have to be made up for.
    cluster.kill9_mount();
    cluster.kill9_coordinator();
    std::fs::remove_dir_all(&store).expect("rmdir");
    copy_directory(&copy, &store);
    for _ in 0..2 {
        cluster.start_coordinator();
        cluster.kill9_coordinator();
    }
    cluster.restart();
    let mount = cluster.mount_path();
    let status = cluster.wire().status();
    assert!(status.health.iter().any(|code| code.code == "METADATA_ROLLED_BACK" && code.error), "{status:?}");
    pattern::check_file(&mount.join("before"), 15, 3 * MIB);
    // New files get ids that were never used, at once.
    synced(&mount.join("new"), 17, 3 * MIB);
    std::fs::remove_file(mount.join("new")).expect("unlink");
    synced(&mount.join("newer"), 18, 3 * MIB);
    std::thread::sleep(STAYS);
    assert_eq!(chunks_on(&cluster, 0), 12, "nothing was deleted");
    let refused = cluster.run(&["gc", "resume"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--accept-rollback"), "{refused:?}");
    is_sound(&cluster);
    cluster.run_ok(&["gc", "resume", "--accept-rollback"]);
    // What was written after the copy, and what was removed since, goes.
    until_true("the forgotten chunks to go", GONE_LIMIT, || {
        (0..3).all(|index| chunks_on(&cluster, index) == 6)
    });
    assert!(!cluster.wire().status().health.iter().any(|code| code.code == "METADATA_ROLLED_BACK"));
    forget(&mount);
    pattern::check_file(&mount.join("before"), 15, 3 * MIB);
    pattern::check_file(&mount.join("newer"), 18, 3 * MIB);
}

#[test]
fn scrub_finds_a_flipped_bit_and_it_is_repaired() {
    use std::os::unix::fs::MetadataExt;
    let cluster = quick().start();
    let path = cluster.mount_path().join("file");
    synced(&path, 19, 4 * MIB);
    let inode = std::fs::metadata(&path).expect("stat").ino();
    let wire = cluster.wire();
    // In the payload of the first chunk of a segment.
    let segments = std::fs::read_dir(cluster.node_data(0).join("segments")).expect("readdir");
    let segment = segments.map(|entry| entry.expect("entry").path()).min().expect("a segment");
    let file = std::fs::File::options().read(true).write(true).open(segment).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 300_000).expect("read");
    file.write_all_at(&[byte[0] ^ 4], 300_000).expect("write");
    cluster.run(&["scrub", "start"]);
    until_true("the scrub to find it", GONE_LIMIT, || {
        let output = cluster.run(&["scrub", "status", "--json"]);
        let nodes: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let bad = |node: &Value| {
            let of = |key: &str| node["status"][key].as_u64().unwrap_or(0);
            of("bad").max(of("bad_last")) // once the pass has ended it stands in both
        };
        nodes.as_array().is_some_and(|nodes| nodes.iter().map(bad).sum::<u64>() == 1)
    });
    until_true("every copy to be good again", GONE_LIMIT, || {
        let chunks = wire.layout(inode).expect("layout").chunks;
        wire.status().faults == 0
            && wire.nodes().all(|(node, _)| chunks.iter().all(|chunk| wire.retrieve(node, chunk).is_ok()))
    });
    assert_eq!(wire.check_replicas(inode, 19, 4 * MIB, 3), 12);
    is_sound(&cluster);
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("readdir") {
        let entry = entry.expect("entry");
        if entry.file_type().expect("type").is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
        }
    }
}

#[test]
fn a_datanode_that_has_seen_a_later_reign_is_told_what_to_do() {
    let mut cluster = quick().unmounted().start();
    let store = cluster.coordinator_data().to_owned();
    let copy = cluster.path().join("copy");
    cluster.kill9_coordinator();
    copy_directory(&store, &copy);
    for _ in 0..3 {
        cluster.start_coordinator();
        cluster.wait_formed();
        std::thread::sleep(Duration::from_secs(2));
        cluster.kill9_coordinator();
    }
    std::fs::remove_dir_all(&store).expect("rmdir");
    copy_directory(&copy, &store);
    cluster.start_coordinator();
    let log = cluster.path().join("logs/datanode0");
    until_true("the datanode to say why it may not register", GONE_LIMIT, || {
        std::fs::read_to_string(&log).unwrap_or_default().contains("cairn coordinator restore")
    });
}
