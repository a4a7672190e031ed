//! Files in the cluster by path, as commands need them: over the path level of the
//! client library: listings with attributes, files by directory and name, permission checks for what the coordinator does not check (content and listings).

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use cairn_client::fs::{Files, Last};
use cairn_client::{Applied, Attr, Caller, Client, ClientError, Coordinator, FileContent, Kind, OpenGuard};
use cairn_proto::posix::{Denied, MAY_READ, MAY_WRITE};
use cairn_proto::v1::mutation::Op;
use cairn_proto::{ErrorKind, FileName, InodeId, v1};

use crate::args::RemotePath;
use crate::failure::{Context, Failure};

/// Reading, as a permission bit.
pub(crate) const READ: u32 = MAY_READ;
/// Writing, as a permission bit.
pub(crate) const WRITE: u32 = MAY_WRITE;

/// A cluster as this person sees it. Clones share the session.
#[derive(Clone)]
pub(crate) struct Remote {
    files: Files,
    caller: Caller,
}

/// An open file in the cluster. It stays readable until dropped, also when it is unlinked.
pub(crate) struct RemoteFile {
    /// Attributes at the time of opening.
    pub attr: Attr,
    /// Its bytes.
    pub content: Arc<FileContent>,
    _guard: OpenGuard,
}

