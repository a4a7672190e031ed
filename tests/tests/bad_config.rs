//! Wrong flags, keys, paths, sizes and addresses are refused before anything is touched, with a
//! sentence that says what was wrong and what was expected.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cairn_tests::process::{Process, Workspace};
use cairn_tests::{Cluster, process, wait};

/// A refusal is quick.
const LIMIT: Duration = Duration::from_secs(20);

fn run(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cairn");
    let pid = child.id();
    let what = format!("{command:?} to be refused");
    let output = wait::within(&what, LIMIT, move || child.wait_with_output());
    output.unwrap_or_else(|error| panic!("process {pid}: {error}"))
}

/// The command fails, says each of `words` on standard error, and nothing of a panic.
#[track_caller]
fn refused(command: Command, words: &[&str]) -> Output {
    let shown = format!("{command:?}");
    let output = run(command);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{shown} was accepted: {error}");
    assert!(output.status.code().is_some(), "{shown} was killed: {}", output.status);
    assert!(!error.contains("panicked"), "{shown}: {error}");
    for word in words {
        assert!(error.contains(word), "{shown}: {word:?} is missing in: {error}");
    }
    output
}

/// As [`refused`], as a mistake of the command line or the configuration: exit status 2.
#[track_caller]
fn refused_as_usage(command: Command, words: &[&str]) {
    let shown = format!("{command:?}");
    let output = refused(command, words);
    assert_eq!(output.status.code(), Some(2), "exit status of {shown}");
}

#[test]
fn flags_that_are_wrong() {
    let workspace = Workspace::new();
    let data = workspace.path().join("data");
    let data = data.to_str().unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["frobnicate"], &["frobnicate"]),
        (&["coordinator", "--no-such-flag"], &["--no-such-flag"]),
        (&["coordinator", "--listen"], &["--listen"]),
        (&["coordinator", "--listen", "here"], &["listen", "here", "host:port"]),
        (&["coordinator", "--listen", "127.0.0.1:99999"], &["listen", "99999", "host:port"]),
        (&["coordinator", "--listen", ":1"], &["listen", "host:port"]),
        (&["coordinator", "--replicas", "0"], &["replicas", "0", "1 to"]),
        (&["coordinator", "--replicas", "17"], &["replicas", "17", "16"]),
        (&["coordinator", "--replicas", "many"], &["--replicas", "many"]),
        (&["coordinator", "--replicas", "-1"], &["-1"]),
        (&["coordinator", "--replicas", "2", "--min-replicas", "3"], &["min_replicas", "3", "replicas = 2"]),
        (&["coordinator", "--min-replicas", "0"], &["min_replicas", "0"]),
        (&["coordinator", "--data", ""], &["data"]),
        (&["coordinator", "--metrics-listen", "9"], &["metrics_listen", "host:port"]),
        (&["datanode", "--listen", "x"], &["listen", "x", "host:port"]),
        (&["datanode", "--coordinator", "host:0"], &["coordinator", "host:0", "host:port"]),
        (&["datanode", "--coordinator", ""], &["coordinator", "host:port"]),
        (&["datanode", "--advertise", "node"], &["advertise", "node", "host:port"]),
        (&["datanode", "--data", "/a", "--data", "/a"], &["data", "/a"]),
        (&["datanode", "--label", "rack"], &["rack", "KEY=VALUE"]),
        (&["datanode", "--reserve", "lots"], &["reserve", "lots"]),
        (&["mount", "/", "--unreachable", "soft"], &["soft", "soft=SECONDS"]),
        (&["mount", "/", "--unreachable", "soft=0"], &["soft=0", "soft=SECONDS"]),
        (&["mount", "/", "--memory", "1MiB"], &["memory", "32 MiB"]),
        (&["mount", "/", "--memory", "-5"], &["-5"]),
        (&["mount"], &["DIR"]),
        (&["put"], &["LOCAL"]),
        (&["put", "/etc/hostname", "relative"], &["relative", "absolute"]),
        (&["put", "/etc/hostname", "/a/../b"], &[".."]),
        (&["put", "-P", "0", "/etc/hostname", "/a"], &["0", "1..=256"]),
        (&["mkdir", "--mode", "888", "/a"], &["888", "octal"]),
        (&["up", "/tmp/x", "--datanodes", "0"], &["0", "1..=64"]),
        (&["ls", "--coordinator", "nowhere"], &["coordinator", "nowhere", "host:port"]),
        (&["ls", "--config", "/nonexistent/cairn.toml"], &["/nonexistent/cairn.toml"]),
    ];
    for (arguments, words) in cases {
        let mut command = process::cairn(*arguments);
        if matches!(arguments[0], "coordinator" | "datanode") && !arguments.contains(&"--data") {
            command.args(["--data", data]);
        }
        refused_as_usage(command, words);
    }
    assert!(!Path::new(data).exists(), "what is refused touches nothing");
}

