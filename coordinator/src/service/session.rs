//! The life line of a mounted client: hello, keep-alive, closes, leases asked back and given back,
//! changes of the map, goodbye.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::limits::LIST_MAX;
use cairn_proto::{ErrorKind, InodeId, SessionId, v1};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::{clock, random};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Replies, Shared, refuse, wire};
use crate::context::Context;
use crate::error::OpError;
use crate::executor::Tx;
use crate::leases::{self, Recalls};
use crate::sessions::{OPENS_MAX, Open};
use crate::{metrics, ops};

/// Slots that a session may use; as many requests it can have under way.
const SLOTS: u32 = 64;
/// Each of the messages that introduce a session must come by then.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// A client that takes nothing for so long is given up; its session lives on until its lease ends.
const SEND_TIME: Duration = Duration::from_secs(10);
/// Answers under way to one client.
const ANSWERS: usize = 16;
/// Leases asked back in one message.
const RECALLS_MAX: usize = 4096;
/// Longest description, bytes.
const DESCRIPTION_MAX: usize = 1024;
/// Orphans that one job gives to a session, so that others fit between.
const ORPHANS_STEP: usize = 1024;

pub(super) async fn open(
    shared: Arc<Shared>,
    mut requests: Streaming<v1::SessionRequest>,
) -> Result<Replies<v1::SessionResponse>, OpError> {
    let Some(v1::session_request::Message::Hello(mut hello)) = introduction(&mut requests).await? else {
        return Err(OpError::invalid("the first message of a session is its hello"));
    };
    let opens = all_opens(&mut hello, &mut requests).await?;
    let (line, welcome) = greet(&shared, hello, opens).await?;
    let revision = welcome.map.as_ref().map_or(0, |map| map.revision);
    let (answers, stream) = mpsc::channel(ANSWERS);
    let _ = answers.try_send(Ok(response(v1::session_response::Message::Welcome(welcome))));
    let life = Life { shared: Arc::clone(&shared), session: line.session, line, requests, answers, revision };
    shared.shutdown.spawn(life.run());
    Ok(Box::pin(ReceiverStream::new(stream)))
}

/// The next message before the welcome.
async fn introduction(
    requests: &mut Streaming<v1::SessionRequest>,
) -> Result<Option<v1::session_request::Message>, OpError> {
    let request = clock::timeout(HELLO_TIME, requests.message())
        .await
        .map_err(|_| OpError::new(ErrorKind::TimedOut, "no hello came"))?
        .map_err(|status| OpError::new(ErrorKind::Protocol, status.message()))?;
    Ok(request.and_then(|request| request.message))
}

/// Everything that the session holds open, from its hello and the messages behind it; of more than
/// [`OPENS_MAX`] the rest is not held.
async fn all_opens(
    hello: &mut v1::ClientHello,
    requests: &mut Streaming<v1::SessionRequest>,
) -> Result<Vec<Open>, OpError> {
    let mut opens = wire::opens(std::mem::take(&mut hello.open))?;
    let mut more = hello.more_open;
    while more {
        let Some(v1::session_request::Message::Open(page)) = introduction(requests).await? else {
            return Err(OpError::invalid("more open files were announced than came"));
        };
        if page.files.is_empty() || page.files.len() > LIST_MAX {
            let message =
                format!("{} open files in a message; 1 to {LIST_MAX} are possible", page.files.len());
            return Err(OpError::invalid(message));
        }
        if opens.len() < OPENS_MAX {
            opens.extend(wire::opens(page.files)?);
        }
        more = page.more;
    }
    opens.truncate(OPENS_MAX);
    Ok(opens)
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

async fn greet(
    shared: &Shared,
    hello: v1::ClientHello,
    opens: Vec<Open>,
) -> Result<(Line, v1::Welcome), OpError> {
    if hello.description.len() > DESCRIPTION_MAX {
        let message =
            format!("a description of {} bytes; {DESCRIPTION_MAX} are possible", hello.description.len());
        return Err(OpError::invalid(message));
    }
    let resumed = !hello.session.is_empty();
    let leases = wire::leased(&hello.leases)?;
    let line = if resumed {
        let session = SessionId::from_wire(&hello.session)?;
        end_condemned(shared, session).await?;
        shared.context.sessions.renew(session)?;
        take_opens(shared, session, opens).await?;
        let too_many = || OpError::new(ErrorKind::SessionExpired, "more leases are held than are possible");
        let stream = shared.context.leases.resume(session, &leases).ok_or_else(too_many)?;
        let line = Line::new(shared, session, stream)?;
        tracing::info!(session = %session, description = hello.description, "session goes on");
        line
    } else {
        let session = SessionId::from_uuid(random::uuid());
        let opens = if planted(Bug::OpensNotToldAgain) { Vec::new() } else { opens };
        let (description, is_fresh) = (hello.description.clone(), opens.is_empty());
        let begin = move |tx: &mut Tx| ops::open::begin_session(tx, session, description, is_fresh);
        shared.executor.run(begin).await?;
        take_opens(shared, session, opens).await?;
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
        now_ns: shared.context.clock.now_ns(),
    };
    Ok((line, welcome))
}

/// Whoever says hello again has no stream any more and trusts no lease, so a session that has not given one back in
/// time can end now.
async fn end_condemned(shared: &Shared, session: SessionId) -> Result<(), OpError> {
    if !shared.context.leases.is_condemned(session) {
        return Ok(());
    }
    shared.executor.run(move |tx| ops::open::end_session(tx, session, false)).await?;
    metrics::session_fenced();
    tracing::warn!(%session, "session ended: it did not give a lease back in time");
    Ok(())
}

/// A session says what it holds open, everything: one that goes on, or one that takes the place of another, which
/// has expired. Until this is done it counts as holding whatever loses its last name.
///
/// * What has been deleted meanwhile stays so; whoever uses it gets `StaleHandle`.
/// * When this is cut short, a new session goes on holding everything until its lease ends, one of an earlier reign
///   also until it comes again.
async fn take_opens(shared: &Shared, session: SessionId, opens: Vec<Open>) -> Result<(), OpError> {
    let sessions = &shared.context.sessions;
    sessions.hold(session, &opens);
    let held: HashSet<InodeId> = opens.iter().map(|open| open.inode).collect();
    for orphans in sessions.orphans_of_others(session, &held).chunks(ORPHANS_STEP).map(<[_]>::to_vec) {
        shared.executor.run(move |tx| ops::open::hold_orphans(tx, session, &orphans)).await?;
    }
    release(shared, session, sessions.returned(session, &held)?).await
}

pub(super) async fn release(
    shared: &Shared,
    session: SessionId,
    orphans: Vec<InodeId>,
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
                if !self.shared.context.leases.renew(self.session) {
                    return Ok(Next::Close);
                }
                self.shared.context.sessions.renew(self.session)?;
                let map_revision = self.revision;
                let answer = v1::KeepAlive { map_revision, now_ns: self.shared.context.clock.now_ns() };
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
            Some(Message::Hello(_) | Message::Open(_)) => Err(OpError::invalid("a session says hello once")),
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
