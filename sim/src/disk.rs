//! A simulated disk: what a crash leaves of unsynced writes, errors on demand, bits that flip.
//!
//! A file has content as programs see it and, for each 4 KiB page written since the last sync, what
//! the device has. A power cut decides for each such page: the new bytes, the old ones, or a mix of
//! sectors of 512 bytes; and for each unsynced change of a directory whether it happened. A process
//! that dies without a power cut loses nothing; its open files only stop working.

mod file;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_runtime::disk::{Disk, DiskFile, Space};
use rand::Rng;
use rand::rngs::StdRng;

use file::Content;

type FileId = u64;

/// An unsynced change of a directory.
#[derive(Debug, Clone)]
enum Change {
    Add(PathBuf, FileId),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, FileId),
}

/// Errors that the next operations shall give.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Trouble {
    /// Share of reads that fail.
    pub(crate) read: f64,
    /// Share of writes that fail.
    pub(crate) write: f64,
    /// Share of syncs that fail; what was unsynced is then gone.
    pub(crate) sync: f64,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<FileId, Content>,
    names: BTreeMap<PathBuf, FileId>,
    /// Names as the device has them.
    durable_names: BTreeMap<PathBuf, FileId>,
    changes: Vec<Change>,
    next_file: FileId,
    capacity: u64,
    trouble: Trouble,
    /// Raised by each crash: open files of earlier ones do nothing any more.
    generation: u64,
    rng: StdRng,
    /// Errors given.
    errors: u64,
    /// Unsynced pages and names that power cuts took.
    lost: u64,
}

/// The device. It survives its machine; [`SimDisk::mount`] gives what a process sees of it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    name: String,
    state: Arc<Mutex<State>>,
}

/// The device as one life of a process sees it.
struct Mounted {
    disk: SimDisk,
    generation: u64,
}

struct OpenFile {
    mount: Arc<Mounted>,
    file: FileId,
}

