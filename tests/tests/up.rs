//! `cairn up DIR`: the first command that anybody types.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cairn_tests::process::{Process, Workspace, cairn_binary};
use cairn_tests::{MIB, cluster, need_root, pattern, process, wait};

const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running `cairn up`, unmounted by force when dropped.
struct Up {
    directory: PathBuf,
    process: Process,
}

impl Up {
    fn start(workspace: &Workspace, flags: &[&str]) -> Self {
        Self::start_by(process::command(cairn_binary()), workspace, flags)
    }

    fn start_by(mut command: Command, workspace: &Workspace, flags: &[&str]) -> Self {
        let directory = workspace.path().join("mnt");
        let ready = workspace.path().join("home/ready");
        fs::create_dir_all(workspace.path().join("home")).expect("mkdir");
        let _ = fs::remove_file(&ready);
        command.arg("up").arg(&directory).arg("--data").arg(workspace.path().join("home/data"));
        command.arg("--ready-file").arg(&ready).args(flags);
        // Notes about what runs are kept away from those of the machine's user.
        command.env("XDG_RUNTIME_DIR", workspace.path().join("home/run"));
        command.env("HOME", workspace.path().join("home")).current_dir(workspace.path());
        command.env("CAIRN_DATANODE__RESERVE", "16 MiB");
        let process = Process::start("up", command, &workspace.path().join("up.log"));
        let mut up = Self { directory, process };
        up.process.wait_ready(&ready);
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", up.process.pid())).expect("mounts");
        let is_mounted = mounts.contains(&format!(" {} fuse", up.directory.display()));
        assert!(is_mounted, "mounted when it says so");
        up
    }

    fn stop(mut self, signal: rustix::process::Signal) {
        self.process.signal(signal);
        let status = self.process.wait_exit(STOP_LIMIT);
        assert!(status.success(), "{status}: {}", self.process.log());
        assert!(!cluster::is_mounted(&self.directory), "unmounted at the end");
    }

    /// The processes of the cluster, by the name of their command.
    fn children(&self, role: &str) -> Vec<u32> {
        let parent = self.process.pid().to_string();
        let output = Command::new("ps").args(["-o", "pid=,args=", "--ppid", &parent]).output().expect("ps");
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let of_role = lines.lines().filter(|line| line.split_whitespace().nth(2) == Some(role));
        of_role.map(|line| line.split_whitespace().next().unwrap().parse().expect("pid")).collect()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its children end with it; killing them is left to them.
        self.process.kill9();
        cluster::unmount_by_force(&self.directory);
    }
}

fn kill9(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/cmdline")).exists()
        && !fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty()
}

/// What a first user does: work, lose a datanode, go on working.
fn first_day(up: &Up) {
    let file = up.directory.join("file");
    pattern::write_file(&file, 1, 20 * MIB);
    let nodes = up.children("datanode");
    assert_eq!(nodes.len(), 3, "datanodes");
    assert_eq!(up.children("coordinator").len(), 1);
    assert_eq!(up.children("mount").len(), 1);
    kill9(nodes[1]);
    pattern::write_file(&up.directory.join("second"), 2, 20 * MIB);
    pattern::check_file(&file, 1, 20 * MIB);
    pattern::check_file(&up.directory.join("second"), 2, 20 * MIB);
}

#[test]
fn one_command_gives_a_directory_that_survives_a_killed_datanode_and_a_restart() {
    let workspace = Workspace::new();
    let up = Up::start(&workspace, &[]);
    first_day(&up);
    wait::until_true("the datanode to be started again", Duration::from_secs(30), || {
        up.children("datanode").len() == 3
    });
    let directory = up.directory.clone();
    up.stop(rustix::process::Signal::INT);
    // Nothing is written beside the cluster while it is away.
    fs::write(directory.join("lost"), "x").expect_err("the covered directory is protected");
    let up = Up::start(&workspace, &[]);
    pattern::check_file(&directory.join("file"), 1, 20 * MIB);
    pattern::check_file(&directory.join("second"), 2, 20 * MIB);
    up.stop(rustix::process::Signal::TERM);
}

