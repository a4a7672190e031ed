//! From a configuration to a running coordinator, and its orderly end.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::coordinator_server::CoordinatorServer;
use cairn_proto::{ClusterId, ErrorKind, SessionId};
use cairn_runtime::config::{ConfigError, Validate};
use cairn_runtime::net::{Load, TcpListener};
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::telemetry;
use cairn_runtime::threads::Pool;
use cairn_runtime::{clock, net, random};
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::util::{MapRequestLayer, MapResponseLayer};

use crate::archive::queue::Shipping;
use crate::archive::shipper;
use crate::attendance::Attendance;
use crate::cluster_clock::ClusterClock;
use crate::config::{CoordinatorConfig, Engine};
use crate::context::{Context, Policy, Sequence};
use crate::datanodes::Datanodes;
use crate::executor::{Executor, Steps, Tx};
use crate::leases::Leases;
use crate::listings::Listings;
use crate::maintenance;
use crate::membership::state::Members;
use crate::membership::{Cluster, timing};
use crate::metrics;
use crate::ops;
use crate::service::{Service, Shared, StoreRoom};
use crate::sessions::Sessions;
use crate::slots::UnderWay;
use crate::status;
use crate::store::memory::MemoryStore;
use crate::store::shipped::ShippedWriter;
use crate::store::sqlite::{self, SqliteOptions};
use crate::store::{self, Count, Orphan, Row, Scan, Session, Store, StoreError, Table};
use crate::unsynced::UnsyncedFiles;
use crate::workers::compact::Compact;
use crate::workers::gc::{Gc, GcState};
use crate::workers::placement::PlacementWorker;
use crate::workers::reap::Reap;
use crate::workers::reconcile::Reconcile;
use crate::workers::repair::RepairWorker;
use crate::workers::sync::SyncWorker;
use crate::workers::{self, Workers};

/// Threads for long reads, and for opening the store.
const POOL_THREADS: usize = 2;
/// Long reads that may wait.
const POOL_QUEUE: usize = 256;
/// Connections end, and the store closes, within this time after the end was requested. A peer that is gone
/// without a word is noticed after 10 s (`runtime::net`).
const CLOSE_TIME: Duration = Duration::from_secs(13);

/// Why the coordinator can not run.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// A setting that can not be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The metadata store can not be opened; the sentence says why and what to do.
    #[error("{message}")]
    Store {
        /// What to act on.
        kind: ErrorKind,
        /// What to show.
        message: String,
    },
    /// A socket or thread could not be had.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The gRPC server failed.
    #[error("the gRPC server ended: {0}")]
    Server(#[from] tonic::transport::Error),
    /// Metrics could not be set up.
    #[error("{0}")]
    Telemetry(String),
    /// The executor has ended before the rest.
    #[error("the executor has ended unexpectedly; its log says why")]
    Executor,
    /// Connections or the store did not close in time.
    #[error("the coordinator did not close within {0:?}")]
    Slow(Duration),
}

impl CoordinatorError {
    /// What to act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) => ErrorKind::InvalidArgument,
            Self::Store { kind, .. } => *kind,
            Self::Io(_) | Self::Server(_) => ErrorKind::Io,
            Self::Telemetry(_) | Self::Executor => ErrorKind::Internal,
            Self::Slow(_) => ErrorKind::TimedOut,
        }
    }
}

impl From<StoreError> for CoordinatorError {
    fn from(error: StoreError) -> Self {
        Self::Store { kind: error.kind(), message: error.to_string() }
    }
}

/// A coordinator that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub metrics_address: Option<SocketAddr>,
    /// Its cluster.
    pub cluster: ClusterId,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    executor_end: oneshot::Receiver<()>,
    /// Ends once it has carried away what the executor left.
    shipper: Option<JoinHandle<()>>,
    shutdown: Shutdown,
}

impl Running {
    /// Resolves when the end was requested, all requests are answered and the store is closed.
    pub async fn wait(self) -> Result<(), CoordinatorError> {
        let Self { mut server, mut executor_end, shipper, shutdown, .. } = self;
        let mut early = false;
        tokio::select! {
            // When both are there, the executor has ended because of the request.
            biased;
            () = shutdown.requested() => {}
            _ = &mut executor_end => early = true,
        }
        if early {
            shutdown.request();
            return Err(CoordinatorError::Executor);
        }
        let closing = async {
            let served = (&mut server).await;
            // The server held the last handles of the executor, which closes the store.
            let _ = executor_end.await;
            if let Some(shipper) = shipper {
                let _ = shipper.await;
            }
            served
        };
        match clock::timeout(CLOSE_TIME, closing).await {
            Ok(Ok(served)) => Ok(served?),
            Ok(Err(join)) => Err(CoordinatorError::Io(std::io::Error::other(join))),
            Err(_) => {
                server.abort();
                Err(CoordinatorError::Slow(CLOSE_TIME))
            }
        }
    }
}

