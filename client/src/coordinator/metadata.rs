//! Names, attributes, directories, layouts, membership.

use bytes::Bytes;
use cairn_proto::limits::MUTATIONS_MAX;
use cairn_proto::{ErrorKind, FileName, InodeId, v1};

use cairn_runtime::clock;

use super::calls::Call;
use super::{Coordinator, Rpc};
use crate::attr::{Applied, Attr, Caller, StatFs};
use crate::error::{ClientError, Result};
use crate::layout::Layout;
use crate::listing::{DirPage, PageLeases, Wish};
use crate::retry::TRY_TIME;
use crate::session::leases::Era;
use crate::session::{Identity, OpenGuard};

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
        let request = |identity: &Identity| v1::LookupRequest {
            parent: parent.get(),
            name: name.clone(),
            credentials: Some(caller.to_wire()),
            session: identity.session.to_wire(),
        };
        let send = |mut rpc: Rpc, request| async move { rpc.lookup(request).await };
        let answer: v1::LookupResponse = self.ask(Call("Lookup", "look up a name"), request, send).await?;
        Attr::required(answer.attr)
    }

    /// Attributes of an inode.
    pub async fn get_attr(&self, inode: InodeId) -> Result<Attr> {
        let request = |identity: &Identity| v1::GetAttrRequest {
            inode: inode.get(),
            session: identity.session.to_wire(),
        };
        let send = |mut rpc: Rpc, request| async move { rpc.get_attr(request).await };
        let answer: v1::GetAttrResponse = self.ask(Call("GetAttr", "get attributes"), request, send).await?;
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
        let request = v1::ReadDirRequest {
            inode: inode.get(),
            after,
            limit,
            attributes,
            ..v1::ReadDirRequest::default()
        };
        DirPage::from_wire(self.list(request).await?, after, attributes)
    }

    /// What is behind cookie `after` in a directory, with attributes, and the leases that it was given with.
    pub(crate) async fn read_dir_leased(
        &self,
        inode: InodeId,
        after: u64,
        limit: u32,
        wish: Wish,
    ) -> Result<(DirPage, PageLeases)> {
        let era = self.shared.session.leases.era();
        let request = v1::ReadDirRequest {
            inode: inode.get(),
            after,
            limit,
            attributes: true,
            want_leases: true,
            leases_of_part: wish.part,
            layouts: wish.layouts,
            want_write_lease: wish.write_lease,
            map_revision: self.shared.map.revision(),
            ..v1::ReadDirRequest::default()
        };
        let mut answer = self.list(request).await?;
        self.shared.map.adopt(answer.map.take());
        PageLeases::split(answer, after, era)
    }

    async fn list(&self, request: v1::ReadDirRequest) -> Result<v1::ReadDirResponse> {
        let request = |identity: &Identity| v1::ReadDirRequest {
            session: identity.session.to_wire(),
            ..request.clone()
        };
        let send = |mut rpc: Rpc, request| async move { rpc.read_dir(request).await };
        self.ask(Call("ReadDir", "list a directory"), request, send).await
    }

    /// Makes everything that was committed of an inode survive power loss, whoever committed it: content, and of a
    /// directory the names that other mounts were answered for.
    ///
    /// `ChunkNotFound`: some of the content is lost.
    pub async fn sync(&self, inode: InodeId) -> Result<()> {
        self.sync_what("make a file survive power loss", inode.get()).await
    }

    /// The same for everything that this session has committed.
    pub(crate) async fn sync_all(&self) -> Result<()> {
        self.sync_what("make all files survive power loss", 0).await
    }

    async fn sync_what(&self, what: &'static str, inode: u64) -> Result<()> {
        let request =
            |identity: &Identity| v1::SyncFileRequest { session: identity.session.to_wire(), inode };
        let send = |mut rpc: Rpc, request| async move { rpc.sync_file(request).await };
        let _: v1::SyncFileResponse = self.ask(Call("SyncFile", what), request, send).await?;
        Ok(())
    }

    /// All extended attributes of an inode, as (name, value).
    pub async fn xattrs(&self, inode: InodeId) -> Result<Vec<(Bytes, Bytes)>> {
        let request = |identity: &Identity| v1::GetXattrsRequest {
            inode: inode.get(),
            session: identity.session.to_wire(),
        };
        let send = |mut rpc: Rpc, request| async move { rpc.get_xattrs(request).await };
        let answer: v1::GetXattrsResponse =
            self.ask(Call("GetXattrs", "get extended attributes"), request, send).await?;
        Ok(answer.xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect())
    }

    /// Room in the cluster.
    pub async fn stat_fs(&self) -> Result<StatFs> {
        let request = |_: &_| v1::StatFsRequest {};
        let send = |mut rpc: Rpc, request| async move { rpc.stat_fs(request).await };
        let answer: v1::StatFsResponse =
            self.ask(Call("StatFs", "ask for free space"), request, send).await?;
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
        if ops.is_empty() || ops.len() > MUTATIONS_MAX {
            let message = format!("{} mutations in one call; 1 to {MUTATIONS_MAX} are possible", ops.len());
            return Err(ClientError::new(ErrorKind::InvalidArgument, message));
        }
        let expected = ops.len();
        let mutation = |op| v1::Mutation { op: Some(op), ..v1::Mutation::default() };
        let mutations = ops.into_iter().map(mutation).collect();
        let (this, credentials) = (self.clone(), caller.to_wire());
        let answer =
            self.complete(async move { this.send_apply(mutations, credentials, false).await }).await?;
        if answer.results.len() != expected {
            let what = format!("{} results for {expected} mutations", answer.results.len());
            return Err(ClientError::protocol(PEER, what));
        }
        Ok(answer.results.into_iter().map(Applied::from_wire).collect())
    }

    /// Registers an open of a file: fresh attributes and the first extents. The open ends when the
    /// guard is dropped.
    pub async fn open(&self, inode: InodeId) -> Result<(OpenGuard, Layout)> {
        let session = &self.shared.session;
        let sequence = session.opens.next_sequence();
        // No task of its own, which would cost a lone caller a wake-up.
        let opening = Opening { guard: Some(session.hold(inode, sequence)), tasks: &self.shared };
        let layout = self.fetch_layout(inode, (0, i64::MAX as u64), OPEN_EXTENTS, Some(sequence)).await;
        let guard = opening.answered();
        let layout = layout?;
        session.opens.registered(inode);
        Ok((guard.ok_or(ClientError::Closed)?, layout))
    }

    /// One mutation, exactly once, for a client that works under leases: with those that it was granted.
    /// The caller makes sure that it runs to its end.
    pub(crate) async fn apply_for_leases(
        &self,
        op: v1::mutation::Op,
        caller: &Caller,
        want_leases: bool,
    ) -> Result<Granted> {
        let era = self.shared.session.leases.era();
        let mutation = v1::Mutation { op: Some(op), ..v1::Mutation::default() };
        let answer = self.send_apply(vec![mutation], caller.to_wire(), want_leases).await?;
        Granted::from_answer(answer, era)
    }

    /// Creates a file and opens it. `create.open` is filled in; `create.exclusive` as the caller says.
    pub async fn create_open(&self, create: v1::Create, caller: &Caller) -> Result<(OpenGuard, Applied)> {
        let (this, caller) = (self.clone(), caller.clone());
        self.complete(async move {
            let (guard, granted) = this.create_open_for_leases(create, &caller, false).await?;
            Ok((guard, granted.applied))
        })
        .await
    }

    /// [`Self::create_open`] with the leases that were granted, when they are wanted. The caller makes sure
    /// that it runs to its end.
    pub(crate) async fn create_open_for_leases(
        &self,
        create: v1::Create,
        caller: &Caller,
        want_leases: bool,
    ) -> Result<(OpenGuard, Granted)> {
        let session = &self.shared.session;
        let era = session.leases.era();
        let (lists, sequence) = (session.opens.lists(), session.opens.next_sequence());
        let answer = self.send_create(create, sequence, caller.to_wire(), want_leases).await?;
        let granted = Granted::from_answer(answer, era)?;
        let attr = granted.applied.attr.as_ref();
        let inode = attr.ok_or_else(|| ClientError::protocol(PEER, "no attributes"))?.inode;
        let guard = session.hold(inode, sequence);
        if session.opens.lists() != lists {
            // It was not in the list, which may be that of a new session.
            match self.open(inode).await {
                Ok((again, _)) => drop(again),
                Err(error) => tracing::warn!(%inode, %error, "a new file can not be registered again"),
            }
        }
        Ok((guard, granted))
    }

    /// Ids for inodes that this client makes itself.
    pub(crate) async fn reserve_inodes(&self, count: u32) -> Result<std::ops::Range<u64>> {
        let request =
            |identity: &Identity| v1::ReserveInodesRequest { session: identity.session.to_wire(), count };
        let send = |mut rpc: Rpc, request| async move { rpc.reserve_inodes(request).await };
        let answer: v1::ReserveInodesResponse =
            self.ask(Call("ReserveInodes", "reserve inode ids"), request, send).await?;
        Ok(answer.first..answer.first.saturating_add(answer.count.into()))
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
        let request = |identity: &Identity| v1::DownloadFileRequest {
            inode: inode.get(),
            offset,
            length: length.min((i64::MAX as u64).saturating_sub(offset)),
            extents_max,
            open: open.map(|sequence| v1::OpenRegistration { session: identity.session.to_wire(), sequence }),
            map_revision: self.shared.map.revision(),
            session: identity.session.to_wire(),
        };
        let send = |mut rpc: Rpc, request| async move { rpc.download_file(request).await };
        let mut answer: v1::DownloadFileResponse =
            self.ask(Call("DownloadFile", "get a layout"), request, send).await?;
        self.shared.map.adopt(answer.map.take());
        Layout::from_wire(offset, answer)
    }

    /// The map: datanodes and replica sets.
    pub async fn list_nodes(&self) -> Result<v1::ClusterMap> {
        let send = |mut rpc: Rpc, request| async move { rpc.list_nodes(request).await };
        let answer: v1::ListNodesResponse =
            self.ask(Call("ListNodes", "list the nodes"), |_: &_| v1::ListNodesRequest {}, send).await?;
        answer.map.ok_or_else(|| ClientError::protocol(PEER, "no map"))
    }

    /// Counters and health of the cluster.
    pub async fn get_status(&self) -> Result<v1::GetStatusResponse> {
        let send = |mut rpc: Rpc, request| async move { rpc.get_status(request).await };
        self.ask(Call("GetStatus", "get the status"), |_: &_| v1::GetStatusRequest {}, send).await
    }
}

/// An open on its way. When its caller goes away before the answer, it is closed once the request can not be
/// under way any more: a close that overtakes its open would be forgotten.
struct Opening<'a> {
    guard: Option<OpenGuard>,
    tasks: &'a super::Shared,
}

impl Opening<'_> {
    fn answered(mut self) -> Option<OpenGuard> {
        self.guard.take()
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            let close_later = async move {
                clock::sleep(TRY_TIME).await;
                drop(guard);
            };
            drop(self.tasks.tasks.spawn_on(close_later, &self.tasks.runtime));
        }
    }
}

/// What a mutation gave, and the leases that came with it.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) applied: Applied,
    pub(crate) leases: Vec<v1::Lease>,
    /// When it was asked.
    pub(crate) era: Era,
}

impl Granted {
    fn from_answer(answer: v1::ApplyResponse, era: Era) -> Result<Self> {
        let result = answer.results.into_iter().next();
        let mut result = result.ok_or_else(|| ClientError::protocol(PEER, "no result"))?;
        let leases = std::mem::take(&mut result.leases);
        Ok(Self { applied: Applied::from_wire(result)?, leases, era })
    }
}