impl SimDisk {
    /// An empty device.
    pub(crate) fn new(name: String, capacity: u64, rng: StdRng) -> Self {
        let state = State {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            next_file: 1,
            capacity,
            trouble: Trouble::default(),
            generation: 0,
            rng,
            errors: 0,
            lost: 0,
        };
        Self { name, state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a process that starts.
    pub(crate) fn mount(&self) -> Arc<dyn Disk> {
        Arc::new(Handle(Arc::new(Mounted { disk: self.clone(), generation: self.lock().generation })))
    }

    /// The process has died; with `power_cut` what was not synced may be lost. Returns how much was.
    pub(crate) fn crash(&self, power_cut: bool) -> u64 {
        let mut state = self.lock();
        state.generation += 1;
        state.files.values_mut().for_each(Content::close_all);
        state.forget_unnamed();
        if power_cut { state.cut_power() } else { 0 }
    }

    /// The device is replaced by an empty one, when its machine is off.
    pub(crate) fn wipe(&self) {
        let mut state = self.lock();
        state.generation += 1;
        state.files.clear();
        state.names.clear();
        state.durable_names.clear();
        state.changes.clear();
        state.trouble = Trouble::default();
    }

    /// What goes wrong from here on.
    pub(crate) fn set_trouble(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// Changes the size of the device.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.lock().capacity = capacity;
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Errors that it gave.
    pub(crate) fn errors(&self) -> u64 {
        self.lock().errors
    }

    /// Flips one stored bit somewhere in the files below `directory`. `None`: nothing is stored there.
    pub(crate) fn flip_bit(&self, directory: &str) -> Option<(PathBuf, u64)> {
        let mut state = self.lock();
        let state = &mut *state;
        let below = state.names.iter().filter(|(path, _)| path.starts_with(directory));
        let candidates: Vec<(PathBuf, FileId)> = below.map(|(path, id)| (path.clone(), *id)).collect();
        let filled: Vec<_> = candidates
            .iter()
            .flat_map(|(path, id)| {
                let pages = state.files.get(id).map(Content::filled_pages).unwrap_or_default();
                pages.into_iter().map(move |page| (path, *id, page))
            })
            .collect();
        if filled.is_empty() {
            return None;
        }
        let (path, id, page) = filled[state.rng.random_range(0..filled.len())];
        let (path, at) = (path.clone(), state.rng.random_range(0..file::PAGE as u64));
        let bit = state.rng.random_range(0..8);
        let offset = page * file::PAGE as u64 + at;
        state.files.get_mut(&id)?.flip(offset, bit);
        Some((path, offset))
    }
}

impl State {
    fn used(&self) -> u64 {
        self.files.values().map(Content::space).sum()
    }

    fn fails(&mut self, share: f64) -> io::Result<()> {
        if share > 0.0 && self.rng.random_bool(share) {
            self.errors += 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn room_for(&self, more: u64) -> io::Result<()> {
        match self.used() + more <= self.capacity {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    fn cut_power(&mut self) -> u64 {
        let mut lost = 0;
        for change in std::mem::take(&mut self.changes) {
            if self.rng.random_bool(0.5) {
                apply(&mut self.durable_names, &change);
            } else {
                lost += 1;
            }
        }
        self.names = self.durable_names.clone();
        let kept: std::collections::BTreeSet<FileId> = self.names.values().copied().collect();
        self.files.retain(|id, _| kept.contains(id));
        for content in self.files.values_mut() {
            lost += content.cut_power(&mut self.rng);
        }
        self.lost += lost;
        lost
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    fn sync_names(&mut self, directory: &Path) {
        let (synced, rest) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition(|change| change.path().parent().unwrap_or(Path::new("")) == directory);
        self.changes = rest;
        let synced: Vec<Change> = synced;
        for change in &synced {
            apply(&mut self.durable_names, change);
        }
        self.forget_unnamed();
    }

    /// Drops what no name leads to, neither here nor on the device. Files that are still open are kept by
    /// those who read them only until then, which is all that the store needs.
    fn forget_unnamed(&mut self) {
        let named: std::collections::BTreeSet<FileId> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        let pending = self.changes.iter().filter_map(|change| match change {
            Change::Add(_, id) | Change::Rename(_, _, id) => Some(*id),
            Change::Remove(_) => None,
        });
        let named: std::collections::BTreeSet<FileId> = named.into_iter().chain(pending).collect();
        self.files.retain(|id, content| named.contains(id) || content.is_open());
    }
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => path,
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, FileId>, change: &Change) {
    match change {
        Change::Add(path, id) => drop(names.insert(path.clone(), *id)),
        Change::Remove(path) => drop(names.remove(path)),
        // Of a file, not of a name: that it got its first name may have been lost.
        Change::Rename(from, to, id) => {
            if names.get(from) == Some(id) {
                names.remove(from);
            }
            names.insert(to.clone(), *id);
        }
    }
}

struct Handle(Arc<Mounted>);

impl Mounted {
    /// The state, unless the process that mounted it is dead.
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        match state.generation == self.generation {
            true => Ok(state),
            false => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

impl Disk for Handle {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.state()?;
        let share = state.trouble.write;
        state.fails(share)?;
        if state.names.contains_key(path) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let id = state.next_file;
        state.next_file += 1;
        state.files.insert(id, Content::default());
        state.change(Change::Add(path.to_owned(), id));
        drop(state);
        OpenFile::new(&self.0, id)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let id = *self.0.state()?.names.get(path).ok_or_else(not_found)?;
        OpenFile::new(&self.0, id)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.state()?;
        let id = *state.names.get(from).ok_or_else(not_found)?;
        state.change(Change::Rename(from.to_owned(), to.to_owned(), id));
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.state()?;
        if !state.names.contains_key(path) {
            return Err(not_found());
        }
        state.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    /// Directories cost nothing here and are never lost.
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.0.state().map(drop)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.state()?;
        let share = state.trouble.sync;
        state.fails(share)?;
        state.sync_names(path);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let state = self.0.state()?;
        let mut names: Vec<OsString> = Vec::new();
        for name in state.names.keys().filter_map(|name| name.strip_prefix(path).ok()) {
            let first = name.components().next().map(|part| part.as_os_str().to_owned());
            names.extend(first.filter(|first| names.last() != Some(first)));
        }
        Ok(names)
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.0.state()?;
        Ok(Space { capacity: state.capacity, available: state.capacity.saturating_sub(state.used()) })
    }

    fn describe(&self) -> String {
        self.0.disk.name.clone()
    }
}

impl OpenFile {
    #[allow(clippy::new_ret_no_self)] // only ever used as what the trait wants
    fn new(mount: &Arc<Mounted>, file: FileId) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(content) = mount.state()?.files.get_mut(&file) {
            content.open();
        }
        Ok(Arc::new(Self { mount: Arc::clone(mount), file }))
    }

    fn with<T>(
        &self,
        share: impl FnOnce(&Trouble) -> f64,
        work: impl FnOnce(&mut Content, &mut StdRng) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.mount.state()?;
        let share = share(&state.trouble);
        let failed = state.fails(share);
        let state = &mut *state;
        let content = state.files.get_mut(&self.file).ok_or_else(not_found)?;
        failed?;
        work(content, &mut state.rng)
    }

    /// Makes sure that `grown` more bytes fit.
    fn reserve(&self, end: u64) -> io::Result<()> {
        let state = self.mount.state()?;
        let len = state.files.get(&self.file).map_or(0, Content::len);
        state.room_for(end.saturating_sub(len))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Ok(mut state) = self.mount.state() {
            if let Some(content) = state.files.get_mut(&self.file) {
                content.close();
            }
            state.forget_unnamed();
        }
    }
}

impl DiskFile for OpenFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.reserve(offset + data.len() as u64)?;
        self.with(
            |trouble| trouble.write,
            |content, _| {
                content.write(data, offset);
                Ok(())
            },
        )
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|trouble| trouble.read, |content, _| content.read(buffer, offset))
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        // Half of what is asked is not in memory.
        self.with(
            |_| 0.0,
            |content, rng| match rng.random_bool(0.5) {
                true => content.read(buffer, offset),
                false => Err(io::ErrorKind::WouldBlock.into()),
            },
        )
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.with(
            |trouble| trouble.sync,
            |content, _| {
                content.sync();
                Ok(())
            },
        );
        if synced.is_err()
            && let Ok(mut state) = self.mount.state()
        {
            // The kernel has dropped what it could not write.
            let state = &mut *state;
            if let Some(content) = state.files.get_mut(&self.file) {
                state.lost += content.cut_power(&mut state.rng);
            }
        }
        synced
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.with(
            |trouble| trouble.write,
            |content, _| {
                content.punch(offset, length);
                Ok(())
            },
        )
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.reserve(offset + length)?;
        self.with(
            |trouble| trouble.write,
            |content, _| {
                content.set_len(content.len().max(offset + length));
                Ok(())
            },
        )
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.reserve(length)?;
        self.with(
            |trouble| trouble.write,
            |content, _| {
                content.set_len(length);
                Ok(())
            },
        )
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|_| 0.0, |content, _| Ok(content.len()))
    }

    fn drop_cache(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
