//! rmdir(2).

use cairn_proto::{ErrorKind, FileName, InodeId};

use super::access::{Caller, EXECUTE, WRITE};
use super::{Applied, directory, remove};
use crate::error::OpError;
use crate::executor::Tx;

pub(super) fn rmdir(
    tx: &mut Tx,
    parent: InodeId,
    name: &FileName,
    caller: &Caller,
) -> Result<Applied, OpError> {
    let mut parent = tx.directory(parent)?;
    caller.need(&parent, EXECUTE)?;
    let (entry, inode) = directory::need_entry(tx, parent.id, name)?;
    caller.need(&parent, WRITE | EXECUTE)?;
    caller.need_unstuck(&parent, &inode)?;
    if !inode.is_directory() {
        return Err(OpError::new(ErrorKind::NotDirectory, format!("{name} is no directory")));
    }
    if inode.size > 0 {
        return Err(OpError::new(ErrorKind::NotEmpty, format!("{name} has {} entries", inode.size)));
    }
    directory::remove_entry(tx, &mut parent, &entry);
    tx.put(parent.clone());
    let inode = remove::drop_name(tx, inode)?;
    Ok(Applied { inode: Some(inode), parent: Some(parent), ..Applied::default() })
}
