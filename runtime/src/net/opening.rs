//! Connections that have to open their mouth: who connects and then says nothing would otherwise hold a
//! task and a socket for ever, since HTTP/2 asks for signs of life only after its opening words.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

/// An accepted connection. Reading fails with `TimedOut` when its first bytes do not come in time.
pub struct Opening<S> {
    stream: S,
    /// `None` once something was said.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> Opening<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience: Some(Box::pin(sleep(patience))) }
    }
}

impl<S: Connected> Connected for Opening<S> {
    type ConnectInfo = S::ConnectInfo;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some(patience) = &mut this.patience else { return read };
        if read.is_ready() {
            this.patience = None;
            return read;
        }
        let silent = || io::Error::new(io::ErrorKind::TimedOut, "the peer connected and said nothing");
        patience.as_mut().poll(cx).map(|()| Err(silent()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn who_says_nothing_is_let_go_and_who_has_spoken_may_be_silent() {
        let patience = Duration::from_millis(50);
        let (_silent, accepted) = tokio::io::duplex(64);
        let error = Opening::new(accepted, patience).read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (mut peer, accepted) = tokio::io::duplex(64);
        let mut accepted = Opening::new(accepted, patience);
        peer.write_u8(1).await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), 1);
        let silence = tokio::time::timeout(patience * 4, accepted.read_u8()).await;
        assert!(silence.is_err(), "{silence:?}");
    }
}
