//! rename(2), also with RENAME_NOREPLACE and RENAME_EXCHANGE.

use cairn_proto::{ErrorKind, FileName, InodeId};

use super::access::{Caller, EXECUTE, WRITE};
use super::{Applied, directory, remove};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Dentry, Inode, Kind};

/// A change of name.
#[derive(Debug, Clone)]
pub(crate) struct Rename {
    pub(crate) parent: InodeId,
    pub(crate) name: FileName,
    pub(crate) new_parent: InodeId,
    pub(crate) new_name: FileName,
    pub(crate) mode: RenameMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RenameMode {
    /// What has the new name loses it.
    Replace,
    /// The new name must be free.
    NoReplace,
    /// Both names stay and trade inodes.
    Exchange,
}

/// The directories of a rename: `new` only when it is another one.
struct Parents {
    old: Inode,
    new: Option<Inode>,
}

impl Parents {
    fn target(&mut self) -> &mut Inode {
        self.new.as_mut().unwrap_or(&mut self.old)
    }

    fn put(self, tx: &mut Tx, inode: Inode, replaced: Option<Inode>) -> Applied {
        tx.put(self.old.clone());
        if let Some(new) = &self.new {
            tx.put(new.clone());
        }
        let (inode, parent) = (Some(inode), Some(self.old));
        Applied { inode, parent, new_parent: self.new, replaced, ..Applied::default() }
    }
}

pub(super) fn rename(tx: &mut Tx, op: &Rename, caller: &Caller) -> Result<Applied, OpError> {
    let old = tx.directory(op.parent)?;
    let new = if op.new_parent == op.parent { None } else { Some(tx.directory(op.new_parent)?) };
    let mut parents = Parents { old, new };
    caller.need(&parents.old, EXECUTE)?;
    caller.need(parents.target(), EXECUTE)?;
    let (entry, inode) = directory::need_entry(tx, op.parent, &op.name)?;
    let target = match directory::find_entry(tx, op.new_parent, &op.new_name)? {
        Some(entry) => {
            let inode = directory::entry_inode(tx, &entry)?;
            Some((entry, inode))
        }
        None => None,
    };
    match (op.mode, target) {
        (RenameMode::NoReplace, Some(_)) => Err(directory::taken(op.new_parent, &op.new_name)),
        (RenameMode::Exchange, None) => Err(directory::no_entry(op.new_parent, &op.new_name)),
        // Two names of one inode: nothing is to be done.
        (_, Some((_, other))) if other.id == inode.id => {
            let Parents { old, new } = parents;
            let (inode, parent) = (Some(inode), Some(old));
            Ok(Applied { inode, parent, new_parent: new, ..Applied::default() })
        }
        (RenameMode::Exchange, Some((other_entry, other))) => {
            exchange(tx, op, parents, (entry, inode), (other_entry, other), caller)
        }
        (_, target) => {
            may_remove(&parents.old, &inode, caller)?;
            may_move(tx, &mut parents, &inode, caller)?;
            match &target {
                Some((_, other)) => may_replace(parents.target(), &inode, other, caller)?,
                None => caller.need(parents.target(), WRITE | EXECUTE)?,
            }
            relocate(tx, op, parents, entry, inode, target)
        }
    }
}

/// Whether the caller may take an entry out of a directory.
fn may_remove(directory: &Inode, child: &Inode, caller: &Caller) -> Result<(), OpError> {
    caller.need(directory, WRITE | EXECUTE)?;
    Ok(caller.need_unstuck(directory, child)?)
}

/// A directory that moves must not end up below itself, and its ".." is written.
fn may_move(tx: &mut Tx, parents: &mut Parents, inode: &Inode, caller: &Caller) -> Result<(), OpError> {
    let Some(new) = parents.new.clone().filter(|_| inode.is_directory()) else { return Ok(()) };
    if directory::is_within(tx, &new, inode.id)? {
        return Err(OpError::invalid("a directory can not be moved below itself"));
    }
    Ok(caller.need(inode, WRITE)?)
}

fn may_replace(directory: &Inode, inode: &Inode, other: &Inode, caller: &Caller) -> Result<(), OpError> {
    may_remove(directory, other, caller)?;
    match (inode.is_directory(), other.is_directory()) {
        (true, false) => Err(OpError::new(ErrorKind::NotDirectory, "the new name is no directory")),
        (false, true) => Err(OpError::new(ErrorKind::IsDirectory, "the new name is a directory")),
        (true, true) if other.size > 0 => {
            Err(OpError::new(ErrorKind::NotEmpty, format!("the new name has {} entries", other.size)))
        }
        _ => Ok(()),
    }
}

fn relocate(
    tx: &mut Tx,
    op: &Rename,
    mut parents: Parents,
    entry: Dentry,
    mut inode: Inode,
    target: Option<(Dentry, Inode)>,
) -> Result<Applied, OpError> {
    let now_ns = tx.now_ns();
    directory::remove_entry(tx, &mut parents.old, &entry);
    let replaced = match target {
        Some((other_entry, other)) => {
            // The name stays where it is in the listing.
            let into = parents.target();
            if inode.is_directory() != other.is_directory() {
                return Err(OpError::invalid("a directory and a file can not replace one another"));
            }
            into.modified(now_ns);
            tx.put(Dentry { child: inode.id, kind: inode.kind, ..other_entry });
            Some(remove::drop_name(tx, other)?)
        }
        None => {
            let into = parents.target();
            directory::add_entry(tx, into, &op.new_name, &inode)?;
            None
        }
    };
    if inode.is_directory() {
        // A directory that replaced one: the link of its ".." has moved along.
        inode.parent = op.new_parent.get();
    }
    inode.changed(now_ns);
    tx.put(inode.clone());
    Ok(parents.put(tx, inode, replaced))
}

fn exchange(
    tx: &mut Tx,
    op: &Rename,
    mut parents: Parents,
    (entry, mut inode): (Dentry, Inode),
    (other_entry, mut other): (Dentry, Inode),
    caller: &Caller,
) -> Result<Applied, OpError> {
    let now_ns = tx.now_ns();
    may_remove(&parents.old, &inode, caller)?;
    may_remove(parents.target(), &other, caller)?;
    may_move(tx, &mut parents, &inode, caller)?;
    if parents.new.is_some() && other.is_directory() {
        if directory::is_within(tx, &parents.old.clone(), other.id)? {
            return Err(OpError::invalid("a directory can not be moved below itself"));
        }
        caller.need(&other, WRITE)?;
    }
    tx.put(Dentry { child: other.id, kind: other.kind, ..entry });
    tx.put(Dentry { child: inode.id, kind: inode.kind, ..other_entry });
    if let Some(new) = &mut parents.new {
        match (inode.kind == Kind::Directory, other.kind == Kind::Directory) {
            (true, false) => {
                parents.old.nlink = parents.old.nlink.saturating_sub(1);
                new.nlink += 1;
            }
            (false, true) => {
                new.nlink = new.nlink.saturating_sub(1);
                parents.old.nlink += 1;
            }
            _ => {}
        }
        new.modified(now_ns);
    }
    parents.old.modified(now_ns);
    if inode.is_directory() {
        inode.parent = op.new_parent.get();
    }
    if other.is_directory() {
        other.parent = op.parent.get();
    }
    inode.changed(now_ns);
    other.changed(now_ns);
    tx.put(inode.clone());
    tx.put(other.clone());
    Ok(parents.put(tx, inode, Some(other)))
}
