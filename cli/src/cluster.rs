//! Questions to a cluster that need no session, so that diagnosis works when little else does:
//! status, datanodes, layouts, and what each datanode holds.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::{ErrorKind, NodeId, WireError, v1, wire_error_of};
use cairn_runtime::{clock, net};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::{human, reach};

/// Every answer must come within this time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Reading and checking chunks takes longer.
const VERIFY_LIMIT: Duration = Duration::from_secs(120);
/// Extents that are asked for at once.
const EXTENTS_MAX: u32 = 65_536;

/// A coordinator to ask.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    address: String,
    client: CoordinatorClient<Channel>,
    output: Output,
    limit: Duration,
}

impl Cluster {
    /// Prepares to ask; connects with the first question. `timeout`: how long to wait for each answer.
    pub(crate) fn connect(address: &str, output: Output, timeout: Option<Duration>) -> Result<Self, Failure> {
        let channel = net::connect(address).map_err(|error| Failure::usage("--coordinator", error))?;
        let client = CoordinatorClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX);
        Ok(Self { address: address.to_owned(), client, output, limit: timeout.unwrap_or(ANSWER_LIMIT) })
    }

    /// Where the coordinator is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Counters, health, datanodes, sessions.
    pub(crate) async fn status(&self) -> Result<v1::GetStatusResponse, Failure> {
        let mut client = self.client.clone();
        self.told(self.answer(self.limit, client.get_status(v1::GetStatusRequest {})).await).await
    }

    /// The map: every datanode and every replica set.
    pub(crate) async fn map(&self) -> Result<v1::ClusterMap, Failure> {
        let mut client = self.client.clone();
        let answer =
            self.told(self.answer(self.limit, client.list_nodes(v1::ListNodesRequest {})).await).await?;
        Ok(answer.map.unwrap_or_default())
    }

    /// Space and inodes.
    pub(crate) async fn stat_fs(&self) -> Result<v1::StatFsResponse, Failure> {
        let mut client = self.client.clone();
        self.told(self.answer(self.limit, client.stat_fs(v1::StatFsRequest {})).await).await
    }

    /// Says what is wanted of a datanode.
    pub(crate) async fn set_node_admin(
        &self,
        request: v1::SetNodeAdminRequest,
    ) -> Result<v1::SetNodeAdminResponse, Failure> {
        let mut client = self.client.clone();
        self.told(self.answer(self.limit, client.set_node_admin(request)).await).await
    }

    /// Starts, pauses or resumes work in the background.
    pub(crate) async fn control_worker(
        &self,
        worker: &str,
        action: v1::WorkerAction,
    ) -> Result<v1::WorkerStatus, Failure> {
        let mut client = self.client.clone();
        let request = v1::ControlWorkerRequest { worker: worker.to_owned(), action: action.into() };
        let answer = self.told(self.answer(self.limit, client.control_worker(request)).await).await?;
        Ok(answer.worker.unwrap_or_default())
    }

    /// All extents of a file and the chunks that they name.
    pub(crate) async fn layout(
        &self,
        inode: u64,
        size: u64,
    ) -> Result<(Vec<v1::Extent>, BTreeMap<u64, v1::ChunkRef>), Failure> {
        let (mut extents, mut chunks) = (Vec::new(), BTreeMap::new());
        let mut offset = 0;
        while offset < size {
            let mut client = self.client.clone();
            let request = v1::DownloadFileRequest {
                inode,
                offset,
                length: size - offset,
                extents_max: EXTENTS_MAX,
                ..Default::default()
            };
            let part = self.told(self.answer(self.limit, client.download_file(request)).await).await?;
            // Extents come whole, so that one may have been seen already.
            let seen = extents.last().map_or(0, |last: &v1::Extent| last.offset.saturating_add(last.length));
            extents.extend(part.extents.into_iter().filter(|extent| extent.offset >= seen));
            chunks.extend(part.chunks.into_iter().map(|chunk| (chunk.chunk, chunk)));
            if part.covered <= offset {
                break;
            }
            offset = part.covered;
        }
        Ok((extents, chunks))
    }

    /// All metadata as a stream, or, with `to_place`, a backup in the coordinator's second place.
    pub(crate) async fn backup(&self, to_place: bool) -> Result<Streaming<v1::BackupResponse>, Failure> {
        let mut client = self.client.clone();
        let answer = client.backup(v1::BackupRequest { to_place }).await;
        self.told(answer.map(Response::into_inner).map_err(|status| wire_error_of(&status))).await
    }

    /// What comes next of a backup.
    pub(crate) async fn next_of_backup(
        &self,
        stream: &mut Streaming<v1::BackupResponse>,
    ) -> Result<Option<v1::BackupResponse>, Failure> {
        match clock::timeout(VERIFY_LIMIT, stream.message()).await {
            Ok(message) => self.told(message.map_err(|status| wire_error_of(&status))).await,
            Err(_) => self.told(Err(nothing_came())).await,
        }
    }

    /// What waits to be deleted.
    pub(crate) async fn gc_status(&self) -> Result<v1::GcStatus, Failure> {
        let mut client = self.client.clone();
        self.told(self.answer(self.limit, client.get_gc_status(v1::GetGcStatusRequest {})).await).await
    }

    /// Stops deletion or lets it go on.
    pub(crate) async fn control_gc(&self, action: v1::GcAction) -> Result<v1::GcStatus, Failure> {
        let mut client = self.client.clone();
        let request = v1::ControlGcRequest { action: action.into() };
        self.told(self.answer(self.limit, client.control_gc(request)).await).await
    }

    /// Starts scrubs, or asks how far they are.
    pub(crate) async fn scrub(
        &self,
        request: v1::ScrubNodesRequest,
    ) -> Result<v1::ScrubNodesResponse, Failure> {
        let mut client = self.client.clone();
        self.told(self.answer(VERIFY_LIMIT, client.scrub_nodes(request)).await).await
    }

    /// Checks everything; findings and progress come as a stream.
    pub(crate) async fn fsck(
        &self,
        request: v1::FsckRequest,
    ) -> Result<Streaming<v1::FsckResponse>, Failure> {
        let mut client = self.client.clone();
        self.told(self.answer(self.limit, client.fsck(request)).await).await
    }

    /// What comes next of a check.
    pub(crate) async fn next_of_fsck(
        &self,
        stream: &mut Streaming<v1::FsckResponse>,
    ) -> Result<Option<v1::FsckResponse>, Failure> {
        match clock::timeout(VERIFY_LIMIT, stream.message()).await {
            Ok(message) => self.told(message.map_err(|status| wire_error_of(&status))).await,
            Err(_) => self.told(Err(nothing_came())).await,
        }
    }

    async fn told<T>(&self, answer: Result<T, WireError>) -> Result<T, Failure> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) if reach::is_about_reaching(error.kind) => {
                Err(reach::unreachable(&self.address, None, &error.message).await)
            }
            Err(error) => Err(failure(&format!("ask the coordinator at {}", self.address), &error)),
        }
    }

    /// One answer, within a time; says so when that takes long.
    async fn answer<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, WireError> {
        let what = || {
            let limit = human::span(limit);
            format!("waiting for the coordinator at {}, for {limit} at most (--timeout)", self.address)
        };
        reach::saying(self.output, what, answer(limit, call)).await
    }
}