/// Opens the store and serves until `shutdown` is requested.
pub async fn start(config: CoordinatorConfig, shutdown: Shutdown) -> Result<Running, CoordinatorError> {
    start_on(config, MemoryStore::default(), shutdown).await
}

/// As [`start`]; the engine "memory" keeps its rows in `memory`.
///
/// Boxed: the code of a future is made where it is polled by its type, and the whole coordinator would be compiled
/// again in each crate that starts one.
pub(crate) fn start_on(
    config: CoordinatorConfig,
    memory: MemoryStore,
    shutdown: Shutdown,
) -> BoxFuture<'static, Result<Running, CoordinatorError>> {
    Box::pin(open_and_serve(config, memory, shutdown))
}

async fn open_and_serve(
    config: CoordinatorConfig,
    memory: MemoryStore,
    shutdown: Shutdown,
) -> Result<Running, CoordinatorError> {
    config.validate()?;
    telemetry::init_metrics().map_err(CoordinatorError::Telemetry)?;
    metrics::describe();
    metrics::health(|_| false); // until it is looked at for the first time
    let listener = listen(&config.listen, config.insecure).await?;
    let address = listener.local_addr()?;
    let pool = Pool::start("coordinator", POOL_THREADS, POOL_QUEUE)?;
    let opening = config.clone();
    let opened = pool
        .run(move || open(&opening, &memory))
        .await
        .map_err(|error| CoordinatorError::Io(std::io::Error::other(error)))??;
    let cluster = opened.context.cluster.id();
    let Opened { context, readers, tx } = opened;
    let (executor, executor_end) = Executor::start(tx)?;
    let (backups, shipper) = match shipper::start(&config, &context, &readers) {
        Some((backups, shipper)) => (Some(backups), Some(shipper)),
        None => (None, None),
    };
    let memory = context.policy.memory;
    let load = Load::new(memory.arriving, memory.leaving);
    let shared = Arc::new(Shared {
        executor,
        under_way: UnderWay::default(),
        readers,
        backups,
        pool,
        listings: Listings::new(memory.pages),
        context,
        shutdown: shutdown.clone(),
        gc: GcState::default(),
        fsck: Arc::new(tokio::sync::Semaphore::new(1)),
        heartbeat: config.heartbeat,
        started_ns: clock::wall_ns(),
        streams: AtomicU64::new(1),
        datanodes: Datanodes::default(),
        workers: Workers::default(),
        store_room: store_room(&config),
        lost_chunks: AtomicU64::new(0),
    });
    let metrics_address = serve_metrics(&config, &shared, &shutdown).await?;
    maintenance::start(&shared);
    workers::start(&shared, PlacementWorker::new(config.rebalance_every));
    workers::start(&shared, RepairWorker::new(config.repair_rate.as_u64()));
    workers::start(&shared, Gc::default());
    workers::start(&shared, Compact::new());
    workers::start(&shared, Reap::default());
    workers::start(&shared, Reconcile::new(config.reconcile_every));
    workers::start(&shared, SyncWorker::default());
    let server = serve(listener, shared, load, &shutdown).await;
    tracing::info!(%address, %cluster, "coordinator serves");
    Ok(Running { address, metrics_address, cluster, server, executor_end, shipper, shutdown })
}

async fn listen(address: &str, insecure: bool) -> Result<TcpListener, CoordinatorError> {
    let listener = net::listen(address).await?;
    let bound = listener.local_addr()?;
    if !insecure && !net::is_loopback(bound) {
        let expected = "an address of this machine alone, such as 127.0.0.1:7070, was expected, because nothing \
                        is encrypted yet; `insecure = true` allows others";
        return Err(ConfigError::out_of_range("listen", address, expected).into());
    }
    Ok(listener)
}

/// Sessions that are over and whose last outcomes are kept.
fn sessions_with_outcomes(
    reader: &dyn store::Writer,
    present: &HashSet<SessionId>,
) -> Result<BTreeSet<SessionId>, StoreError> {
    let mut ended = BTreeSet::new();
    reader.each(Table::Slot, &mut |row| {
        if let Row::Slot(slot) = row
            && !present.contains(&slot.session)
        {
            ended.insert(slot.session);
        }
        Ok(())
    })?;
    Ok(ended)
}

fn store_room(config: &CoordinatorConfig) -> Option<StoreRoom> {
    let data = config.data.clone();
    match config.engine {
        Engine::Sqlite => Some(Box::new(move || cairn_runtime::disk::free_bytes(&data))),
        Engine::Memory => None,
    }
}

