//! The gRPC edge: decodes and checks what arrives, calls one function, encodes the answer.
//!
//! Single rows are read right here, on the worker thread that has the request: they come from
//! memory in a few microseconds, and a hop to another thread would cost a lone caller several times
//! that. Long listings and layouts go to a pool of threads, unless a listing is known from before.

mod backup;
mod coherence;
mod consistency;
mod content;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod membership;
mod metadata;
mod session;
mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cairn_proto::v1::coordinator_server::Coordinator;
use cairn_proto::{ErrorKind, status_from, v1};
use cairn_runtime::clock;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::threads::Pool;
use futures::Stream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::archive::shipper::BaseRequest;
use crate::context::Context;
use crate::datanodes::Datanodes;
use crate::error::OpError;
use crate::executor::Executor;
use crate::listings::Listings;
use crate::metrics;
use crate::slots::UnderWay;
use crate::store::{Reader, Readers};
use crate::workers::Workers;

use crate::workers::gc::GcState;
pub(crate) use membership::health;

/// See [`Shared::store_room`].
pub(crate) type StoreRoom = Box<dyn Fn() -> std::io::Result<u64> + Send + Sync>;

/// What every request may need.
pub(crate) struct Shared {
    pub(crate) context: Arc<Context>,
    pub(crate) executor: Executor,
    pub(crate) under_way: UnderWay,
    pub(crate) readers: Arc<dyn Readers>,
    /// Asks for a base backup in the second place, when there is one.
    pub(crate) backups: Option<mpsc::Sender<BaseRequest>>,
    /// For reads of many rows.
    pub(crate) pool: Pool,
    /// Pages of large directories.
    pub(crate) listings: Listings,
    pub(crate) shutdown: Shutdown,
    /// What datanodes are asked about the chunks they hold.
    pub(crate) gc: GcState,
    /// One permit: one check of everything at a time.
    pub(crate) fsck: Arc<tokio::sync::Semaphore>,
    /// How often datanodes shall report.
    pub(crate) heartbeat: std::time::Duration,
    pub(crate) started_ns: i64,
    /// Numbers streams of heartbeats, so that the end of an old one is told from that of a new one.
    pub(crate) streams: AtomicU64,
    pub(crate) datanodes: Datanodes,
    pub(crate) workers: Workers,
    /// Asks how many bytes are free where the store is; none for a store in memory.
    pub(crate) store_room: Option<StoreRoom>,
    /// Chunks of which no copy is known to be sound, as repair has last seen.
    pub(crate) lost_chunks: AtomicU64,
}

impl Shared {
    /// Reads on this thread: a few rows.
    pub(crate) fn read<T>(
        &self,
        consistent: bool,
        read: impl FnOnce(&dyn Reader) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        read_beside_writer(&*self.readers, consistent, read)
    }

    /// Reads on a thread of the pool: a page of rows that may have been changed lately. The writer may have to wait
    /// for it.
    pub(crate) async fn read_page<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Reader) -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        let readers = Arc::clone(&self.readers);
        self.on_pool(move || read_beside_writer(&*readers, true, read)).await
    }

    /// Reads on a thread of the pool: many rows.
    pub(crate) async fn read_many<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Reader) -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        let readers = Arc::clone(&self.readers);
        self.on_pool(move || read(&*readers.reader(true)?)).await
    }

    async fn on_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        self.pool.run(work).await.map_err(|error| OpError::new(error.kind(), error.to_string()))?
    }
}

fn read_beside_writer<T>(
    readers: &dyn Readers,
    consistent: bool,
    read: impl FnOnce(&dyn Reader) -> Result<T, OpError>,
) -> Result<T, OpError> {
    let mut read = Some(read);
    let mut found = None;
    readers.beside_writer(&mut |reader| found = read.take().map(|read| read(reader)));
    match (found, read) {
        (Some(found), _) => found,
        (None, Some(read)) => read(&*readers.reader(consistent)?),
        (None, None) => Err(OpError::new(ErrorKind::Internal, "a read gave no answer")),
    }
}

/// The service.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Shared>);

/// Measures a request and turns its error into a status.
async fn answer<T>(
    method: &'static str,
    request: impl Future<Output = Result<T, OpError>>,
) -> Result<Response<T>, Status> {
    let began = clock::now();
    let result = request.await;
    metrics::request(method, began.elapsed());
    result.map(Response::new).map_err(|error| refuse(method, &error))
}

