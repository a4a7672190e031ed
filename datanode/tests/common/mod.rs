//! A cluster of datanodes in one process around a coordinator that knows only membership.
#![allow(dead_code, unreachable_pub)] // an example uses a part

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_datanode::{DatanodeConfig, Running};
use cairn_proto::checksum::block_crcs;
use cairn_proto::limits::{FRAME_SIZE, MESSAGE_SIZE_MAX};
use cairn_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::v1::*;
use cairn_proto::{NodeId, v1};
use cairn_runtime::config::ByteSize;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::{clock, net};
use futures::Stream;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// The set that all registered datanodes are members of.
pub const SET: u64 = 1;

/// What the coordinator knows.
pub struct Membership {
    map: watch::Sender<ClusterMap>,
    pub beats: Mutex<HashMap<NodeId, HeartbeatRequest>>,
    pub registrations: Mutex<HashMap<NodeId, RegisterDataNodeRequest>>,
    /// Every bad chunk told, in order.
    pub bad: Mutex<Vec<(NodeId, BadChunk)>>,
    /// Whether beats are answered with their number.
    pub records: std::sync::atomic::AtomicBool,
    /// Where the metadata is.
    pub fence: Mutex<Option<Fence>>,
}

impl Membership {
    fn new() -> Arc<Self> {
        let map = ClusterMap {
            term: 1,
            revision: 1,
            epoch: 1,
            cluster: vec![7; 16].into(),
            ..ClusterMap::default()
        };
        Arc::new(Self {
            map: watch::Sender::new(map),
            beats: Mutex::default(),
            registrations: Mutex::default(),
            bad: Mutex::default(),
            records: true.into(),
            fence: Mutex::default(),
        })
    }

    /// Changes the map and pushes it.
    pub fn change(&self, edit: impl FnOnce(&mut ClusterMap)) {
        self.map.send_modify(|map| {
            map.revision += 1;
            edit(map);
        });
    }

    /// Raises the epoch of the set.
    pub fn raise_epoch(&self) {
        self.change(|map| {
            map.epoch += 1;
            map.sets[0].epoch = map.epoch;
        });
    }

    pub fn epoch(&self) -> u64 {
        self.map.borrow().sets[0].epoch
    }

    /// Adds a member to the set, in order of registration.
    pub fn add(&self, node: Node) {
        self.change(|map| {
            if map.nodes.contains(&node) {
                return;
            }
            let member = Member { node: node.node.clone(), state: MemberState::Active.into() };
            map.nodes.retain(|known| known.node != node.node);
            map.nodes.push(node);
            map.epoch += 1;
            if map.sets.is_empty() {
                map.sets.push(ReplicaSet { id: SET, replicas: 3, min_replicas: 2, ..ReplicaSet::default() });
            }
            let set = &mut map.sets[0];
            set.epoch = map.epoch;
            if !set.members.iter().any(|known| known.node == member.node) {
                set.members.push(member);
            }
        });
    }
}

