//! Repairs of the metadata, for the check that finds what is wrong.
//!
//! The check reads a snapshot, and the store goes on changing. So a repair applies the difference that was
//! found (changes made meanwhile are differences, too, and add up), or makes sure that what it found is
//! still so. Nothing that holds content is removed.

use bytes::Bytes;
use cairn_proto::{ChunkId, ErrorKind, FileName, InodeId, NodeId, SessionId};

use super::{chunks, directory};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Chunk, Count, Counter, Dentry, Inode, Key, Kind};

/// Where inodes without names go.
const LOST_AND_FOUND: &str = "lost+found";

/// How far a number is from what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delta(i64);

impl Delta {
    pub(crate) fn between(is: u64, should: u64) -> Self {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Self(signed(should).saturating_sub(signed(is)))
    }

    fn to(self, value: u64) -> u64 {
        value.saturating_add_signed(self.0)
    }

    fn to_small(self, value: u32) -> u32 {
        u32::try_from(self.to(value.into())).unwrap_or(u32::MAX)
    }
}

/// One repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mend {
    Counter(Count, Delta),
    Links(InodeId, Delta),
    /// Entries of a directory.
    Entries(InodeId, Delta),
    /// Bytes that extents cover.
    Allocated(InodeId, Delta),
    Xattrs(InodeId, Delta),
    DeadRanges(InodeId, Delta),
    /// Bytes of a chunk that extents refer to.
    Live(ChunkId, Delta),
    /// Bad copies of a chunk.
    Faults(ChunkId, Delta),
    /// Of a directory that said the first and lies in the second.
    Parent(InodeId, u64, u64),
    /// A name for an inode that has none.
    Adopt(InodeId),
    /// A name whose inode does not exist.
    DropName(Dentry),
    DropFault(ChunkId, NodeId),
    /// A chunk in use that waits to be deleted.
    DropGarbage(i64, ChunkId),
    DropOrphan(InodeId, SessionId),
    DropXattr(InodeId, Bytes),
    /// The dead range that starts there, of an inode that is no file.
    DropDeadRange(InodeId, u64),
    /// Ids up to this one are in use.
    NextChunk(ChunkId),
}

/// Does it; false when there is nothing to do any more.
pub(crate) fn mend(tx: &mut Tx, mend: &Mend) -> Result<bool, OpError> {
    match mend {
        Mend::Counter(name, delta) => tx.count(*name, delta.0).map(|()| true).map_err(OpError::from),
        Mend::Links(id, delta) => change(tx, *id, |inode| inode.nlink = delta.to_small(inode.nlink)),
        Mend::Entries(id, delta) => change(tx, *id, |inode| inode.size = delta.to(inode.size)),
        Mend::Allocated(id, delta) => change(tx, *id, |inode| inode.allocated = delta.to(inode.allocated)),
        Mend::Xattrs(id, delta) => change(tx, *id, |inode| inode.xattrs = delta.to_small(inode.xattrs)),
        Mend::DeadRanges(id, delta) => dead_ranges(tx, *id, *delta),
        Mend::Live(id, delta) => live(tx, *id, *delta),
        Mend::Faults(id, delta) => {
            let Some(mut chunk) = tx.find::<Chunk>(&Key::Chunk(*id))? else { return Ok(false) };
            chunk.faults = delta.to_small(chunk.faults);
            tx.put(chunk);
            Ok(true)
        }
        Mend::Parent(id, from, to) => {
            let Some(mut inode) = tx.find::<Inode>(&Key::Inode(*id))? else { return Ok(false) };
            if inode.parent != *from {
                return Ok(false); // moved meanwhile
            }
            inode.parent = *to;
            tx.put(inode);
            Ok(true)
        }
        Mend::Adopt(id) => adopt(tx, *id),
        Mend::DropName(entry) => drop_name(tx, entry),
        Mend::DropFault(chunk, node) => {
            let gone = tx.get(&Key::Chunk(*chunk))?.is_none();
            drop_row(tx, Key::Fault(*chunk, *node), gone, Some(Count::Faults))
        }
        Mend::DropGarbage(not_before_ns, chunk) => {
            let in_use = tx.get(&Key::Chunk(*chunk))?.is_some();
            drop_row(tx, Key::Garbage(*not_before_ns, *chunk), in_use, Some(Count::Garbage))
        }
        Mend::DropOrphan(inode, session) => {
            let gone = tx.get(&Key::Inode(*inode))?.is_none();
            drop_row(tx, Key::Orphan(*inode, *session), gone, None)
        }
        Mend::DropXattr(inode, name) => {
            let gone = tx.get(&Key::Inode(*inode))?.is_none();
            drop_row(tx, Key::Xattr(*inode, name.clone()), gone, None)
        }
        Mend::DropDeadRange(inode, start) => {
            let file = tx.find::<Inode>(&Key::Inode(*inode))?.is_some_and(|inode| inode.kind == Kind::File);
            drop_row(tx, Key::DeadRange(*inode, *start), !file, None)
        }
        Mend::NextChunk(id) => {
            let next = tx.find::<Counter>(&Key::Counter(Count::NextChunk))?.map_or(1, |row| row.value);
            if next > id.get() {
                return Ok(false);
            }
            tx.put(Counter { name: Count::NextChunk, value: id.get() + 1 });
            Ok(true)
        }
    }
}

