//! The walker of `cairn get`: goes through trees in the cluster, makes the directories here, and
//! queues the files.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cairn_client::{Attr, Kind};
use tokio::sync::mpsc;

use super::get_file::{GetFile, GetWork, set_times};
use super::{Job, QUEUE, SOURCE_XATTR, workers};
use crate::args::{GetArgs, RemotePath};
use crate::failure::{Context, Failure};

pub(super) async fn run(job: &Job, args: &GetArgs) -> Result<(), Failure> {
    let (queue, files) = mpsc::channel(QUEUE);
    let mut workers = workers(job, files, GetWork);
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
        ended.map_err(|error| Failure::new("get", error))?;
    }
    // Modes and times last: filling a directory changes its time, and its mode may forbid it.
    for (path, attr) in directories.into_iter().rev() {
        let what = format!("set mode and times of {}", path.display());
        fs::set_permissions(&path, fs::Permissions::from_mode(attr.mode)).doing(&what)?;
        set_times(&path, &attr).doing(&what)?;
    }
    Ok(())
}

struct Walk<'a> {
    job: &'a Job,
    queue: mpsc::Sender<GetFile>,
    directories: Vec<(PathBuf, Attr)>,
}

impl Walk<'_> {
    async fn source(&mut self, source: &RemotePath, args: &GetArgs) -> Result<(), Failure> {
        let remote = &self.job.remote;
        let attr =
            if args.options.recursive { remote.lstat(source).await? } else { remote.stat(source).await? };
        let (target, is_new) = self.target(source, &attr, args)?;
        if attr.kind != Kind::Directory {
            return self.file(source.clone(), target, attr).await;
        }
        if !args.options.recursive {
            return Err(Failure::new(source, "it is a directory").next("copy it with all in it by -r"));
        }
        self.directory(&target, &attr)?;
        if is_new {
            // A file system without extended attributes only makes resuming less clever.
            let _ = rustix::fs::setxattr(
                &target,
                SOURCE_XATTR,
                source.as_bytes(),
                rustix::fs::XattrFlags::empty(),
            );
        }
        self.tree(source.clone(), target, attr).await
    }

    /// Below the destination when that is a directory, else at its name.
    fn target(&self, source: &RemotePath, attr: &Attr, args: &GetArgs) -> Result<(PathBuf, bool), Failure> {
        let destination = &args.destination;
        let shown = destination.display();
        let slash = destination.as_os_str().as_bytes().ends_with(b"/");
        match fs::metadata(destination) {
            Ok(meta) if meta.is_dir() => {
                let resumes = attr.kind == Kind::Directory && args.sources.len() == 1;
                if resumes && is_copy_of(destination, source) {
                    return Ok((destination.clone(), true));
                }
                match source.name() {
                    Some(name) => Ok((destination.join(OsStr::from_bytes(name)), false)),
                    // The root has no name: what is in it goes into the destination.
                    None => Ok((destination.clone(), false)),
                }
            }
            Ok(_) if args.sources.len() > 1 || attr.kind == Kind::Directory => {
                Err(Failure::usage(shown, "it exists and is no directory").next("name a directory"))
            }
            Err(_) if args.sources.len() > 1 || (slash && attr.kind != Kind::Directory) => {
                Err(Failure::usage(&shown, "no such directory").next(format!("make it: mkdir -p {shown}")))
            }
            Ok(_) => Ok((destination.clone(), true)),
            Err(_) => match destination.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) if !parent.exists() => {
                    let parent = parent.display();
                    let next = format!("make it: mkdir -p {parent}");
                    Err(Failure::usage(&shown, format!("the directory {parent} does not exist")).next(next))
                }
                _ => Ok((destination.clone(), true)),
            },
        }
    }

    async fn tree(&mut self, source: RemotePath, target: PathBuf, top: Attr) -> Result<(), Failure> {
        let mut left = vec![(source, target, top)];
        while let Some((source, target, directory)) = left.pop() {
            let entries = match self.job.remote.list_inode(&directory).await.doing(&source) {
                Ok(entries) => entries,
                Err(failure) => {
                    self.job.fail(&failure);
                    continue;
                }
            };
            for (name, attr) in entries {
                let (path, target) = (source.join(&name), target.join(OsStr::from_bytes(&name)));
                if attr.kind != Kind::Directory {
                    self.file(path, target, attr).await?;
                    continue;
                }
                match self.directory(&target, &attr) {
                    Ok(()) => left.push((path, target, attr)),
                    Err(failure) => self.job.fail(&failure),
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, target: &Path, attr: &Attr) -> Result<(), Failure> {
        match fs::DirBuilder::new().mode(0o700).create(target) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && target.is_dir() => Ok(()),
            made => made.doing(format!("make {}", target.display())),
        }?;
        self.directories.push((target.to_owned(), attr.clone()));
        Ok(())
    }

    async fn file(&mut self, path: RemotePath, target: PathBuf, attr: Attr) -> Result<(), Failure> {
        if !matches!(attr.kind, Kind::File | Kind::Symlink) {
            let note = format!("{path} is left out: pipes, sockets and devices are not copied");
            self.job.progress.suspend(|| self.job.output.note(note));
            return Ok(());
        }
        self.job.progress.found(if attr.kind == Kind::File { attr.size } else { 0 });
        let file = GetFile { path, target, attr };
        self.queue.send(file).await.map_err(|_| Failure::new("get", "all workers have ended"))
    }
}

/// Whether a directory was made as a copy of this source.
fn is_copy_of(directory: &Path, source: &RemotePath) -> bool {
    let mut value = vec![0; source.as_bytes().len() + 1];
    let length = rustix::fs::getxattr(directory, SOURCE_XATTR, &mut value);
    length.is_ok_and(|length| value.get(..length) == Some(source.as_bytes()))
}
