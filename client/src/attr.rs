//! Checked forms of what the coordinator says about inodes.

use bytes::Bytes;
pub use cairn_proto::posix::Caller;
use cairn_proto::posix::Guarded;
use cairn_proto::{InodeId, v1};

use crate::error::{ClientError, Result};

/// Whose wrong messages these are.
const PEER: &str = "the coordinator";

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// The number on the wire.
    pub fn to_wire(self) -> v1::InodeKind {
        match self {
            Self::File => v1::InodeKind::File,
            Self::Directory => v1::InodeKind::Directory,
            Self::Symlink => v1::InodeKind::Symlink,
            Self::Fifo => v1::InodeKind::Fifo,
            Self::Socket => v1::InodeKind::Socket,
            Self::CharDevice => v1::InodeKind::CharDevice,
            Self::BlockDevice => v1::InodeKind::BlockDevice,
        }
    }

    fn from_wire(number: i32) -> Result<Self> {
        let known = v1::InodeKind::try_from(number).ok().and_then(Self::known);
        known.ok_or_else(|| ClientError::protocol(PEER, format_args!("inode kind {number}")))
    }

    /// `None`: unspecified.
    pub(crate) fn known(kind: v1::InodeKind) -> Option<Self> {
        match kind {
            v1::InodeKind::File => Some(Self::File),
            v1::InodeKind::Directory => Some(Self::Directory),
            v1::InodeKind::Symlink => Some(Self::Symlink),
            v1::InodeKind::Fifo => Some(Self::Fifo),
            v1::InodeKind::Socket => Some(Self::Socket),
            v1::InodeKind::CharDevice => Some(Self::CharDevice),
            v1::InodeKind::BlockDevice => Some(Self::BlockDevice),
            v1::InodeKind::Unspecified => None,
        }
    }
}

/// Attributes of one inode, as stat(2) shows them. Times are nanoseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Which inode.
    pub inode: InodeId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 0 to 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
    /// Names; 0: unlinked, still open somewhere.
    pub nlink: u32,
    /// Bytes; of a symlink those of its target.
    pub size: u64,
    /// Bytes that extents cover.
    pub allocated: u64,
    /// Last access.
    pub atime_ns: i64,
    /// Last change of the content.
    pub mtime_ns: i64,
    /// Last change of the inode.
    pub ctime_ns: i64,
    /// Creation.
    pub btime_ns: i64,
    /// Raised by every change of the inode, its extents or xattrs.
    pub version: u64,
    /// Of directories: the inode of "..".
    pub parent: Option<InodeId>,
    /// Of symlinks.
    pub symlink_target: Option<Bytes>,
    /// `false`: no xattr can be found.
    pub has_xattrs: bool,
}

impl Attr {
    /// Checks what came over the wire.
    pub fn from_wire(attr: v1::Attr) -> Result<Self> {
        let id = |number| InodeId::new(number).map_err(|error| ClientError::protocol(PEER, error));
        let kind = Kind::from_wire(attr.kind)?;
        if attr.mode > 0o7777 || attr.size > i64::MAX as u64 {
            let what = format!("mode {:o} and size {} of inode {}", attr.mode, attr.size, attr.inode);
            return Err(ClientError::protocol(PEER, what));
        }
        Ok(Self {
            inode: id(attr.inode)?,
            kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            nlink: attr.nlink,
            size: attr.size,
            allocated: attr.allocated,
            atime_ns: attr.atime_ns,
            mtime_ns: attr.mtime_ns,
            ctime_ns: attr.ctime_ns,
            btime_ns: attr.btime_ns,
            version: attr.version,
            parent: if kind == Kind::Directory { Some(id(attr.parent)?) } else { None },
            symlink_target: (kind == Kind::Symlink).then_some(attr.symlink_target),
            has_xattrs: attr.has_xattrs,
        })
    }

    pub(crate) fn required(attr: Option<v1::Attr>) -> Result<Self> {
        Self::from_wire(attr.ok_or_else(|| ClientError::protocol(PEER, "an answer without attributes"))?)
    }

    pub(crate) fn optional(attr: Option<v1::Attr>) -> Result<Option<Self>> {
        attr.map(Self::from_wire).transpose()
    }
}

impl Guarded for Attr {
    fn id(&self) -> InodeId {
        self.inode
    }

    fn uid(&self) -> u32 {
        self.uid
    }

    fn gid(&self) -> u32 {
        self.gid
    }

    fn mode(&self) -> u32 {
        self.mode
    }

    fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// What a mutation gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Of the inode made, linked or changed; of a removed one as it is now.
    pub attr: Option<Attr>,
    /// Of the directory changed (of the source's, for a rename).
    pub parent: Option<Attr>,
    /// Rename: of the other directory.
    pub new_parent: Option<Attr>,
    /// Rename: of the inode that lost its name or was exchanged.
    pub replaced: Option<Attr>,
    /// Copy of a range: bytes copied, from its start on.
    pub copied: u64,
}

impl Applied {
    /// The inode made or changed; an answer without it breaks the protocol.
    pub fn into_attr(self) -> Result<Attr> {
        self.attr.ok_or_else(|| ClientError::protocol(PEER, "a result without attributes"))
    }

    pub(crate) fn from_wire(result: v1::MutationResult) -> Result<Self> {
        if let Some(error) = cairn_proto::WireError::from_fields(result.error, &result.message) {
            return Err(error.into());
        }
        Ok(Self {
            attr: Attr::optional(result.attr)?,
            parent: Attr::optional(result.parent)?,
            new_parent: Attr::optional(result.new_parent)?,
            replaced: Attr::optional(result.replaced)?,
            copied: result.copied,
        })
    }
}

/// Room in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes that can be stored.
    pub capacity: u64,
    /// Bytes that extents refer to.
    pub used: u64,
    /// Bytes that can still be written.
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Most inodes.
    pub inodes_max: u64,
}
