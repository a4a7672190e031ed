//! A disk in memory, without faults of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_runtime::disk::{Disk, DiskFile, Space};

/// Room on the disk, bytes.
const CAPACITY: u64 = 64 << 20;

type Content = Arc<Mutex<Vec<u8>>>;

/// Files by path; clones share them.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<BTreeMap<PathBuf, Content>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryDisk {
    /// A disk of its own with the same files.
    pub fn copy(&self) -> Self {
        let files = lock(&self.0);
        let copied =
            files.iter().map(|(path, content)| (path.clone(), Arc::new(Mutex::new(lock(content).clone()))));
        Self(Arc::new(Mutex::new(copied.collect())))
    }

    pub fn replace(&self, path: &Path, bytes: Vec<u8>) {
        self.change(path, |content| *content = bytes);
    }

    pub fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        match self.find(path) {
            Ok(content) => change(&mut lock(&content)),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Content> {
        lock(&self.0).get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.0);
        if files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Content::default();
        files.insert(path.to_owned(), Arc::clone(&content));
        Ok(Arc::new(MemoryFile(content)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(MemoryFile(self.find(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let content = self.find(from)?;
        let mut files = lock(&self.0);
        files.remove(from);
        files.insert(to.to_owned(), content);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        lock(&self.0).remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let files = lock(&self.0);
        let below = files.keys().filter_map(|file| file.strip_prefix(path).ok());
        Ok(below.filter_map(|rest| Some(rest.components().next()?.as_os_str().to_owned())).collect())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { capacity: CAPACITY, available: CAPACITY / 2 })
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

struct MemoryFile(Content);

fn range(offset: u64, len: u64) -> io::Result<std::ops::Range<usize>> {
    let end = offset.checked_add(len).filter(|&end| end <= CAPACITY).ok_or(io::ErrorKind::StorageFull)?;
    let index = |at| usize::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::StorageFull));
    Ok(index(offset)?..index(end)?)
}

impl DiskFile for MemoryFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let range = range(offset, data.len() as u64)?;
        let mut bytes = lock(&self.0);
        if bytes.len() < range.end {
            bytes.resize(range.end, 0);
        }
        bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = lock(&self.0);
        let found = range(offset, buffer.len() as u64).ok().and_then(|range| bytes.get(range));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut bytes = lock(&self.0);
        let range = range(offset, length)?;
        let end = range.end.min(bytes.len());
        if range.start < end {
            bytes[range.start..end].fill(0);
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = range(offset, length)?.end;
        let mut bytes = lock(&self.0);
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let end = range(0, length)?.end;
        lock(&self.0).resize(end, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn drop_cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
