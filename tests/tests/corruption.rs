//! One fault in one place of one node, at rest or while it runs: a flipped bit, a page of zeros or of
//! noise, a cut-off end, a read that fails. What is read must be what was written, or an error; and
//! the copies on other nodes must stay as they were.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_proto::v1::ChunkRef;
use cairn_tests::rounds::{self, Numbers};
use cairn_tests::{Builder, Cluster, KIB, Wire, need_root, pattern};

const PAGE: u64 = 4096;
const NODES: usize = 3;
/// Places in segments, and in all other files, when `scripts/reliability` does not ask for more.
const SEGMENT_PLACES: u64 = 40;
const OTHER_PLACES: u64 = 20;
/// How long a bad copy may take until it is made again.
const REPAIR_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Flip,
    Zero,
    Noise,
    Truncate,
}

const DAMAGES: [Damage; 4] = [Damage::Flip, Damage::Zero, Damage::Noise, Damage::Truncate];

/// Files of the file system: seed and length of each.
fn contents() -> Vec<(String, u64, u64)> {
    let lengths = [1, 700, 4096, 60 * KIB, 64 * KIB, 200 * KIB, 512 * KIB, 513 * KIB, 1500 * KIB, 2000 * KIB];
    lengths.iter().enumerate().map(|(i, &length)| (format!("file-{i}"), 100 + i as u64, length)).collect()
}

/// A cluster without a mount, with every file on all nodes.
fn filled(builder: Builder) -> Cluster {
    let cluster = builder
        .unmounted()
        .chunk_size(512 * KIB)
        .env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB")
        .env("CAIRN_COORDINATOR__GARBAGE_GRACE", "1h")
        .start();
    let local = cluster.local();
    for (name, seed, length) in contents() {
        pattern::write_file(&local.join(&name), seed, length);
        let from = local.join(&name).display().to_string();
        cluster.run_ok(&["put", &from, &format!("/{name}")]);
    }
    cluster
}

/// The part of a file up to its last byte that is not zero.
fn used(path: &Path) -> u64 {
    let data = fs::read(path).expect("read");
    let zeros = [0; PAGE as usize];
    // Page by page: segments are mostly empty.
    let Some(last) = data.chunks(zeros.len()).rposition(|page| *page != zeros[..page.len()]) else {
        return 0;
    };
    let end = ((last + 1) * zeros.len()).min(data.len());
    data[..end].iter().rposition(|&byte| byte != 0).map_or(0, |at| at as u64 + 1)
}

/// Damages a file at a place that `numbers` choose; gives what was done, or nothing when the file was
/// like that before.
fn damage(path: &Path, kind: Damage, numbers: &mut Numbers) -> Option<String> {
    let before = fs::read(path).expect("read");
    let used = used(path).max(1);
    let at = numbers.below(used);
    let mut after = before.clone();
    let page = (at / PAGE * PAGE) as usize..((at / PAGE + 1) * PAGE).min(before.len() as u64) as usize;
    match kind {
        Damage::Flip => after[at as usize] ^= 1 << numbers.below(8),
        Damage::Zero => after[page].fill(0),
        Damage::Noise => after[page].iter_mut().for_each(|byte| *byte = numbers.below(256) as u8),
        Damage::Truncate => after.truncate(at as usize),
    }
    if after == before {
        return None;
    }
    let file = OpenOptions::new().write(true).open(path).expect("open");
    if kind == Damage::Truncate {
        file.set_len(at).expect("truncate");
    } else {
        let from = (at / PAGE * PAGE) as usize;
        let to = (from + PAGE as usize).min(after.len());
        file.write_all_at(&after[from..to], from as u64).expect("write");
    }
    file.sync_all().expect("fsync");
    Some(format!("{kind:?} at {at} of {used} in {}", path.display()))
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(data.join("segments"))
        .expect("segments")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.is_file() && used(path) > PAGE)
        .collect();
    found.sort();
    found
}

