//! Where base backups and log files lie: a directory, or the datanodes of the cluster.
//!
//! Files are made once and appended to; nothing in a file changes. An append that returns is durable
//! when it was asked to be. A name that was made is durable as soon as its first synced append is.

pub(crate) mod remote;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_runtime::clock;
use cairn_runtime::disk::{Disk, DiskFile, RealDisk, remove_if_present};
use cairn_runtime::threads::Pool;

use super::error::ArchiveError;
use remote::RemotePlace;

/// A place that does not answer for so long has failed for now.
const PLACE_TIME: Duration = Duration::from_secs(30);
/// Requests to a directory that may wait: one writer, one base, and whoever lists.
const POOL_QUEUE: usize = 16;
/// Bytes of one read or append.
pub(crate) const PIECE: usize = 1 << 20;

/// A file of the place, with its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) length: u64,
}

/// Where files lie.
#[derive(Debug)]
pub(crate) enum Place {
    Directory(DirectoryPlace),
    Remote(RemotePlace),
}

impl Place {
    /// For messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Directory(place) => place.root.display().to_string(),
            Self::Remote(place) => place.describe(),
        }
    }

    pub(crate) async fn list(&self) -> Result<Vec<Listed>, ArchiveError> {
        match self {
            Self::Directory(place) => place.run("list it", |files| files.list()).await,
            Self::Remote(place) => place.list().await,
        }
    }

    /// Appends at `offset`, which is where the file ends; 0 makes the file anew. With `sync`, all of
    /// the file is durable on return. After a failure the file is not to be appended to again: what
    /// became of its pages is unknown.
    pub(crate) async fn append(
        &self,
        name: &str,
        offset: u64,
        data: Bytes,
        sync: bool,
    ) -> Result<(), ArchiveError> {
        match self {
            Self::Directory(place) => {
                let owned = name.to_owned();
                place.run("append", move |files| files.append(&owned, offset, &data, sync)).await
            }
            Self::Remote(place) => place.append(name, offset, data, sync).await,
        }
    }

    /// Up to `length` bytes from `offset`; fewer at the end of the file.
    pub(crate) async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, ArchiveError> {
        match self {
            Self::Directory(place) => {
                let owned = name.to_owned();
                place.run("read", move |files| files.read(&owned, offset, length)).await
            }
            Self::Remote(place) => place.read(name, offset, length).await,
        }
    }

    /// Removes the files of ours of which `unwanted` says so.
    pub(crate) async fn remove(&self, unwanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<(), ArchiveError> {
        match self {
            Self::Directory(place) => {
                let listed = place.run("list it", |files| files.list()).await?;
                let names: Vec<_> =
                    listed.into_iter().map(|file| file.name).filter(|name| unwanted(name)).collect();
                place
                    .run("remove old files", move |files| {
                        names.iter().try_for_each(|name| files.remove(name))
                    })
                    .await
            }
            Self::Remote(place) => place.remove(unwanted).await,
        }
    }
}

/// A directory: another disk, or a network mount.
#[derive(Debug)]
pub(crate) struct DirectoryPlace {
    root: PathBuf,
    pool: Pool,
    files: Arc<std::sync::Mutex<Files>>,
}

impl DirectoryPlace {
    /// Opens it for one coordinator. It must exist: a directory that is made on demand would silently
    /// be one of the local disk when a network mount is missing.
    pub(crate) async fn open(root: &Path) -> Result<Self, ArchiveError> {
        Self::with(root, |root| {
            RealDisk::open_read_only(root)?;
            RealDisk::open(root)
        })
        .await
    }

    /// Opens it for reading alone.
    pub(crate) async fn open_read_only(root: &Path) -> Result<Self, ArchiveError> {
        Self::with(root, RealDisk::open_read_only).await
    }

    async fn with(
        root: &Path,
        open: impl FnOnce(&Path) -> std::io::Result<RealDisk> + Send + 'static,
    ) -> Result<Self, ArchiveError> {
        let shown = root.display().to_string();
        let failed = |error: std::io::Error| ArchiveError::place(&shown, "open it", error);
        let pool = Pool::start("archive", 1, POOL_QUEUE).map_err(&failed)?;
        let owned = root.to_owned();
        let opening = pool.run(move || open(&owned));
        let disk = match clock::timeout(PLACE_TIME, opening).await {
            Ok(Ok(opened)) => opened.map_err(&failed)?,
            Ok(Err(busy)) => return Err(ArchiveError::place(&shown, "open it", busy)),
            Err(_) => return Err(late(&shown, "open it")),
        };
        let files = Files { disk: Arc::new(disk), open: HashMap::new() };
        Ok(Self { root: root.to_owned(), pool, files: Arc::new(std::sync::Mutex::new(files)) })
    }

    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Files) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let shown = self.root.display().to_string();
        let files = Arc::clone(&self.files);
        let job =
            self.pool.run(move || work(&mut files.lock().unwrap_or_else(std::sync::PoisonError::into_inner)));
        match clock::timeout(PLACE_TIME, job).await {
            Ok(Ok(result)) => result.map_err(|error| ArchiveError::place(&shown, what, error)),
            Ok(Err(error)) => Err(ArchiveError::place(&shown, what, error)),
            Err(_) => Err(late(&shown, what)),
        }
    }
}

fn late(place: &str, what: &str) -> ArchiveError {
    ArchiveError::place(place, what, format!("no answer within {PLACE_TIME:?}"))
}

/// Open files of a directory, used by its one thread.
struct Files {
    disk: Arc<dyn Disk>,
    open: HashMap<String, Arc<dyn DiskFile>>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("disk", &self.disk.describe()).finish_non_exhaustive()
    }
}

/// Files kept open: the log that is written, a base that is made, and one that is read.
const OPEN_MAX: usize = 8;

impl Files {
    fn file(&mut self, name: &str) -> std::io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.open.get(name) {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(Path::new(name))?;
        self.keep(name, &file);
        Ok(file)
    }

    fn keep(&mut self, name: &str, file: &Arc<dyn DiskFile>) {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.open.insert(name.to_owned(), Arc::clone(file));
    }

    fn list(&mut self) -> std::io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        for name in self.disk.list(Path::new(""))? {
            let Ok(name) = name.into_string() else { continue };
            if super::file::parse_name(&name).is_some() {
                let length = self.disk.open(Path::new(&name))?.len()?;
                found.push(Listed { name, length });
            }
        }
        Ok(found)
    }

    fn append(&mut self, name: &str, offset: u64, data: &[u8], sync: bool) -> std::io::Result<()> {
        let file = if offset == 0 { self.create(name)? } else { self.file(name)? };
        let written = file.write_at(data, offset).and_then(|()| if sync { file.sync() } else { Ok(()) });
        if written.is_err() {
            self.open.remove(name);
        }
        written
    }

    fn create(&mut self, name: &str) -> std::io::Result<Arc<dyn DiskFile>> {
        // One that is left of a try that failed: nothing in it was ever said to be durable.
        self.remove(name)?;
        let file = self.disk.create_new(Path::new(name))?;
        self.disk.sync_dir(Path::new(""))?;
        self.keep(name, &file);
        Ok(file)
    }

    fn read(&mut self, name: &str, offset: u64, length: usize) -> std::io::Result<Bytes> {
        let file = self.file(name)?;
        let left = file.len()?.saturating_sub(offset);
        let mut buffer = vec![0; length.min(usize::try_from(left).unwrap_or(usize::MAX))];
        file.read_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }

    fn remove(&mut self, name: &str) -> std::io::Result<()> {
        self.open.remove(name);
        remove_if_present(&*self.disk, Path::new(name))
    }
}
