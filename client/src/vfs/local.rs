//! Operations performed locally, in directories whose write lease is held.
//!
//! Each does what the coordinator will do when it comes to it ([`crate::behind`]), in the same words:
//! the checks, the attributes, the times, the versions. What is rare, or needs to see more of the
//! tree than the leases cover, is left to the coordinator.

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::limits::LINK_MAX;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{ErrorKind, FileName, InodeId, mode};

use super::access;
use super::leased::{Child, Local, State};
use super::{AttrChange, Entry, MAY_EXECUTE, MAY_WRITE, RenameMode, Time, Vfs, VfsError};
use crate::behind::{Pending, Room};
use crate::{Attr, Caller, Kind, OpenGuard};

/// Goes on with what was done, else ends in the same way.
macro_rules! done {
    ($local:expr) => {
        match $local {
            Local::Done(Ok(value)) => value,
            Local::Done(Err(error)) => return Local::Done(Err(error)),
            Local::Wait => return Local::Wait,
            Local::Remote => return Local::Remote,
        }
    };
}

/// Goes on with a value, else the coordinator decides.
macro_rules! known {
    ($value:expr) => {
        match $value {
            Some(value) => value,
            None => return Local::Remote,
        }
    };
}

/// What a name was found to be.
#[derive(Debug)]
pub(super) enum Found {
    Entry(Entry),
    /// Its attributes have to be fetched.
    Inode(InodeId),
}

/// What a create made.
pub(super) struct Made {
    pub(super) entry: Entry,
    /// Of a file that is also opened.
    pub(super) guard: Option<OpenGuard>,
}

impl Vfs {
    pub(super) fn lookup_locally(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Local<Found> {
        let mut state = self.leased.lock();
        if !state.is_held(parent) {
            drop(state);
            return self.lookup_covered(parent, name, caller);
        }
        done!(self.available(&mut state, parent));
        let directory = known!(self.inodes.pinned(parent));
        done!(Local::Done(access::check(&directory, MAY_EXECUTE, caller)));
        let Some(child) = state.child(parent, &name.to_bytes()) else {
            return Local::Done(Err(no_such_name()));
        };
        // Others may know an inode that is not pinned, and change it.
        let pinned = self.inodes.pinned(child.inode).and_then(|_| self.inodes.fresh(child.inode));
        let known = pinned.or_else(|| self.covered_child(parent, name, child.inode));
        Local::Done(Ok(known.map_or(Found::Inode(child.inode), Found::Entry)))
    }

    /// `create` as it would be sent; with `open` a file is opened, too.
    pub(super) fn create_locally(
        self: &Arc<Self>,
        create: &v1::Create,
        kind: Kind,
        open: bool,
        caller: &Caller,
    ) -> Local<Made> {
        let parent = known!(InodeId::new(create.parent).ok());
        let mut state = self.leased.lock();
        done!(self.available(&mut state, parent));
        let directory = known!(self.inodes.pinned(parent));
        if directory.nlink == 0 || directory.nlink >= LINK_MAX {
            return Local::Remote;
        }
        done!(self.room());
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) || !state.may_hold_more() {
            return Local::Remote;
        }
        done!(Local::Done(access::check(&directory, MAY_EXECUTE, caller)));
        if state.child(parent, &create.name).is_some() {
            // O_CREAT without O_EXCL opens what is there.
            return if create.exclusive { Local::Done(Err(exists())) } else { Local::Remote };
        }
        done!(Local::Done(access::check(&directory, MAY_EXECUTE | MAY_WRITE, caller)));
        let id = done!(self.take_id(&mut state));
        let at_ns = self.local_time();
        let attr = new_attr(id, create, kind, &directory, at_ns, caller);
        self.add_name(&mut state, parent, create.name.clone(), Child { inode: id, kind }, at_ns);
        let is_directory = kind == Kind::Directory;
        let entry = if is_directory {
            state.add_new(id);
            self.session().leases.hold(id);
            self.inodes.pin(attr)
        } else if state.add_private(id, parent) {
            self.inodes.pin(attr)
        } else {
            self.inodes.adopt_own(attr, cairn_runtime::clock::now())
        };
        let open = open.then(|| self.hold_open(id));
        let guard = open.as_ref().map(|(sequence, _)| self.session().hold(id, *sequence));
        let op = Op::Create(v1::Create {
            inode: id.get(),
            lease: is_directory,
            exclusive: true,
            ..create.clone()
        });
        self.queue_names(op, found(None, None), at_ns, vec![parent, id], open, caller);
        Local::Done(Ok(Made { entry, guard }))
    }

