//! The path level: what the command line, gateways and other programs ask.
//!
//! Paths are bytes with `/` between names and start at the root of the file system, with or without
//! a leading `/`. Symlinks, `.` and `..` are followed as path_resolution(7) says; permissions are
//! checked against the [`Caller`] that the view was made for.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::posix::Denied;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{ErrorKind, FileName, InodeId, SymlinkTarget};

use crate::vfs::MAY_READ;
use crate::{Applied, Attr, Caller, Client, ClientError, Coordinator, DirEntry, Kind, Result};

mod resolve;
mod transfer;
mod tree;

pub use transfer::{FileReader, FileWriter, Transferred, WriteOptions};

/// Entries of a directory in one request.
const PAGE: u32 = 4096;
/// Permission bits of symlinks, and of directories before the umask.
const MODE_ALL: u32 = 0o777;

/// What happens to a symlink at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It is followed.
    Follow,
    /// It is what is meant.
    Keep,
}

/// What a recursive removal does with what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoveOptions {
    /// Directories go with all that is in them.
    pub recursive: bool,
    /// A path that does not exist is fine.
    pub force: bool,
}

/// A file system as one user sees it. Cheap to clone.
#[derive(Clone)]
pub struct Files {
    client: Arc<Client>,
    caller: Caller,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Files {
    /// The file system of `client` as `caller` sees it.
    pub fn new(client: Arc<Client>, caller: Caller) -> Self {
        Self { client, caller }
    }

    /// The client below.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    fn coordinator(&self) -> &Coordinator {
        self.client.coordinator()
    }

    /// Attributes of what a path names.
    pub async fn stat(&self, path: impl AsRef<Path>, last: Last) -> Result<Attr> {
        self.resolve(bytes_of(path.as_ref()), last).await
    }

