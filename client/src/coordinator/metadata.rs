//! Names, attributes, directories, layouts, membership.

use bytes::Bytes;
use cairn_proto::limits::BATCH_MAX;
use cairn_proto::{ErrorKind, FileName, InodeId, v1};

use super::{Coordinator, Rpc};
use crate::attr::{Applied, Attr, Caller, StatFs};
use crate::error::{ClientError, Result};
use crate::layout::Layout;
use crate::listing::DirPage;
use crate::session::OpenGuard;

const PEER: &str = "the coordinator";
/// Extents that come along with an open: two gigabytes of full chunks.
const OPEN_EXTENTS: u32 = 256;

impl Coordinator {
    /// The inode of a name in a directory.
    ///
    /// `NotFound`, `NotDirectory`, `AccessDenied` (search permission).
    pub async fn lookup(&self, parent: InodeId, name: &FileName, caller: &Caller) -> Result<Attr> {
        self.lookup_bytes(parent, name.to_bytes(), caller).await
    }

    /// The directory that holds a directory ("..").
    pub async fn parent_of(&self, directory: InodeId, caller: &Caller) -> Result<Attr> {
        self.lookup_bytes(directory, Bytes::from_static(b".."), caller).await
    }

    async fn lookup_bytes(&self, parent: InodeId, name: Bytes, caller: &Caller) -> Result<Attr> {
        let request = |_: &_| v1::LookupRequest {
            parent: parent.get(),
            name: name.clone(),
            credentials: Some(caller.to_wire()),
        };
        let send = |mut rpc: Rpc, request| async move { rpc.lookup(request).await };
        let answer: v1::LookupResponse = self.ask("look up a name", request, send).await?;
        Attr::required(answer.attr)
    }

    /// Attributes of an inode.
    pub async fn get_attr(&self, inode: InodeId) -> Result<Attr> {
        let request = |_: &_| v1::GetAttrRequest { inode: inode.get() };
        let send = |mut rpc: Rpc, request| async move { rpc.get_attr(request).await };
        let answer: v1::GetAttrResponse = self.ask("get attributes", request, send).await?;
        Attr::required(answer.attr)
    }

    /// A part of a directory: up to `limit` (1 to 65536) entries after the cookie `after` (0 starts).
    pub async fn read_dir(
        &self,
        inode: InodeId,
        after: u64,
        limit: u32,
        attributes: bool,
    ) -> Result<DirPage> {
        let request = |_: &_| v1::ReadDirRequest { inode: inode.get(), after, limit, attributes };
        let send = |mut rpc: Rpc, request| async move { rpc.read_dir(request).await };
        DirPage::from_wire(self.ask("list a directory", request, send).await?, after, attributes)
    }

    /// All extended attributes of an inode, as (name, value).
    pub async fn xattrs(&self, inode: InodeId) -> Result<Vec<(Bytes, Bytes)>> {
        let request = |_: &_| v1::GetXattrsRequest { inode: inode.get() };
        let send = |mut rpc: Rpc, request| async move { rpc.get_xattrs(request).await };
        let answer: v1::GetXattrsResponse = self.ask("get extended attributes", request, send).await?;
        Ok(answer.xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect())
    }

    /// Room in the cluster.
    pub async fn stat_fs(&self) -> Result<StatFs> {
        let request = |_: &_| v1::StatFsRequest {};
        let send = |mut rpc: Rpc, request| async move { rpc.stat_fs(request).await };
        let answer: v1::StatFsResponse = self.ask("ask for free space", request, send).await?;
        Ok(StatFs {
            capacity: answer.capacity,
            used: answer.used,
            available: answer.available,
            inodes: answer.inodes,
            inodes_max: answer.inodes_max,
        })
    }

    /// One mutation, exactly once; durable on return.
    ///
    /// Goes on in the background when the future is dropped. `SessionExpired`: the session ended
    /// meanwhile, and whether it was executed is unknown.
    pub async fn apply(&self, op: v1::mutation::Op, caller: &Caller) -> Result<Applied> {
        let mut results = self.apply_many(vec![op], caller).await?;
        results.pop().unwrap_or_else(|| Err(ClientError::protocol(PEER, "no result")))
    }

