//! `cairn up`: a whole cluster on this machine. This process supervises; the coordinator, the
//! datanodes and the mount are children, so that one can die and the rest goes on.
//!
//! The data directory holds `LOCK` (one supervisor at a time), `up.json` ([`state::State`]), `run/`
//! (ready-files), `log/`, `coordinator/` and `datanode-N/`. Children notice the end of their
//! supervisor by a pipe and stop by themselves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_runtime::disk::RealDisk;

use crate::args::{DownArgs, GlobalArgs, UpArgs};
use crate::failure::{Context, Failure};
use crate::output::Output;
use crate::{background, notes, places, unmount};

mod keeper;
mod service;
mod state;
mod summary;
mod supervisor;

pub(crate) use state::State;
use supervisor::Supervisor;

/// `cairn up --detach` waits this long.
const DETACH_LIMIT: Duration = Duration::from_secs(300);
/// `cairn down` waits this long: the mount may have much to store.
const DOWN_LIMIT: Duration = Duration::from_secs(180);
/// Services whose supervisor was killed end by themselves within this time.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(15);

/// Runs `cairn up`.
pub(crate) async fn up(args: UpArgs, global: &GlobalArgs, output: Output) -> Result<(), Failure> {
    let ready_file = args.ready_file.clone();
    if args.new_session {
        background::leave_session();
    }
    let result =
        if args.detach { detach(&args, global, output).await } else { run(args, global, output).await };
    if let Err(failure) = &result {
        background::tell_failure(ready_file.as_deref(), "up", failure);
    }
    result
}

async fn run(args: UpArgs, global: &GlobalArgs, output: Output) -> Result<(), Failure> {
    let data = data_directory(args.data.as_deref())?;
    let directory = mount_directory(&args.directory, &data)?;
    let _lock = lock(&data)?;
    let found = State::read(&data)?;
    if let Some(found) = &found {
        await_leftovers(found, &data, output).await?;
    }
    let state = State::plan(found, &directory, args.datanodes, args.replicas)?;
    let supervisor = Supervisor::start(&data, state, &args, global, output).await?;
    supervisor.run().await
}

/// Starts `cairn up` in the background and returns when its directory can be used.
async fn detach(args: &UpArgs, global: &GlobalArgs, output: Output) -> Result<(), Failure> {
    let data = data_directory(args.data.as_deref())?;
    // Found out here already, so that the person sees the sentence at once.
    drop(lock(&data)?);
    let directory = mount_directory(&args.directory, &data)?;
    let (log, ready_file) = (data.join("log/up.log"), data.join("run/up.json"));
    notes::remove(&ready_file);
    let mut line = vec!["up".into(), directory.into_os_string(), "--data".into(), data.clone().into()];
    line.extend(["--ready-file".into(), ready_file.clone().into(), "--new-session".into()]);
    for (flag, value) in [("--datanodes", args.datanodes), ("--replicas", args.replicas)] {
        if let Some(value) = value {
            line.extend([flag.into(), value.to_string().into()]);
        }
    }
    let switches = [
        ("--no-restart", args.no_restart),
        ("--allow-other", args.allow_other),
        ("--no-protect", args.no_protect),
        ("--quiet", global.quiet),
    ];
    line.extend(switches.iter().filter(|(_, given)| *given).map(|(flag, _)| (*flag).into()));
    line.extend((0..global.verbose).map(|_| "--verbose".into()));
    if let Some(config) = &global.config {
        line.extend([
            "--config".into(),
            std::path::absolute(config).doing("find the configuration file")?.into(),
        ]);
    }
    let mut child = background::spawn(&line, &log, false, false)?;
    background::await_ready(&mut child, &ready_file, &log, DETACH_LIMIT).await?;
    if let Some(path) = &args.ready_file {
        std::fs::copy(&ready_file, path).doing(format!("write {}", path.display()))?;
    }
    match State::read(&data)? {
        Some(state) => summary::print(&state, &data, true, output),
        None => Ok(()),
    }
}

/// Runs `cairn down`.
pub(crate) async fn down(args: &DownArgs, output: Output) -> Result<(), Failure> {
    let data = match &args.directory {
        Some(directory) => data_of(directory)?,
        None => args.data.clone().unwrap_or_else(places::up_data),
    };
    let data = std::path::absolute(data).doing("find the data")?;
    let what = format!("stop the cluster in {}", data.display());
    let state = State::read(&data)?.filter(|state| notes::is_alive(state.pid) && is_locked(&data));
    let Some(state) = state else {
        return Err(Failure::new(what, "it does not run").next(what_runs()));
    };
    unmount::send(state.pid, rustix::process::Signal::TERM);
    let notice = || output.note("waiting for unwritten data to be stored");
    if !unmount::await_end(state.pid, DOWN_LIMIT, notice).await {
        let why = format!("it (pid {}) still runs after {} s", state.pid, DOWN_LIMIT.as_secs());
        return Err(Failure::new(what, why).next(format!("look into {}", data.join("log").display())));
    }
    output.say(format!("Cairn is down; its data stays in {}", data.display()));
    Ok(())
}

