//! A coordinator on a free port, clients with sessions, and datanodes that only send heartbeats.
#![allow(dead_code, unreachable_pub)] // examples use a part

pub mod mount;

use std::time::Duration;

use bytes::Bytes;
use cairn_coordinator::{CoordinatorConfig, Running, start};
use cairn_proto::listing::Entries;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_proto::{ErrorKind, v1, wire_error_of};
use cairn_runtime::net;
use cairn_runtime::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use v1::mutation::Op;

type Answer<T> = Result<T, Status>;

pub struct Cluster {
    running: Running,
    shutdown: Shutdown,
    config: CoordinatorConfig,
    _directory: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut CoordinatorConfig)) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut config = CoordinatorConfig {
            listen: "127.0.0.1:0".into(),
            data: directory.path().join("meta"),
            ..CoordinatorConfig::default()
        };
        change(&mut config);
        let shutdown = Shutdown::new();
        let running = start(config.clone(), shutdown.clone()).await?;
        Ok(Self { running, shutdown, config, _directory: directory })
    }

    pub fn config(&self) -> &CoordinatorConfig {
        &self.config
    }

    pub fn id(&self) -> cairn_proto::ClusterId {
        self.running.cluster
    }

    pub fn address(&self) -> String {
        self.running.address.to_string()
    }

    pub fn metrics_address(&self) -> Option<std::net::SocketAddr> {
        self.running.metrics_address
    }

    pub fn channel(&self) -> anyhow::Result<CoordinatorClient<Channel>> {
        Ok(CoordinatorClient::new(net::connect(&self.running.address.to_string())?))
    }

    pub async fn restart(self) -> anyhow::Result<Self> {
        self.shutdown.request();
        self.running.wait().await?;
        let shutdown = Shutdown::new();
        let running = start(self.config.clone(), shutdown.clone()).await?;
        Ok(Self { running, shutdown, ..self })
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.request();
        Ok(self.running.wait().await?)
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::connect(self.channel()?, v1::ClientHello::default()).await
    }

    pub async fn resume(&self, session: Bytes, open: Vec<v1::OpenFile>) -> anyhow::Result<Client> {
        Client::connect(self.channel()?, v1::ClientHello { session, open, ..v1::ClientHello::default() })
            .await
    }

    /// A new session that holds `open` and what is in `more`, each of which comes in a message of its own.
    pub async fn replace(
        &self,
        open: Vec<v1::OpenFile>,
        more: Vec<Vec<v1::OpenFile>>,
    ) -> anyhow::Result<Client> {
        let more_open = !more.is_empty();
        let hello = v1::ClientHello { open, more_open, ..v1::ClientHello::default() };
        Client::connect_with(self.channel()?, hello, more).await
    }

    pub async fn register(
        &self,
        node: &[u8],
        incarnation: u8,
        cluster: &[u8],
    ) -> Answer<v1::RegisterDataNodeResponse> {
        let request = v1::RegisterDataNodeRequest {
            node: Bytes::copy_from_slice(node),
            cluster: Bytes::copy_from_slice(cluster),
            address: format!("127.0.0.1:{}", 9000 + u32::from(incarnation)),
            capacity: 100 << 30,
            incarnation: vec![incarnation; 16].into(),
            ..v1::RegisterDataNodeRequest::default()
        };
        let mut client = self.channel().map_err(|error| Status::internal(error.to_string()))?;
        Ok(client.register_data_node(request).await?.into_inner())
    }

    /// Datanodes 1, 2, … that send heartbeats until they are dropped.
    pub async fn datanodes(&self, count: u8) -> anyhow::Result<Vec<Datanode>> {
        let mut nodes = Vec::new();
        for number in 1..=count {
            let node = vec![number; 16];
            self.register(&node, number, &[]).await?;
            let beat = v1::HeartbeatRequest {
                node: node.clone().into(),
                capacity: 100 << 30,
                incarnation: vec![number; 16].into(),
                ..v1::HeartbeatRequest::default()
            };
            let (sender, beats) = mpsc::channel(4);
            sender.send(beat.clone()).await?;
            let mut client = self.channel()?;
            let mut replies = client.heartbeat(ReceiverStream::new(beats)).await?.into_inner();
            replies.message().await?;
            let every = self.config.heartbeat;
            let task = tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(every) => {
                            if sender.send(beat.clone()).await.is_err() { break }
                        }
                        reply = replies.message() => if !matches!(reply, Ok(Some(_))) { break },
                    }
                }
            });
            nodes.push(Datanode { node, task });
        }
        Ok(nodes)
    }
}

pub struct Datanode {
    pub node: Vec<u8>,
    task: JoinHandle<()>,
}

impl Datanode {
    /// (chunk, set, epoch) of each id that a plan grants.
    pub fn granted(plan: &v1::UploadFileResponse) -> Vec<(u64, u64, u64)> {
        let ids = |range: &v1::PlanRange| {
            let (first, set, epoch) = (range.first, range.set, range.epoch);
            (0..u64::from(range.count)).map(move |index| (first + index, set, epoch))
        };
        plan.ranges.iter().flat_map(ids).collect()
    }
}

