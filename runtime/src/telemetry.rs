//! Logs, request ids, metrics, and the small HTTP server that shows health.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use cairn_proto::REQUEST_ID_KEY;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::random;
use rotation::Rotating;

mod catalogue;
#[cfg(not(feature = "sim"))]
mod exporter;
#[cfg(feature = "sim")]
#[path = "telemetry/silent.rs"]
mod exporter;
mod rotation;

pub use exporter::{init_metrics, serve_http};
pub use rotation::LOG_SIZE_MAX;

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

/// Libraries that say more than an operator can use, whatever the level: `fuser` warns about each unmount that it has
/// not done itself.
const QUIET: &str = "fuser=error";

/// Sends logs to standard error. Call once, before anything else is started.
///
/// `output`: the file that standard output and error go to, when it is to be kept below [`LOG_SIZE_MAX`].
pub fn init_logs(config: &LogConfig, output: Option<&Path>) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.level)).map_err(|error| {
        format!(
            "log.level = {:?}: {error}; such as info or info,cairn_client=debug was expected",
            config.level
        )
    })?;
    let writer = match output {
        Some(path) => BoxMakeWriter::new(Rotating::of_process(path.to_owned())),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(true);
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

/// Jobs of thread pools that panicked, by pool. In simulation a panic ends the run.
#[cfg(not(feature = "sim"))]
const JOBS_PANICKED: &str = "cairn_runtime_jobs_panicked_total";

/// A job of a thread pool has panicked; the panic itself has been written to standard error.
#[cfg(not(feature = "sim"))]
pub(crate) fn job_panicked(pool: &'static str) {
    metrics::counter!(JOBS_PANICKED, "pool" => pool).increment(1);
    tracing::error!(pool, "a job has panicked: this is a bug; the work of others goes on");
}

/// Says whether a service can do its work now; the sentence says what it waits for.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
