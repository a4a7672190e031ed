//! Simulated connections, dressed for tonic. Nothing comes or goes while the machine stands still.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use turmoil::net::TcpListener;

use crate::sim::{poll_running, while_running};

/// A connection.
#[derive(Debug)]
pub struct TcpStream(turmoil::net::TcpStream);

impl TcpStream {
    /// Connects to `host:port`.
    #[allow(clippy::disallowed_methods)] // behind `net::reach`
    pub async fn connect(address: &str) -> io::Result<Self> {
        while_running(turmoil::net::TcpStream::connect(address)).await.map(Self)
    }

    /// Simulated connections hold nothing back.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.0.set_nodelay(on)
    }
}

impl Connected for TcpStream {
    type ConnectInfo = Option<SocketAddr>;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.0.peer_addr().ok()
    }
}

/// Where a connection comes from.
pub(super) fn address_of(info: &Option<SocketAddr>) -> Option<SocketAddr> {
    *info
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(poll_running(cx));
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(poll_running(cx));
        Pin::new(&mut self.0).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(poll_running(cx));
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(poll_running(cx));
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The connections of a listening socket.
pub(super) fn accepted(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    futures::stream::unfold(listener, |listener| async move {
        let accepted = while_running(listener.accept()).await.map(|(stream, _)| TcpStream(stream));
        Some((accepted, listener))
    })
}
