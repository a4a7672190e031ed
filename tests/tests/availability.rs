//! One datanode of three is killed under load: applications see no error, and no call of theirs takes
//! long.

use std::process::Stdio;
use std::time::Duration;

use cairn_tests::{Cluster, MIB, need_root, process, rounds, wait};

/// Longest that a call may take.
const STALL_LIMIT: Duration = Duration::from_secs(5);
/// What the readers read; more than the mount may keep in memory.
const READ_BYTES: u64 = 160 * MIB;
const SECONDS: u64 = 20;
/// How long the load runs before a datanode is killed.
const UNDISTURBED: Duration = Duration::from_secs(5);

#[test]
fn a_killed_datanode_is_no_error_and_no_long_stall_under_fio() {
    need_root();
    let mut cluster = Cluster::builder().env("CAIRN_CLIENT__MEMORY", "64 MiB").start();
    let mount = cluster.mount_path();
    cairn_tests::pattern::write_file(&mount.join("reads"), 3, READ_BYTES);
    std::fs::File::open(mount.join("reads")).and_then(|file| file.sync_all()).expect("fsync");
    let result = cluster.path().join("fio.json");
    let mut command = process::command("fio");
    command
        .args(["--output-format=json", "--output"])
        .arg(&result)
        .args(["--time_based", &format!("--runtime={SECONDS}"), "--group_reporting=0", "--ioengine=psync"])
        // Reads go past the kernel's pages, so that they need the cluster.
        .args(["--name=reads", "--rw=randread", "--bs=128k", "--direct=1"])
        .arg(format!("--filename={}", mount.join("reads").display()))
        .arg(format!("--size={READ_BYTES}"))
        .args(["--name=writes", "--rw=write", "--bs=256k", "--fsync=16", "--direct=0", "--size=256m"])
        .arg(format!("--filename={}", mount.join("writes").display()))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let mut child = command.spawn().expect("fio");
    std::thread::sleep(UNDISTURBED);
    assert!(child.try_wait().expect("wait").is_none(), "fio runs when the datanode is killed");
    cluster.kill9_node(0);
    let status = wait::within("fio", Duration::from_secs(SECONDS + 60), move || child.wait()).expect("wait");
    assert!(status.success(), "fio failed: {status}");
    let text = std::fs::read_to_string(&result).expect("result of fio");
    let told: serde_json::Value = serde_json::from_str(&text).expect("JSON of fio");
    let jobs = told["jobs"].as_array().expect("jobs");
    assert_eq!(jobs.len(), 2);
    let (mut longest, mut calls, mut words) = (0, 0, Vec::new());
    for job in jobs {
        let name = job["jobname"].as_str().expect("a name");
        assert_eq!(job["error"], 0, "fio's {name} saw an error");
        for (kind, field) in [("read", "clat_ns"), ("write", "clat_ns"), ("sync", "lat_ns")] {
            let count = job[kind]["total_ios"].as_u64().unwrap_or(0);
            if count > 0 {
                let max = job[kind][field]["max"].as_u64().expect("longest");
                words.push(format!("{kind} {:.2} s", max as f64 / 1e9));
                calls += count;
                longest = longest.max(max);
            }
        }
    }
    assert!(words.len() == 3, "reads, writes and syncs were measured: {words:?}");
    rounds::report("availability", 1, calls, &format!("0 errors, longest {}", words.join(", ")));
    assert!(Duration::from_nanos(longest) <= STALL_LIMIT, "a call took {} ms", longest / 1_000_000);
}