impl Drop for Datanode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct Client {
    pub session: Bytes,
    pub grpc: CoordinatorClient<Channel>,
    requests: mpsc::Sender<v1::SessionRequest>,
    keep_alive: JoinHandle<()>,
    sequence: u64,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.keep_alive.abort();
    }
}

fn message(message: v1::session_request::Message) -> v1::SessionRequest {
    v1::SessionRequest { message: Some(message) }
}

impl Client {
    async fn connect(grpc: CoordinatorClient<Channel>, hello: v1::ClientHello) -> anyhow::Result<Self> {
        Self::connect_with(grpc, hello, Vec::new()).await
    }

    async fn connect_with(
        mut grpc: CoordinatorClient<Channel>,
        hello: v1::ClientHello,
        more: Vec<Vec<v1::OpenFile>>,
    ) -> anyhow::Result<Self> {
        let (requests, stream) = mpsc::channel(4);
        requests.send(message(v1::session_request::Message::Hello(hello))).await?;
        let pages = more.len();
        for (at, files) in more.into_iter().enumerate() {
            let page = v1::OpenFiles { files, more: at + 1 < pages };
            requests.send(message(v1::session_request::Message::Open(page))).await?;
        }
        let mut answers = grpc.session(ReceiverStream::new(stream)).await?.into_inner();
        let first = answers.message().await?.and_then(|answer| answer.message);
        let Some(v1::session_response::Message::Welcome(welcome)) = first else {
            anyhow::bail!("no welcome but {first:?}")
        };
        let keep_alive = tokio::spawn(keep_alive(requests.clone(), answers));
        Ok(Self { session: welcome.session, grpc, requests, keep_alive, sequence: 0 })
    }

    /// The same session in another hand; it numbers its requests on its own.
    pub fn clone(&self) -> Self {
        Self {
            session: self.session.clone(),
            grpc: self.grpc.clone(),
            requests: self.requests.clone(),
            keep_alive: tokio::spawn(async {}),
            sequence: self.sequence,
        }
    }

    pub fn stop_keep_alive(&self) {
        self.keep_alive.abort();
    }

    pub fn next_id(&mut self) -> v1::RequestId {
        self.sequence += 1;
        v1::RequestId { session: self.session.clone(), slot: 3, sequence: self.sequence }
    }

    /// The last number was not used.
    pub fn reset_sequence(&mut self) {
        self.sequence -= 1;
    }

    pub fn error<T: std::fmt::Debug>(&self, result: Answer<T>) -> ErrorKind {
        match result {
            Ok(value) => panic!("an error was expected, not {value:?}"),
            Err(status) => wire_error_of(&status).kind,
        }
    }

    pub async fn apply(&mut self, mutations: Vec<v1::Mutation>) -> Answer<Vec<v1::MutationResult>> {
        let id = self.next_id();
        self.apply_as(id, mutations).await
    }

    pub async fn apply_as(
        &mut self,
        id: v1::RequestId,
        mutations: Vec<v1::Mutation>,
    ) -> Answer<Vec<v1::MutationResult>> {
        let credentials = Some(v1::Credentials::default());
        let request =
            v1::ApplyRequest { id: Some(id), mutations, credentials, ..v1::ApplyRequest::default() };
        Ok(self.grpc.apply(request).await?.into_inner().results)
    }

    pub async fn lookup(&mut self, parent: u64, name: &str) -> Answer<v1::Attr> {
        let request = v1::LookupRequest {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            credentials: Some(v1::Credentials::default()),
            session: self.session.clone(),
        };
        Ok(self.grpc.lookup(request).await?.into_inner().attr.unwrap())
    }

    pub async fn get_attr(&mut self, inode: u64) -> Answer<v1::Attr> {
        let request = v1::GetAttrRequest { inode, session: self.session.clone() };
        Ok(self.grpc.get_attr(request).await?.into_inner().attr.unwrap())
    }

