//! The directory that is mounted on: what must be so before, and what is set afterwards.
//!
//! Everything here blocks and is called from threads of its own: asking about a path that is being
//! mounted waits for our own session threads.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cairn_client::ClientError;
use rustix::fd::OwnedFd;
use rustix::fs::{IFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Type of our mounts, as mount(8) shows it.
const KIND: &str = "fuse.cairn";
/// Source of the mounts of earlier versions, whose type was `fuse`.
const OLD_SOURCE: &str = "cairn";

/// Why a directory can not be mounted on, or not be unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No such directory.
    #[error("{0} does not exist; make it first: mkdir -p {0}")]
    Missing(PathBuf),
    /// Something else than a directory.
    #[error("{0} is not a directory; choose an empty directory to mount on")]
    NotDirectory(PathBuf),
    /// It has entries.
    #[error(
        "{0} is not empty; its entries would be hidden: choose another directory, or allow it (nonempty)"
    )]
    NotEmpty(PathBuf),
    /// A live mount is there.
    #[error("{path} is mounted already ({source_name}, type {kind}); unmount it first: {remedy}")]
    AlreadyMounted {
        /// The directory.
        path: PathBuf,
        /// What is mounted there.
        source_name: String,
        /// Its file system type.
        kind: String,
        /// What to type.
        remedy: String,
    },
    /// A dead mount of another program is there.
    #[error("{path} holds the dead mount of another program ({source_name}); remove it first: {remedy}")]
    Dead {
        /// The directory.
        path: PathBuf,
        /// What is mounted there.
        source_name: String,
        /// What to type.
        remedy: String,
    },
    /// The user may not let others in.
    #[error(
        "only root may mount with allow_other, unless /etc/fuse.conf says user_allow_other; \
         mount without it, or add that line"
    )]
    AllowOther,
    /// The user may not let programs gain privileges.
    #[error("only root may mount with suid or dev; mount without them, or as root")]
    Privileged,
    /// The kernel or its helper refuses.
    #[error("{path} can not be mounted: {source}{hint}")]
    Refused {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// The file system did not answer in time.
    #[error("{path} was mounted but did not answer within {seconds} s; is the cluster up? (cairn status)")]
    NotAnswering {
        /// The directory.
        path: PathBuf,
        /// How long it was waited.
        seconds: u64,
    },
    /// It can not be looked at.
    #[error("{path}: {source}")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The end was requested before the mount was usable.
    #[error("the mount was stopped before it was usable")]
    Stopped,
    /// It is still mounted.
    #[error("{path} can not be unmounted: {reason}")]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Data that programs have written is not stored.
    #[error("not everything that was written could be stored: {0}")]
    Flush(#[source] ClientError),
    /// The cluster did not take the data in time.
    #[error("the cluster did not take all buffered data within {0} s; it is lost with this process")]
    FlushTime(u64),
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MountLine {
    point: PathBuf,
    kind: String,
    source: String,
}

impl MountLine {
    fn is_ours(&self) -> bool {
        self.kind == KIND || (self.kind == "fuse" && self.source == OLD_SOURCE)
    }
}

/// Makes sure that `path` can be mounted on; gives its canonical form. A dead mount of ours is removed.
pub(crate) fn prepare(path: &Path, nonempty: bool) -> Result<PathBuf, MountError> {
    let unreadable = |source| MountError::Unreadable { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    if let Err(error) = std::fs::metadata(&absolute)
        && error.raw_os_error() == Some(libc::ENOTCONN)
    {
        remove_dead(&absolute)?;
    }
    let metadata = std::fs::metadata(&absolute).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::Missing(path.to_owned()),
        io::ErrorKind::NotADirectory => MountError::NotDirectory(path.to_owned()),
        _ => unreadable(source),
    })?;
    if !metadata.is_dir() {
        return Err(MountError::NotDirectory(path.to_owned()));
    }
    let canonical = absolute.canonicalize().map_err(unreadable)?;
    if let Some(line) = mounted_at(&canonical) {
        // A mount of another kind, such as a tmpfs made for the purpose, is a directory like any other.
        if line.kind.starts_with("fuse") {
            let remedy = remedy_for(&canonical, &line);
            return Err(MountError::AlreadyMounted {
                path: canonical,
                source_name: line.source,
                kind: line.kind,
                remedy,
            });
        }
    }
    if !nonempty && std::fs::read_dir(&canonical).map_err(unreadable)?.next().is_some() {
        return Err(MountError::NotEmpty(path.to_owned()));
    }
    Ok(canonical)
}

fn remedy_for(path: &Path, line: &MountLine) -> String {
    if line.is_ours() {
        format!("cairn umount {}", path.display())
    } else {
        format!("fusermount3 -u {}", path.display())
    }
}

fn remove_dead(path: &Path) -> Result<(), MountError> {
    let Some(line) = mounted_at(path) else { return Ok(()) };
    if !line.is_ours() {
        let remedy = format!("fusermount3 -u -z {}", path.display());
        return Err(MountError::Dead { path: path.to_owned(), source_name: line.source, remedy });
    }
    tracing::info!(path = %path.display(), "removing the dead mount of an earlier daemon");
    detach(path)
}

/// The topmost mount at exactly `path`.
fn mounted_at(path: &Path) -> Option<MountLine> {
    let text = crate::status::read("/proc/self/mountinfo").ok()?;
    mount_lines(&text).filter(|line| line.point == path).last()
}

/// Whether one of our mounts is at `path`.
pub(crate) fn is_ours(path: &Path) -> bool {
    mounted_at(path).is_some_and(|line| line.is_ours())
}

fn mount_lines(text: &[u8]) -> impl Iterator<Item = MountLine> {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        // 36 35 98:0 /root /point rw,noatime master:1 - type source options
        let mut fields = line.split(|&byte| byte == b' ');
        let point = fields.nth(4)?;
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
        let (kind, source) = (text(rest.next()?), text(rest.next()?));
        Some(MountLine { point: OsString::from_vec(unescape(point)).into(), kind, source })
    })
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(u8::is_ascii_digit));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                plain.push((value & 0xff) as u8);
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

