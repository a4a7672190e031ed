//! Starting and stopping a datanode.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::data_node_server::DataNodeServer;
use cairn_proto::v1::meta_log_server::MetaLogServer;
use cairn_proto::{ErrorKind, NodeId, v1};
use cairn_runtime::config::{ConfigError, Validate};
use cairn_runtime::disk::{Disk, RealDisk};
use cairn_runtime::net::{Load, TcpListener};
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::telemetry::{self, Readiness};
use cairn_runtime::threads::Pool;
use cairn_runtime::{clock, net};
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::DatanodeConfig;
use crate::disks::{Disks, missing_disk};
use crate::drain::{self, DrainOptions};
use crate::identity::{self, Fence, Identity};
use crate::membership::Membership;
use crate::metalog::Shelf;
use crate::node::{Facts, Limits, Node};
use crate::replication::Partners;
use crate::scrub::{self, ScrubOptions};
use crate::service::Service;
use crate::store::{StoreError, StoreOptions};
use crate::{trash, watch};

/// Connections that do not end by themselves are dropped after this time.
const SERVER_DRAIN: Duration = Duration::from_secs(4);
/// Each open segment takes a file descriptor.
const FILES_WANTED: u64 = 65_536;

/// Why a datanode did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DatanodeError {
    /// A setting that can not be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A data directory that can not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The coordinator, or a data directory, belongs to another cluster.
    #[error("{0}")]
    WrongCluster(String),
    /// Sockets, threads or directories.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The server ended by itself.
    #[error("the gRPC server ended: {0}")]
    Server(String),
}

impl DatanodeError {
    /// What to act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) => ErrorKind::InvalidArgument,
            Self::Store(error) => error.kind(),
            Self::WrongCluster(_) => ErrorKind::WrongCluster,
            Self::Io { .. } => ErrorKind::Io,
            Self::Server(_) => ErrorKind::Unavailable,
        }
    }

    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// A datanode that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are, when they are on.
    pub metrics_address: Option<SocketAddr>,
    /// Who it is.
    pub node: NodeId,
    task: JoinHandle<Result<(), DatanodeError>>,
}

impl Running {
    /// Resolves when a stop was requested and everything is drained, synced and closed; or when the
    /// coordinator turned out to serve another cluster.
    pub async fn wait(self) -> Result<(), DatanodeError> {
        self.task.await.map_err(|error| DatanodeError::Server(error.to_string()))?
    }
}

/// Starts a datanode on its data directories. Returns once it listens; it registers in the background.
///
/// # Errors
/// A bad setting; a directory that is locked, of another cluster or of a newer format; an address
/// in use. Each says what to do.
pub async fn start(config: DatanodeConfig, shutdown: Shutdown) -> Result<Running, DatanodeError> {
    config.validate()?;
    raise_file_limit();
    let Directories { disks, missing } = open_directories(&config)?;
    start_with(config, disks, missing, shutdown).await
}

/// The data directories of the node.
struct Directories {
    disks: Vec<Arc<dyn Disk>>,
    /// Those that could not be opened.
    missing: Vec<v1::DiskHealth>,
}

/// Opens the data directories. One that fails as a disk does is left out, as long as another one says which
/// node this is: a lost disk must not take the node's other disks along.
fn open_directories(config: &DatanodeConfig) -> Result<Directories, DatanodeError> {
    let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
    let mut missing = Vec::new();
    let mut known = false;
    let mut failed = None;
    for path in &config.data {
        let refused = match RealDisk::open(path) {
            Ok(disk) => match identity::is_known(&disk) {
                Ok(is_known) => {
                    known |= is_known;
                    disks.push(Arc::new(disk));
                    continue;
                }
                Err(error @ StoreError::Io { .. }) => DatanodeError::Store(error),
                Err(error) => return Err(error.into()),
            },
            // Another process has it: a mistake, which nothing is to hide.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                return Err(DatanodeError::io("can not open the data directory")(error));
            }
            Err(error) => DatanodeError::io("can not open the data directory")(error),
        };
        missing.push(missing_disk(path.display().to_string(), refused.to_string()));
        failed.get_or_insert(refused);
    }
    match failed {
        Some(error) if !known => Err(error),
        failed => {
            if let Some(error) = failed {
                error!(%error, "a data directory is missing; going on with the others");
            }
            Ok(Directories { disks, missing })
        }
    }
}

