//! The gRPC face of a datanode: decodes, calls one function, encodes.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::limits::{BLOCK_SIZE, FRAME_SIZE, LIST_MAX};
use cairn_proto::v1::data_node_server::DataNode;
use cairn_proto::v1::{
    ChunkError, ChunkStat, CopyChunksRequest, CopyChunksResponse, DeleteChunksRequest, DeleteChunksResponse,
    GetNodeStatusRequest, GetNodeStatusResponse, ListChunksRequest, ListChunksResponse, RepackChunksRequest,
    RepackChunksResponse, RestoreChunksRequest, RestoreChunksResponse, RetrieveChunkRequest, RetrieveFrame,
    ScrubRequest, ScrubResponse, StatChunksRequest, StatChunksResponse, StoreFrame, SummarizeChunksRequest,
    SummarizeChunksResponse, SyncChunksRequest, SyncChunksResponse,
};
use cairn_proto::{ChunkId, Epoch, ErrorKind, ReplicaSetId, WireError, status_from};
use cairn_runtime::clock;
use cairn_runtime::net::{self, Peer};
use futures::Stream;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use crate::identity::Fence;
use crate::metrics;
use crate::node::Node;
use crate::outbox::AckStream;
use crate::reads::ReadSlot;
use crate::store::{ChunkReader, StoreError};
use crate::{copy, intake, inventory, repack, replication};

/// A read waits this long for one of the streams that are possible at once.
const READ_WAIT: Duration = Duration::from_secs(5);
/// `SyncChunks` is given up after this time; what became of the chunks is then unknown.
const SYNC_WAIT: Duration = Duration::from_secs(30);

/// The service of one node.
pub(crate) struct Service {
    node: Arc<Node>,
}

impl Service {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl DataNode for Service {
    type StoreChunkStream = AckStream;
    type ReplicateChunkStream = AckStream;
    type CopyChunksStream = Pin<Box<dyn Stream<Item = Result<CopyChunksResponse, Status>> + Send>>;
    type RetrieveChunkStream = Pin<Box<dyn Stream<Item = Result<RetrieveFrame, Status>> + Send>>;

    async fn store_chunk(
        &self,
        request: Request<Streaming<StoreFrame>>,
    ) -> Result<Response<AckStream>, Status> {
        if self.node.stop.is_cancelled() {
            return Err(replication::stopping());
        }
        Ok(Response::new(intake::serve(Arc::clone(&self.node), request.into_inner())))
    }

    async fn replicate_chunk(
        &self,
        request: Request<Streaming<StoreFrame>>,
    ) -> Result<Response<AckStream>, Status> {
        if self.node.stop.is_cancelled() {
            return Err(replication::stopping());
        }
        Ok(Response::new(replication::receive(Arc::clone(&self.node), request.into_inner())))
    }

    async fn retrieve_chunk(
        &self,
        request: Request<RetrieveChunkRequest>,
    ) -> Result<Response<Self::RetrieveChunkStream>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(Peer::address);
        let retrieval = Retrieval::open(&self.node, peer, &request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(Box::pin(futures::stream::try_unfold(retrieval, Retrieval::next))))
    }

    async fn sync_chunks(
        &self,
        request: Request<SyncChunksRequest>,
    ) -> Result<Response<SyncChunksResponse>, Status> {
        let chunks = chunk_ids(&request.into_inner().chunks).map_err(to_status)?;
        let waiting: Vec<_> = chunks
            .iter()
            .map(|&chunk| {
                let (done, result) = oneshot::channel();
                self.node.disks.sync(chunk, Box::new(move |outcome| _ = done.send(outcome)));
                (chunk, result)
            })
            .collect();
        let deadline = clock::now() + SYNC_WAIT;
        let mut failed = Vec::new();
        for (chunk, result) in waiting {
            let error = match clock::timeout_at(deadline, result).await {
                Ok(Ok(Ok(()))) => continue,
                Ok(Ok(Err(error))) => error.to_wire(),
                Ok(Err(_)) => WireError::new(ErrorKind::Unavailable, "this datanode is stopping"),
                Err(_) => WireError::new(ErrorKind::TimedOut, "the disk takes too long"),
            };
            failed.push(chunk_error(chunk, &error));
        }
        Ok(Response::new(SyncChunksResponse { failed }))
    }

