//! What a server holds for its peers: messages that arrive, until what they ask for is done; replies, until their peers
//! have taken them. Each of the two has a share of the server's memory, and each connection a part of the share.
//!
//! ```text
//! prefix of a message ─▶ waits for room ─▶ its bytes ─▶ the service ─▶ reply ─▶ HTTP/2 ─▶ taken
//!                        └──────── arriving ───────────────────────┘ └──── leaving ────────┘
//! ```
//!
//! A message waits before its bytes are read, so that HTTP/2 holds back the peer. Short ones are not counted: the number
//! of streams bounds them. A service asks for the room of a long reply before it makes it ([`reply_room`]), and must not
//! wait for other requests while it holds that.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, ready};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};

use super::peer::{Debt, MESSAGE_DEBT_MAX, Peer, REPLY_DEBT_MAX};

/// Unit of the permits.
const UNIT: usize = 1 << 10;
/// Shorter messages are not counted.
const MESSAGE_FREE: usize = 8 << 10;
/// Frames of replies shorter than this are not followed until they are taken.
const FRAME_FREE: usize = 4 << 10;
/// One connection may hold one part in so many of each share, and at least one message.
const OF_PEER: u64 = 4;
const OF_PEER_MIN: u64 = (16 << 20) + UNIT as u64;
/// A message begins with a flag and its length.
const PREFIX: usize = 5;

/// The two shares of one server. Clones share them.
#[derive(Debug, Clone)]
pub struct Load {
    arriving: Option<Share>,
    leaving: Share,
}

#[derive(Debug, Clone)]
struct Share {
    index: usize,
    all: Arc<Semaphore>,
    units: usize,
    of_peer: usize,
}

/// Room in a share; given back when it is dropped.
#[derive(Debug)]
struct Room {
    of_peer: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
}

impl Room {
    /// Gives back all but `bytes`.
    fn shrink(&mut self, bytes: usize) {
        for permit in [&mut self.of_peer, &mut self.of_all] {
            let excess = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT));
            drop(permit.split(excess));
        }
    }
}

impl Share {
    fn new(index: usize, bytes: u64) -> Self {
        let units =
            |bytes: u64| usize::try_from(bytes / UNIT as u64).unwrap_or(usize::MAX).min(u32::MAX as usize);
        let of_peer = units((bytes / OF_PEER).max(OF_PEER_MIN).min(bytes));
        Self { index, all: Arc::new(Semaphore::new(units(bytes))), units: units(bytes), of_peer }
    }

    /// Waits for room. What is larger than all that a peer may have counts as that.
    async fn take(self, peer: Peer, bytes: usize) -> Option<Room> {
        let units = u32::try_from(bytes.div_ceil(UNIT).min(self.of_peer)).unwrap_or(u32::MAX);
        // The semaphores are never closed.
        let of_peer = peer.share(self.index, self.of_peer).acquire_many_owned(units).await.ok()?;
        let of_all = self.all.acquire_many_owned(units).await.ok()?;
        Some(Room { of_peer, of_all })
    }
}

impl Load {
    /// Counts messages of requests and replies.
    pub fn new(arriving: u64, leaving: u64) -> Self {
        Self { arriving: Some(Share::new(0, arriving)), leaving: Share::new(1, leaving) }
    }

    /// Counts replies alone.
    pub fn of_replies(leaving: u64) -> Self {
        Self { arriving: None, leaving: Share::new(1, leaving) }
    }

    pub(super) fn counts_requests(&self) -> bool {
        self.arriving.is_some()
    }

    /// Bytes of arriving messages and of leaving replies that are counted now.
    pub fn bytes(&self) -> (usize, usize) {
        let used = |share: &Share| (share.units - share.all.available_permits()) * UNIT;
        (self.arriving.as_ref().map_or(0, used), used(&self.leaving))
    }
}

/// What one request holds, for as long as anybody works for it.
#[derive(Debug, Default)]
struct Parts {
    arrived: Option<Room>,
    reply: Option<Arc<Room>>,
}

/// What the request that a task works for holds: what is done for it elsewhere keeps this until it is done.
#[derive(Debug, Clone, Default)]
pub struct Held {
    _parts: Option<Arc<Mutex<Parts>>>,
}

#[derive(Debug, Clone)]
struct Work {
    peer: Peer,
    load: Load,
    parts: Arc<Mutex<Parts>>,
}

impl Work {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

tokio::task_local! {
    static WORK: Work;
}

impl Held {
    /// That of the request that this task works for; nothing elsewhere.
    pub fn current() -> Self {
        Self { _parts: WORK.try_with(|work| Arc::clone(&work.parts)).ok() }
    }
}

/// Waits for the room of a reply of at most `bytes`; what was taken for the same request before is given back first.
/// The room is kept until the peer has taken the reply, of which only what it really takes is counted then.
///
/// * Cancel-safe: without room nothing is held.
pub async fn reply_room(bytes: usize) {
    let Ok(work) = WORK.try_with(Clone::clone) else { return };
    work.parts().reply = None;
    let room = work.load.leaving.clone().take(work.peer.clone(), bytes).await;
    work.parts().reply = room.map(Arc::new);
}

/// Gives the room of a reply back: none is made yet, because others are waited for.
pub fn no_reply_yet() {
    if let Ok(work) = WORK.try_with(Clone::clone) {
        work.parts().reply = None;
    }
}

/// Puts [`Load`] around the services of a server.
#[derive(Debug, Clone)]
pub struct LoadLayer(pub(super) Load);

impl<S> Layer<S> for LoadLayer {
    type Service = Loaded<S>;
    fn layer(&self, inner: S) -> Loaded<S> {
        Loaded { inner, load: self.0.clone() }
    }
}

/// A service within [`Load`].
#[derive(Debug, Clone)]
pub struct Loaded<S> {
    inner: S,
    load: Load,
}

impl<S> Service<Request<Body>> for Loaded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return self.inner.call(request).boxed();
        };
        let work = Work { peer: peer.clone(), load: self.load.clone(), parts: Arc::default() };
        let request = match &self.load.arriving {
            Some(share) => request.map(|body| Body::new(Arriving::new(body, share.clone(), work.clone()))),
            None => request,
        };
        let answer = WORK.scope(work.clone(), self.inner.call(request));
        async move {
            let response = answer.await?;
            let room = work.parts().reply.take();
            Ok(response.map(|body| Body::new(Leaving::new(body, room, &peer))))
        }
        .boxed()
    }
}

