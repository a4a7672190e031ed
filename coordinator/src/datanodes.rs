//! Calls to datanodes: what background work asks of them. Every call has a deadline; a listing that is not
//! complete is an error, since nothing may be concluded from it.
//!
//! The coordinator calls, rather than sending commands down the stream of heartbeats: a call has an
//! answer, a deadline and back-pressure of its own. Each datanode has one lazy channel, which follows its
//! address.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::limits::{LIST_MAX, MESSAGE_SIZE_MAX};
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::{ChunkId, ErrorKind, NodeId, WireError, v1, wire_error_of};
use cairn_runtime::telemetry::stamp_request;
use cairn_runtime::{clock, net};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::error::OpError;
use crate::membership::Cluster;
use crate::membership::state::NodeState;

/// A datanode looks through its index, which is in memory.
const LIST_TIME: Duration = Duration::from_secs(30);
/// Marks of deletion are synced to the disk.
const DELETE_TIME: Duration = Duration::from_secs(60);
/// A chunk of 64 MiB at a low rate, from a source that has to be given up first.
pub(crate) const COPY_TIME: Duration = Duration::from_secs(60);

type Stamp = fn(Request<()>) -> Result<Request<()>, Status>;
/// A client of one datanode.
pub(crate) type Client = DataNodeClient<InterceptedService<Channel, Stamp>>;

/// The channels, by datanode.
#[derive(Debug, Default)]
pub(crate) struct Datanodes(Mutex<HashMap<NodeId, (String, Channel)>>);

impl Datanodes {
    /// A client of a datanode that is up. `Unavailable`: it is not.
    pub(crate) fn client(&self, cluster: &Cluster, node: NodeId) -> Result<Client, OpError> {
        let address = {
            let members = cluster.members();
            let entry = members.nodes.get(&node).filter(|entry| entry.state == NodeState::Up);
            entry.map(|entry| entry.row.address.clone())
        };
        let address = address.ok_or_else(|| {
            OpError::new(ErrorKind::Unavailable, format!("datanode {} is not up", node.short()))
        })?;
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = channels.get(&node).filter(|(at, _)| *at == address);
        let channel = match known {
            Some((_, channel)) => channel.clone(),
            None => {
                let channel = net::connect(&address).map_err(|error| OpError::invalid(error.to_string()))?;
                channels.insert(node, (address, channel.clone()));
                channel
            }
        };
        let stamp: Stamp = stamp_request;
        Ok(DataNodeClient::with_interceptor(channel, stamp)
            .max_decoding_message_size(MESSAGE_SIZE_MAX)
            .max_encoding_message_size(MESSAGE_SIZE_MAX))
    }

    /// Has a datanode fetch copies. The answers come as they are made; each may take [`COPY_TIME`].
    pub(crate) async fn copy(
        &self,
        cluster: &Cluster,
        node: NodeId,
        request: v1::CopyChunksRequest,
    ) -> Result<Streaming<v1::CopyChunksResponse>, OpError> {
        let mut client = self.client(cluster, node)?;
        answer(node, COPY_TIME, client.copy_chunks(request)).await
    }

    /// Counts and digests of `ranges` ranges of `span` ids each.
    pub(crate) async fn summarize(
        &self,
        cluster: &Cluster,
        node: NodeId,
        request: v1::SummarizeChunksRequest,
    ) -> Result<Vec<v1::ChunkSummary>, OpError> {
        let mut client = self.client(cluster, node)?;
        let answer = answer(node, LIST_TIME, client.summarize_chunks(request)).await?;
        if answer.ranges.len() != request.ranges as usize {
            return Err(incomplete(node, "its summary has not as many ranges as were asked for"));
        }
        Ok(answer.ranges)
    }

