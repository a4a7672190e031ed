//! Bad input that is not a wrong argument of a call (for those: `bad_wire.rs`, `bad_config.rs`): messages
//! in an encoding that is not spoken, the shelf of the metadata log, clocks that are wrong, and files on disk
//! that are damaged, cut, or somebody else's. Each row says what is told; nothing is left behind, nobody
//! else is disturbed, nothing panics, memory stays bounded.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cairn_proto::ErrorKind::{self, *};
use cairn_proto::v1;
use cairn_proto::v1::meta_log_client::MetaLogClient;
use cairn_proto::v1::mutation::Op;
use cairn_proto::{WireError, wire_error_of};
use cairn_tests::{Cluster, MIB, Wire, pattern, process, wait};

/// How much more memory a process may hold after all of it.
const GROWTH_MAX: u64 = 96 << 20;
/// A process that can not use what it finds says so within this time.
const REFUSAL_LIMIT: Duration = Duration::from_secs(30);
/// Copies that are lacking are made again within this time.
const HEALING_LIMIT: Duration = Duration::from_secs(60);
/// Content that must stay what it is throughout.
const SEED: u64 = 7;
const LENGTH: u64 = 3 * MIB + 5;

/// Everything works for others, and what was stored before is what it was.
#[track_caller]
fn others_are_undisturbed(cluster: &mut Cluster, inode: u64, copies: usize) {
    cluster.wire().check_replicas(inode, SEED, LENGTH, copies);
    let mut logs = vec![cluster.coordinator_process().log()];
    logs.extend((0..cluster.nodes()).map(|index| cluster.node_process(index).log()));
    let panic = logs.iter().flat_map(|log| log.lines()).find(|line| line.contains("panicked at"));
    assert_eq!(panic, None, "a server panicked");
}

fn resident(cluster: &mut Cluster) -> u64 {
    let nodes = (0..cluster.nodes()).map(|index| cluster.node_process(index).resident()).sum::<u64>();
    nodes + cluster.coordinator_process().resident()
}

fn filled(cluster: &Cluster) -> u64 {
    let wire = cluster.wire();
    let inode = wire.create("known");
    wire.upload(inode, SEED, LENGTH, MIB);
    inode
}