    async fn restore_chunks(
        &self,
        request: Request<RestoreChunksRequest>,
    ) -> Result<Response<RestoreChunksResponse>, Status> {
        let chunks = chunk_ids(&request.into_inner().chunks).map_err(to_status)?;
        let failed =
            self.node.disks.restore(chunks.into()).await.map_err(|error| to_status(error.to_wire()))?;
        let failed = failed.iter().map(|(chunk, error)| chunk_error(*chunk, &error.to_wire())).collect();
        Ok(Response::new(RestoreChunksResponse { failed }))
    }

    async fn summarize_chunks(
        &self,
        request: Request<SummarizeChunksRequest>,
    ) -> Result<Response<SummarizeChunksResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        self.on_pool(move || inventory::summarize(&node.disks, &request)).await
    }

    async fn list_chunks(
        &self,
        request: Request<ListChunksRequest>,
    ) -> Result<Response<ListChunksResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        self.on_pool(move || inventory::list(&node.disks, &request)).await
    }

    async fn repack_chunks(
        &self,
        request: Request<RepackChunksRequest>,
    ) -> Result<Response<RepackChunksResponse>, Status> {
        let made = repack::repack(&self.node, request.into_inner()).await;
        made.map(Response::new).map_err(to_status)
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<ScrubResponse>, Status> {
        let request = request.into_inner();
        if request.start {
            self.node.scrub.start(request.bytes_per_second);
        }
        Ok(Response::new(ScrubResponse { status: Some(self.node.scrub.status()) }))
    }

    async fn copy_chunks(
        &self,
        request: Request<CopyChunksRequest>,
    ) -> Result<Response<Self::CopyChunksStream>, Status> {
        let copies = copy::serve(Arc::clone(&self.node), request.into_inner()).map_err(to_status)?;
        Ok(Response::new(Box::pin(copies)))
    }

    async fn delete_chunks(
        &self,
        request: Request<DeleteChunksRequest>,
    ) -> Result<Response<DeleteChunksResponse>, Status> {
        let request = request.into_inner();
        let chunks = chunk_ids(&request.chunks).map_err(to_status)?;
        // Checked before it is recorded: a fence beyond what is possible would shut out every delete.
        let asked = Fence { term: request.term, epoch: request.epoch, sequence: request.sequence };
        if !asked.is_possible() {
            let text = format!("{asked}: at most 2^63 - 1 is possible");
            return Err(to_status(WireError::new(ErrorKind::InvalidArgument, text)));
        }
        let node = Arc::clone(&self.node);
        let fenced = self.node.disks.pool().run(move || node.pass_fence(asked)).await;
        fenced.map_err(|error| to_status(StoreError::from(error).to_wire()))?.map_err(to_status)?;
        let count = chunks.len();
        let failed =
            self.node.disks.delete(chunks.into()).await.map_err(|error| to_status(error.to_wire()))?;
        ::metrics::counter!(metrics::DELETED).increment((count - failed.len()) as u64);
        let failed = failed.iter().map(|(chunk, error)| chunk_error(*chunk, &error.to_wire())).collect();
        Ok(Response::new(DeleteChunksResponse { failed }))
    }

    async fn stat_chunks(
        &self,
        request: Request<StatChunksRequest>,
    ) -> Result<Response<StatChunksResponse>, Status> {
        let request = request.into_inner();
        let mut stats = Vec::new();
        for chunk in chunk_ids(&request.chunks).map_err(to_status)? {
            stats.push(self.stat(chunk, request.verify).await);
        }
        Ok(Response::new(StatChunksResponse { chunks: stats }))
    }

    async fn get_node_status(
        &self,
        _: Request<GetNodeStatusRequest>,
    ) -> Result<Response<GetNodeStatusResponse>, Status> {
        Ok(Response::new(GetNodeStatusResponse {
            node: Some(self.node.describe()),
            chunks: self.node.disks.chunks(),
            map_revision: self.node.maps.get().revision,
        }))
    }
}

