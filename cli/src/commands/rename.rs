//! `cairn mv` and `cairn cp`: both stay inside the cluster, and no byte moves.

use cairn_client::{Attr, ClientError, FileContent, Kind};
use cairn_proto::{ErrorKind, FileName, InodeId};
use futures::StreamExt;

use super::{Tool, close};
use crate::args::{CpArgs, MvArgs, RemotePath};
use crate::failure::{Context, Exit, Failure};
use crate::remote::{self, Remote};

/// Files that are copied at once.
const COPIES_AT_ONCE: usize = 8;

/// Where a source goes: below the destination when that is a directory, else to its name.
async fn target(
    remote: &Remote,
    source: &RemotePath,
    destination: &RemotePath,
    sources: usize,
) -> Result<RemotePath, Failure> {
    match remote.find(destination).await? {
        Some(attr) if attr.kind == Kind::Directory => match source.name() {
            Some(name) => Ok(destination.join(name)),
            None => Err(Failure::new(source, "the root directory can not go anywhere")),
        },
        Some(_) if sources > 1 => Err(Failure::usage(destination, "not a directory")
            .next("with several sources the destination must be one")),
        None if sources > 1 => Err(Failure::usage(destination, "no such directory")
            .next(format!("make it with `cairn mkdir {destination}`"))),
        Some(_) | None => Ok(destination.clone()),
    }
}

pub(super) async fn mv(tool: &Tool, args: &MvArgs) -> Result<Exit, Failure> {
    let (client, shutdown) = tool.client().await?;
    let remote = Remote::new(&client);
    let mut exit = Exit::Done;
    for source in &args.sources {
        let moved = async {
            let to = target(&remote, source, &args.destination, args.sources.len()).await?;
            let (from_parent, from_name) = remote.parent(source).await?;
            let (to_parent, to_name) = remote.parent(&to).await?;
            let op =
                remote::rename((from_parent.inode, &from_name), (to_parent.inode, &to_name), args.no_clobber);
            match remote.apply(op).await {
                Err(error) if error.kind() == ErrorKind::InvalidArgument && source.contains(&to) => {
                    Err(Failure::new(source, format!("it can not move into itself ({to})")))
                }
                result => result.doing(format!("mv {source} {to}")).map(drop),
            }
        };
        if let Err(failure) = moved.await {
            tool.output.complain(&failure);
            exit = failure.exit;
        }
    }
    close(&client, &shutdown).await?;
    Ok(exit)
}

pub(super) async fn cp(tool: &Tool, args: &CpArgs) -> Result<Exit, Failure> {
    let (client, shutdown) = tool.client().await?;
    let copy = Copy { remote: Remote::new(&client), args };
    let mut exit = Exit::Done;
    for source in &args.sources {
        if let Err(failure) = copy.source(source).await {
            tool.output.complain(&failure);
            exit = failure.exit;
        }
    }
    close(&client, &shutdown).await?;
    Ok(exit)
}

struct Copy<'a> {
    remote: Remote,
    args: &'a CpArgs,
}

/// A directory and the place of its copy.
struct Pair {
    from: RemotePath,
    to: RemotePath,
    source: Attr,
    copy: InodeId,
}

