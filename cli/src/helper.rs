//! `cairn` as mount(8) calls it: for a line of fstab of the type `fuse.cairn`, and for `mount -o remount,ro`.
//!
//! mount(8) runs `mount.fuse.cairn SOURCE DIR -o OPTIONS` where that exists (a link to `cairn`), else `mount.fuse`, which
//! runs `cairn SOURCE DIR -o OPTIONS`. The source is `HOST:PORT/`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use crate::failure::{Context, Failure};

/// The name by which mount(8) finds this program.
const NAME: &str = "mount.fuse.cairn";
/// Options that say what the mount does anyway, or that are for mount(8) itself.
const ACCEPTED: [&str; 21] = [
    "",
    "rw",
    "auto",
    "noauto",
    "defaults",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "exec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "relatime",
    "default_permissions",
    "async",
    "dirsync",
];

/// What mount(8) asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// What `cairn` would be called with by a person.
    Mount(Vec<OsString>),
    /// Changes whether a mounted directory can be written.
    Remount { directory: PathBuf, read_only: bool },
}

/// Reads a command line of mount(8); `None`: it is none.
pub(crate) fn read(line: &[OsString]) -> Option<Result<Request, Failure>> {
    let (program, rest) = line.split_first()?;
    let (source, rest) = rest.split_first()?;
    let (directory, rest) = rest.split_first()?;
    let called = Path::new(program).file_name() == Some(OsStr::new(NAME));
    let address = source.to_str().and_then(|source| source.strip_suffix('/'))?;
    let is_source = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !is_source && !called {
        return None;
    }
    Some(request(address, Path::new(directory), rest))
}

fn request(address: &str, directory: &Path, rest: &[OsString]) -> Result<Request, Failure> {
    let mut line: Vec<OsString> = ["cairn".into(), "mount".into(), directory.into()].to_vec();
    line.extend(["--coordinator".into(), address.into()]);
    let (mut read_only, mut remount) = (false, false);
    for option in options(rest) {
        match option.as_str() {
            "ro" => read_only = true,
            "remount" => remount = true,
            "allow_other" => line.push("--allow-other".into()),
            "nonempty" => line.push("--nonempty".into()),
            other if ACCEPTED.contains(&other) => {}
            // Of the kernel, as it shows them in /proc/mounts; and comments for others.
            other if other.starts_with("user_id=") || other.starts_with("group_id=") => {}
            other if other.starts_with("x-") || other.starts_with("comment=") => {}
            other => {
                let what = format!("mount {}: option {other}", directory.display());
                return Err(Failure::usage(what, "it is not known here").next(
                    "known are ro, rw, remount, allow_other, nonempty; all else is a setting of [mount]",
                ));
            }
        }
    }
    if remount {
        return Ok(Request::Remount { directory: directory.to_owned(), read_only });
    }
    if read_only {
        line.push("--read-only".into());
    }
    Ok(Request::Mount(line))
}

/// The words behind each `-o`; of two that contradict the last counts.
fn options(rest: &[OsString]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        if word == "-o" {
            let text = rest.next().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
            found.extend(text.split(',').map(str::to_owned));
        }
    }
    let last = found.iter().rposition(|option| option == "ro" || option == "rw");
    let keep = |(index, option): (usize, &String)| {
        ((option != "ro" && option != "rw") || Some(index) == last).then(|| option.clone())
    };
    found.iter().enumerate().filter_map(keep).collect()
}

/// Makes a mounted directory read-only or writable; what else it is stays.
pub(crate) fn remount(directory: &Path, read_only: bool) -> Result<(), Failure> {
    let what = format!("remount {}", directory.display());
    if !crate::unmount::mounted_at(directory).is_some_and(|mounted| mounted.is_cairn()) {
        return Err(Failure::new(what, "no cluster is mounted there"));
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RELATIME;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount_remount(directory, flags, c"").doing(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn lines_of_mount_are_told_from_those_of_a_person() {
        assert_eq!(read(&line(&["cairn", "ls", "/"])), None);
        assert_eq!(read(&line(&["cairn", "get", "/a/", "b"])), None);
        let asked = read(&line(&["cairn", "storage1:7070/", "/mnt", "-o", "ro,allow_other,noauto"]));
        let expected = line(&[
            "cairn",
            "mount",
            "/mnt",
            "--coordinator",
            "storage1:7070",
            "--allow-other",
            "--read-only",
        ]);
        assert_eq!(asked, Some(Ok(Request::Mount(expected))));
        let shown =
            "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,ro";
        let asked = read(&line(&["mount.fuse.cairn", "storage1:7070/", "/mnt", "-o", shown]));
        assert_eq!(asked, Some(Ok(Request::Remount { directory: "/mnt".into(), read_only: true })));
        let asked = read(&line(&["cairn", "storage1:7070/", "/mnt", "-o", "atime=never"]));
        assert!(asked.unwrap().unwrap_err().to_string().contains("option atime=never"));
    }
}
