//! Typed calls to the coordinator.
//!
//! Every call has a deadline for each try and a budget for all of them. Mutations carry (session,
//! slot, sequence) and so happen exactly once, however often they are sent; they run to their end
//! in the background when their future is dropped.

mod calls;
mod metadata;

pub(crate) use metadata::Granted;

use std::sync::Arc;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::clock::{ClusterClock, Stamp};
use crate::config::Unreachable;
use crate::error::Result;
use crate::map::MapCell;
use crate::session::Session;

pub(crate) type Rpc = CoordinatorClient<InterceptedService<Channel, Stamp>>;

/// The metadata service. Clones share everything.
#[derive(Debug, Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rpc: Rpc,
    session: Arc<Session>,
    map: Arc<MapCell>,
    policy: Unreachable,
    runtime: Handle,
    tasks: TaskTracker,
}

/// A client of the service at `address`, which connects when first used. `clock`: the time that its requests carry.
pub(crate) fn dial(address: &str, clock: &Arc<ClusterClock>) -> Result<Rpc> {
    let channel = cairn_runtime::net::connect(address)?;
    let rpc = CoordinatorClient::with_interceptor(channel, Stamp(Arc::clone(clock)));
    Ok(rpc.max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX))
}

impl Coordinator {
    pub(crate) fn new(
        rpc: Rpc,
        session: Arc<Session>,
        map: Arc<MapCell>,
        policy: Unreachable,
        tasks: TaskTracker,
    ) -> Self {
        let runtime = Handle::current();
        Self { shared: Arc::new(Shared { rpc, session, map, policy, runtime, tasks }) }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.shared.session
    }

    pub(crate) fn map(&self) -> &Arc<MapCell> {
        &self.shared.map
    }

    pub(crate) fn policy(&self) -> Unreachable {
        self.shared.policy
    }
}
