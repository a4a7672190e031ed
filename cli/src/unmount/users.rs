//! Which programs use a mounted directory, for a person who wants to unmount it.
//!
//! Nothing here looks at the directory itself, which may not answer: links and tables in `/proc` are read as text.

#![allow(clippy::disallowed_methods)] // tables of the kernel, no data of the cluster

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// So many are named at most.
const NAMED_MAX: usize = 3;
/// Longest path that a waiting program may have passed to the kernel.
const PATH_MAX: usize = 4096;
/// Where the kernel keeps a thread that waits for the answer to a request of FUSE.
const FUSE_WAITS: [&str; 2] = ["request_wait_answer", "fuse"];

/// Programs that use a directory or something below it, as `name (pid 42)`; at most three. The process that serves
/// the mount, `server`, is none of them.
pub(super) fn of(directory: &Path, server: Option<u32>) -> Vec<String> {
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if Some(pid) == server || pid == std::process::id() {
            continue;
        }
        let process = entry.path();
        let how = if uses(&process, directory) {
            ""
        } else if waits_for(&process, directory) {
            ", waits for it to answer"
        } else {
            continue;
        };
        let name = crate::local::read_text(&process.join("comm")).unwrap_or_default();
        users.push(format!("{} (pid {pid}{how})", name.trim()));
        if users.len() == NAMED_MAX {
            break;
        }
    }
    users
}

/// Whether a process has its directory, its root, its program, an open file or a mapping there.
fn uses(process: &Path, directory: &Path) -> bool {
    let below = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(directory));
    let files = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    ["cwd", "root", "exe"].iter().any(|link| below(&process.join(link)))
        || files().any(|file| below(&file.path()))
        || fs::read(process.join("maps")).is_ok_and(|maps| is_mapped(&maps, directory))
}

/// proc(5): address perms offset dev inode pathname.
fn is_mapped(maps: &[u8], directory: &Path) -> bool {
    maps.split(|&byte| byte == b'\n').any(|line| {
        let path = line.iter().position(|&byte| byte == b'/').map(|at| &line[at..]);
        path.is_some_and(|path| is_below(path, directory))
    })
}

fn is_below(path: &[u8], directory: &Path) -> bool {
    Path::new(std::ffi::OsStr::from_bytes(path)).starts_with(directory)
}

/// Whether a thread of a process waits in a call for a path below the directory, such as an open that is not answered:
/// it has no file yet.
fn waits_for(process: &Path, directory: &Path) -> bool {
    fs::read_dir(process.join("task")).into_iter().flatten().flatten().any(|task| {
        let task = task.path();
        let waits = fs::read_to_string(task.join("wchan"))
            .is_ok_and(|place| FUSE_WAITS.iter().any(|known| place.contains(known)));
        waits && arguments(&task).iter().any(|&address| points_below(process, address, directory))
    })
}

/// The first two arguments of the call that a thread waits in: a path is one of them in every call that takes one.
fn arguments(task: &Path) -> Vec<u64> {
    let text = fs::read_to_string(task.join("syscall")).unwrap_or_default();
    let number = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    text.split(' ').skip(1).take(2).filter_map(number).collect()
}

fn points_below(process: &Path, address: u64, directory: &Path) -> bool {
    let Ok(memory) = fs::File::open(process.join("mem")) else { return false };
    let mut bytes = vec![0; PATH_MAX];
    // A page at most: what comes behind it may not be there.
    let length = PATH_MAX - address as usize % PATH_MAX;
    let Ok(read) = memory.read_at(&mut bytes[..length], address) else { return false };
    let path = bytes[..read].split(|&byte| byte == 0).next().unwrap_or_default();
    is_below(path, directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_below_the_directory_counts_and_one_beside_it_does_not() {
        let maps =
            b"7f00-7f01 r--p 00000000 00:2d 42      /mnt/a b/file\n7f02-7f03 rw-p 00000000 00:00 0 [heap]\n";
        assert!(is_mapped(maps, Path::new("/mnt/a b")));
        assert!(!is_mapped(maps, Path::new("/mnt/a")));
    }

    #[test]
    fn this_process_is_none_of_the_users_but_another_one_in_the_directory_is() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().canonicalize().unwrap();
        let _file = fs::File::create(directory.join("file")).unwrap();
        assert_eq!(of(&directory, None), Vec::<String>::new());
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(&directory).spawn().unwrap();
        let (named, server) = (of(&directory, None), of(&directory, Some(child.id())));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(named, [format!("sleep (pid {})", child.id())]);
        assert_eq!(server, Vec::<String>::new(), "the one that serves the mount is not named");
    }
}
