//! Small JSON files by which processes on this machine tell one another what runs: readiness of a
//! service, the mounts, the last `cairn up`. They appear whole or not at all.
#![allow(clippy::disallowed_methods)] // these files hold no data of the cluster

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::places;

/// A note larger than this is not ours.
const NOTE_SIZE_MAX: u64 = 1 << 20;

/// What a service says once it can be used, or why it never will be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ready {
    /// `coordinator`, `datanode`, `mount` or `up`.
    pub role: String,
    /// Its process.
    pub pid: u32,
    /// When that process started, in ticks since the machine did: tells it from a later one with the same number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    /// Where it listens for gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Where it serves /metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_address: Option<String>,
    /// The directory that it serves (a mount).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Its id: of the cluster (coordinator) or the node (datanode).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What a person should know although it can be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Set instead of the rest when it could not start: a line for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Exit status that goes with `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
}

impl Ready {
    /// Whether the process that wrote this still runs.
    pub(crate) fn runs(&self) -> bool {
        self.error.is_none()
            && is_alive(self.pid)
            && (self.started.is_none() || start_of(self.pid) == self.started)
    }
}

/// What other commands need to know of a running `cairn up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpNote {
    /// The supervisor.
    pub pid: u32,
    /// Address of its coordinator.
    pub coordinator: String,
    /// Where it is mounted.
    pub directory: PathBuf,
    /// Where its data is.
    pub data: PathBuf,
}

/// Writes a note: temporary file, then rename.
pub(crate) fn write(path: &Path, note: &impl Serialize) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    fs::write(&temporary, serde_json::to_vec_pretty(note)?)?;
    fs::rename(&temporary, path)
}

/// Reads a note; `None` when there is none or it is none of ours.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    if fs::metadata(path).ok()?.len() > NOTE_SIZE_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Removes a note; one that is not there is fine.
pub(crate) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Whether a process exists (a zombie does not count).
pub(crate) fn is_alive(pid: u32) -> bool {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    if test_kill_process(id).is_err_and(|error| error == rustix::io::Errno::SRCH) {
        return false;
    }
    // The state is the first field behind the name, which is in parentheses.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// When a process started, in ticks since the machine did: proc_pid_stat(5), field 22.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Counted behind the name, which is in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The services of a `cairn up` with its data in `data` that run, by name; also when their supervisor is gone.
pub(crate) fn services_of(data: &Path) -> BTreeMap<String, Ready> {
    let mut running = BTreeMap::new();
    for entry in fs::read_dir(data.join("run")).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        if let (Some(name), Some(ready)) = (name, read::<Ready>(&path))
            && ready.role != "up"
            && ready.runs()
        {
            running.insert(name, ready);
        }
    }
    running
}

fn up_path(pid: u32) -> PathBuf {
    places::runtime().join("up").join(format!("{pid}.json"))
}

/// Tells other commands about this `cairn up`.
pub(crate) fn announce_up(note: &UpNote) -> io::Result<()> {
    write(&up_path(std::process::id()), note)
}

/// Takes back [`announce_up`] of this process or another one.
pub(crate) fn retract_up(pid: u32) {
    for place in places::runtimes() {
        remove(&place.join("up").join(format!("{pid}.json")));
    }
}

/// All running `cairn up`s that are known.
pub(crate) fn all_ups() -> Vec<UpNote> {
    places::runtimes().iter().flat_map(|place| running_ups(place)).collect()
}

/// The running `cairn up`s that other commands may mean: the one whose directory this process is in,
/// else this user's own, else those of others that leave notes where everybody looks.
pub(crate) fn find_ups() -> Vec<UpNote> {
    let here = std::env::current_dir().unwrap_or_default();
    let groups: Vec<Vec<UpNote>> = places::runtimes().iter().map(|place| running_ups(place)).collect();
    let inside = groups.iter().flatten().find(|note| here.starts_with(&note.directory)).cloned();
    match inside {
        Some(note) => vec![note],
        None => groups.into_iter().find(|group| !group.is_empty()).unwrap_or_default(),
    }
}

fn running_ups(place: &Path) -> Vec<UpNote> {
    let mut running = Vec::new();
    for entry in fs::read_dir(place.join("up")).into_iter().flatten().flatten() {
        match read::<UpNote>(&entry.path()) {
            // Services go on without their supervisor as long as the mount is in use.
            Some(note) if is_alive(note.pid) || !services_of(&note.data).is_empty() => running.push(note),
            Some(_) => remove(&entry.path()),
            None => {}
        }
    }
    running.sort_by_key(|note| note.pid);
    running
}

fn mount_path(pid: u32) -> PathBuf {
    places::runtime().join("mounts").join(format!("{pid}.json"))
}

/// Records that this process serves a directory, for `cairn umount`.
pub(crate) fn announce_mount(ready: &Ready) -> io::Result<()> {
    write(&mount_path(std::process::id()), ready)
}

/// Takes back [`announce_mount`].
pub(crate) fn retract_mount() {
    remove(&mount_path(std::process::id()));
}

/// The process that serves a directory, if it left a note and lives. Notes of the dead are removed.
pub(crate) fn find_mount(directory: &Path) -> Option<u32> {
    for place in places::runtimes() {
        for entry in fs::read_dir(place.join("mounts")).into_iter().flatten().flatten() {
            let Some(note) = read::<Ready>(&entry.path()) else { continue };
            if !is_alive(note.pid) {
                remove(&entry.path());
            } else if note.directory.as_deref() == Some(directory) {
                return Some(note.pid);
            }
        }
    }
    None
}
