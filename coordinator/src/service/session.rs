//! The life line of a mounted client: hello, keep-alive, closes, leases asked back and given back,
//! changes of the map, goodbye.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ErrorKind, SessionId, v1};
use cairn_runtime::{clock, random};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Replies, Shared, refuse, wire};
use crate::context::Context;
use crate::error::OpError;
use crate::leases::{self, Recalls};
use crate::ops;

/// Slots that a session may use; as many requests it can have under way.
const SLOTS: u32 = 64;
/// The first message must come by then.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// A client that takes nothing for so long is given up; its session lives on until its lease ends.
const SEND_TIME: Duration = Duration::from_secs(10);
/// Answers under way to one client.
const ANSWERS: usize = 16;
/// Leases asked back in one message.
const RECALLS_MAX: usize = 4096;
/// Longest description, bytes.
const DESCRIPTION_MAX: usize = 1024;

pub(super) async fn open(
    shared: Arc<Shared>,
    mut requests: Streaming<v1::SessionRequest>,
) -> Result<Replies<v1::SessionResponse>, OpError> {
    let first = clock::timeout(HELLO_TIME, requests.message())
        .await
        .map_err(|_| OpError::new(ErrorKind::TimedOut, "no hello came"))?
        .map_err(|status| OpError::new(ErrorKind::Protocol, status.message()))?;
    let Some(v1::session_request::Message::Hello(hello)) = first.and_then(|request| request.message) else {
        return Err(OpError::invalid("the first message of a session is its hello"));
    };
    let (line, welcome) = greet(&shared, hello).await?;
    let revision = welcome.map.as_ref().map_or(0, |map| map.revision);
    let (answers, stream) = mpsc::channel(ANSWERS);
    let _ = answers.try_send(Ok(response(v1::session_response::Message::Welcome(welcome))));
    let life = Life { shared: Arc::clone(&shared), session: line.session, line, requests, answers, revision };
    shared.shutdown.spawn(life.run());
    Ok(Box::pin(ReceiverStream::new(stream)))
}

fn response(message: v1::session_response::Message) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message) }
}

/// The leases of a session have a stream, until this is dropped.
struct Line {
    context: Arc<Context>,
    session: SessionId,
    stream: leases::Stream,
}

impl Line {
    /// `SessionExpired`: the session has ended meanwhile.
    fn new(shared: &Shared, session: SessionId, stream: leases::Stream) -> Result<Self, OpError> {
        let line = Self { context: Arc::clone(&shared.context), session, stream };
        // Had it ended just before its leases got the stream, nobody would end these.
        line.context.sessions.check(session).inspect_err(|_| line.context.leases.end(session))?;
        Ok(line)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.context.leases.detach(self.session, &self.stream);
    }
}

async fn greet(shared: &Shared, hello: v1::ClientHello) -> Result<(Line, v1::Welcome), OpError> {
    if hello.description.len() > DESCRIPTION_MAX {
        let message =
            format!("a description of {} bytes; {DESCRIPTION_MAX} are possible", hello.description.len());
        return Err(OpError::invalid(message));
    }
    let resumed = !hello.session.is_empty();
    let opens = wire::opens(hello.open)?;
    let leases = wire::leased(&hello.leases)?;
    let line = if resumed {
        let session = SessionId::from_wire(&hello.session)?;
        let dropped = shared.context.sessions.resume(session, &opens)?;
        let line = Line::new(shared, session, shared.context.leases.resume(session, &leases))?;
        release(shared, session, dropped).await?;
        tracing::info!(session = %session, description = hello.description, "session goes on");
        line
    } else {
        let session = SessionId::from_uuid(random::uuid());
        let description = hello.description.clone();
        shared.executor.run(move |tx| ops::open::begin_session(tx, session, description)).await?;
        tracing::info!(session = %session, description = hello.description, version = hello.version, "session opened");
        Line::new(shared, session, shared.context.leases.attach(session))?
    };
    let welcome = v1::Welcome {
        session: line.session.to_wire(),
        lease_ms: u64::try_from(shared.context.sessions.lease().as_millis()).unwrap_or(u64::MAX),
        cluster: shared.context.cluster.id().to_wire(),
        map: Some(v1::ClusterMap::clone(&shared.context.cluster.map())),
        slots: SLOTS,
        resumed,
        now_ns: clock::wall_ns(),
    };
    Ok((line, welcome))
}

async fn release(
    shared: &Shared,
    session: SessionId,
    orphans: Vec<cairn_proto::InodeId>,
) -> Result<(), OpError> {
    if orphans.is_empty() {
        return Ok(());
    }
    shared.executor.run(move |tx| ops::open::release(tx, session, &orphans)).await
}

