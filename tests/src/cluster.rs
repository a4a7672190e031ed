//! A cluster of real processes: one coordinator, some datanodes, a mount.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::process::{self, Process, Workspace};
use crate::rpc::{self, Wire};
use crate::wait;

/// How long a cluster may take until all its datanodes take part.
const FORMING_LIMIT: Duration = Duration::from_secs(30);

/// How a cluster is to be.
#[derive(Debug, Clone)]
pub struct Builder {
    datanodes: usize,
    later: usize,
    mount: bool,
    environment: Vec<(String, String)>,
    mount_flags: Vec<OsString>,
    disks: Vec<Option<(DiskKind, u64)>>,
}

#[derive(Debug, Clone, Copy)]
enum DiskKind {
    Tmpfs,
    Ext4,
}

impl Builder {
    /// Without a mount: for tests that speak to the services themselves.
    pub fn unmounted(mut self) -> Self {
        self.mount = false;
        self
    }

    pub fn datanodes(mut self, count: usize) -> Self {
        self.datanodes = count;
        if count < 3 {
            self = self.env("CAIRN_COORDINATOR__REPLICAS", count);
        }
        if count < 2 {
            self = self.env("CAIRN_COORDINATOR__MIN_REPLICAS", count);
        }
        self
    }

    /// The last `count` datanodes are not started with the cluster: they join when the test starts them.
    pub fn later(mut self, count: usize) -> Self {
        self.later = count;
        self
    }

    /// Default size of chunks, for what is written through the mount.
    pub fn chunk_size(self, bytes: u64) -> Self {
        self.env("CAIRN_COORDINATOR__CHUNK_SIZE", bytes).env("CAIRN_CLIENT__CHUNK_SIZE", bytes)
    }

    /// An environment variable for every process of the cluster.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn mount_flag(mut self, flag: impl Into<OsString>) -> Self {
        self.mount_flags.push(flag.into());
        self
    }

    /// Puts the data of datanode `index` on a tmpfs of `bytes`.
    pub fn tmpfs(self, index: usize, bytes: u64) -> Self {
        self.disk(index, DiskKind::Tmpfs, bytes)
    }

    /// Puts the data of datanode `index` on an ext4 of `bytes`.
    pub fn ext4(self, index: usize, bytes: u64) -> Self {
        self.disk(index, DiskKind::Ext4, bytes)
    }

    fn disk(mut self, index: usize, kind: DiskKind, bytes: u64) -> Self {
        self.disks.resize(self.disks.len().max(index + 1), None);
        self.disks[index] = Some((kind, bytes));
        self
    }

    /// Starts everything, and waits until it can be used.
    pub fn start(self) -> Cluster {
        Cluster::start(self)
    }
}

/// A running cluster; everything of it ends when it is dropped.
pub struct Cluster {
    // Dropped in this order: nothing may wait for what has ended before it.
    mount: Option<Mount>,
    nodes: Vec<Service>,
    coordinator: Service,
    disks: Vec<crate::disk::SmallDisk>,
    runtime: Arc<Runtime>,
    builder: Builder,
    workspace: Workspace,
}

/// A coordinator or datanode, which can be started again where it was.
struct Service {
    name: String,
    address: String,
    data: PathBuf,
    process: Option<Process>,
}

/// A mounted directory; unmounted by force when dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    process: Process,
}

impl Mount {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.process.kill9();
        unmount_by_force(&self.path);
    }
}

/// Lets go of clean cached data and names, so that what is asked next is asked of the cluster.
pub fn forget(path: &Path) {
    let file = std::fs::File::open(path).expect("open");
    rustix::fs::syncfs(&file).expect("syncfs");
    // Without root the caches stay, and what follows proves less.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

/// Takes a mount whose daemon is gone out of the tree.
pub fn unmount_by_force(path: &Path) {
    let quiet = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    for _ in 0..4 {
        if !is_mounted(path) {
            return;
        }
        if !quiet(Command::new("umount").arg("-l").arg(path)) {
            quiet(Command::new("fusermount3").arg("-uz").arg(path));
        }
    }
}

pub fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let path = path.to_string_lossy();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(&*path))
}

