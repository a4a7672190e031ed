//! Calls to datanodes: what background work asks of them.
//!
//! The coordinator calls, rather than sending commands down the stream of heartbeats: a call has an
//! answer, a deadline and back-pressure of its own. Each datanode has one lazy channel, which follows its
//! address.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::{ErrorKind, NodeId, wire_error_of};
use cairn_runtime::telemetry::stamp_request;
use cairn_runtime::{clock, net};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::error::OpError;
use crate::membership::Cluster;
use crate::membership::state::NodeState;

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

    /// Makes one call to a datanode that is up, with a deadline.
    ///
    /// `TimedOut`: whether it was carried out is unknown.
    pub(crate) async fn call<T, F>(
        &self,
        cluster: &Cluster,
        node: NodeId,
        limit: Duration,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, OpError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = self.client(cluster, node)?;
        match clock::timeout(limit, ask(client)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refusal(node, &status)),
            Err(_) => {
                let message = format!("datanode {} gave no answer within {limit:?}", node.short());
                Err(OpError::new(ErrorKind::TimedOut, message))
            }
        }
    }
}

/// What a datanode says when it refuses.
pub(crate) fn refusal(node: NodeId, status: &Status) -> OpError {
    let error = wire_error_of(status);
    OpError::new(error.kind, format!("datanode {}: {}", node.short(), error.message))
}
