//! The inode level: what a kernel asks of a file system, without a kernel.
//!
//! Sits between the mount adapter (which decodes and encodes) and the data path (metadata calls,
//! [`crate::FileContent`]). Everything POSIX about a mount is here and can be tested without one.
//!
//! Each operation that can often be answered from local state has a synchronous `try_` form that
//! never waits: `None` says that the network is needed and the `async` form must be asked. It is
//! meant to be called on the thread that read the request, since every hop to another thread costs
//! a wake-up.
//!
//! What is kept locally and for how long:
//! * attributes, for at most [`ATTRIBUTES_VALID_MAX`] since the request that fetched them was sent;
//!   what is handed out tells how much of that is left, so that two caches in a row add nothing;
//! * extended attributes, as long as the version of their inode is the same;
//! * symlink targets, which never change;
//! * names of large directories, for listings alone, and shown only where the coordinator has just said
//!   that the directory is still the same.
//!
//! Single names are not kept: whether one is there is the coordinator's to say, each time.
//!
//! Of two attributes of one inode the one with the higher version wins, so an answer that was
//! overtaken by a change of this mount is never shown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ErrorKind, FileName, InodeId};
use cairn_runtime::clock::{self, Instant};
use tokio::runtime::Handle as Runtime;

use crate::{Attr, Caller, Client, Coordinator, StatFs};

mod access;
mod directories;
mod error;
mod files;
mod handles;
mod inodes;
mod kept;
mod lately;
mod names;
mod pages;
mod xattrs;

pub(crate) use access::permits;
pub use access::{MAY_EXECUTE, MAY_READ, MAY_WRITE};
pub use directories::{DirEntries, DirEntryView};
pub use error::VfsError;
pub use files::{AllocateMode, AttrChange, OpenFlags, Opened, SeekFrom, Time, WriteOrigin};
pub use handles::HandleId;
pub use names::RenameMode;
pub use pages::Listing;
pub use xattrs::XattrMode;

use handles::HandleTable;
use inodes::InodeTable;
use kept::KeptPages;
use lately::{ClosedLately, Removals};

/// Attributes are never answered from local state for longer than this.
pub const ATTRIBUTES_VALID_MAX: Duration = Duration::from_secs(1);

/// What all operations give.
pub type Result<T> = std::result::Result<T, VfsError>;

/// Attributes and for how long they may be cached; zero: not at all.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As this mount sees the inode, buffered writes included.
    pub attr: Attr,
    /// What is left of the time that they may be shown again without asking.
    pub valid: Duration,
}

/// A mounted file system. Cheap calls on shared state; clone the `Arc` into tasks.
pub struct Vfs {
    client: Arc<Client>,
    inodes: InodeTable,
    handles: HandleTable,
    kept_pages: KeptPages,
    closed_lately: ClosedLately,
    /// Own removals of names that are under way.
    removals: Removals,
    stat_fs: Mutex<Option<(StatFs, Instant)>>,
    valid: Duration,
    runtime: Runtime,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs").field("valid", &self.valid).finish_non_exhaustive()
    }
}

impl Vfs {
    /// A view of `client`'s cluster that keeps attributes for `valid`, cut to
    /// [`ATTRIBUTES_VALID_MAX`]. Call inside a tokio runtime: background work runs there.
    pub fn new(client: Arc<Client>, valid: Duration) -> Arc<Self> {
        let valid = valid.min(ATTRIBUTES_VALID_MAX);
        Arc::new(Self {
            client,
            inodes: InodeTable::new(valid),
            handles: HandleTable::default(),
            kept_pages: KeptPages::default(),
            closed_lately: ClosedLately::default(),
            removals: Removals::default(),
            stat_fs: Mutex::new(None),
            valid,
            runtime: Runtime::current(),
        })
    }

    /// The client below.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// How many files and directories are open.
    pub fn open_handles(&self) -> usize {
        self.handles.len()
    }

    fn coordinator(&self) -> &Coordinator {
        self.client.coordinator()
    }

    /// Finds a name in a directory.
    pub async fn lookup(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<Entry> {
        let asked = clock::now();
        let attr = self.coordinator().lookup(parent, name, caller).await?;
        Ok(self.inodes.adopt(attr, asked))
    }

    /// Finds the directory above a directory; the root is its own.
    pub async fn lookup_parent(&self, directory: InodeId, caller: &Caller) -> Result<Entry> {
        let asked = clock::now();
        let attr = self.coordinator().parent_of(directory, caller).await?;
        Ok(self.inodes.adopt(attr, asked))
    }

    /// The kernel has dropped the inode; what is cached for it goes too.
    pub fn forget(&self, inode: InodeId) {
        self.inodes.forget(inode);
    }

    /// Attributes that are still valid.
    pub fn try_getattr(&self, inode: InodeId) -> Option<Entry> {
        self.inodes.fresh(inode)
    }

    /// Attributes, fetched.
    pub async fn getattr(&self, inode: InodeId) -> Result<Entry> {
        let asked = clock::now();
        let attr = self.coordinator().get_attr(inode).await?;
        Ok(self.inodes.adopt(attr, asked))
    }

    /// Valid attributes, from here or there.
    async fn attributes(&self, inode: InodeId) -> Result<Attr> {
        match self.try_getattr(inode) {
            Some(entry) => Ok(entry.attr),
            None => Ok(self.getattr(inode).await?.attr),
        }
    }

    /// The target of a symlink, when its attributes were ever seen.
    pub fn try_readlink(&self, inode: InodeId) -> Option<Result<Bytes>> {
        self.inodes.last(inode).map(|attr| target_of(&attr))
    }

    /// The target of a symlink.
    pub async fn readlink(&self, inode: InodeId) -> Result<Bytes> {
        let attr = self.attributes(inode).await?;
        target_of(&attr)
    }

    /// Room in the cluster, when it was asked for lately.
    pub fn try_statfs(&self) -> Option<StatFs> {
        let known = self.stat_fs.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(_, at)| at.elapsed() < self.valid).map(|(stat, _)| *stat)
    }

    /// Room in the cluster.
    pub async fn statfs(&self) -> Result<StatFs> {
        let asked = clock::now();
        let stat = self.coordinator().stat_fs().await?;
        *self.stat_fs.lock().unwrap_or_else(PoisonError::into_inner) = Some((stat, asked));
        Ok(stat)
    }

    /// access(2): whether `caller` may do all of `mask` ([`MAY_READ`], [`MAY_WRITE`],
    /// [`MAY_EXECUTE`]; 0: whether it exists).
    pub async fn access(&self, inode: InodeId, mask: u32, caller: &Caller) -> Result<()> {
        let attr = self.attributes(inode).await?;
        access::check(&attr, mask, caller)
    }
}

fn target_of(attr: &Attr) -> Result<Bytes> {
    let refused = || VfsError::refused(ErrorKind::InvalidArgument, "only a symlink has a target");
    attr.symlink_target.clone().ok_or_else(refused)
}
