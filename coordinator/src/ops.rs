//! Operations on metadata, one file each.
//!
//! An operation is synchronous, reads rows, changes rows, and knows neither SQL nor gRPC. It runs
//! on the executor's thread against a [`Tx`]; when it fails, the executor drops what it changed.
//! Reads that change nothing ([`read`], [`layout`]) run beside it on committed state.

pub(crate) mod access;
mod allocate;
pub(crate) mod batch;
mod chunks;
mod clone_range;
pub(crate) mod commit;
pub(crate) mod compact;
mod create;
mod directory;
pub(crate) mod extents;
pub(crate) mod faults;
pub(crate) mod found;
pub(crate) mod gc;
pub(crate) mod layout;
mod link;
pub(crate) mod listing;
pub(crate) mod members;
pub(crate) mod mend;
pub(crate) mod open;
pub(crate) mod plan;
pub(crate) mod read;
pub(crate) mod reconcile;
pub(crate) mod remove;
mod rename;
pub(crate) mod reserve;
mod rmdir;
pub(crate) mod rollback;
mod setattr;
mod unlink;
pub(crate) mod unsynced;
pub(crate) mod xattr;

use bytes::Bytes;
use cairn_proto::{ByteRange, FileName, InodeId, SymlinkTarget};

use crate::error::OpError;
use crate::executor::Tx;
use crate::sessions::Open;
use crate::store::Inode;
use access::Caller;
pub(crate) use create::{Create, NewInode};
pub(crate) use rename::{Rename, RenameMode};
pub(crate) use setattr::{SetAttr, TimeChange};
pub(crate) use xattr::SetXattr;

/// One mutation, checked.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    Create(Create),
    Link { inode: InodeId, parent: InodeId, name: FileName },
    Unlink { parent: InodeId, name: FileName },
    Rmdir { parent: InodeId, name: FileName },
    Rename(Rename),
    SetAttr(SetAttr),
    SetXattr(SetXattr),
    RemoveXattr { inode: InodeId, name: Bytes },
    CloneRange(CloneRange),
    Allocate(Allocate),
}

/// copy_file_range(2) as a copy of extents.
#[derive(Debug, Clone)]
pub(crate) struct CloneRange {
    pub(crate) source: InodeId,
    pub(crate) source_range: ByteRange,
    pub(crate) destination: InodeId,
    pub(crate) destination_offset: u64,
}

/// fallocate(2).
#[derive(Debug, Clone)]
pub(crate) struct Allocate {
    pub(crate) inode: InodeId,
    pub(crate) range: ByteRange,
    pub(crate) keep_size: bool,
    pub(crate) make_hole: bool,
}

/// Inodes as a mutation leaves them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Made, linked or changed; or removed, as it is now.
    pub(crate) inode: Option<Inode>,
    /// The directory changed; the source's for a rename.
    pub(crate) parent: Option<Inode>,
    /// The other directory of a rename.
    pub(crate) new_parent: Option<Inode>,
    /// What lost its name in a rename, or was exchanged.
    pub(crate) replaced: Option<Inode>,
    /// Bytes of a range that were copied, from its start on.
    pub(crate) copied: u64,
}

impl Applied {
    fn inode(inode: Inode) -> Self {
        Self { inode: Some(inode), ..Self::default() }
    }
}

/// Executes one mutation; when it fails, nothing of it stays.
pub(crate) fn apply(tx: &mut Tx, mutation: &Mutation, caller: &Caller) -> Result<Applied, OpError> {
    tx.nested(|tx| match mutation {
        Mutation::Create(op) => create::create(tx, op, caller),
        Mutation::Link { inode, parent, name } => link::link(tx, *inode, *parent, name, caller),
        Mutation::Unlink { parent, name } => unlink::unlink(tx, *parent, name, caller),
        Mutation::Rmdir { parent, name } => rmdir::rmdir(tx, *parent, name, caller),
        Mutation::Rename(op) => rename::rename(tx, op, caller),
        Mutation::SetAttr(op) => setattr::set_attr(tx, op, caller),
        Mutation::SetXattr(op) => xattr::set(tx, op, caller),
        Mutation::RemoveXattr { inode, name } => xattr::remove(tx, *inode, name, caller),
        Mutation::CloneRange(op) => clone_range::clone_range(tx, op, caller),
        Mutation::Allocate(op) => allocate::allocate(tx, op, caller),
    })
}

/// A registration of an open that comes with another request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenBy {
    pub(crate) session: cairn_proto::SessionId,
    pub(crate) sequence: u64,
}

impl OpenBy {
    pub(crate) fn of(self, inode: InodeId) -> Open {
        Open { inode, sequence: self.sequence }
    }
}

/// The target of a symlink that is to be made.
pub(crate) type Target = SymlinkTarget;

#[cfg(test)]
pub(crate) mod tests;
