//! Operations that change names: create, link, remove, rename.
//!
//! Each is tried locally first ([`super::local`]); what can not be done under the leases that are held
//! goes to the coordinator ([`Vfs::send`]).

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{ErrorKind, FileName, InodeId, SymlinkTarget};
use cairn_runtime::clock::{self, Instant};

use super::leased::{Child, UnderWay};
use super::{Entry, Result, Vfs};
use crate::coordinator::Granted;
use crate::{Applied, Attr, Caller, Kind};

/// What a rename does with a name that is there already; renameat2(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It makes the rename fail (RENAME_NOREPLACE).
    NoReplace,
    /// The two change places (RENAME_EXCHANGE).
    Exchange,
}

/// What is to be made, without its place.
#[derive(Debug, Clone)]
pub enum NewNode {
    /// A directory.
    Directory,
    /// A symlink to this.
    Symlink(SymlinkTarget),
    /// A file, pipe or socket, or a device with its number.
    Other(Kind, u32),
}

impl NewNode {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory => Kind::Directory,
            Self::Symlink(_) => Kind::Symlink,
            Self::Other(kind, _) => *kind,
        }
    }

    fn create(&self, parent: InodeId, name: &FileName, mode: u32) -> v1::Create {
        let create = create_of(parent, name, self.kind(), mode);
        match self {
            Self::Directory => create,
            Self::Symlink(target) => v1::Create { symlink_target: target.to_bytes(), mode: 0o777, ..create },
            Self::Other(_, rdev) => v1::Create { rdev: *rdev, ..create },
        }
    }
}

impl Vfs {
    /// [`Self::make`], when that needs nobody.
    pub fn try_make(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        new: &NewNode,
        mode: u32,
        caller: &Caller,
    ) -> Option<Result<Entry>> {
        let create = new.create(parent, name, mode);
        let made = self.create_locally(&create, new.kind(), false, caller).now()?;
        Some(made.map(|made| made.entry))
    }

    /// Makes an inode with a name; `mode` has the umask applied.
    pub async fn make(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        new: &NewNode,
        mode: u32,
        caller: &Caller,
    ) -> Result<Entry> {
        let create = new.create(parent, name, mode);
        let local = self.locally(|| self.create_locally(&create, new.kind(), false, caller)).await;
        if let Some(made) = local {
            return made.map(|made| made.entry);
        }
        let asked = clock::now();
        let applied = self.send(vec![parent], Op::Create(create), caller).await?;
        Ok(self.inodes.adopt(applied.into_attr()?, asked))
    }

    /// Makes an inode that is no directory and no symlink; `rdev` counts for devices.
    pub async fn mknod(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        kind: Kind,
        mode: u32,
        rdev: u32,
        caller: &Caller,
    ) -> Result<Entry> {
        self.make(parent, name, &NewNode::Other(kind, rdev), mode, caller).await
    }

    /// Makes a directory.
    pub async fn mkdir(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        mode: u32,
        caller: &Caller,
    ) -> Result<Entry> {
        self.make(parent, name, &NewNode::Directory, mode, caller).await
    }

    /// Makes a symlink.
    pub async fn symlink(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        target: &SymlinkTarget,
        caller: &Caller,
    ) -> Result<Entry> {
        self.make(parent, name, &NewNode::Symlink(target.clone()), 0o777, caller).await
    }

