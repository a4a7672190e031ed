//! What somebody meets who uses Cairn for the first time and makes a mistake, or whose machine does.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use cairn_tests::cluster::Builder;
use cairn_tests::{Cluster, MIB, need_root, pattern, process, wait};

const LIMIT: Duration = Duration::from_secs(60);

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `cairn` against whatever is at `address`, for three seconds at most.
fn ask(address: &str, command: &[&str]) -> Output {
    let mut line = command.to_vec();
    line.extend(["--coordinator", address, "--timeout", "3s"]);
    process::cairn(line).output().expect("cairn")
}

/// A cluster whose datanodes count as absent soon, and whose services show metrics.
fn watched() -> Builder {
    Cluster::builder()
        .env("CAIRN_COORDINATOR__SUSPECT_AFTER", "2s")
        .env("CAIRN_COORDINATOR__DOWN_AFTER", "3s")
        .env("CAIRN_COORDINATOR__METRICS_LISTEN", "127.0.0.1:0")
        .env("CAIRN_DATANODE__METRICS_LISTEN", "127.0.0.1:0")
        .mount_flag("--metrics-listen")
        .mount_flag("127.0.0.1:0")
}

/// Where a service shows its metrics.
fn metrics_of(cluster: &Cluster, name: &str) -> String {
    let ready = fs::read(cluster.path().join("ready").join(name)).expect("ready file");
    let ready: serde_json::Value = serde_json::from_slice(&ready).expect("JSON");
    ready["metrics_address"].as_str().expect("a metrics address").to_owned()
}

/// Status and body of one HTTP request.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status");
    (status, body.to_owned())
}

