//! The services as they are, without the SDK: what any program could send them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::listing::Entries;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::v1::mutation::Op;
use cairn_proto::v1::{self, session_request, session_response};
use cairn_proto::{WireError, checksum, limits, wire_error_of};
use futures::{FutureExt, StreamExt};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::pattern;

/// Longest that any single request may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
const ROOT: u64 = 1;

/// A chunk id with the set that is to hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub chunk: u64,
    pub set: u64,
    pub epoch: u64,
    pub token: Bytes,
}

/// A session with the coordinator, and a connection to every datanode. Calls block.
pub struct Wire {
    runtime: Arc<Runtime>,
    coordinator: CoordinatorClient<Channel>,
    nodes: BTreeMap<Bytes, DataNodeClient<Channel>>,
    map: v1::ClusterMap,
    session: Bytes,
    stream: mpsc::Sender<v1::SessionRequest>,
    sequence: AtomicU64,
}

/// Gives the whole of a result, or panics after [`CALL_LIMIT`].
async fn limited<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, tonic::Status> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(result) => result,
        Err(_) => panic!("a call was not answered within {CALL_LIMIT:?}"),
    }
}

/// What came of a call, with the error as the product's own kind.
fn told<T>(result: Result<tonic::Response<T>, tonic::Status>) -> Result<T, WireError> {
    result.map(tonic::Response::into_inner).map_err(|status| wire_error_of(&status))
}

fn session_message(message: session_request::Message) -> v1::SessionRequest {
    v1::SessionRequest { message: Some(message) }
}

pub fn coordinator_client(address: &str) -> CoordinatorClient<Channel> {
    let channel = cairn_runtime::net::connect(address).expect("address of the coordinator");
    CoordinatorClient::new(channel)
        .max_decoding_message_size(4 * limits::MESSAGE_SIZE_MAX)
        .max_encoding_message_size(16 * limits::MESSAGE_SIZE_MAX)
}

pub fn datanode_client(address: &str) -> DataNodeClient<Channel> {
    let channel = cairn_runtime::net::connect(address).expect("address of a datanode");
    DataNodeClient::new(channel)
        .max_decoding_message_size(4 * limits::MESSAGE_SIZE_MAX)
        .max_encoding_message_size(16 * limits::MESSAGE_SIZE_MAX)
}

/// The frames of a whole chunk.
pub fn frames(planned: &Planned, data: &[u8], sync: bool) -> Vec<v1::StoreFrame> {
    let mut frames = Vec::new();
    for (index, part) in data.chunks(limits::FRAME_SIZE).enumerate() {
        let offset = (index * limits::FRAME_SIZE) as u64;
        frames.push(v1::StoreFrame {
            chunk: planned.chunk,
            header: (index == 0).then(|| v1::StoreHeader {
                set: planned.set,
                epoch: planned.epoch,
                length: data.len() as u64,
                sync,
                token: planned.token.clone(),
                forward: Vec::new(),
                request_id: String::new(),
            }),
            offset,
            data: Bytes::copy_from_slice(part),
            crc32c: checksum::block_crcs(part),
            is_final: offset + part.len() as u64 == data.len() as u64,
            abort: false,
        });
    }
    frames
}

/// What a copy of a chunk says against the pattern of the file whose layout it is in.
#[track_caller]
pub fn check_content(layout: &v1::DownloadFileResponse, chunk: &v1::ChunkRef, seed: u64, data: &[u8]) {
    for extent in layout.extents.iter().filter(|extent| extent.chunk == chunk.chunk) {
        let from = extent.chunk_offset as usize;
        let part = &data[from..from + extent.length as usize];
        let wrong = pattern::first_difference(seed, extent.offset, part);
        assert_eq!(wrong, None, "first wrong byte, in chunk {}", chunk.chunk);
    }
}

impl Wire {
    /// Opens a session and looks up the datanodes.
    pub fn connect(runtime: &Arc<Runtime>, address: &str) -> Self {
        let _inside = runtime.enter();
        let coordinator = coordinator_client(address);
        let (stream, session, map) = runtime.block_on(open_session(coordinator.clone()));
        let mut wire = Self {
            runtime: Arc::clone(runtime),
            coordinator,
            nodes: BTreeMap::new(),
            map,
            session,
            stream,
            sequence: AtomicU64::new(0),
        };
        wire.refresh();
        wire
    }