/// `cairn` with the notes and the home of a workspace's `up`.
fn cairn_beside(workspace: &Workspace, arguments: &[&str]) -> std::process::Output {
    let mut command = process::cairn(arguments);
    let home = workspace.path().join("home");
    command.env("XDG_RUNTIME_DIR", home.join("run")).env("HOME", &home).current_dir(&home);
    command.env("CAIRN_DATANODE__RESERVE", "16 MiB");
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().expect("cairn");
    wait::within("cairn", Duration::from_secs(120), move || child.wait_with_output()).expect("output")
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn when_up_itself_is_killed_programs_go_on_and_down_stops_what_is_left() {
    let workspace = Workspace::new();
    let mut up = Up::start(&workspace, &["--datanodes", "1"]);
    let children: Vec<u32> =
        ["coordinator", "datanode", "mount"].iter().flat_map(|role| up.children(role)).collect();
    let mut file = fs::File::create(up.directory.join("file")).expect("create");
    up.process.kill9();
    // Later than anything would have stopped by itself that did not look for users.
    let log = workspace.path().join("home/data/log/mount.log");
    wait::until_true("the mount to notice", STOP_LIMIT, || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("the supervisor is gone"))
    });
    std::thread::sleep(Duration::from_secs(8));
    std::io::Write::write_all(&mut file, b"content").expect("write");
    file.sync_all().expect("the cluster is there");
    drop(file);
    assert!(children.iter().all(|&pid| alive(pid)), "all of them serve");
    let data = workspace.path().join("home/data");
    let down = cairn_beside(&workspace, &["down", "--data", data.to_str().unwrap()]);
    assert!(down.status.success(), "{}", said(&down));
    assert!(!children.iter().any(|&pid| alive(pid)), "all of them are stopped");
    assert!(!cluster::is_mounted(&up.directory));
    let again = cairn_beside(&workspace, &["down", "--data", data.to_str().unwrap()]);
    assert!(said(&again).contains("it does not run"), "{}", said(&again));
    drop(up);
    let up = Up::start(&workspace, &[]);
    assert_eq!(fs::read(up.directory.join("file")).expect("read"), b"content");
    up.stop(rustix::process::Signal::TERM);
}

/// What `up` has noted in its data directory.
fn state(workspace: &Workspace) -> serde_json::Value {
    let state = fs::read(workspace.path().join("home/data/up.json")).expect("state");
    serde_json::from_slice(&state).expect("JSON")
}

/// The id of a datanode, when it runs.
fn datanode(workspace: &Workspace, number: u32) -> Option<String> {
    Some(state(workspace)["services"][format!("datanode-{number}")]["id"].as_str()?.to_owned())
}

#[test]
fn up_starts_what_can_be_started_and_says_what_is_missing() {
    let workspace = Workspace::new();
    let up = Up::start(&workspace, &[]);
    let file = up.directory.join("file");
    pattern::write_file(&file, 1, 5 * MIB);
    let node = datanode(&workspace, 2).expect("id");
    let removed = cairn_beside(&workspace, &["node", "remove", &node, "--force", "--yes"]);
    assert!(removed.status.success(), "{}", said(&removed));
    up.stop(rustix::process::Signal::TERM);
    let up = Up::start(&workspace, &[]);
    let log = up.process.log();
    assert!(log.contains("datanode-2: it was removed from the cluster"), "{log}");
    assert!(log.contains("starts with 2 of 3 datanodes"), "{log}");
    pattern::check_file(&file, 1, 5 * MIB);
    pattern::write_file(&up.directory.join("second"), 2, 5 * MIB);
    up.stop(rustix::process::Signal::TERM);
}