#[test]
fn variables_and_keys_that_are_wrong() {
    let cases = [
        ("COORDINATOR__LEASE", "0s", "lease"),
        ("COORDINATOR__LEASE", "soon", "lease"),
        ("COORDINATOR__LEASE", "1 year", "lease"),
        ("COORDINATOR__HEARTBEAT", "0s", "heartbeat"),
        ("COORDINATOR__SUSPECT_AFTER", "10ms", "suspect_after"),
        ("COORDINATOR__DOWN_AFTER", "1s", "down_after"),
        ("COORDINATOR__PLAN_TIME", "1ms", "plan_time"),
        ("COORDINATOR__CHUNK_SIZE", "1KiB", "chunk_size"),
        ("COORDINATOR__CHUNK_SIZE", "65MiB", "chunk_size"),
        ("COORDINATOR__CHUNK_SIZE", "eight", "chunk_size"),
        ("COORDINATOR__NO_SUCH_KEY", "1", "no_such_key"),
        ("COORDINATOR__METADATA_SYNC", "perhaps", "metadata_sync"),
        ("NO_SUCH_SECTION__KEY", "1", "no_such_section"),
        ("DATANODE__NONSENSE", "1", "nonsense"),
    ];
    let workspace = Workspace::new();
    let data = workspace.path().join("data");
    for (name, value, word) in cases {
        let mut command = process::cairn(["coordinator", "--data", data.to_str().unwrap()]);
        command.env(format!("CAIRN_{name}"), value);
        refused_as_usage(command, &[word]);
    }
    let cases = [
        ("SEGMENT_SIZE", "1MiB", "segment_size"),
        ("SEGMENT_SIZE", "1PiB", "segment_size"),
        ("MEMORY", "1KiB", "memory"),
        ("RESERVE", "-1", "reserve"),
    ];
    for (name, value, word) in cases {
        let mut command = process::cairn(["datanode", "--data", data.to_str().unwrap()]);
        command.env(format!("CAIRN_DATANODE__{name}"), value);
        refused_as_usage(command, &[word]);
    }
    assert!(!data.exists(), "what is refused touches nothing");
}

#[test]
fn files_that_are_wrong() {
    let workspace = Workspace::new();
    let data = workspace.path().join("data");
    let file = workspace.path().join("cairn.toml");
    let cases = [
        ("[coordinator]\nlistn = \"127.0.0.1:0\"\n", "listn"),
        ("[coordinater]\n", "coordinater"),
        ("[coordinator\n", "cairn.toml"),
        ("[coordinator]\nreplicas = \"three\"\n", "replicas"),
        ("[coordinator]\nreplicas = 300\n", "replicas"),
        ("[coordinator]\nreplicas = -3\n", "replicas"),
        ("[coordinator]\nlease = 10\n", "lease"),
        ("[client]\nunreachable = \"sometimes\"\n", "unreachable"),
        ("[datanode]\nlabels = 5\n", "labels"),
    ];
    for (text, word) in cases {
        std::fs::write(&file, text).expect("write");
        let mut command = process::cairn(["coordinator", "--data", data.to_str().unwrap()]);
        command.arg("--config").arg(&file);
        refused_as_usage(command, &[word]);
    }
    // One that can not be text at all.
    std::fs::write(&file, [0xff, 0xfe, 0, 1]).expect("write");
    let mut command = process::cairn(["coordinator", "--data", data.to_str().unwrap()]);
    command.arg("--config").arg(&file);
    refused_as_usage(command, &["cairn.toml"]);
    assert!(!data.exists(), "what is refused touches nothing");
}

#[test]
fn the_file_that_config_init_writes_is_right_and_says_the_defaults() {
    let workspace = Workspace::new();
    let file = workspace.path().join("cairn.toml");
    let file = file.to_str().unwrap();
    let run_ok = |arguments: &[&str]| {
        let output = run(process::cairn(arguments));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "cairn {arguments:?}: {error}");
        output.stdout
    };
    run_ok(&["config", "init", file]);
    let with = run_ok(&["config", "show", "--json", "--config", file]);
    let without = run_ok(&["config", "show", "--json"]);
    assert_eq!(with, without, "the written file changes no setting");
    refused(process::cairn(["config", "init", file]), &[file]);
}

