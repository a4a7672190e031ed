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
use cairn_runtime::telemetry::LOG_SIZE_MAX;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::args::ChildArgs;
use crate::failure::{Context, Exit, Failure};
use crate::notes::{self, Ready};

/// The ready-file is looked for this often.
const POLL: Duration = Duration::from_millis(15);
/// How much of a log is searched for the reason of a death.
const LOG_TAIL: usize = 4096;
/// How often it is looked whether the process is there that a service outlives.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After the mount is gone, too, the coordinator and the datanodes serve this long.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// Opens the log of a child, after moving a large one aside; while it runs the child itself does that.
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

/// What a child does for its parent first: leave the session, and watch for the parent's end. The token says that the
/// parent is gone.
///
/// With `--outlive FILE` the service goes on as long as the process of that ready-file does, and for a moment longer,
/// so that a mount can store what it holds; then it stops by itself.
pub(crate) fn obey_parent(child: &ChildArgs, shutdown: &Shutdown) -> CancellationToken {
    let orphaned = CancellationToken::new();
    if child.new_session {
        leave_session();
    }
    if !child.stop_with_parent {
        return orphaned;
    }
    let (gone, notice) = tokio::sync::oneshot::channel::<()>();
    // A thread and not a task: reading standard input blocks, also the end of a runtime.
    let watcher = cairn_runtime::threads::spawn("parent-watch", move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = gone.send(());
    });
    if let Err(error) = watcher {
        tracing::warn!(%error, "the end of the parent process will not be noticed");
        return orphaned;
    }
    let (shutdown, outlive, token) = (shutdown.clone(), child.outlive.clone(), orphaned.clone());
    tokio::spawn(async move {
        if notice.await.is_err() || shutdown.is_requested() {
            return;
        }
        tracing::warn!("the supervisor is gone: this goes on as long as programs use the mount");
        token.cancel();
        let Some(file) = outlive else { return };
        let outlived = async {
            while notes::read::<Ready>(&file).is_some_and(|ready| ready.runs()) {
                clock::sleep(LOOK_EVERY).await;
            }
            clock::sleep(ORPHAN_GRACE).await;
        };
        tokio::select! {
            () = outlived => shutdown.request(),
            () = shutdown.requested() => {}
        }
    });
    orphaned
}

/// Leaves the terminal and session of the parent; harmless when that is done already.
pub(crate) fn leave_session() {
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "this process leads a session already");
    }
}

/// Tells the parent that this service can be used.
pub(crate) fn tell_ready(path: Option<&Path>, ready: &Ready) -> Result<(), Failure> {
    let ready = Ready { started: notes::start_of(ready.pid), ..ready.clone() };
    path.map_or(Ok(()), |path| {
        notes::write(path, &ready).doing(format!("write the ready-file {}", path.display()))
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
