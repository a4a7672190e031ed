//! The session: this client's registration with the coordinator and its life line.
//!
//! One task owns the `Session` stream. It keeps the session alive, takes map changes and recalls, tells
//! closes and releases, and connects again when the stream breaks:
//!
//! ```text
//! connecting ──Welcome──▶ serving ──broken, silent──▶ pausing (jittered) ──▶ connecting (resume)
//!     │ SessionExpired                │ a call got SessionExpired
//!     └──▶ connecting (new session) ◀─┘
//! ```
//!
//! A new session has new reply slots and no plans; whoever works with the old one notices by its id.

pub(crate) mod leases;
pub(crate) mod opens;
pub(crate) mod slots;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cairn_proto::limits::SLOTS_MAX;
use cairn_proto::{ClusterId, ErrorKind, InodeId, SessionId, v1};
use cairn_runtime::clock::{self, BootInstant, Instant};
use cairn_runtime::random;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::{debug, info, warn};

use crate::clock::ClusterClock;
use crate::config::Unreachable;
use crate::coordinator::Rpc;
use crate::error::{ClientError, Result};
use crate::map::MapCell;
use crate::metrics;
use crate::retry::{Patience, TRY_TIME, same_call_may_succeed};
use leases::Leases;
use opens::Opens;
use slots::Slots;

const PEER: &str = "the coordinator";
/// The first connection is given up after this long also by a `hard` client: nothing depends on it yet.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// Pauses between reconnects.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Closes are gathered this long before they are told, since many small messages cost much.
const CLOSES_GATHER: Duration = Duration::from_millis(5);
/// Messages under way to the coordinator.
const OUTGOING: usize = 16;
/// The coordinator's lease time is kept within these.
const LEASE_MIN: Duration = Duration::from_millis(300);
const LEASE_MAX: Duration = Duration::from_secs(600);
/// The orderly end of the session may take this long.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// One session.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) session: SessionId,
    pub(crate) cluster: ClusterId,
    pub(crate) slots: Arc<Slots>,
}

/// The present session and what outlives it.
#[derive(Debug)]
pub(crate) struct Session {
    rpc: Rpc,
    description: String,
    policy: Unreachable,
    map: Arc<MapCell>,
    current: ArcSwapOption<Identity>,
    id: watch::Sender<Option<SessionId>>,
    pub(crate) opens: Arc<Opens>,
    pub(crate) leases: Leases,
    pub(crate) clock: Arc<ClusterClock>,
    renew: Notify,
    expired: watch::Sender<Option<SessionId>>,
    /// Since when, and why, there is no stream to the coordinator.
    broken: Mutex<Option<Broken>>,
    goodbye: CancellationToken,
    ended: CancellationToken,
}

/// A stream that broke and has not been replaced yet.
#[derive(Debug)]
struct Broken {
    since: Instant,
    why: String,
}

struct Link {
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    lease: Duration,
}

