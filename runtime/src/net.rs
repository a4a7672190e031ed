//! Connections: every server listens here and every client connects here, with the same settings.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tower::layer::util::{Identity, Stack};

mod corked;
mod load;
mod opening;
mod peer;
#[cfg(feature = "sim")]
mod simulated;

pub use corked::Corked;
pub use load::{Held, Load, LoadLayer, no_reply_yet, reply_room};
pub use opening::Opening;
pub use peer::{Peer, Trusting};
#[cfg(feature = "sim")]
pub use simulated::TcpStream;
#[cfg(feature = "sim")]
use simulated::{accepted, address_of};
#[cfg(not(feature = "sim"))]
pub use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "sim")]
pub use turmoil::net::TcpListener;

/// Largest HTTP/2 frame: at 1 MiB a 256 KiB message costs 1.4 times less CPU than at the default 16 KiB.
const HTTP2_FRAME_SIZE: u32 = 1 << 20;
/// Flow-control window of one stream; larger ones were slower.
const STREAM_WINDOW: u32 = 4 << 20;
/// Flow-control window of one connection; also h2's allowance for small frames (half of it).
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The same three for a server that counts what it receives, since nothing counts what HTTP/2 has received and the
/// server has not taken: requests with metadata are small.
const COUNTED_FRAME_SIZE: u32 = 64 << 10;
const COUNTED_STREAM_WINDOW: u32 = 1 << 20;
const COUNTED_CONNECTION_WINDOW: u32 = 2 << 20;
/// A silent peer is asked for a sign of life this often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection that is not made by then counts as refused.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that has connected and said nothing by then is let go.
const OPENING_MAX: Duration = Duration::from_secs(10);
/// Streams that one peer may have open at once.
const STREAMS_MAX: u32 = 256;

/// Why no connection can even be tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address; host:port was expected, such as 127.0.0.1:7070")]
pub struct BadAddress(pub String);

/// Binds a listening socket. Port 0 takes a free one; ask the result for its address.
#[allow(clippy::disallowed_methods)] // the one place that listens
pub async fn listen(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("can not listen on {address}: {error}")))
}

/// The connections of a listening socket, for `serve_with_incoming`.
pub fn incoming(
    listener: TcpListener,
) -> impl Stream<
    Item = io::Result<
        Trusting<Corked<Opening<impl AsyncRead + AsyncWrite + Connected + Send + Unpin + 'static>>>,
    >,
> {
    accepted(listener).map(|accepted| {
        let stream = accepted?;
        let address = address_of(&stream.connect_info());
        Ok(Trusting::new(Corked::new(Opening::new(stream, OPENING_MAX)), address))
    })
}

#[cfg(not(feature = "sim"))]
fn accepted(listener: TcpListener) -> tonic::transport::server::TcpIncoming {
    tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true))
}

#[cfg(not(feature = "sim"))]
fn address_of(info: &tonic::transport::server::TcpConnectInfo) -> Option<SocketAddr> {
    info.remote_addr()
}

/// A gRPC server with this project's settings, which holds what `load` lets it.
pub fn server(load: Load) -> Server<Stack<LoadLayer, Identity>> {
    let (frame, stream, connection) = match load.counts_requests() {
        true => (COUNTED_FRAME_SIZE, COUNTED_STREAM_WINDOW, COUNTED_CONNECTION_WINDOW),
        false => (HTTP2_FRAME_SIZE, STREAM_WINDOW, CONNECTION_WINDOW),
    };
    Server::builder()
        .initial_stream_window_size(stream)
        .initial_connection_window_size(connection)
        .max_frame_size(frame)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(16 << 10)
        .layer(LoadLayer(load))
}

/// A channel that connects when first used, and again whenever the connection breaks.
pub fn connect(address: &str) -> Result<Channel, BadAddress> {
    let endpoint = endpoint_of(address)?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP2_FRAME_SIZE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(dial)))
}

/// Whether [`connect`] would take this address. Needs no runtime, so that settings can be checked.
pub fn check_address(address: &str) -> Result<(), BadAddress> {
    endpoint_of(address).map(drop)
}

fn endpoint_of(address: &str) -> Result<Endpoint, BadAddress> {
    let bad = || BadAddress(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    if host.is_empty() || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(bad());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad())?;
    // Nothing but host and port: a path or a user would be passed over, and another address be dialled.
    let authority = endpoint.uri().authority().map(|authority| authority.as_str());
    if authority == Some(address) && !address.contains('@') { Ok(endpoint) } else { Err(bad()) }
}

/// Opens the TCP connection under a channel.
async fn dial(uri: Uri) -> io::Result<hyper_util::rt::TokioIo<Corked<TcpStream>>> {
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let stream = reach(&authority).await?;
    stream.set_nodelay(true)?;
    Ok(hyper_util::rt::TokioIo::new(Corked::new(stream)))
}

/// Opens a bare TCP connection, to find out what is at an address; services are asked over [`connect`].
#[allow(clippy::disallowed_methods)] // the one place that connects
pub async fn reach(address: &str) -> io::Result<TcpStream> {
    tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not answer")))?
}

/// Whether everyone who can reach `address` is on this machine.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_address_is_refused_with_an_example() {
        for bad in
            ["", "host", "host:", ":70", "host:0", "host:99999", "a b:70", "host/path:70", "me@host:70"]
        {
            let error = connect(bad).err();
            assert_eq!(error, Some(BadAddress(bad.to_owned())), "{bad:?}");
        }
        assert!(connect("localhost:7070").is_ok());
        assert!(connect("[::1]:7070").is_ok());
    }
}
