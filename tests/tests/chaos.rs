//! Everything at once, on processes that stand on a network of their own: whatever breaks, clients
//! read what was written, what was synced stays, and at the end all is whole again.
//!
//! Each client writes files made of blocks that name the client, the file and a sequence number, syncs
//! them, reads back what it and the other have closed, renames and removes. Each file belongs to one
//! client and is replaced as a whole, so that the other may see it as it was after any change from the
//! last that was acknowledged before it opened it to the last that had begun when it had read it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cairn_tests::cluster::{Mount, forget};
use cairn_tests::network::Network;
use cairn_tests::rounds::{self, Numbers};
use cairn_tests::{Cluster, MIB, need_root, wait, workload};
use scopeguard::defer;

const NODES: usize = 4;
const CLIENTS: usize = 2;
const BLOCK: usize = 4096;
/// Files of each client.
const FILES: usize = 24;
/// Seconds, when `scripts/reliability` does not ask for more; and the faults that they have to have.
const SECONDS: u64 = 100;
const FAULTS_MIN: u64 = 10;
/// How long everything may take to be whole again.
const HEALING_LIMIT: Duration = Duration::from_secs(90);

/// What a file of one client is: `None` while it does not exist, else its sequence number.
type State = Option<u64>;

/// The states of one file, in order; the one in use is that of the last acknowledged change.
#[derive(Debug, Clone)]
struct History {
    states: Vec<State>,
    acknowledged: usize,
}

impl History {
    /// States that a read may show which began when `from` was acknowledged and ends now.
    fn possible(&self, from: usize) -> &[State] {
        &self.states[from..]
    }
}

/// What is known outside of all that breaks.
struct Record {
    files: Vec<Vec<Mutex<History>>>,
    operations: AtomicU64,
    reads: AtomicU64,
    errors: AtomicU64,
    stop: AtomicBool,
    /// Set while the client's mount is taken away by the test.
    away: Vec<AtomicBool>,
}