/// Where in the stream of messages a request is.
#[derive(Debug)]
enum Place {
    /// So many bytes of the prefix are known.
    Prefix { known: usize, prefix: [u8; PREFIX] },
    /// So many bytes of the message are still to come.
    Message { left: usize },
}

impl Place {
    const START: Self = Self::Prefix { known: 0, prefix: [0; PREFIX] };

    /// Goes on by `data`; the length of the longest message that begins in it.
    fn advance(&mut self, mut data: &[u8]) -> usize {
        let mut longest = 0;
        while !data.is_empty() {
            match self {
                Self::Prefix { known, prefix } => {
                    let count = data.len().min(PREFIX - *known);
                    prefix[*known..*known + count].copy_from_slice(&data[..count]);
                    *known += count;
                    data = &data[count..];
                    if *known == PREFIX {
                        let [_, length @ ..] = *prefix;
                        let left = u32::from_be_bytes(length) as usize;
                        longest = longest.max(left);
                        *self = if left == 0 { Self::START } else { Self::Message { left } };
                    }
                }
                Self::Message { left } => {
                    let count = data.len().min(*left);
                    *left -= count;
                    data = &data[count..];
                    if *left == 0 {
                        *self = Self::START;
                    }
                }
            }
        }
        longest
    }

    fn is_within(&self) -> bool {
        !matches!(self, Self::Prefix { known: 0, .. })
    }
}

/// The messages of a request.
struct Arriving {
    body: Body,
    share: Share,
    work: Work,
    place: Place,
    /// A message that waits for room, with the beginning of its bytes.
    waiting: Option<(BoxFuture<'static, Option<Room>>, Bytes)>,
    debt: Debt,
}

impl Arriving {
    fn new(body: Body, share: Share, work: Work) -> Self {
        let debt = work.peer.debt(MESSAGE_DEBT_MAX);
        Self { body, share, work, place: Place::START, waiting: None, debt }
    }

    fn note_debt(&self) {
        if self.place.is_within() { self.debt.owes() } else { self.debt.is_paid() }
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        if let Some((room, _)) = &mut this.waiting {
            let room = ready!(room.as_mut().poll(cx));
            this.work.parts().arrived = room;
            this.note_debt();
            return Poll::Ready(this.waiting.take().map(|(_, data)| Ok(Frame::data(data))));
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => {
                this.debt.is_paid();
                return Poll::Ready(other);
            }
        };
        let Some(data) = frame.data_ref() else { return Poll::Ready(Some(Ok(frame))) };
        let length = this.place.advance(data);
        if length <= MESSAGE_FREE {
            this.note_debt();
            return Poll::Ready(Some(Ok(frame)));
        }
        this.debt.is_paid();
        // The message before it on the same stream has been read.
        this.work.parts().arrived = None;
        let room = this.share.clone().take(this.work.peer.clone(), length).boxed();
        this.waiting = frame.into_data().ok().map(|data| (room, data));
        self.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.waiting.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// What of a reply the peer has still to take.
#[derive(Debug)]
struct Untaken {
    debt: Debt,
    /// Frames that HTTP/2 has, and one more while it does not ask for the next.
    parts: AtomicUsize,
}

impl Untaken {
    fn add(&self, parts: usize) {
        self.parts.fetch_add(parts, Ordering::Relaxed);
        self.debt.owes();
    }

    /// The peer has taken one.
    fn end_one(&self) {
        if self.parts.fetch_sub(1, Ordering::Relaxed) == 1 { self.debt.is_paid() } else { self.debt.owes() }
    }
}

/// A reply on its way.
struct Leaving {
    body: Body,
    room: Option<Arc<Room>>,
    untaken: Arc<Untaken>,
    /// HTTP/2 has a frame, or the head of the reply, and does not ask for the next one.
    is_full: bool,
    is_first: bool,
}

impl Leaving {
    fn new(body: Body, room: Option<Arc<Room>>, peer: &Peer) -> Self {
        let untaken = Arc::new(Untaken { debt: peer.debt(REPLY_DEBT_MAX), parts: AtomicUsize::new(0) });
        untaken.add(1);
        Self { body, room, untaken, is_full: true, is_first: true }
    }
}

/// Bytes of a reply that HTTP/2 has, and what they hold.
struct Sent {
    data: Bytes,
    untaken: Arc<Untaken>,
    _room: Option<Arc<Room>>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.untaken.end_one();
    }
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        if std::mem::take(&mut this.is_full) {
            this.untaken.end_one();
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        let frame = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        if std::mem::take(&mut this.is_first)
            && let Some(room) = this.room.as_mut().and_then(Arc::get_mut)
        {
            room.shrink(frame.len());
        }
        this.is_full = true;
        if frame.len() < FRAME_FREE {
            this.untaken.add(1);
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        this.untaken.add(2);
        let sent = Sent { data: frame, untaken: Arc::clone(&this.untaken), _room: this.room.clone() };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(sent)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
