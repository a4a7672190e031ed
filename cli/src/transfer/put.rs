//! The walker of `cairn put`: goes through local trees, makes the directories in the cluster, and
//! queues the files.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cairn_client::{Attr, ClientError, Kind};
use cairn_proto::v1::mutation::Op;
use cairn_proto::{ErrorKind, FileName, InodeId, v1};
use tokio::sync::mpsc;

use super::put_file::{PutFile, PutWork};
use super::{Job, QUEUE, SOURCE_XATTR, workers};
use crate::args::{PutArgs, RemotePath};
use crate::failure::{Context, Failure};
use crate::remote;

/// Entries of a local directory that are looked at in one go.
type Entries = Vec<(Vec<u8>, PathBuf, Metadata)>;

pub(super) async fn run(job: &Job, args: &PutArgs) -> Result<(), Failure> {
    let (queue, files) = mpsc::channel(QUEUE);
    let mut workers = workers(job, files, PutWork);
    let mut walk = Walk { job, queue, directories: Vec::new() };
    for source in &args.sources {
        if let Err(failure) = walk.source(source, args).await {
            job.fail(&failure);
        }
    }
    let Walk { queue, directories, .. } = walk;
    job.progress.all_found();
    drop(queue);
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|error| Failure::new("put", error))?;
    }
    // Modes and times last: filling a directory changes its time, and its mode may forbid it.
    for Made { path, inode, mode, mtime_ns } in directories.into_iter().rev() {
        job.remote.apply(remote::times(inode, Some(mode), mtime_ns)).await.doing(path)?;
    }
    Ok(())
}

/// A directory whose mode and time are set at the end.
struct Made {
    path: RemotePath,
    inode: InodeId,
    mode: u32,
    mtime_ns: i64,
}

struct Walk<'a> {
    job: &'a Job,
    queue: mpsc::Sender<PutFile>,
    directories: Vec<Made>,
}

/// Where a source goes.
struct Place {
    path: RemotePath,
    parent: InodeId,
    name: FileName,
    found: Option<Attr>,
    is_new: bool,
}