/// Reads each file as a client that has cached nothing: right bytes, or an error where that is
/// allowed. Gives how many were right.
#[track_caller]
fn read_all(cluster: &Cluster, what: &str, may_fail: bool) -> u64 {
    if !may_fail {
        // One process for all of them.
        let names: Vec<String> = contents().iter().map(|(name, ..)| format!("/{name}")).collect();
        let mut arguments = vec!["cat"];
        arguments.extend(names.iter().map(String::as_str));
        let output = cluster.run(&arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: not all can be read: {told}");
        let bytes = |(_, seed, length): &(String, u64, u64)| pattern::bytes(*seed, 0, *length as usize);
        let want: Vec<u8> = contents().iter().flat_map(bytes).collect();
        assert!(output.stdout == want, "{what}: WRONG BYTES");
        return names.len() as u64;
    }
    let mut right = 0;
    for (name, seed, length) in contents() {
        let output = cluster.run(&["cat", &format!("/{name}")]);
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(may_fail, "{what}: {name} can not be read: {told}");
            assert!(!told.trim().is_empty(), "{what}: an error without a word");
            continue;
        }
        assert_eq!(output.stdout.len() as u64, length, "{what}: WRONG LENGTH of {name}");
        let wrong = pattern::first_difference(seed, 0, &output.stdout);
        assert_eq!(wrong, None, "{what}: WRONG BYTE in {name}");
        right += 1;
    }
    right
}

/// Every chunk with its bytes.
struct Truth {
    chunks: Vec<(ChunkRef, Vec<u8>)>,
}

impl Truth {
    fn learn(wire: &Wire) -> Self {
        let mut chunks: BTreeMap<u64, (ChunkRef, Vec<u8>)> = BTreeMap::new();
        for (name, seed, length) in contents() {
            let inode = wire.lookup(&name).expect("lookup").inode;
            assert!(wire.check_replicas(inode, seed, length, NODES) >= NODES, "{name} has all its copies");
            for chunk in wire.layout(inode).expect("layout").chunks {
                let member = wire.members(chunk.set)[0].clone();
                let data = wire.retrieve(&member, &chunk).expect("a good copy");
                chunks.insert(chunk.chunk, (chunk, data));
            }
        }
        Self { chunks: chunks.into_values().collect() }
    }

    /// How many copies on `node` are not served; panics when one is served wrongly.
    #[track_caller]
    fn missing(&self, wire: &Wire, node: &Bytes, what: &str) -> usize {
        let mut missing = 0;
        for (chunk, data) in &self.chunks {
            match wire.retrieve(node, chunk) {
                Ok(got) => {
                    assert!(got == *data, "{what}: WRONG BYTES of chunk {} from its node", chunk.chunk)
                }
                Err(_) => missing += 1,
            }
        }
        missing
    }
}

fn node_id(wire: &Wire, cluster: &Cluster, index: usize) -> Bytes {
    let map = wire.list_nodes().expect("nodes").map.expect("map");
    let address = cluster.node_address(index);
    let node = map.nodes.iter().find(|node| node.address == address);
    node.unwrap_or_else(|| panic!("no node at {address}")).node.clone()
}

#[test]
fn damage_in_a_segment_is_never_read_never_spreads_and_is_repaired() {
    need_root();
    let places = rounds::count(SEGMENT_PLACES);
    let mut cluster = filled(Cluster::builder());
    let truth = Truth::learn(&cluster.wire());
    let mut numbers = Numbers::new(7);
    let (mut faults, mut hurt, mut repaired, mut reads) = (0, 0, 0, 0);
    let mut round = 0;
    while faults < places {
        round += 1;
        let index = (round % NODES as u64) as usize;
        let kind = DAMAGES[(round / 3 % 4) as usize];
        let while_running = round % 2 == 0;
        if !while_running {
            cluster.kill9_node(index);
        }
        let files = segments(cluster.node_data(index));
        let path = &files[numbers.below(files.len() as u64) as usize];
        let done = damage(path, kind, &mut numbers);
        if !while_running {
            assert!(
                cluster.try_start_node_under(index, &[]),
                "a damaged segment keeps the node from starting"
            );
            cluster.wait_formed();
        }
        let Some(done) = done else { continue };
        faults += 1;
        let what = format!("{done}, {}", if while_running { "while it ran" } else { "at rest" });
        let wire = cluster.wire();
        let node = node_id(&wire, &cluster, index);
        let missing = truth.missing(&wire, &node, &what);
        reads += read_all(&cluster, &what, false);
        for other in (0..NODES).filter(|&other| other != index) {
            let id = node_id(&wire, &cluster, other);
            let spread = truth.missing(&wire, &id, &what);
            assert_eq!(spread, 0, "{what}: {spread} copies of another node have gone bad");
        }
        if missing == 0 {
            continue;
        }
        hurt += 1;
        println!("{what}: {missing} copies are hurt");
        let end = Instant::now() + REPAIR_LIMIT;
        while Instant::now() < end && truth.missing(&wire, &node, &what) > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let left = truth.missing(&wire, &node, &what);
        repaired += u64::from(left == 0);
        assert_eq!(left, 0, "{what}: {missing} copies were hurt, {left} not made again in {REPAIR_LIMIT:?}");
    }
    assert!(hurt > 0, "no place mattered");
    let more = format!("{hurt} hurt a copy, {repaired} of them repaired, 0 wrong bytes, 0 spread");
    rounds::report("corruption of segments", faults, reads, &more);
}