/// The directory below the mount, held so that its protection can be set.
pub(crate) struct Covered(OwnedFd);

impl Covered {
    /// Opens the directory before it is covered. What an earlier protection took from its owner is given
    /// back for the moment: fusermount3 asks for write permission.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        if !rustix::process::geteuid().is_root() {
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode & 0o7777);
            if !mode.contains(Mode::WUSR) {
                let _ = rustix::fs::fchmod(&directory, mode | Mode::WUSR);
            }
        }
        Ok(Self(directory))
    }

    /// Makes the directory unwritable: immutable where the file system and the rights allow that, else
    /// without write permission.
    pub(crate) fn protect(&self) -> io::Result<()> {
        if let Ok(flags) = rustix::fs::ioctl_getflags(&self.0)
            && rustix::fs::ioctl_setflags(&self.0, flags | IFlags::IMMUTABLE).is_ok()
        {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&self.0)?.st_mode & 0o7777);
        Ok(rustix::fs::fchmod(&self.0, mode - (Mode::WUSR | Mode::WGRP | Mode::WOTH))?)
    }
}

/// Asks the mounted directory for its attributes, room and first entries; returns when the answers come.
///
/// The entries are asked for so that the first program does not wait until the code that answers it has been read
/// in: that takes as long as a listing of some thousand names.
pub(crate) fn answers(path: &Path) -> io::Result<()> {
    let root = std::fs::metadata(path)?;
    let room = rustix::fs::statfs(path)?;
    const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
    if root.ino() != 1 || room.f_type != FUSE_SUPER_MAGIC {
        return Err(io::Error::other("another file system answers there"));
    }
    // Whoever mounts may not be allowed to list it.
    let _ = std::fs::read_dir(path).map(|entries| entries.take(1).count());
    Ok(())
}

