//! The permission check of path_resolution(7), for what is decided locally.

use cairn_proto::ErrorKind;

use super::{Result, VfsError};
use crate::{Attr, Caller, Kind};

/// Read a file, list a directory.
pub const MAY_READ: u32 = 4;
/// Write a file, change a directory.
pub const MAY_WRITE: u32 = 2;
/// Run a file, search a directory.
pub const MAY_EXECUTE: u32 = 1;

/// Whether `caller` may do all of `mask`.
pub(super) fn check(attr: &Attr, mask: u32, caller: &Caller) -> Result<()> {
    if permits(attr, mask & 7, caller) {
        Ok(())
    } else {
        Err(VfsError::refused(ErrorKind::AccessDenied, "the permission bits forbid it"))
    }
}

/// Whether the permission bits allow `caller` all of `mask`.
pub(crate) fn permits(attr: &Attr, mask: u32, caller: &Caller) -> bool {
    if caller.uid == 0 {
        // CAP_DAC_OVERRIDE: everything but running a file that nobody may run.
        let runs = attr.mode & 0o111 != 0 || attr.kind == Kind::Directory;
        return mask & MAY_EXECUTE == 0 || runs;
    }
    let bits = if caller.uid == attr.uid {
        attr.mode >> 6
    } else if caller.is_in_group(attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    bits & mask == mask
}