struct FakeCoordinator(Arc<Membership>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! not_here {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl Coordinator for FakeCoordinator {
            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented("not in this test"))
            })*

            type SessionStream = Answers<SessionResponse>;
            async fn session(&self, _: Request<Streaming<SessionRequest>>) -> Result<Response<Self::SessionStream>, Status> {
                Err(Status::unimplemented("not in this test"))
            }

            type FsckStream = Answers<FsckResponse>;
            async fn fsck(&self, _: Request<FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
                Err(Status::unimplemented("not in this test"))
            }

            type BackupStream = Answers<BackupResponse>;
            async fn backup(&self, _: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
                Err(Status::unimplemented("not in this test"))
            }

            async fn register_data_node(
                &self,
                request: Request<RegisterDataNodeRequest>,
            ) -> Result<Response<RegisterDataNodeResponse>, Status> {
                let request = request.into_inner();
                let id = NodeId::from_wire(&request.node).unwrap();
                self.0.registrations.lock().unwrap().insert(id, request.clone());
                self.0.add(Node {
                    node: request.node,
                    address: request.address,
                    state: NodeState::Up.into(),
                    ..Node::default()
                });
                let map = self.0.map.borrow().clone();
                Ok(Response::new(RegisterDataNodeResponse {
                    cluster: map.cluster.clone(),
                    map: Some(map),
                    heartbeat_ms: 50,
                }))
            }

            type HeartbeatStream = Answers<HeartbeatResponse>;
            async fn heartbeat(&self, request: Request<Streaming<HeartbeatRequest>>) -> Result<Response<Self::HeartbeatStream>, Status> {
                let mut beats = request.into_inner();
                let membership = Arc::clone(&self.0);
                let (answers, stream) = mpsc::channel(16);
                tokio::spawn(async move {
                    let mut maps = membership.map.subscribe();
                    maps.mark_changed();
                    let mut recorded = 0;
                    loop {
                        let map = tokio::select! {
                            beat = beats.message() => {
                                let Ok(Some(beat)) = beat else { break };
                                let node = NodeId::from_wire(&beat.node).unwrap();
                                membership.bad.lock().unwrap().extend(beat.bad.iter().map(|bad| (node, *bad)));
                                if membership.records.load(std::sync::atomic::Ordering::SeqCst) {
                                    recorded = beat.beat;
                                }
                                membership.beats.lock().unwrap().insert(node, beat);
                                None
                            }
                            _ = maps.changed() => Some(maps.borrow_and_update().clone()),
                        };
                        let fence = *membership.fence.lock().unwrap();
                        let answer = HeartbeatResponse { term: 1, map, beat: recorded, fence };
                        if answers.send(Ok(answer)).await.is_err() {
                            break;
                        }
                    }
                });
                Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
            }
        }
    };
}

not_here! {
    lookup(LookupRequest) -> LookupResponse;
    reserve_inodes(ReserveInodesRequest) -> ReserveInodesResponse;
    get_attr(GetAttrRequest) -> GetAttrResponse;
    read_dir(ReadDirRequest) -> ReadDirResponse;
    get_xattrs(GetXattrsRequest) -> GetXattrsResponse;
    stat_fs(StatFsRequest) -> StatFsResponse;
    apply(ApplyRequest) -> ApplyResponse;
    upload_file(UploadFileRequest) -> UploadFileResponse;
    confirm_upload(ConfirmUploadRequest) -> ConfirmUploadResponse;
    download_file(DownloadFileRequest) -> DownloadFileResponse;
    sync_file(SyncFileRequest) -> SyncFileResponse;
    list_nodes(ListNodesRequest) -> ListNodesResponse;
    get_status(GetStatusRequest) -> GetStatusResponse;
    set_node_admin(SetNodeAdminRequest) -> SetNodeAdminResponse;
    control_worker(ControlWorkerRequest) -> ControlWorkerResponse;
    get_gc_status(GetGcStatusRequest) -> GcStatus;
    control_gc(ControlGcRequest) -> GcStatus;
    scrub_nodes(ScrubNodesRequest) -> ScrubNodesResponse;
}

/// A datanode with a runtime of its own, so that it can be killed.
pub struct NodeHandle {
    pub id: NodeId,
    pub address: String,
    pub dir: tempfile::TempDir,
    running: Option<Running>,
    shutdown: Shutdown,
    runtime: Option<Runtime>,
}

