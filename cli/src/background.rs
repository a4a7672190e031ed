//! Starting `cairn` again as another process: services of `cairn up`, and what goes on in the
//! background. The parent learns from a ready-file ([`Ready`]) that the child can be used, or why not.
#![allow(clippy::disallowed_methods)] // logs and notes, no data of the cluster

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cairn_runtime::clock;
use cairn_runtime::shutdown::Shutdown;
use tokio::process::{Child, Command};

use crate::args::ChildArgs;
use crate::failure::{Context, Exit, Failure};
use crate::notes::{self, Ready};

/// A log larger than this is moved aside (to `.1`) when its process starts.
const LOG_SIZE_MAX: u64 = 16 << 20;
/// The ready-file is looked for this often.
const POLL: Duration = Duration::from_millis(15);
/// How much of a log is searched for the reason of a death.
const LOG_TAIL: usize = 4096;
/// After the parent is gone, the coordinator and the datanodes serve this long, so that the mount can store
/// what it holds.
pub(crate) const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// Opens the log of a child, after moving a large one aside.
pub(crate) fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_SIZE_MAX) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Runs this same program with other arguments; its output goes to `log`. The child is in a process
/// group of its own when `group` is set, so that Ctrl-C reaches the parent only. With
/// `tie`, its standard input is a pipe that ends when the parent does.
pub(crate) fn spawn(args: &[OsString], log: &Path, group: bool, tie: bool) -> Result<Child, Failure> {
    let what =
        || format!("start cairn {}", args.first().map(|arg| arg.to_string_lossy()).unwrap_or_default());
    let program = std::env::current_exe().doing(what())?;
    let output = open_log(log).doing(format!("open the log {}", log.display()))?;
    let errors = output.try_clone().doing(what())?;
    let mut command = Command::new(program);
    command.args(args).stdout(output).stderr(errors).current_dir("/");
    command.stdin(if tie { Stdio::piped() } else { Stdio::null() });
    if group {
        command.process_group(0);
    }
    command.spawn().doing(what())
}

/// Waits until the child has written its ready-file; its own words when it dies instead.
pub(crate) async fn await_ready(
    child: &mut Child,
    path: &Path,
    log: &Path,
    deadline: Duration,
) -> Result<Ready, Failure> {
    let end = clock::now() + deadline;
    loop {
        let ended = child.try_wait().doing("watch a child process")?;
        match notes::read::<Ready>(path) {
            Some(Ready { error: Some(error), exit, .. }) => {
                return Err(Failure::new("", error).exit(exit_of(exit)));
            }
            Some(ready) if ended.is_none() => return Ok(ready),
            Some(_) | None => {}
        }
        if let Some(status) = ended {
            let why = last_line(log).unwrap_or_else(|| format!("the process ended ({status})"));
            return Err(Failure::new("", why).next(format!("its log is {}", log.display())));
        }
        if clock::now() >= end {
            let why = format!("not ready within {} s", deadline.as_secs());
            return Err(Failure::new("", why).next(format!("look into {}", log.display())));
        }
        clock::sleep(POLL).await;
    }
}

fn exit_of(status: Option<i32>) -> Exit {
    [Exit::Usage, Exit::Unreachable, Exit::Unhealthy]
        .into_iter()
        .find(|exit| Some(*exit as i32) == status)
        .unwrap_or(Exit::Failed)
}

/// The last line of a log that says something.
fn last_line(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned();
    tail.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(ToOwned::to_owned)
}

/// What a child does for its parent first: leave the session, and watch for the parent's end.
///
/// `grace`: how long to go on after the parent is gone.
pub(crate) fn obey_parent(child: &ChildArgs, grace: Duration, shutdown: &Shutdown) {
    if child.new_session {
        leave_session();
    }
    if !child.stop_with_parent {
        return;
    }
    let (gone, notice) = tokio::sync::oneshot::channel::<()>();
    // A thread and not a task: reading standard input blocks, also the end of a runtime.
    let watcher = cairn_runtime::threads::spawn("parent-watch", move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = gone.send(());
    });
    if let Err(error) = watcher {
        tracing::warn!(%error, "the end of the parent process will not be noticed");
        return;
    }
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        if notice.await.is_ok() && !shutdown.is_requested() {
            tracing::warn!("the parent process is gone: stopping");
            let _ = clock::timeout(grace, shutdown.requested()).await;
            shutdown.request();
        }
    });
}

/// Leaves the terminal and session of the parent; harmless when that is done already.
pub(crate) fn leave_session() {
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "this process leads a session already");
    }
}

/// Tells the parent that this service can be used.
pub(crate) fn tell_ready(path: Option<&Path>, ready: &Ready) -> Result<(), Failure> {
    path.map_or(Ok(()), |path| {
        notes::write(path, ready).doing(format!("write the ready-file {}", path.display()))
    })
}

/// Tells the parent why this service can not start.
pub(crate) fn tell_failure(path: Option<&Path>, role: &str, failure: &Failure) {
    if let Some(path) = path {
        let ready = Ready {
            role: role.to_owned(),
            pid: std::process::id(),
            error: Some(failure.to_string()),
            exit: Some(failure.exit as i32),
            ..Ready::default()
        };
        if let Err(error) = notes::write(path, &ready) {
            tracing::warn!(%error, path = %path.display(), "the ready-file can not be written");
        }
    }
}
