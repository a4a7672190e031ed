//! What is open: one enum variant for each kind of handle.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::InodeId;

use super::page_cache::Paging;
use super::pages::DirHandle;
use super::{Result, VfsError};
use crate::{FileContent, OpenGuard, Told};

/// One open of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

impl fmt::Display for HandleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an open file can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    /// Writing, and reading: the kernel may read a page before it writes a part of it, also through a
    /// handle that was opened for writing alone.
    Write,
    /// Every write goes to the end.
    Append,
}

impl Mode {
    pub(super) fn writes(self) -> bool {
        self != Self::Read
    }
}

/// An open file. Dropping it ends the open at the coordinator.
pub(super) struct FileHandle {
    pub(super) inode: InodeId,
    pub(super) content: Arc<FileContent>,
    pub(super) mode: Mode,
    /// O_SYNC or O_DSYNC: a write returns when it is durable.
    pub(super) sync: bool,
    pub(super) paging: Paging,
    /// Which errors of the background it was told of.
    pub(super) told: Told,
    pub(super) guard: OpenGuard,
}

pub(super) enum Handle {
    File(FileHandle),
    Directory(Arc<DirHandle>),
}

#[derive(Default)]
pub(super) struct HandleTable {
    next: AtomicU64,
    handles: Mutex<HashMap<HandleId, Arc<Handle>>>,
}

impl HandleTable {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<HandleId, Arc<Handle>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, handle: Handle) -> HandleId {
        let id = HandleId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.lock().insert(id, Arc::new(handle));
        id
    }

    pub(super) fn remove(&self, id: HandleId) -> Option<Arc<Handle>> {
        self.lock().remove(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn get(&self, id: HandleId) -> Option<Arc<Handle>> {
        self.lock().get(&id).cloned()
    }

    /// Runs `f` on an open file.
    pub(super) fn file(&self, id: HandleId, operation: &'static str) -> Result<FileRef> {
        match self.get(id) {
            Some(handle) if matches!(*handle, Handle::File(_)) => Ok(FileRef(handle)),
            _ => Err(VfsError::Handle { handle: id, operation }),
        }
    }

    /// All open directories.
    pub(super) fn directories(&self) -> Vec<Arc<DirHandle>> {
        let directory = |handle: &Arc<Handle>| match &**handle {
            Handle::Directory(directory) => Some(Arc::clone(directory)),
            Handle::File(_) => None,
        };
        self.lock().values().filter_map(directory).collect()
    }

    pub(super) fn directory(&self, id: HandleId) -> Result<Arc<DirHandle>> {
        match self.get(id).as_deref() {
            Some(Handle::Directory(directory)) => Ok(Arc::clone(directory)),
            _ => Err(VfsError::Handle { handle: id, operation: "be listed" }),
        }
    }
}

/// A handle that is known to be a file's.
pub(super) struct FileRef(Arc<Handle>);

impl std::ops::Deref for FileRef {
    type Target = FileHandle;

    fn deref(&self) -> &FileHandle {
        match &*self.0 {
            Handle::File(file) => file,
            Handle::Directory(_) => unreachable!("a FileRef is made from files only"),
        }
    }
}