impl Session {
    pub(crate) fn new(
        rpc: Rpc,
        description: String,
        policy: Unreachable,
        map: Arc<MapCell>,
        clock: Arc<ClusterClock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            rpc,
            description,
            policy,
            map,
            current: ArcSwapOption::empty(),
            id: watch::Sender::new(None),
            opens: Arc::default(),
            leases: Leases::default(),
            clock,
            renew: Notify::new(),
            expired: watch::Sender::new(None),
            broken: Mutex::new(None),
            goodbye: CancellationToken::new(),
            ended: CancellationToken::new(),
        })
    }

    /// Opens the first session; the future that comes back keeps it and must be run.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<impl Future<Output = ()> + Send + 'static> {
        let limit = self.policy.limit().unwrap_or(CONNECT_TIME).min(CONNECT_TIME);
        let mut patience = Patience::limited("open a session", Some(limit));
        let link = loop {
            match self.dial().await {
                Ok(link) => break link,
                Err(error) if same_call_may_succeed(error.kind()) => patience.pause(&error).await?,
                Err(error) => return Err(error),
            }
        };
        Ok(Arc::clone(self).run(link))
    }

    /// The present session.
    pub(crate) fn identity(&self) -> Result<Arc<Identity>> {
        self.current.load_full().ok_or(ClientError::Closed)
    }

    /// Whether the session has ended for good.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Whether the coordinator is heard; else a sentence since when it is not, and why.
    pub(crate) fn connected(&self) -> std::result::Result<(), String> {
        if self.has_ended() {
            return Err("the session has ended".into());
        }
        match &*self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(Broken { since, why }) => {
                Err(format!("no connection to the coordinator for {} s: {why}", since.elapsed().as_secs()))
            }
        }
    }

    /// Takes note of a stream that broke or could not be made; logs what is new about it.
    fn on_broken(&self, error: &ClientError) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let why = error.to_string();
        match &mut *broken {
            Some(known) if known.why == why => debug!(%error, "the coordinator is still away"),
            Some(known) => {
                info!(%error, "the coordinator is still away, for another reason");
                known.why = why;
            }
            none => {
                warn!(%error, "the connection to the coordinator is broken; connecting again");
                *none = Some(Broken { since: clock::now(), why });
            }
        }
    }

    /// A call with `session` got `SessionExpired`: waits until there is another one.
    pub(crate) async fn renewed(&self, session: SessionId, patience: &mut Patience) -> Result<()> {
        let mut id = self.id.subscribe();
        loop {
            if self.ended.is_cancelled() {
                return Err(ClientError::Closed);
            }
            self.give_up_on(session);
            let changed = async { id.wait_for(|id| id.is_some_and(|id| id != session)).await.map(drop) };
            match clock::timeout(patience.try_time(), changed).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) => return Err(ClientError::Closed),
                Err(_) => {
                    let error = ClientError::new(ErrorKind::Unavailable, "no new session could be opened");
                    patience.pause(&error).await?;
                }
            }
        }
    }

    /// Has `session` replaced by a new one, when it is still the present one.
    pub(crate) fn give_up_on(&self, session: SessionId) {
        let present = self.current.load().as_ref().is_some_and(|now| now.session == session);
        if present {
            self.expired.send_replace(Some(session));
            self.renew.notify_one();
        }
    }

    /// Ends the session in good order.
    pub(crate) async fn end(&self) {
        self.goodbye.cancel();
        let _ = clock::timeout(GOODBYE_TIME * 2, self.ended.cancelled()).await;
    }

    /// Ends the session without a word, when the client is dropped.
    pub(crate) fn abandon(&self) {
        self.goodbye.cancel();
    }

    /// An open that ends when the guard is dropped.
    pub(crate) fn hold(self: &Arc<Self>, inode: InodeId, sequence: u64) -> OpenGuard {
        self.opens.add(inode, sequence);
        OpenGuard { opens: Arc::clone(&self.opens), inode }
    }

    /// The same of an open that the coordinator does not have to know of yet. `true` as
    /// [`Opens::add_unregistered`] has it.
    pub(crate) fn hold_unregistered(self: &Arc<Self>, inode: InodeId) -> (OpenGuard, bool) {
        let first = self.opens.add_unregistered(inode, self.opens.next_sequence());
        (OpenGuard { opens: Arc::clone(&self.opens), inode }, first)
    }

    async fn run(self: Arc<Self>, first: Link) {
        let mut link = Some(first);
        let mut pause = PAUSE_MIN;
        while !self.goodbye.is_cancelled() {
            let served = match link.take() {
                Some(link) => {
                    let since = clock::now();
                    let result = self.serve(link).await;
                    self.leases.on_broken();
                    if since.elapsed() > PAUSE_MAX * 2 {
                        pause = PAUSE_MIN;
                    }
                    result
                }
                None => self.dial().await.map(|new| link = Some(new)),
            };
            let Err(error) = served else { continue };
            if error.kind() == ErrorKind::SessionExpired {
                continue; // the next dial opens a new session
            }
            self.on_broken(&error);
            tokio::select! {
                () = clock::sleep(random::jitter(pause)) => pause = (pause * 2).min(PAUSE_MAX),
                () = self.goodbye.cancelled() => {}
            }
        }
        self.ended.cancel();
    }

    /// Connects, resuming the present session unless it is known to be over.
    async fn dial(&self) -> Result<Link> {
        let present = self.current.load_full();
        let over = *self.expired.borrow();
        let resume = present.filter(|identity| Some(identity.session) != over);
        let (open, more) = opens::in_pages(self.opens.list());
        let hello = v1::ClientHello {
            session: resume.as_ref().map(|identity| identity.session.to_wire()).unwrap_or_default(),
            description: self.description.chars().take(200).collect(),
            open,
            map_revision: 0,
            version: cairn_runtime::VERSION.into(),
            leases: self.leases.list(),
            more_open: !more.is_empty(),
        };
        let dialled = clock::boot_now();
        let connected = clock::timeout(TRY_TIME, self.greet(hello, more)).await;
        let result = connected.unwrap_or_else(|_| {
            Err(ClientError::new(ErrorKind::TimedOut, "the coordinator did not answer the hello"))
        });
        match (result, resume) {
            (Ok((link, welcome)), _) => {
                self.welcomed(welcome, dialled, link.lease)?;
                Ok(link)
            }
            (Err(error), Some(identity)) if error.kind() == ErrorKind::SessionExpired => {
                warn!(session = %identity.session, "the session has expired; opening a new one");
                self.expired.send_replace(Some(identity.session));
                Err(error)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// `more`: what is open and did not fit into the hello.
    async fn greet(&self, hello: v1::ClientHello, more: Vec<v1::OpenFiles>) -> Result<(Link, v1::Welcome)> {
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let introduce = async {
            let hello = std::iter::once(v1::session_request::Message::Hello(hello));
            for message in hello.chain(more.into_iter().map(v1::session_request::Message::Open)) {
                // When nobody takes it, the call fails.
                let _ = outgoing.send(v1::SessionRequest { message: Some(message) }).await;
            }
        };
        let mut rpc = self.rpc.clone();
        let ((), answer) = tokio::join!(introduce, rpc.session(ReceiverStream::new(requests)));
        let mut incoming = answer?.into_inner();
        let first = incoming.message().await?.and_then(|response| response.message);
        let Some(v1::session_response::Message::Welcome(welcome)) = first else {
            return Err(ClientError::protocol(PEER, "another first message than a welcome"));
        };
        let lease = Duration::from_millis(welcome.lease_ms).clamp(LEASE_MIN, LEASE_MAX);
        Ok((Link { outgoing, incoming, lease }, welcome))
    }

    fn welcomed(&self, mut welcome: v1::Welcome, dialled: BootInstant, lease: Duration) -> Result<()> {
        let bad = |error: cairn_proto::IdError| ClientError::protocol(PEER, error);
        let session = SessionId::from_wire(&welcome.session).map_err(bad)?;
        let cluster = ClusterId::from_wire(&welcome.cluster).map_err(bad)?;
        self.map.adopt(welcome.map.take());
        let before = self.current.load_full();
        let resumed = before.as_ref().is_some_and(|before| before.session == session);
        if let Some(before) = before {
            if before.cluster != cluster {
                return Err(ClientError::new(
                    ErrorKind::WrongCluster,
                    format!(
                        "the coordinator now serves cluster {cluster}; this client works with {}",
                        before.cluster
                    ),
                ));
            }
            metrics::session_reconnected(resumed);
            info!(%session, resumed, "connected again");
        }
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.leases.on_welcome(dialled, lease, resumed);
        if welcome.now_ns > 0 {
            self.clock.on_welcome(welcome.now_ns);
        }
        if !resumed {
            let slots = Slots::new(welcome.slots.clamp(1, SLOTS_MAX));
            self.current.store(Some(Arc::new(Identity { session, cluster, slots })));
            self.id.send_replace(Some(session));
        }
        Ok(())
    }

    /// Keeps one stream going until it breaks, the session expires or ends.
    async fn serve(&self, mut link: Link) -> Result<()> {
        let mut beat = clock::interval(link.lease / 3);
        let mut heard = clock::boot_now();
        loop {
            tokio::select! {
                message = link.incoming.message() => {
                    heard = clock::boot_now();
                    self.on_message(message?)?;
                }
                _ = beat.tick() => {
                    check_silence(heard, link.lease)?;
                    let map_revision = self.map.revision();
                    self.leases.on_keep_alive_sent();
                    let keep_alive = v1::KeepAlive { map_revision, now_ns: 0 };
                    self.send(&link, v1::session_request::Message::KeepAlive(keep_alive)).await?;
                }
                () = self.leases.released.notified() => {
                    while let Some(released) = self.leases.take_released() {
                        self.send(&link, v1::session_request::Message::Released(released)).await?;
                    }
                }
                () = self.opens.closed.notified() => {
                    clock::sleep(CLOSES_GATHER).await;
                    self.tell_closed(&link).await?;
                }
                () = self.renew.notified() => {
                    let over = *self.expired.borrow();
                    if self.current.load().as_ref().is_some_and(|now| Some(now.session) == over) {
                        return Err(ClientError::SessionExpired { what: "a call" });
                    }
                }
                () = self.goodbye.cancelled() => {
                    let farewell = clock::timeout(GOODBYE_TIME, self.say_goodbye(&mut link)).await;
                    return farewell.unwrap_or(Ok(()));
                }
            }
        }
    }

    fn on_message(&self, message: Option<v1::SessionResponse>) -> Result<()> {
        let ended = || ClientError::new(ErrorKind::Unavailable, "the coordinator ended the session stream");
        match message.ok_or_else(ended)?.message {
            Some(v1::session_response::Message::Map(map)) => self.map.adopt(Some(map)),
            Some(v1::session_response::Message::KeepAlive(answer)) => {
                if let Some(sent) = self.leases.on_keep_alive()
                    && answer.now_ns > 0
                {
                    self.clock.on_keep_alive(sent, answer.now_ns);
                }
            }
            Some(v1::session_response::Message::Recall(recall)) => self.leases.on_recall(recall),
            Some(v1::session_response::Message::Welcome(_)) => {
                return Err(ClientError::protocol(PEER, "a second welcome"));
            }
            // A message of a newer coordinator.
            None => {}
        }
        Ok(())
    }

    async fn send(&self, link: &Link, message: v1::session_request::Message) -> Result<()> {
        let sent = link.outgoing.send(v1::SessionRequest { message: Some(message) });
        match clock::timeout(TRY_TIME, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(ClientError::new(ErrorKind::Unavailable, "the session stream takes no messages"))
            }
        }
    }

    async fn tell_closed(&self, link: &Link) -> Result<()> {
        while let Some(closed) = self.opens.take_closed() {
            self.send(link, v1::session_request::Message::Closed(closed)).await?;
        }
        Ok(())
    }

    async fn say_goodbye(&self, link: &mut Link) -> Result<()> {
        self.tell_closed(link).await?;
        self.send(link, v1::session_request::Message::Goodbye(v1::Goodbye {})).await?;
        while link.incoming.message().await?.is_some() {}
        Ok(())
    }
}

fn check_silence(heard: BootInstant, lease: Duration) -> Result<()> {
    if heard.elapsed() < lease {
        return Ok(());
    }
    Err(ClientError::new(ErrorKind::TimedOut, format!("the coordinator was silent for {lease:?}")))
}

/// Keeps an inode alive on the coordinator, also unlinked, until dropped.
#[derive(Debug)]
pub struct OpenGuard {
    opens: Arc<Opens>,
    inode: InodeId,
}

impl OpenGuard {
    /// Which inode.
    pub fn inode(&self) -> InodeId {
        self.inode
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.opens.remove(self.inode);
    }
}

#[cfg(test)]
mod tests;
