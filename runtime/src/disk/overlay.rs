//! A disk that is only read: what is written stays in memory and is gone with the value. For tools that
//! have to look at a service's files with the service's own code, which repairs what it finds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Space};

/// What was changed of the disk below.
#[derive(Default)]
struct Changes {
    /// Files that were made, opened or moved here; `None`: removed.
    files: BTreeMap<PathBuf, Option<Arc<OverlayFile>>>,
}

/// A disk over another one that is only read.
pub struct OverlayDisk {
    below: Arc<dyn Disk>,
    changes: Mutex<Changes>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OverlayDisk {
    /// Nothing of `below` is ever changed.
    pub fn new(below: Arc<dyn Disk>) -> Self {
        Self { below, changes: Mutex::default() }
    }

    fn file(&self, path: &Path) -> io::Result<Arc<OverlayFile>> {
        let mut changes = locked(&self.changes);
        match changes.files.get(path) {
            Some(Some(file)) => return Ok(Arc::clone(file)),
            Some(None) => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        let below = self.below.open(path)?;
        let length = below.len()?;
        let content = Content { below: Some(below), below_length: length, length, patches: Vec::new() };
        let file = Arc::new(OverlayFile(Mutex::new(content)));
        changes.files.insert(path.to_owned(), Some(Arc::clone(&file)));
        Ok(file)
    }
}

impl Disk for OverlayDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let exists = self.file(path).is_ok();
        if exists {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(OverlayFile(Mutex::default()));
        locked(&self.changes).files.insert(path.to_owned(), Some(Arc::clone(&file)));
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.file(from)?;
        let mut changes = locked(&self.changes);
        changes.files.insert(from.to_owned(), None);
        changes.files.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        locked(&self.changes).files.insert(path.to_owned(), None);
        Ok(())
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = match self.below.list(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed?,
        };
        let changes = locked(&self.changes);
        for (file, state) in &changes.files {
            let (true, Some(name)) = (file.parent() == Some(path), file.file_name()) else { continue };
            names.retain(|known| known != name);
            if state.is_some() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn space(&self) -> io::Result<Space> {
        self.below.space()
    }

    fn describe(&self) -> String {
        self.below.describe()
    }
}

/// A run that was written, or given back (`None`), over what lies below.
struct Patch {
    offset: u64,
    length: u64,
    data: Option<Vec<u8>>,
}

#[derive(Default)]
struct Content {
    below: Option<Arc<dyn DiskFile>>,
    /// Bytes of the file below that still show.
    below_length: u64,
    length: u64,
    /// In the order in which they were made.
    patches: Vec<Patch>,
}

struct OverlayFile(Mutex<Content>);

impl Content {
    fn patch(&mut self, offset: u64, length: u64, data: Option<Vec<u8>>) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
        if data.is_some() {
            self.length = self.length.max(end);
        }
        self.patches.push(Patch { offset, length, data });
        Ok(())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.fill(0);
        let shown = usize::try_from(self.below_length.min(end).saturating_sub(offset)).unwrap_or(0);
        if let (Some(below), Some(part)) = (&self.below, buffer.get_mut(..shown))
            && !part.is_empty()
        {
            below.read_at(part, offset)?;
        }
        for patch in &self.patches {
            let (start, stop) = (patch.offset.max(offset), (patch.offset + patch.length).min(end));
            if start >= stop {
                continue;
            }
            let into = (start - offset) as usize..(stop - offset) as usize;
            let from = (start - patch.offset) as usize..(stop - patch.offset) as usize;
            match (&patch.data, buffer.get_mut(into)) {
                (Some(data), Some(into)) => into.copy_from_slice(data.get(from).unwrap_or_default()),
                (None, Some(into)) => into.fill(0),
                (_, None) => {}
            }
        }
        Ok(())
    }
}

impl DiskFile for OverlayFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        locked(&self.0).patch(offset, data.len() as u64, Some(data.to_vec()))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        locked(&self.0).read(buffer, offset)
    }

    fn try_read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        locked(&self.0).patch(offset, length, None)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
        let mut content = locked(&self.0);
        content.length = content.length.max(end);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut content = locked(&self.0);
        // What is cut off does not show again when the file grows.
        content.below_length = content.below_length.min(length);
        if length < content.length {
            let cut = content.length - length;
            content.patch(length, cut, None)?;
        }
        content.length = length;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.0).length)
    }

    fn drop_cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::RealDisk;
    use super::*;

    fn read(disk: &OverlayDisk, name: &str) -> Vec<u8> {
        let file = disk.open(Path::new(name)).unwrap();
        let mut content = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // looks behind the disk
    fn what_is_changed_shows_here_and_nothing_below() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("d")).unwrap();
        for name in ["d/a", "d/b", "d/c"] {
            std::fs::write(directory.path().join(name), b"0123456789").unwrap();
        }
        let below = Arc::new(RealDisk::open_read_only(directory.path()).unwrap());
        let disk = OverlayDisk::new(below);
        let file = disk.open(Path::new("d/a")).unwrap();
        file.write_at(b"XY", 3).unwrap();
        file.punch(7, 2).unwrap();
        file.write_at(b"end", 11).unwrap();
        assert_eq!(read(&disk, "d/a"), b"012XY56\0\x009\0end");
        file.set_len(4).unwrap();
        file.set_len(6).unwrap();
        assert_eq!(read(&disk, "d/a"), b"012X\0\0");
        assert!(file.read_at(&mut [0; 2], 5).is_err());
        disk.unlink(Path::new("d/b")).unwrap();
        assert!(disk.open(Path::new("d/b")).is_err());
        disk.rename(Path::new("d/c"), Path::new("d/e")).unwrap();
        disk.create_new(Path::new("d/f")).unwrap().write_at(b"new", 0).unwrap();
        assert!(disk.create_new(Path::new("d/e")).is_err());
        let mut names = disk.list(Path::new("d")).unwrap();
        names.sort();
        assert_eq!(names, ["a", "e", "f"]);
        assert_eq!(read(&disk, "d/e"), b"0123456789");
        let mut left: Vec<_> =
            std::fs::read_dir(directory.path().join("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a", "b", "c"]);
        let untouched = std::fs::read(directory.path().join("d/a")).unwrap();
        assert_eq!(untouched, b"0123456789");
    }
}