impl NodeHandle {
    /// Ends it as `kill -9` would, as far as others can tell.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        self.shutdown.request();
        if let Some(running) = self.running.take() {
            running.wait().await.unwrap();
        }
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Datanodes and their coordinator.
pub struct Cluster {
    pub membership: Arc<Membership>,
    pub nodes: Vec<NodeHandle>,
    pub coordinator: String,
    runtime: Option<Runtime>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Cluster {
    /// A coordinator alone.
    pub async fn empty() -> Self {
        let membership = Membership::new();
        let runtime = runtime();
        let service = CoordinatorServer::new(FakeCoordinator(Arc::clone(&membership)));
        let coordinator = runtime
            .spawn(async move {
                let listener = net::listen("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap().to_string();
                let server = net::server(net::Load::of_replies(64 << 20))
                    .add_service(service)
                    .serve_with_incoming(net::incoming(listener));
                tokio::spawn(server);
                address
            })
            .await
            .unwrap();
        Self { membership, nodes: Vec::new(), coordinator, runtime: Some(runtime) }
    }

    /// `count` datanodes that know one another.
    pub async fn start(count: usize) -> Self {
        let mut cluster = Self::empty().await;
        for _ in 0..count {
            cluster.add_node().await;
        }
        cluster.settle().await;
        cluster
    }

    pub fn config(&self, dir: &std::path::Path) -> DatanodeConfig {
        DatanodeConfig {
            listen: "127.0.0.1:0".into(),
            coordinator: self.coordinator.clone(),
            data: vec![dir.to_owned()],
            reserve: ByteSize::b(0),
            ..DatanodeConfig::default()
        }
    }

    pub async fn add_node(&mut self) {
        let base = std::env::var_os("CAIRN_TEST_DIR").unwrap_or_else(|| std::env::temp_dir().into());
        let dir = tempfile::tempdir_in(base).unwrap();
        let (config, shutdown, runtime) = (self.config(dir.path()), Shutdown::new(), runtime());
        let running = runtime.spawn(cairn_datanode::start(config, shutdown.clone())).await.unwrap().unwrap();
        self.nodes.push(NodeHandle {
            id: running.node,
            address: running.address.to_string(),
            dir,
            running: Some(running),
            shutdown,
            runtime: Some(runtime),
        });
    }

    /// Waits until every datanode has the newest map.
    pub async fn settle(&self) {
        let done = async {
            loop {
                let revision = self.membership.map.borrow().revision;
                let ids: Vec<NodeId> =
                    self.nodes.iter().filter(|n| n.runtime.is_some()).map(|n| n.id).collect();
                let current = |id: &NodeId| {
                    self.membership
                        .beats
                        .lock()
                        .unwrap()
                        .get(id)
                        .is_some_and(|beat| beat.map_revision == revision)
                };
                let members = self.membership.map.borrow().nodes.len();
                if members >= self.nodes.len() && ids.iter().all(current) {
                    return;
                }
                clock::sleep(Duration::from_millis(10)).await;
            }
        };
        clock::timeout(Duration::from_secs(10), done).await.expect("datanodes do not get the map");
    }

    pub fn client(&self, node: usize) -> DataNodeClient<Channel> {
        client(&self.nodes[node].address)
    }

    pub async fn stream(&self, node: usize) -> ChunkStream {
        ChunkStream::open(self.client(node)).await
    }

    pub fn header(&self, length: u64) -> StoreHeader {
        StoreHeader { set: SET, epoch: self.membership.epoch(), length, ..StoreHeader::default() }
    }
}

pub fn client(address: &str) -> DataNodeClient<Channel> {
    DataNodeClient::new(net::connect(address).unwrap()).max_decoding_message_size(MESSAGE_SIZE_MAX)
}

/// One `StoreChunk` stream.
pub struct ChunkStream {
    frames: Option<mpsc::Sender<StoreFrame>>,
    acks: Streaming<StoreAck>,
}

impl ChunkStream {
    pub async fn open(mut client: DataNodeClient<Channel>) -> Self {
        let (frames, queue) = mpsc::channel(64);
        let acks = client.store_chunk(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Self { frames: Some(frames), acks }
    }

    pub async fn send(&self, frame: StoreFrame) {
        self.frames.as_ref().unwrap().send(frame).await.unwrap();
    }

    /// No more frames.
    pub fn finish(&mut self) {
        self.frames = None;
    }

    /// The next final acknowledgement.
    pub async fn ack(&mut self) -> StoreAck {
        let next = async {
            loop {
                let ack = self.acks.message().await.unwrap().expect("the stream ended");
                if ack.stored || ack.error != 0 {
                    return ack;
                }
            }
        };
        clock::timeout(Duration::from_secs(20), next).await.expect("no acknowledgement")
    }

    /// Stores a whole chunk.
    pub async fn store(&mut self, chunk: u64, header: StoreHeader, data: &[u8]) -> StoreAck {
        for frame in frames(chunk, header, data) {
            self.send(frame).await;
        }
        self.ack().await
    }
}

/// A chunk as frames of the customary size.
pub fn frames(chunk: u64, header: StoreHeader, data: &[u8]) -> Vec<StoreFrame> {
    let mut header = Some(header);
    let mut offset = 0;
    data.chunks(FRAME_SIZE)
        .map(|part| {
            let frame = StoreFrame {
                chunk,
                header: header.take(),
                offset,
                data: part.to_vec().into(),
                crc32c: block_crcs(part),
                is_final: offset + part.len() as u64 == data.len() as u64,
                abort: false,
            };
            offset += part.len() as u64;
            frame
        })
        .collect()
}

/// Bytes that tell their chunk and position.
pub fn content(chunk: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(chunk | 1).wrapping_add(chunk + (i as u64 >> 9)) as u8).collect()
}

/// Fetches a range from one node, checking frames and checksums.
pub async fn retrieve(
    client: &mut DataNodeClient<Channel>,
    chunk: u64,
    offset: u64,
    length: u64,
) -> Result<(u64, Vec<u8>), Status> {
    let request = RetrieveChunkRequest { chunk, offset, length, ..RetrieveChunkRequest::default() };
    let mut frames = client.retrieve_chunk(request).await?.into_inner();
    let (mut start, mut data, mut ended) = (None, Vec::new(), false);
    while let Some(frame) = frames.message().await? {
        assert!(!ended);
        let first = *start.get_or_insert(frame.offset);
        assert_eq!(frame.offset, first + data.len() as u64);
        assert_eq!(frame.crc32c, block_crcs(&frame.data));
        data.extend_from_slice(&frame.data);
        ended = frame.is_final;
    }
    assert!(ended);
    Ok((start.unwrap_or_default(), data))
}

/// A datanode that accepts replication streams and never says anything.
pub struct Silent;

#[tonic::async_trait]
impl v1::data_node_server::DataNode for Silent {
    type StoreChunkStream = Answers<StoreAck>;
    type ReplicateChunkStream = Answers<StoreAck>;
    type RetrieveChunkStream = Answers<RetrieveFrame>;
    async fn store_chunk(
        &self,
        _: Request<Streaming<StoreFrame>>,
    ) -> Result<Response<Self::StoreChunkStream>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn replicate_chunk(
        &self,
        request: Request<Streaming<StoreFrame>>,
    ) -> Result<Response<Self::ReplicateChunkStream>, Status> {
        let held = request.into_inner(); // kept open, never read
        Ok(Response::new(Box::pin(futures::stream::once(async move {
            let _held = held;
            std::future::pending().await
        }))))
    }
    async fn retrieve_chunk(
        &self,
        _: Request<RetrieveChunkRequest>,
    ) -> Result<Response<Self::RetrieveChunkStream>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn sync_chunks(
        &self,
        _: Request<SyncChunksRequest>,
    ) -> Result<Response<SyncChunksResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn delete_chunks(
        &self,
        _: Request<DeleteChunksRequest>,
    ) -> Result<Response<DeleteChunksResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn restore_chunks(
        &self,
        _: Request<v1::RestoreChunksRequest>,
    ) -> Result<Response<v1::RestoreChunksResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn summarize_chunks(
        &self,
        _: Request<v1::SummarizeChunksRequest>,
    ) -> Result<Response<v1::SummarizeChunksResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn list_chunks(
        &self,
        _: Request<v1::ListChunksRequest>,
    ) -> Result<Response<v1::ListChunksResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn repack_chunks(
        &self,
        _: Request<v1::RepackChunksRequest>,
    ) -> Result<Response<v1::RepackChunksResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn scrub(&self, _: Request<v1::ScrubRequest>) -> Result<Response<v1::ScrubResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    type CopyChunksStream = Answers<v1::CopyChunksResponse>;
    async fn copy_chunks(
        &self,
        _: Request<v1::CopyChunksRequest>,
    ) -> Result<Response<Self::CopyChunksStream>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn stat_chunks(
        &self,
        _: Request<StatChunksRequest>,
    ) -> Result<Response<StatChunksResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
    async fn get_node_status(
        &self,
        _: Request<GetNodeStatusRequest>,
    ) -> Result<Response<GetNodeStatusResponse>, Status> {
        Err(Status::unimplemented("silent"))
    }
}

/// Serves [`Silent`] and returns its address.
pub async fn silent_node() -> String {
    let listener = net::listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = v1::data_node_server::DataNodeServer::new(Silent);
    tokio::spawn(
        net::server(net::Load::of_replies(64 << 20))
            .add_service(service)
            .serve_with_incoming(net::incoming(listener)),
    );
    address
}