impl Copy<'_> {
    async fn source(&self, source: &RemotePath) -> Result<(), Failure> {
        let attr = if self.args.recursive {
            self.remote.lstat(source).await?
        } else {
            self.remote.stat(source).await?
        };
        let to = target(&self.remote, source, &self.args.destination, self.args.sources.len()).await?;
        if source == &to {
            return Err(Failure::new(source, "source and destination are the same"));
        }
        let (parent, name) = self.remote.parent(&to).await?;
        if attr.kind != Kind::Directory {
            return self.entry(parent.inode, &name, &attr).await.doing(format!("cp {source} {to}"));
        }
        if !self.args.recursive {
            return Err(Failure::new(source, "it is a directory").next("copy it with all in it by -r"));
        }
        if source.contains(&to) {
            return Err(Failure::new(source, format!("it can not be copied into itself ({to})")));
        }
        let copy = self.directory(parent.inode, &name, &attr).await.doing(&to)?;
        self.tree(Pair { from: source.clone(), to, source: attr, copy }).await
    }

    async fn tree(&self, top: Pair) -> Result<(), Failure> {
        let (mut left, mut done) = (vec![top], Vec::new());
        while let Some(pair) = left.pop() {
            let entries = self.remote.list_inode(&pair.source).await.doing(&pair.from)?;
            let (directories, files): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|(_, attr)| attr.kind == Kind::Directory);
            let mut copies = futures::stream::iter(files)
                .map(|(bytes, attr)| {
                    let pair = &pair;
                    async move {
                        let name = FileName::new(bytes.clone()).map_err(ClientError::from);
                        let copied = match name {
                            Ok(name) => self.entry(pair.copy, &name, &attr).await,
                            Err(error) => Err(error),
                        };
                        copied.doing(format!("cp {} {}", pair.from.join(&bytes), pair.to.join(&bytes)))
                    }
                })
                .buffer_unordered(COPIES_AT_ONCE);
            while let Some(result) = copies.next().await {
                result?;
            }
            drop(copies);
            for (bytes, attr) in directories {
                let to = pair.to.join(&bytes);
                let name = FileName::new(bytes.clone()).map_err(ClientError::from).doing(&to)?;
                let copy = self.directory(pair.copy, &name, &attr).await.doing(&to)?;
                left.push(Pair { from: pair.from.join(&bytes), to, source: attr, copy });
            }
            done.push(pair);
        }
        // Modes and times last: filling a directory changes its time, and its mode may forbid it.
        for pair in done.into_iter().rev() {
            let op = remote::times(pair.copy, Some(pair.source.mode), pair.source.mtime_ns);
            self.remote.apply(op).await.doing(&pair.to)?;
        }
        Ok(())
    }

    async fn directory(
        &self,
        parent: InodeId,
        name: &FileName,
        source: &Attr,
    ) -> Result<InodeId, ClientError> {
        match self.remote.mkdir(parent, name, source.mode | 0o700).await {
            Err(error) if error.kind() == ErrorKind::Exists => {
                let found = self.remote.coordinator().lookup(parent, name, self.remote.caller()).await?;
                if found.kind == Kind::Directory { Ok(found.inode) } else { Err(error) }
            }
            made => made.map(|attr| attr.inode),
        }
    }

    /// Copies what is no directory.
    async fn entry(&self, parent: InodeId, name: &FileName, source: &Attr) -> Result<(), ClientError> {
        let remote = &self.remote;
        let found = remote.coordinator().lookup(parent, name, remote.caller()).await;
        let found = remote::absent(found)?;
        match &found {
            Some(_) if self.args.no_clobber => return Ok(()),
            Some(found) if found.inode == source.inode => return Ok(()),
            Some(found) if found.kind == Kind::Directory => {
                return Err(ClientError::new(ErrorKind::IsDirectory, "a directory of that name is there"));
            }
            _ => {}
        }
        match (&source.symlink_target, source.kind) {
            (Some(target), _) => {
                if found.is_some() {
                    remote.unlink(parent, name).await?;
                }
                remote.symlink(parent, name, target.clone()).await.map(drop)
            }
            (None, Kind::File) => {
                let from = remote.open(source.inode).await?;
                let to = remote.create(parent, name, source.mode & 0o777).await?;
                if from.attr.size > 0 {
                    let size = from.attr.size;
                    // Not as a method: the smart pointer has one of that name.
                    FileContent::clone_from(&to.content, &from.content, 0, 0, size, remote.caller()).await?;
                    // A hole at the end is no extent: the size has to be said.
                    if to.content.size() < from.attr.size {
                        to.content.truncate(from.attr.size, remote.caller(), Default::default()).await?;
                    }
                }
                remote.apply(remote::times(to.attr.inode, Some(source.mode), source.mtime_ns)).await.map(drop)
            }
            (None, _) => {
                Err(ClientError::new(ErrorKind::NotSupported, "pipes, sockets and devices are not copied"))
            }
        }
    }
}