impl Cluster {
    /// Three datanodes and a mount.
    pub fn builder() -> Builder {
        Builder {
            datanodes: 3,
            later: 0,
            mount: true,
            environment: Vec::new(),
            mount_flags: Vec::new(),
            disks: Vec::new(),
        }
        // What the tests' machine can spare is not what a server keeps free.
        .env("CAIRN_DATANODE__RESERVE", "16 MiB")
    }

    fn start(builder: Builder) -> Self {
        let workspace = Workspace::new();
        let top = workspace.path();
        for directory in ["logs", "ready"] {
            std::fs::create_dir(top.join(directory)).expect("mkdir");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let mut disks = Vec::new();
        let service = |name: String, data: PathBuf| Service {
            name,
            address: "127.0.0.1:0".into(),
            data,
            process: None,
        };
        let mut nodes = Vec::new();
        for index in 0..builder.datanodes {
            let name = format!("datanode{index}");
            let path = top.join(&name);
            match builder.disks.get(index).copied().flatten() {
                Some((DiskKind::Tmpfs, bytes)) => disks.push(crate::disk::SmallDisk::tmpfs(&path, bytes)),
                Some((DiskKind::Ext4, bytes)) => {
                    disks.push(crate::disk::SmallDisk::ext4(&path, &top.join(format!("{name}.img")), bytes));
                }
                None => {}
            }
            // Below the mountpoint, where an ext4 has its lost+found.
            nodes.push(service(name, path.join("data")));
        }
        let coordinator = service("coordinator".into(), top.join("coordinator"));
        let mut cluster =
            Self { mount: None, nodes, coordinator, disks, runtime: Arc::new(runtime), builder, workspace };
        cluster.start_coordinator();
        for index in 0..cluster.nodes.len() - cluster.builder.later {
            cluster.start_node(index);
        }
        cluster.wait_formed();
        if cluster.builder.mount {
            cluster.mount();
        }
        cluster
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::cairn(arguments);
        command.envs(self.builder.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.path());
        command
    }

    fn launch(&self, service: &Service, mut command: Command) -> (Process, String) {
        let ready = self.path().join("ready").join(&service.name);
        let _ = std::fs::remove_file(&ready);
        command.arg("--ready-file").arg(&ready).arg("--data").arg(&service.data);
        command.args(["--listen", &service.address]);
        let log = self.path().join("logs").join(&service.name);
        let mut process = Process::start(&service.name, command, &log);
        let told = process.wait_ready(&ready);
        assert_eq!(told["pid"].as_u64(), Some(process.pid().into()), "the ready file names the process");
        let address = told["address"].as_str().expect("address in the ready file").to_owned();
        (process, address)
    }

    pub fn start_coordinator(&mut self) {
        let command = self.command(&["coordinator"]);
        let (process, address) = self.launch(&self.coordinator, command);
        self.coordinator.process = Some(process);
        self.coordinator.address = address;
    }

    pub fn start_node(&mut self, index: usize) {
        let command = self.command(&["datanode", "--coordinator", &self.coordinator.address]);
        let (process, address) = self.launch(&self.nodes[index], command);
        self.nodes[index].process = Some(process);
        self.nodes[index].address = address;
    }

    /// Waits until every datanode that runs is known to be up.
    pub fn wait_formed(&self) {
        let mut client = self.runtime.block_on(async { rpc::coordinator_client(&self.coordinator.address) });
        wait::until_true("all datanodes to be up", FORMING_LIMIT, || {
            let answer = self.runtime.block_on(client.list_nodes(cairn_proto::v1::ListNodesRequest {}));
            let Some(map) = answer.ok().and_then(|answer| answer.into_inner().map) else { return false };
            let up = map.nodes.iter().filter(|node| node.state() == cairn_proto::v1::NodeState::Up);
            let up: Vec<&str> = up.map(|node| node.address.as_str()).collect();
            let mut running = self.nodes.iter().filter(|node| node.process.is_some());
            running.all(|node| up.contains(&node.address.as_str()))
        });
    }

    /// Mounts the file system at `mnt`.
    pub fn mount(&mut self) {
        assert!(self.mount.is_none(), "mounted already");
        self.mount = Some(self.mount_at_with(Path::new("mnt"), &[]));
    }

    /// A further mount of the same file system, in a directory of this name.
    pub fn mount_at_with(&self, name: &Path, flags: &[&str]) -> Mount {
        let path = &self.path().join(name);
        let name = format!("mount-{}", path.file_name().expect("name").to_string_lossy());
        std::fs::create_dir_all(path).expect("mountpoint");
        let ready = self.path().join("ready").join(&name);
        let _ = std::fs::remove_file(&ready);
        let mut command = self.command(&["mount", "--foreground"]);
        command.arg(path).args(["--coordinator", &self.coordinator.address]).arg("--ready-file").arg(&ready);
        command.args(&self.builder.mount_flags).args(flags);
        let process = Process::start(&name, command, &self.path().join("logs").join(&name));
        let mut mount = Mount { path: path.to_owned(), process };
        mount.process.wait_ready(&ready);
        assert!(is_mounted(path), "{} is not mounted although its daemon says so", path.display());
        mount
    }

    /// Where the cluster's data, logs and mountpoints lie.
    pub fn path(&self) -> &Path {
        self.workspace.path()
    }

    /// A directory on the local disk, to compare with.
    pub fn local(&self) -> PathBuf {
        let path = self.path().join("local");
        std::fs::create_dir_all(&path).expect("mkdir");
        path
    }

    /// The mounted directory.
    pub fn mount_path(&self) -> PathBuf {
        self.mount.as_ref().expect("a mount").path.clone()
    }

    pub fn mount_process(&mut self) -> &mut Process {
        &mut self.mount.as_mut().expect("a mount").process
    }

    pub fn coordinator_address(&self) -> &str {
        &self.coordinator.address
    }

    pub fn coordinator_process(&mut self) -> &mut Process {
        self.coordinator.process.as_mut().expect("a running coordinator")
    }

    pub fn coordinator_data(&self) -> &Path {
        &self.coordinator.data
    }

    pub fn node_process(&mut self, index: usize) -> &mut Process {
        self.nodes[index].process.as_mut().expect("a running datanode")
    }

    pub fn node_address(&self, index: usize) -> &str {
        &self.nodes[index].address
    }

    pub fn node_data(&self, index: usize) -> &Path {
        &self.nodes[index].data
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub fn small_disks(&self) -> &[crate::disk::SmallDisk] {
        &self.disks
    }

    pub fn kill9_node(&mut self, index: usize) {
        self.node_process(index).kill9();
        self.nodes[index].process = None;
    }

    pub fn kill9_coordinator(&mut self) {
        self.coordinator_process().kill9();
        self.coordinator.process = None;
    }

    /// Kills the mount's daemon and takes its directory out of the tree.
    pub fn kill9_mount(&mut self) {
        self.mount = None;
    }

    /// Kills every process of the cluster, as close together as can be.
    pub fn kill9_all(&mut self) {
        let services = self.nodes.iter().chain([&self.coordinator]);
        let processes = services.filter_map(|service| service.process.as_ref());
        for process in processes.chain(self.mount.as_ref().map(|mount| &mount.process)) {
            process.signal(rustix::process::Signal::KILL);
        }
        self.mount = None;
        for index in 0..self.nodes.len() {
            self.nodes[index].process = None;
        }
        self.coordinator.process = None;
    }

    /// Starts whatever does not run.
    pub fn restart(&mut self) {
        if self.coordinator.process.is_none() {
            self.start_coordinator();
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].process.is_none() {
                self.start_node(index);
            }
        }
        self.wait_formed();
        if self.mount.is_none() && self.builder.mount {
            self.mount();
        }
    }

    /// A session of its own with the coordinator, and connections to all datanodes.
    pub fn wire(&self) -> Wire {
        Wire::connect(&self.runtime, &self.coordinator.address)
    }

    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    /// Runs `cairn` against this cluster.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.args(["--coordinator", &self.coordinator.address]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("cairn");
        let limit = Duration::from_secs(120);
        wait::within(&format!("cairn {arguments:?}"), limit, move || child.wait_with_output())
            .expect("output of cairn")
    }

    /// As [`Self::run`], for what has to succeed; gives what it printed.
    #[track_caller]
    pub fn run_ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cairn {arguments:?} failed ({}): {error}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.mount = None;
        for node in &mut self.nodes {
            node.process = None;
        }
        self.coordinator.process = None;
    }
}
