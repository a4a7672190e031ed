//! The node's standing in the cluster: registers with the coordinator, tells it each second how the
//! disks are, adopts every map it sends, and takes leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_proto::v1::{ClusterMap, HeartbeatRequest, RegisterDataNodeRequest};
use cairn_proto::{ClusterId, ErrorKind, wire_error_of};
use cairn_runtime::telemetry::stamp_request;
use cairn_runtime::{clock, net, random};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::DatanodeError;
use crate::identity::{self, Fence};
use crate::map::Map;
use crate::metrics;
use crate::node::Node;
use crate::store::StoreError;

/// Deadline of a registration.
const REGISTER_MAX: Duration = Duration::from_secs(5);
/// A coordinator that says nothing for this long is asked again over a new connection.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Pauses between attempts, jittered.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Bounds of the heartbeat interval that a coordinator may ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(20);
const HEARTBEAT_MAX: Duration = Duration::from_secs(10);
/// How long taking leave may take.
const LEAVE_MAX: Duration = Duration::from_millis(500);

type Client = CoordinatorClient<
    InterceptedService<Channel, fn(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status>>,
>;

/// The node's side of its membership.
pub(crate) struct Membership {
    node: Arc<Node>,
    coordinator: String,
    incarnation: Uuid,
    /// The cluster that the data directories name.
    cluster: std::sync::Mutex<Option<ClusterId>>,
    /// Cancelled when the node takes leave.
    leave: CancellationToken,
    registered: Arc<AtomicBool>,
    /// Beats sent, of all connections.
    beats: AtomicU64,
}

/// How one connection to the coordinator ended.
enum Ended {
    Left,
    Broken(String),
}

impl Membership {
    pub(crate) fn new(
        node: Arc<Node>,
        coordinator: String,
        cluster: Option<ClusterId>,
        leave: CancellationToken,
        registered: Arc<AtomicBool>,
    ) -> Self {
        let cluster = std::sync::Mutex::new(cluster);
        Self {
            node,
            coordinator,
            incarnation: random::uuid(),
            cluster,
            leave,
            registered,
            beats: AtomicU64::new(0),
        }
    }

    /// Stays a member until it is time to leave.
    ///
    /// # Errors
    /// `WrongCluster`: the coordinator serves another cluster. Nothing else ends it.
    pub(crate) async fn run(self) -> Result<(), DatanodeError> {
        let mut pause = BACKOFF_MIN;
        let mut told: Option<String> = None;
        while !self.leave.is_cancelled() {
            match self.register().await {
                Ok((client, interval)) => {
                    pause = BACKOFF_MIN;
                    told = None;
                    self.registered.store(true, Ordering::Relaxed);
                    let ended = self.heartbeat(client, interval).await;
                    self.registered.store(false, Ordering::Relaxed);
                    match ended {
                        Ended::Left => return Ok(()),
                        Ended::Broken(reason) => {
                            warn!(coordinator = self.coordinator, reason, "lost the coordinator");
                        }
                    }
                }
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::Retry(reason)) if told.as_ref() == Some(&reason) => {
                    debug!(coordinator = self.coordinator, reason, "not registered")
                }
                Err(Refusal::Retry(reason)) => {
                    // Another reason than before is news: "connection refused" may become "metadata is older".
                    warn!(coordinator = self.coordinator, reason, "can not register yet; trying again");
                    told = Some(reason);
                }
            }
            tokio::select! {
                () = clock::sleep(random::jitter(pause)) => {}
                () = self.leave.cancelled() => {}
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
        Ok(())
    }

    async fn register(&self) -> Result<(Client, Duration), Refusal> {
        let channel = net::connect(&self.coordinator).map_err(|error| Refusal::Retry(error.to_string()))?;
        let stamp: fn(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> = stamp_request;
        let mut client =
            CoordinatorClient::with_interceptor(channel, stamp).max_decoding_message_size(MESSAGE_SIZE_MAX);
        let own = *self.cluster.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let about = self.node.describe();
        let request = RegisterDataNodeRequest {
            node: about.node,
            cluster: own.map(ClusterId::to_wire).unwrap_or_default(),
            address: about.address,
            labels: about.labels,
            capacity: about.capacity,
            used: about.used,
            disks: about.disks,
            metrics_address: about.metrics_address,
            version: about.version,
            incarnation: bytes::Bytes::copy_from_slice(self.incarnation.as_bytes()),
            chunk_max: self.node.disks.chunk_max(),
            fence: Some(self.node.fence().to_wire()),
        };
        let answer = tokio::select! {
            answer = clock::timeout(REGISTER_MAX, client.register_data_node(request)) => answer,
            () = self.leave.cancelled() => return Err(Refusal::Retry("this datanode is stopping".into())),
        };
        let answer = match answer {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                let refusal = wire_error_of(&status);
                return Err(match refusal.kind {
                    ErrorKind::WrongCluster => Refusal::Final(DatanodeError::WrongCluster(refusal.message)),
                    _ => Refusal::Retry(refusal.message),
                });
            }
            Err(_) => return Err(Refusal::Retry("no answer".into())),
        };
        let cluster =
            ClusterId::from_wire(&answer.cluster).map_err(|error| Refusal::Retry(error.to_string()))?;
        self.join(cluster).await?;
        if let Some(map) = answer.map {
            self.adopt(&map).await;
        }
        info!(%cluster, coordinator = self.coordinator, "registered");
        let interval = Duration::from_millis(answer.heartbeat_ms).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        Ok((client, interval))
    }

    /// Records the cluster in the data directories, the first time.
    async fn join(&self, cluster: ClusterId) -> Result<(), Refusal> {
        let disks = self.node.disks.raw();
        let joined = self.node.disks.pool().run(move || identity::join(&disks, cluster)).await;
        match joined {
            Ok(Ok(())) => {
                *self.cluster.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(cluster);
                Ok(())
            }
            Ok(Err(error @ StoreError::Unusable(_))) => {
                Err(Refusal::Final(DatanodeError::WrongCluster(error.to_string())))
            }
            Ok(Err(error)) => Err(Refusal::Retry(error.to_string())),
            Err(error) => Err(Refusal::Retry(error.to_string())),
        }
    }

    /// Sends heartbeats until the connection breaks or it is time to leave.
    async fn heartbeat(&self, mut client: Client, interval: Duration) -> Ended {
        let (beats, queue) = mpsc::channel(4);
        self.node.disks.bad().on_reconnect();
        if beats.try_send(self.beat(false)).is_err() {
            return Ended::Broken("the first heartbeat could not be queued".into());
        }
        let opened = clock::timeout(REGISTER_MAX, client.heartbeat(ReceiverStream::new(queue))).await;
        let mut answers = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::Broken(wire_error_of(&status).message),
            Err(_) => return Ended::Broken("no answer".into()),
        };
        let mut tick = clock::interval(interval);
        let mut heard = clock::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Ended::Broken(format!("silent for {} s", SILENCE_MAX.as_secs()));
                    }
                    // A full queue means that the coordinator is slow; the next beat says as much.
                    let beat = self.beat(false);
                    let number = beat.beat;
                    if beats.try_send(beat).is_err() {
                        self.node.disks.bad().on_unsent(number);
                    }
                }
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        heard = clock::now();
                        self.node.disks.bad().on_recorded(answer.beat);
                        if let Some(fence) = answer.fence {
                            self.see(Fence::from_wire(&fence)).await;
                        }
                        if let Some(map) = answer.map {
                            self.adopt(&map).await;
                        }
                    }
                    Ok(None) => return Ended::Broken("it ended the stream".into()),
                    Err(status) => return Ended::Broken(wire_error_of(&status).message),
                },
                () = self.leave.cancelled() => {
                    let bye = async {
                        if beats.send(self.beat(true)).await.is_ok() {
                            let _ = answers.message().await;
                        }
                    };
                    let _ = clock::timeout(LEAVE_MAX, bye).await;
                    return Ended::Left;
                }
            }
        }
    }

    fn beat(&self, leaving: bool) -> HeartbeatRequest {
        let about = self.node.describe();
        let beat = self.beats.fetch_add(1, Ordering::Relaxed) + 1;
        ::metrics::gauge!(metrics::CHUNKS).set(self.node.disks.chunks() as f64);
        ::metrics::gauge!(metrics::USED_BYTES).set(about.used as f64);
        ::metrics::gauge!(metrics::ROOM_BYTES).set(about.capacity.saturating_sub(about.used) as f64);
        HeartbeatRequest {
            node: about.node,
            capacity: about.capacity,
            used: about.used,
            disks: about.disks,
            streams: self.node.streams.load(Ordering::Relaxed),
            map_revision: self.node.maps.get().revision,
            incarnation: bytes::Bytes::copy_from_slice(self.incarnation.as_bytes()),
            leaving,
            bad: self.node.disks.bad().tell(beat),
            beat,
            scrub: Some(self.node.scrub.status()),
        }
    }

    /// Takes a map when it is of this cluster and newer.
    async fn adopt(&self, wire: &ClusterMap) {
        let map = match Map::from_wire(wire) {
            Ok(map) => map,
            Err(error) => return error!(%error, "the coordinator sent a map that is none"),
        };
        let own = *self.cluster.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if map.cluster.is_some() && map.cluster != own {
            return error!("the coordinator sent another cluster's map");
        }
        let seen = map.fence();
        if !self.node.maps.adopt(map) {
            return;
        }
        self.node.partners.adopt(&self.node.maps.get());
        self.see(seen).await;
    }

    /// Takes note of where the metadata is.
    async fn see(&self, seen: Fence) {
        if !self.node.see_fence(seen) {
            return;
        }
        let node = Arc::clone(&self.node);
        match self.node.disks.pool().run(move || node.store_fence()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(%error, "the position of the metadata could not be recorded"),
            Err(error) => warn!(%error, "the position of the metadata is recorded later"),
        }
    }
}

/// Why a registration failed.
enum Refusal {
    Retry(String),
    Final(DatanodeError),
}
