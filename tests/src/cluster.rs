//! A cluster of real processes: one coordinator, some datanodes, a mount.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::network::Network;
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
    second_disks: Vec<Option<(DiskKind, u64)>>,
    beneath: Vec<Option<u64>>,
    place: Option<PathBuf>,
    network: Option<Arc<Network>>,
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

    /// Gives datanode `index` a second data directory, on an ext4 of `bytes`.
    pub fn second_ext4(mut self, index: usize, bytes: u64) -> Self {
        self.second_disks.resize(self.second_disks.len().max(index + 1), None);
        self.second_disks[index] = Some((DiskKind::Ext4, bytes));
        self
    }

    /// As [`Self::second_ext4`], with the image on a tmpfs of `beneath` bytes: a device that says it is larger
    /// than it is, and fails what does not fit when it is written back.
    pub fn second_ext4_on(mut self, index: usize, bytes: u64, beneath: u64) -> Self {
        self.beneath.resize(self.beneath.len().max(index + 1), None);
        self.beneath[index] = Some(beneath);
        self.second_ext4(index, bytes)
    }

    /// Keeps the data of all services below `directory`, where an earlier cluster may have left it.
    pub fn place(mut self, directory: impl Into<PathBuf>) -> Self {
        self.place = Some(directory.into());
        self
    }

    /// Runs each service and each mount in the namespace of its name in `network`, if that has one.
    pub fn network(mut self, network: &Arc<Network>) -> Self {
        self.network = Some(Arc::clone(network));
        self.env("CAIRN_COORDINATOR__INSECURE", true).env("CAIRN_DATANODE__INSECURE", true)
    }

    fn disk(mut self, index: usize, kind: DiskKind, bytes: u64) -> Self {
        self.disks.resize(self.disks.len().max(index + 1), None);
        self.disks[index] = Some((kind, bytes));
        self
    }

    fn listen_address(&self, name: &str) -> String {
        let address = self.network.as_ref().and_then(|network| network.address(name));
        address.map_or_else(|| "127.0.0.1:0".to_owned(), |address| format!("{address}:7000"))
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
    /// On a disk of its own.
    second: Option<PathBuf>,
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
            second_disks: Vec::new(),
            beneath: Vec::new(),
            place: None,
            network: None,
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
            address: builder.listen_address(&name),
            name,
            data,
            second: None,
            process: None,
        };
        let place = builder.place.clone().unwrap_or_else(|| top.to_owned());
        let mut nodes = Vec::new();
        for index in 0..builder.datanodes {
            let name = format!("datanode{index}");
            let path = place.join(&name);
            match builder.disks.get(index).copied().flatten() {
                Some((DiskKind::Tmpfs, bytes)) => disks.push(crate::disk::SmallDisk::tmpfs(&path, bytes)),
                Some((DiskKind::Ext4, bytes)) => {
                    disks.push(crate::disk::SmallDisk::ext4(&path, &top.join(format!("{name}.img")), bytes));
                }
                None => {}
            }
            // Below the mountpoint, where an ext4 has its lost+found.
            let mut node = service(name.clone(), path.join("data"));
            if let Some((_, bytes)) = builder.second_disks.get(index).copied().flatten() {
                let path = place.join(format!("{name}-second"));
                let mut image = top.join(format!("{name}-second.img"));
                if let Some(beneath) = builder.beneath.get(index).copied().flatten() {
                    let directory = top.join(format!("{name}-beneath"));
                    disks.push(crate::disk::SmallDisk::tmpfs(&directory, beneath));
                    image = directory.join("img");
                }
                disks.push(crate::disk::SmallDisk::ext4(&path, &image, bytes));
                node.second = Some(path.join("data"));
            }
            nodes.push(node);
        }
        let coordinator = service("coordinator".into(), place.join("coordinator"));
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
        self.command_under(&[], arguments)
    }

    /// `cairn`, run by the program and arguments of `wrapper`.
    fn command_under(&self, wrapper: &[OsString], arguments: &[&str]) -> Command {
        let mut command = process::cairn_under(wrapper, arguments);
        command.envs(self.builder.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.path());
        command
    }

    /// What enters the namespace of the service or mount `name`, then what `wrapper` has.
    fn wrapped(&self, name: &str, wrapper: &[OsString]) -> Vec<OsString> {
        let network = self.builder.network.as_ref();
        let mut all = network.and_then(|network| network.enter(name)).unwrap_or_default();
        all.extend_from_slice(wrapper);
        all
    }

    fn launch(&self, service: &Service, mut command: Command) -> (Process, Option<String>) {
        let ready = self.path().join("ready").join(&service.name);
        let _ = std::fs::remove_file(&ready);
        command.arg("--ready-file").arg(&ready).arg("--data").arg(&service.data);
        if let Some(second) = &service.second {
            command.arg("--data").arg(second);
        }
        command.args(["--listen", &service.address]);
        let log = self.path().join("logs").join(&service.name);
        let mut process = Process::start(&service.name, command, &log);
        let Some(told) = process.try_ready(&ready) else { return (process, None) };
        assert_eq!(told["pid"].as_u64(), Some(process.pid().into()), "the ready file names the process");
        let address = told["address"].as_str().expect("address in the ready file").to_owned();
        (process, Some(address))
    }

    pub fn start_coordinator(&mut self) {
        self.start_coordinator_under(&[]);
    }

    /// Starts the coordinator by another program, such as `strace`, that leaves it its process id.
    pub fn start_coordinator_under(&mut self, wrapper: &[OsString]) {
        assert!(self.try_start_coordinator_under(wrapper), "the coordinator ended before it was ready");
    }

    /// As [`Self::start_coordinator_under`]; tells whether it was ready before it ended.
    pub fn try_start_coordinator_under(&mut self, wrapper: &[OsString]) -> bool {
        let command = self.command_under(&self.wrapped("coordinator", wrapper), &["coordinator"]);
        let (process, address) = self.launch(&self.coordinator, command);
        self.coordinator.process = Some(process);
        let is_ready = address.is_some();
        self.coordinator.address = address.unwrap_or_else(|| self.coordinator.address.clone());
        is_ready
    }

    pub fn start_node(&mut self, index: usize) {
        self.start_node_under(index, &[]);
    }

    /// Starts a datanode by another program, such as `strace`, that leaves it its process id.
    pub fn start_node_under(&mut self, index: usize, wrapper: &[OsString]) {
        assert!(self.try_start_node_under(index, wrapper), "datanode {index} ended before it was ready");
    }

    /// As [`Self::start_node_under`]; tells whether it was ready before it ended.
    pub fn try_start_node_under(&mut self, index: usize, wrapper: &[OsString]) -> bool {
        let wrapper = self.wrapped(&self.nodes[index].name, wrapper);
        let command = self.command_under(&wrapper, &["datanode", "--coordinator", &self.coordinator.address]);
        let (process, address) = self.launch(&self.nodes[index], command);
        self.nodes[index].process = Some(process);
        let is_ready = address.is_some();
        self.nodes[index].address = address.unwrap_or_else(|| self.nodes[index].address.clone());
        is_ready
    }

    /// Waits until every datanode that runs is known to be up.
    #[track_caller]
    pub fn wait_formed(&mut self) {
        self.wait_formed_or(|_| false);
    }

    /// Waits until every datanode that runs is known to be up, or `done` says that there is nothing to wait for.
    #[track_caller]
    pub fn wait_formed_or(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let mut client = self.runtime.block_on(async { rpc::coordinator_client(&self.coordinator.address) });
        wait::until_true("all datanodes to be up", FORMING_LIMIT, || {
            if done(self) {
                return true;
            }
            let answer = self.runtime.block_on(client.list_nodes(cairn_proto::v1::ListNodesRequest {}));
            let Some(map) = answer.ok().and_then(|answer| answer.into_inner().map) else { return false };
            let up = map.nodes.iter().filter(|node| node.state() == cairn_proto::v1::NodeState::Up);
            let up: Vec<&str> = up.map(|node| node.address.as_str()).collect();
            let mut running = self.nodes.iter().filter(|node| node.process.is_some());
            running.all(|node| up.contains(&node.address.as_str()))
        });
    }

    /// Waits until `count` datanodes are up; gives whether that came about within `limit`.
    pub fn wait_up_or(&self, count: usize, limit: Duration) -> bool {
        let mut client = self.runtime.block_on(async { rpc::coordinator_client(&self.coordinator.address) });
        let end = std::time::Instant::now() + limit;
        while std::time::Instant::now() < end {
            let answer = self.runtime.block_on(client.list_nodes(cairn_proto::v1::ListNodesRequest {}));
            let map = answer.ok().and_then(|answer| answer.into_inner().map).unwrap_or_default();
            let up = map.nodes.iter().filter(|node| node.state() == cairn_proto::v1::NodeState::Up).count();
            if up >= count {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
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
        let mut command = self.command_under(&self.wrapped(&name, &[]), &["mount", "--foreground"]);
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

    pub fn coordinator_runs(&mut self) -> bool {
        self.coordinator.process.as_mut().is_some_and(Process::is_running)
    }

    pub fn node_runs(&mut self, index: usize) -> bool {
        self.nodes[index].process.as_mut().is_some_and(Process::is_running)
    }

    /// The log of a service or mount, by its name.
    pub fn log_of(&self, name: &str) -> String {
        let log = self.path().join("logs").join(name);
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
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

    /// The second data directory of a datanode, below the mountpoint of its disk.
    pub fn node_second(&self, index: usize) -> &Path {
        self.nodes[index].second.as_deref().expect("a second disk")
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
