//! What a mutation of names was performed on: it is executed only while its names lead to the same inodes.
//!
//! A mount performs mutations under leases, and may have to send them again when it does not know whether they were
//! executed. By name alone a rename or a removal would then act on what the mutations behind it have put there.

use cairn_proto::{ErrorKind, FileName, InodeId};
use cairn_runtime::bugs::{Bug, planted};

use super::create::register;
use super::{Applied, Create, Mutation, directory};
use crate::error::OpError;
use crate::executor::Tx;

/// The inodes that the names of a mutation led to; `None`: there was no such name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundNames {
    pub(crate) name: Option<InodeId>,
    /// The new name of a rename.
    pub(crate) new_name: Option<InodeId>,
}

/// Whether a mutation may be executed: its names lead where they led. What it has made, when it was executed before.
///
/// `NameChanged`: they lead elsewhere.
pub(super) fn check(
    tx: &mut Tx,
    mutation: &Mutation,
    found: Option<FoundNames>,
) -> Result<Option<Applied>, OpError> {
    let Some(found) = found.filter(|_| !planted(Bug::BatchExecutedTwice)) else { return Ok(None) };
    match mutation {
        Mutation::Create(op) => {
            if op.id.is_some() && entry(tx, op.parent, &op.name)? == op.id {
                return made_before(tx, op);
            }
            expect(tx, op.parent, &op.name, found.name)?;
        }
        Mutation::Link { parent, name, .. }
        | Mutation::Unlink { parent, name }
        | Mutation::Rmdir { parent, name } => expect(tx, *parent, name, found.name)?,
        Mutation::Rename(op) => {
            expect(tx, op.parent, &op.name, found.name)?;
            expect(tx, op.new_parent, &op.new_name, found.new_name)?;
        }
        Mutation::SetAttr(_)
        | Mutation::SetXattr(_)
        | Mutation::RemoveXattr { .. }
        | Mutation::CloneRange(_)
        | Mutation::Allocate(_) => {}
    }
    Ok(None)
}

fn entry(tx: &mut Tx, parent: InodeId, name: &FileName) -> Result<Option<InodeId>, OpError> {
    Ok(directory::find_entry(tx, parent, name)?.map(|entry| entry.child))
}

fn expect(tx: &mut Tx, parent: InodeId, name: &FileName, expected: Option<InodeId>) -> Result<(), OpError> {
    let present = entry(tx, parent, name)?;
    if present == expected {
        return Ok(());
    }
    let show =
        |inode: Option<InodeId>| inode.map_or_else(|| "nothing".to_owned(), |id| format!("inode {id}"));
    let message =
        format!("{name} in directory {parent} leads to {}, not to {}", show(present), show(expected));
    Err(OpError::new(ErrorKind::NameChanged, message))
}

/// The open that comes with it counts again: it may be one of another session.
fn made_before(tx: &mut Tx, op: &Create) -> Result<Option<Applied>, OpError> {
    let (_, inode) = directory::need_entry(tx, op.parent, &op.name)?;
    let parent = tx.directory(op.parent)?;
    register(tx, op, &inode)?;
    Ok(Some(Applied { inode: Some(inode), parent: Some(parent), ..Applied::default() }))
}

#[cfg(test)]
mod tests;