    /// Gives an inode one more name.
    pub async fn link(
        self: &Arc<Self>,
        inode: InodeId,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Result<Entry> {
        let asked = clock::now();
        let link = v1::Link { inode: inode.get(), parent: parent.get(), name: name.to_bytes() };
        let applied = self.send(vec![parent], Op::Link(link), caller).await?;
        Ok(self.inodes.adopt_own(applied.into_attr()?, asked))
    }

    /// [`Self::unlink`], when that needs nobody.
    pub fn try_unlink(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Option<Result<()>> {
        self.unlink_locally(parent, name, caller).now()
    }

    /// Removes a name of something that is no directory. What is open stays usable.
    pub async fn unlink(self: &Arc<Self>, parent: InodeId, name: &FileName, caller: &Caller) -> Result<()> {
        if let Some(done) = self.locally(|| self.unlink_locally(parent, name, caller)).await {
            return done;
        }
        let unlink = v1::Unlink { parent: parent.get(), name: name.to_bytes() };
        self.send(vec![parent], Op::Unlink(unlink), caller).await.map(drop)
    }

    /// [`Self::rmdir`], when that needs nobody.
    pub fn try_rmdir(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Option<Result<()>> {
        self.rmdir_locally(parent, name, caller).now()
    }

    /// Removes an empty directory.
    pub async fn rmdir(self: &Arc<Self>, parent: InodeId, name: &FileName, caller: &Caller) -> Result<()> {
        if let Some(done) = self.locally(|| self.rmdir_locally(parent, name, caller)).await {
            return done;
        }
        let rmdir = v1::Rmdir { parent: parent.get(), name: name.to_bytes() };
        self.send(vec![parent], Op::Rmdir(rmdir), caller).await.map(drop)
    }

    /// [`Self::rename`], when that needs nobody.
    pub fn try_rename(
        self: &Arc<Self>,
        from: (InodeId, &FileName),
        to: (InodeId, &FileName),
        mode: RenameMode,
        caller: &Caller,
    ) -> Option<Result<()>> {
        self.rename_locally(from, to, mode, caller).now()
    }

    /// Moves a name, within a directory or to another one.
    #[allow(clippy::too_many_arguments)] // as many as renameat2(2) has
    pub async fn rename(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        new_parent: InodeId,
        new_name: &FileName,
        mode: RenameMode,
        caller: &Caller,
    ) -> Result<()> {
        let (from, to) = ((parent, name), (new_parent, new_name));
        if let Some(done) = self.locally(|| self.rename_locally(from, to, mode, caller)).await {
            return done;
        }
        let rename = v1::Rename {
            parent: parent.get(),
            name: name.to_bytes(),
            new_parent: new_parent.get(),
            new_name: new_name.to_bytes(),
            no_replace: mode == RenameMode::NoReplace,
            exchange: mode == RenameMode::Exchange,
        };
        let mut parents = vec![parent, new_parent];
        parents.dedup();
        self.send(parents, Op::Rename(rename), caller).await.map(drop)
    }

    /// Has the coordinator change names in `parents`, after everything that is pending. Goes on in the background
    /// when the caller goes away.
    pub(super) async fn send(
        self: &Arc<Self>,
        parents: Vec<InodeId>,
        op: Op,
        caller: &Caller,
    ) -> Result<Applied> {
        let (vfs, caller) = (Arc::clone(self), caller.clone());
        self.client
            .engine()
            .complete(async move {
                let under_way = vfs.prepare(&parents).await?;
                let removes = matches!(op, Op::Unlink(_) | Op::Rmdir(_) | Op::Rename(_));
                let _removal = if removes { Some(vfs.begin_removal().await) } else { None };
                let wanted = parents.iter().all(|&parent| vfs.wants_lease(parent));
                let asked = clock::now();
                let granted = vfs.coordinator().apply_for_leases(op.clone(), &caller, wanted).await;
                vfs.sent(&op, granted, under_way, asked)
            })
            .await
    }

    /// Before a change of names goes to the coordinator: all that is pending comes first, so that a crash leaves
    /// names as they were at one moment, and nothing is done locally in `parents` meanwhile.
    pub(super) async fn prepare(self: &Arc<Self>, parents: &[InodeId]) -> Result<UnderWay> {
        parents.iter().try_for_each(|&parent| self.need_names(parent))?;
        let under_way = self.begin_remote(parents).await;
        match self.client.behind().all_applied().await {
            Ok(()) => Ok(under_way),
            Err(error) => {
                under_way.end();
                Err(error.into())
            }
        }
    }

    /// The coordinator has answered: what is known here follows.
    pub(super) fn sent(
        self: &Arc<Self>,
        op: &Op,
        granted: crate::Result<Granted>,
        under_way: UnderWay,
        asked: Instant,
    ) -> Result<Applied> {
        let granted = match granted {
            Ok(granted) => granted,
            Err(error) => {
                let unknown = matches!(
                    error.kind(),
                    ErrorKind::SessionExpired
                        | ErrorKind::Unavailable
                        | ErrorKind::TimedOut
                        | ErrorKind::Protocol
                );
                if !unknown {
                    under_way.end();
                }
                return Err(error.into());
            }
        };
        self.take_leases(op, &granted);
        self.follow(op, &granted.applied);
        let applied = granted.applied;
        for attr in [&applied.parent, &applied.new_parent, &applied.replaced].into_iter().flatten() {
            self.inodes.adopt_named(attr.clone(), asked);
        }
        if !matches!(op, Op::Create(_))
            && let Some(attr) = &applied.attr
        {
            self.inodes.adopt_named(attr.clone(), asked);
        }
        under_way.end();
        Ok(applied)
    }

    /// Does to the names that are known here what the coordinator has done.
    fn follow(&self, op: &Op, applied: &Applied) {
        let Some(attr) = &applied.attr else { return };
        let child = Child { inode: attr.inode, kind: attr.kind };
        let mut state = self.leased.lock();
        let id = |inode| InodeId::new(inode).unwrap_or(InodeId::ROOT);
        match op {
            Op::Create(create) => state.insert(id(create.parent), create.name.clone(), child),
            Op::Link(link) => state.insert(id(link.parent), link.name.clone(), child),
            Op::Unlink(unlink) => drop(state.remove(id(unlink.parent), &unlink.name)),
            Op::Rmdir(rmdir) => {
                state.remove(id(rmdir.parent), &rmdir.name);
                state.drop_dir(attr.inode);
                self.session().leases.forget(attr.inode);
            }
            Op::Rename(rename) => {
                let (parent, new_parent) = (id(rename.parent), id(rename.new_parent));
                match (&applied.replaced, rename.exchange) {
                    (Some(other), true) => {
                        let other = Child { inode: other.inode, kind: other.kind };
                        state.insert(parent, rename.name.clone(), other);
                        state.insert(new_parent, rename.new_name.clone(), child);
                    }
                    (_, true) => {}
                    // Two names of one inode: both stay.
                    (None, false) if self.is_unchanged(parent, applied.parent.as_ref()) => {}
                    (replaced, false) => {
                        state.remove(parent, &rename.name);
                        state.insert(new_parent, rename.new_name.clone(), child);
                        if let Some(other) = replaced.as_ref().filter(|other| other.kind == Kind::Directory) {
                            state.drop_dir(other.inode);
                            self.session().leases.forget(other.inode);
                        }
                    }
                }
            }
            _ => return,
        }
        // They may be known to others from now on.
        let named = [Some(attr), applied.replaced.as_ref()];
        for inode in named.into_iter().flatten().map(|attr| attr.inode) {
            let gone = attr.nlink == 0 && inode == attr.inode;
            if gone || applied.replaced.as_ref().is_some_and(|other| other.inode == inode && other.nlink == 0)
            {
                self.client.forget_untold(inode);
            }
            if state.drop_private(inode) || gone {
                self.inodes.unpin(inode);
            }
        }
    }

    /// Whether a directory whose lease is held is as it was before.
    fn is_unchanged(&self, directory: InodeId, now: Option<&Attr>) -> bool {
        let before = self.inodes.pinned(directory);
        before.zip(now).is_some_and(|(before, now)| before.version == now.version)
    }
}

pub(super) fn create_of(parent: InodeId, name: &FileName, kind: Kind, mode: u32) -> v1::Create {
    v1::Create {
        parent: parent.get(),
        name: name.to_bytes(),
        kind: kind.to_wire().into(),
        mode: mode & 0o7777,
        rdev: 0,
        symlink_target: Bytes::new(),
        open: None,
        exclusive: true,
        inode: 0,
        lease: false,
    }
}
