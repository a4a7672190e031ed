//! Redundancy that was lost comes back by itself: real processes are killed, emptied, added; afterwards
//! every copy of every chunk is fetched and compared.
//!
//! Times are short so that tests are, but none decides about the outcome: what is waited for is a state.
//! A datanode that a slow machine makes silent for too long is one more that heals.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::v1::{self, AdminState, MemberState, NodeState};
use cairn_tests::{Builder, Cluster, KIB, MIB, Wire, need_root, pattern, rounds, wait};

/// How long anything may take here.
const LIMIT: Duration = Duration::from_secs(100);
const CHUNK: u64 = 256 * KIB;

/// Datanodes are given up soon, and what is deleted goes soon.
fn hasty() -> Builder {
    Cluster::builder()
        .unmounted()
        .chunk_size(CHUNK)
        .env("CAIRN_COORDINATOR__HEARTBEAT", "200ms")
        .env("CAIRN_COORDINATOR__SUSPECT_AFTER", "1s")
        .env("CAIRN_COORDINATOR__DOWN_AFTER", "2s")
        .env("CAIRN_COORDINATOR__LOST_AFTER", "4s")
        .env("CAIRN_COORDINATOR__REBALANCE_EVERY", "1s")
        .env("CAIRN_DATANODE__METRICS_LISTEN", "127.0.0.1:0")
}

/// A file of pattern bytes, and what it is called.
#[derive(Clone, Copy)]
struct Written {
    name: &'static str,
    seed: u64,
    length: u64,
    inode: u64,
}

/// Puts a file into the cluster as a person would.
#[track_caller]
fn put(cluster: &Cluster, wire: &Wire, name: &'static str, length: u64) -> Written {
    let seed = name.bytes().map(u64::from).sum();
    let local = cluster.local().join(name);
    pattern::write_file(&local, seed, length);
    cluster.run_ok(&["put", local.to_str().unwrap(), &format!("/{name}")]);
    let inode = wire.lookup(name).expect("the file").inode;
    Written { name, seed, length, inode }
}

/// Every copy that there should be is there and right; and so is what a reader gets.
#[track_caller]
fn check(cluster: &Cluster, wire: &mut Wire, files: &[Written], copies: usize) {
    wire.refresh();
    for file in files {
        let seen = wire.check_replicas(file.inode, file.seed, file.length, copies);
        assert_eq!(seen as u64, file.length.div_ceil(CHUNK) * copies as u64, "copies of {}", file.name);
        let back = cluster.local().join("back");
        cluster.run_ok(&["get", "--overwrite", &format!("/{}", file.name), back.to_str().unwrap()]);
        pattern::check_file(&back, file.seed, file.length);
    }
}

fn map(wire: &Wire) -> v1::ClusterMap {
    wire.list_nodes().expect("ListNodes").map.expect("map")
}

#[track_caller]
fn node_at(cluster: &Cluster, wire: &Wire, index: usize) -> v1::Node {
    let address = cluster.node_address(index);
    let found = map(wire).nodes.into_iter().find(|node| node.address == address);
    found.unwrap_or_else(|| panic!("no datanode at {address}"))
}

/// An id as commands take it.
fn id_text(node: &[u8]) -> String {
    node.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>()[..8].to_owned()
}

fn wait_for_state(wire: &Wire, node: &Bytes, state: NodeState) {
    wait::until_true(&format!("a datanode to be {state:?}"), LIMIT, || {
        map(wire).nodes.iter().any(|known| known.node == *node && known.state() == state)
    });
}

/// Whether every set has exactly `copies` members, all active and up, and no copy is known to be missing.
fn is_whole(status: &v1::GetStatusResponse, copies: usize) -> bool {
    let map = status.map.as_ref().expect("map");
    let up = |node: &Bytes| map.nodes.iter().any(|n| n.node == *node && n.state() == NodeState::Up);
    let whole = |set: &v1::ReplicaSet| {
        set.members.len() == copies
            && set.members.iter().all(|member| member.state() == MemberState::Active && up(&member.node))
    };
    status.faults == 0 && !map.sets.is_empty() && map.sets.iter().all(whole)
}

