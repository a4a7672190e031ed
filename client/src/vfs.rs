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
//! * what read leases cover, for as long as attributes (`covers.rs`);
//! * names of large directories, for listings alone, and shown only where the coordinator has just said
//!   that the directory is still the same.
//!
//! Names are known in directories whose write lease is held (`leased.rs`), and changed there without asking
//! (`local.rs`), and in those that read leases cover; whether one is there elsewhere is the coordinator's to
//! say, each time.
//!
//! Of two attributes of one inode the one with the higher version wins, so an answer that was
//! overtaken by a change of this mount is never shown.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ErrorKind, FileName, InodeId};
use cairn_runtime::clock::{self, Instant};
use tokio::runtime::Handle as Runtime;

use crate::session::Session;
use crate::{Attr, Caller, Client, ClientError, Coordinator, Kind, StatFs};

mod access;
mod apply;
mod covers;
mod directories;
mod error;
mod files;
mod growth;
mod handles;
mod inodes;
mod kept;
mod lately;
mod leased;
mod local;
mod names;
mod opening;
mod page_cache;
mod pages;
mod parts;
mod privileges;
mod xattrs;

pub use access::{MAY_EXECUTE, MAY_READ, MAY_WRITE};
pub use directories::{DirEntries, DirEntryView};
pub use error::VfsError;
pub use files::{AllocateMode, AttrChange, OpenFlags, Opened, SeekFrom, Time, WriteOrigin};
pub use handles::HandleId;
pub use names::{NewNode, RenameMode};
pub use page_cache::{Done, PageCache};
pub use pages::Listing;
pub use privileges::Writer;
pub use xattrs::{XattrMode, visible_names};

use covers::Covers;
use handles::HandleTable;
use inodes::InodeTable;
use kept::KeptPages;
use lately::{ClosedLately, LookedUpAgain, Removals};
use leased::Leased;
use local::Found;
use parts::Walks;

/// Attributes are never answered from local state for longer than this.
pub const ATTRIBUTES_VALID_MAX: Duration = Duration::from_secs(1);