/// The status of an error; what asks for a person is logged here, once.
pub(crate) fn refuse(method: &'static str, error: &OpError) -> Status {
    let kind = error.kind();
    metrics::refused(method, kind);
    match kind {
        ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::Internal => {
            tracing::error!(method, %error, "a request failed");
        }
        _ => tracing::debug!(method, ?kind, %error, "a request was refused"),
    }
    status_from(kind, error.to_string())
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Service {
    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        answer("Lookup", metadata::lookup(&self.0, request.into_inner())).await
    }

    async fn get_attr(
        &self,
        request: Request<v1::GetAttrRequest>,
    ) -> Result<Response<v1::GetAttrResponse>, Status> {
        answer("GetAttr", metadata::get_attr(&self.0, request.into_inner())).await
    }

    async fn read_dir(
        &self,
        request: Request<v1::ReadDirRequest>,
    ) -> Result<Response<v1::ReadDirResponse>, Status> {
        answer("ReadDir", metadata::read_dir(&self.0, request.into_inner())).await
    }

    async fn get_xattrs(
        &self,
        request: Request<v1::GetXattrsRequest>,
    ) -> Result<Response<v1::GetXattrsResponse>, Status> {
        answer("GetXattrs", metadata::get_xattrs(&self.0, request.into_inner())).await
    }

    async fn stat_fs(&self, _: Request<v1::StatFsRequest>) -> Result<Response<v1::StatFsResponse>, Status> {
        answer("StatFs", metadata::stat_fs(&self.0)).await
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        answer("Apply", metadata::apply(&self.0, request.into_inner())).await
    }

    async fn reserve_inodes(
        &self,
        request: Request<v1::ReserveInodesRequest>,
    ) -> Result<Response<v1::ReserveInodesResponse>, Status> {
        answer("ReserveInodes", metadata::reserve_inodes(&self.0, request.into_inner())).await
    }

    async fn upload_file(
        &self,
        request: Request<v1::UploadFileRequest>,
    ) -> Result<Response<v1::UploadFileResponse>, Status> {
        answer("UploadFile", content::upload_file(&self.0, request.into_inner())).await
    }

    async fn confirm_upload(
        &self,
        request: Request<v1::ConfirmUploadRequest>,
    ) -> Result<Response<v1::ConfirmUploadResponse>, Status> {
        answer("ConfirmUpload", content::confirm_upload(&self.0, request.into_inner())).await
    }

    async fn download_file(
        &self,
        request: Request<v1::DownloadFileRequest>,
    ) -> Result<Response<v1::DownloadFileResponse>, Status> {
        answer("DownloadFile", content::download_file(&self.0, request.into_inner())).await
    }

    async fn sync_file(
        &self,
        request: Request<v1::SyncFileRequest>,
    ) -> Result<Response<v1::SyncFileResponse>, Status> {
        answer("SyncFile", content::sync_file(&self.0, request.into_inner())).await
    }

    type SessionStream = Replies<v1::SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        answer("Session", session::open(Arc::clone(&self.0), request.into_inner())).await
    }

    async fn register_data_node(
        &self,
        request: Request<v1::RegisterDataNodeRequest>,
    ) -> Result<Response<v1::RegisterDataNodeResponse>, Status> {
        answer("RegisterDataNode", membership::register(&self.0, request.into_inner())).await
    }

    type HeartbeatStream = Replies<v1::HeartbeatResponse>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<v1::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        answer("Heartbeat", membership::heartbeat(Arc::clone(&self.0), request.into_inner())).await
    }

    async fn set_node_admin(
        &self,
        request: Request<v1::SetNodeAdminRequest>,
    ) -> Result<Response<v1::SetNodeAdminResponse>, Status> {
        answer("SetNodeAdmin", membership::set_node_admin(&self.0, request.into_inner())).await
    }

    async fn control_worker(
        &self,
        request: Request<v1::ControlWorkerRequest>,
    ) -> Result<Response<v1::ControlWorkerResponse>, Status> {
        answer("ControlWorker", membership::control_worker(&self.0, request.into_inner())).await
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        answer("ListNodes", membership::list_nodes(&self.0)).await
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        answer("GetStatus", membership::get_status(&self.0)).await
    }

    type BackupStream = Replies<v1::BackupResponse>;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        answer("Backup", backup::backup(Arc::clone(&self.0), request.into_inner())).await
    }

    async fn get_gc_status(
        &self,
        _: Request<v1::GetGcStatusRequest>,
    ) -> Result<Response<v1::GcStatus>, Status> {
        answer("GetGcStatus", consistency::gc_status(&self.0)).await
    }

    async fn control_gc(
        &self,
        request: Request<v1::ControlGcRequest>,
    ) -> Result<Response<v1::GcStatus>, Status> {
        answer("ControlGc", consistency::control_gc(&self.0, request.into_inner())).await
    }

    async fn scrub_nodes(
        &self,
        request: Request<v1::ScrubNodesRequest>,
    ) -> Result<Response<v1::ScrubNodesResponse>, Status> {
        answer("ScrubNodes", consistency::scrub(&self.0, request.into_inner())).await
    }

    type FsckStream = Replies<v1::FsckResponse>;

    async fn fsck(&self, request: Request<v1::FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        answer("Fsck", consistency::fsck(&self.0, request.into_inner())).await
    }
}
