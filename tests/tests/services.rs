//! What every service shows of itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use cairn_tests::{Cluster, MIB, pattern, wait};

/// Status line and body of one HTTP request.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.lines().next().expect("status line").to_owned(), body.to_owned())
}

#[test]
fn metrics_and_health_are_shown_by_every_service() {
    let cluster = Cluster::builder()
        .env("CAIRN_COORDINATOR__METRICS_LISTEN", "127.0.0.1:0")
        .env("CAIRN_DATANODE__METRICS_LISTEN", "127.0.0.1:0")
        .mount_flag("--metrics-listen")
        .mount_flag("127.0.0.1:0")
        .start();
    pattern::write_file(&cluster.mount_path().join("file"), 1, 10 * MIB);
    std::fs::File::open(cluster.mount_path().join("file")).and_then(|file| file.sync_all()).expect("fsync");
    for (name, prefix) in [
        ("coordinator", "cairn_coordinator_"),
        ("datanode0", "cairn_datanode_"),
        ("mount-mnt", "cairn_fuse_"),
    ] {
        let ready = std::fs::read(cluster.path().join("ready").join(name)).expect("ready file");
        let ready: serde_json::Value = serde_json::from_slice(&ready).expect("JSON");
        let address =
            ready["metrics_address"].as_str().unwrap_or_else(|| panic!("{name} has no metrics address"));
        for path in ["/healthz", "/readyz"] {
            let (status, body) = get(address, path);
            assert!(status.contains(" 200 "), "{name} {path}: {status} {body}");
        }
        let (status, body) = get(address, "/metrics");
        assert!(status.contains(" 200 "), "{name}: {status}");
        let lines = body.lines().filter(|line| line.starts_with(prefix)).count();
        assert!(lines > 0, "{name} shows no {prefix}* metrics:\n{body}");
    }
}

#[test]
fn status_says_which_datanode_is_down_and_that_it_is_back() {
    let mut cluster = Cluster::builder()
        .unmounted()
        .env("CAIRN_COORDINATOR__SUSPECT_AFTER", "2s")
        .env("CAIRN_COORDINATOR__DOWN_AFTER", "3s")
        .start();
    let health = |cluster: &Cluster| -> Vec<String> {
        cluster.wire().status().health.into_iter().map(|code| code.code).collect()
    };
    assert_eq!(health(&cluster), Vec::<String>::new(), "all is well");
    cluster.run_ok(&["status"]);
    cluster.kill9_node(2);
    wait::until_true("the health code", Duration::from_secs(20), || {
        health(&cluster).iter().any(|code| code == "NODE_DOWN")
    });
    let shown = cluster.run(&["status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("NODE_DOWN"));
    cluster.restart();
    wait::until_true("all to be well", Duration::from_secs(20), || {
        !health(&cluster).iter().any(|code| code == "NODE_DOWN")
    });
}

#[test]
fn counters_agree_with_what_is_stored() {
    let cluster = Cluster::builder().unmounted().start();
    let wire = cluster.wire();
    let before = wire.status();
    for number in 0..5 {
        let inode = wire.create(&format!("file{number}"));
        wire.upload(inode, number, 300_000 * number, 64 << 10);
    }
    let after = wire.status();
    assert_eq!(after.inodes - before.inodes, 5);
    assert_eq!(after.bytes - before.bytes, 300_000 * 10);
    let fs = wire.call(wire.coordinator().stat_fs(cairn_proto::v1::StatFsRequest {})).expect("StatFs");
    assert_eq!(fs.used, after.bytes);
    assert_eq!(fs.inodes, after.inodes);
    assert!(fs.available > 0 && fs.available <= fs.capacity);
    for number in 0..5 {
        wire.unlink(&format!("file{number}")).expect("unlink");
    }
    let empty = wire.status();
    assert_eq!((empty.inodes, empty.bytes), (before.inodes, before.bytes));
}

#[test]
fn a_coordinator_that_comes_back_on_another_day_knows_its_datanodes() {
    let mut cluster = Cluster::builder().unmounted().start();
    let wire = cluster.wire();
    let inode = wire.create("file");
    wire.upload(inode, 1, 5 * MIB, MIB);
    let nodes: Vec<_> = wire.nodes().map(|(id, _)| id.clone()).collect();
    let cluster_id = wire.map().cluster.clone();
    drop(wire);
    cluster.kill9_all();
    cluster.restart();
    let wire = cluster.wire();
    assert_eq!(wire.nodes().map(|(id, _)| id.clone()).collect::<Vec<_>>(), nodes, "the same nodes");
    assert_eq!(wire.map().cluster, cluster_id);
    wire.check_replicas(inode, 1, 5 * MIB, 3);
}
