//! One disk of a datanode fails, a real file system on a real block device: writers and readers notice
//! nothing, the disk is named in the health of the cluster, its copies are made again elsewhere, and the
//! datanode goes on with its other disk, over a restart too. Every copy is fetched and compared.
//!
//! Datanode 0 has two disks, each an ext4; the second is the one that fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cairn_proto::health::Condition;
use cairn_proto::v1::{self, MemberState, NodeState};
use cairn_tests::cluster::forget;
use cairn_tests::throttle::Throttle;
use cairn_tests::workload;
use cairn_tests::{Builder, Cluster, KIB, MIB, Wire, need_root, pattern, rpc, wait};

/// How long anything may take here.
const LIMIT: Duration = Duration::from_secs(100);
/// Longest that one call of an application may take meanwhile.
const STALL_LIMIT: Duration = Duration::from_secs(8);
/// A slow disk takes its time for what is on its way there when it becomes slow.
const SLOW_STALL_LIMIT: Duration = Duration::from_secs(20);
/// How long writers may take for some `fsync`, whatever happens around them.
const PROGRESS_LIMIT: Duration = Duration::from_secs(40);
const CHUNK: u64 = 256 * KIB;
const FILES: u64 = 12;
const FILE_LENGTH: u64 = 4 * MIB + 77;
const DISK: u64 = 1024 * MIB;

fn builder() -> Builder {
    Cluster::builder()
        .chunk_size(CHUNK)
        .env("CAIRN_COORDINATOR__HEARTBEAT", "200ms")
        .env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB")
        .ext4(0, DISK)
}

/// Writes a file through the mount; durable on return.
fn put(cluster: &Cluster, number: u64) {
    let path = cluster.mount_path().join(format!("base-{number}"));
    pattern::write_file(&path, number, FILE_LENGTH);
    std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
}

/// Reads files through the mount, as the datanodes have them now.
fn read(cluster: &Cluster, files: u64) {
    forget(&cluster.mount_path());
    for number in 0..files {
        pattern::check_file(&cluster.mount_path().join(format!("base-{number}")), number, FILE_LENGTH);
    }
}

/// Copies of all files that are there and right; every member of every set is asked.
fn sound_copies(wire: &Wire, files: u64) -> u64 {
    let mut sound = 0;
    for number in 0..files {
        let inode = wire.lookup(&format!("base-{number}")).expect("the file").inode;
        let layout = wire.layout(inode).expect("layout");
        for chunk in &layout.chunks {
            for member in wire.members(chunk.set) {
                let Ok(data) = wire.retrieve(&member, chunk) else { continue };
                rpc::check_content(&layout, chunk, number, &data);
                sound += 1;
            }
        }
    }
    sound
}