/// Raises the kernel's read-ahead for the mount; it offers 128 KiB, and lets only root change that.
pub(crate) fn raise_read_ahead(path: &Path, bytes: u64) {
    let result = (|| -> io::Result<()> {
        let device = std::fs::metadata(path)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        let file = rustix::fs::open(setting, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, (bytes / 1024).to_string().as_bytes())?;
        Ok(())
    })();
    if let Err(error) = result {
        tracing::info!(%error, "the kernel's read-ahead stays at its default: sequential reads are slower");
    }
}

/// Unmounts; `false`: programs still use it.
pub(crate) fn try_unmount(path: &Path) -> Result<bool, MountError> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(Errno::INVAL | Errno::NOENT) => Ok(true), // not mounted any more
        Err(Errno::PERM) => match fusermount(path, &["-u"]) {
            Ok(()) => Ok(true),
            Err(reason) if reason.contains("busy") => Ok(false),
            Err(reason) => Err(MountError::Busy { path: path.to_owned(), reason }),
        },
        Err(error) => Err(MountError::Busy { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// Takes the mount from its place at once; it ends when the last program has left it.
pub(crate) fn detach(path: &Path) -> Result<(), MountError> {
    let result = match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) => fusermount(path, &["-u", "-z"]),
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    result.map_err(|reason| MountError::Busy { path: path.to_owned(), reason })
}

fn fusermount(path: &Path, flags: &[&str]) -> Result<(), String> {
    let output = Command::new("fusermount3")
        .args(flags)
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("fusermount3 can not be run ({error}); install the package fuse3"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Puts what `fuser` says about a failed mount into words.
pub(crate) fn explain(path: &Path, source: io::Error) -> MountError {
    let text = source.to_string();
    if text.contains("user_allow_other") {
        return MountError::AllowOther;
    }
    let hint = match source.kind() {
        io::ErrorKind::NotFound if !Path::new("/dev/fuse").exists() => {
            "; the kernel has no FUSE: modprobe fuse, or give the container the device /dev/fuse"
        }
        io::ErrorKind::NotFound => "; fusermount3 is needed to mount as an ordinary user: install fuse3",
        io::ErrorKind::PermissionDenied => "; is /dev/fuse open to this user?",
        _ => "",
    };
    MountError::Refused { path: path.to_owned(), source, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_read_with_blanks_and_optional_fields() {
        let text = b"36 35 0:45 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.cairn storage1:7070/ rw\n\
                     37 35 8:1 / /data rw - ext4 /dev/sda1 rw\n\
                     38 35 0:46 / /old rw - fuse cairn rw\n\
                     39 35 0:47 / /other rw - fuse.sshfs cairn:/ rw\n";
        let lines: Vec<_> = mount_lines(text).collect();
        assert_eq!(lines[0].point, Path::new("/mnt/a b"));
        assert_eq!((lines[0].kind.as_str(), lines[0].source.as_str()), ("fuse.cairn", "storage1:7070/"));
        assert_eq!(lines[1].kind, "ext4");
        assert_eq!(lines.iter().map(MountLine::is_ours).collect::<Vec<_>>(), [true, false, true, false]);
    }

    #[test]
    fn a_place_that_can_not_be_mounted_on_is_named() {
        let place = tempfile::tempdir().unwrap();
        let missing = place.path().join("missing");
        assert!(matches!(prepare(&missing, false), Err(MountError::Missing(path)) if path == missing));
        let file = place.path().join("file");
        rustix::fs::open(&file, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        assert!(matches!(prepare(&file, false), Err(MountError::NotDirectory(_))));
        assert!(matches!(prepare(&file.join("below"), false), Err(MountError::NotDirectory(_))));
        assert!(matches!(prepare(place.path(), false), Err(MountError::NotEmpty(_))));
        assert!(prepare(place.path(), true).is_ok());
    }
}