fn change(tx: &mut Tx, id: InodeId, change: impl FnOnce(&mut Inode)) -> Result<bool, OpError> {
    let Some(mut inode) = tx.find::<Inode>(&Key::Inode(id))? else { return Ok(false) };
    change(&mut inode);
    inode.changed(tx.now_ns());
    tx.put(inode);
    Ok(true)
}

/// What only the worker sees changes no version.
fn dead_ranges(tx: &mut Tx, id: InodeId, delta: Delta) -> Result<bool, OpError> {
    let file = tx.find::<Inode>(&Key::Inode(id))?.filter(|inode| inode.kind == Kind::File);
    let Some(mut inode) = file else { return Ok(false) };
    inode.set_dead_ranges(delta.to(inode.dead_ranges()));
    tx.put(inode);
    Ok(true)
}

/// The bytes themselves are counted apart, by the counter.
fn live(tx: &mut Tx, id: ChunkId, delta: Delta) -> Result<bool, OpError> {
    let Some(mut chunk) = tx.find::<Chunk>(&Key::Chunk(id))? else { return Ok(false) };
    chunk.live = delta.to(chunk.live);
    if chunk.live == 0 {
        chunks::discard(tx, &chunk)?;
    } else {
        tx.put(chunk);
    }
    Ok(true)
}

fn drop_row(tx: &mut Tx, key: Key, wanted: bool, counted: Option<Count>) -> Result<bool, OpError> {
    if !wanted || tx.get(&key)?.is_none() {
        return Ok(false);
    }
    tx.delete(key);
    if let Some(name) = counted {
        tx.count(name, -1)?;
    }
    Ok(true)
}

fn drop_name(tx: &mut Tx, entry: &Dentry) -> Result<bool, OpError> {
    let key = Key::Dentry(entry.parent, entry.name.clone());
    let same = tx.find::<Dentry>(&key)?.is_some_and(|now| now == *entry);
    if !same || tx.get(&Key::Inode(entry.child))?.is_some() {
        return Ok(false);
    }
    match tx.find::<Inode>(&Key::Inode(entry.parent))? {
        Some(mut parent) => {
            directory::remove_entry(tx, &mut parent, entry);
            tx.put(parent);
        }
        None => tx.delete(key),
    }
    Ok(true)
}

/// Gives an inode the name `/lost+found/NUMBER`.
fn adopt(tx: &mut Tx, id: InodeId) -> Result<bool, OpError> {
    let Some(mut inode) = tx.find::<Inode>(&Key::Inode(id))? else { return Ok(false) };
    let mut found = lost_and_found(tx)?;
    let name = FileName::new(Bytes::from(id.to_string()))?;
    if directory::find_entry(tx, found.id, &name)?.is_some() {
        return Ok(false);
    }
    directory::add_entry(tx, &mut found, &name, &inode)?;
    if inode.is_directory() {
        inode.parent = found.id.get();
        inode.nlink = inode.nlink.max(2);
    } else {
        inode.nlink = 1;
    }
    inode.changed(tx.now_ns());
    tx.put(inode);
    tx.put(found);
    Ok(true)
}

fn lost_and_found(tx: &mut Tx) -> Result<Inode, OpError> {
    let name = FileName::new(Bytes::from_static(LOST_AND_FOUND.as_bytes()))?;
    let mut root = tx.directory(InodeId::ROOT)?;
    if let Some(entry) = directory::find_entry(tx, root.id, &name)? {
        let inode = directory::entry_inode(tx, &entry)?;
        let taken =
            || OpError::new(ErrorKind::NotDirectory, format!("/{LOST_AND_FOUND} is no directory; move it"));
        return if inode.is_directory() { Ok(inode) } else { Err(taken()) };
    }
    let id = InodeId::new(tx.take_ids(Count::NextInode, 1)?)?;
    let now_ns = tx.now_ns();
    // Whose the files are is not known to whoever looks at them there: only root may.
    let inode = Inode {
        id,
        kind: Kind::Directory,
        mode: 0o700,
        uid: root.uid,
        gid: root.gid,
        rdev: 0,
        nlink: 2,
        size: 0,
        allocated: 0,
        atime_ns: now_ns,
        mtime_ns: now_ns,
        ctime_ns: now_ns,
        btime_ns: now_ns,
        version: 1,
        parent: root.id.get(),
        symlink_target: Bytes::new(),
        next_cookie: crate::store::FIRST_COOKIE,
        xattrs: 0,
    };
    directory::add_entry(tx, &mut root, &name, &inode)?;
    tx.put(root);
    tx.put(inode.clone());
    tx.count(Count::Inodes, 1)?;
    Ok(inode)
}