    /// Whether a path names something; a dangling symlink does not.
    pub async fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.stat(path, Last::Follow).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All entries of a directory, with attributes, in the directory's order.
    pub async fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        let attr = self.stat(path, Last::Follow).await?;
        let directory = directory_of(&attr)?;
        self.check(&attr, MAY_READ)?;
        let mut all = Vec::new();
        self.each_entry(directory, |entry| {
            all.push(entry);
            ControlFlow::Continue(())
        })
        .await?;
        Ok(all)
    }

    /// Shows every entry of a directory to `visit` until it breaks; for directories of any size.
    pub async fn each_entry(
        &self,
        directory: InodeId,
        mut visit: impl FnMut(DirEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut after = 0;
        loop {
            let page = self.coordinator().read_dir(directory, after, PAGE, true).await?;
            let (last, end) = (page.last_cookie(), page.end);
            for entry in page.into_entries() {
                if visit(entry).is_break() {
                    return Ok(());
                }
            }
            match last {
                Some(last) if !end => after = last,
                _ => return Ok(()),
            }
        }
    }

    /// The directory that a path names.
    pub async fn directory(&self, path: impl AsRef<Path>) -> Result<InodeId> {
        let attr = self.stat(path, Last::Follow).await?;
        directory_of(&attr)
    }

    /// The coordinator checks what changes names; who reads or writes content is checked here.
    fn check(&self, attr: &Attr, mask: u32) -> Result<()> {
        let denied = |denied: Denied| ClientError::new(denied.kind(), denied.to_string());
        self.caller.need(attr, mask).map_err(denied)
    }

    /// The target of a symlink.
    pub async fn read_link(&self, path: impl AsRef<Path>) -> Result<Bytes> {
        let attr = self.stat(path, Last::Keep).await?;
        attr.symlink_target.ok_or_else(|| ClientError::new(ErrorKind::InvalidArgument, "it is not a symlink"))
    }

    /// Makes a directory; with `parents` also those above it, and one that exists is fine.
    pub async fn make_dir(&self, path: impl AsRef<Path>, mode: u32, parents: bool) -> Result<Attr> {
        let path = bytes_of(path.as_ref());
        match self.make_one_dir(path, mode).await {
            Err(error) if parents && error.kind() == ErrorKind::NotFound => {}
            Err(error) if parents && error.kind() == ErrorKind::Exists => {
                let attr = self.resolve(path, Last::Follow).await?;
                return directory_of(&attr).map(|_| attr).map_err(|_| error);
            }
            done => return done,
        }
        // Something above is missing: from the top down, each of which may be there.
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(at, _)| at);
        for end in ends.filter(|&end| !path[..end].is_empty()) {
            match self.make_one_dir(&path[..end], MODE_ALL & !0o022).await {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => return Err(error),
            }
        }
        match self.make_one_dir(path, mode).await {
            Err(error) if error.kind() == ErrorKind::Exists => self.resolve(path, Last::Follow).await,
            done => done,
        }
    }

    async fn make_one_dir(&self, path: &[u8], mode: u32) -> Result<Attr> {
        let (parent, name) = match self.place(path).await? {
            resolve::Place::Entry { parent, name } => (parent, name),
            resolve::Place::Itself(_) => return Err(exists(path)),
        };
        let kind = Kind::Directory.to_wire().into();
        let create =
            v1::Create { parent: parent.get(), name: name.to_bytes(), kind, mode, ..v1::Create::default() };
        self.apply(Op::Create(create)).await?.into_attr()
    }

    /// Makes a symlink at `path` that points to `target`.
    pub async fn symlink(&self, target: &[u8], path: impl AsRef<Path>) -> Result<Attr> {
        let target = SymlinkTarget::new(Bytes::copy_from_slice(target))?;
        let (parent, name) = self.entry_of(bytes_of(path.as_ref())).await?;
        let create = v1::Create {
            parent: parent.get(),
            name: name.to_bytes(),
            kind: Kind::Symlink.to_wire().into(),
            mode: MODE_ALL,
            symlink_target: target.to_bytes(),
            ..v1::Create::default()
        };
        self.apply(Op::Create(create)).await?.into_attr()
    }

    /// Gives what `existing` names (not following a symlink) the further name `path`.
    pub async fn hard_link(&self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<Attr> {
        let attr = self.stat(existing, Last::Keep).await?;
        let (parent, name) = self.entry_of(bytes_of(path.as_ref())).await?;
        let link = v1::Link { inode: attr.inode.get(), parent: parent.get(), name: name.to_bytes() };
        self.apply(Op::Link(link)).await?.into_attr()
    }

    /// Removes a name; see [`RemoveOptions`]. Gives how many names went.
    pub async fn remove(&self, path: impl AsRef<Path>, options: RemoveOptions) -> Result<u64> {
        let path = bytes_of(path.as_ref());
        match self.remove_path(path, options).await {
            Err(error) if options.force && error.kind() == ErrorKind::NotFound => Ok(0),
            done => done,
        }
    }

    async fn remove_path(&self, path: &[u8], options: RemoveOptions) -> Result<u64> {
        let (parent, name) = self.entry_of(path).await?;
        let attr = self.coordinator().lookup(parent, &name, &self.caller).await?;
        let mut removed = 1;
        if attr.kind == Kind::Directory {
            if !options.recursive {
                return Err(ClientError::new(ErrorKind::IsDirectory, "it is a directory"));
            }
            removed += self.empty(attr.inode).await?;
            let rmdir = v1::Rmdir { parent: parent.get(), name: name.to_bytes() };
            self.apply(Op::Rmdir(rmdir)).await?;
        } else {
            self.apply(unlink_of(parent, &name)).await?;
        }
        Ok(removed)
    }

    /// Removes an empty directory.
    pub async fn remove_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.entry_of(bytes_of(path.as_ref())).await?;
        let rmdir = v1::Rmdir { parent: parent.get(), name: name.to_bytes() };
        self.apply(Op::Rmdir(rmdir)).await.map(drop)
    }

    /// Moves `from` to exactly `to`, replacing what may be there unless `no_replace`.
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>, no_replace: bool) -> Result<()> {
        let (parent, name) = self.entry_of(bytes_of(from.as_ref())).await?;
        let (new_parent, new_name) = self.entry_of(bytes_of(to.as_ref())).await?;
        let rename = v1::Rename {
            parent: parent.get(),
            name: name.to_bytes(),
            new_parent: new_parent.get(),
            new_name: new_name.to_bytes(),
            no_replace,
            exchange: false,
        };
        self.apply(Op::Rename(rename)).await.map(drop)
    }

    /// Changes attributes; `change.inode` is filled in.
    pub async fn set_attr(&self, path: impl AsRef<Path>, last: Last, change: v1::SetAttr) -> Result<Attr> {
        let attr = self.stat(path, last).await?;
        self.set_attr_of(&attr, change).await
    }

    /// Changes attributes of an inode; `change.inode` is filled in.
    pub async fn set_attr_of(&self, attr: &Attr, change: v1::SetAttr) -> Result<Attr> {
        let change = v1::SetAttr { inode: attr.inode.get(), ..change };
        match self.client.existing_content(attr.inode) {
            Some(content) => match change.size {
                Some(size) => content.truncate(size, &self.caller, change).await,
                None => content.set_attr(&self.caller, change).await,
            },
            None => self.apply(Op::SetAttr(change)).await?.into_attr(),
        }
    }

    /// The directory and name that a path ends in; one that ends in the root or a dot has none.
    async fn entry_of(&self, path: &[u8]) -> Result<(InodeId, FileName)> {
        match self.place(path).await? {
            resolve::Place::Entry { parent, name } => Ok((parent, name)),
            resolve::Place::Itself(_) => {
                Err(ClientError::new(ErrorKind::Busy, "the path names no entry of a directory"))
            }
        }
    }

    async fn apply(&self, op: Op) -> Result<Applied> {
        self.coordinator().apply(op, &self.caller).await
    }
}

fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn directory_of(attr: &Attr) -> Result<InodeId> {
    match attr.kind {
        Kind::Directory => Ok(attr.inode),
        _ => Err(ClientError::new(ErrorKind::NotDirectory, "it is not a directory")),
    }
}

fn unlink_of(parent: InodeId, name: &FileName) -> Op {
    Op::Unlink(v1::Unlink { parent: parent.get(), name: name.to_bytes() })
}

fn exists(path: &[u8]) -> ClientError {
    ClientError::new(ErrorKind::Exists, format!("{} exists", String::from_utf8_lossy(path)))
}
