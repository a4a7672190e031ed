//! Where `cairn` keeps what is not given by a flag: data of `up`, run-time files, logs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The variable that names the only place for notes of running processes.
const RUNTIME_ENV: &str = "CAIRN_RUNTIME_DIR";
/// Where root leaves notes.
const ROOT_RUNTIME: &str = "/run/cairn";

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn home() -> PathBuf {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

fn from_env(variable: &str) -> Option<PathBuf> {
    // The XDG specification: a relative path there is to be ignored.
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Where `cairn up` keeps everything by default.
pub(crate) fn up_data() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/cairn/up");
    }
    from_env("XDG_DATA_HOME").unwrap_or_else(|| home().join(".local/share")).join("cairn/up")
}

/// Where running processes leave notes for other commands: gone after a reboot, mostly.
pub(crate) fn runtime() -> PathBuf {
    if let Some(path) = from_env(RUNTIME_ENV) {
        return path;
    }
    match from_env("XDG_RUNTIME_DIR").filter(|path| is_usable(path)) {
        Some(path) => path.join("cairn"),
        None if is_root() => PathBuf::from(ROOT_RUNTIME),
        None => from_env("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("cairn"),
    }
}

/// Every place where a note of a running process may be: one's own first, then root's, and for
/// root those of all users.
pub(crate) fn runtimes() -> Vec<PathBuf> {
    let mut all = vec![runtime()];
    if from_env(RUNTIME_ENV).is_some() {
        return all;
    }
    all.push(PathBuf::from(ROOT_RUNTIME));
    if is_root() {
        let users = std::fs::read_dir("/run/user").into_iter().flatten().flatten();
        all.extend(users.map(|user| user.path().join("cairn")));
    }
    all.dedup();
    all
}

/// A directory of this user, or one that can still become it: after `su` the variable may name another's.
fn is_usable(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(meta) => meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw(),
        Err(_) => path.parent().is_some_and(Path::is_dir),
    }
}

/// Log of the background process that serves `directory`.
pub(crate) fn mount_log(directory: &Path) -> PathBuf {
    let logs = if is_root() {
        PathBuf::from("/var/log/cairn")
    } else {
        from_env("XDG_STATE_HOME").unwrap_or_else(|| home().join(".local/state")).join("cairn")
    };
    logs.join(format!("mount{}.log", directory.display().to_string().replace('/', "-")))
}