/// Waits until all is whole. Panics with what it was like.
#[track_caller]
fn wait_whole(wire: &Wire, copies: usize) {
    let end = std::time::Instant::now() + LIMIT;
    loop {
        let status = wire.status();
        if is_whole(&status, copies) {
            return;
        }
        if std::time::Instant::now() > end {
            let map = status.map.unwrap_or_default();
            panic!(
                "not whole after {LIMIT:?}: {} faults; sets {:#?}; nodes {:#?}; workers {:#?}",
                status.faults, map.sets, map.nodes, status.workers
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A counter in the Prometheus text of a datanode; 0 while it has not counted anything.
fn counter(node: &v1::Node, name: &str) -> u64 {
    let mut stream = std::net::TcpStream::connect(&node.metrics_address).expect("metrics address");
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", node.metrics_address);
    stream.write_all(request.as_bytes()).expect("request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn copies_of_a_datanode_that_is_gone_for_good_are_made_again() {
    let mut cluster = hasty().datanodes(4).start();
    let mut wire = cluster.wire();
    let files = [put(&cluster, &wire, "one", 12 * MIB), put(&cluster, &wire, "two", 5 * MIB + 77)];
    check(&cluster, &mut wire, &files, 3);
    let gone = node_at(&cluster, &wire, 0).node;
    let held = map(&wire).sets.iter().filter(|set| set.members.iter().any(|m| m.node == gone)).count();
    assert!(held > 0, "the datanode is in no set: nothing would be proved");
    cluster.kill9_node(0);
    wait_for_state(&wire, &gone, NodeState::Lost);
    // The coordinator is killed, too, somewhere on the way.
    cluster.kill9_coordinator();
    cluster.start_coordinator();
    let mut wire = cluster.wire();
    wait_whole(&wire, 3);
    assert!(map(&wire).sets.iter().all(|set| set.members.iter().all(|member| member.node != gone)));
    check(&cluster, &mut wire, &files, 3);
}

/// A datanode of many chunks is lost; says how fast its copies were made again. The time decides nothing here:
/// `scripts/reliability repair` shows it for 10,000 chunks.
#[test]
fn many_chunks_of_a_lost_datanode_are_made_again_by_all_others() {
    const RATE: u64 = 64 * MIB;
    let held = rounds::count(300);
    let mut cluster = hasty().datanodes(4).env("CAIRN_COORDINATOR__REPAIR_RATE", RATE).start();
    let mut wire = cluster.wire();
    // Of four datanodes each has three quarters of all chunks.
    let file = put(&cluster, &wire, "file", held.div_ceil(3) * 4 * CHUNK);
    let gone = node_at(&cluster, &wire, 0).node;
    cluster.kill9_node(0);
    wait_for_state(&wire, &gone, NodeState::Lost);
    let begun = std::time::Instant::now();
    wait_whole(&wire, 3);
    let seconds = begun.elapsed().as_secs_f64();
    let copied: Vec<u64> = (1..4)
        .map(|index| counter(&node_at(&cluster, &wire, index), "cairn_datanode_chunk_copied_bytes_total"))
        .collect();
    assert!(copied.iter().all(|&bytes| bytes > 0), "not all of the others took a part: {copied:?}");
    check(&cluster, &mut wire, &[file], 3);
    let bytes: u64 = copied.iter().sum();
    let share = bytes as f64 / seconds / (RATE * copied.len() as u64) as f64;
    let more = format!(
        "{} chunks of {} MiB made again in {seconds:.1} s: {:.0} MiB/s, {:.0} % of what three datanodes may fetch",
        bytes / CHUNK,
        bytes / MIB,
        bytes as f64 / MIB as f64 / seconds,
        share * 100.0
    );
    rounds::report("repair", 1, bytes / CHUNK, &more);
}

#[test]
fn a_lost_datanode_that_returns_gets_only_what_it_missed() {
    let mut cluster = hasty().start();
    let mut wire = cluster.wire();
    let before = put(&cluster, &wire, "before", 8 * MIB);
    let node = node_at(&cluster, &wire, 1).node;
    cluster.kill9_node(1);
    // There is nobody else to take its place.
    wait_for_state(&wire, &node, NodeState::Lost);
    wait::until_true("its places to count for nothing", LIMIT, || {
        let state = |member: &v1::Member| (member.node == node).then(|| member.state());
        map(&wire).sets.iter().flat_map(|set| &set.members).filter_map(state).all(|s| s == MemberState::Lost)
    });
    let meanwhile = put(&cluster, &wire, "meanwhile", 3 * MIB);
    assert_eq!(wire.status().faults, 0, "a lost member is owed nothing");
    cluster.start_node(1);
    wait_whole(&wire, 3);
    check(&cluster, &mut wire, &[before, meanwhile], 3);
    // Its process is new, and so are its counters.
    let copied = counter(&node_at(&cluster, &wire, 1), "cairn_datanode_chunk_copied_bytes_total");
    assert_eq!(copied, meanwhile.length, "bytes that it was sent; it missed {}", meanwhile.length);
}

#[test]
fn what_a_datanode_missed_while_it_was_away_is_copied_when_it_is_back() {
    // Away for less than the time after which it is given up.
    let mut cluster = hasty().env("CAIRN_COORDINATOR__LOST_AFTER", "10m").start();
    let mut wire = cluster.wire();
    let before = put(&cluster, &wire, "before", 4 * MIB);
    let node = node_at(&cluster, &wire, 2).node;
    let epoch = map(&wire).epoch;
    cluster.kill9_node(2);
    wait_for_state(&wire, &node, NodeState::Down);
    let meanwhile = put(&cluster, &wire, "meanwhile", 6 * MIB);
    let owed = wire.status().faults;
    assert_eq!(owed, meanwhile.length / CHUNK, "copies that are owed to it");
    // A restart of the coordinator forgets nothing of that, and does not give the datanode up.
    cluster.kill9_coordinator();
    cluster.start_coordinator();
    let mut wire_after = cluster.wire();
    assert_eq!(wire_after.status().faults, owed);
    wait_for_state(&wire_after, &node, NodeState::Down);
    cluster.start_node(2);
    wait_whole(&wire_after, 3);
    assert_eq!(map(&wire_after).epoch, epoch, "no set was changed for it");
    check(&cluster, &mut wire_after, &[before, meanwhile], 3);
    wire.refresh();
}

#[test]
fn a_copy_that_was_lost_between_its_store_and_its_commit_is_made_again() {
    let mut cluster = hasty().env("CAIRN_COORDINATOR__LOST_AFTER", "10m").start();
    let mut wire = cluster.wire();
    let inode = wire.create("file");
    let planned = wire.plan_one();
    let data = pattern::bytes(9, 0, CHUNK as usize);
    let ack = wire.store(&planned, &data, false);
    let stored = wire.stored_chunk(&planned, &data, &ack);
    assert_eq!(stored.stored_by.len(), 3, "{ack:?}");
    // Its power fails before anything was synced, and it is back, and compared, before the commit.
    let node = node_at(&cluster, &wire, 1).node;
    cluster.kill9_node(1);
    std::fs::remove_dir_all(cluster.node_data(1).join("segments")).expect("remove");
    cluster.start_node(1);
    wait_for_state(&wire, &node, NodeState::Up);
    std::thread::sleep(Duration::from_secs(2));
    wire.confirm(wire.commit_of(inode, stored)).expect("commit");
    wire.refresh();
    let chunk = wire.layout(inode).expect("layout").chunks.remove(0);
    assert!(wire.retrieve(&node, &chunk).is_err(), "it was lost");
    let is_back = || wire.retrieve(&node, &chunk).is_ok() && wire.status().faults == 0;
    wait::until_true("the copy to be made again", LIMIT, is_back);
    assert_eq!(wire.check_replicas(inode, 9, CHUNK, 3), 3);
}

#[test]
fn a_datanode_is_drained_and_removed_and_may_not_come_back() {
    let mut cluster = hasty().datanodes(4).start();
    let mut wire = cluster.wire();
    let file = put(&cluster, &wire, "file", 10 * MIB);
    let node = node_at(&cluster, &wire, 3);
    let id = id_text(&node.node);

    let refused = cluster.run(&["node", "remove", &id]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("drain"), "removed while it holds copies: {told}");

    cluster.run_ok(&["node", "drain", &id, "--wait"]);
    wait_whole(&wire, 3);
    let map_now = map(&wire);
    assert!(map_now.sets.iter().all(|set| set.members.iter().all(|member| member.node != node.node)));
    let drained = map_now.nodes.iter().find(|known| known.node == node.node).unwrap();
    assert_eq!(drained.admin(), AdminState::Draining);
    check(&cluster, &mut wire, &[file], 3);
    // It gets nothing new.
    let later = put(&cluster, &wire, "later", 4 * MIB);
    check(&cluster, &mut wire, &[file, later], 3);
    let map_now = map(&wire);
    assert!(map_now.sets.iter().all(|set| set.members.iter().all(|member| member.node != node.node)));

    cluster.run_ok(&["node", "remove", &id]);
    cluster.kill9_node(3);
    check(&cluster, &mut wire, &[file, later], 3);
    cluster.start_node(3);
    wait::until_true("the datanode to be told that it was removed", LIMIT, || {
        cluster.node_process(3).log().contains("was removed from the cluster")
    });
    let now = node_at(&cluster, &wire, 3);
    assert!(now.state() != NodeState::Up && now.admin() == AdminState::Out, "it serves again: {now:?}");
}

#[test]
fn chunks_whose_last_copy_was_removed_are_told_as_lost_and_their_places_are_of_use_again() {
    let one_copy = hasty().datanodes(2).env("CAIRN_COORDINATOR__REPLICAS", 1);
    let cluster = one_copy.env("CAIRN_COORDINATOR__MIN_REPLICAS", 1).start();
    let mut wire = cluster.wire();
    // Some of them on each of the two.
    let files = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| put(&cluster, &wire, name, 2 * CHUNK));
    let removed = node_at(&cluster, &wire, 0);
    let sets = map(&wire).sets;
    let is_lost = |chunk: &v1::ChunkRef| {
        let set = sets.iter().find(|set| set.id == chunk.set).expect("its set");
        set.members.iter().any(|member| member.node == removed.node)
    };
    let chunks = files.iter().flat_map(|file| wire.layout(file.inode).expect("layout").chunks);
    let lost = chunks.filter(is_lost).count();
    assert!(lost > 0 && lost < 16, "{lost} of 16 chunks are on one of two datanodes");
    cluster.run_ok(&["node", "remove", &id_text(&removed.node), "--force", "--yes"]);
    let told = || {
        let output = cluster.run(&["status"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let expected = match lost {
        1 => "1 chunk has no copy".to_owned(),
        _ => format!("{lost} chunks have no copy"),
    };
    wait::until_true("the loss to be told", LIMIT, || {
        let (code, text) = told();
        code == Some(4) && text.contains("CHUNKS_LOST") && text.contains(&expected)
    });
    wait::until_true("the places to be filled", LIMIT, || {
        let sets = map(&wire).sets;
        sets.iter().all(|set| set.members.iter().any(|member| member.state() == MemberState::Active))
    });
    let later = put(&cluster, &wire, "later", 16 * CHUNK);
    check(&cluster, &mut wire, &[later], 1);
}

#[test]
fn a_datanode_that_is_no_longer_drained_serves_again() {
    let cluster = hasty().start();
    let mut wire = cluster.wire();
    let file = put(&cluster, &wire, "file", 3 * MIB);
    let node = node_at(&cluster, &wire, 0);
    let id = id_text(&node.node);
    cluster.run_ok(&["node", "drain", &id]);
    // With three datanodes and three copies there is nowhere to go: it stays until there is.
    wait::until_true("its places to be leaving", LIMIT, || {
        let mine =
            |set: &v1::ReplicaSet| set.members.iter().find(|m| m.node == node.node).map(v1::Member::state);
        map(&wire).sets.iter().all(|set| mine(set) == Some(MemberState::Leaving))
    });
    check(&cluster, &mut wire, &[file], 3);
    cluster.run_ok(&["node", "undrain", &id]);
    wait_whole(&wire, 3);
    check(&cluster, &mut wire, &[file], 3);
}

#[test]
fn another_datanode_takes_all_places_of_one_that_is_replaced() {
    let mut cluster = hasty().datanodes(4).later(1).start();
    let mut wire = cluster.wire();
    let file = put(&cluster, &wire, "file", 6 * MIB);
    let old = node_at(&cluster, &wire, 0);
    let places = map(&wire).sets.len();
    cluster.start_node(3);
    cluster.wait_formed();
    let new = node_at(&cluster, &wire, 3);
    cluster.run_ok(&["node", "replace", &id_text(&old.node), "--by", &id_text(&new.node), "--wait"]);
    wait_whole(&wire, 3);
    let with = |node: &Bytes| {
        map(&wire).sets.iter().filter(|set| set.members.iter().any(|member| member.node == *node)).count()
    };
    assert_eq!(with(&old.node), 0, "sets that the old one is in");
    assert!(with(&new.node) >= places, "sets that the new one is in");
    check(&cluster, &mut wire, &[file], 3);
    cluster.run_ok(&["node", "remove", &id_text(&old.node)]);
}

#[test]
fn sets_that_are_short_of_members_grow_when_a_datanode_joins() {
    let mut cluster = hasty().later(1).start();
    let mut wire = cluster.wire();
    let file = put(&cluster, &wire, "file", 7 * MIB);
    check(&cluster, &mut wire, &[file], 2);
    cluster.start_node(2);
    cluster.wait_formed();
    wait_whole(&wire, 3);
    check(&cluster, &mut wire, &[file], 3);
}

/// The largest difference in use between datanodes, in parts of their capacity, by what they report.
fn apart(wire: &Wire) -> f64 {
    let map = map(wire);
    let use_of = |node: &v1::Node| node.used as f64 / node.capacity.max(1) as f64;
    let most = map.nodes.iter().map(use_of).fold(0.0, f64::max);
    let least = map.nodes.iter().map(use_of).fold(1.0, f64::min);
    most - least
}

const DISK: u64 = 512 * MIB;

/// Four datanodes with disks of this size, on which two copies of each chunk are spread evenly.
fn even(disks: [u64; 4]) -> Builder {
    let builder = hasty()
        .datanodes(4)
        .env("CAIRN_COORDINATOR__REPLICAS", 2)
        .env("CAIRN_COORDINATOR__GARBAGE_GRACE", "0s")
        .env("CAIRN_COORDINATOR__RECONCILE_EVERY", "1s")
        .env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB")
        .chunk_size(MIB);
    let with = |builder: Builder, (index, bytes): (usize, u64)| builder.tmpfs(index, bytes);
    disks.into_iter().enumerate().fold(builder, with)
}

const EVEN_SEED: u64 = 9;
/// Two copies on three disks of 512 MiB: each is used to a quarter.
const EVEN_LENGTH: u64 = 200 * MIB;

/// Writes what is to be moved; its inode.
fn put_much(cluster: &Cluster, wire: &Wire) -> u64 {
    let local = cluster.local().join("file");
    pattern::write_file(&local, EVEN_SEED, EVEN_LENGTH);
    cluster.run_ok(&["put", local.to_str().unwrap(), "/file"]);
    wire.lookup("file").unwrap().inode
}

/// Use differs, becomes even, and stays as it is; every copy is there, and none where it was moved away from.
#[track_caller]
fn becomes_even(wire: &mut Wire, inode: u64) {
    wait::until_true("the difference to show", LIMIT, || apart(wire) > 0.10);
    wait::until_true("use to be even", LIMIT, || is_whole(&wire.status(), 2) && apart(wire) <= 0.10);
    // It may go on a little, but ends.
    let mut epoch = map(wire).epoch;
    wait::until_true("moving to end", LIMIT, || {
        std::thread::sleep(Duration::from_secs(5));
        let before = std::mem::replace(&mut epoch, map(wire).epoch);
        before == epoch && is_whole(&wire.status(), 2)
    });
    wire.refresh();
    wire.check_replicas(inode, EVEN_SEED, EVEN_LENGTH, 2);
    let chunks = wire.layout(inode).unwrap().chunks;
    wait::until_true("copies that nobody counts on to be deleted", LIMIT, || {
        chunks.iter().all(|chunk| {
            let members: BTreeSet<Bytes> = wire.members(chunk.set).into_iter().collect();
            wire.holders(chunk.chunk).into_iter().collect::<BTreeSet<_>>() == members
        })
    });
}

#[test]
fn a_datanode_that_joins_gets_its_share_and_then_nothing_moves_any_more() {
    need_root();
    let mut cluster = even([DISK; 4]).later(1).start();
    let mut wire = cluster.wire();
    let inode = put_much(&cluster, &wire);
    cluster.start_node(3);
    cluster.wait_formed();
    becomes_even(&mut wire, inode);
}

#[test]
fn a_datanode_whose_disk_fills_gives_its_share_to_the_others_the_largest_most() {
    need_root();
    let cluster = even([DISK, DISK, DISK, 2 * DISK]).start();
    let mut wire = cluster.wire();
    let inode = put_much(&cluster, &wire);
    let used = |index: usize| node_at(&cluster, &wire, index).used;
    wait::until_true("use to be told", LIMIT, || (0..4).map(used).sum::<u64>() >= 2 * EVEN_LENGTH);
    let before = used(0);
    // Somebody else's file leaves it little room.
    let other = cluster.small_disks()[0].path().join("of-somebody-else");
    let file = std::fs::File::create(other).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, DISK - before - 128 * MIB).unwrap();
    becomes_even(&mut wire, inode);
    let after: Vec<u64> = (0..4).map(|index| node_at(&cluster, &wire, index).used).collect();
    assert!(after[0] < before, "{before} bytes before, {after:?} after");
    assert!(after[1..3].iter().all(|&used| used < after[3]), "the largest has most: {after:?}");
}
