//! One connection as services see it: whose it is, what its peer owes, and a way to close it.
//!
//! HTTP/2 lets a peer that answers pings leave a reply where it is, or stop in the middle of a message, for ever. What
//! waits for it holds memory. So each such debt is noted here with the time of the last progress, and a connection with
//! one that is too old is closed: everything that it holds is dropped with it, and an honest peer connects again.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

/// A peer that takes nothing of what it asked for for so long is let go.
pub(super) const REPLY_DEBT_MAX: Duration = Duration::from_secs(30);
/// And one that sends nothing of a message that it began: others wait for the room of that message.
pub(super) const MESSAGE_DEBT_MAX: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// Nothing is owed.
const NOTHING: u64 = u64::MAX;

/// See the module. Clones are the same connection.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: Option<SocketAddr>,
    began: Instant,
    debts: Mutex<Debts>,
    /// What this peer may hold of each share of the server.
    shares: [OnceLock<Arc<Semaphore>>; 2],
}

#[derive(Debug, Default)]
struct Debts {
    next: u64,
    open: HashMap<u64, Arc<AtomicU64>>,
}

/// Something that the peer may owe; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Debt {
    peer: Peer,
    number: u64,
    until_ms: Arc<AtomicU64>,
    longest: Duration,
}

impl Peer {
    fn new(address: Option<SocketAddr>) -> Self {
        let inner =
            Inner { address, began: Instant::now(), debts: Mutex::default(), shares: Default::default() };
        Self(Arc::new(inner))
    }

    /// Where it connects from, when that is known.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.address
    }

    /// Of one of the shares; `units` when it is asked for the first time.
    pub(super) fn share(&self, index: usize, units: usize) -> Arc<Semaphore> {
        Arc::clone(self.0.shares[index].get_or_init(|| Arc::new(Semaphore::new(units))))
    }

    fn debts(&self) -> MutexGuard<'_, Debts> {
        self.0.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins without anything owed. `longest`: until the next progress.
    pub(super) fn debt(&self, longest: Duration) -> Debt {
        let until_ms = Arc::new(AtomicU64::new(NOTHING));
        let mut debts = self.debts();
        let number = debts.next;
        debts.next += 1;
        debts.open.insert(number, Arc::clone(&until_ms));
        drop(debts);
        Debt { peer: self.clone(), number, until_ms, longest }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(NOTHING - 1)
    }

    /// Whether it has owed something for too long.
    fn is_overdue(&self) -> bool {
        let now = self.now_ms();
        self.debts().open.values().any(|until| until.load(Ordering::Relaxed) < now)
    }
}

impl Debt {
    /// The peer owes something from now on, or has just paid a part of it.
    pub(super) fn owes(&self) {
        let longest = u64::try_from(self.longest.as_millis()).unwrap_or(NOTHING);
        self.until_ms.store(self.peer.now_ms().saturating_add(longest), Ordering::Relaxed);
    }

    /// It is not the peer that is waited for.
    pub(super) fn is_paid(&self) {
        self.until_ms.store(NOTHING, Ordering::Relaxed);
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        self.peer.debts().open.remove(&self.number);
    }
}

/// An accepted connection that ends when its peer owes something for too long.
pub struct Trusting<S> {
    stream: S,
    peer: Peer,
    look: Pin<Box<Sleep>>,
}

impl<S> Trusting<S> {
    pub(super) fn new(stream: S, address: Option<SocketAddr>) -> Self {
        Self { stream, peer: Peer::new(address), look: Box::pin(sleep(LOOK)) }
    }
}

impl<S> Connected for Trusting<S> {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Trusting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.look.as_mut().poll(cx).is_ready() {
            if this.peer.is_overdue() {
                tracing::warn!(peer = ?this.peer.address(), "a connection is closed: its peer takes no replies, or ends no message");
                let message = "the peer takes nothing, or ends no message";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
            this.look.as_mut().reset(Instant::now() + LOOK);
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Trusting<S> {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const DEBT_MAX: Duration = REPLY_DEBT_MAX;

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_peer_owes_something_for_too_long() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = Trusting::new(near, None);
        let debt = near.connect_info().debt(DEBT_MAX);
        let reading = |wait| async move { tokio::time::timeout(wait, near.read_u8()).await };
        assert!(reading(DEBT_MAX * 2).await.is_err(), "nothing is owed");
        let (mut other, near) = tokio::io::duplex(64);
        let mut near = Trusting::new(near, None);
        let owed = near.connect_info().debt(DEBT_MAX);
        for _ in 0..5 {
            owed.owes();
            assert!(tokio::time::timeout(DEBT_MAX / 2, near.read_u8()).await.is_err(), "it goes on");
        }
        let ended = tokio::time::timeout(DEBT_MAX, near.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(debt);
        let _ = (far.write_u8(1).await, other.write_u8(1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_paid_or_dropped_is_not_owed() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = Trusting::new(near, None);
        let [paid, dropped] = [(), ()].map(|()| near.connect_info().debt(DEBT_MAX));
        paid.owes();
        dropped.owes();
        paid.is_paid();
        drop(dropped);
        assert!(tokio::time::timeout(DEBT_MAX * 2, near.read_u8()).await.is_err());
        assert!(near.peer.debts().open.len() == 1);
        far.write_u8(7).await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), 7);
    }
}