    pub(super) fn unlink_locally(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Local<()> {
        let mut state = self.leased.lock();
        let child = done!(self.removable(&mut state, parent, name, caller));
        if child.kind == Kind::Directory {
            return Local::Done(Err(VfsError::refused(ErrorKind::IsDirectory, "it is a directory")));
        }
        let _no_opens = known!(self.no_unregistered(child.inode));
        let at_ns = self.local_time();
        self.remove_name(&mut state, parent, &name.to_bytes(), child, at_ns);
        self.lose_name(&mut state, child.inode, at_ns);
        let op = Op::Unlink(v1::Unlink { parent: parent.get(), name: name.to_bytes() });
        self.queue_names(op, found(Some(child), None), at_ns, vec![parent, child.inode], None, caller);
        Local::Done(Ok(()))
    }

    pub(super) fn rmdir_locally(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Local<()> {
        let mut state = self.leased.lock();
        let child = done!(self.removable(&mut state, parent, name, caller));
        if child.kind != Kind::Directory {
            return Local::Done(Err(VfsError::refused(ErrorKind::NotDirectory, "it is no directory")));
        }
        if known!(state.names_in(child.inode)) > 0 {
            return Local::Done(Err(VfsError::refused(ErrorKind::NotEmpty, "the directory has entries")));
        }
        let at_ns = self.local_time();
        self.remove_name(&mut state, parent, &name.to_bytes(), child, at_ns);
        self.inodes.change(child.inode, None, |attr| {
            attr.nlink = 0;
            attr.ctime_ns = at_ns;
        });
        self.inodes.unpin(child.inode);
        state.drop_dir(child.inode);
        self.session().leases.forget(child.inode);
        let op = Op::Rmdir(v1::Rmdir { parent: parent.get(), name: name.to_bytes() });
        self.queue_names(op, found(Some(child), None), at_ns, vec![parent, child.inode], None, caller);
        Local::Done(Ok(()))
    }

    pub(super) fn rename_locally(
        self: &Arc<Self>,
        (parent, name): (InodeId, &FileName),
        (new_parent, new_name): (InodeId, &FileName),
        mode: RenameMode,
        caller: &Caller,
    ) -> Local<()> {
        let mut state = self.leased.lock();
        done!(self.available(&mut state, parent));
        done!(self.available(&mut state, new_parent));
        let (old, new) = (known!(self.inodes.pinned(parent)), known!(self.inodes.pinned(new_parent)));
        if mode == RenameMode::Exchange || new.nlink == 0 {
            return Local::Remote;
        }
        done!(self.room());
        done!(Local::Done(access::check(&old, MAY_EXECUTE, caller)));
        done!(Local::Done(access::check(&new, MAY_EXECUTE, caller)));
        let (from, to) = (name.to_bytes(), new_name.to_bytes());
        let Some(child) = state.child(parent, &from) else { return Local::Done(Err(no_such_name())) };
        let replaced = state.child(new_parent, &to);
        if replaced.is_some() && mode == RenameMode::NoReplace {
            return Local::Done(Err(exists()));
        }
        // Another mount may hold the lease of a directory that gets another name, and wait for one of this mount in
        // its turn: only who asks the coordinator may wait, not what is queued under leases.
        let moves_directory =
            child.kind == Kind::Directory && (parent != new_parent || !state.keeps(child.inode));
        let replaces_directory =
            replaced.is_some_and(|other| other.kind == Kind::Directory || child.kind == Kind::Directory);
        let same = replaced.is_some_and(|other| other.inode == child.inode);
        if moves_directory || replaces_directory || same || is_stuck(&old, caller) || is_stuck(&new, caller) {
            return Local::Remote;
        }
        done!(Local::Done(access::check(&old, MAY_EXECUTE | MAY_WRITE, caller)));
        done!(Local::Done(access::check(&new, MAY_EXECUTE | MAY_WRITE, caller)));
        let no_opens = replaced.map(|other| self.no_unregistered(other.inode));
        let _no_opens = known!(no_opens.map_or(Some(None), |found| found.map(Some)));
        let at_ns = self.local_time();
        let mut concerns = vec![parent, new_parent, child.inode];
        self.remove_name(&mut state, parent, &from, child, at_ns);
        match replaced {
            Some(other) => {
                state.insert(new_parent, to.clone(), child);
                self.inodes.change(new_parent, None, |attr| touch(attr, at_ns));
                self.lose_name(&mut state, other.inode, at_ns);
                concerns.push(other.inode);
            }
            None => self.add_name(&mut state, new_parent, to.clone(), child, at_ns),
        }
        if state.is_private(child.inode) {
            state.add_private(child.inode, new_parent);
        }
        self.change_here(child.inode, |attr| attr.ctime_ns = at_ns);
        let rename = v1::Rename {
            parent: parent.get(),
            name: from,
            new_parent: new_parent.get(),
            new_name: to,
            no_replace: mode == RenameMode::NoReplace,
            exchange: false,
        };
        self.queue_names(Op::Rename(rename), found(Some(child), replaced), at_ns, concerns, None, caller);
        Local::Done(Ok(()))
    }

    /// chmod(2), chown(2), utimensat(2) of an inode that a lease covers. A file with writes in its buffer is left
    /// to [`Vfs::setattr`], which has them committed first.
    pub(super) fn set_attr_locally(
        self: &Arc<Self>,
        inode: InodeId,
        change: AttrChange,
        caller: &Caller,
    ) -> Local<Entry> {
        let content = self.inodes.content(inode).or_else(|| self.client.existing_content(inode));
        if content.is_some_and(|content| content.is_dirty()) {
            return Local::Remote;
        }
        self.set_attr_settled(inode, change, caller)
    }

    /// [`Self::set_attr_locally`] of a file without writes in its buffer.
    pub(super) fn set_attr_settled(
        self: &Arc<Self>,
        inode: InodeId,
        change: AttrChange,
        caller: &Caller,
    ) -> Local<Entry> {
        let mut state = self.leased.lock();
        let directory = known!(state.covering(inode));
        done!(self.available(&mut state, directory));
        let attr = known!(self.inodes.pinned(inode));
        let owner = caller.uid == 0 || caller.uid == attr.uid;
        let chowns = change.uid.is_some() || change.gid.is_some();
        let kept = change.size.is_some() || chowns && caller.uid != 0;
        if kept || !owner || attr.nlink == 0 {
            return Local::Remote;
        }
        done!(self.room());
        let at_ns = self.local_time();
        self.change_here(inode, |attr| set(attr, &change, at_ns, caller));
        let changed = self.inodes.pinned_entry(inode);
        let op = Op::SetAttr(super::files::set_attr_of(inode, change, false));
        let caller = caller.to_wire();
        self.client.behind().push(Pending {
            op,
            found: None,
            at_ns,
            caller,
            concerns: vec![inode],
            open: None,
        });
        Local::Done(changed.ok_or_else(unpinned))
    }

    /// chmod(2), chown(2), utimensat(2) of an inode that has no name any more and that a program still holds. Nobody
    /// else sees it, and the kernel has judged by what it was shown of it. `None`: it is none, or its size is to change.
    pub(super) fn set_attr_removed(
        &self,
        inode: InodeId,
        change: AttrChange,
        caller: &Caller,
    ) -> Option<Entry> {
        if change.size.is_some() || self.inodes.removed(inode).is_none() {
            return None;
        }
        let at_ns = self.local_time();
        self.inodes.change_removed(inode, |attr| set(attr, &change, at_ns, caller))
    }

    /// The entry of a name that the caller may remove, kinds aside.
    fn removable(
        self: &Arc<Self>,
        state: &mut State,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Local<Child> {
        done!(self.available(state, parent));
        let directory = known!(self.inodes.pinned(parent));
        if is_stuck(&directory, caller) {
            return Local::Remote;
        }
        done!(self.room());
        done!(Local::Done(access::check(&directory, MAY_EXECUTE, caller)));
        let Some(child) = state.child(parent, &name.to_bytes()) else {
            return Local::Done(Err(no_such_name()));
        };
        done!(Local::Done(access::check(&directory, MAY_EXECUTE | MAY_WRITE, caller)));
        Local::Done(Ok(child))
    }

    fn add_name(&self, state: &mut State, parent: InodeId, name: Bytes, child: Child, at_ns: i64) {
        state.insert(parent, name, child);
        self.inodes.change(parent, None, |attr| {
            attr.size += 1;
            attr.nlink += u32::from(child.kind == Kind::Directory);
            touch(attr, at_ns);
        });
    }

    fn remove_name(&self, state: &mut State, parent: InodeId, name: &Bytes, child: Child, at_ns: i64) {
        state.remove(parent, name);
        self.inodes.change(parent, None, |attr| {
            attr.size = attr.size.saturating_sub(1);
            attr.nlink = attr.nlink.saturating_sub(u32::from(child.kind == Kind::Directory));
            touch(attr, at_ns);
        });
    }

    /// One name less of what is no directory.
    fn lose_name(&self, state: &mut State, inode: InodeId, at_ns: i64) {
        self.change_here(inode, |attr| {
            attr.nlink = attr.nlink.saturating_sub(1);
            attr.ctime_ns = at_ns;
        });
        if state.drop_private(inode) {
            self.inodes.unpin(inode);
        } else {
            self.inodes.loses_name(inode);
        }
        if self.inodes.last(inode).is_some_and(|attr| attr.nlink == 0) {
            self.client.forget_untold(inode);
        }
    }

    /// Changes the attributes of an inode, or has them fetched again when no lease covers them.
    pub(super) fn change_here(&self, inode: InodeId, change: impl FnOnce(&mut Attr)) {
        let content = self.inodes.content(inode).or_else(|| self.client.existing_content(inode));
        if self.inodes.change(inode, content.as_deref(), change).is_none() {
            self.inodes.expire(inode);
        }
    }

    fn hold_open(&self, inode: InodeId) -> (u64, OpenGuard) {
        let sequence = self.session().opens.next_sequence();
        (sequence, self.session().hold(inode, sequence))
    }

    /// The time of a change that is made here now.
    pub(super) fn local_time(&self) -> i64 {
        self.session().clock.now_ns()
    }

    /// Whether one more change may be made locally now. Whoever waits here waits for a batch; at the coordinator it would
    /// wait for all that is pending.
    pub(super) fn room(&self) -> Local<()> {
        match self.client.behind().room() {
            Room::Free => Local::Done(Ok(())),
            Room::Later => Local::Wait,
            Room::Trouble => Local::Remote,
        }
    }

    #[allow(clippy::too_many_arguments)] // all that a change of names is
    fn queue_names(
        &self,
        op: Op,
        found: v1::FoundNames,
        at_ns: i64,
        concerns: Vec<InodeId>,
        open: Option<(u64, OpenGuard)>,
        caller: &Caller,
    ) {
        let caller = caller.to_wire();
        self.client.behind().push(Pending { op, found: Some(found), at_ns, caller, concerns, open });
    }
}

/// What the name of a change leads to, and the new name of a rename.
fn found(name: Option<Child>, new_name: Option<Child>) -> v1::FoundNames {
    let inode = |child: Option<Child>| child.map_or(0, |child| child.inode.get());
    v1::FoundNames { inode: inode(name), replaced: inode(new_name) }
}

/// In a sticky directory of somebody else the owner of each entry matters.
fn is_stuck(directory: &Attr, caller: &Caller) -> bool {
    directory.mode & mode::STICKY != 0 && caller.uid != 0 && caller.uid != directory.uid
}

fn touch(attr: &mut Attr, at_ns: i64) {
    attr.mtime_ns = at_ns;
    attr.ctime_ns = at_ns;
}

/// The attributes of a new inode: open(2), mkdir(2), symlink(2), mknod(2).
fn new_attr(
    inode: InodeId,
    create: &v1::Create,
    kind: Kind,
    directory: &Attr,
    at_ns: i64,
    caller: &Caller,
) -> Attr {
    let inherits = directory.mode & mode::SET_GROUP_ID != 0;
    let gid = if inherits { directory.gid } else { caller.gid };
    let mode = match kind {
        Kind::Symlink => 0o777,
        Kind::Directory => mode::of_new_directory(create.mode, directory.mode),
        _ => mode::of_new_file(create.mode, caller.is_trusted_with(gid, directory)),
    };
    Attr {
        inode,
        kind,
        mode,
        uid: caller.uid,
        gid,
        rdev: 0,
        nlink: if kind == Kind::Directory { 2 } else { 1 },
        size: create.symlink_target.len() as u64,
        allocated: 0,
        atime_ns: at_ns,
        mtime_ns: at_ns,
        ctime_ns: at_ns,
        btime_ns: at_ns,
        version: 1,
        parent: (kind == Kind::Directory).then_some(directory.inode),
        symlink_target: (kind == Kind::Symlink).then(|| create.symlink_target.clone()),
        has_xattrs: false,
    }
}

/// chmod(2), chown(2), utimensat(2) by the owner or root.
fn set(attr: &mut Attr, change: &AttrChange, at_ns: i64, caller: &Caller) {
    if change.uid.is_some() || change.gid.is_some() {
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        if attr.kind != Kind::Directory {
            attr.mode = mode::without_privileges(attr.mode);
        }
    }
    if let Some(mode) = change.mode {
        attr.mode = mode::changed(mode & 0o7777, caller.is_trusted_with(attr.gid, attr));
    }
    let resolve = |time| match time {
        Time::Now => at_ns,
        Time::At(time_ns) => time_ns,
    };
    attr.atime_ns = change.atime.map_or(attr.atime_ns, resolve);
    attr.mtime_ns = change.mtime.map_or(attr.mtime_ns, resolve);
    attr.ctime_ns = at_ns;
}

pub(super) fn no_such_name() -> VfsError {
    VfsError::refused(ErrorKind::NotFound, "there is no such name")
}

pub(super) fn unpinned() -> VfsError {
    VfsError::refused(ErrorKind::Internal, "a pinned inode is pinned no more")
}

fn exists() -> VfsError {
    VfsError::refused(ErrorKind::Exists, "the name is taken")
}

#[cfg(test)]
mod tests;