/// As [`start`], on disks that the caller made in place of the configured directories.
///
/// # Errors
/// As [`start`].
pub async fn start_on(
    config: DatanodeConfig,
    disks: Vec<Arc<dyn Disk>>,
    shutdown: Shutdown,
) -> Result<Running, DatanodeError> {
    config.validate()?;
    start_with(config, disks, Vec::new(), shutdown).await
}

/// Boxed: the code of a future is made where it is polled by its type, and the whole datanode would be compiled again
/// in each crate that starts one.
fn start_with(
    config: DatanodeConfig,
    disks: Vec<Arc<dyn Disk>>,
    missing: Vec<v1::DiskHealth>,
    shutdown: Shutdown,
) -> BoxFuture<'static, Result<Running, DatanodeError>> {
    Box::pin(listen_and_serve(config, disks, missing, shutdown))
}

async fn listen_and_serve(
    config: DatanodeConfig,
    disks: Vec<Arc<dyn Disk>>,
    missing: Vec<v1::DiskHealth>,
    shutdown: Shutdown,
) -> Result<Running, DatanodeError> {
    let listener = listen("listen", &config.listen, config.insecure).await?;
    let address = listener.local_addr().map_err(DatanodeError::io("listening"))?;
    let metrics = match &config.metrics_listen {
        Some(text) => Some(listen("metrics_listen", text, config.insecure).await?),
        None => None,
    };
    let advertised = match &config.advertise {
        Some(text) => text.clone(),
        None if address.ip().is_unspecified() => {
            let expected = "an address that others can connect to was expected, since listen names none";
            return Err(ConfigError::out_of_range("advertise", "(missing)", expected).into());
        }
        None => address.to_string(),
    };
    let (identity, fence, disks) = open(&config, disks, missing).await?;
    let shelf = disks
        .raw()
        .into_iter()
        .next()
        .map(|disk| Shelf::new(disk, config.reserve.as_u64()).map(MetaLogServer::new));
    let shelf = shelf.transpose().map_err(DatanodeError::io("starting a thread"))?;

    // Its own tasks end after the caller's request, in order.
    let own = Shutdown::new();
    let registered = Arc::new(AtomicBool::new(false));
    let metrics_address = match metrics {
        Some(listener) => {
            telemetry::init_metrics().map_err(DatanodeError::Server)?;
            crate::metrics::describe();
            let ready = readiness(Arc::clone(&registered));
            Some(telemetry::serve_http(listener, ready, &own).map_err(DatanodeError::io("metrics"))?)
        }
        None => None,
    };
    let facts = Facts {
        address: advertised,
        metrics_address: metrics_address.map(|address| address.to_string()).unwrap_or_default(),
        labels: config.labels.clone(),
    };
    let stop = own.token().child_token();
    let partners = Partners::new(identity.node, own.clone());
    let scrub = ScrubOptions { period: config.scrub_period, rate: config.scrub_rate.as_u64() };
    let limits = Limits { memory_bytes: config.memory.as_u64(), scrub };
    let node = Arc::new(Node::new(identity.node, disks, partners, facts, limits, fence, stop.clone()));
    info!(node = %identity.node, %address, "datanode listens");

    own.spawn(trash::run(Arc::clone(&node)));
    own.spawn(watch::run(Arc::clone(&node)));
    own.spawn(scrub::run(Arc::clone(&node)));
    let drain = DrainOptions { after: config.drain_slow_after, rate: config.scrub_rate.as_u64() };
    own.spawn(drain::run(Arc::clone(&node), drain));

    let leave = CancellationToken::new();
    let load = Load::of_replies(config.memory.as_u64());
    let membership =
        Membership::new(Arc::clone(&node), config.coordinator, identity.cluster, leave.clone(), registered);
    let life = Life { node, shelf, own, leave, stop, membership, listener, load };
    let task = tokio::spawn(life.run(shutdown));
    Ok(Running { address, metrics_address, node: identity.node, task })
}

/// Everything that has to end in order.
struct Life {
    node: Arc<Node>,
    shelf: Option<MetaLogServer<Shelf>>,
    own: Shutdown,
    leave: CancellationToken,
    stop: CancellationToken,
    membership: Membership,
    listener: TcpListener,
    load: Load,
}

