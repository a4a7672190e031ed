//! Operations that change names: create, link, remove, rename.

use bytes::Bytes;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{FileName, InodeId, SymlinkTarget};
use cairn_runtime::clock::{self, Instant};

use super::{Entry, Result, Vfs};
use crate::{Applied, Caller, Kind};

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

impl Vfs {
    /// Makes an inode that is no directory and no symlink; `mode` has the umask applied, `rdev`
    /// counts for devices.
    pub async fn mknod(
        &self,
        parent: InodeId,
        name: &FileName,
        kind: Kind,
        mode: u32,
        rdev: u32,
        caller: &Caller,
    ) -> Result<Entry> {
        let create = v1::Create { rdev, ..create_of(parent, name, kind, mode) };
        self.create(create, caller).await
    }

    /// Makes a directory.
    pub async fn mkdir(&self, parent: InodeId, name: &FileName, mode: u32, caller: &Caller) -> Result<Entry> {
        self.create(create_of(parent, name, Kind::Directory, mode), caller).await
    }

    /// Makes a symlink.
    pub async fn symlink(
        &self,
        parent: InodeId,
        name: &FileName,
        target: &SymlinkTarget,
        caller: &Caller,
    ) -> Result<Entry> {
        let symlink_target = target.to_bytes();
        let create = v1::Create { symlink_target, ..create_of(parent, name, Kind::Symlink, 0o777) };
        self.create(create, caller).await
    }

    async fn create(&self, create: v1::Create, caller: &Caller) -> Result<Entry> {
        let asked = clock::now();
        let applied = self.coordinator().apply(Op::Create(create), caller).await?;
        self.adopt_parents(&applied, asked);
        Ok(self.inodes.adopt(applied.into_attr()?, asked))
    }

    /// Gives an inode one more name.
    pub async fn link(
        &self,
        inode: InodeId,
        parent: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Result<Entry> {
        let asked = clock::now();
        let link = v1::Link { inode: inode.get(), parent: parent.get(), name: name.to_bytes() };
        let applied = self.coordinator().apply(Op::Link(link), caller).await?;
        self.adopt_parents(&applied, asked);
        Ok(self.inodes.adopt_own(applied.into_attr()?, asked))
    }

    /// Removes a name of something that is no directory. What is open stays usable.
    pub async fn unlink(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<()> {
        let unlink = v1::Unlink { parent: parent.get(), name: name.to_bytes() };
        self.remove(Op::Unlink(unlink), caller).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<()> {
        let rmdir = v1::Rmdir { parent: parent.get(), name: name.to_bytes() };
        self.remove(Op::Rmdir(rmdir), caller).await
    }

    async fn remove(&self, op: Op, caller: &Caller) -> Result<()> {
        let asked = clock::now();
        let _under_way = self.removals.begin();
        let applied = self.coordinator().apply(op, caller).await?;
        self.adopt_parents(&applied, asked);
        if let Some(attr) = applied.attr {
            self.inodes.adopt_own(attr, asked);
        }
        Ok(())
    }

    /// Moves a name, within a directory or to another one.
    #[allow(clippy::too_many_arguments)] // as many as renameat2(2) has
    pub async fn rename(
        &self,
        parent: InodeId,
        name: &FileName,
        new_parent: InodeId,
        new_name: &FileName,
        mode: RenameMode,
        caller: &Caller,
    ) -> Result<()> {
        let asked = clock::now();
        let _under_way = self.removals.begin();
        let rename = v1::Rename {
            parent: parent.get(),
            name: name.to_bytes(),
            new_parent: new_parent.get(),
            new_name: new_name.to_bytes(),
            no_replace: mode == RenameMode::NoReplace,
            exchange: mode == RenameMode::Exchange,
        };
        let applied = self.coordinator().apply(Op::Rename(rename), caller).await?;
        self.adopt_parents(&applied, asked);
        for attr in [applied.attr, applied.replaced].into_iter().flatten() {
            self.inodes.adopt_own(attr, asked);
        }
        Ok(())
    }

    pub(super) fn adopt_parents(&self, applied: &Applied, asked: Instant) {
        for parent in [&applied.parent, &applied.new_parent].into_iter().flatten() {
            self.inodes.adopt_own(parent.clone(), asked);
        }
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
    }
}
