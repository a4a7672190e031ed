//! fallocate(2). Room is not set aside: chunks are placed when they are written.

use cairn_proto::mode::without_privileges;

use super::access::{Caller, Capability};
use super::chunks::LiveChanges;
use super::{Allocate, Applied, clone_range, extents, xattr};
use crate::error::OpError;
use crate::executor::Tx;

pub(super) fn allocate(tx: &mut Tx, op: &Allocate, caller: &Caller) -> Result<Applied, OpError> {
    let mut inode = tx.inode(op.inode)?;
    clone_range::need_file(&inode)?;
    let before = inode.clone();
    let grows = !op.keep_size && op.range.end() > inode.size;
    if op.make_hole {
        let mut live = LiveChanges::default();
        extents::cut(tx, &mut inode, op.range, &mut live)?;
        live.apply(tx)?;
    }
    if grows {
        inode.size = op.range.end();
    }
    xattr::drop_capability(tx, &mut inode)?;
    if !caller.has(Capability::Fsetid) {
        inode.mode = without_privileges(inode.mode);
    }
    if op.make_hole || grows {
        inode.modified(tx.now_ns());
        tx.put(inode.clone());
    } else if inode != before {
        inode.changed(tx.now_ns());
        tx.put(inode.clone());
    }
    Ok(Applied::inode(inode))
}