impl Record {
    fn new() -> Self {
        let file = || Mutex::new(History { states: vec![None], acknowledged: 0 });
        Self {
            files: (0..CLIENTS).map(|_| (0..FILES).map(|_| file()).collect()).collect(),
            operations: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            away: (0..CLIENTS).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn history(&self, client: usize, file: usize) -> std::sync::MutexGuard<'_, History> {
        self.files[client][file].lock().expect("history")
    }

    /// Notes that a change begins, carries it out, and notes that it was acknowledged. An error leaves
    /// open whether it happened.
    fn change(
        &self,
        client: usize,
        file: usize,
        to: State,
        work: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.history(client, file).states.push(to);
        work()?;
        let mut history = self.history(client, file);
        history.acknowledged = history.states.len() - 1;
        self.operations.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn path_of(root: &Path, client: usize, file: usize) -> PathBuf {
    root.join(format!("client{client}-{file}"))
}

/// How many blocks file `file` has with this sequence number.
fn blocks(file: usize, sequence: u64) -> usize {
    1 + (file * 7 + sequence as usize * 13) % 40
}

fn content(client: usize, file: usize, sequence: u64) -> Vec<u8> {
    let mut data = Vec::new();
    for block in 0..blocks(file, sequence) {
        let name = format!("client {client} file {file} sequence {sequence} block {block}\n");
        let start = data.len();
        while data.len() < start + BLOCK {
            let here = name.len().min(start + BLOCK - data.len());
            data.extend_from_slice(&name.as_bytes()[..here]);
        }
    }
    data
}

/// The state that `data` shows; an error in words when it is none.
fn state_of(client: usize, file: usize, data: &[u8]) -> Result<u64, String> {
    let head = String::from_utf8_lossy(&data[..data.len().min(60)]).into_owned();
    let sequence = head.split_whitespace().nth(5).and_then(|word| word.parse().ok());
    let sequence = sequence.ok_or_else(|| format!("{} bytes that start with {head:?}", data.len()))?;
    if data == content(client, file, sequence) {
        return Ok(sequence);
    }
    Err(format!("{} bytes of sequence {sequence}, not all of them as written", data.len()))
}

fn read_state(root: &Path, client: usize, file: usize) -> io::Result<Result<State, String>> {
    let mut data = Vec::new();
    match File::open(path_of(root, client, file)).and_then(|mut file| file.read_to_end(&mut data)) {
        Ok(_) => Ok(state_of(client, file, &data).map(Some)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
        Err(error) => Err(error),
    }
}

/// Reads one file as some client and compares it with its history.
fn look(record: &Record, root: &Path, client: usize, file: usize) -> io::Result<()> {
    let from = record.history(client, file).acknowledged;
    let shown = read_state(root, client, file)?;
    let history = record.history(client, file);
    let possible = history.possible(from);
    let fits = shown.as_ref().is_ok_and(|state| possible.contains(state));
    assert!(fits, "VIOLATION: client {client} file {file}: {shown:?} is none of {possible:?}");
    record.reads.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// One client: replaces, removes and reads until it is told to stop.
fn run_client(record: &Record, root: &Path, me: usize) {
    workload::keep_files_apart();
    let mut numbers = Numbers::new(31 + me as u64);
    let mut sequence = 0;
    while !record.stop.load(Ordering::SeqCst) {
        if record.away[me].load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        sequence += 1;
        let file = numbers.below(FILES as u64) as usize;
        let path = path_of(root, me, file);
        let exists = record.history(me, file).states.last().is_some_and(Option::is_some);
        let done = if exists && numbers.below(6) == 0 {
            record.change(me, file, None, || {
                fs::remove_file(&path)?;
                workload::sync_directory(root)
            })
        } else {
            let temporary = root.join(format!("temporary-{me}"));
            let write = || -> io::Result<()> {
                let out = File::create(&temporary)?;
                out.write_all_at(&content(me, file, sequence), 0)?;
                out.sync_all()
            };
            let replace = || -> io::Result<()> {
                fs::rename(&temporary, &path)?;
                workload::sync_directory(root)
            };
            write().and_then(|()| record.change(me, file, Some(sequence), replace))
        };
        let own = done.and_then(|()| look(record, root, me, file));
        let other = (me + 1) % CLIENTS;
        let seen = own.and_then(|()| look(record, root, other, numbers.below(FILES as u64) as usize));
        if let Err(error) = seen {
            record.errors.fetch_add(1, Ordering::SeqCst);
            // A mount that was killed, or one whose session ended: what was under way is unknown.
            println!("client {me}: {error}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// One thing that breaks, and is mended again.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillNode,
    KillCoordinator,
    KillMount,
    FreezeNode,
    FreezeMount,
    CutNode,
    CutOneWay,
    Reset,
    Slow,
    Loss,
    FullDisk,
}

const FAULTS: [Fault; 11] = [
    Fault::KillNode,
    Fault::CutNode,
    Fault::KillCoordinator,
    Fault::Loss,
    Fault::FreezeNode,
    Fault::Reset,
    Fault::KillMount,
    Fault::CutOneWay,
    Fault::FullDisk,
    Fault::Slow,
    Fault::FreezeMount,
];

struct Chaos {
    cluster: Cluster,
    network: Arc<Network>,
    mounts: Vec<Option<Mount>>,
    numbers: Numbers,
    /// Packets that the rules have met.
    packets: u64,
}

fn client_name(client: usize) -> String {
    format!("client{client}")
}

impl Chaos {
    fn mount(&self, client: usize) -> Mount {
        self.cluster.mount_at_with(Path::new(&client_name(client)), &[])
    }

    fn pause(&mut self, least: u64, spread: u64) {
        std::thread::sleep(Duration::from_millis(least + self.numbers.below(spread)));
    }

    /// The rule on one node's network for a while; the packets that it met are counted.
    fn with_rules(&mut self, name: &str, rules: &[(&str, &str)], least: u64) {
        for (hook, rule) in rules {
            self.network.rule(name, hook, rule);
        }
        self.pause(least, 3000);
        let hits = self.network.hits(name);
        self.network.heal(name);
        assert!(hits > 0, "the rules {rules:?} on {name} have met nothing");
        self.packets += hits;
    }

    fn inflict(&mut self, fault: Fault, record: &Record) {
        use rustix::process::Signal;
        let node = self.numbers.below(NODES as u64) as usize;
        let client = self.numbers.below(CLIENTS as u64) as usize;
        let name = format!("datanode{node}");
        println!("{fault:?}: {name}, client {client}");
        match fault {
            Fault::KillNode => {
                self.cluster.kill9_node(node);
                self.pause(500, 4000);
                self.cluster.start_node(node);
            }
            Fault::KillCoordinator => {
                self.cluster.kill9_coordinator();
                self.pause(200, 3000);
                self.cluster.start_coordinator();
            }
            Fault::KillMount => {
                record.away[client].store(true, Ordering::SeqCst);
                self.mounts[client] = None;
                self.mounts[client] = Some(self.mount(client));
                record.away[client].store(false, Ordering::SeqCst);
            }
            Fault::FreezeNode => {
                self.cluster.node_process(node).signal(Signal::STOP);
                // Longer than it takes to count as down.
                self.pause(11_500, 1500);
                self.cluster.node_process(node).signal(Signal::CONT);
            }
            Fault::FreezeMount => {
                let mount = self.mounts[client].as_mut().expect("a mount");
                mount.process().signal(Signal::STOP);
                // Longer than its lease.
                self.pause(11_500, 1500);
                self.mounts[client].as_mut().expect("a mount").process().signal(Signal::CONT);
            }
            Fault::CutNode => {
                let drop = "counter drop";
                self.with_rules(&name, &[("input", drop), ("output", drop)], 4000);
            }
            Fault::CutOneWay => {
                let hook = if self.numbers.below(2) == 0 { "input" } else { "output" };
                self.with_rules(&name, &[(hook, "counter drop")], 4000);
            }
            Fault::Reset => {
                let reset = "meta l4proto tcp counter reject with tcp reset";
                self.with_rules(&name, &[("input", reset)], 1000);
            }
            Fault::Loss => {
                let lose = "numgen random mod 100 < 15 counter drop";
                self.with_rules(&name, &[("input", lose)], 3000);
            }
            Fault::Slow => {
                self.network.slow(&name, 2000);
                self.pause(3000, 3000);
                self.network.heal(&name);
            }
            Fault::FullDisk => {
                // The first node has a small disk of its own.
                let filler = self.cluster.node_data(0).with_file_name("filler");
                let file = File::create(&filler).expect("filler");
                let block = vec![1; MIB as usize];
                let mut at = 0;
                while file.write_all_at(&block, at).is_ok() {
                    at += MIB;
                    assert!(at < 4096 * MIB, "the disk does not fill");
                }
                self.pause(3000, 2000);
                drop(file);
                fs::remove_file(filler).expect("remove the filler");
            }
        }
    }

    /// Waits until nothing is missing and nothing is reported, but that the small disk of the first node is full
    /// or nearly so: what was overwritten stays there for `garbage_grace`, longer than this test lasts.
    fn wait_healed(&mut self) {
        self.cluster.wait_formed();
        let address = self.network.address("datanode0").expect("the first node").to_owned() + ":";
        let end = Instant::now() + HEALING_LIMIT;
        loop {
            let output = self.cluster.run(&["status", "--json"]);
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let small = |code: &serde_json::Value| {
                let full = code["code"] == "NODE_NEAR_FULL" || code["code"] == "DISK_FULL";
                full && code["detail"].as_str().is_some_and(|detail| detail.contains(&address))
            };
            let whole = |codes: &Vec<serde_json::Value>| codes.iter().all(small);
            if output.status.success() && told["health"].as_array().is_some_and(whole) {
                return;
            }
            assert!(Instant::now() < end, "not whole after {HEALING_LIMIT:?}: {told:#}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Every node reads all that it holds, metadata is compared with every inventory: nothing is found.
    fn check_clean(&self) {
        self.cluster.run(&["scrub", "start"]);
        wait::until_true("a scrub that finds nothing bad", HEALING_LIMIT, || {
            let output = self.cluster.run(&["scrub", "status", "--json"]);
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let nodes = told.as_array().cloned().unwrap_or_default();
            let is_clean = |node: &serde_json::Value| {
                let status = &node["status"];
                let done = status["finished_ns"].as_i64().is_some_and(|at| at > 0);
                done && status["running"] == false && status["bad"] == 0
            };
            nodes.len() == NODES && nodes.iter().all(is_clean)
        });
        self.cluster.run_ok(&["fsck", "--no-progress"]);
    }
}

#[test]
fn whatever_breaks_nothing_is_lost_and_all_is_whole_at_the_end() {
    need_root();
    let seconds = rounds::count(SECONDS);
    let logs = cairn_tests::process::Workspace::new();
    let mut names: Vec<String> = (0..NODES).map(|node| format!("datanode{node}")).collect();
    names.push("coordinator".into());
    names.extend((0..CLIENTS).map(|client| format!("mount-{}", client_name(client))));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let network = Arc::new(Network::enter_new(&names, logs.path()));
    let cluster = Cluster::builder()
        .datanodes(NODES)
        .unmounted()
        .network(&network)
        .ext4(0, 512 * MIB)
        .env("CAIRN_DATANODE__SEGMENT_SIZE", "64 MiB")
        // All that an hour has written is read within the time for healing.
        .env("CAIRN_DATANODE__SCRUB_RATE", "512 MiB")
        .start();
    let mut chaos =
        Chaos { cluster, network, mounts: Vec::new(), numbers: Numbers::new(seconds), packets: 0 };
    chaos.mounts = (0..CLIENTS).map(|client| Some(chaos.mount(client))).collect();
    let roots: Vec<PathBuf> = chaos.mounts.iter().flatten().map(|mount| mount.path().to_owned()).collect();
    let record = Record::new();
    let mut faults = 0;
    std::thread::scope(|scope| {
        let clients: Vec<_> = roots
            .iter()
            .enumerate()
            .map(|(client, root)| {
                let record = &record;
                scope.spawn(move || run_client(record, root, client))
            })
            .collect();
        {
            defer! { record.stop.store(true, Ordering::SeqCst) }
            let end = Instant::now() + Duration::from_secs(seconds);
            while Instant::now() < end || faults < FAULTS_MIN {
                let before = record.operations.load(Ordering::SeqCst);
                chaos.inflict(FAULTS[faults as usize % FAULTS.len()], &record);
                faults += 1;
                wait::until_true("clients to go on after a fault", Duration::from_secs(60), || {
                    record.operations.load(Ordering::SeqCst) >= before + 4
                        || clients.iter().any(|c| c.is_finished())
                });
                assert!(!clients.iter().any(|client| client.is_finished()), "a client has ended");
            }
        }
        clients.into_iter().for_each(|client| client.join().expect("client"));
    });
    chaos.wait_healed();
    chaos.check_clean();
    // With the eyes of a mount that has cached nothing: exactly what was acknowledged.
    chaos.mounts.clear();
    let reader = chaos.mount(0);
    forget(reader.path());
    let (mut files, mut unknown) = (0, 0);
    for client in 0..CLIENTS {
        for file in 0..FILES {
            look(&record, reader.path(), client, file).expect("every file can be read at the end");
            files += 1;
            let history = record.history(client, file);
            unknown += u64::from(history.acknowledged + 1 < history.states.len());
        }
    }
    for entry in fs::read_dir(reader.path()).expect("readdir") {
        let name = entry.expect("entry").file_name().into_string().expect("name");
        assert!(name.starts_with("client") || name.starts_with("temporary-"), "{name} was never made");
    }
    let more = format!(
        "{} reads compared, {} calls failed, {} packets met by rules, {files} files at the end of which {unknown} \
         with a last change unknown, 0 violations",
        record.reads.load(Ordering::SeqCst),
        record.errors.load(Ordering::SeqCst),
        chaos.packets,
    );
    rounds::report("chaos", faults, record.operations.load(Ordering::SeqCst), &more);
}