impl Remote {
    /// The cluster of a session, as the user and groups of this process.
    pub(crate) fn new(client: &Arc<Client>) -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        let caller = Caller::user(
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
            groups.into_iter().map(|group| group.as_raw()).collect(),
        );
        Self { files: Files::new(Arc::clone(client), caller.clone()), caller }
    }

    /// The path level of the client library.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Who asks.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Metadata calls.
    pub(crate) fn coordinator(&self) -> &Coordinator {
        self.files.client().coordinator()
    }

    /// Attributes of what a path names, through symlinks.
    pub(crate) async fn stat(&self, path: &RemotePath) -> Result<Attr, Failure> {
        self.files.stat(path.to_path(), Last::Follow).await.doing(path)
    }

    /// Attributes of what a path names; of the symlink itself when it is one.
    pub(crate) async fn lstat(&self, path: &RemotePath) -> Result<Attr, Failure> {
        self.files.stat(path.to_path(), Last::Keep).await.doing(path)
    }

    /// Like [`Self::stat`]; `None` when there is nothing.
    pub(crate) async fn find(&self, path: &RemotePath) -> Result<Option<Attr>, Failure> {
        absent(self.files.stat(path.to_path(), Last::Follow).await).doing(path)
    }

    /// The directory that a path lies in, and its last component.
    pub(crate) async fn parent(&self, path: &RemotePath) -> Result<(Attr, FileName), Failure> {
        let parent = path.parent();
        let Some(name) = path.name() else {
            return Err(Failure::new(path, "this is the root directory"));
        };
        let name = FileName::new(Bytes::copy_from_slice(name)).map_err(ClientError::from).doing(path)?;
        let attr = self.stat(&parent).await?;
        if attr.kind != Kind::Directory {
            return Err(Failure::new(parent, "not a directory"));
        }
        Ok((attr, name))
    }

    /// What a directory contains, in the order of names, with attributes.
    pub(crate) async fn list(&self, path: &RemotePath) -> Result<Vec<(Vec<u8>, Attr)>, Failure> {
        let directory = self.stat(path).await?;
        self.list_inode(&directory).await.doing(path)
    }

    /// What a directory contains, in the order of names, with attributes.
    pub(crate) async fn list_inode(&self, directory: &Attr) -> Result<Vec<(Vec<u8>, Attr)>, ClientError> {
        if directory.kind != Kind::Directory {
            return Err(ClientError::new(ErrorKind::NotDirectory, "not a directory"));
        }
        self.check(directory, READ)?;
        let mut entries = Vec::new();
        let all_of_it = |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        };
        self.files.each_entry(directory.inode, all_of_it).await?;
        let mut all = Vec::with_capacity(entries.len());
        for entry in entries {
            let attr = match entry.attr {
                Some(attr) => attr,
                None => self.coordinator().get_attr(entry.inode).await?,
            };
            all.push((entry.name.as_bytes().to_vec(), attr));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// One change of the namespace.
    pub(crate) async fn apply(&self, op: Op) -> Result<Applied, ClientError> {
        self.coordinator().apply(op, &self.caller).await
    }

    /// Several changes, in order; one that fails stops no other.
    pub(crate) async fn apply_many(
        &self,
        ops: Vec<Op>,
    ) -> Result<Vec<Result<Applied, ClientError>>, ClientError> {
        self.coordinator().apply_many(ops, &self.caller).await
    }

    /// Makes a directory.
    pub(crate) async fn mkdir(
        &self,
        parent: InodeId,
        name: &FileName,
        mode: u32,
    ) -> Result<Attr, ClientError> {
        let create = v1::Create {
            parent: parent.get(),
            name: name.to_bytes(),
            kind: Kind::Directory.to_wire().into(),
            mode,
            exclusive: true,
            ..Default::default()
        };
        self.apply(Op::Create(create)).await?.into_attr()
    }

    /// Makes a symlink.
    pub(crate) async fn symlink(
        &self,
        parent: InodeId,
        name: &FileName,
        target: Bytes,
    ) -> Result<Attr, ClientError> {
        let create = v1::Create {
            parent: parent.get(),
            name: name.to_bytes(),
            kind: Kind::Symlink.to_wire().into(),
            mode: 0o777,
            symlink_target: target,
            exclusive: true,
            ..Default::default()
        };
        self.apply(Op::Create(create)).await?.into_attr()
    }

    /// Removes a name that is no directory.
    pub(crate) async fn unlink(&self, parent: InodeId, name: &FileName) -> Result<(), ClientError> {
        self.apply(unlink(parent, name)).await.map(drop)
    }

    /// Makes an empty file, or empties one that is there, and opens it.
    pub(crate) async fn create(
        &self,
        parent: InodeId,
        name: &FileName,
        mode: u32,
    ) -> Result<RemoteFile, ClientError> {
        let create = v1::Create {
            parent: parent.get(),
            name: name.to_bytes(),
            kind: Kind::File.to_wire().into(),
            mode,
            ..Default::default()
        };
        let (guard, applied) = self.coordinator().create_open(create, &self.caller).await?;
        let attr = applied.into_attr()?;
        if attr.kind != Kind::File {
            return Err(ClientError::new(ErrorKind::Exists, "it exists and is no regular file"));
        }
        self.check(&attr, WRITE)?;
        let content = self.files.client().content(attr.inode, &attr);
        let attr = match attr.size {
            0 => attr,
            _ => content.truncate(0, &self.caller, v1::SetAttr::default()).await?,
        };
        Ok(RemoteFile { attr, content, _guard: guard })
    }

    /// Opens a file for reading.
    pub(crate) async fn open(&self, inode: InodeId) -> Result<RemoteFile, ClientError> {
        let (guard, layout) = self.coordinator().open(inode).await?;
        let attr = layout.attr.clone();
        match attr.kind {
            Kind::File => {}
            Kind::Directory => return Err(ClientError::new(ErrorKind::IsDirectory, "it is a directory")),
            _ => return Err(ClientError::new(ErrorKind::InvalidArgument, "it is no regular file")),
        }
        self.check(&attr, READ)?;
        let content = self.files.client().content(inode, &attr);
        content.refresh(&attr, Some(layout));
        Ok(RemoteFile { attr, content, _guard: guard })
    }

    /// The permission check of path_resolution(7) on one inode.
    fn check(&self, attr: &Attr, wanted: u32) -> Result<(), ClientError> {
        let denied = |denied: Denied| ClientError::new(denied.kind(), denied.to_string());
        self.caller.need(attr, wanted).map_err(denied)
    }
}

/// The removal of a name that is no directory.
pub(crate) fn unlink(parent: InodeId, name: &FileName) -> Op {
    Op::Unlink(v1::Unlink { parent: parent.get(), name: name.to_bytes() })
}

/// A change of name within a directory or to another.
pub(crate) fn rename(from: (InodeId, &FileName), to: (InodeId, &FileName), no_replace: bool) -> Op {
    Op::Rename(v1::Rename {
        parent: from.0.get(),
        name: from.1.to_bytes(),
        new_parent: to.0.get(),
        new_name: to.1.to_bytes(),
        no_replace,
        exchange: false,
    })
}

/// A time of change (and mode) for an inode.
pub(crate) fn times(inode: InodeId, mode: Option<u32>, mtime_ns: i64) -> Op {
    let at = |ns| Some(v1::TimeChange { to: Some(v1::time_change::To::AtNs(ns)) });
    Op::SetAttr(v1::SetAttr { inode: inode.get(), mode, mtime: at(mtime_ns), ..Default::default() })
}

/// `None` for what is not there.
pub(crate) fn absent<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a new directory or file may not be given (umask(2)).
pub(crate) fn umask() -> u32 {
    // There is no call that only reads it.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask.as_raw_mode()
}