/// Waits until every copy that there should be is there, and nothing is owed to anybody.
#[track_caller]
fn wait_whole(cluster: &Cluster, files: u64) {
    let wanted = files * FILE_LENGTH.div_ceil(CHUNK) * 3;
    let end = Instant::now() + LIMIT;
    loop {
        let wire = cluster.wire();
        let status = wire.status();
        let map = status.map.as_ref().expect("map");
        let up = map.nodes.iter().all(|node| node.state() == NodeState::Up);
        let active = |set: &v1::ReplicaSet| set.members.iter().all(|m| m.state() == MemberState::Active);
        let found = sound_copies(&wire, files);
        if up && status.faults == 0 && map.sets.iter().all(active) && found == wanted {
            return;
        }
        assert!(
            Instant::now() < end,
            "{found} of {wanted} copies, {} faults, up: {up}; {:#?}; {:#?}",
            status.faults,
            status.health,
            status.workers
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What datanode 0 says of its disks: the first, and the second.
fn disks(cluster: &Cluster) -> [v1::DiskHealth; 2] {
    let wire = cluster.wire();
    let map = wire.list_nodes().expect("ListNodes").map.expect("map");
    let node = map.nodes.iter().find(|node| node.address == cluster.node_address(0)).expect("datanode 0");
    let second = cluster.node_second(0).display().to_string();
    let is_second = |disk: &&v1::DiskHealth| disk.path == second;
    let [first, second] = [false, true]
        .map(|second| node.disks.iter().find(|disk| is_second(disk) == second).cloned().unwrap_or_default());
    [first, second]
}

/// Waits until datanode 0 has told, with a heartbeat, that both of its disks are sound and hold chunks.
#[track_caller]
fn wait_both_used(cluster: &Cluster) {
    wait::until_true("both disks to hold chunks", LIMIT, || {
        disks(cluster).iter().all(|disk| disk.chunks > 0 && disk.fault.is_empty())
    });
}

/// Whether `condition` is told of the second disk, and of nothing else.
fn is_told(cluster: &Cluster, condition: Condition) -> bool {
    let second = cluster.node_second(0).display().to_string();
    let health = cluster.wire().status().health;
    let told: Vec<_> = health.iter().filter(|code| code.code.starts_with("DISK_")).collect();
    assert!(told.iter().all(|code| code.detail.contains(&second)), "another disk is blamed: {told:?}");
    told.iter().any(|code| code.code == condition.code())
}

/// What a fault does to the second disk, and how the cluster has to take it.
struct Case {
    condition: Condition,
    /// What the node tells of the disk while the fault lasts.
    is_marked: fn(&v1::DiskHealth) -> bool,
}

const FAULTY: Case = Case { condition: Condition::DiskFault, is_marked: |disk| !disk.fault.is_empty() };

/// The whole story: files are written, the disk breaks under load, and everything heals; then again after a
/// restart of the datanode. What `break_it` gives lasts until the end.
fn survives<T>(mut cluster: Cluster, case: &Case, break_it: impl FnOnce(&mut Cluster) -> T) {
    (0..FILES).for_each(|number| put(&cluster, number));
    wait_whole(&cluster, FILES);
    wait_both_used(&cluster);
    let mount = cluster.mount_path();
    let (outcomes, _fault) = workload::alongside(&mount, &[workload::files, workload::pages], |control| {
        control.wait_synced(20, PROGRESS_LIMIT);
        let fault = break_it(&mut cluster);
        let end = Instant::now() + LIMIT;
        while !is_told(&cluster, case.condition) {
            assert!(Instant::now() < end, "the disk is not marked: {:#?}", disks(&cluster));
            read(&cluster, FILES);
            // And from each member: the mount need not have asked the one that is hit.
            assert!(sound_copies(&cluster.wire(), FILES) > 0);
        }
        control.wait_synced(20, PROGRESS_LIMIT);
        fault
    });
    outcomes.iter().for_each(|outcome| outcome.saw_nothing(STALL_LIMIT));
    is_well(&cluster, case, FILES);
    outcomes.iter().for_each(workload::Outcome::check);
    put(&cluster, FILES);
    is_well(&cluster, case, FILES + 1);

    // The disk is still bad at the next start.
    cluster.kill9_node(0);
    cluster.start_node(0);
    cluster.wait_formed();
    wait::until_true("the disk to be told of again", LIMIT, || is_told(&cluster, case.condition));
    put(&cluster, FILES + 1);
    is_well(&cluster, case, FILES + 2);
    outcomes.iter().for_each(workload::Outcome::check);
}

/// All content is right and has all its copies; commands show the disk, and the other one in good health.
#[track_caller]
fn is_well(cluster: &Cluster, case: &Case, files: u64) {
    wait_whole(cluster, files);
    read(cluster, files);
    let [first, second] = disks(cluster);
    assert!(first.writable && first.fault.is_empty() && first.chunks > 0, "{first:?}");
    assert!((case.is_marked)(&second), "{second:?}");
    assert!(is_told(cluster, case.condition), "{:#?}", cluster.wire().status().health);
    let status = cluster.run(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(case.condition.code()), "{status}");
    let listed = cluster.run_ok(&["node", "list"]);
    let line = listed.lines().find(|line| line.contains("datanode0-second"));
    assert!(line.is_some_and(|line| !line.contains("healthy")), "{listed}");
}

fn run(command: &mut Command) {
    let output = command.output().expect("command");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Where the disk is mounted that holds a data directory.
fn mountpoint(data: &Path) -> PathBuf {
    data.parent().expect("a mountpoint").to_owned()
}

/// Cuts the image under a mounted file system again and again, since what is written extends it: what is read
/// from behind its end is an I/O error.
struct CutOff {
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl CutOff {
    fn begin(image: &Path) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let file = std::fs::File::options().write(true).open(image).unwrap();
        let end = Arc::clone(&ends);
        let cut = move || {
            while !end.load(Ordering::SeqCst) {
                file.set_len(2 * MIB).expect("truncate");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        Self { ends, thread: Some(std::thread::spawn(cut)) }
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let ended = self.thread.take().is_some_and(|thread| thread.join().is_ok());
        assert!(ended || std::thread::panicking(), "the image was no longer cut");
    }
}

#[test]
fn a_disk_that_can_not_be_read() {
    need_root();
    let cluster = builder().second_ext4(0, DISK).start();
    let image = cluster.path().join("datanode0-second.img");
    survives(cluster, &FAULTY, move |_| CutOff::begin(&image));
}

#[test]
fn a_disk_that_fails_to_write_back() {
    need_root();
    // What is written beyond the room beneath is taken into the cache, and lost at the sync.
    let cluster = builder().second_ext4_on(0, DISK, 256 * MIB).start();
    survives(cluster, &FAULTY, |cluster| {
        let beneath = cluster.path().join("datanode0-beneath");
        let used = cairn_tests::disk::usage(&beneath);
        assert!(used > 8 * MIB, "the device holds something: {used} bytes");
        let size = format!("remount,size={}", used + MIB);
        run(Command::new("mount").args(["-o", &size]).arg(&beneath));
    });
}

/// Takes all room of a disk, to the last block; gives how much that was.
fn fill(mountpoint: &Path, name: &str) -> u64 {
    let file = std::fs::File::create(mountpoint.join(name)).unwrap();
    let (mut offset, mut size) = (0, DISK);
    while size >= 4 * KIB {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), offset, size) {
            Ok(()) => offset += size,
            Err(rustix::io::Errno::NOSPC) => size /= 2,
            Err(error) => panic!("fallocate: {error}"),
        }
    }
    offset
}

#[test]
fn a_disk_that_is_filled_by_others() {
    need_root();
    let full = Case { condition: Condition::DiskFull, is_marked: |disk| !disk.writable };
    let cluster = builder().second_ext4(0, DISK).start();
    survives(cluster, &full, |cluster| {
        // While it is away: a datanode that runs has taken room for its next chunks already. At its start it
        // gives back what of that it has not used.
        cluster.kill9_node(0);
        let disk = mountpoint(cluster.node_second(0));
        let taken = fill(&disk, "of-somebody-else");
        assert!(taken > DISK / 2, "{taken} bytes were taken");
        cluster.start_node(0);
        cluster.wait_formed();
        fill(&disk, "more-of-somebody-else");
    });
}

#[test]
fn a_disk_that_has_become_read_only() {
    need_root();
    let cluster = builder().second_ext4(0, DISK).start();
    survives(cluster, &FAULTY, |cluster| {
        // As the kernel does when the file system finds an error, also while files are open.
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(mountpoint(cluster.node_second(0))));
    });
}

/// A sync of one small file takes seconds at this rate.
const CRAWL: u64 = 32 * KIB;

#[test]
fn a_disk_that_has_become_slow() {
    need_root();
    let mut cluster = builder().second_ext4(0, DISK).start();
    (0..FILES).for_each(|number| put(&cluster, number));
    wait_whole(&cluster, FILES);
    wait_both_used(&cluster);
    let mount = cluster.mount_path();
    let pid = cluster.node_process(0).pid();
    let (outcomes, ()) = workload::alongside(&mount, &[workload::files, workload::pages], |control| {
        control.wait_synced(20, PROGRESS_LIMIT);
        let slow = Throttle::begin(&mountpoint(cluster.node_second(0)), pid, CRAWL);
        let is_slow = || is_told(&cluster, Condition::DiskSlow);
        wait::until_true("the disk to be told of as slow", LIMIT, is_slow);
        read(&cluster, FILES);
        let [first, second] = disks(&cluster).map(|disk| disk.chunks);
        control.wait_synced(20, PROGRESS_LIMIT);
        let others = || disks(&cluster)[0].chunks >= first + 20;
        wait::until_true("the other disk to take chunks", LIMIT, others);
        // What was on its way there when the disk was found slow has arrived since.
        let more = disks(&cluster)[1].chunks.saturating_sub(second);
        assert!(more < 10, "{more} new chunks went to the slow disk");
        drop(slow);
        wait::until_true("the disk to be as the others", LIMIT, || !is_slow());
        let again = || disks(&cluster)[1].chunks >= second + 20;
        wait::until_true("it to take chunks again", LIMIT, again);
    });
    outcomes.iter().for_each(|outcome| outcome.saw_nothing(SLOW_STALL_LIMIT));
    outcomes.iter().for_each(workload::Outcome::check);
    wait_whole(&cluster, FILES);
    assert!(disks(&cluster).iter().all(|disk| disk.fault.is_empty() && disk.writable && !disk.slow));
}

#[test]
fn a_disk_that_stays_slow_gives_its_chunks_to_the_other() {
    need_root();
    let mut cluster = builder().env("CAIRN_DATANODE__DRAIN_SLOW_AFTER", "3s").second_ext4(0, DISK).start();
    (0..FILES).for_each(|number| put(&cluster, number));
    wait_whole(&cluster, FILES);
    wait_both_used(&cluster);
    let mount = cluster.mount_path();
    let pid = cluster.node_process(0).pid();
    let (outcomes, slow) = workload::alongside(&mount, &[workload::files, workload::pages], |control| {
        control.wait_synced(20, PROGRESS_LIMIT);
        let held = disks(&cluster)[1].chunks;
        assert!(held > 20, "there is something to give away: {held} chunks");
        let slow = Throttle::begin(&mountpoint(cluster.node_second(0)), pid, CRAWL);
        wait::until_true("the disk to hold nothing any more", LIMIT, || {
            read(&cluster, FILES);
            disks(&cluster)[1].chunks == 0
        });
        assert!(is_told(&cluster, Condition::DiskSlow));
        control.wait_synced(20, PROGRESS_LIMIT);
        slow
    });
    outcomes.iter().for_each(|outcome| outcome.saw_nothing(SLOW_STALL_LIMIT));
    // No copy had to be made again: the datanode has had all of its own all the time.
    assert_eq!(sound_copies(&cluster.wire(), FILES), FILES * FILE_LENGTH.div_ceil(CHUNK) * 3);
    outcomes.iter().for_each(workload::Outcome::check);
    drop(slow);
    // Without that disk everything is there too.
    assert!(cluster.node_process(0).terminate(Duration::from_secs(30)).success());
    cluster.kill9_node(0);
    run(Command::new("umount").arg(mountpoint(cluster.node_second(0))));
    cluster.start_node(0);
    cluster.wait_formed();
    assert_eq!(sound_copies(&cluster.wire(), FILES), FILES * FILE_LENGTH.div_ceil(CHUNK) * 3);
}

#[test]
fn a_disk_that_is_not_mounted_at_the_start() {
    need_root();
    let mut cluster = builder().second_ext4(0, DISK).start();
    let image = cluster.path().join("datanode0-second.img");
    let second = cluster.node_second(0).to_owned();
    (0..FILES).for_each(|number| put(&cluster, number));
    wait_whole(&cluster, FILES);
    wait_both_used(&cluster);
    assert!(cluster.node_process(0).terminate(Duration::from_secs(30)).success());
    cluster.kill9_node(0);
    run(Command::new("umount").arg(mountpoint(&second)));
    cluster.start_node(0);
    cluster.wait_formed();
    let [first, absent] = disks(&cluster);
    assert!(first.writable && first.fault.is_empty(), "{first:?}");
    assert!(absent.fault.contains("mount that disk"), "{absent:?}");
    assert!(!second.join("identity.json").exists(), "the mountpoint was taken for a new disk");
    is_well(&cluster, &FAULTY, FILES);
    // Mounted again, it is what it was.
    assert!(cluster.node_process(0).terminate(Duration::from_secs(30)).success());
    cluster.kill9_node(0);
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mountpoint(&second)));
    cluster.start_node(0);
    cluster.wait_formed();
    wait_whole(&cluster, FILES);
    read(&cluster, FILES);
    wait_both_used(&cluster);
}

#[test]
fn chunks_that_were_lost_are_found_when_their_disk_is_back() {
    need_root();
    let cluster = builder().datanodes(1).second_ext4(0, DISK).start();
    (0..FILES).for_each(|number| put(&cluster, number));
    wait_both_used(&cluster);
    let (data, away) = (cluster.node_second(0), mountpoint(cluster.node_second(0)).join("away"));
    std::fs::rename(data, &away).unwrap();
    let lost = || cluster.wire().status().health.iter().any(|code| code.code == Condition::ChunksLost.code());
    wait::until_true("chunks without a copy to be told of", LIMIT, lost);
    assert!(sound_copies(&cluster.wire(), FILES) < FILES * FILE_LENGTH.div_ceil(CHUNK), "all can be read");
    // Without a restart of anything.
    std::fs::rename(&away, data).unwrap();
    wait::until_true("the chunks to be found", LIMIT, || !lost() && cluster.wire().status().faults == 0);
    read(&cluster, FILES);
    assert_eq!(sound_copies(&cluster.wire(), FILES), FILES * FILE_LENGTH.div_ceil(CHUNK));
}
