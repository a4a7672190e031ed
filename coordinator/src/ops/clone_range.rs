//! copy_file_range(2) within the file system: extents are copied, no byte moves. One call copies as many as fit one
//! job, and says how far it came; the caller goes on from there.

use cairn_proto::mode::without_privileges;
use cairn_proto::{ByteRange, ErrorKind};

use super::access::{Caller, Capability};
use super::chunks::LiveChanges;
use super::{Applied, CloneRange, extents, xattr};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Extent, Inode, Kind};

pub(super) fn clone_range(tx: &mut Tx, op: &CloneRange, caller: &Caller) -> Result<Applied, OpError> {
    let source = tx.inode(op.source)?;
    let mut destination = tx.inode(op.destination)?;
    need_file(&source)?;
    need_file(&destination)?;
    let end = op.source_range.end().min(source.size);
    let Some(wanted) = ByteRange::between(op.source_range.start(), end) else {
        // Behind the end there is nothing to copy.
        return Ok(Applied::inode(destination));
    };
    let extents_max = tx.extents_left();
    let mut found = extents::touching(tx, &source, wanted, extents_max + 1)?;
    let end = found.get(extents_max).map_or(wanted.end(), |first_left| first_left.offset);
    found.truncate(extents_max);
    let from = ByteRange::between(wanted.start(), end).unwrap_or(wanted);
    let to = ByteRange::new(op.destination_offset, wanted.len())
        .ok_or_else(|| OpError::new(ErrorKind::FileTooLarge, "the copy would end past 2^63 - 1"))?;
    if source.id == destination.id && wanted.intersection(to).is_some() {
        return Err(OpError::invalid("the ranges of one file overlap"));
    }
    let to = ByteRange::new(to.start(), from.len()).unwrap_or(to);
    let mut live = LiveChanges::default();
    extents::cut(tx, &mut destination, to, &mut live)?;
    for extent in found {
        if let Some(copy) = moved(&extent, from, to, &destination) {
            extents::insert(tx, &mut destination, copy, &mut live)?;
        }
    }
    live.apply(tx)?;
    destination.size = destination.size.max(to.end());
    xattr::drop_capability(tx, &mut destination)?;
    if !caller.has(Capability::Fsetid) {
        destination.mode = without_privileges(destination.mode);
    }
    destination.modified(tx.now_ns());
    tx.put(destination.clone());
    tx.context.unsynced.copy(source.id, destination.id);
    Ok(Applied { copied: from.len(), ..Applied::inode(destination) })
}

pub(super) fn need_file(inode: &Inode) -> Result<(), OpError> {
    match inode.kind {
        Kind::File => Ok(()),
        Kind::Directory => Err(OpError::new(ErrorKind::IsDirectory, "a directory has no content")),
        _ => Err(OpError::invalid("only files have content")),
    }
}

/// The part of an extent in `from`, as it lies in `to`.
fn moved(extent: &Extent, from: ByteRange, to: ByteRange, destination: &Inode) -> Option<Extent> {
    let part = ByteRange::between(extent.offset, extent.end())?.intersection(from)?;
    Some(Extent {
        inode: destination.id,
        offset: to.start() + (part.start() - from.start()),
        length: part.len(),
        chunk: extent.chunk,
        chunk_offset: extent.chunk_offset + (part.start() - extent.offset),
    })
}