/// One stream of a session.
struct Life {
    shared: Arc<Shared>,
    session: SessionId,
    line: Line,
    requests: Streaming<v1::SessionRequest>,
    answers: mpsc::Sender<Result<v1::SessionResponse, Status>>,
    /// Of the map that the client has from this stream.
    revision: u64,
}

/// Whether the stream goes on.
enum Next {
    Listen,
    Close,
}

impl Life {
    async fn run(mut self) {
        let mut maps = self.shared.context.cluster.subscribe();
        let stop = self.shared.shutdown.requested();
        tokio::pin!(stop);
        loop {
            let lease = self.shared.context.sessions.lease();
            let done = tokio::select! {
                () = &mut stop => Ok(Next::Close),
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.on_request(request).await,
                    Ok(None) | Err(_) => Ok(Next::Close),
                },
                changed = maps.changed() => match changed {
                    Ok(()) => self.send_map().await,
                    Err(_) => Ok(Next::Close),
                },
                () = self.line.stream.wake.notified() => self.send_recalls().await,
                () = clock::sleep(lease) => {
                    self.shared.context.sessions.check(self.session).map(|()| Next::Listen)
                }
            };
            match done {
                Ok(Next::Listen) => {}
                Ok(Next::Close) => break,
                Err(error) => {
                    let status = refuse("Session", &error);
                    let _ = clock::timeout(SEND_TIME, self.answers.send(Err(status))).await;
                    break;
                }
            }
        }
    }

    async fn on_request(&mut self, request: v1::SessionRequest) -> Result<Next, OpError> {
        use v1::session_request::Message;
        match request.message {
            Some(Message::KeepAlive(_)) => {
                self.shared.context.sessions.renew(self.session)?;
                let map_revision = self.revision;
                let answer = v1::KeepAlive { map_revision, now_ns: clock::wall_ns() };
                self.send(v1::session_response::Message::KeepAlive(answer)).await
            }
            Some(Message::Closed(closed)) => {
                let closed = wire::opens(closed.files)?;
                let orphans = self.shared.context.sessions.close(self.session, &closed);
                release(&self.shared, self.session, orphans).await?;
                Ok(Next::Listen)
            }
            Some(Message::Released(released)) => {
                let grants = wire::grants(&released.leases)?;
                let reads = wire::grants(&released.reads)?;
                self.shared.context.leases.give_back(self.session, &self.line.stream, &grants);
                if !reads.is_empty() {
                    self.shared.context.leases.give_back_reads(self.session, &reads);
                }
                Ok(Next::Listen)
            }
            Some(Message::Goodbye(_)) => {
                let session = self.session;
                // Who says this shows nothing any more.
                self.shared.context.leases.forget_reads(session);
                self.shared.executor.run(move |tx| ops::open::end_session(tx, session, false)).await?;
                tracing::info!(session = %session, "session closed");
                Ok(Next::Close)
            }
            Some(Message::Hello(_)) => Err(OpError::invalid("a session says hello once")),
            None => Err(OpError::invalid("a message that this build does not know")),
        }
    }

    async fn send_recalls(&mut self) -> Result<Next, OpError> {
        match self.shared.context.leases.take_recalls(self.session, &self.line.stream, RECALLS_MAX) {
            Recalls::Ask { leases, reads } if leases.is_empty() && reads.is_empty() => Ok(Next::Listen),
            Recalls::Ask { leases, reads } => {
                let [leases, reads] =
                    [leases, reads].map(|grants| grants.into_iter().map(wire::lease).collect());
                self.send(v1::session_response::Message::Recall(v1::Recall { leases, reads })).await
            }
            Recalls::Superseded => Ok(Next::Close),
            Recalls::Over => self.shared.context.sessions.check(self.session).map(|()| Next::Close),
        }
    }

    async fn send_map(&mut self) -> Result<Next, OpError> {
        let map = self.shared.context.cluster.map();
        if map.revision == self.revision {
            return Ok(Next::Listen);
        }
        self.revision = map.revision;
        self.send(v1::session_response::Message::Map(v1::ClusterMap::clone(&map))).await
    }

    async fn send(&self, message: v1::session_response::Message) -> Result<Next, OpError> {
        match clock::timeout(SEND_TIME, self.answers.send(Ok(response(message)))).await {
            Ok(Ok(())) => Ok(Next::Listen),
            Ok(Err(_)) | Err(_) => Ok(Next::Close),
        }
    }
}
