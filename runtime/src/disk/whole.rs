//! Files that may be missing, and small ones that are replaced as a whole.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Disk, DiskFile};

/// Opens a file; `None` when there is none.
pub fn open_if_present(disk: &dyn Disk, path: &Path) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Removes a file; one that is missing is fine.
pub fn remove_if_present(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.unlink(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Puts a file `name` of the top directory in place of the one before, by way of `name.new`: after a crash there
/// is the one or the other. Durable on return.
pub fn replace(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = format!("{name}.new");
    let unfinished = Path::new(&unfinished);
    remove_if_present(disk, unfinished)?;
    let file = disk.create_new(unfinished)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    disk.rename(unfinished, Path::new(name))?;
    disk.sync_dir(Path::new(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_file_is_replaced_whatever_a_crash_left() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        let content = || {
            let file = open_if_present(&disk, Path::new("f")).unwrap()?;
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            Some(bytes)
        };
        assert_eq!(content(), None);
        disk.create_new(Path::new("f.new")).unwrap().write_at(b"unfinished and long", 0).unwrap();
        for text in [&b"one"[..], b"2"] {
            replace(&disk, "f", text).unwrap();
            assert_eq!(content().as_deref(), Some(text));
        }
        assert!(open_if_present(&disk, Path::new("f.new")).unwrap().is_none());
        remove_if_present(&disk, Path::new("f")).unwrap();
        remove_if_present(&disk, Path::new("f")).unwrap();
        assert_eq!(content(), None);
    }
}
