//! No metrics: the processes of a simulation share one, and nobody asks.

use std::net::SocketAddr;

use super::Readiness;
use crate::net::TcpListener;
use crate::shutdown::Shutdown;

/// Does nothing.
pub fn init_metrics() -> Result<(), String> {
    Ok(())
}

/// Serves nothing.
pub fn serve_http(listener: TcpListener, _: Readiness, _: &Shutdown) -> std::io::Result<SocketAddr> {
    listener.local_addr()
}