/// The value of a series, named as it is shown.
fn series(address: &str, name: &str) -> Option<f64> {
    let (_, body) = get(address, "/metrics");
    body.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// The health codes that `cairn status` shows, and its exit status.
fn status(cluster: &Cluster) -> (Vec<String>, i32) {
    let output = cluster.run(&["status", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let codes = told["health"].as_array().expect("health").iter();
    let codes = codes.map(|code| code["code"].as_str().expect("code").to_owned()).collect();
    (codes, output.status.code().expect("exit status"))
}

fn has(cluster: &Cluster, code: &str) -> bool {
    status(cluster).0.iter().any(|shown| shown == code)
}

#[test]
fn a_wrong_address_is_answered_with_what_is_there() {
    let cluster = watched().unmounted().start();
    let free = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.local_addr().expect("address").to_string()
    };
    let peers = [
        (cluster.node_address(0).to_owned(), "a datanode answers at"),
        (metrics_of(&cluster, "coordinator"), "an HTTP server"),
        (free, "connection refused"),
    ];
    for (address, expected) in peers {
        for command in [&["status"][..], &["ls", "/"], &["df"], &["get", "/file", "file"]] {
            let output = ask(&address, command);
            let text = told(&output);
            assert!(text.contains(expected) && text.contains(&address), "{command:?}: {text}");
            assert_eq!(output.status.code(), Some(3), "{command:?}: {text}");
        }
    }
}

#[test]
fn a_command_that_waits_says_what_for() {
    // Takes connections and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    for command in [&["ls", "/"][..], &["status"]] {
        let output = ask(&address, command);
        let text = told(&output);
        let waits = format!("waiting for the coordinator at {address}");
        assert!(text.contains(&waits) && text.contains("says nothing"), "{command:?}: {text}");
        assert_eq!(output.status.code(), Some(3), "{command:?}: {text}");
    }
}

#[test]
fn a_mount_without_its_coordinator_is_not_ready_and_logs_that_once() {
    let mut cluster = watched().start();
    let mount = metrics_of(&cluster, "mount-mnt");
    assert_eq!(get(&mount, "/readyz").0, 200);
    cluster.kill9_coordinator();
    let away = |seconds: u64| {
        let (status, body) = get(&mount, "/readyz");
        let since = body.strip_prefix("no connection to the coordinator for ");
        let since = since.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        status == 503 && since.is_some_and(|since| since >= seconds)
    };
    // Long enough for ten attempts and more.
    wait::until_true("the mount to miss its coordinator", LIMIT, || away(5));
    let log = cluster.log_of("mount-mnt");
    let lines: Vec<_> = log.lines().filter(|line| line.contains("cairn_client::session")).collect();
    assert!((1..=3).contains(&lines.len()), "{} lines: {lines:#?}", lines.len());
    cluster.start_coordinator();
    wait::until_true("the mount to be ready again", LIMIT, || get(&mount, "/readyz").0 == 200);
}

#[test]
fn a_coordinator_without_datanodes_is_not_ready() {
    let mut cluster = watched().unmounted().start();
    let address = metrics_of(&cluster, "coordinator");
    assert_eq!(get(&address, "/readyz").0, 200);
    for index in 0..3 {
        cluster.kill9_node(index);
    }
    wait::until_true("the coordinator to miss them", LIMIT, || {
        let (status, body) = get(&address, "/readyz");
        status == 503 && body.contains("0 datanodes are up; writes need 2")
    });
    cluster.start_node(0);
    cluster.start_node(1);
    wait::until_true("the coordinator to be ready", LIMIT, || get(&address, "/readyz").0 == 200);
}

#[test]
fn a_removed_datanode_leaves_the_metrics_and_the_copies_it_takes_are_told() {
    let mut cluster = watched().start();
    pattern::write_file(&cluster.mount_path().join("file"), 1, 10 * MIB);
    let address = metrics_of(&cluster, "coordinator");
    let down = "cairn_coordinator_datanodes{state=\"down\"}";
    let node = cluster.node_address(2).to_owned();
    cluster.kill9_node(2);
    wait::until_true("the datanode to be down", LIMIT, || series(&address, down) == Some(1.0));
    wait::until_true("the missing copies to be told", LIMIT, || has(&cluster, "REDUNDANCY_REDUCED"));
    // Without a terminal nobody can be asked, and nothing is done.
    let refused = cluster.run(&["node", "remove", &node, "--force"]);
    assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
    assert!(
        told(&refused).contains("--yes") && told(&refused).contains("another copy"),
        "{}",
        told(&refused)
    );
    assert!(has(&cluster, "NODE_DOWN"), "it was not removed");
    cluster.run_ok(&["node", "remove", &node, "--force", "--yes"]);
    wait::until_true("the gauge to forget it", LIMIT, || series(&address, down) == Some(0.0));
    let shown = cluster.run_ok(&["status"]);
    assert!(shown.contains("REDUNDANCY_REDUCED") && shown.contains("add one"), "{shown}");
    assert!(!shown.contains("0 copies are missing"), "{shown}");
    let code = "cairn_coordinator_health{code=\"REDUNDANCY_REDUCED\",severity=\"warning\"}";
    wait::until_true("the metric to tell it, too", LIMIT, || series(&address, code) == Some(1.0));
}

#[test]
fn a_full_cluster_says_so_and_fails_the_status() {
    need_root();
    let builder = (0..3).fold(watched(), |builder, index| builder.tmpfs(index, 200 * MIB));
    let cluster = builder.env("CAIRN_COORDINATOR__GARBAGE_GRACE", "1h").start();
    assert_eq!(status(&cluster), (vec![], 0));
    let path = cluster.mount_path().join("file");
    let written = (|| -> std::io::Result<()> {
        let mut file = fs::File::create(&path)?;
        for _ in 0..300 {
            file.write_all(&vec![7; MIB as usize])?;
        }
        file.sync_all()
    })();
    assert_eq!(written.expect_err("more than there is room").raw_os_error(), Some(libc::ENOSPC));
    wait::until_true("NO_SPACE", LIMIT, || has(&cluster, "NO_SPACE"));
    assert_eq!(status(&cluster).1, 4);
    // The room of what is removed comes back long before its grace is over.
    fs::remove_file(&path).expect("remove");
    // A file that was closed a moment ago is held for that moment, and becomes garbage after it.
    wait::until_true("room again", LIMIT, || {
        cluster.run_ok(&["gc", "run", "--wait"]);
        !has(&cluster, "NO_SPACE")
    });
    pattern::write_file(&cluster.mount_path().join("second"), 2, 50 * MIB);
}

#[test]
fn disks_that_are_one_are_counted_once() {
    need_root();
    let disk = tempfile::tempdir().expect("tempdir");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=3g", "cairn-test"]).arg(disk.path()).status();
    assert!(mounted.expect("mount").success());
    let _unmount = scopeguard::guard((), |()| cairn_tests::cluster::unmount_by_force(disk.path()));
    let cluster = Cluster::builder().place(disk.path()).start();
    let space: serde_json::Value = serde_json::from_str(&cluster.run_ok(&["df", "--json"])).expect("JSON");
    let room = rustix::fs::statvfs(disk.path()).expect("statvfs");
    let free = room.f_bavail * room.f_frsize;
    // Three copies of each byte come to lie on this disk.
    let available = space["available"].as_u64().expect("available");
    assert!(available <= free / 3 && available > free / 4, "{available} of {free} bytes are told to be free");
    let shown = rustix::fs::statvfs(cluster.mount_path()).expect("statvfs");
    assert_eq!(shown.f_bavail * shown.f_frsize / MIB, available / MIB);
    // Inodes: as many as the store has room for, not all numbers there are.
    assert!(shown.f_files < 1 << 40 && shown.f_ffree > 1000, "{} inodes", shown.f_files);
}

#[test]
fn a_datanode_is_named_by_four_digits_or_its_address_and_a_drain_says_when_it_waits_for_another() {
    let cluster = Cluster::builder().start();
    pattern::write_file(&cluster.mount_path().join("file"), 1, MIB);
    let id = cluster.run_ok(&["node", "list", "--json"]);
    let nodes: serde_json::Value = serde_json::from_str(&id).expect("JSON");
    let id = nodes[0]["node"].as_str().expect("id").to_owned();
    for short in [&id[..1], &id[..3], ""] {
        for command in [&["node", "drain"][..], &["scrub", "status"]] {
            let output = cluster.run(&[command, &[short]].concat());
            assert_eq!(output.status.code(), Some(2), "{command:?} {short:?}: {}", told(&output));
        }
    }
    let output = cluster.run(&["node", "drain", &id[..4]]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("nowhere to go: 2 datanodes serve"), "{}", told(&output));
    cluster.run_ok(&["node", "undrain", &id]);
    let address = nodes[0]["address"].as_str().expect("address");
    assert!(told(&cluster.run(&["node", "drain", address])).contains("nowhere to go"));
    cluster.run_ok(&["node", "undrain", address]);
}

#[test]
fn the_mount_says_what_it_is_and_can_be_remounted() {
    need_root();
    let cluster = Cluster::builder().start();
    let mount = cluster.mount_path();
    let line = || {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let point = format!(" {} ", mount.display());
        mounts.lines().find(|line| line.contains(&point)).expect("the mount").to_owned()
    };
    let expected = format!("{}/ {} fuse.cairn ", cluster.coordinator_address(), mount.display());
    assert!(line().starts_with(&expected), "{}", line());
    let remount = |options: &str| {
        // Without helpers, which not every machine has.
        let status = Command::new("mount").args(["-i", "-o", options]).arg(&mount).status().expect("mount");
        assert!(status.success(), "{options}: {status}");
    };
    remount("remount,ro");
    let refused = fs::write(mount.join("file"), "x").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    remount("remount,rw");
    fs::write(mount.join("file"), "x").expect("writable again");
    // As the helper of mount(8) calls it.
    let source = format!("{}/", cluster.coordinator_address());
    for (options, writable) in [("rw,nosuid,relatime,user_id=0,remount,ro", false), ("ro,remount,rw", true)] {
        let line = [&source, mount.to_str().unwrap(), "-o", options];
        let output = process::cairn(line).output().expect("cairn");
        assert!(output.status.success(), "{options}: {}", told(&output));
        assert_eq!(fs::write(mount.join("file"), "y").is_ok(), writable, "{options}");
    }
}

#[test]
fn an_unmount_names_the_programs_that_use_the_mount_and_those_that_wait_for_it() {
    need_root();
    let mut cluster = watched().start();
    let mount = cluster.mount_path();
    let mut inside = scopeguard::guard(
        Command::new("sleep").arg("600").current_dir(&mount).spawn().expect("sleep"),
        |mut child| {
            let _ = child.kill();
            let _ = child.wait();
        },
    );
    let busy = cluster.run(&["umount", mount.to_str().unwrap()]);
    let (text, name) = (told(&busy), format!("sleep (pid {})", inside.id()));
    assert!(!busy.status.success() && text.contains(&name) && !text.contains("cairn (pid"), "{text}");
    inside.kill().expect("kill");
    inside.wait().expect("wait");
    cluster.kill9_coordinator();
    let mut waiting = scopeguard::guard(
        Command::new("cat").arg(mount.join("no such file")).spawn().expect("cat"),
        |mut child| {
            let _ = child.kill();
            let _ = child.wait();
        },
    );
    let name = format!("cat (pid {}", waiting.id());
    wait::until_true("the program that waits in open to be named", LIMIT, || {
        let text = told(&cluster.run(&["umount", mount.to_str().unwrap()]));
        assert!(!text.contains("cairn (pid"), "{text}");
        text.contains(&name)
    });
    waiting.kill().expect("kill");
    waiting.wait().expect("wait");
    cluster.start_coordinator();
}

#[test]
fn a_clean_unmount_logs_no_warning() {
    let mut cluster = Cluster::builder().start();
    fs::write(cluster.mount_path().join("file"), "x").expect("write");
    assert!(cluster.mount_process().terminate(LIMIT).success());
    let log = cluster.log_of("mount-mnt");
    assert!(log.contains("everything is stored"), "{log}");
    assert!(!log.lines().any(|line| line.contains(" WARN ") || line.contains(" ERROR ")), "{log}");
}

#[test]
fn metrics_explain_themselves_and_begin_with_zero() {
    let cluster = watched().start();
    fs::write(cluster.mount_path().join("file"), vec![7; 10_000]).expect("write");
    fs::read(cluster.mount_path().join("no such file")).expect_err("no such file");
    for (service, zeros) in [
        (
            "coordinator",
            &[
                "cairn_coordinator_sessions_fenced_total",
                "cairn_coordinator_health{code=\"CHUNKS_LOST\",severity=\"error\"}",
            ][..],
        ),
        (
            "datanode0",
            &[
                "cairn_datanode_record_quarantined_total",
                "cairn_datanode_disk_fault_total",
                "cairn_datanode_chunk_read_seconds_count",
            ],
        ),
        (
            "mount-mnt",
            &[
                "cairn_client_store_retries_total",
                "cairn_client_fetch_failovers_total",
                "cairn_fuse_errors_total{op=\"write\",errno=\"EIO\"}",
            ],
        ),
    ] {
        let address = metrics_of(&cluster, service);
        for name in zeros {
            assert_eq!(series(&address, name), Some(0.0), "{service}: {name}");
        }
        let (_, body) = get(&address, "/metrics");
        assert!(body.contains("cairn_build_info{version="), "{service}");
        let of = |prefix: &'static str| {
            let names = body.lines().filter_map(move |line| line.strip_prefix(prefix)?.split(' ').next());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(of("# HELP "), of("# TYPE "), "{service}: each metric has its explanation");
        assert!(of("# TYPE ").iter().all(|name| name.starts_with("cairn_")), "{service}");
        // Values of labels are identifiers.
        let values = body
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(|line| line.split('"').skip(1).step_by(2));
        for value in values {
            assert!(!value.contains(' '), "{service}: {value:?}");
        }
    }
    let mount = metrics_of(&cluster, "mount-mnt");
    assert_eq!(series(&mount, "cairn_fuse_bytes_total{op=\"write\"}"), Some(10_000.0));
    let missing = series(&mount, "cairn_fuse_errors_total{op=\"lookup\",errno=\"ENOENT\"}");
    assert!(missing.is_some_and(|count| count >= 1.0), "{missing:?}");
}

#[test]
fn paths_that_are_not_there_are_named_with_what_to_do() {
    let cluster = Cluster::builder().unmounted().start();
    assert!(cluster.run(&["mkdir", "/here"]).status.success());
    fs::write(cluster.path().join("local"), b"bytes").expect("write");
    let local = cluster.path().join("local").display().to_string();
    assert!(cluster.run(&["put", &local, "/here/file"]).status.success());
    let nowhere = cluster.path().join("no/where").display().to_string();
    for (line, whole) in [
        (&["mkdir", "/none/two/three"][..], ["/none/two does not exist", "-p makes"]),
        (&["cat", "/here"], ["it is a directory", "`cairn ls /here`"]),
        (&["get", "/here/file", &nowhere], ["does not exist", "mkdir -p"]),
    ] {
        let output = cluster.run(line);
        assert!(!output.status.success(), "{line:?}");
        let text = told(&output);
        assert!(whole.iter().all(|part| text.contains(part)), "{line:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    assert!(cluster.run(&["mkdir", "-p", "/none/two/three"]).status.success());
}