/// Directories as they were; put back before each place, since a damaged store may have moved on.
struct Template {
    from: PathBuf,
    kept: PathBuf,
    names: Vec<String>,
}

impl Template {
    fn keep(place: &Path, kept: &Path, names: &[&str]) -> Self {
        fs::create_dir_all(kept).expect("mkdir");
        let template = Self {
            from: place.to_owned(),
            kept: kept.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        template.names.iter().for_each(|name| copy(&place.join(name), &kept.join(name)));
        template
    }

    fn put_back(&self) {
        for name in &self.names {
            fs::remove_dir_all(self.from.join(name)).expect("remove");
            copy(&self.kept.join(name), &self.from.join(name));
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().expect("cp");
    assert!(done.success(), "cp {}: {done}", from.display());
}

#[test]
fn damage_in_any_other_file_is_told_or_harmless() {
    need_root();
    let places = rounds::count(OTHER_PLACES);
    let workspace = cairn_tests::process::Workspace::new();
    let place = workspace.path().join("place");
    let mut cluster = filled(Cluster::builder().place(&place));
    let truth = Truth::learn(&cluster.wire());
    cluster.kill9_all();
    let names = ["coordinator", "datanode0", "datanode1", "datanode2"];
    let template = Template::keep(&place, &workspace.path().join("kept"), &names);
    let files = [
        "coordinator/meta.db",
        "coordinator/meta.db-wal",
        "datanode0/data/identity.json",
        "datanode0/data/fence.json",
    ];
    for file in files {
        assert!(place.join(file).exists(), "{file} is there to be damaged");
    }
    let mut numbers = Numbers::new(11);
    let (mut faults, mut refused, mut reads, mut round) = (0, 0, 0, 0);
    while faults < places {
        round += 1;
        cluster.kill9_all();
        template.put_back();
        // The database has most of the places.
        let file = [files[0], files[1], files[0], files[2], files[1], files[3]][(round % 6) as usize];
        let kind = DAMAGES[(round / 6 + round) as usize % 4];
        let Some(what) = damage(&place.join(file), kind, &mut numbers) else { continue };
        faults += 1;
        let of_node = file.starts_with("datanode0");
        let name = if of_node { "datanode0" } else { "coordinator" };
        let told_before = cluster.log_of(name).len();
        let mut runs = cluster.try_start_coordinator_under(&[]);
        if runs {
            for index in 0..NODES {
                let started = cluster.try_start_node_under(index, &[]);
                assert!(started || (index == 0 && of_node), "{what}: datanode {index} does not start");
                runs &= started || !of_node;
            }
        }
        let log = cluster.log_of(name)[told_before..].to_owned();
        assert!(!log.contains("panicked"), "{what}: it panicked: {log}");
        if !runs {
            refused += 1;
            let named = file.rsplit('/').next().expect("a name").trim_end_matches("-wal");
            let is_told = log.contains(named) || log.contains(".json") || log.contains("meta.db");
            assert!(is_told, "{what}: it does not say which file is bad: {log}");
        }
        if cluster.coordinator_runs() {
            let wanted = if runs { NODES } else { NODES - 1 };
            if cluster.wait_up_or(wanted, Duration::from_secs(12)) {
                reads += read_all(&cluster, &what, !of_node);
                if !of_node {
                    continue;
                }
                let wire = cluster.wire();
                for index in usize::from(!runs)..NODES {
                    let id = node_id(&wire, &cluster, index);
                    assert_eq!(
                        truth.missing(&wire, &id, &what),
                        0,
                        "{what}: copies of node {index} are gone"
                    );
                }
            } else if of_node {
                // Started, and refused by the cluster that its identity no longer names.
                assert!(!cluster.node_runs(0), "{what}: the cluster does not form");
                let log = cluster.log_of(name);
                assert!(
                    log.contains("data belongs to cluster"),
                    "{what}: it does not say why it ended: {log}"
                );
                refused += 1;
            }
        }
    }
    let more = format!("{refused} refused at the start and named, 0 wrong bytes");
    rounds::report("corruption of other files", faults, reads, &more);
    let _ = File::open(&place);
}