    pub async fn until_gone(&mut self, inode: u64) -> anyhow::Result<()> {
        for _ in 0..100 {
            match self.get_attr(inode).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(status) => {
                    assert_eq!(wire_error_of(&status).kind, ErrorKind::StaleHandle);
                    return Ok(());
                }
            }
        }
        anyhow::bail!("inode {inode} is still there")
    }

    pub async fn list(&mut self, inode: u64) -> Answer<Vec<String>> {
        let page = self.grpc.read_dir(listing(inode, &self.session)).await?.into_inner();
        assert!(page.end);
        let entries = Entries::decode(&page.entries).unwrap();
        assert_eq!(entries.len(), page.attrs.len());
        Ok(entries.iter().map(|entry| String::from_utf8_lossy(entry.name).into_owned()).collect())
    }

    pub async fn open(&mut self, inode: u64, sequence: u64) -> Answer<v1::DownloadFileResponse> {
        let open = Some(v1::OpenRegistration { session: self.session.clone(), sequence });
        let request = v1::DownloadFileRequest { inode, open, ..v1::DownloadFileRequest::default() };
        Ok(self.grpc.download_file(request).await?.into_inner())
    }

    pub async fn layout(&mut self, inode: u64, offset: u64, length: u64) -> Answer<v1::DownloadFileResponse> {
        let request = v1::DownloadFileRequest { inode, offset, length, ..v1::DownloadFileRequest::default() };
        Ok(self.grpc.download_file(request).await?.into_inner())
    }

    pub async fn close_files(&mut self, files: Vec<v1::OpenFile>) -> anyhow::Result<()> {
        let closed = v1::session_request::Message::Closed(v1::Closed { files });
        Ok(self.requests.send(message(closed)).await?)
    }

    pub async fn goodbye(&mut self) -> anyhow::Result<()> {
        let goodbye = v1::session_request::Message::Goodbye(v1::Goodbye {});
        Ok(self.requests.send(message(goodbye)).await?)
    }

    pub async fn plan(&mut self, chunks: u32) -> Answer<v1::UploadFileResponse> {
        self.plan_with(0, chunks, 0).await
    }

    pub async fn plan_with(
        &mut self,
        chunk_size: u64,
        chunks: u32,
        bytes: u64,
    ) -> Answer<v1::UploadFileResponse> {
        let session = self.session.clone();
        let request =
            v1::UploadFileRequest { session, chunk_size, chunks, bytes, ..v1::UploadFileRequest::default() };
        Ok(self.grpc.upload_file(request).await?.into_inner())
    }

    pub async fn confirm(&mut self, request: v1::ConfirmUploadRequest) -> Answer<Vec<v1::MutationResult>> {
        Ok(self.grpc.confirm_upload(request).await?.into_inner().results)
    }

    pub async fn confirm_new(
        &mut self,
        chunks: Vec<v1::StoredChunk>,
        files: Vec<v1::FileCommit>,
    ) -> Answer<Vec<v1::MutationResult>> {
        let id = Some(self.next_id());
        self.confirm(v1::ConfirmUploadRequest { id, chunks, files }).await
    }

    pub async fn status(&mut self) -> Answer<v1::GetStatusResponse> {
        Ok(self.grpc.get_status(v1::GetStatusRequest {}).await?.into_inner())
    }

    pub async fn until_states(&mut self, expected: &[v1::NodeState]) -> anyhow::Result<()> {
        let mut states = Vec::new();
        for _ in 0..100 {
            let map = self.grpc.list_nodes(v1::ListNodesRequest {}).await?.into_inner().map.unwrap();
            states = map.nodes.iter().map(v1::Node::state).collect();
            if states == expected {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("{states:?} where {expected:?} was expected")
    }
}

async fn keep_alive(requests: mpsc::Sender<v1::SessionRequest>, mut answers: Streaming<v1::SessionResponse>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                let beat = v1::session_request::Message::KeepAlive(v1::KeepAlive::default());
                if requests.send(message(beat)).await.is_err() { break }
            }
            answer = answers.message() => if !matches!(answer, Ok(Some(_))) { break },
        }
    }
}

/// Asks for a whole directory, with attributes.
pub fn listing(inode: u64, session: &Bytes) -> v1::ReadDirRequest {
    let session = session.clone();
    v1::ReadDirRequest { inode, limit: 65_536, attributes: true, session, ..v1::ReadDirRequest::default() }
}

pub fn mutation(op: Op) -> v1::Mutation {
    v1::Mutation { op: Some(op), ..v1::Mutation::default() }
}

pub fn create(parent: u64, name: &str, kind: v1::InodeKind) -> v1::Mutation {
    let mode = if kind == v1::InodeKind::Directory { 0o755 } else { 0o644 };
    let name = Bytes::copy_from_slice(name.as_bytes());
    let op = v1::Create { parent, name, kind: kind.into(), mode, exclusive: true, ..v1::Create::default() };
    mutation(Op::Create(op))
}

pub fn file(parent: u64, name: &str) -> v1::Mutation {
    create(parent, name, v1::InodeKind::File)
}

pub fn dir(parent: u64, name: &str) -> v1::Mutation {
    create(parent, name, v1::InodeKind::Directory)
}

pub fn unlink(parent: u64, name: &str) -> v1::Mutation {
    let name = Bytes::copy_from_slice(name.as_bytes());
    mutation(Op::Unlink(v1::Unlink { parent, name }))
}

/// A chunk that all members of its set have stored.
pub fn stored(map: &v1::ClusterMap, (chunk, set, epoch): (u64, u64, u64), length: u64) -> v1::StoredChunk {
    let members = map.sets.iter().find(|known| known.id == set).map(|set| set.members.clone());
    let stored_by = members.unwrap_or_default().into_iter().map(|member| member.node).collect();
    v1::StoredChunk { chunk, set, epoch, length, crc32c: 7, stored_by, synced: false }
}

/// (offset, length, chunk, offset in it) for each extent.
pub fn commit(inode: u64, extents: &[(u64, u64, u64, u64)]) -> v1::FileCommit {
    let extent =
        |&(offset, length, chunk, chunk_offset): &_| v1::Extent { offset, length, chunk, chunk_offset };
    let extents = extents.iter().map(extent).collect();
    v1::FileCommit { inode, extents, ..v1::FileCommit::default() }
}