    /// Several mutations in order (at most 4096, else `InvalidArgument`); one that fails stops no
    /// other. The result of each, in the same order.
    pub async fn apply_many(
        &self,
        ops: Vec<v1::mutation::Op>,
        caller: &Caller,
    ) -> Result<Vec<Result<Applied>>> {
        if ops.is_empty() || ops.len() > BATCH_MAX {
            let message = format!("{} mutations in one call; 1 to {BATCH_MAX} are possible", ops.len());
            return Err(ClientError::new(ErrorKind::InvalidArgument, message));
        }
        let expected = ops.len();
        let mutations = ops.into_iter().map(|op| v1::Mutation { op: Some(op) }).collect();
        let (this, credentials) = (self.clone(), caller.to_wire());
        let answer = self.complete(async move { this.send_apply(mutations, credentials).await }).await?;
        if answer.results.len() != expected {
            let what = format!("{} results for {expected} mutations", answer.results.len());
            return Err(ClientError::protocol(PEER, what));
        }
        Ok(answer.results.into_iter().map(Applied::from_wire).collect())
    }

    /// Registers an open of a file: fresh attributes and the first extents. The open ends when the
    /// guard is dropped.
    pub async fn open(&self, inode: InodeId) -> Result<(OpenGuard, Layout)> {
        let this = self.clone();
        // In a task of its own, so that an open that the coordinator may have registered is closed
        // again when the caller goes away.
        self.complete(async move {
            let session = &this.shared.session;
            let sequence = session.opens.next_sequence();
            let guard = session.hold(inode, sequence);
            let layout = this.fetch_layout(inode, (0, i64::MAX as u64), OPEN_EXTENTS, Some(sequence)).await?;
            Ok((guard, layout))
        })
        .await
    }

    /// Creates a file and opens it. `create.open` is filled in; `create.exclusive` as the caller says.
    pub async fn create_open(&self, create: v1::Create, caller: &Caller) -> Result<(OpenGuard, Applied)> {
        let (this, credentials) = (self.clone(), caller.to_wire());
        self.complete(async move {
            let session = &this.shared.session;
            let sequence = session.opens.next_sequence();
            let answer = this.send_create(create, sequence, credentials).await?;
            let result = answer.results.into_iter().next();
            let result = result.ok_or_else(|| ClientError::protocol(PEER, "no result"))?;
            let applied = Applied::from_wire(result)?;
            let attr = applied.attr.as_ref();
            let inode = attr.ok_or_else(|| ClientError::protocol(PEER, "no attributes"))?.inode;
            Ok((session.hold(inode, sequence), applied))
        })
        .await
    }

    /// The extents of `[offset, offset + length)`, at most `extents_max` (1 to 65536) of them.
    pub async fn layout(&self, inode: InodeId, offset: u64, length: u64, extents_max: u32) -> Result<Layout> {
        self.fetch_layout(inode, (offset, length), extents_max, None).await
    }

    async fn fetch_layout(
        &self,
        inode: InodeId,
        (offset, length): (u64, u64),
        extents_max: u32,
        open: Option<u64>,
    ) -> Result<Layout> {
        let request = |identity: &crate::session::Identity| v1::DownloadFileRequest {
            inode: inode.get(),
            offset,
            length: length.min((i64::MAX as u64).saturating_sub(offset)),
            extents_max,
            open: open.map(|sequence| v1::OpenRegistration { session: identity.session.to_wire(), sequence }),
            map_revision: self.shared.map.revision(),
        };
        let send = |mut rpc: Rpc, request| async move { rpc.download_file(request).await };
        let mut answer: v1::DownloadFileResponse = self.ask("get a layout", request, send).await?;
        self.shared.map.adopt(answer.map.take());
        Layout::from_wire(offset, answer)
    }

    /// The map: datanodes and replica sets.
    pub async fn list_nodes(&self) -> Result<v1::ClusterMap> {
        let send = |mut rpc: Rpc, request| async move { rpc.list_nodes(request).await };
        let answer: v1::ListNodesResponse =
            self.ask("list the nodes", |_: &_| v1::ListNodesRequest {}, send).await?;
        answer.map.ok_or_else(|| ClientError::protocol(PEER, "no map"))
    }

    /// Counters and health of the cluster.
    pub async fn get_status(&self) -> Result<v1::GetStatusResponse> {
        let send = |mut rpc: Rpc, request| async move { rpc.get_status(request).await };
        self.ask("get the status", |_: &_| v1::GetStatusRequest {}, send).await
    }
}