    /// Everything that a datanode holds with ids from `first` to `last`, in order; the range has at most
    /// [`LIST_MAX`] ids. `Unavailable`: the listing is not complete.
    pub(crate) async fn list(
        &self,
        cluster: &Cluster,
        node: NodeId,
        (first, last): (ChunkId, ChunkId),
    ) -> Result<Vec<v1::HeldChunk>, OpError> {
        let mut client = self.client(cluster, node)?;
        let request = v1::ListChunksRequest { first: first.get(), last: last.get(), limit: LIST_MAX as u32 };
        let answer = answer(node, LIST_TIME, client.list_chunks(request)).await?;
        if !answer.complete {
            return Err(incomplete(node, "its listing is not complete; a disk of it may be away"));
        }
        let ids = || answer.chunks.iter().map(|held| held.chunk);
        if !ids().is_sorted() || ids().any(|id| id < first.get() || id > last.get()) {
            return Err(incomplete(node, "its listing is not what was asked for"));
        }
        Ok(answer.chunks)
    }

    /// Deletes chunks; returns those that could not be.
    pub(crate) async fn delete(
        &self,
        cluster: &Cluster,
        node: NodeId,
        request: v1::DeleteChunksRequest,
    ) -> Result<Vec<v1::ChunkError>, OpError> {
        let mut client = self.client(cluster, node)?;
        Ok(answer(node, DELETE_TIME, client.delete_chunks(request)).await?.failed)
    }

    /// Brings chunks back from the trash; returns those that are not there.
    pub(crate) async fn restore(
        &self,
        cluster: &Cluster,
        node: NodeId,
        chunks: Vec<u64>,
    ) -> Result<Vec<v1::ChunkError>, OpError> {
        let mut client = self.client(cluster, node)?;
        Ok(answer(node, DELETE_TIME, client.restore_chunks(v1::RestoreChunksRequest { chunks }))
            .await?
            .failed)
    }

    /// Makes chunks survive power loss there. Those for which that did not work, within `limit`.
    pub(crate) async fn sync(
        &self,
        cluster: &Cluster,
        node: NodeId,
        chunks: &[ChunkId],
        limit: Duration,
    ) -> Result<BTreeMap<u64, WireError>, OpError> {
        let mut client = self.client(cluster, node)?;
        let request = v1::SyncChunksRequest { chunks: chunks.iter().map(|chunk| chunk.get()).collect() };
        let answer = answer(node, limit, client.sync_chunks(request)).await?;
        // What is told as failed never counts as synced, whatever the reason is.
        let error = |failed: v1::ChunkError| {
            let protocol = || WireError::new(ErrorKind::Protocol, failed.message.clone());
            (failed.chunk, WireError::from_fields(failed.error, &failed.message).unwrap_or_else(protocol))
        };
        Ok(answer.failed.into_iter().map(error).collect())
    }

    /// Makes one chunk out of parts of others, and forwards it to the members of its set.
    pub(crate) async fn repack(
        &self,
        cluster: &Cluster,
        node: NodeId,
        request: v1::RepackChunksRequest,
    ) -> Result<v1::RepackChunksResponse, OpError> {
        let mut client = self.client(cluster, node)?;
        answer(node, COPY_TIME, client.repack_chunks(request)).await
    }

    /// How far the scrub is; with `request.start` it begins.
    pub(crate) async fn scrub(
        &self,
        cluster: &Cluster,
        node: NodeId,
        request: v1::ScrubRequest,
    ) -> Result<v1::ScrubStatus, OpError> {
        let mut client = self.client(cluster, node)?;
        Ok(answer(node, LIST_TIME, client.scrub(request)).await?.status.unwrap_or_default())
    }
}

/// One answer within its time. The error names the datanode.
pub(crate) async fn answer<T>(
    node: NodeId,
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, OpError> {
    match clock::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refusal(node, &status)),
        Err(_) => {
            let message = format!("datanode {} does not answer within {limit:?}", node.short());
            Err(OpError::new(ErrorKind::TimedOut, message))
        }
    }
}

fn incomplete(node: NodeId, why: &str) -> OpError {
    OpError::new(ErrorKind::Unavailable, format!("datanode {}: {why}", node.short()))
}

/// What a datanode says when it refuses.
pub(crate) fn refusal(node: NodeId, status: &Status) -> OpError {
    let error = wire_error_of(status);
    OpError::new(error.kind, format!("datanode {}: {}", node.short(), error.message))
}
