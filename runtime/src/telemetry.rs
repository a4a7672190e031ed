//! Logs, request ids, metrics, and the small HTTP server that shows health.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use cairn_proto::REQUEST_ID_KEY;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tracing::Span;
use tracing_subscriber::EnvFilter;

use crate::random;
use crate::shutdown::Shutdown;

/// Where logs go and how much is said.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, also per module: `info,cairn_client=debug`.
    pub level: String,
    /// JSON lines instead of text.
    pub json: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), json: false }
    }
}

/// Sends logs to standard error. Call once, before anything else is started.
pub fn init_logs(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level).map_err(|error| {
        format!(
            "log.level = {:?}: {error}; such as info or info,cairn_client=debug was expected",
            config.level
        )
    })?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    let done = if config.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
    };
    done.map_err(|error| format!("logs are set up already: {error}"))
}

tokio::task_local! {
    static REQUEST_ID: RequestId;
}

/// The id that one request of an application carries through all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(u64);

impl RequestId {
    /// A new one.
    pub fn fresh() -> Self {
        Self(random::below(u64::MAX))
    }

    /// The one of the request that this task works for, or a new one.
    pub fn current() -> Self {
        REQUEST_ID.try_with(|id| *id).unwrap_or_else(|_| Self::fresh())
    }

    /// Reads what [`std::fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().map(Self)
    }

    /// Runs a future on behalf of this request.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        REQUEST_ID.scope(self, future)
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Writes the current request id into an outgoing gRPC request; pass to `with_interceptor`.
///
/// # Errors
/// None; the signature is tonic's.
#[allow(clippy::result_large_err)]
pub fn stamp_request(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    if let Ok(value) = RequestId::current().to_string().parse() {
        request.metadata_mut().insert(REQUEST_ID_KEY, value);
    }
    Ok(request)
}

/// The span of an incoming gRPC request, with the id that its sender gave it; pass to `Server::trace_fn`.
pub fn request_span(request: &http::Request<()>) -> Span {
    let id = request.headers().get(REQUEST_ID_KEY).and_then(|value| value.to_str().ok());
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    tracing::info_span!("request", id = id.unwrap_or("-"), method)
}

/// The request id that an incoming gRPC request carries, or a new one.
pub fn request_id_of<T>(request: &tonic::Request<T>) -> RequestId {
    let stated = request.metadata().get(REQUEST_ID_KEY).and_then(|value| value.to_str().ok());
    stated.and_then(RequestId::parse).unwrap_or_else(RequestId::fresh)
}

/// Bounds of the buckets of every `_seconds` histogram: 50 µs to 10 s.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Collected samples are folded into their buckets this often.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts to collect what the `metrics` macros record; later calls change nothing.
pub fn init_metrics() -> Result<(), String> {
    // Two services of one process may start at the same moment.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if METRICS.get().is_some() {
        return Ok(());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("metrics can not be collected: {error}"))?;
    let upkeep = handle.clone();
    if METRICS.set(handle).is_ok() {
        // Histograms keep every sample until somebody looks; without a scraper that is memory without
        // bound.
        #[allow(clippy::disallowed_methods)] // a thread that only sleeps needs no runtime
        crate::threads::spawn("metrics-upkeep", move || {
            loop {
                std::thread::sleep(UPKEEP_EVERY);
                upkeep.run_upkeep();
            }
        })
        .map_err(|error| format!("metrics can not be collected: {error}"))?;
    }
    Ok(())
}

/// Says whether a service can do its work now; the sentence says what it waits for.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Serves `/metrics` (Prometheus text), `/healthz` (the process lives) and `/readyz` (it can do
/// its work) until the service stops. Returns the address that it got.
pub fn serve_http(
    listener: TcpListener,
    ready: Readiness,
    shutdown: &Shutdown,
) -> std::io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let routes = Router::new()
        .route("/metrics", get(|| async { METRICS.get().map(PrometheusHandle::render).unwrap_or_default() }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(ready);
    let stop = shutdown.requested();
    shutdown.spawn(async move {
        // Connections are dropped at the end, not drained: a scraper may hold one open for ever.
        tokio::select! {
            result = async { axum::serve(listener, routes).await } => {
                if let Err(error) = result {
                    tracing::warn!(%error, "the HTTP server for metrics ended");
                }
            }
            () = stop => {}
        }
    });
    Ok(address)
}

async fn readyz(State(ready): State<Readiness>) -> (StatusCode, String) {
    match ready() {
        Ok(()) => (StatusCode::OK, "ready\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
