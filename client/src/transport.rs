//! Connections to the datanodes: two channels each (stores must not hold up fetches), one long-lived
//! `StoreChunk` stream, and what was measured about it.

mod health;
pub(crate) mod store;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::{ErrorKind, NodeId, v1};
use cairn_runtime::telemetry::stamp_request;
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::error::{ClientError, Result};
use crate::map::{Liveness, Map};
pub(crate) use health::Health;
use store::StoreStream;

type Stamp = fn(tonic::Request<()>) -> std::result::Result<tonic::Request<()>, tonic::Status>;
pub(crate) type Rpc = DataNodeClient<InterceptedService<Channel, Stamp>>;

/// The datanodes by their identity.
#[derive(Debug)]
pub(crate) struct Transport {
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
}

/// The connections to one datanode.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) health: Health,
    fetches: Rpc,
    stores: Rpc,
    stream: Mutex<Option<Arc<StoreStream>>>,
}

impl Transport {
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { links: Mutex::default(), tasks, runtime: tokio::runtime::Handle::current() }
    }

    /// The connections to a node of the map; made anew when its address has changed.
    pub(crate) fn link(&self, map: &Map, node: NodeId) -> Result<Arc<Link>> {
        let unknown =
            || ClientError::new(ErrorKind::Unavailable, format!("datanode {node} is not in the map"));
        let address = &map.nodes.get(&node).ok_or_else(unknown)?.address;
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&node).filter(|link| link.address == *address) {
            return Ok(Arc::clone(link));
        }
        let _context = self.runtime.enter(); // channels start their tasks where they are made
        let link = Arc::new(Link {
            node,
            address: address.clone(),
            health: Health::default(),
            fetches: dial(address)?,
            stores: dial(address)?,
            stream: Mutex::default(),
        });
        links.insert(node, Arc::clone(&link));
        Ok(link)
    }

    /// The nodes of a set from the best to the worst for a transfer now: live and not lately failed
    /// ones first, in the order that `cost` says.
    pub(crate) fn rank(
        &self,
        map: &Map,
        members: impl IntoIterator<Item = NodeId>,
        cost: impl Fn(&Health) -> u64,
    ) -> Vec<Arc<Link>> {
        let mut ranked: Vec<_> = members
            .into_iter()
            .filter_map(|node| {
                let link = self.link(map, node).ok()?;
                let standing = match map.liveness(node) {
                    Liveness::Up if !link.health.has_failed_lately() => 0,
                    Liveness::Up => 1,
                    Liveness::Suspect => 2,
                    Liveness::Down => 3,
                };
                Some(((standing, cost(&link.health)), link))
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, link)| link).collect()
    }

    /// The open store stream to a node, or a new one.
    pub(crate) fn store_stream(&self, link: &Arc<Link>) -> Arc<StoreStream> {
        let mut stream = link.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = stream.as_ref().filter(|open| !open.is_broken()) {
            return Arc::clone(open);
        }
        let (fresh, task) = StoreStream::open(link.stores.clone());
        self.tasks.spawn_on(task, &self.runtime);
        *stream = Some(Arc::clone(&fresh));
        fresh
    }

    /// Closes all store streams, so that their tasks end.
    pub(crate) fn close(&self) {
        for link in self.links.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if let Some(stream) = link.stream.lock().unwrap_or_else(PoisonError::into_inner).take() {
                stream.close();
            }
        }
    }
}

fn dial(address: &str) -> Result<Rpc> {
    let channel = cairn_runtime::net::connect(address)?;
    let rpc = DataNodeClient::with_interceptor(channel, stamp_request as Stamp);
    Ok(rpc.max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX))
}

impl Link {
    /// Asks for a range of a chunk.
    pub(crate) async fn retrieve(
        &self,
        request: v1::RetrieveChunkRequest,
    ) -> Result<Streaming<v1::RetrieveFrame>> {
        Ok(self.fetches.clone().retrieve_chunk(request).await?.into_inner())
    }
}
