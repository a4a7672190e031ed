//! Who may do what, as path_resolution(7), unlink(2), chmod(2) and chown(2) say.

use cairn_proto::ErrorKind;
use cairn_proto::mode::{SET_GROUP_ID, SET_USER_ID, STICKY};

use crate::error::OpError;
use crate::store::{Inode, Kind};

pub(crate) const WRITE: u32 = 2;
pub(crate) const EXECUTE: u32 = 1;

/// Who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
}

impl Caller {
    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub(crate) fn owns(&self, inode: &Inode) -> bool {
        self.is_root() || self.uid == inode.uid
    }

    pub(crate) fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the caller may give a file the identity of this group.
    pub(crate) fn is_trusted_with(&self, gid: u32) -> bool {
        self.is_root() || self.is_in_group(gid)
    }

    /// Whether the permission bits allow `wanted`: one class decides, the first that fits.
    pub(crate) fn may(&self, inode: &Inode, wanted: u32) -> bool {
        if self.is_root() {
            // Root executes a file only if somebody may.
            return wanted & EXECUTE == 0 || inode.kind == Kind::Directory || inode.mode & 0o111 != 0;
        }
        let shift = match () {
            () if self.uid == inode.uid => 6,
            () if self.is_in_group(inode.gid) => 3,
            () => 0,
        };
        (inode.mode >> shift) & wanted == wanted
    }

    /// `AccessDenied` unless the permission bits allow `wanted`.
    pub(crate) fn need(&self, inode: &Inode, wanted: u32) -> Result<(), OpError> {
        if self.may(inode, wanted) {
            return Ok(());
        }
        let message = format!("uid {} has no permission on inode {}", self.uid, inode.id);
        Err(OpError::new(ErrorKind::AccessDenied, message))
    }

    /// `NotPermitted` unless the caller owns the inode or is root.
    pub(crate) fn need_owner(&self, inode: &Inode) -> Result<(), OpError> {
        if self.owns(inode) {
            return Ok(());
        }
        let message = format!("uid {} does not own inode {}", self.uid, inode.id);
        Err(OpError::new(ErrorKind::NotPermitted, message))
    }

    /// `NotPermitted` when the directory is sticky and neither it nor the entry is the caller's.
    pub(crate) fn need_unstuck(&self, directory: &Inode, child: &Inode) -> Result<(), OpError> {
        if directory.mode & STICKY == 0 || self.owns(directory) || self.owns(child) {
            return Ok(());
        }
        let message =
            format!("directory {} is sticky and inode {} belongs to others", directory.id, child.id);
        Err(OpError::new(ErrorKind::NotPermitted, message))
    }
}

/// Whether two modes differ only in that the second lacks set-user-ID or set-group-ID.
pub(crate) fn only_drops_privileges(from: u32, to: u32) -> bool {
    from & !(SET_USER_ID | SET_GROUP_ID) == to & !(SET_USER_ID | SET_GROUP_ID) && to & !from == 0
}
