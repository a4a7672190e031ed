//! Operations as their man pages describe them, and random ones against a small model.

mod namespace;
mod posix;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ClusterId, ErrorKind, FileName, InodeId};
use uuid::Uuid;

use super::access::Caller;
use super::{Applied, Create, Mutation, NewInode, Rename, RenameMode, SetAttr, apply};
use crate::archive::queue::Shipping;
use crate::attendance::Attendance;
use crate::cluster_clock::ClusterClock;
use crate::context::{Context, Policy, Sequence};
use crate::error::OpError;
use crate::executor::Tx;
use crate::leases::Leases;
use crate::membership::Cluster;
use crate::membership::state::{Members, Timing};
use crate::sessions::Sessions;
use crate::store::memory::MemoryStore;
use crate::store::{Count, Inode, Writer, count};
use crate::unsynced::UnsyncedFiles;

/// A view on a store, whose writer is wrapped first.
pub(crate) fn tx_on(store: &MemoryStore, wrap: impl FnOnce(Box<dyn Writer>) -> Box<dyn Writer>) -> Tx {
    let opened = store.open(ClusterId::from_uuid(Uuid::from_u128(1)), 1).unwrap();
    let timing = Timing {
        suspect_after: Duration::from_secs(3),
        down_after: Duration::from_secs(9),
        lost_after: Duration::from_secs(600),
    };
    let attendance = Arc::new(Attendance::unbroken());
    let members = Members::new(timing, vec![], vec![], 1, attendance.now());
    let context = Context {
        policy: Policy::default(),
        sessions: Sessions::new(Arc::clone(&attendance), Duration::from_secs(10), vec![], &[]),
        leases: Leases::new(Arc::clone(&attendance), Duration::from_secs(10), []),
        cluster: Cluster::new(opened.cluster, opened.term, members),
        sequence: Sequence::new(count(&*opened.writer, Count::Sequence).unwrap()),
        unsynced: UnsyncedFiles::new(false),
        shipping: Arc::new(Shipping::off()),
        attendance,
        clock: ClusterClock::default(),
    };
    Tx::new(wrap(opened.writer), Arc::new(context))
}

/// A view on a new store.
pub(crate) fn tx() -> Tx {
    tx_on(&MemoryStore::default(), |writer| writer)
}

pub(crate) fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

pub(crate) fn make_file(tx: &mut Tx, text: &str) -> Inode {
    let made = create(tx, InodeId::ROOT, text, plain_file(), 0o644, &root());
    made.unwrap().inode.unwrap()
}

fn root() -> Caller {
    Caller::default()
}

fn user(uid: u32) -> Caller {
    Caller::user(uid, uid, vec![])
}

fn plain_file() -> NewInode {
    NewInode::File { exclusive: true, open: None }
}

fn create(
    tx: &mut Tx,
    parent: InodeId,
    text: &str,
    new: NewInode,
    mode: u32,
    caller: &Caller,
) -> Result<Applied, OpError> {
    tx.attempt(|tx| {
        apply(
            tx,
            &Mutation::Create(Create { parent, name: name(text), new, mode, id: None, lease: false }),
            caller,
        )
    })
}

fn make_dir(tx: &mut Tx, parent: InodeId, text: &str, mode: u32, caller: &Caller) -> Inode {
    create(tx, parent, text, NewInode::Directory, mode, caller).unwrap().inode.unwrap()
}

fn run(tx: &mut Tx, mutation: Mutation, caller: &Caller) -> Result<Applied, OpError> {
    tx.attempt(|tx| apply(tx, &mutation, caller))
}

fn unlink(tx: &mut Tx, parent: InodeId, text: &str, caller: &Caller) -> Result<Applied, OpError> {
    run(tx, Mutation::Unlink { parent, name: name(text) }, caller)
}

fn rmdir(tx: &mut Tx, parent: InodeId, text: &str, caller: &Caller) -> Result<Applied, OpError> {
    run(tx, Mutation::Rmdir { parent, name: name(text) }, caller)
}

fn link(tx: &mut Tx, inode: InodeId, parent: InodeId, text: &str) -> Result<Applied, OpError> {
    run(tx, Mutation::Link { inode, parent, name: name(text) }, &root())
}

fn rename(
    tx: &mut Tx,
    (parent, from): (InodeId, &str),
    (new_parent, to): (InodeId, &str),
    mode: RenameMode,
    caller: &Caller,
) -> Result<Applied, OpError> {
    let op = Rename { parent, name: name(from), new_parent, new_name: name(to), mode };
    run(tx, Mutation::Rename(op), caller)
}

pub(crate) fn set(inode: InodeId) -> SetAttr {
    SetAttr {
        inode,
        mode: None,
        uid: None,
        gid: None,
        size: None,
        atime: None,
        mtime: None,
        via_handle: false,
    }
}

fn kind_of<T>(result: Result<T, OpError>) -> Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}