type Call = Box<dyn Fn(&Wire, &str, &str) -> Result<(), WireError>>;
type CallRow = (String, &'static [ErrorKind], Call);

fn shelf(wire: &Wire, address: &str) -> MetaLogClient<tonic::transport::Channel> {
    let address = address.to_owned();
    MetaLogClient::new(wire.block_on(async move { cairn_runtime::net::connect(&address).expect("address") }))
}

fn appended(name: &str, offset: u64, size: usize) -> Call {
    let request = v1::AppendLogRequest { name: name.into(), offset, data: vec![1; size].into(), sync: true };
    Box::new(move |wire, _, node| wire.call(shelf(wire, node).append_log(request.clone())).map(drop))
}

fn read(name: &str, length: u32) -> Call {
    let request = v1::ReadLogRequest { name: name.into(), offset: 0, length };
    Box::new(move |wire, _, node| wire.call(shelf(wire, node).read_log(request.clone())).map(drop))
}

/// A call whose header claims an encoding; what it would unpack to does not matter.
fn encoded(encoding: &'static str) -> Call {
    Box::new(move |wire, coordinator, _| {
        let mut request =
            tonic::Request::new(v1::GetAttrRequest { inode: 1, ..v1::GetAttrRequest::default() });
        request.metadata_mut().insert("grpc-encoding", encoding.parse().expect("header"));
        let address = coordinator.to_owned();
        wire.block_on(async move {
            let channel = cairn_runtime::net::connect(&address).expect("address");
            let mut client = v1::coordinator_client::CoordinatorClient::new(channel);
            client.get_attr(request).await.map(drop).map_err(|status| wire_error_of(&status))
        })
    })
}

fn call_rows() -> Vec<CallRow> {
    let mut rows: Vec<CallRow> = Vec::new();
    for encoding in ["gzip", "zstd", "deflate", "no-such-encoding"] {
        rows.push((format!("a message encoded by {encoding}"), &[Protocol], encoded(encoding)));
    }
    let long = "a".repeat(65);
    for name in ["", "../identity.json", "/etc/passwd", "a/b", "Base", ".hidden", "a\0b", long.as_str()] {
        rows.push((format!("AppendLog to {name:?}"), &[InvalidArgument], appended(name, 0, 1)));
        rows.push((format!("ReadLog of {name:?}"), &[InvalidArgument], read(name, 1)));
        let names = vec![name.to_owned()];
        rows.push((
            format!("RemoveLogs of {name:?}"),
            &[InvalidArgument],
            Box::new(move |wire, _, node| {
                let request = v1::RemoveLogsRequest { names: names.clone() };
                wire.call(shelf(wire, node).remove_logs(request)).map(drop)
            }),
        ));
    }
    rows.push(("AppendLog of nothing".into(), &[InvalidArgument], appended("log-x", 0, 0)));
    rows.push(("AppendLog of 5 MiB".into(), &[InvalidArgument], appended("log-x", 0, 5 << 20)));
    rows.push(("AppendLog of 20 MiB".into(), &[InvalidArgument], appended("log-x", 0, 20 << 20)));
    rows.push(("AppendLog behind the end".into(), &[NotFound, InvalidArgument], appended("log-x", 9, 1)));
    rows.push(("AppendLog at 2^64 - 1".into(), &[NotFound, InvalidArgument], appended("log-x", u64::MAX, 1)));
    rows.push(("ReadLog of what is not".into(), &[NotFound], read("log-y", 1)));
    rows.push(("ReadLog of no bytes".into(), &[InvalidArgument], read("log-y", 0)));
    rows.push(("ReadLog of 4 GiB".into(), &[InvalidArgument], read("log-y", u32::MAX)));
    rows.push((
        "RemoveLogs of 5000 names".into(),
        &[InvalidArgument],
        Box::new(|wire, _, node| {
            let names = (0..5000).map(|number| format!("log-{number}")).collect();
            wire.call(shelf(wire, node).remove_logs(v1::RemoveLogsRequest { names })).map(drop)
        }),
    ));
    rows
}

#[test]
fn calls_in_other_encodings_and_to_the_shelf_of_the_log() {
    let mut cluster = Cluster::builder().unmounted().start();
    let inode = filled(&cluster);
    let before = resident(&mut cluster);
    let (coordinator, node) = (cluster.coordinator_address().to_owned(), cluster.node_address(0).to_owned());
    let mut wrong = Vec::new();
    for (what, expected, call) in call_rows() {
        let wire = cluster.wire();
        match call(&wire, &coordinator, &node) {
            Err(error) if expected.contains(&error.kind) => {}
            other => wrong.push(format!("{what}: {other:?}, expected {expected:?}")),
        }
        wire.goodbye();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let left = cluster.node_data(0).join("metalog");
    let left = std::fs::read_dir(left).map(|entries| entries.count()).unwrap_or_default();
    assert_eq!(left, 0, "files were left behind");
    assert!(cluster.node_data(0).join("identity.json").exists());
    others_are_undisturbed(&mut cluster, inode, 3);
    let after = resident(&mut cluster);
    assert!(after < before + GROWTH_MAX, "memory grew from {before} to {after} bytes");
}

/// A client whose clock is wrong may set any time on its own files, as on a local file system; it moves no
/// deadline and no time of the coordinator.
#[test]
fn clocks_that_are_far_off_move_nothing_but_the_times_they_set() {
    let mut cluster = Cluster::builder().unmounted().start();
    let inode = filled(&cluster);
    let year = 365 * 24 * 3600 * 1_000_000_000i64;
    for at_ns in [i64::MIN, i64::MAX, -10 * year, 0, 100 * year] {
        let wire = cluster.wire();
        let time = Some(v1::TimeChange { to: Some(v1::time_change::To::AtNs(at_ns)) });
        let op = v1::SetAttr { inode, mtime: time, atime: time, ..v1::SetAttr::default() };
        let told = wire.apply(Op::SetAttr(op));
        let attr = wire.lookup("known").expect("the file");
        if told.is_ok() {
            assert_eq!(attr.mtime_ns, at_ns);
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let off = attr.ctime_ns.abs_diff(now.as_nanos() as i64);
        assert!(off < 60_000_000_000, "ctime is the coordinator's, {off} ns off");
        // The session and its plans live on.
        let chunk = wire.plan_one();
        assert!(chunk.chunk > 0);
        wire.goodbye();
    }
    others_are_undisturbed(&mut cluster, inode, 3);
}

/// What a process does with what it finds.
enum Outcome {
    /// It serves, and everything that it had.
    Serves,
    /// It serves, and lacks some copies until they are made again from others.
    Lacks,
    /// It ends and says one of these words.
    Refuses(&'static [&'static str]),
}

/// Fetches the copies of a file from datanode `index`; gives how many of them it can not serve. What it
/// serves is right.
#[track_caller]
fn lacking(cluster: &Cluster, inode: u64, index: usize) -> usize {
    let wire = cluster.wire();
    let map = wire.list_nodes().expect("ListNodes").map.expect("map");
    let address = cluster.node_address(index);
    let node = map.nodes.iter().find(|node| node.address == address).expect("the datanode").node.clone();
    let layout = wire.layout(inode).expect("layout");
    assert_eq!(layout.chunks.len() as u64, LENGTH.div_ceil(MIB), "chunks of the file");
    let mut lacking = 0;
    for chunk in &layout.chunks {
        let data = match wire.retrieve(&node, chunk) {
            Ok(data) => data,
            Err(error) if [Corrupt, ChunkNotFound].contains(&error.kind) => {
                lacking += 1;
                continue;
            }
            Err(error) => panic!("chunk {} of datanode {index}: {error}", chunk.chunk),
        };
        for extent in layout.extents.iter().filter(|extent| extent.chunk == chunk.chunk) {
            let wrong = pattern::first_difference(SEED, extent.offset, &data[..extent.length as usize]);
            assert_eq!(wrong, None, "first wrong byte of chunk {} at datanode {index}", chunk.chunk);
        }
    }
    lacking
}

fn repair(cluster: &Cluster, action: v1::WorkerAction) {
    let wire = cluster.wire();
    let request = v1::ControlWorkerRequest { worker: "repair".into(), action: action.into() };
    wire.call(wire.coordinator().control_worker(request)).expect("ControlWorker");
}

/// What is done to the files of one data directory: name, change, outcome.
type FileRow = (&'static str, fn(&Path), Outcome);

fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(!content.is_empty(), "{} is empty", path.display());
    change(&mut content);
    std::fs::write(path, content).unwrap();
}

/// Changes the last digit of the id in a field.
fn flip_digit(path: &Path, field: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    let id = whole[field].as_str().expect("an id").to_owned();
    let (rest, last) = id.split_at(id.len() - 1);
    let other = if last == "0" { "1" } else { "0" };
    std::fs::write(path, text.replace(&id, &format!("{rest}{other}"))).unwrap();
}

/// The segment that holds most.
fn segment(data: &Path) -> std::path::PathBuf {
    let entries = std::fs::read_dir(data.join("segments")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "seg")).min().expect("a segment")
}

fn node_rows() -> Vec<FileRow> {
    use Outcome::{Lacks, Refuses, Serves};
    vec![
        ("a flipped bit in a payload", |data| overwrite(&segment(data), |c| c[20_000] ^= 4), Lacks),
        ("a flipped bit in a record's header", |data| overwrite(&segment(data), |c| c[4100] ^= 1), Lacks),
        ("a flipped bit in a segment's header", |data| overwrite(&segment(data), |c| c[17] ^= 1), Serves),
        ("a segment cut in the middle", |data| overwrite(&segment(data), |c| c.truncate(c.len() / 2)), Lacks),
        ("a segment cut to a byte", |data| overwrite(&segment(data), |c| c.truncate(1)), Lacks),
        ("a segment of zeros", |data| overwrite(&segment(data), |c| c.fill(0)), Lacks),
        (
            "a segment of noise",
            |data| overwrite(&segment(data), |c| *c = pattern::bytes(99, 0, c.len())),
            Lacks,
        ),
        (
            "a segment under another number",
            |data| std::fs::rename(segment(data), data.join("segments/00ffffff.seg")).unwrap(),
            Serves,
        ),
        (
            "a foreign file among the segments",
            |data| std::fs::write(data.join("segments/a.tex"), b"x").unwrap(),
            Serves,
        ),
        (
            "a foreign file on the shelf",
            |data| {
                std::fs::create_dir_all(data.join("metalog")).unwrap();
                std::fs::write(data.join("metalog/NOTES"), b"x").unwrap();
            },
            Serves,
        ),
        (
            "an identity of noise",
            |data| overwrite(&data.join("identity.json"), |c| *c = pattern::bytes(9, 0, 200)),
            Refuses(&["identity.json"]),
        ),
        (
            "an identity cut short",
            |data| overwrite(&data.join("identity.json"), |c| c.truncate(c.len() / 2)),
            Refuses(&["identity.json"]),
        ),
        (
            "an empty identity",
            |data| overwrite(&data.join("identity.json"), Vec::clear),
            Refuses(&["identity.json"]),
        ),
        (
            "no identity beside segments",
            |data| std::fs::remove_file(data.join("identity.json")).unwrap(),
            Refuses(&["holds", "no identity.json"]),
        ),
        (
            "the identity of another cluster",
            |data| {
                let path = data.join("identity.json");
                let mut identity: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                assert!(identity["cluster"].is_string(), "{identity}");
                identity["cluster"] = "00000000-0000-4000-8000-000000000001".into();
                // As a version without checksums has written it.
                let fields = identity.as_object_mut().unwrap();
                assert!(fields.remove("crc32c").is_some() && fields.remove("disks").is_some());
                std::fs::write(path, serde_json::to_vec(&identity).unwrap()).unwrap();
            },
            Refuses(&["belongs to cluster", "that cluster's coordinator"]),
        ),
        (
            "another digit in the id of the node",
            |data| flip_digit(&data.join("identity.json"), "node"),
            Refuses(&["identity.json", "checksum", "start with an empty one"]),
        ),
        (
            "another digit in the id of the cluster",
            |data| flip_digit(&data.join("identity.json"), "cluster"),
            Refuses(&["identity.json", "checksum"]),
        ),
        (
            "another name for the checksum",
            |data| {
                let path = data.join("identity.json");
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.contains("crc32c"), "{text}");
                std::fs::write(path, text.replace("crc32c", "crc32d")).unwrap();
            },
            Refuses(&["identity.json", "crc32d"]),
        ),
        (
            "a fence that is lower by a digit",
            |data| {
                let path = data.join("fence.json");
                let mut fence: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                fence["sequence"] = 1.into();
                std::fs::write(path, serde_json::to_vec(&fence).unwrap()).unwrap();
            },
            Refuses(&["fence.json", "checksum"]),
        ),
        (
            "an identity of an older version, without a checksum",
            |data| {
                let path = data.join("identity.json");
                let mut identity: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                let fields = identity.as_object_mut().unwrap();
                assert!(fields.remove("crc32c").is_some() && fields.remove("disks").is_some());
                std::fs::write(path, serde_json::to_vec(&identity).unwrap()).unwrap();
            },
            Serves,
        ),
        (
            "a fence of noise",
            |data| overwrite(&data.join("fence.json"), |c| *c = pattern::bytes(9, 0, 50)),
            Refuses(&["fence.json"]),
        ),
    ]
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Runs a service on files that it is to refuse; gives what it said.
#[track_caller]
fn refusal(what: &str, arguments: &[&str]) -> String {
    let mut command = process::cairn(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cairn");
    let limit = format!("{what} to be refused");
    let output = wait::within(&limit, REFUSAL_LIMIT, move || child.wait_with_output()).expect("output");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{what} was taken: {said}");
    assert!(output.status.code().is_some(), "{what}: killed by a signal: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    said
}

#[test]
fn files_of_a_datanode() {
    let mut cluster = Cluster::builder().unmounted().env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB").start();
    let inode = filled(&cluster);
    let data = cluster.node_data(0).to_owned();
    let saved = cluster.path().join("saved");
    assert!(cluster.node_process(0).terminate(Duration::from_secs(30)).success());
    cluster.kill9_node(0);
    copy(&data, &saved);
    for (what, change, outcome) in node_rows() {
        println!("{what}");
        change(&data);
        if let Outcome::Refuses(words) = outcome {
            let address = cluster.coordinator_address().to_owned();
            let path = data.display().to_string();
            let arguments =
                ["datanode", "--listen", "127.0.0.1:0", "--data", &path, "--coordinator", &address];
            let said = refusal(what, &arguments);
            assert!(words.iter().all(|word| said.contains(word)), "{what}: {words:?} in: {said}");
        } else {
            let lacks = matches!(outcome, Outcome::Lacks);
            repair(&cluster, v1::WorkerAction::Pause);
            cluster.start_node(0);
            cluster.wait_formed();
            let lacking_first = lacking(&cluster, inode, 0);
            assert_eq!(lacking_first > 0, lacks, "{what}: {lacking_first} copies are lacking");
            repair(&cluster, v1::WorkerAction::Resume);
            wait::until_true(&format!("{what}: copies to be made again"), HEALING_LIMIT, || {
                lacking(&cluster, inode, 0) == 0
            });
            let memory = cluster.node_process(0).resident();
            assert!(memory < GROWTH_MAX, "{what}: {memory} bytes of memory");
            wait::until_true(&format!("{what}: nothing to be owed"), HEALING_LIMIT, || {
                cluster.wire().status().faults == 0
            });
            others_are_undisturbed(&mut cluster, inode, 3);
            cluster.kill9_node(0);
        }
        assert_eq!(lacking(&cluster, inode, 1) + lacking(&cluster, inode, 2), 0, "{what}");
        std::fs::remove_dir_all(&data).unwrap();
        copy(&saved, &data);
    }
    cluster.start_node(0);
    cluster.wait_formed();
    others_are_undisturbed(&mut cluster, inode, 3);
}

fn store_rows() -> Vec<FileRow> {
    use Outcome::Refuses;
    let damaged: &[&str] = &["malformed", "not a database", "checksum", "damaged", "corrupt"];
    vec![
        (
            "a database of noise",
            |data| overwrite(&data.join("meta.db"), |c| *c = pattern::bytes(9, 0, c.len())),
            Refuses(damaged),
        ),
        (
            "a database whose first page is flipped",
            |data| overwrite(&data.join("meta.db"), |c| c[3] ^= 1),
            Refuses(damaged),
        ),
        (
            "a text file as the database",
            |data| std::fs::write(data.join("meta.db"), "not a database at all, ".repeat(500)).unwrap(),
            Refuses(damaged),
        ),
        (
            "a backup in the place of the database",
            |data| {
                std::fs::write(data.join("meta.db"), [&b"CAIRNLOG"[..], &[0; 5000]].concat()).unwrap();
            },
            Refuses(damaged),
        ),
        (
            "other files and no database",
            |data| std::fs::rename(data.join("meta.db"), data.join("old.db")).unwrap(),
            Refuses(&["holds no metadata store"]),
        ),
        (
            "a restore that was never finished",
            |data| {
                std::fs::rename(data.join("meta.db"), data.join("meta.db.restoring")).unwrap();
            },
            Refuses(&["holds no metadata store"]),
        ),
    ]
}

#[test]
fn files_of_the_coordinator() {
    let mut cluster = Cluster::builder().unmounted().start();
    let inode = filled(&cluster);
    let data = cluster.coordinator_data().to_owned();
    let saved = cluster.path().join("saved");
    assert!(cluster.coordinator_process().terminate(Duration::from_secs(30)).success());
    cluster.kill9_coordinator();
    copy(&data, &saved);
    let path = data.display().to_string();
    for (what, change, outcome) in store_rows() {
        println!("{what}");
        change(&data);
        let Outcome::Refuses(words) = outcome else { panic!("{what}: a store is taken whole or not") };
        let said = refusal(what, &["coordinator", "--listen", "127.0.0.1:0", "--data", &path]);
        assert!(words.iter().any(|word| said.contains(word)), "{what}: {words:?} in: {said}");
        std::fs::remove_dir_all(&data).unwrap();
        copy(&saved, &data);
    }
    // A store of another cluster: its coordinator starts, and no datanode joins it.
    let expected = ["coordinator", "--listen", "127.0.0.1:0", "--data", &path];
    let mut command = process::cairn(expected);
    command.env("CAIRN_COORDINATOR__CLUSTER", "00000000-0000-4000-8000-000000000001");
    let output = command.stderr(Stdio::piped()).output().expect("cairn");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("belongs to cluster"), "{said}");
    cluster.restart();
    others_are_undisturbed(&mut cluster, inode, 3);
}

/// Backups that are damaged, cut, empty or no backups at all: nothing is made of them.
#[test]
fn files_of_backups() {
    let cluster = Cluster::builder().datanodes(1).unmounted().start();
    let wire = cluster.wire();
    wire.create("known");
    wire.goodbye();
    let file = cluster.path().join("backup.cairn");
    let shown = file.display().to_string();
    cluster.run_ok(&["coordinator", "backup", &shown]);
    let whole = std::fs::read(&file).unwrap();
    let noise = pattern::bytes(3, 0, 4000);
    let middle = whole.len() / 2;
    let flipped: Vec<u8> =
        whole.iter().enumerate().map(|(at, b)| if at == middle { b ^ 1 } else { *b }).collect();
    let rows: [(&str, &[u8]); 7] = [
        ("an empty backup", b""),
        ("a backup of noise", &noise),
        ("the header of a backup alone", &whole[..72]),
        ("a backup cut in the middle", &whole[..middle]),
        ("a backup without its last byte", &whole[..whole.len() - 1]),
        ("a backup with a flipped bit", &flipped),
        ("a database as a backup", b"SQLite format 3\0 and nothing else of it"),
    ];
    for (number, (what, content)) in rows.into_iter().enumerate() {
        std::fs::write(&file, content).unwrap();
        let data = cluster.path().join(format!("restored-{number}"));
        let path = data.display().to_string();
        let said = refusal(what, &["coordinator", "restore", "--from", &shown, "--data", &path]);
        assert!(said.contains("backup"), "{what}: {said}");
        assert!(!data.join("meta.db").exists(), "{what}: something was made of it");
    }
    std::fs::write(&file, &whole).unwrap();
    let data = cluster.path().join("restored").display().to_string();
    cluster.run_ok(&["coordinator", "restore", "--from", &shown, "--data", &data]);
}
