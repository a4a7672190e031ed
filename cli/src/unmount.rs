//! Taking a mount away, as root by umount2(2) and as an ordinary user by `fusermount3`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cairn_runtime::clock;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Context, Failure};
use crate::notes;

mod users;

/// How to take a mount away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Only when nobody uses it.
    Polite,
    /// Out of sight at once; it ends when nobody uses it any more.
    Lazy,
    /// Even if the server does not answer.
    Force,
}

/// A mounted file system, from `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Such as `fuse.cairn`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

impl Mounted {
    /// Whether it is one of ours.
    pub(crate) fn is_cairn(&self) -> bool {
        // The second: of earlier versions.
        self.kind == "fuse.cairn" || (self.kind == "fuse" && self.source == "cairn")
    }
}

/// The absolute form of a directory that may be a dead mount, which can not be looked at itself.
pub(crate) fn absolute(directory: &Path) -> std::io::Result<PathBuf> {
    match directory.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) => {
            let whole = std::path::absolute(directory)?;
            match (whole.parent().map(Path::canonicalize), whole.file_name()) {
                (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
                _ => Err(error),
            }
        }
    }
}

/// The topmost mount at a directory (in its absolute form).
pub(crate) fn mounted_at(directory: &Path) -> Option<Mounted> {
    mounts().into_iter().rev().find_map(|(point, mounted)| (point == directory).then_some(mounted))
}

/// Where Cairn is mounted, for a person who asked for another directory.
pub(crate) fn what_is_mounted() -> String {
    let ours = mounts().into_iter().filter(|(_, mounted)| mounted.is_cairn());
    let points: BTreeSet<_> = ours.map(|(point, _)| point.display().to_string()).collect();
    match points.is_empty() {
        true => "Cairn is mounted nowhere on this machine".into(),
        false => format!("Cairn is mounted at {}", points.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// Everything that is mounted, in the order in which it was.
fn mounts() -> Vec<(PathBuf, Mounted)> {
    let text = crate::local::read_text(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse_mount).collect()
}

/// proc(5): id parent major:minor root mountpoint options [tags] - type source options.
fn parse_mount(line: &str) -> Option<(PathBuf, Mounted)> {
    let (left, right) = line.split_once(" - ")?;
    let point = unescape(left.split(' ').nth(4)?).into();
    let mut fields = right.split(' ');
    Some((point, Mounted { kind: fields.next()?.to_owned(), source: fields.next()?.to_owned() }))
}

/// Undoes the kernel's octal escapes (`\040` for a blank).
fn unescape(text: &str) -> OsString {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(plain)
}

/// Takes the topmost mount at a directory (in its absolute form) away.
pub(crate) fn unmount(directory: &Path, manner: Manner) -> Result<(), Failure> {
    let what = format!("unmount {}", directory.display());
    let flags = match manner {
        Manner::Polite => UnmountFlags::NOFOLLOW,
        Manner::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        Manner::Force => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | UnmountFlags::FORCE,
    };
    match rustix::mount::unmount(directory, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(&what, directory)),
        Err(Errno::PERM) => fusermount(&what, directory, manner),
        Err(error) => Err(error).doing(what),
    }
}

fn fusermount(what: &str, directory: &Path, manner: Manner) -> Result<(), Failure> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").stdin(Stdio::null());
    if manner != Manner::Polite {
        command.arg("-z");
    }
    let output = command.arg("--").arg(directory).output().map_err(|error| {
        Failure::new(what, format!("fusermount3 can not be run: {error}")).next("install the package fuse3")
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else if said.contains("busy") {
        Err(busy(what, directory))
    } else {
        Err(Failure::new(what, said.trim().trim_start_matches("fusermount3: ").to_owned()))
    }
}

fn busy(what: &str, directory: &Path) -> Failure {
    let users = users::of(directory, notes::find_mount(directory));
    if users.is_empty() {
        let why = "it is in use by a program that this user may not see, or by a mount below it";
        return Failure::new(what, why).next("look with `fuser -vm` as root, or use --lazy");
    }
    let them = if users.len() == 1 { "uses" } else { "use" };
    Failure::new(what, format!("{} still {them} it", users.join(", "))).next("end them, or use --lazy")
}

/// Takes away what a killed mount process has left: a directory that answers ENOTCONN.
pub(crate) fn clear_dead(directory: &Path) {
    // Not stat(2): the kernel may still know the attributes for a while.
    if rustix::fs::statvfs(directory).is_err_and(|error| error == Errno::NOTCONN) {
        clear(directory);
    }
}

/// Takes away a mount of ours whose process is known to be gone.
pub(crate) fn clear(directory: &Path) {
    if mounted_at(directory).is_some_and(|mounted| mounted.is_cairn())
        && let Err(failure) = unmount(directory, Manner::Lazy)
    {
        tracing::warn!(%failure, "a dead mount stays");
    }
}

/// Waits until a process has ended; says so when that takes long. False: it still lives.
pub(crate) async fn await_end(pid: u32, limit: Duration, notice: impl FnOnce()) -> bool {
    const POLL: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(5);
    let started = clock::now();
    let mut notice = Some(notice);
    while notes::is_alive(pid) {
        if started.elapsed() >= limit {
            return false;
        }
        if started.elapsed() >= PATIENCE
            && let Some(notice) = notice.take()
        {
            notice();
        }
        clock::sleep(POLL).await;
    }
    true
}

/// Sends a signal to a process; one that is gone is fine.
pub(crate) fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoints_with_blanks_are_found() {
        let line = r"36 35 98:0 / /mnt/a\040b\134c rw,noatime shared:1 - fuse.cairn 127.0.0.1:7070/ rw";
        let (point, mounted) = parse_mount(line).expect("a mount");
        assert_eq!(point, Path::new(r"/mnt/a b\c"));
        assert!(mounted.is_cairn(), "{mounted:?}");
    }
}