    /// Fetches the map again.
    pub fn refresh(&mut self) {
        let map = self.list_nodes().expect("ListNodes").map.expect("map");
        self.runtime.block_on(async {
            self.nodes =
                map.nodes.iter().map(|node| (node.node.clone(), datanode_client(&node.address))).collect();
        });
        self.map = map;
    }

    pub fn map(&self) -> &v1::ClusterMap {
        &self.map
    }

    pub fn session(&self) -> Bytes {
        self.session.clone()
    }

    pub fn coordinator(&self) -> CoordinatorClient<Channel> {
        self.coordinator.clone()
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&Bytes, DataNodeClient<Channel>)> {
        self.nodes.iter().map(|(id, client)| (id, client.clone()))
    }

    pub fn node(&self, id: &Bytes) -> DataNodeClient<Channel> {
        self.nodes.get(id).unwrap_or_else(|| panic!("no datanode {id:?}")).clone()
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// One call, with a limit of time.
    pub fn call<T>(
        &self,
        future: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, WireError> {
        told(self.runtime.block_on(limited(future)))
    }

    /// The next request id of slot 0.
    pub fn next_id(&self) -> v1::RequestId {
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        v1::RequestId { session: self.session.clone(), slot: 0, sequence }
    }

    /// Ends the session in good order.
    pub fn goodbye(&self) {
        let message = session_message(session_request::Message::Goodbye(v1::Goodbye {}));
        let _ = self.runtime.block_on(self.stream.send(message));
    }

    /// Tells that files are closed.
    pub fn closed(&self, inode: u64, sequence: u64) {
        let files = vec![v1::OpenFile { inode, sequence }];
        let message = session_message(session_request::Message::Closed(v1::Closed { files }));
        self.runtime.block_on(self.stream.send(message)).expect("session stream");
    }

    pub fn list_nodes(&self) -> Result<v1::ListNodesResponse, WireError> {
        self.call(self.coordinator().list_nodes(v1::ListNodesRequest {}))
    }

    pub fn status(&self) -> v1::GetStatusResponse {
        self.call(self.coordinator().get_status(v1::GetStatusRequest {})).expect("GetStatus")
    }

    pub fn node_status(&self, id: &Bytes) -> v1::GetNodeStatusResponse {
        self.call(self.node(id).get_node_status(v1::GetNodeStatusRequest {})).expect("GetNodeStatus")
    }

    pub fn apply_as(&self, op: Op, uid: u32) -> Result<v1::MutationResult, WireError> {
        let request = v1::ApplyRequest {
            id: Some(self.next_id()),
            mutations: vec![v1::Mutation { op: Some(op), ..v1::Mutation::default() }],
            credentials: Some(v1::Credentials { uid, gid: uid, ..v1::Credentials::default() }),
            ..v1::ApplyRequest::default()
        };
        let mut results = self.call(self.coordinator().apply(request))?.results;
        assert_eq!(results.len(), 1, "one result for one mutation");
        let result = results.remove(0);
        match WireError::from_fields(result.error, &result.message) {
            Some(error) => Err(error),
            None => Ok(result),
        }
    }

    pub fn apply(&self, op: Op) -> Result<v1::MutationResult, WireError> {
        self.apply_as(op, 0)
    }

    /// Makes an empty file in the root directory.
    #[track_caller]
    pub fn create(&self, name: &str) -> u64 {
        let op = Op::Create(v1::Create {
            parent: ROOT,
            name: Bytes::copy_from_slice(name.as_bytes()),
            kind: v1::InodeKind::File.into(),
            mode: 0o644,
            exclusive: true,
            ..v1::Create::default()
        });
        self.apply(op).expect("create").attr.expect("attributes").inode
    }

    pub fn unlink(&self, name: &str) -> Result<v1::MutationResult, WireError> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.apply(Op::Unlink(v1::Unlink { parent: ROOT, name }))
    }

    pub fn lookup(&self, name: &str) -> Result<v1::Attr, WireError> {
        let request = v1::LookupRequest {
            parent: ROOT,
            name: Bytes::copy_from_slice(name.as_bytes()),
            credentials: Some(v1::Credentials::default()),
            session: self.session.clone(),
        };
        Ok(self.call(self.coordinator().lookup(request))?.attr.expect("attributes"))
    }

    pub fn list_root(&self) -> Vec<String> {
        let session = self.session.clone();
        let request =
            v1::ReadDirRequest { inode: ROOT, limit: 65_536, session, ..v1::ReadDirRequest::default() };
        let page = self.call(self.coordinator().read_dir(request)).expect("ReadDir");
        let entries = Entries::decode(&page.entries).expect("entries");
        entries.iter().map(|entry| String::from_utf8_lossy(entry.name).into_owned()).collect()
    }

    /// Chunk ids for `bytes` in chunks of `chunk_size`, one after the other.
    pub fn plan(&self, bytes: u64, chunk_size: u64) -> Result<Vec<Planned>, WireError> {
        let request = v1::UploadFileRequest {
            session: self.session.clone(),
            bytes,
            chunk_size,
            ..v1::UploadFileRequest::default()
        };
        let plan = self.call(self.coordinator().upload_file(request))?;
        if let Some(size) = (chunk_size != 0).then_some(chunk_size) {
            assert_eq!(plan.chunk_size, size, "the chunk size that was asked for");
        }
        let planned = plan.ranges.iter().flat_map(|range| {
            (0..u64::from(range.count)).map(|step| Planned {
                chunk: range.first + step,
                set: range.set,
                epoch: range.epoch,
                token: range.token.clone(),
            })
        });
        Ok(planned.collect())
    }

    /// A plan of one chunk.
    #[track_caller]
    pub fn plan_one(&self) -> Planned {
        self.plan(1, 0).expect("plan").into_iter().next().expect("one chunk")
    }

    /// The members of a set, primary first.
    pub fn members(&self, set: u64) -> Vec<Bytes> {
        let known = |map: &v1::ClusterMap| {
            let set = map.sets.iter().find(|candidate| candidate.id == set)?;
            Some(set.members.iter().map(|member| member.node.clone()).collect())
        };
        known(&self.map).unwrap_or_else(|| {
            let map = self.list_nodes().expect("ListNodes").map.expect("map");
            known(&map).unwrap_or_else(|| panic!("the map has no set {set}"))
        })
    }

    /// Sends frames to the primary and gives the last acknowledgement of each chunk. With `close` the
    /// sender ends its side after the last frame; without, it waits for as many answers as chunks.
    pub fn send(
        &self,
        primary: &Bytes,
        frames: Vec<v1::StoreFrame>,
        close: bool,
    ) -> Result<BTreeMap<u64, v1::StoreAck>, WireError> {
        let mut client = self.node(primary);
        let mut waiting: std::collections::BTreeSet<u64> = frames.iter().map(|f| f.chunk).collect();
        self.runtime
            .block_on(limited(async move {
                let (sender, receiver) = mpsc::channel(4);
                // Owns the sender, and so ends the stream when it returns.
                let sending = async move {
                    for frame in frames {
                        if sender.send(frame).await.is_err() {
                            break;
                        }
                    }
                    if !close {
                        std::future::pending::<()>().await;
                    }
                };
                let requests = tokio_stream(receiver);
                let answering = async {
                    let mut answers = BTreeMap::new();
                    let mut stream = client.store_chunk(requests).await?.into_inner();
                    while let Some(ack) = stream.message().await? {
                        if ack.stored || ack.error != 0 {
                            waiting.remove(&ack.chunk);
                            answers.insert(ack.chunk, ack);
                            if !close && waiting.is_empty() {
                                break;
                            }
                        }
                    }
                    Ok::<_, tonic::Status>(answers)
                };
                let mut sending = std::pin::pin!(sending.fuse());
                let mut answering = std::pin::pin!(answering.fuse());
                loop {
                    futures::select! {
                        () = sending => {}
                        answers = answering => break answers,
                    }
                }
            }))
            .map_err(|status| wire_error_of(&status))
    }

    /// Stores one whole chunk on its set.
    #[track_caller]
    pub fn store(&self, planned: &Planned, data: &[u8], sync: bool) -> v1::StoreAck {
        let primary = self.members(planned.set).remove(0);
        let ack = self
            .send(&primary, frames(planned, data, sync), false)
            .expect("StoreChunk")
            .remove(&planned.chunk)
            .expect("an acknowledgement");
        assert!(ack.stored && ack.error == 0, "chunk {} is not stored: {}", planned.chunk, ack.message);
        ack
    }

    /// The row of `ConfirmUpload` for a chunk that was stored whole.
    pub fn stored_chunk(&self, planned: &Planned, data: &[u8], ack: &v1::StoreAck) -> v1::StoredChunk {
        v1::StoredChunk {
            chunk: planned.chunk,
            set: planned.set,
            epoch: planned.epoch,
            length: data.len() as u64,
            crc32c: checksum::crc32c(data),
            stored_by: ack.stored_by.clone(),
            synced: ack.synced,
        }
    }

    /// A commit of one file.
    pub fn confirm(&self, request: v1::ConfirmUploadRequest) -> Result<v1::MutationResult, WireError> {
        let mut results = self.confirm_any(request)?;
        assert_eq!(results.len(), 1, "one result for one file");
        Ok(results.remove(0))
    }

    /// A commit of any number of files; the first error counts, of the call or of a file.
    pub fn confirm_any(
        &self,
        request: v1::ConfirmUploadRequest,
    ) -> Result<Vec<v1::MutationResult>, WireError> {
        let results = self.call(self.coordinator().confirm_upload(request))?.results;
        match results.iter().find_map(|result| WireError::from_fields(result.error, &result.message)) {
            Some(error) => Err(error),
            None => Ok(results),
        }
    }

    /// The commit of one chunk as the whole of a file.
    pub fn commit_of(&self, inode: u64, chunk: v1::StoredChunk) -> v1::ConfirmUploadRequest {
        let extent = v1::Extent { offset: 0, length: chunk.length, chunk: chunk.chunk, chunk_offset: 0 };
        v1::ConfirmUploadRequest {
            id: Some(self.next_id()),
            chunks: vec![chunk],
            files: vec![v1::FileCommit { inode, extents: vec![extent], ..v1::FileCommit::default() }],
        }
    }

    /// The whole upload of `length` pattern bytes: plan, store every chunk, one commit.
    #[track_caller]
    pub fn upload(&self, inode: u64, seed: u64, length: u64, chunk_size: u64) {
        let mut chunks = Vec::new();
        let mut extents = Vec::new();
        let mut offset = 0;
        if length > 0 {
            for planned in self.plan(length, chunk_size).expect("plan") {
                let here = (length - offset).min(chunk_size);
                let data = pattern::bytes(seed, offset, here as usize);
                let ack = self.store(&planned, &data, false);
                extents.push(v1::Extent { offset, length: here, chunk: planned.chunk, chunk_offset: 0 });
                chunks.push(self.stored_chunk(&planned, &data, &ack));
                offset += here;
            }
            assert_eq!(offset, length, "the plan covers the file");
            let files = vec![v1::FileCommit { inode, extents, ..v1::FileCommit::default() }];
            let request = v1::ConfirmUploadRequest { id: Some(self.next_id()), chunks, files };
            let attr = self.confirm(request).expect("commit").attr.expect("attributes");
            assert_eq!(attr.size, length, "size after the commit");
        }
    }

    /// Attributes and the whole layout of a file.
    pub fn layout(&self, inode: u64) -> Result<v1::DownloadFileResponse, WireError> {
        let mut whole: Option<v1::DownloadFileResponse> = None;
        let mut offset = 0;
        loop {
            let request = v1::DownloadFileRequest {
                inode,
                offset,
                length: limits::FILE_SIZE_MAX - offset,
                extents_max: 1024,
                ..v1::DownloadFileRequest::default()
            };
            let page = self.call(self.coordinator().download_file(request))?;
            let size = page.attr.as_ref().expect("attributes").size;
            let covered = page.covered;
            let whole = whole.get_or_insert_with(|| v1::DownloadFileResponse {
                attr: page.attr.clone(),
                ..v1::DownloadFileResponse::default()
            });
            whole.extents.extend(page.extents);
            for chunk in page.chunks {
                if !whole.chunks.iter().any(|known| known.chunk == chunk.chunk) {
                    whole.chunks.push(chunk);
                }
            }
            if covered >= size {
                return Ok(whole.clone());
            }
            assert!(covered > offset, "a layout that covers nothing more after {offset} of {size}");
            offset = covered;
        }
    }

    /// All bytes of one copy of a chunk, with every checksum on the way verified.
    pub fn retrieve(&self, node: &Bytes, chunk: &v1::ChunkRef) -> Result<Vec<u8>, WireError> {
        let mut client = self.node(node);
        let request = v1::RetrieveChunkRequest {
            chunk: chunk.chunk,
            set: chunk.set,
            epoch: 0,
            offset: 0,
            length: chunk.length,
            token: Bytes::new(),
        };
        self.runtime
            .block_on(limited(async move {
                let mut stream = client.retrieve_chunk(request).await?.into_inner();
                let mut data = Vec::with_capacity(chunk.length as usize);
                let mut is_final = false;
                while let Some(frame) = stream.message().await? {
                    assert!(!is_final, "a frame after the final one");
                    assert_eq!(frame.offset, data.len() as u64, "frames in order");
                    assert_eq!(frame.chunk_length, chunk.length, "length of the chunk");
                    checksum::verify_blocks(&frame.data, &frame.crc32c).expect("checksums of a frame");
                    data.extend_from_slice(&frame.data);
                    is_final = frame.is_final;
                }
                assert!(is_final, "the stream ends with a final frame");
                Ok(data)
            }))
            .map_err(|status| wire_error_of(&status))
    }

    /// Fetches every copy of every chunk of a file from every node that should hold one, and compares
    /// it with the pattern. Gives the number of copies seen.
    #[track_caller]
    pub fn check_replicas(&self, inode: u64, seed: u64, length: u64, copies: usize) -> usize {
        let layout = self.layout(inode).expect("layout");
        assert_eq!(layout.attr.as_ref().expect("attributes").size, length, "size");
        let covered: u64 = layout.extents.iter().map(|extent| extent.length).sum();
        assert_eq!(covered, length, "bytes covered by extents");
        let mut seen = 0;
        for chunk in &layout.chunks {
            assert!(chunk.missing.is_empty(), "chunk {} lacks copies", chunk.chunk);
            let members = self.members(chunk.set);
            assert_eq!(members.len(), copies, "members of the set of chunk {}", chunk.chunk);
            for member in &members {
                let data = self.retrieve(member, chunk).expect("RetrieveChunk");
                assert_eq!(data.len() as u64, chunk.length);
                assert_eq!(checksum::crc32c(&data), chunk.crc32c, "checksum of chunk {}", chunk.chunk);
                check_content(&layout, chunk, seed, &data);
                seen += 1;
            }
        }
        seen
    }

    /// On which nodes a chunk lies, as they say themselves.
    pub fn holders(&self, chunk: u64) -> Vec<Bytes> {
        let mut holders = Vec::new();
        for (id, mut client) in self.nodes() {
            let request = v1::StatChunksRequest { chunks: vec![chunk], verify: false };
            let answer = self.call(client.stat_chunks(request)).expect("StatChunks");
            if answer.chunks.iter().any(|stat| stat.present) {
                holders.push(id.clone());
            }
        }
        holders
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.stream.try_send(session_message(session_request::Message::Goodbye(v1::Goodbye {})));
    }
}

fn tokio_stream<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// Says hello, and keeps the session alive until the sender is dropped.
async fn open_session(
    mut client: CoordinatorClient<Channel>,
) -> (mpsc::Sender<v1::SessionRequest>, Bytes, v1::ClusterMap) {
    let (sender, receiver) = mpsc::channel(16);
    let hello = v1::ClientHello { description: "end-to-end test".into(), ..v1::ClientHello::default() };
    sender.send(session_message(session_request::Message::Hello(hello))).await.expect("channel");
    let answers = limited(client.session(tokio_stream(receiver))).await.expect("Session");
    let mut answers = answers.into_inner();
    let first = limited(answers.message()).await.expect("first answer").expect("an answer").message;
    let Some(session_response::Message::Welcome(welcome)) = first else {
        panic!("a welcome was expected: {first:?}")
    };
    let alive = sender.downgrade();
    let period = Duration::from_millis(welcome.lease_ms / 4);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                answer = answers.next() => if !matches!(answer, Some(Ok(_))) { break },
                () = tokio::time::sleep(period) => {
                    let Some(sender) = alive.upgrade() else { break };
                    let beat = session_message(session_request::Message::KeepAlive(v1::KeepAlive::default()));
                    if sender.send(beat).await.is_err() { break }
                }
            }
        }
    });
    (sender, welcome.session, welcome.map.expect("map"))
}
