//! Operations that change names: create, link, remove, rename.

use bytes::Bytes;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{FileName, InodeId, SymlinkTarget};
use cairn_runtime::clock::{self, Instant};

use super::listing::Change;
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
        self.create(create, name, caller).await
    }

    /// Makes a directory.
    pub async fn mkdir(&self, parent: InodeId, name: &FileName, mode: u32, caller: &Caller) -> Result<Entry> {
        self.create(create_of(parent, name, Kind::Directory, mode), name, caller).await
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
        self.create(create, name, caller).await
    }

    async fn create(&self, create: v1::Create, name: &FileName, caller: &Caller) -> Result<Entry> {
        let asked = clock::now();
        let directory = create.kind() == v1::InodeKind::Directory;
        let applied = self.coordinator().apply(Op::Create(create), caller).await?;
        self.adopt_parents(&applied, asked, Change::Added(name), None);
        let attr = applied.into_attr()?;
        if directory {
            return Ok(self.inodes.adopt_new_directory(attr, asked));
        }
        Ok(self.inodes.adopt(attr, asked))
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
        self.adopt_parents(&applied, asked, Change::Added(name), None);
        Ok(self.inodes.adopt_own(applied.into_attr()?, asked, Change::Names))
    }

    /// Removes a name of something that is no directory. What is open stays usable.
    pub async fn unlink(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<()> {
        let unlink = v1::Unlink { parent: parent.get(), name: name.to_bytes() };
        self.remove(Op::Unlink(unlink), name, caller).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<()> {
        let rmdir = v1::Rmdir { parent: parent.get(), name: name.to_bytes() };
        self.remove(Op::Rmdir(rmdir), name, caller).await
    }

    async fn remove(&self, op: Op, name: &FileName, caller: &Caller) -> Result<()> {
        let asked = clock::now();
        let applied = self.coordinator().apply(op, caller).await?;
        self.adopt_parents(&applied, asked, Change::Removed(name), None);
        if let Some(attr) = applied.attr {
            self.inodes.adopt_own(attr, asked, Change::Names);
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
        let exchange = mode == RenameMode::Exchange;
        let rename = v1::Rename {
            parent: parent.get(),
            name: name.to_bytes(),
            new_parent: new_parent.get(),
            new_name: new_name.to_bytes(),
            no_replace: mode == RenameMode::NoReplace,
            exchange,
        };
        let applied = self.coordinator().apply(Op::Rename(rename), caller).await?;
        if parent == new_parent {
            let change = Change::Moved { from: name, to: new_name, exchange };
            self.adopt_parents(&applied, asked, change, None);
        } else {
            let left = if exchange { Change::Names } else { Change::Removed(name) };
            self.adopt_parents(&applied, asked, left, Some(Change::Added(new_name)));
        }
        for attr in [applied.attr, applied.replaced].into_iter().flatten() {
            self.inodes.adopt_own(attr, asked, Change::Names);
        }
        Ok(())
    }

    pub(super) fn adopt_parents(
        &self,
        applied: &Applied,
        asked: Instant,
        change: Change<'_>,
        new_change: Option<Change<'_>>,
    ) {
        if let Some(parent) = &applied.parent {
            self.inodes.adopt_own(parent.clone(), asked, change);
        }
        if let (Some(parent), Some(change)) = (&applied.new_parent, new_change) {
            self.inodes.adopt_own(parent.clone(), asked, change);
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
