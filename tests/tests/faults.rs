//! `kill -9` in the middle of a stream of writes, and disks that fill up.
//!
//! Writers note what was synced only when `fsync` has returned, and a test in which nothing was
//! synced fails: it would prove nothing. `kill -9` is no power cut: what the kernel was given
//! survives it.

use std::path::Path;
use std::time::Duration;

use cairn_tests::cluster::forget;
use cairn_tests::workload::{self, Control, Outcome, Writer};
use cairn_tests::{Cluster, MIB, need_root, pattern};

/// Longest that a call of an application may take while one process is away: a connection that is
/// silent is given up, and another plan asked for.
const STALL_LIMIT: Duration = Duration::from_secs(8);
/// How long writers may take for some `fsync`, whatever happens around them.
const PROGRESS_LIMIT: Duration = Duration::from_secs(40);

/// Writers on a mount, and what is done to the cluster meanwhile.
#[track_caller]
fn while_writing(cluster: &mut Cluster, fault: impl FnOnce(&mut Cluster, &Control)) -> Vec<Outcome> {
    let mount = cluster.mount_path();
    let stream: Writer = |mount, control| workload::stream(mount, "stream", 2048 * MIB, control);
    let (outcomes, ()) =
        workload::alongside(&mount, &[workload::files, stream, workload::pages], |control| {
            control.wait_synced(20, PROGRESS_LIMIT);
            fault(cluster, control);
        });
    outcomes
}

#[track_caller]
fn nobody_noticed(cluster: &mut Cluster, outcomes: &[Outcome]) {
    for outcome in outcomes {
        outcome.saw_nothing(STALL_LIMIT);
    }
    forget(&cluster.mount_path());
    outcomes.iter().for_each(Outcome::check);
    // Again with the eyes of a new mount, which has cached nothing.
    let status = cluster.mount_process().terminate(Duration::from_secs(60));
    assert!(status.success(), "{status}");
    cluster.kill9_mount();
    cluster.restart();
    outcomes.iter().for_each(Outcome::check);
}

#[test]
fn nobody_notices_that_a_datanode_was_killed() {
    let mut cluster = Cluster::builder().start();
    let outcomes = while_writing(&mut cluster, |cluster, control| {
        cluster.kill9_node(0);
        control.wait_synced(20, PROGRESS_LIMIT);
        // Past the time after which it counts as down.
        std::thread::sleep(Duration::from_secs(11));
        control.wait_synced(20, PROGRESS_LIMIT);
    });
    nobody_noticed(&mut cluster, &outcomes);
}

#[test]
fn nobody_notices_that_each_datanode_was_killed_and_came_back() {
    let mut cluster = Cluster::builder().datanodes(4).start();
    let outcomes = while_writing(&mut cluster, |cluster, control| {
        for index in 0..4 {
            cluster.kill9_node(index);
            control.wait_synced(10, PROGRESS_LIMIT);
            cluster.start_node(index);
            cluster.wait_formed();
            control.wait_synced(10, PROGRESS_LIMIT);
        }
    });
    nobody_noticed(&mut cluster, &outcomes);
}

#[test]
fn nobody_notices_that_a_datanode_froze_for_a_while() {
    let mut cluster = Cluster::builder().start();
    let outcomes = while_writing(&mut cluster, |cluster, control| {
        cluster.node_process(1).signal(rustix::process::Signal::STOP);
        std::thread::sleep(Duration::from_secs(15));
        control.wait_synced(10, PROGRESS_LIMIT);
        cluster.node_process(1).signal(rustix::process::Signal::CONT);
        control.wait_synced(10, PROGRESS_LIMIT);
    });
    for outcome in &outcomes {
        outcome.saw_nothing(Duration::from_secs(20));
    }
    forget(&cluster.mount_path());
    outcomes.iter().for_each(Outcome::check);
}

