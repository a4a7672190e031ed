//! link(2).

use cairn_proto::limits::LINK_MAX;
use cairn_proto::{ErrorKind, FileName, InodeId};

use super::access::{Caller, EXECUTE, WRITE};
use super::{Applied, directory};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Inode, Key};

pub(super) fn link(
    tx: &mut Tx,
    inode: InodeId,
    parent: InodeId,
    name: &FileName,
    caller: &Caller,
) -> Result<Applied, OpError> {
    let mut parent = tx.directory(parent)?;
    caller.need(&parent, EXECUTE)?;
    if directory::find_entry(tx, parent.id, name)?.is_some() {
        return Err(directory::taken(parent.id, name));
    }
    caller.need(&parent, WRITE | EXECUTE)?;
    let gone = || OpError::new(ErrorKind::NotFound, format!("inode {inode} has no name any more"));
    let mut inode: Inode =
        tx.find(&Key::Inode(inode))?.filter(|inode: &Inode| inode.nlink > 0).ok_or_else(gone)?;
    if inode.is_directory() {
        return Err(OpError::new(ErrorKind::NotPermitted, "a directory has one name only"));
    }
    if inode.nlink >= LINK_MAX {
        let message = format!("inode {} has {} names", inode.id, inode.nlink);
        return Err(OpError::new(ErrorKind::TooManyLinks, message));
    }
    inode.nlink += 1;
    inode.changed(tx.now_ns());
    directory::add_entry(tx, &mut parent, name, &inode)?;
    tx.put(inode.clone());
    tx.put(parent.clone());
    Ok(Applied { inode: Some(inode), parent: Some(parent), ..Applied::default() })
}