/// A store with all that is read from it at the start.
struct Opened {
    context: Arc<Context>,
    readers: Arc<dyn store::Readers>,
    tx: Tx,
}

fn open(config: &CoordinatorConfig, memory: &MemoryStore) -> Result<Opened, StoreError> {
    let new_cluster = ClusterId::from_uuid(config.cluster.unwrap_or_else(random::uuid));
    let now_ns = clock::wall_ns();
    let Store { writer, readers, cluster, term } = match config.engine {
        Engine::Memory => memory.open(new_cluster, now_ns)?,
        Engine::Sqlite => sqlite::open(&SqliteOptions {
            directory: config.data.clone(),
            sync: config.metadata_sync,
            cluster: config.cluster.map(ClusterId::from_uuid),
            new_cluster,
            now_ns,
        })?,
    };
    let sequence = store::count(&*writer, Count::Sequence)?;
    let shipping = Arc::new(match &config.log_ship {
        Some(_) => Shipping::new(Some(config.log_ack), sequence),
        None => Shipping::off(),
    });
    let orphans: Vec<Orphan> = store::list(&*writer, &Scan::all(Table::Orphan))?;
    let sessions: Vec<Session> = store::list(&*writer, &Scan::all(Table::Session))?;
    let known = sessions.iter().map(|session| session.id).collect();
    let ended = sessions_with_outcomes(&*writer, &known)?;
    let attendance = Arc::new(Attendance::new());
    let members = Members::new(
        timing(config.suspect_after, config.down_after, config.lost_after),
        store::list(&*writer, &Scan::all(Table::Datanode))?,
        store::list(&*writer, &Scan::all(Table::ReplicaSet))?,
        store::count(&*writer, Count::Epoch)?,
        attendance.now(),
    );
    let context = Arc::new(Context {
        policy: Policy::new(config),
        leases: Leases::new(Arc::clone(&attendance), config.lease, sessions.iter().map(|session| session.id)),
        sessions: Sessions::new(Arc::clone(&attendance), config.lease, sessions, &orphans),
        cluster: Cluster::new(cluster, term, members),
        sequence: Sequence::new(sequence),
        unsynced: UnsyncedFiles::new(!ops::unsynced::page(&*writer, None, 1)?.is_empty()),
        shipping: Arc::clone(&shipping),
        attendance,
        clock: ClusterClock::default(),
    });
    let writer: Box<dyn store::Writer> = match shipping.is_on() {
        true => Box::new(ShippedWriter::new(writer, shipping)),
        false => writer,
    };
    let mut tx = Tx::new(writer, Arc::clone(&context));
    tx.slots.keep_ended(ended);
    tx.steps = Steps::of(&orphans, &known);
    Ok(Opened { context, readers, tx })
}

async fn serve_metrics(
    config: &CoordinatorConfig,
    shared: &Arc<Shared>,
    shutdown: &Shutdown,
) -> Result<Option<SocketAddr>, CoordinatorError> {
    let Some(address) = &config.metrics_listen else { return Ok(None) };
    let listener = net::listen(address).await?;
    // A weak reference, so that the HTTP server does not keep the store open.
    let shared = Arc::downgrade(shared);
    let ready = Arc::new(move || match shared.upgrade() {
        Some(shared) if shared.executor.has_failed() => {
            Err("the disk of the metadata store has failed".to_owned())
        }
        Some(shared) => status::enough_nodes(&shared.context.cluster.members(), &shared.context.policy),
        None => Err("the coordinator is stopping".to_owned()),
    });
    Ok(Some(telemetry::serve_http(listener, ready, shutdown)?))
}

async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    load: Load,
    shutdown: &Shutdown,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<CoordinatorServer<Service>>().await;
    let (asked, answering) = (Arc::clone(&shared.context), Arc::clone(&shared.context));
    let note_time = move |request: http::Request<_>| {
        asked.clock.on_request(request.headers());
        request
    };
    let tell_time = move |mut answer: http::Response<_>| {
        answering.clock.on_answer(answer.headers_mut());
        answer
    };
    let service = CoordinatorServer::new(Service(shared))
        .max_decoding_message_size(MESSAGE_SIZE_MAX)
        .max_encoding_message_size(MESSAGE_SIZE_MAX);
    let server = net::server(load)
        .trace_fn(telemetry::request_span)
        .layer(MapRequestLayer::new(note_time))
        .layer(MapResponseLayer::new(tell_time))
        .add_service(health)
        .add_service(service);
    let stop = shutdown.requested();
    shutdown.spawn(server.serve_with_incoming_shutdown(net::incoming(listener), stop))
}
