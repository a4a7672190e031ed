//! Entries of directories: found, added, removed, with what follows for the directory itself.

use cairn_proto::limits::LINK_MAX;
use cairn_proto::{ErrorKind, FileName, InodeId};

use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Dentry, Inode, Key, Kind};

/// Steps up to the root that are taken before the tree is held to be damaged.
const DEPTH_MAX: usize = 1 << 20;

impl Inode {
    /// Notes a change: new ctime and version.
    pub(super) fn changed(&mut self, now_ns: i64) {
        self.ctime_ns = now_ns;
        self.version += 1;
    }

    /// Notes a change of content (or entries): mtime as well.
    pub(super) fn modified(&mut self, now_ns: i64) {
        self.mtime_ns = now_ns;
        self.changed(now_ns);
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

pub(super) fn find_entry(tx: &mut Tx, parent: InodeId, name: &FileName) -> Result<Option<Dentry>, OpError> {
    Ok(tx.find(&Key::Dentry(parent, name.to_bytes()))?)
}

/// The entry and its inode. `NotFound`: there is no such name.
pub(super) fn need_entry(tx: &mut Tx, parent: InodeId, name: &FileName) -> Result<(Dentry, Inode), OpError> {
    let entry = find_entry(tx, parent, name)?.ok_or_else(|| no_entry(parent, name))?;
    let inode = entry_inode(tx, &entry)?;
    Ok((entry, inode))
}

/// The inode that an entry names.
pub(super) fn entry_inode(tx: &mut Tx, entry: &Dentry) -> Result<Inode, OpError> {
    tx.find(&Key::Inode(entry.child))?.ok_or_else(|| {
        let message = format!("directory {} names inode {}, which does not exist", entry.parent, entry.child);
        OpError::new(ErrorKind::Corrupt, message)
    })
}

pub(super) fn no_entry(parent: InodeId, name: &FileName) -> OpError {
    OpError::new(ErrorKind::NotFound, format!("no {name} in directory {parent}"))
}

pub(super) fn taken(parent: InodeId, name: &FileName) -> OpError {
    OpError::new(ErrorKind::Exists, format!("{name} is there already in directory {parent}"))
}

/// Adds a name at the end of the listing. The caller has checked that it is free, and puts `parent`.
pub(super) fn add_entry(
    tx: &mut Tx,
    parent: &mut Inode,
    name: &FileName,
    child: &Inode,
) -> Result<(), OpError> {
    if parent.nlink == 0 {
        return Err(OpError::new(ErrorKind::NotFound, format!("directory {} is removed", parent.id)));
    }
    if child.is_directory() {
        if parent.nlink >= LINK_MAX {
            let message = format!("directory {} has {} subdirectories", parent.id, parent.nlink - 2);
            return Err(OpError::new(ErrorKind::TooManyLinks, message));
        }
        parent.nlink += 1;
    }
    tx.put(Dentry {
        parent: parent.id,
        name: name.to_bytes(),
        child: child.id,
        kind: child.kind,
        cookie: parent.next_cookie,
    });
    parent.next_cookie += 1;
    parent.size += 1;
    parent.modified(tx.now_ns());
    Ok(())
}

/// Removes a name; the caller puts `parent` and sees to the inode.
pub(super) fn remove_entry(tx: &mut Tx, parent: &mut Inode, entry: &Dentry) {
    if entry.kind == Kind::Directory {
        parent.nlink = parent.nlink.saturating_sub(1);
    }
    tx.delete(Key::Dentry(entry.parent, entry.name.clone()));
    parent.size = parent.size.saturating_sub(1);
    parent.modified(tx.now_ns());
}

/// Whether `ancestor` is `directory` or lies above it.
pub(super) fn is_within(tx: &mut Tx, directory: &Inode, ancestor: InodeId) -> Result<bool, OpError> {
    let mut id = directory.id;
    let mut parent = directory.parent;
    for _ in 0..DEPTH_MAX {
        if id == ancestor {
            return Ok(true);
        }
        if id == InodeId::ROOT {
            return Ok(false);
        }
        id = InodeId::new(parent)?;
        parent = match tx.find::<Inode>(&Key::Inode(id))? {
            Some(inode) => inode.parent,
            // Above a removed directory there is nothing.
            None => return Ok(false),
        };
    }
    Err(OpError::new(ErrorKind::Corrupt, format!("directory {} lies in a loop", directory.id)))
}
