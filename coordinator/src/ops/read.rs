//! Reads of names and attributes, from committed state.

use std::collections::BTreeMap;

use cairn_proto::{ErrorKind, FileName, InodeId};

use super::access::{Caller, EXECUTE};
use super::directory;
use crate::context::Policy;
use crate::error::OpError;
use crate::membership::state::{Members, NodeEntry, NodeState};
use crate::store::{self, AdminState, Count, Dentry, Inode, Key, Kind, Reader, Xattr};

/// Inode ids are 63 bits wide.
const INODES_MAX: u64 = i64::MAX as u64;

/// `StaleHandle`: the inode is gone.
pub(crate) fn inode(reader: &dyn Reader, id: InodeId) -> Result<Inode, OpError> {
    let stale = || OpError::new(ErrorKind::StaleHandle, format!("inode {id} is gone"));
    store::find(reader, &Key::Inode(id))?.ok_or_else(stale)
}

fn searchable(reader: &dyn Reader, id: InodeId, caller: &Caller) -> Result<Inode, OpError> {
    let gone = || OpError::new(ErrorKind::NotFound, format!("directory {id} is gone"));
    let parent: Inode = store::find(reader, &Key::Inode(id))?.ok_or_else(gone)?;
    if parent.kind != Kind::Directory {
        return Err(OpError::new(ErrorKind::NotDirectory, format!("inode {id} is no directory")));
    }
    caller.need(&parent, EXECUTE)?;
    Ok(parent)
}

/// The inode that a name stands for.
pub(crate) fn lookup(
    reader: &dyn Reader,
    parent: InodeId,
    name: &FileName,
    caller: &Caller,
) -> Result<Inode, OpError> {
    searchable(reader, parent, caller)?;
    let find = || -> Result<Dentry, OpError> {
        let entry = store::find(reader, &Key::Dentry(parent, name.to_bytes()))?;
        entry.ok_or_else(|| directory::no_entry(parent, name))
    };
    let mut entry = find()?;
    loop {
        if let Some(inode) = store::find(reader, &Key::Inode(entry.child))? {
            return Ok(inode);
        }
        // Without a snapshot the inode may have gone since its name was read. A name that a rename gave to
        // another one was there all the time.
        let now = find()?;
        if now.child == entry.child {
            return Err(directory::no_entry(parent, name));
        }
        entry = now;
    }
}

/// The directory above.
pub(crate) fn lookup_parent(reader: &dyn Reader, id: InodeId, caller: &Caller) -> Result<Inode, OpError> {
    let here = searchable(reader, id, caller)?;
    inode(reader, InodeId::new(here.parent)?)
}

/// All extended attributes.
pub(crate) fn xattrs(reader: &dyn Reader, id: InodeId) -> Result<(Inode, Vec<Xattr>), OpError> {
    let inode = inode(reader, id)?;
    let xattrs = match inode.xattrs {
        0 => Vec::new(),
        _ => store::list(reader, &super::xattr::all_of(id))?,
    };
    Ok((inode, xattrs))
}

/// Room in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    pub(crate) available: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_max: u64,
}

/// Room that several disks report of one file system: each of them could have it, and not all.
fn counted_twice<'a>(present: impl Iterator<Item = &'a NodeEntry>) -> u64 {
    let mut rooms: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for disk in present.flat_map(|entry| &entry.report.disks) {
        if !disk.filesystem.is_empty() {
            let room = disk.capacity.saturating_sub(disk.used).saturating_sub(disk.trash);
            rooms.entry(&disk.filesystem).or_default().push(room);
        }
    }
    let twice = |rooms: &Vec<u64>| {
        let all = rooms.iter().fold(0, |sum: u64, &room| sum.saturating_add(room));
        all - rooms.iter().max().copied().unwrap_or(0)
    };
    rooms.values().map(twice).fold(0, u64::saturating_add)
}

/// statfs(2): what users can store, which is a part of what disks can hold.
pub(crate) fn stat_fs(reader: &dyn Reader, members: &Members, policy: &Policy) -> Result<Room, OpError> {
    let counts = |entry: &&NodeEntry| {
        let away = matches!(entry.state, NodeState::Down | NodeState::Lost);
        !away && entry.row.admin != AdminState::Out
    };
    let present = || members.nodes.values().filter(counts);
    // With fewer datanodes than copies, each holds one.
    let copies = u64::from(policy.replicas).min(present().count() as u64).max(1);
    let capacity: u64 = present().map(|entry| entry.report.capacity).fold(0, u64::saturating_add);
    let free: u64 = present().map(NodeEntry::free).fold(0, u64::saturating_add);
    let shared = counted_twice(present());
    Ok(Room {
        capacity: capacity.saturating_sub(shared) / copies,
        used: store::count(reader, Count::Bytes)?,
        available: free.saturating_sub(shared) / copies,
        inodes: store::count(reader, Count::Inodes)?,
        inodes_max: INODES_MAX,
    })
}
