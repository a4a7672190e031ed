use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::server::Connected;

use super::*;
use crate::net::Trusting;

const MIB: u64 = 1 << 20;

/// A body of these frames.
struct Frames(VecDeque<Bytes>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = tonic::Status;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }
}

fn body(frames: impl IntoIterator<Item = Vec<u8>>) -> Body {
    Body::new(Frames(frames.into_iter().map(Bytes::from).collect()))
}

async fn next(body: &mut Body) -> Option<Bytes> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    frame.unwrap().into_data().ok()
}

/// A message as it travels.
fn message(length: usize) -> Vec<u8> {
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    message.resize(PREFIX + length, 7);
    message
}

fn peer() -> Peer {
    Trusting::new((), None).connect_info()
}

fn request(peer: &Peer, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    request.extensions_mut().insert(peer.clone());
    request
}

/// Reads a request to its end; what it then holds is handed out.
async fn swallow(
    load: &Load,
    request: Request<Body>,
    held: tokio::sync::oneshot::Sender<Held>,
) -> Response<Body> {
    let held = Mutex::new(Some(held));
    let held = Arc::new(held);
    let service = tower::service_fn(move |request: Request<Body>| {
        let held = Arc::clone(&held);
        async move {
            let mut body = request.into_body();
            while next(&mut body).await.is_some() {}
            let held = held.lock().unwrap().take();
            let _ = held.unwrap().send(Held::current());
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    LoadLayer(load.clone()).layer(service).call(request).await.unwrap()
}

#[tokio::test]
async fn a_message_is_counted_until_what_it_asks_for_is_done() {
    let load = Load::new(32 * MIB, MIB);
    let (held, holds) = tokio::sync::oneshot::channel();
    swallow(&load, request(&peer(), body([message(100_000)])), held).await;
    let held = holds.await.unwrap();
    assert_eq!(load.bytes(), (100_000usize.div_ceil(UNIT) * UNIT, 0), "a job may still wait");
    drop(held);
    assert_eq!(load.bytes(), (0, 0));
}

#[tokio::test]
async fn messages_wait_for_room_whole_and_those_of_others_do_not() {
    let load = Load::new(48 * MIB, MIB);
    let one = peer();
    let mut holds = Vec::new();
    for _ in 0..2 {
        let (held, holding) = tokio::sync::oneshot::channel();
        // The prefix comes apart from the rest, and in two pieces.
        let mut first = message(8 << 20);
        let rest = first.split_off(3);
        swallow(&load, request(&one, body([first, rest])), held).await;
        holds.push(holding.await.unwrap());
    }
    let (held, _holding) = tokio::sync::oneshot::channel();
    let third = swallow(&load, request(&one, body([message(8 << 20)])), held);
    tokio::pin!(third);
    assert!(timeout(Duration::from_millis(50), &mut third).await.is_err(), "its share is used up");
    let (held, _holding) = tokio::sync::oneshot::channel();
    swallow(&load, request(&one, body([message(100)])), held).await;
    let (held, _holding) = tokio::sync::oneshot::channel();
    swallow(&load, request(&peer(), body([message(16 << 20)])), held).await;
    holds.pop();
    timeout(Duration::from_secs(30), third).await.unwrap();
}

#[test]
fn a_place_in_the_stream_is_known_however_it_is_cut() {
    let mut stream = Vec::new();
    for length in [0, 10, 70_000, 1, 0, 9000] {
        stream.extend(message(length));
    }
    for cut in [1, 2, 3, 5, 7, 1000, 65_536] {
        let mut place = Place::START;
        let longest: Vec<usize> =
            stream.chunks(cut).map(|data| place.advance(data)).filter(|&longest| longest > 1000).collect();
        assert_eq!(longest, [70_000, 9000], "cut into {cut}");
        assert!(!place.is_within());
    }
    let mut place = Place::START;
    place.advance(&message(10)[..3]);
    assert!(place.is_within());
}

#[tokio::test]
async fn a_reply_is_counted_for_what_it_is_until_its_peer_has_taken_it() {
    let load = Load::of_replies(32 * MIB);
    let service = tower::service_fn(|_: Request<Body>| async {
        reply_room(1 << 20).await;
        Ok::<_, Infallible>(Response::new(body([vec![7; 100_000]])))
    });
    let mut service = LoadLayer(load.clone()).layer(service);
    let mut response = service.call(request(&peer(), Body::empty())).await.unwrap();
    assert_eq!(load.bytes(), (0, 1 << 20));
    let frame = next(response.body_mut()).await.unwrap();
    let counted = (0, 100_000usize.div_ceil(UNIT) * UNIT);
    assert_eq!((frame.len(), load.bytes()), (100_000, counted));
    assert!(next(response.body_mut()).await.is_none());
    drop(response);
    assert_eq!(load.bytes(), counted, "HTTP/2 has it, and the peer has not");
    drop(frame);
    assert_eq!(load.bytes(), (0, 0));
}

#[tokio::test]
async fn replies_that_are_not_taken_hold_up_their_own_peer_alone() {
    let load = Load::of_replies(64 * MIB);
    let service = tower::service_fn(|_: Request<Body>| async {
        reply_room(4 << 20).await;
        Ok::<_, Infallible>(Response::new(body([vec![7; 4 << 20]])))
    });
    let mut service = LoadLayer(load.clone()).layer(service);
    let (greedy, other) = (peer(), peer());
    let mut untaken = Vec::new();
    while let Ok(response) =
        timeout(Duration::from_millis(50), service.call(request(&greedy, Body::empty()))).await
    {
        untaken.push(response.unwrap());
        assert!(untaken.len() < 20, "{:?}", load.bytes());
    }
    assert_eq!(untaken.len(), 4, "a quarter of the share");
    let answered = timeout(Duration::from_secs(30), service.call(request(&other, Body::empty()))).await;
    assert!(answered.is_ok());
}

#[tokio::test]
async fn who_waits_for_others_gives_its_room_back() {
    let load = Load::of_replies(16 * MIB);
    let (looked, look) = (load.clone(), load.clone());
    let service = tower::service_fn(move |_: Request<Body>| {
        let look = look.clone();
        async move {
            reply_room(16 << 20).await;
            assert_eq!(look.bytes().1, 16 << 20);
            no_reply_yet();
            assert_eq!(look.bytes().1, 0);
            reply_room(16 << 20).await;
            reply_room(1 << 20).await;
            assert_eq!(look.bytes().1, 1 << 20, "the new one takes the place of the old one");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    let call = LoadLayer(load).layer(service).call(request(&peer(), Body::empty()));
    timeout(Duration::from_secs(30), call).await.unwrap().unwrap();
    assert_eq!(looked.bytes(), (0, 0));
}
