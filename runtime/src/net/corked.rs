//! Small writes that leave together: one segment, one system call and one wake-up of the peer.
//!
//! HTTP/2 writes what one task has for it and flushes at once; the head of a request and its body, or the
//! answers of several requests, come from tasks that run one after the other. So a flush lets the tasks
//! that are ready run first. What is large goes through without being copied.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Bytes that wait for the flush at most; what is larger goes through.
const HELD_MAX: usize = 16 << 10;

/// A connection whose small writes are held until the tasks that are ready have run.
#[derive(Debug)]
pub struct Corked<S> {
    stream: S,
    held: BytesMut,
    /// A flush was asked for, and the others have had their turn since.
    has_waited: bool,
}

impl<S> Corked<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, held: BytesMut::new(), has_waited: false }
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Writes what is held.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        self.has_waited = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: Connected> Connected for Corked<S> {
    type ConnectInfo = S::ConnectInfo;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let length: usize = data.iter().map(|slice| slice.len()).sum();
        if this.held.len() + length > HELD_MAX {
            ready!(this.poll_release(cx))?;
        }
        if length > HELD_MAX {
            return Pin::new(&mut this.stream).poll_write_vectored(cx, data);
        }
        data.iter().for_each(|slice| this.held.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.held.is_empty() {
            if !this.has_waited {
                this.has_waited = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(this.poll_release(cx))?;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Notes each write, and takes as many bytes of it as it is told.
    #[derive(Clone)]
    struct Noted {
        writes: Arc<Mutex<Vec<Vec<u8>>>>,
        takes: usize,
    }

    impl Noted {
        fn taking(takes: usize) -> Self {
            Self { writes: Arc::default(), takes }
        }
    }

    impl AsyncWrite for Noted {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            let taken = &data[..data.len().min(self.takes)];
            self.writes.lock().unwrap().push(taken.to_vec());
            Poll::Ready(Ok(taken.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// As an HTTP/2 connection does it: writes what others have given, and flushes.
    async fn send(corked: &mut Corked<Noted>, queue: &Mutex<Vec<Vec<u8>>>) {
        std::future::poll_fn(|cx| {
            for data in std::mem::take(&mut *queue.lock().unwrap()) {
                let written = Pin::new(&mut *corked).poll_write(cx, &data);
                assert!(matches!(written, Poll::Ready(Ok(length)) if length == data.len()));
            }
            Pin::new(&mut *corked).poll_flush(cx)
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn what_tasks_that_are_ready_write_leaves_together() {
        let stream = Noted::taking(usize::MAX);
        let mut corked = Corked::new(stream.clone());
        let queue = Arc::new(Mutex::new(vec![b"head ".to_vec()]));
        let other = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.lock().unwrap().push(b"body".to_vec()) }
        });
        send(&mut corked, &queue).await;
        assert_eq!(*stream.writes.lock().unwrap(), [b"head body".to_vec()]);
        other.await.unwrap();
        // And the next time they wait again, alone too.
        queue.lock().unwrap().push(b"more".to_vec());
        send(&mut corked, &queue).await;
        assert_eq!(stream.writes.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_is_large_goes_through_behind_what_is_held() {
        let stream = Noted::taking(usize::MAX);
        let mut corked = Corked::new(stream.clone());
        corked.write_all(b"head").await.unwrap();
        assert!(stream.writes.lock().unwrap().is_empty());
        corked.write_all(&[7; HELD_MAX + 1]).await.unwrap();
        assert_eq!(*stream.writes.lock().unwrap(), [b"head".to_vec(), vec![7; HELD_MAX + 1]]);
        corked.write_all(b"tail").await.unwrap();
        corked.shutdown().await.unwrap();
        assert_eq!(stream.writes.lock().unwrap().last().unwrap(), b"tail");
    }

    proptest! {
        #[test]
        fn all_bytes_arrive_in_order(
            writes in prop::collection::vec((0..40_000usize, any::<bool>()), 0..20),
            takes in 1..30_000usize,
        ) {
            let stream = Noted::taking(takes);
            let mut sent = Vec::new();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut corked = Corked::new(stream.clone());
                for (length, flush) in writes {
                    let data: Vec<u8> = (0..length).map(|i| (sent.len() + i) as u8).collect();
                    corked.write_all(&data).await.unwrap();
                    sent.extend(data);
                    if flush {
                        corked.flush().await.unwrap();
                        assert_eq!(stream.writes.lock().unwrap().concat(), sent);
                    }
                }
                corked.shutdown().await.unwrap();
            });
            prop_assert_eq!(stream.writes.lock().unwrap().concat(), sent);
        }
    }
}