impl Service {
    /// Runs a call that takes a while on the disk threads.
    async fn on_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, WireError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let done = self.node.disks.pool().run(work).await;
        done.map_err(|error| to_status(StoreError::from(error).to_wire()))?
            .map(Response::new)
            .map_err(to_status)
    }

    async fn stat(&self, chunk: ChunkId, verify: bool) -> ChunkStat {
        let held = self.node.disks.find(chunk).filter(|(_, found)| !found.trash);
        let Some((store, found)) = held else {
            return ChunkStat { chunk: chunk.get(), ..ChunkStat::default() };
        };
        let disk = store.name().to_owned();
        let result = match verify {
            true => self.node.disks.verify(chunk).await,
            false => self.node.disks.reader(chunk).await.map(|reader| reader.whole_crc()),
        };
        ChunkStat {
            chunk: chunk.get(),
            present: !matches!(result, Err(StoreError::NotFound(_))),
            length: found.length.into(),
            crc32c: *result.as_ref().unwrap_or(&0),
            error: result.as_ref().err().map_or(0, |error| error.kind().number()),
            disk,
            synced: found.synced,
        }
    }
}

/// One `RetrieveChunk` under way.
struct Retrieval {
    reader: ChunkReader,
    next: u64,
    end: u64,
    _slot: ReadSlot,
}

impl Retrieval {
    async fn open(
        node: &Arc<Node>,
        peer: Option<SocketAddr>,
        request: &RetrieveChunkRequest,
    ) -> Result<Self, WireError> {
        let chunk = ChunkId::new(request.chunk).map_err(invalid)?;
        refuse_stale(node, request)?;
        let room = async {
            let slot = node.reads.begin(peer).await;
            net::reply_room(2 * FRAME_SIZE).await;
            slot
        };
        let Ok(slot) = clock::timeout(READ_WAIT, room).await else {
            return Err(WireError::new(ErrorKind::Overloaded, "too many reads are under way"));
        };
        let reader = node.disks.reader(chunk).await.map_err(|error| error.to_wire())?;
        let length = reader.length();
        let end =
            request.offset.checked_add(request.length).filter(|&end| end <= length && request.length > 0);
        let Some(end) = end else {
            let text = format!("{} bytes at {} of a chunk of {length}", request.length, request.offset);
            return Err(WireError::new(ErrorKind::InvalidArgument, text));
        };
        let next = request.offset / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
        Ok(Self { reader, next, end, _slot: slot })
    }

    async fn next(mut self) -> Result<Option<(RetrieveFrame, Self)>, Status> {
        if self.next >= self.end {
            return Ok(None);
        }
        let began = clock::now();
        let blocks =
            self.reader.read(self.next, self.end).await.map_err(|error| to_status(error.to_wire()))?;
        ::metrics::histogram!(metrics::READ_SECONDS).record(began.elapsed().as_secs_f64());
        ::metrics::counter!(metrics::READ_BYTES).increment(blocks.data.len() as u64);
        self.next = blocks.offset + blocks.data.len() as u64;
        let frame = RetrieveFrame {
            offset: blocks.offset,
            data: blocks.data,
            crc32c: blocks.crcs,
            is_final: self.next >= self.end,
            chunk_length: self.reader.length(),
        };
        Ok(Some((frame, self)))
    }
}

/// A reader that names an epoch must not be behind ours.
fn refuse_stale(node: &Node, request: &RetrieveChunkRequest) -> Result<(), WireError> {
    if request.epoch == 0 {
        return Ok(());
    }
    let set = ReplicaSetId::new(request.set).map_err(invalid)?;
    let epoch = Epoch::new(request.epoch).map_err(invalid)?;
    match node.maps.get().sets.get(&set) {
        Some(known) if known.epoch > epoch => {
            let text = format!("set {set} is at epoch {}, not {epoch}", known.epoch);
            Err(WireError::new(ErrorKind::StaleEpoch, text))
        }
        _ => Ok(()),
    }
}

fn chunk_ids(raw: &[u64]) -> Result<Vec<ChunkId>, WireError> {
    if raw.len() > LIST_MAX {
        let text = format!("{} chunks; at most {LIST_MAX} were expected", raw.len());
        return Err(WireError::new(ErrorKind::InvalidArgument, text));
    }
    raw.iter().map(|&id| ChunkId::new(id).map_err(invalid)).collect()
}

fn chunk_error(chunk: ChunkId, error: &WireError) -> ChunkError {
    ChunkError { chunk: chunk.get(), error: error.kind.number(), message: error.message.clone() }
}

fn invalid(error: cairn_proto::IdError) -> WireError {
    WireError::new(ErrorKind::InvalidArgument, error.to_string())
}

fn to_status(error: WireError) -> Status {
    status_from(error.kind, error.message)
}
