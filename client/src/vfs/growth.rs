//! Files that become longer: ftruncate(2) and fallocate(2).
//!
//! A file that a lease covers grows here, and at the coordinator a moment later, as names do ([`super::local`]). What is
//! sent never makes a file shorter, whatever has become of it when it is executed.

use std::sync::Arc;

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::posix::Capability;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{ErrorKind, InodeId, mode};

use super::leased::Local;
use super::local::unpinned;
use super::{AllocateMode, AttrChange, Entry, HandleId, Result, Vfs, VfsError};
use crate::behind::Pending;
use crate::{Caller, FileContent, Kind};

impl Vfs {
    /// The size that a change sets and nothing else, by somebody who may write: it came through a file open for that.
    pub(super) fn sized_through(&self, change: AttrChange, handle: Option<HandleId>) -> Option<u64> {
        let alone = AttrChange { size: None, ..change } == AttrChange::default();
        change.size.filter(|_| alone && handle.is_some_and(|handle| self.writable(handle).is_ok()))
    }

    /// Makes a file longer, when a lease covers it and nothing of it is buffered.
    pub(super) fn grow_locally(self: &Arc<Self>, inode: InodeId, size: u64, caller: &Caller) -> Local<Entry> {
        let content = self.inodes.content(inode).or_else(|| self.client.existing_content(inode));
        if content.as_ref().is_some_and(|content| content.is_dirty()) {
            return Local::Remote;
        }
        self.grow_settled(inode, content.as_ref(), size, caller)
    }

    /// [`Self::grow_locally`], with all that is buffered committed first.
    pub(super) async fn grow_under_lease(
        self: &Arc<Self>,
        content: &Arc<FileContent>,
        size: u64,
        caller: &Caller,
    ) -> Result<Option<Entry>> {
        let inode = content.inode();
        let done = if content.is_dirty() {
            let (vfs, this, caller) = (Arc::clone(self), Arc::clone(content), caller.clone());
            content.change_locally(move || vfs.grow_settled(inode, Some(&this), size, &caller).now()).await?
        } else {
            self.locally(|| self.grow_locally(inode, size, caller)).await
        };
        done.transpose()
    }

    fn grow_settled(
        self: &Arc<Self>,
        inode: InodeId,
        content: Option<&Arc<FileContent>>,
        size: u64,
        caller: &Caller,
    ) -> Local<Entry> {
        let mut state = self.leased.lock();
        let Some(directory) = state.covering(inode) else { return Local::Remote };
        match self.available(&mut state, directory) {
            Local::Done(Ok(())) => {}
            Local::Done(Err(error)) => return Local::Done(Err(error)),
            Local::Wait => return Local::Wait,
            Local::Remote => return Local::Remote,
        }
        let Some(pinned) = self.inodes.pinned(inode) else { return Local::Remote };
        let committed = content.map(|content| content.attr_committed());
        let attr = committed.filter(|attr| attr.version > pinned.version).unwrap_or(pinned);
        let grows = attr.kind == Kind::File && size > attr.size && size <= FILE_SIZE_MAX;
        if !grows || attr.has_xattrs || attr.nlink == 0 {
            return Local::Remote;
        }
        match self.room() {
            Local::Done(Ok(())) => {}
            Local::Done(Err(error)) => return Local::Done(Err(error)),
            Local::Wait => return Local::Wait,
            Local::Remote => return Local::Remote,
        }
        let at_ns = self.local_time();
        self.change_here(inode, |attr| {
            attr.size = size;
            attr.mtime_ns = at_ns;
            attr.ctime_ns = at_ns;
            if !caller.has(Capability::Fsetid) {
                attr.mode = mode::without_privileges(attr.mode);
            }
        });
        let grown = self.inodes.pinned_entry(inode);
        let (offset, length) = (attr.size, size - attr.size);
        let (keep_size, make_hole) = (false, false);
        let op = v1::Allocate { inode: inode.get(), offset, length, keep_size, make_hole };
        self.client.behind().push(Pending {
            op: Op::Allocate(op),
            found: None,
            at_ns,
            caller: caller.to_wire(),
            concerns: vec![inode],
            open: None,
        });
        Local::Done(grown.ok_or_else(unpinned))
    }

    /// `NoSpace` when the cluster has no room for what fallocate(2) asks for. Nothing is set aside.
    pub(super) async fn check_room(
        &self,
        content: &FileContent,
        length: u64,
        mode: AllocateMode,
    ) -> Result<()> {
        if !matches!(mode, AllocateMode::Reserve { .. }) {
            return Ok(());
        }
        // What the file has may lie within the range.
        let needed = length.saturating_sub(content.attr().allocated);
        let known = self.try_statfs().filter(|stat| needed <= stat.available / 2);
        if needed == 0 || known.is_some() || needed <= self.statfs().await?.available {
            return Ok(());
        }
        Err(VfsError::refused(ErrorKind::NoSpace, "the cluster has less room than that"))
    }
}
