//! Typed calls to the coordinator.

use bytes::Bytes;
use cairn_proto::{FileName, InodeId, v1};

use crate::attr::{Applied, Attr, Caller, DirPage, StatFs};
use crate::error::{ClientError, Result};
use crate::layout::Layout;

/// The metadata service: each call retries within the configured time and is executed exactly once.
#[derive(Clone)]
pub struct Coordinator {}

/// Keeps an inode alive on the coordinator until dropped.
#[derive(Debug)]
pub struct OpenGuard {
    inode: InodeId,
}

impl OpenGuard {
    /// Which inode.
    pub fn inode(&self) -> InodeId {
        self.inode
    }
}

impl Coordinator {
    /// The inode of a name in a directory.
    pub async fn lookup(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<Attr> {
        let _ = (parent, name, caller);
        Err(ClientError::Closed)
    }
    /// The directory that holds a directory ("..").
    pub async fn parent_of(&self, directory: InodeId, caller: &Caller) -> Result<Attr> {
        let _ = (directory, caller);
        Err(ClientError::Closed)
    }
    /// Attributes of an inode.
    pub async fn get_attr(&self, inode: InodeId) -> Result<Attr> {
        let _ = inode;
        Err(ClientError::Closed)
    }
    /// A part of a directory: up to `limit` entries after the cookie `after` (0 starts).
    pub async fn read_dir(&self, inode: InodeId, after: u64, limit: u32, attributes: bool) -> Result<DirPage> {
        let _ = (inode, after, limit, attributes);
        Err(ClientError::Closed)
    }
    /// All extended attributes of an inode, as (name, value).
    pub async fn xattrs(&self, inode: InodeId) -> Result<Vec<(Bytes, Bytes)>> {
        let _ = inode;
        Err(ClientError::Closed)
    }
    /// Room in the cluster.
    pub async fn stat_fs(&self) -> Result<StatFs> {
        Err(ClientError::Closed)
    }
    /// One mutation.
    pub async fn apply(&self, op: v1::mutation::Op, caller: &Caller) -> Result<Applied> {
        let _ = (op, caller);
        Err(ClientError::Closed)
    }
    /// Several mutations in order; one that fails stops no other.
    pub async fn apply_many(&self, ops: Vec<v1::mutation::Op>, caller: &Caller) -> Result<Vec<Result<Applied>>> {
        let _ = (ops, caller);
        Err(ClientError::Closed)
    }
    /// Registers an open of a file; fresh attributes and the first extents.
    pub async fn open(&self, inode: InodeId) -> Result<(OpenGuard, Layout)> {
        let _ = inode;
        Err(ClientError::Closed)
    }
    /// Creates a file and opens it. `create.open` is filled in.
    pub async fn create_open(&self, create: v1::Create, caller: &Caller) -> Result<(OpenGuard, Applied)> {
        let _ = (create, caller);
        Err(ClientError::Closed)
    }
    /// The extents of `[offset, offset + length)`, at most `extents_max` (1 to 65536) of them.
    pub async fn layout(&self, inode: InodeId, offset: u64, length: u64, extents_max: u32) -> Result<Layout> {
        let _ = (inode, offset, length, extents_max);
        Err(ClientError::Closed)
    }
    /// The map: datanodes and replica sets.
    pub async fn list_nodes(&self) -> Result<v1::ClusterMap> {
        Err(ClientError::Closed)
    }
    /// Counters and health of the cluster.
    pub async fn get_status(&self) -> Result<v1::GetStatusResponse> {
        Err(ClientError::Closed)
    }
}
