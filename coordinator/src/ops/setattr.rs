//! chmod(2), chown(2), truncate(2), utimensat(2), in one step as the kernel asks for them.

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::mode::{self, without_privileges};
use cairn_proto::{ByteRange, ErrorKind, InodeId};

use super::access::{Caller, Capability, WRITE, only_drops_privileges};
use super::chunks::LiveChanges;
use super::{Applied, extents, xattr};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Inode, Kind};

/// What is to change; the rest stays.
#[derive(Debug, Clone)]
pub(crate) struct SetAttr {
    pub(crate) inode: InodeId,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<TimeChange>,
    pub(crate) mtime: Option<TimeChange>,
    /// The file is open for writing: its permission bits are not asked again.
    pub(crate) via_handle: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeChange {
    Now,
    At(i64),
}

impl TimeChange {
    fn resolve(self, now_ns: i64) -> i64 {
        match self {
            Self::Now => now_ns,
            Self::At(time_ns) => time_ns,
        }
    }
}

pub(super) fn set_attr(tx: &mut Tx, op: &SetAttr, caller: &Caller) -> Result<Applied, OpError> {
    let mut inode = tx.inode(op.inode)?;
    let now_ns = tx.now_ns();
    // All permissions first, against the inode as it was.
    caller.need_to_give(&inode, op.uid, op.gid)?;
    may_chmod(op, &inode, caller)?;
    may_touch(op, &inode, caller)?;
    if op.size.is_some() && !op.via_handle {
        caller.need(&inode, WRITE)?;
    }
    if let Some(size) = op.size {
        truncate(tx, &mut inode, size, caller)?;
    }
    if op.uid.is_some() || op.gid.is_some() {
        inode.uid = op.uid.unwrap_or(inode.uid);
        inode.gid = op.gid.unwrap_or(inode.gid);
        if !inode.is_directory() {
            inode.mode = without_privileges(inode.mode);
            xattr::drop_capability(tx, &mut inode)?;
        }
    }
    if let Some(mode) = op.mode {
        inode.mode = mode::changed(mode, caller.is_trusted_with(inode.gid, &inode));
    }
    inode.atime_ns = op.atime.map_or(inode.atime_ns, |change| change.resolve(now_ns));
    inode.mtime_ns = op.mtime.map_or(inode.mtime_ns, |change| change.resolve(now_ns));
    inode.changed(now_ns);
    tx.put(inode.clone());
    Ok(Applied::inode(inode))
}

/// The owner's right. Dropping set-user-ID and set-group-ID alone is what a write by another user
/// does, so whoever may write may do that.
fn may_chmod(op: &SetAttr, inode: &Inode, caller: &Caller) -> Result<(), OpError> {
    let Some(mode) = op.mode else { return Ok(()) };
    let by_writing = only_drops_privileges(inode.mode, mode) && (op.via_handle || caller.may(inode, WRITE));
    if by_writing { Ok(()) } else { Ok(caller.need_owner(inode)?) }
}

/// utimensat(2): both times to now for whoever may write; anything else is the owner's right.
fn may_touch(op: &SetAttr, inode: &Inode, caller: &Caller) -> Result<(), OpError> {
    let explicit = |change: Option<TimeChange>| matches!(change, Some(TimeChange::At(_)));
    match (op.atime, op.mtime) {
        (None, None) => Ok(()),
        (Some(TimeChange::Now), Some(TimeChange::Now)) => {
            if caller.owns(inode) {
                Ok(())
            } else {
                Ok(caller.need(inode, WRITE)?)
            }
        }
        // A truncation brings the time of change along.
        (atime, mtime) if op.size.is_some() && !explicit(atime) && !explicit(mtime) => Ok(()),
        _ => Ok(caller.need_owner(inode)?),
    }
}

fn truncate(tx: &mut Tx, inode: &mut Inode, size: u64, caller: &Caller) -> Result<(), OpError> {
    match inode.kind {
        Kind::File => {}
        Kind::Directory => {
            return Err(OpError::new(ErrorKind::IsDirectory, "a directory has no length to set"));
        }
        _ => return Err(OpError::invalid("only a file's length can be set")),
    }
    if size > FILE_SIZE_MAX {
        return Err(OpError::new(ErrorKind::FileTooLarge, format!("{size} bytes; 2^63 - 1 are possible")));
    }
    if let Some(gone) = ByteRange::between(size, FILE_SIZE_MAX).filter(|_| size < inode.size) {
        let mut live = LiveChanges::default();
        extents::cut(tx, inode, gone, &mut live)?;
        live.apply(tx)?;
    }
    inode.size = size;
    inode.mtime_ns = tx.now_ns();
    xattr::drop_capability(tx, inode)?;
    if !caller.has(Capability::Fsetid) {
        inode.mode = without_privileges(inode.mode);
    }
    Ok(())
}