#[test]
fn nobody_notices_that_the_coordinator_was_killed_and_came_back_within_5_s() {
    let mut cluster = Cluster::builder().start();
    let outcomes = while_writing(&mut cluster, |cluster, control| {
        for pause in [0, 3] {
            cluster.kill9_coordinator();
            std::thread::sleep(Duration::from_secs(pause));
            cluster.start_coordinator();
            control.wait_synced(20, PROGRESS_LIMIT);
        }
    });
    nobody_noticed(&mut cluster, &outcomes);
}

#[test]
fn reads_go_on_while_any_one_datanode_is_away() {
    let mut cluster = Cluster::builder().chunk_size(MIB).start();
    let path = cluster.mount_path().join("file");
    pattern::write_file(&path, 17, 24 * MIB);
    forget(&cluster.mount_path());
    // A mount that has cached nothing, for each.
    for index in 0..3 {
        let name = format!("reader{index}");
        let reader = cluster.mount_at_with(Path::new(&name), &[]);
        cluster.kill9_node(index);
        pattern::check_file(&reader.path().join("file"), 17, 24 * MIB);
        drop(reader);
        cluster.restart();
    }
}

/// Flips a bit in every 4 KiB page of every segment of a data directory; gives how many.
fn damage(data: &Path) -> usize {
    let mut flipped = 0;
    for entry in std::fs::read_dir(data).expect("readdir") {
        let entry = entry.expect("entry");
        let meta = entry.metadata().expect("stat");
        if meta.is_dir() {
            flipped += damage(&entry.path());
        } else if meta.len() >= MIB {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::options().read(true).write(true).open(entry.path()).expect("open");
            let mut page = [0; 4096];
            for offset in (0..meta.len()).step_by(page.len()) {
                let got = file.read_at(&mut page, offset).expect("read");
                // Only what was written: the rest of a segment is empty.
                if page[..got].iter().any(|&byte| byte != 0) {
                    page[2000] ^= 0x10;
                    file.write_all_at(&page[..got], offset).expect("write");
                    flipped += 1;
                }
            }
        }
    }
    flipped
}

#[test]
fn a_damaged_copy_is_never_read() {
    let mut cluster = Cluster::builder().chunk_size(MIB).start();
    // What is damaged stays so: a copy that was made again would be read in the end.
    cluster.run_ok(&["worker", "pause", "repair"]);
    let path = cluster.mount_path().join("file");
    pattern::write_file(&path, 31, 12 * MIB);
    std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    for index in [0, 1] {
        cluster.kill9_node(index);
        assert!(damage(cluster.node_data(index)) > 1000, "something was damaged");
        cluster.start_node(index);
        cluster.wait_formed();
        let reader = cluster.mount_at_with(Path::new(&format!("reader{index}")), &[]);
        pattern::check_file(&reader.path().join("file"), 31, 12 * MIB);
    }
    // With every copy gone, an error is told; nothing else would be true.
    cluster.kill9_node(2);
    assert!(damage(cluster.node_data(2)) > 1000, "something was damaged");
    cluster.start_node(2);
    cluster.wait_formed();
    let reader = cluster.mount_at_with(Path::new("last"), &["--unreachable", "soft=5"]);
    let error = std::fs::read(reader.path().join("file")).expect_err("no good copy is left");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn what_was_synced_survives_a_killed_mount() {
    let mut cluster = Cluster::builder().start();
    let outcomes = while_writing(&mut cluster, |cluster, _| cluster.kill9_mount());
    assert!(outcomes.iter().any(|outcome| outcome.error.is_some()), "the mount was killed while writing");
    cluster.restart();
    outcomes.iter().for_each(Outcome::check);
    // And what is there can be worked with.
    let again = while_writing(&mut cluster, |_, control| control.wait_synced(20, PROGRESS_LIMIT));
    nobody_noticed(&mut cluster, &again);
}

#[test]
fn what_was_synced_survives_that_everything_is_killed_at_once() {
    let mut cluster = Cluster::builder().start();
    let outcomes = while_writing(&mut cluster, |cluster, _| cluster.kill9_all());
    cluster.restart();
    outcomes.iter().for_each(Outcome::check);
    let again = while_writing(&mut cluster, |_, control| control.wait_synced(20, PROGRESS_LIMIT));
    nobody_noticed(&mut cluster, &again);
}

#[test]
fn a_deleted_and_a_renamed_file_stay_so_when_the_directory_was_synced_and_everything_is_killed() {
    let mut cluster = Cluster::builder().start();
    let mount = cluster.mount_path();
    for name in ["gone", "old", "stays"] {
        pattern::write_file(&mount.join(name), 5, 100_000);
        std::fs::File::open(mount.join(name)).and_then(|file| file.sync_all()).expect("fsync");
    }
    std::fs::remove_file(mount.join("gone")).expect("unlink");
    std::fs::rename(mount.join("old"), mount.join("new")).expect("rename");
    workload::sync_directory(&mount).expect("fsync of the directory");
    cluster.kill9_all();
    cluster.restart();
    let mut names: Vec<_> = std::fs::read_dir(&mount)
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("name"))
        .collect();
    names.sort();
    assert_eq!(names, ["new", "stays"]);
    pattern::check_file(&mount.join("new"), 5, 100_000);
    pattern::check_file(&mount.join("stays"), 5, 100_000);
}

