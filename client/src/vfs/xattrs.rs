//! Extended attributes, answered locally as long as the version of the inode stays.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use cairn_proto::posix::Capability;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::xattr::Namespace;
use cairn_proto::{ErrorKind, InodeId};
use cairn_runtime::clock;

use super::inodes::Xattrs;
use super::{Result, Vfs, VfsError};
use crate::{Attr, Caller};

/// The kernel asks for it before the first write of every open file.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

/// What setxattr(2) does with an attribute that is there, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// It is set in either case.
    Set,
    /// It must not be there (XATTR_CREATE).
    Create,
    /// It must be there (XATTR_REPLACE).
    Replace,
    /// Both at once: it fails in either case, each in its own way.
    CreateAndReplace,
}

impl Vfs {
    /// The value of an extended attribute, when it or its absence is known.
    pub fn try_getxattr(&self, inode: InodeId, name: &[u8]) -> Option<Result<Bytes>> {
        if let Err(error) = checked(name) {
            return Some(Err(error));
        }
        if self.has_none(inode, name) {
            return Some(Err(no_data()));
        }
        self.inodes.xattrs(inode).map(|all| value_of(&all, name))
    }

    /// Whether the attribute is known not to be there. `security.capability` is asked for before
    /// the first write of an open file; the attributes seen at its open are good enough for it.
    fn has_none(&self, inode: InodeId, name: &[u8]) -> bool {
        let known = if name == CAPABILITY && self.inodes.content(inode).is_some() {
            self.inodes.last(inode)
        } else {
            self.inodes.fresh(inode).map(|entry| entry.attr)
        };
        known.is_some_and(|attr| !attr.has_xattrs)
    }

    /// The value of an extended attribute.
    pub async fn getxattr(&self, inode: InodeId, name: &[u8]) -> Result<Bytes> {
        checked(name)?;
        value_of(&self.xattrs(inode).await?, name)
    }

    /// All names, each with a NUL behind it, when they are known.
    pub fn try_listxattr(&self, inode: InodeId) -> Option<Bytes> {
        if self.has_none(inode, b"") {
            return Some(Bytes::new());
        }
        self.inodes.xattrs(inode).map(|all| names_of(&all))
    }

    /// All names, each with a NUL behind it.
    pub async fn listxattr(&self, inode: InodeId) -> Result<Bytes> {
        Ok(names_of(&self.xattrs(inode).await?))
    }

    async fn xattrs(&self, inode: InodeId) -> Result<Xattrs> {
        let attr = self.attributes(inode).await?;
        if !attr.has_xattrs {
            return Ok(Xattrs::default());
        }
        if let Some(known) = self.inodes.xattrs(inode) {
            return Ok(known);
        }
        self.client.behind().applied(inode).await?;
        let all = Arc::new(self.coordinator().xattrs(inode).await?);
        // Fetched after the attributes: when they changed in between, the version that is kept
        // with the values is too low, and they are fetched again.
        self.inodes.keep_xattrs(inode, attr.version, &all);
        Ok(all)
    }

    /// Sets an extended attribute.
    pub async fn setxattr(
        &self,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        caller: &Caller,
    ) -> Result<()> {
        checked(name)?;
        let set = v1::SetXattr {
            inode: inode.get(),
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
            create: matches!(mode, XattrMode::Create | XattrMode::CreateAndReplace),
            replace: matches!(mode, XattrMode::Replace | XattrMode::CreateAndReplace),
        };
        self.change(inode, Op::SetXattr(set), caller).await?;
        Ok(())
    }

    /// Removes an extended attribute.
    pub async fn removexattr(&self, inode: InodeId, name: &[u8], caller: &Caller) -> Result<()> {
        checked(name)?;
        let remove = v1::RemoveXattr { inode: inode.get(), name: Bytes::copy_from_slice(name) };
        self.change(inode, Op::RemoveXattr(remove), caller).await?;
        Ok(())
    }

    /// Applies a mutation of one inode alone.
    pub(super) async fn change(&self, inode: InodeId, op: Op, caller: &Caller) -> Result<Attr> {
        self.client.behind().applied(inode).await?;
        let asked = clock::now();
        let attr = self.coordinator().apply(op, caller).await?.into_attr()?;
        Ok(self.adopt_changed(attr, asked)?.attr)
    }
}

fn value_of(all: &Xattrs, name: &[u8]) -> Result<Bytes> {
    let found = all.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.clone()).ok_or_else(no_data)
}

fn names_of(all: &Xattrs) -> Bytes {
    let mut names = BytesMut::new();
    for (name, _) in all.iter() {
        names.put_slice(name);
        names.put_u8(0);
    }
    names.freeze()
}

fn no_data() -> VfsError {
    VfsError::refused(ErrorKind::NoData, "there is no such extended attribute")
}

fn checked(name: &[u8]) -> Result<Namespace> {
    let refused =
        |kind| VfsError::refused(kind, "attributes are named user., trusted. or security., and a word");
    Namespace::of(name).map_err(refused)
}

/// Of all names of an inode, each with a NUL behind it, those that `caller` may see: `trusted.*` takes CAP_SYS_ADMIN
/// (xattr(7)). He is looked up only where that matters.
pub fn visible_names(names: Bytes, caller: impl FnOnce() -> Caller) -> Bytes {
    let is_trusted = |name: &[u8]| Namespace::of(name) == Ok(Namespace::Trusted);
    let each = || names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    if !each().any(is_trusted) || caller().has(Capability::SysAdmin) {
        return names;
    }
    let mut seen = BytesMut::with_capacity(names.len());
    for name in each().filter(|name| !is_trusted(name)) {
        seen.put_slice(name);
        seen.put_u8(0);
    }
    seen.freeze()
}