/// Where the running cluster has its data that is mounted at a directory.
fn data_of(directory: &Path) -> Result<PathBuf, Failure> {
    let what = format!("stop the cluster at {}", directory.display());
    let path = unmount::absolute(directory).doing(&what)?;
    let note = notes::all_ups().into_iter().find(|note| note.directory == path);
    note.map(|note| note.data)
        .ok_or_else(|| Failure::new(what, "no running `cairn up` is mounted there").next(what_runs()))
}

/// What can be stopped, for a person who asked for something else.
fn what_runs() -> String {
    let running = notes::all_ups();
    if running.is_empty() {
        return "give --data when it was given to `cairn up`; none is known to run".into();
    }
    let each = running.iter().map(|note| format!("`cairn down {}`", note.directory.display()));
    format!("of those that run: {}", each.collect::<Vec<_>>().join(", "))
}

fn data_directory(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let data = given.map_or_else(places::up_data, Path::to_owned);
    std::fs::create_dir_all(&data)
        .doing(format!("make the data directory {}", data.display()))
        .map_err(|failure| failure.next("choose another with --data"))?;
    data.canonicalize().doing(format!("find {}", data.display()))
}

/// The directory to mount at, made when it is missing, cleared of a dead mount.
fn mount_directory(directory: &Path, data: &Path) -> Result<PathBuf, Failure> {
    let what = format!("mount at {}", directory.display());
    if let Ok(path) = unmount::absolute(directory) {
        unmount::clear_dead(&path);
    }
    if !directory.exists() {
        std::fs::create_dir_all(directory).doing(&what)?;
    }
    let path = directory.canonicalize().doing(&what)?;
    if path.starts_with(data) || data.starts_with(&path) {
        let why = format!("it and the data directory {} lie inside one another", data.display());
        return Err(Failure::usage(what, why).next("choose another DIR or --data"));
    }
    Ok(path)
}

fn lock(data: &Path) -> Result<RealDisk, Failure> {
    RealDisk::open(data).map_err(|error| {
        if error.kind() != std::io::ErrorKind::ResourceBusy {
            return Failure::new("", error).next("choose another with --data");
        }
        let state = State::read(data).ok().flatten();
        let who = state.map_or_else(String::new, |state| {
            format!(" (pid {}, mounted at {})", state.pid, state.directory.display())
        });
        Failure::new(
            format!("use the data in {}", data.display()),
            format!("another `cairn up` runs on it{who}"),
        )
        .next(format!(
            "use that one, stop it with `cairn down --data {}`, or choose another --data",
            data.display()
        ))
    })
}

fn is_locked(data: &Path) -> bool {
    RealDisk::open(data).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
}

/// Waits for services whose supervisor was killed; they stop by themselves, the mount first.
async fn await_leftovers(state: &State, data: &Path, output: Output) -> Result<(), Failure> {
    let (mounts, others): (Vec<_>, Vec<_>) =
        state.services.iter().partition(|(_, ready)| ready.role == "mount");
    for (name, ready) in mounts.into_iter().chain(others) {
        // A number alone is not enough: the system gives it to others after a while.
        let marks = [data.as_os_str(), state.directory.as_os_str()];
        if !notes::is_alive(ready.pid) || !marks.iter().any(|mark| unmount::mentions(ready.pid, mark)) {
            continue;
        }
        if ready.role != "mount" {
            // It serves on for a while for the sake of the mount, which has ended by now.
            unmount::send(ready.pid, rustix::process::Signal::TERM);
        }
        let notice =
            || output.note(format!("waiting for {name} (pid {}) of an earlier run to end", ready.pid));
        if !unmount::await_end(ready.pid, LEFTOVER_LIMIT, notice).await {
            output.note(format!("{name} (pid {}) of an earlier run does not end and is killed", ready.pid));
            unmount::send(ready.pid, rustix::process::Signal::KILL);
            if !unmount::await_end(ready.pid, LEFTOVER_LIMIT, || {}).await {
                let why = format!("{name} (pid {}) of an earlier run can not be ended", ready.pid);
                return Err(Failure::new("", why));
            }
        }
    }
    unmount::clear_dead(&state.directory);
    Ok(())
}