/// What a datanode says of chunks: a line for each, or why it does not answer.
pub(crate) async fn stat_chunks(
    address: &str,
    chunks: Vec<u64>,
    verify: bool,
) -> Result<BTreeMap<u64, v1::ChunkStat>, String> {
    let channel = net::connect(address).map_err(|error| error.to_string())?;
    let mut client = DataNodeClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX);
    let limit = if verify { VERIFY_LIMIT } else { ANSWER_LIMIT };
    match answer(limit, client.stat_chunks(v1::StatChunksRequest { chunks, verify })).await {
        Ok(answer) => Ok(answer.chunks.into_iter().map(|chunk| (chunk.chunk, chunk)).collect()),
        Err(error) => Err(error.message),
    }
}

fn nothing_came() -> WireError {
    WireError::new(ErrorKind::TimedOut, format!("nothing came for {} s", VERIFY_LIMIT.as_secs()))
}

/// The datanode that 16 bytes name, for people.
pub(crate) fn node_name(node: &[u8]) -> String {
    NodeId::from_wire(node).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

async fn answer<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, WireError> {
    match clock::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(wire_error_of(&status)),
        Err(_) => Err(WireError::new(ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()))),
    }
}

/// The failure of `what` because of an error of the cluster, with what can be done about it.
pub(crate) fn failure(what: &str, error: &WireError) -> Failure {
    let message = if error.message.is_empty() { format!("{:?}", error.kind) } else { error.message.clone() };
    let failure = Failure::new(what, message);
    match advice(error.kind) {
        Some((next, exit)) => failure.next(next).exit(exit),
        None => failure,
    }
}

/// What a person can do about a kind of error, and the exit status.
pub(crate) fn advice(kind: ErrorKind) -> Option<(&'static str, Exit)> {
    match kind {
        ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::NotActive => {
            Some(("`cairn status` shows what the cluster lacks", Exit::Unreachable))
        }
        ErrorKind::NoSpace => {
            Some(("free some space or add a datanode; `cairn df` shows what is left", Exit::Failed))
        }
        ErrorKind::AccessDenied | ErrorKind::NotPermitted => {
            Some(("ask its owner, or do it as root", Exit::Failed))
        }
        ErrorKind::Corrupt | ErrorKind::ChecksumMismatch | ErrorKind::ChunkNotFound => {
            Some(("`cairn locate --verify` shows which copies are bad", Exit::Unhealthy))
        }
        ErrorKind::TooFewReplicas => {
            Some(("`cairn status` shows which datanodes are missing", Exit::Unreachable))
        }
        _ => None,
    }
}