#[test]
fn up_begins_no_new_datanode_in_place_of_one_whose_directory_is_missing() {
    let workspace = Workspace::new();
    let up = Up::start(&workspace, &[]);
    let file = up.directory.join("file");
    pattern::write_file(&file, 1, 5 * MIB);
    up.stop(rustix::process::Signal::TERM);
    let data = workspace.path().join("home/data");
    let (node, aside) = (data.join("datanode-3"), workspace.path().join("aside"));
    fs::rename(&node, &aside).expect("rename");
    for empty in [false, true] {
        if empty {
            fs::create_dir_all(&node).expect("a directory without its disk");
        }
        let up = Up::start(&workspace, &[]);
        let log = up.process.log();
        assert!(log.contains("datanode-3: ") && log.contains("is missing or empty"), "{log}");
        assert!(log.contains("starts with 2 of 3 datanodes"), "{log}");
        assert!(
            datanode(&workspace, 3).is_none() && !node.join("identity.json").exists(),
            "nothing was begun"
        );
        pattern::check_file(&up.directory.join("file"), 1, 5 * MIB);
        up.stop(rustix::process::Signal::TERM);
    }
    let _ = fs::remove_dir(&node);
    fs::rename(&aside, &node).expect("rename");
    let up = Up::start(&workspace, &[]);
    let id = datanode(&workspace, 3).expect("it runs");
    // Lost for good: removed, and then a new one begins.
    up.stop(rustix::process::Signal::TERM);
    fs::rename(&node, workspace.path().join("lost")).expect("rename");
    let up = Up::start(&workspace, &[]);
    let removed = cairn_beside(&workspace, &["node", "remove", &id, "--force", "--yes"]);
    assert!(removed.status.success(), "{}", said(&removed));
    up.stop(rustix::process::Signal::TERM);
    let up = Up::start(&workspace, &[]);
    assert!(datanode(&workspace, 3).is_some_and(|new| new != id));
    pattern::check_file(&up.directory.join("file"), 1, 5 * MIB);
    up.stop(rustix::process::Signal::TERM);
}

#[test]
fn up_begins_no_new_store_beside_the_chunks_of_a_cluster() {
    let workspace = Workspace::new();
    let up = Up::start(&workspace, &["--datanodes", "1"]);
    fs::write(up.directory.join("file"), "content").expect("write");
    up.stop(rustix::process::Signal::TERM);
    let data = workspace.path().join("home/data");
    let (store, aside) = (data.join("coordinator"), workspace.path().join("aside"));
    fs::rename(&store, &aside).expect("rename");
    let mount = workspace.path().join("mnt");
    let line = ["up", mount.to_str().unwrap(), "--data", data.to_str().unwrap()];
    for detach in [&[][..], &["--detach"]] {
        let refused = cairn_beside(&workspace, &[&line[..], detach].concat());
        let text = said(&refused);
        assert!(!refused.status.success() && text.contains("the metadata is missing"), "{text}");
        assert!(text.contains("datanode-1") && text.contains("coordinator restore"), "{text}");
        assert!(!store.join("meta.db").exists(), "nothing was made");
    }
    let _ = fs::remove_dir_all(&store);
    fs::rename(&aside, &store).expect("rename");
    let up = Up::start(&workspace, &[]);
    assert_eq!(fs::read(up.directory.join("file")).expect("read"), b"content");
    up.stop(rustix::process::Signal::TERM);
}

#[test]
fn up_takes_copies_and_address_from_the_configuration_and_refuses_what_it_decides_itself() {
    let workspace = Workspace::new();
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.local_addr().expect("address").to_string()
    };
    let config = workspace.path().join("cairn.toml");
    fs::write(&config, format!("[coordinator]\nreplicas = 2\nmin_replicas = 1\nlisten = \"{address}\"\n"))
        .expect("write");
    let flags = ["--datanodes", "2", "--config", config.to_str().unwrap()];
    let up = Up::start(&workspace, &flags);
    fs::write(up.directory.join("file"), "content").expect("write");
    let state = state(&workspace);
    assert_eq!(state["replicas"], 2);
    assert_eq!(state["services"]["coordinator"]["address"], address.as_str());
    let pid = up.children("coordinator")[0];
    let line = fs::read(format!("/proc/{pid}/cmdline")).expect("cmdline");
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    assert!(line.contains("--replicas 2 --min-replicas 1"), "{line}");
    up.stop(rustix::process::Signal::TERM);
    fs::write(&config, "[datanode]\nlisten = \"127.0.0.1:7080\"\n[mount]\nmountpoint = \"/mnt\"\n")
        .expect("write");
    let (mount, other) = (workspace.path().join("mnt"), workspace.path().join("home/other"));
    let line = [
        "up",
        mount.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
        "--data",
        other.to_str().unwrap(),
    ];
    let refused = cairn_beside(&workspace, &line);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("datanode.listen") && text.contains("mount.mountpoint"), "{text}");
}

