//! Processes that end with the test.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::wait;

/// How long a daemon may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// The `cairn` binary: `CAIRN_BIN`, else the one beside the running test's `deps` directory.
pub fn cairn_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CAIRN_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("path of the test");
    let path = test.ancestors().nth(2).expect("deps directory").join("cairn");
    assert!(path.exists(), "{} is not built: run `cargo build -p cairn`, or set CAIRN_BIN", path.display());
    path
}

/// A command that dies with the test and sees none of the caller's `CAIRN_*` variables.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CAIRN_") {
            command.env_remove(name);
        }
    }
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
    command
}

/// `cairn` with these arguments.
pub fn cairn<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    cairn_under(&[], arguments)
}

/// As [`cairn`], as the last arguments of `wrapper`, a program that executes what follows.
pub fn cairn_under<S: AsRef<OsStr>>(wrapper: &[OsString], arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = match wrapper.split_first() {
        Some((program, before)) => {
            let mut command = command(program);
            command.args(before).arg(cairn_binary());
            command
        }
        None => command(cairn_binary()),
    };
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A daemon; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    exited: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, with its output appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("dup"))
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned(), exited: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the file that says where the daemon listens.
    pub fn wait_ready(&mut self, ready: &Path) -> serde_json::Value {
        self.try_ready(ready).unwrap_or_else(|| {
            panic!("{} ended ({:?}) before it was ready:\n{}", self.name, self.exited, self.log_tail())
        })
    }

    /// As [`Self::wait_ready`]; nothing when the daemon has ended before. One that says there why it can not
    /// start is waited for: it has more to say in its log.
    pub fn try_ready(&mut self, ready: &Path) -> Option<serde_json::Value> {
        let what = format!("{} to be ready", self.name);
        wait::until(&what, READY_LIMIT, || {
            if self.try_exit().is_some() {
                return Some(None);
            }
            let told: serde_json::Value = serde_json::from_slice(&std::fs::read(ready).ok()?).ok()?;
            told["error"].is_null().then_some(Some(told))
        })
    }

    fn try_exit(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().expect("wait");
        }
        self.exited
    }

    pub fn is_running(&mut self) -> bool {
        self.try_exit().is_none()
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        if self.exited.is_none() {
            self.exited = Some(self.child.wait().expect("wait"));
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("pid");
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// SIGTERM, and waits for the orderly end.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait_exit(limit)
    }

    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait::until(&what, limit, || self.try_exit())
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        resident(self.pid())
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let before = self.exited;
        if before.is_none() {
            self.kill9();
        }
        if std::thread::panicking() {
            let state = before.map_or("running".to_owned(), |status| match status.signal() {
                Some(signal) => format!("killed by signal {signal}"),
                None => status.to_string(),
            });
            eprintln!(
                "--- {} (pid {}, {state}), end of its log:\n{}",
                self.name,
                self.pid(),
                self.log_tail()
            );
        }
    }
}

/// Resident memory of a process in bytes, without what it shares as file pages.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("process status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    let kib: u64 = line.split_whitespace().nth(1).expect("number").parse().expect("number");
    kib << 10
}

/// A temporary directory with a watchman: should the test process be killed, what is mounted below
/// is unmounted and everything removed.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    watchman: Child,
}

/// Waits for the end of its input, which is the end of the test, then cleans up.
const WATCHMAN: &str = r#"
cat >/dev/null
sleep 0.2
grep -F " $1/" /proc/mounts | cut -d' ' -f2 | tac | while read -r m; do umount -l "$m"; done
rm -rf --one-file-system "$1" 2>/dev/null && exit
# A covered directory may be protected.
chattr -R -i "$1"
rm -rf --one-file-system "$1"
"#;

impl Workspace {
    /// A fresh directory below the system's temporary one, enterable by everybody.
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = tempfile::Builder::new().prefix("cairn-test.").tempdir().expect("tempdir").keep();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let watchman = Command::new("setsid")
            .args(["sh", "-c", WATCHMAN, "watchman"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("watchman");
        Self { path, watchman }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        drop(self.watchman.stdin.take());
        let _ = self.watchman.wait();
    }
}
