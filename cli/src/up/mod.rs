//! `cairn up`: a whole cluster on this machine. This process supervises; the coordinator, the
//! datanodes and the mount are children, so that one can die and the rest goes on.
//!
//! The data directory holds `LOCK` (one supervisor at a time), `up.json` ([`state::State`]), `run/`
//! (ready-files), `log/`, `coordinator/` and `datanode-N/`. Children notice the end of their
//! supervisor by a pipe: they go on as long as programs use the mount, and are found by their ready-files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_runtime::disk::RealDisk;

use crate::args::{DownArgs, GlobalArgs, UpArgs};
use crate::failure::{Context, Failure};
use crate::notes::Ready;
use crate::output::Output;
use crate::{background, human, notes, places, unmount};

mod keeper;
mod service;
mod state;
mod summary;
mod supervisor;
mod wishes;

pub(crate) use state::State;
use supervisor::Supervisor;
use wishes::Wishes;

/// `cairn up --detach` waits this long.
const DETACH_LIMIT: Duration = Duration::from_secs(300);
/// `cairn down` waits this long: the mount may have much to store.
const DOWN_LIMIT: Duration = Duration::from_secs(180);
/// After SIGKILL a process ends within this time.
const KILL_LIMIT: Duration = Duration::from_secs(15);
/// Less room than this part of a file system makes `cairn up` say so: 10 %.
const LITTLE_PART: u64 = 10;

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
    let wishes = Wishes::read(global.config.as_deref(), global.coordinator.as_deref(), output)?;
    let (data, directory) = directories(&args)?;
    let _lock = lock(&data)?;
    let found = State::read(&data)?;
    check_store(&data)?;
    if let Some(found) = &found {
        let services = notes::services_of(&data);
        if !services.is_empty() {
            output.note(
                "services of an earlier `cairn up`, which was killed, still run: they are stopped first",
            );
            stop_services(services, found, &data, output).await?;
        }
        unmount::clear_dead(&found.directory);
    }
    let state = State::plan(found, &directory, args.datanodes, args.replicas.or(wishes.replicas))?;
    say_little_room(&data, output);
    let supervisor = Supervisor::start(&data, state, &args, global, wishes, output).await?;
    supervisor.run().await
}

