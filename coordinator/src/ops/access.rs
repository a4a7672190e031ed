//! Who may do what: the rules of [`cairn_proto::posix`], on rows of the store.

use cairn_proto::InodeId;
use cairn_proto::mode::{SET_GROUP_ID, SET_USER_ID};
pub(crate) use cairn_proto::posix::{Caller, Capability};
use cairn_proto::posix::{Denied, Guarded, MAY_EXECUTE, MAY_WRITE};

use crate::error::OpError;
use crate::store::{Inode, Kind};

pub(crate) const WRITE: u32 = MAY_WRITE;
pub(crate) const EXECUTE: u32 = MAY_EXECUTE;

impl Guarded for Inode {
    fn id(&self) -> InodeId {
        self.id
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

impl From<Denied> for OpError {
    fn from(denied: Denied) -> Self {
        Self::new(denied.kind(), denied.to_string())
    }
}

/// Whether two modes differ only in that the second lacks set-user-ID or set-group-ID.
pub(crate) fn only_drops_privileges(from: u32, to: u32) -> bool {
    from & !(SET_USER_ID | SET_GROUP_ID) == to & !(SET_USER_ID | SET_GROUP_ID) && to & !from == 0
}
