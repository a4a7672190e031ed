//! Metrics for Prometheus, and the small HTTP server that shows them and the health.

use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::Readiness;
use crate::net::TcpListener;
use crate::shutdown::Shutdown;

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
    metrics::describe_gauge!("cairn_build_info", "Always 1; the label says which version runs.");
    metrics::gauge!("cairn_build_info", "version" => crate::VERSION).set(1.0);
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