impl Walk<'_> {
    async fn source(&mut self, source: &Path, args: &PutArgs) -> Result<(), Failure> {
        let what = format!("put {}", source.display());
        // Through a symlink that is named itself, as cp does without -r.
        let meta = if args.options.recursive { fs::symlink_metadata(source) } else { fs::metadata(source) };
        let meta = meta.doing(&what)?;
        let place = self.place(source, &meta, args).await?;
        if !meta.is_dir() {
            if args.destination.is_directory && place.is_new {
                return Err(Failure::new(&args.destination, "no such directory")
                    .next(format!("make it with `cairn mkdir -p {}`", args.destination)));
            }
            return self.file(place.path, place.parent, place.name, place.found, source, &meta).await;
        }
        if !args.options.recursive {
            return Err(Failure::new(what, "it is a directory").next("copy it with all in it by -r"));
        }
        let mark = place.is_new.then(|| source_mark(source));
        let top = self.directory(&place, &meta, mark).await.doing(&place.path)?;
        self.tree(source.to_owned(), place.path, top).await
    }

    /// Below the destination when that is a directory, else at its name.
    async fn place(&self, source: &Path, meta: &Metadata, args: &PutArgs) -> Result<Place, Failure> {
        let remote = &self.job.remote;
        let destination = &args.destination;
        let found = remote.find(destination).await?;
        let mut path = destination.clone();
        let mut is_new = found.is_none();
        match found {
            Some(attr) if attr.kind == Kind::Directory => {
                is_new = meta.is_dir() && args.sources.len() == 1 && self.is_copy_of(&attr, source).await?;
                if !is_new {
                    let absolute = source.canonicalize().doing(format!("put {}", source.display()))?;
                    let name = source.file_name().or(absolute.file_name());
                    let name = name
                        .ok_or_else(|| Failure::new(source.display(), "it has no name to copy it under"))?;
                    path = destination.join(name.as_bytes());
                }
            }
            Some(_) if args.sources.len() > 1 || meta.is_dir() => {
                return Err(Failure::usage(destination, "it exists and is no directory")
                    .next("name a directory, or a name that is not taken"));
            }
            None if args.sources.len() > 1 => {
                return Err(Failure::usage(destination, "no such directory")
                    .next(format!("make it with `cairn mkdir -p {destination}`")));
            }
            Some(_) | None => {}
        }
        if path.name().is_none() {
            return Err(Failure::usage(destination, "the root directory can not be replaced"));
        }
        let (parent, name) = remote.parent(&path).await?;
        let found = remote.coordinator().lookup(parent.inode, &name, remote.caller()).await;
        let found = remote::absent(found).doing(&path)?;
        Ok(Place { path, parent: parent.inode, name, found, is_new })
    }

    /// Whether a directory was made as a copy of this source.
    async fn is_copy_of(&self, directory: &Attr, source: &Path) -> Result<bool, Failure> {
        if !directory.has_xattrs {
            return Ok(false);
        }
        let xattrs = self.job.remote.coordinator().xattrs(directory.inode).await.doing("put")?;
        let mark = source_mark(source);
        Ok(xattrs.iter().any(|(name, value)| name.as_ref() == SOURCE_XATTR.as_bytes() && *value == mark))
    }

    async fn tree(&mut self, source: PathBuf, path: RemotePath, top: Attr) -> Result<(), Failure> {
        let mut left = vec![(source, path, top)];
        while let Some((source, path, directory)) = left.pop() {
            let (entries, mut there) = match self.list(&source, &directory).await {
                Ok(listed) => listed,
                Err(failure) => {
                    self.job.fail(&failure);
                    continue;
                }
            };
            for (bytes, local, meta) in entries {
                let path = path.join(&bytes);
                let found = there.remove(&bytes);
                match self.entry(&directory, &path, bytes, found, &local, &meta).await {
                    Ok(Some(below)) => left.push((local, path, below)),
                    Ok(None) => {}
                    Err(failure) => self.job.fail(&failure),
                }
            }
        }
        Ok(())
    }

    /// What is in a directory here, and what is in its copy there.
    async fn list(&self, source: &Path, copy: &Attr) -> Result<(Entries, HashMap<Vec<u8>, Attr>), Failure> {
        let here = source.to_owned();
        let what = format!("read {}", source.display());
        let entries = self.job.pool.run(move || read_directory(&here)).await.doing(&what)?.doing(&what)?;
        let there = self.job.remote.list_inode(copy).await.doing(&what)?;
        Ok((entries, there.into_iter().collect()))
    }

    /// One entry of a directory; gives the copy of one that is a directory itself.
    async fn entry(
        &mut self,
        parent: &Attr,
        path: &RemotePath,
        name: Vec<u8>,
        found: Option<Attr>,
        local: &Path,
        meta: &Metadata,
    ) -> Result<Option<Attr>, Failure> {
        let name = FileName::new(name).map_err(ClientError::from).doing(path)?;
        if !meta.is_dir() {
            self.file(path.clone(), parent.inode, name, found, local, meta).await?;
            return Ok(None);
        }
        let place = Place { path: path.clone(), parent: parent.inode, name, found, is_new: false };
        self.directory(&place, meta, None).await.doing(path).map(Some)
    }

    async fn directory(
        &mut self,
        place: &Place,
        meta: &Metadata,
        mark: Option<Bytes>,
    ) -> Result<Attr, ClientError> {
        let remote = &self.job.remote;
        let attr = match &place.found {
            Some(found) if found.kind == Kind::Directory => found.clone(),
            Some(_) => {
                return Err(ClientError::new(ErrorKind::NotDirectory, "it exists and is no directory"));
            }
            None => remote.mkdir(place.parent, &place.name, meta.mode() & 0o7777 | 0o700).await?,
        };
        if let Some(value) = mark {
            let name = Bytes::from_static(SOURCE_XATTR.as_bytes());
            let inode = attr.inode.get();
            remote.apply(Op::SetXattr(v1::SetXattr { inode, name, value, ..Default::default() })).await?;
        }
        self.directories.push(Made {
            path: place.path.clone(),
            inode: attr.inode,
            mode: meta.mode() & 0o7777,
            mtime_ns: mtime_ns(meta),
        });
        Ok(attr)
    }

    async fn file(
        &mut self,
        path: RemotePath,
        parent: InodeId,
        name: FileName,
        found: Option<Attr>,
        local: &Path,
        meta: &Metadata,
    ) -> Result<(), Failure> {
        if !meta.is_file() && !meta.is_symlink() {
            self.job.progress.suspend(|| {
                self.job.output.note(format!(
                    "{} is left out: pipes, sockets and devices are not copied",
                    local.display()
                ))
            });
            return Ok(());
        }
        let size = if meta.is_file() { meta.len() } else { 0 };
        self.job.progress.found(size);
        let file = PutFile {
            local: local.to_owned(),
            path,
            parent,
            name,
            found,
            is_symlink: meta.is_symlink(),
            size,
            mode: meta.mode() & 0o7777,
            mtime_ns: mtime_ns(meta),
        };
        self.queue.send(file).await.map_err(|_| Failure::new("put", "all workers have ended"))
    }
}

/// What tells one source of copies from another: machine and path.
fn source_mark(source: &Path) -> Bytes {
    let path = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let mut mark = crate::commands::host().into_bytes();
    mark.push(b':');
    mark.extend_from_slice(path.as_os_str().as_bytes());
    mark.into()
}

fn read_directory(path: &Path) -> io::Result<Entries> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(meta) => entries.push((entry.file_name().as_bytes().to_vec(), entry.path(), meta)),
            // Gone in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

/// The time of the last change of a local file.
pub(super) fn mtime_ns(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}