impl Life {
    /// Serves until told to stop; then takes leave, lets streams end, and closes the disks.
    async fn run(self, shutdown: Shutdown) -> Result<(), DatanodeError> {
        let Self { node, shelf, own, leave, stop, membership, listener, load } = self;
        let mut server = tokio::spawn(serve(Arc::clone(&node), shelf, listener, load, own.clone()));
        let mut membership = tokio::spawn(membership.run());
        let mut server_ended = false;
        let result = tokio::select! {
            () = shutdown.requested() => Ok(()),
            result = &mut membership => flatten(result),
            result = &mut server => {
                server_ended = true;
                flatten(result)
            }
        };
        leave.cancel();
        if !membership.is_finished() {
            let _ = membership.await;
        }
        stop.cancel(); // no new chunks; those under way may end
        own.request();
        if !server_ended && clock::timeout(SERVER_DRAIN, &mut server).await.is_err() {
            server.abort();
        }
        own.drain().await;
        let closing = Pool::start("close", 1, 1).map_err(DatanodeError::io("closing the disks"))?;
        if closing.run(move || node.disks.close()).await.is_err() {
            warn!("the disks were not closed in order; the next start reads more");
        }
        info!("datanode stopped");
        result
    }
}

async fn serve(
    node: Arc<Node>,
    shelf: Option<MetaLogServer<Shelf>>,
    listener: TcpListener,
    load: Load,
    own: Shutdown,
) -> Result<(), DatanodeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let service = DataNodeServer::new(Service::new(node))
        .max_decoding_message_size(MESSAGE_SIZE_MAX)
        .max_encoding_message_size(MESSAGE_SIZE_MAX);
    reporter.set_serving::<DataNodeServer<Service>>().await;
    net::server(load)
        .trace_fn(telemetry::request_span)
        .add_service(health)
        .add_service(service)
        .add_optional_service(shelf.map(|shelf| {
            shelf.max_decoding_message_size(MESSAGE_SIZE_MAX).max_encoding_message_size(MESSAGE_SIZE_MAX)
        }))
        .serve_with_incoming_shutdown(net::incoming(listener), own.requested())
        .await
        .map_err(|error| DatanodeError::Server(error.to_string()))
}

fn flatten(result: Result<Result<(), DatanodeError>, tokio::task::JoinError>) -> Result<(), DatanodeError> {
    result.map_err(|error| DatanodeError::Server(error.to_string()))?
}

async fn listen(key: &'static str, text: &str, insecure: bool) -> Result<TcpListener, DatanodeError> {
    let listener = net::listen(text).await.map_err(DatanodeError::io(key))?;
    let address = listener.local_addr().map_err(DatanodeError::io(key))?;
    if !net::is_loopback(address) && !insecure {
        let expected = "a loopback address was expected, since nothing is encrypted or authenticated; insecure = true permits others";
        return Err(ConfigError::out_of_range(key, text, expected).into());
    }
    Ok(listener)
}

/// Reads identities and rebuilds the indexes, on a thread.
async fn open(
    config: &DatanodeConfig,
    disks: Vec<Arc<dyn Disk>>,
    mut missing: Vec<v1::DiskHealth>,
) -> Result<(Identity, Fence, Disks), DatanodeError> {
    let options = StoreOptions {
        segment_size: config.segment_size.as_u64(),
        reserve: config.reserve.as_u64(),
        sync: config.sync,
        trash_time: config.trash_time,
    };
    let pool = Pool::start("open", 1, 1).map_err(DatanodeError::io("starting a thread"))?;
    let opened = pool
        .run(move || {
            let configured = disks.iter().map(|disk| disk.describe());
            let configured = configured.chain(missing.iter().map(|disk| disk.path.clone()));
            let opened = identity::open(&disks, &configured.collect::<Vec<_>>())?;
            for (path, fault) in opened.missing {
                error!(disk = path, fault, "a disk is missing; going on with the others");
                missing.push(missing_disk(path, fault));
            }
            let fence = identity::read_fence(&opened.disks)?;
            Ok((opened.identity, fence, Disks::open(&opened.disks, missing, options)?))
        })
        .await;
    match opened {
        Ok(result) => result.map_err(|error: StoreError| error.into()),
        Err(error) => Err(DatanodeError::Server(error.to_string())),
    }
}

fn readiness(registered: Arc<AtomicBool>) -> Readiness {
    Arc::new(move || match registered.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err("waiting for the coordinator".into()),
    })
}

/// Raises the soft limit of open files towards what many segments need. What is refused is refused.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(FILES_WANTED);
    let wanted = FILES_WANTED.min(most);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!(%error, "the limit of open files stays low; a large store may need more");
        }
    }
}