#[test]
fn a_full_datanode_beside_three_others_is_not_noticed() {
    need_root();
    let mut cluster = Cluster::builder().datanodes(4).tmpfs(0, 64 * MIB).start();
    let mount = cluster.mount_path();
    let outcome = workload::stream(&mount, "stream", 200 * MIB, &Control::default());
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    let used = cairn_tests::disk::usage(cluster.node_data(0));
    assert!(used > 24 * MIB, "the small disk was used: {used} bytes");
    forget(&mount);
    outcome.check();
    // The full node starts again, and what it holds is good.
    cluster.kill9_node(0);
    cluster.restart();
    forget(&mount);
    outcome.check();
}

/// Fills a cluster until it says so; then nothing is damaged, and it goes on serving.
fn fill(mut cluster: Cluster, must_fill: bool) {
    let mount = cluster.mount_path();
    pattern::write_file(&mount.join("before"), 8, 10 * MIB);
    std::fs::File::open(mount.join("before")).and_then(|file| file.sync_all()).expect("fsync");
    let outcome = workload::stream(&mount, "stream", 300 * MIB, &Control::default());
    assert!(outcome.error.is_none() || outcome.is_full(), "ENOSPC or nothing: {:?}", outcome.error);
    assert!(outcome.is_full() || !must_fill, "300 MiB fit on disks of 96 MiB");
    if outcome.is_full() {
        // Every further one is told as well, and soon.
        let small = workload::stream(&mount, "more", 8 * MIB, &Control::default());
        assert!(small.is_full(), "{:?}", small.error);
        small.saw_only_errors_within(Duration::from_secs(20));
    }
    forget(&mount);
    outcome.check();
    pattern::check_file(&mount.join("before"), 8, 10 * MIB);
    // Names can still be changed, files removed; and everything survives a restart of all.
    std::fs::rename(mount.join("before"), mount.join("after")).expect("rename");
    std::fs::create_dir(mount.join("directory")).expect("mkdir");
    workload::sync_directory(&mount).expect("fsync of the directory");
    cluster.kill9_all();
    cluster.restart();
    outcome.check();
    pattern::check_file(&mount.join("after"), 8, 10 * MIB);
    std::fs::remove_file(mount.join("stream")).expect("unlink");
    assert!(mount.join("directory").is_dir());
}

#[test]
fn full_disks_everywhere_give_enospc_and_damage_nothing() {
    need_root();
    let builder = (0..3).fold(Cluster::builder(), |builder, index| builder.ext4(index, 96 * MIB));
    fill(builder.start(), true);
}

#[test]
fn a_full_disk_of_one_of_three_damages_nothing() {
    need_root();
    fill(Cluster::builder().tmpfs(1, 96 * MIB).start(), false);
}