/// Starts `cairn up` in the background and returns when its directory can be used.
async fn detach(args: &UpArgs, global: &GlobalArgs, output: Output) -> Result<(), Failure> {
    Wishes::read(global.config.as_deref(), global.coordinator.as_deref(), output)?;
    let (data, directory) = directories(args)?;
    // Found out here already, so that the person sees the sentence at once.
    drop(lock(&data)?);
    check_store(&data)?;
    say_little_room(&data, output);
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
    if let Some(address) = &global.coordinator {
        line.extend(["--coordinator".into(), address.into()]);
    }
    if let Some(config) = &global.config {
        line.extend([
            "--config".into(),
            std::path::absolute(config).doing("find the configuration file")?.into(),
        ]);
    }
    let mut child = background::spawn(&line, &log, false, false)?;
    let ready = background::await_ready(&mut child, &ready_file, &log, DETACH_LIMIT).await?;
    ready.warnings.iter().for_each(|text| output.note(text));
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
    let Some(state) = State::read(&data)? else {
        return Err(Failure::new(what, "it does not run").next(what_runs()));
    };
    if notes::is_alive(state.pid) && is_locked(&data) {
        unmount::send(state.pid, rustix::process::Signal::TERM);
        let notice = || output.note("waiting for unwritten data to be stored");
        if !unmount::await_end(state.pid, DOWN_LIMIT, notice).await {
            let why = format!("it (pid {}) still runs after {} s", state.pid, DOWN_LIMIT.as_secs());
            return Err(Failure::new(what, why).next(format!("look into {}", data.join("log").display())));
        }
    } else {
        // Its supervisor was killed.
        let _lock = lock(&data)?;
        let services = notes::services_of(&data);
        if services.is_empty() {
            return Err(Failure::new(what, "it does not run").next(what_runs()));
        }
        stop_services(services, &state, &data, output).await?;
        notes::retract_up(state.pid);
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

/// The data directory and the directory to mount at. Each is made when it is missing, once both have been judged.
fn directories(args: &UpArgs) -> Result<(PathBuf, PathBuf), Failure> {
    let data = args.data.clone().unwrap_or_else(places::up_data);
    let data = resolved(&data).doing(format!("find {}", data.display()))?;
    let what = format!("mount at {}", args.directory.display());
    let directory = resolved(&args.directory).doing(&what)?;
    unmount::clear_dead(&directory);
    if directory.starts_with(&data) || data.starts_with(&directory) {
        let why = format!("it and the data directory {} lie inside one another", data.display());
        return Err(Failure::usage(what, why).next("choose another DIR or --data"));
    }
    std::fs::create_dir_all(&data)
        .doing(format!("make the data directory {}", data.display()))
        .map_err(|failure| failure.next("choose another with --data"))?;
    if !directory.exists() {
        std::fs::create_dir_all(&directory).doing(&what)?;
    }
    Ok((data, directory))
}

/// Without symbolic links, as far as it exists.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    let whole = std::path::absolute(path)?;
    for there in whole.ancestors() {
        if let (Ok(found), Ok(missing)) = (there.canonicalize(), whole.strip_prefix(there)) {
            return Ok(if missing.as_os_str().is_empty() { found } else { found.join(missing) });
        }
    }
    Ok(whole)
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

/// Stops services whose supervisor was killed, as it would have done: the mount first, so that it can store what it
/// holds, then the datanodes, then the coordinator.
async fn stop_services(
    services: BTreeMap<String, Ready>,
    state: &State,
    data: &Path,
    output: Output,
) -> Result<(), Failure> {
    let order = |ready: &Ready| match ready.role.as_str() {
        "mount" => 0,
        "datanode" => 1,
        _ => 2,
    };
    let mut services: Vec<_> = services.into_iter().collect();
    services.sort_by_key(|(_, ready)| order(ready));
    for (name, ready) in services {
        unmount::send(ready.pid, rustix::process::Signal::TERM);
        let notice = || output.note(format!("waiting for {name} (pid {}) to end", ready.pid));
        if !unmount::await_end(ready.pid, DOWN_LIMIT, notice).await {
            output.note(format!("{name} (pid {}) does not end and is killed", ready.pid));
            unmount::send(ready.pid, rustix::process::Signal::KILL);
            if !unmount::await_end(ready.pid, KILL_LIMIT, || {}).await {
                return Err(Failure::new("", format!("{name} (pid {}) can not be ended", ready.pid)));
            }
        }
        notes::remove(&data.join("run").join(format!("{name}.json")));
    }
    unmount::clear_dead(&state.directory);
    Ok(())
}

/// Whether a datanode has begun in this directory.
fn holds_datanode(directory: &Path) -> bool {
    directory.join("identity.json").exists()
}

/// Refuses to begin a new store beside the chunks of a cluster whose store is gone.
fn check_store(data: &Path) -> Result<(), Failure> {
    let store = data.join("coordinator");
    if store.join("meta.db").exists() {
        return Ok(());
    }
    let mut nodes: Vec<String> = std::fs::read_dir(data)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| holds_datanode(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if nodes.is_empty() {
        return Ok(());
    }
    nodes.sort();
    let why = format!(
        "the metadata is missing ({} holds no meta.db), and the chunks of its files are in {}; a new store would \
         know none of them",
        store.display(),
        nodes.join(", ")
    );
    let next = format!(
        "bring that directory back, or restore it with `cairn coordinator restore --from BACKUP --data {}`; `cairn \
         salvage` reads chunks without metadata; a new cluster needs another --data",
        store.display()
    );
    Err(Failure::new(format!("use the data in {}", data.display()), why).next(next))
}

/// Says so when the disk of the data is nearly full.
fn say_little_room(data: &Path, output: Output) {
    let Ok(room) = rustix::fs::statvfs(data) else { return };
    let (free, all) = (room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize);
    if free < all / LITTLE_PART {
        output.note(format!(
            "only {} of {} are left on the disk of {}: the cluster can store less than that",
            human::size(free),
            human::size(all),
            data.display()
        ));
    }
}