#[test]
fn addresses_that_can_not_be_used() {
    let workspace = Workspace::new();
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = held.local_addr().expect("address").to_string();
    let data = workspace.path().join("data");
    let data = data.to_str().unwrap();
    for service in ["coordinator", "datanode"] {
        // Taken by somebody else.
        let command = process::cairn([service, "--data", data, "--listen", &taken]);
        refused(command, &[&taken]);
        // Open to the world, although nothing is encrypted.
        let command = process::cairn([service, "--data", data, "--listen", "0.0.0.0:0"]);
        refused(command, &["0.0.0.0", "insecure"]);
        let command = process::cairn([service, "--data", data, "--listen", "203.0.113.7:0", "--insecure"]);
        refused(command, &["203.0.113.7"]);
    }
    // A cluster that is away: a command says so soon, with its own exit status.
    let output = refused(process::cairn(["ls", "/", "--coordinator", "127.0.0.1:1"]), &["127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(3), "the cluster can not be reached");
}

#[test]
fn data_directories_that_can_not_be_used() {
    let workspace = Workspace::new();
    let file = workspace.path().join("a-file");
    std::fs::write(&file, "x").expect("write");
    for service in ["coordinator", "datanode"] {
        let command = process::cairn([service, "--listen", "127.0.0.1:0", "--data", file.to_str().unwrap()]);
        refused(command, &["a-file"]);
        let below = file.join("below");
        let command = process::cairn([service, "--listen", "127.0.0.1:0", "--data", below.to_str().unwrap()]);
        refused(command, &["a-file"]);
    }
}

#[test]
fn data_directories_that_are_in_use_are_locked() {
    let mut cluster = Cluster::builder().datanodes(1).unmounted().start();
    let data = cluster.coordinator_data().to_str().unwrap().to_owned();
    refused(process::cairn(["coordinator", "--listen", "127.0.0.1:0", "--data", &data]), &[&data]);
    let data = cluster.node_data(0).to_str().unwrap().to_owned();
    let address = cluster.coordinator_address().to_owned();
    let command =
        process::cairn(["datanode", "--listen", "127.0.0.1:0", "--data", &data, "--coordinator", &address]);
    refused(command, &[&data]);
    // And what holds the lock goes on.
    assert!(cluster.coordinator_process().is_running() && cluster.node_process(0).is_running());
    let wire = cluster.wire();
    let inode = wire.create("file");
    wire.upload(inode, 1, 100_000, 1 << 20);
    wire.check_replicas(inode, 1, 100_000, 1);
}

#[test]
fn a_datanode_of_another_cluster_is_refused_and_left_alone() {
    let first = Cluster::builder().datanodes(1).unmounted().start();
    let mut second = Cluster::builder().datanodes(1).unmounted().start();
    let wire = second.wire();
    let inode = wire.create("file");
    wire.upload(inode, 1, 100_000, 1 << 20);
    second.kill9_node(0);
    let data = second.node_data(0).to_str().unwrap().to_owned();
    let address = first.coordinator_address().to_owned();
    let command =
        process::cairn(["datanode", "--listen", "127.0.0.1:0", "--data", &data, "--coordinator", &address]);
    refused(command, &["cluster"]);
    assert_eq!(first.wire().map().nodes.len(), 1, "it has not joined");
    second.restart();
    let wire = second.wire();
    wire.check_replicas(inode, 1, 100_000, 1);
}

/// Stops the coordinator in good order, and gives a way to its database.
fn opened(cluster: &mut Cluster) -> impl Fn(&str) -> String + use<> {
    let status = cluster.coordinator_process().terminate(Duration::from_secs(20));
    assert!(status.success(), "{status}");
    cluster.kill9_coordinator();
    let database = cluster.coordinator_data().join("meta.db");
    move |statement| {
        let output = Command::new("sqlite3").arg(&database).arg(statement).output().expect("sqlite3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// The checksum of the row `cluster`, as the store computes it: over the table's name and the
/// columns, each behind a byte that says its type.
fn checksum_of_cluster(id: &[u8], schema: i64, created_ns: i64) -> u32 {
    let integer = |value: i64| [&[1], &value.to_le_bytes()[..]].concat();
    let blob = [&[3], &(id.len() as u64).to_le_bytes()[..], id].concat();
    let row = [b"cluster".to_vec(), integer(1), blob, integer(schema), integer(created_ns)].concat();
    cairn_proto::checksum::crc32c(&row)
}

#[test]
fn a_metadata_store_of_a_newer_version_is_refused_and_left_alone() {
    let mut cluster = Cluster::builder().datanodes(1).unmounted().start();
    cluster.wire().create("file");
    let sql = opened(&mut cluster);
    let row = sql("SELECT hex(cluster), schema, created_ns, crc FROM cluster");
    let columns: Vec<&str> = row.split('|').collect();
    let [id, schema, created, crc] = columns[..] else { panic!("{row}") };
    let id: Vec<u8> =
        (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).expect("hex")).collect();
    let created: i64 = created.parse().expect("number");
    let current = schema.parse().expect("number");
    assert_eq!(checksum_of_cluster(&id, current, created).to_string(), crc, "the form of the row");
    let set = |schema: i64| {
        let crc = checksum_of_cluster(&id, schema, created);
        sql(&format!("UPDATE cluster SET schema = {schema}, crc = {crc}"));
    };
    set(999_999);
    let data = cluster.coordinator_data().to_str().unwrap().to_owned();
    let command = || process::cairn(["coordinator", "--listen", "127.0.0.1:0", "--data", &data]);
    refused(command(), &["newer", "999999", &data]);
    assert_eq!(sql("SELECT schema FROM cluster"), "999999", "left as it was");
    // A row that was changed behind the store's back is no version at all.
    sql(&format!("UPDATE cluster SET schema = {current}"));
    refused(command(), &["cluster"]);
    set(current);
    cluster.restart();
    assert_eq!(cluster.wire().list_root(), ["file"]);
}

#[test]
fn a_row_that_was_changed_behind_the_stores_back_is_never_believed() {
    let mut cluster = Cluster::builder().datanodes(1).unmounted().start();
    let wire = cluster.wire();
    let inode = wire.create("damaged");
    wire.upload(inode, 1, 100_000, 1 << 20);
    let whole = wire.create("whole");
    wire.upload(whole, 2, 100_000, 1 << 20);
    drop(wire);
    let sql = opened(&mut cluster);
    sql(&format!("UPDATE inode SET size = size + 1 WHERE id = {inode}"));
    cluster.restart();
    let wire = cluster.wire();
    let error = wire.layout(inode).expect_err("a damaged row").kind;
    assert_eq!(error, cairn_proto::ErrorKind::Corrupt);
    wire.check_replicas(whole, 2, 100_000, 1);
}

#[test]
fn mountpoints_that_can_not_be_used() {
    let cluster = Cluster::builder().datanodes(1).start();
    let address = cluster.coordinator_address().to_owned();
    let mount = |path: &Path, words: &[&str]| {
        let mut command = process::cairn(["mount", "--foreground", "--coordinator", &address]);
        command.arg(path);
        refused(command, words);
        // Without --foreground the parent says the same.
        let mut command = process::cairn(["mount", "--coordinator", &address]);
        command.arg(path).arg("--log-file").arg(cluster.path().join("logs/refused"));
        refused(command, words);
    };
    let top = cluster.path().to_owned();
    mount(&top.join("missing"), &["missing", "mkdir"]);
    assert!(!top.join("missing").exists());
    std::fs::write(top.join("file"), "x").expect("write");
    mount(&top.join("file"), &["file", "not a directory"]);
    std::fs::create_dir(top.join("full")).expect("mkdir");
    std::fs::write(top.join("full/entry"), "x").expect("write");
    mount(&top.join("full"), &["full", "not empty"]);
    mount(&cluster.mount_path(), &["already", "umount"]);
    // The mount that was there is as it was.
    std::fs::write(cluster.mount_path().join("x"), "y").expect("write");
    refused(process::cairn(["umount", top.join("full").to_str().unwrap()]), &["full"]);
    refused(process::cairn(["umount", top.join("missing").to_str().unwrap()]), &["missing"]);
}

#[test]
fn a_dead_mount_is_replaced() {
    let mut cluster = Cluster::builder().datanodes(1).start();
    let path = cluster.mount_path();
    std::fs::write(path.join("x"), "y").expect("write");
    std::fs::File::open(path.join("x")).and_then(|file| file.sync_all()).expect("fsync");
    cluster.mount_process().kill9();
    // The kernel may remember the attributes for a second.
    wait::until_true("the mount to be dead", Duration::from_secs(5), || std::fs::metadata(&path).is_err());
    let ready = cluster.path().join("ready/again");
    let mut command =
        process::cairn(["mount", "--foreground", "--coordinator", cluster.coordinator_address()]);
    command.arg(&path).arg("--ready-file").arg(&ready);
    let mut again = Process::start("mount again", command, &cluster.path().join("logs/again"));
    again.wait_ready(&ready);
    assert_eq!(std::fs::read(path.join("x")).expect("read"), b"y");
}