/// A file that is replaced between its look-up and its open so many times in a row is given up.
const HOLD_TRIES: usize = 64;

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
    leased: Leased,
    covers: Covers,
    handles: HandleTable,
    kept_pages: KeptPages,
    walks: Walks,
    closed_lately: ClosedLately,
    looked_up_again: LookedUpAgain,
    /// Own removals of names that are under way.
    removals: Removals,
    stat_fs: Mutex<Option<(StatFs, Instant)>>,
    /// Who keeps pages of the files above.
    pages: OnceLock<Arc<dyn PageCache>>,
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
    ///
    /// The leases of the client's session are this view's: what is changed with the same client past it shows here
    /// up to `valid` later. Whoever needs both uses a client for each.
    pub fn new(client: Arc<Client>, valid: Duration) -> Arc<Self> {
        let valid = valid.min(ATTRIBUTES_VALID_MAX);
        let session = Arc::clone(client.coordinator().session());
        let vfs = Arc::new(Self {
            inodes: InodeTable::new(valid, Arc::clone(&session), client.budget().xattrs.clone()),
            leased: Leased::new(!client.config().durable_names),
            covers: Covers::default(),
            kept_pages: KeptPages::new(client.budget().kept_pages),
            client,
            handles: HandleTable::default(),
            walks: Walks::default(),
            closed_lately: ClosedLately::default(),
            looked_up_again: LookedUpAgain::default(),
            removals: Removals::default(),
            stat_fs: Mutex::new(None),
            pages: OnceLock::new(),
            valid,
            runtime: Runtime::current(),
        });
        if vfs.leased.is_enabled() {
            session.leases.begin_use();
            vfs.lose_leases(); // none yet: those to come belong to this session
            let (behind, stop) = (Arc::clone(vfs.client.behind()), vfs.client.engine().stop.clone());
            let this = Arc::downgrade(&vfs);
            let (coordinator, weak) = (vfs.coordinator().clone(), Weak::clone(&this));
            vfs.runtime.spawn(apply::apply_all(weak, coordinator, Arc::clone(&behind), stop.clone()));
            vfs.runtime.spawn(apply::answer_recalls(this, session, behind, stop));
        }
        vfs
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

    fn session(&self) -> &Arc<Session> {
        self.client.coordinator().session()
    }

    /// A name in a directory, when it, or its absence, is known here.
    pub fn try_lookup(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Option<Result<Entry>> {
        if self.looked_up_again.is_on() {
            return None;
        }
        match self.lookup_locally(parent, name, caller).now()? {
            Ok(Found::Entry(entry)) => Some(Ok(entry)),
            Ok(Found::Inode(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Finds a name in a directory.
    pub async fn lookup(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Result<Entry> {
        if self.looked_up_again.is_on() {
            return self.look_up_and_hold(parent, name, caller).await;
        }
        match self.locally(|| self.lookup_locally(parent, name, caller)).await {
            Some(Ok(Found::Entry(entry))) => return Ok(entry),
            Some(Ok(Found::Inode(inode))) => {
                let gone = || VfsError::refused(ErrorKind::NotFound, "it has just been removed");
                return match self.getattr(inode).await {
                    Ok(entry) if entry.attr.nlink == 0 => Err(gone()),
                    Err(error) if error.kind() == ErrorKind::StaleHandle => Err(gone()),
                    found => found,
                };
            }
            Some(Err(error)) => return Err(error),
            None => {}
        }
        if self.cover_names(parent, name).await
            && let Some(known) = self.try_lookup(parent, name, caller)
        {
            return known;
        }
        self.look_up(parent, name, caller).await
    }

    async fn look_up(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<Entry> {
        self.client.behind().applied(parent).await?;
        self.need_names(parent)?;
        let asked = clock::now();
        let found = self.coordinator().lookup(parent, name, caller).await;
        let attr = found.map_err(|error| self.on_stale(parent, error))?;
        Ok(self.inodes.adopt(attr, asked))
    }

    /// A kernel that was told ESTALE tries once more, and no more than that: what it finds now must be there when it is
    /// opened, also when others replace it again at once.
    async fn look_up_and_hold(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<Entry> {
        let mut tries = 0;
        loop {
            let entry = self.look_up(parent, name, caller).await?;
            let inode = entry.attr.inode;
            tries += 1;
            if entry.attr.kind != Kind::File || tries == HOLD_TRIES {
                return Ok(entry);
            }
            match self.coordinator().open(inode).await {
                Ok((guard, _)) => {
                    self.looked_up_again.add(guard, &self.runtime);
                    // Only for the open that follows: whoever comes later looks again.
                    return Ok(Entry { valid: Duration::ZERO, ..entry });
                }
                Err(error) if error.kind() == ErrorKind::StaleHandle => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// To be called when a kernel is told ESTALE, which has it look the name up again.
    pub fn told_stale(&self) {
        self.looked_up_again.begin();
    }

    /// An inode by its number, for a handle that a program has kept of it (open_by_handle_at(2)). `StaleHandle`: it has
    /// lost its last name.
    pub async fn lookup_inode(&self, inode: InodeId) -> Result<Entry> {
        let found = match self.try_getattr(inode) {
            Some(known) => known,
            None => self.getattr(inode).await?,
        };
        if found.attr.nlink == 0 {
            return Err(VfsError::refused(ErrorKind::StaleHandle, "the inode has been removed"));
        }
        Ok(found)
    }

    /// Finds the directory above a directory; the root is its own.
    pub async fn lookup_parent(&self, directory: InodeId, caller: &Caller) -> Result<Entry> {
        self.client.behind().applied(directory).await?;
        let asked = clock::now();
        let attr = self.coordinator().parent_of(directory, caller).await?;
        Ok(self.inodes.adopt(attr, asked))
    }

    /// The kernel has dropped the inode; what is cached for it goes too.
    pub fn forget(&self, inode: InodeId) {
        self.inodes.forget(inode);
    }

    /// To be called with what a kernel has been shown: the inodes, and the versions of their attributes.
    pub fn note_shown(&self, shown: impl Iterator<Item = (InodeId, u64)>) {
        self.inodes.note_shown(shown);
    }

    /// Attributes that are still valid.
    pub fn try_getattr(&self, inode: InodeId) -> Option<Entry> {
        self.inodes.fresh(inode)
    }

    /// Attributes, fetched; those of a removed inode are as they were left.
    pub async fn getattr(&self, inode: InodeId) -> Result<Entry> {
        self.client.behind().applied(inode).await?;
        if let Some(removed) = self.inodes.removed(inode) {
            return Ok(removed);
        }
        let asked = clock::now();
        match self.coordinator().get_attr(inode).await {
            Ok(attr) => Ok(self.inodes.adopt(attr, asked)),
            Err(error) => {
                let error = self.on_stale(inode, error);
                self.inodes.removed(inode).ok_or(error)
            }
        }
    }

    /// An answer about `inode`. When the coordinator does not know it any more, what is known of it stays.
    ///
    /// Unless this mount removes something just now, another one has. Then the kernel may still know the inode by a name, and
    /// must hear the error to look that up again: it finds what has the name now. No name leads there any more when those
    /// in its cache have become old, and who asks then holds the inode itself.
    fn on_stale(&self, inode: InodeId, error: ClientError) -> VfsError {
        if error.kind() == ErrorKind::StaleHandle {
            let names_last = if self.removals.under_way() { Duration::ZERO } else { self.valid };
            self.inodes.note_removed(inode, clock::now() + names_last);
        }
        error.into()
    }

    /// `NotFound`: the directory has been removed, so that there is no name in it, and none can be made.
    fn need_names(&self, directory: InodeId) -> Result<()> {
        match self.inodes.removed(directory) {
            Some(_) => Err(removed_directory()),
            None => Ok(()),
        }
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

fn removed_directory() -> VfsError {
    VfsError::refused(ErrorKind::NotFound, "the directory has been removed")
}

fn target_of(attr: &Attr) -> Result<Bytes> {
    let refused = || VfsError::refused(ErrorKind::InvalidArgument, "only a symlink has a target");
    attr.symlink_target.clone().ok_or_else(refused)
}
