//! The files of the person at this machine: what `put` reads and `get` writes. Not cluster data.
#![allow(clippy::disallowed_methods)] // the one place of this crate that opens them

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A text file larger than this is no configuration.
const TEXT_SIZE_MAX: u64 = 1 << 20;

/// Reads a small text file.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(TEXT_SIZE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TEXT_SIZE_MAX {
        return Err(io::Error::other("it has more than 1 MiB"));
    }
    Ok(text)
}

/// Writes a small text file; `Exists` when it is there and must not be replaced.
pub(crate) fn write_text(path: &Path, text: &str, replace: bool) -> io::Result<()> {
    if replace {
        return fs::write(path, text);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// Opens a file for reading; a FIFO that got in between does not block.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Opens a file that exists for reading, through symlinks.
pub(crate) fn open_following(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Makes a file for writing and reading back, readable by its owner alone until it is complete.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Name of a user or group id from `/etc/passwd` or `/etc/group`; the number when there is none.
pub(crate) fn account(file: &str, id: u32) -> String {
    let text = read_text(Path::new(file)).unwrap_or_default();
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| id.to_string())
}