#[test]
fn when_up_itself_is_killed_nothing_is_left_running_that_nobody_uses() {
    let workspace = Workspace::new();
    let mut up = Up::start(&workspace, &["--datanodes", "1"]);
    let children: Vec<u32> =
        ["coordinator", "datanode", "mount"].iter().flat_map(|role| up.children(role)).collect();
    assert_eq!(children.len(), 3);
    fs::write(up.directory.join("file"), "content").expect("write");
    up.process.kill9();
    // Half a minute without a request, and some moments.
    wait::until_true("the children to end", 3 * STOP_LIMIT, || !children.iter().any(|&pid| alive(pid)));
    drop(up);
    let up = Up::start(&workspace, &[]);
    assert_eq!(fs::read(up.directory.join("file")).expect("read"), b"content");
    up.stop(rustix::process::Signal::TERM);
}

#[test]
fn an_ordinary_user_can_do_it_too() {
    need_root();
    let workspace = Workspace::new();
    fs::create_dir_all(workspace.path().join("home")).expect("mkdir");
    for path in [workspace.path().to_owned(), workspace.path().join("home")] {
        std::os::unix::fs::chown(&path, Some(65_534), Some(65_534)).expect("chown");
    }
    // The binary, where the user can reach it.
    let binary = workspace.path().join("cairn");
    fs::copy(cairn_binary(), &binary).expect("copy");
    // Some machines keep /dev/fuse to root; elsewhere everybody may open it: so a namespace of its own,
    // with a device as it is elsewhere.
    let device = workspace.path().join("fuse");
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let script = format!(
        "mknod -m 666 '{0}' c 10 229 && mount --bind '{0}' /dev/fuse && exec {user} --pdeathsig KILL '{1}' \"$@\"",
        device.display(),
        binary.display()
    );
    let mut command = process::command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    let up = Up::start_by(command, &workspace, &[]);
    let work = format!(
        "cd '{}' && echo hello >f && cat f && mkdir d && mv f d/g && cat d/g",
        up.directory.display()
    );
    let output = Command::new("nsenter")
        .args(["--mount", "--target", &up.process.pid().to_string(), "sh", "-c"])
        .arg(format!("exec {user} sh -c \"{work}\""))
        .output()
        .expect("nsenter");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"hello\nhello\n");
    up.stop(rustix::process::Signal::TERM);
}

#[test]
fn detached_it_goes_on_until_down() {
    let workspace = Workspace::new();
    let home = workspace.path().join("home");
    fs::create_dir_all(&home).expect("mkdir");
    let directory = workspace.path().join("mnt");
    let run_in = |current: &Path, arguments: &[&str]| {
        let mut command = process::cairn(arguments);
        command.env("HOME", &home).env("XDG_RUNTIME_DIR", home.join("run")).current_dir(current);
        command.env("CAIRN_DATANODE__RESERVE", "16 MiB");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = command.spawn().expect("cairn");
        let output = wait::within("cairn", Duration::from_secs(60), move || child.wait_with_output());
        let output = output.expect("output");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "cairn {arguments:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let run = |arguments: &[&str]| run_in(workspace.path(), arguments);
    let (mnt, data) = (directory.to_str().unwrap(), home.join("data"));
    let data = data.to_str().unwrap();
    run(&["up", mnt, "--data", data, "--datanodes", "1", "--detach"]);
    // Whatever comes: it is stopped.
    struct Down<'a>(&'a Path, &'a str);
    impl Drop for Down<'_> {
        fn drop(&mut self) {
            let mut command = process::cairn(["down", "--data", self.1]);
            let _ = command.env("XDG_RUNTIME_DIR", self.0.join("run")).env("HOME", self.0).output();
        }
    }
    let _down = Down(&home, data);
    assert!(cluster::is_mounted(&directory));
    fs::write(directory.join("file"), "content").expect("write");
    // Other commands find its coordinator by themselves; by where they are called, should there be
    // several clusters on the machine.
    assert_eq!(run_in(&directory, &["cat", "/file"]), "content");
    assert_eq!(run_in(&directory, &["ls", "/"]).trim(), "file");
    serde_json::from_str::<serde_json::Value>(&run_in(&directory, &["status", "--json"])).expect("JSON");
    let mut elsewhere = process::cairn(["down", data]);
    let refused =
        elsewhere.env("HOME", &home).env("XDG_RUNTIME_DIR", home.join("run")).output().expect("down");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains(&format!("cairn down {mnt}")), "{why}");
    run(&["down", mnt]);
    assert!(!cluster::is_mounted(&directory));
}
