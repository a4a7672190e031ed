//! Replication between datanodes: the sending half ([`Partners`], a [`Link`] per partner) and the
//! receiving half ([`receive`]) of `ReplicateChunk`.
//!
//! One long-lived stream per partner carries the frames of all chunks, as they arrive and not
//! when a chunk is complete. The receiver answers with credit and, per chunk, a final
//! acknowledgement; while chunks are open it also gives a sign of life each second (an
//! acknowledgement of chunk 0), so that a slow disk is not taken for a dead node. A partner that owes
//! an answer and is silent for [`SILENCE_MAX`] loses its stream, and every chunk under way
//! goes on without it: a writer never stalls for longer.
//!
//! Bounded: [`QUEUE`] frames wait per link, each holding its share of the node's transfer memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::v1::{StoreAck, StoreFrame};
use cairn_proto::{ErrorKind, NodeId, WireError, v1, wire_error_of};
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::{net, random};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::frame_queue::{Drain, Forward, Queue, frame_queue};
use crate::intake::{Intake, Role};
use crate::map::{Map, NodeEntry};
use crate::metrics;
use crate::node::Node;
use crate::outbox::{AckStream, Outbox};
use crate::transfer::{CREDIT_STEP, Transfer, result_of, unavailable};

/// Frames that wait for one partner's stream.
const QUEUE: usize = 32;
/// A partner that owes an answer may be silent this long.
const SILENCE_MAX: Duration = Duration::from_millis(3500);
/// One chunk may make no progress this long on a partner that otherwise answers.
const STALL_MAX: Duration = Duration::from_secs(15);
/// How often both are checked; also the interval of the signs of life, rounded up.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Interval of the receiver's signs of life.
pub(crate) const LIFE_INTERVAL: Duration = Duration::from_secs(1);
/// A link that is not made by then counts as refused.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Chunks that start while the first connection is being made wait this long for it.
const FIRST_CONNECT_WAIT: Duration = Duration::from_secs(1);
/// Pauses between attempts, jittered.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The same for a partner that takes streams but never answers on them.
const BACKOFF_SILENT_MAX: Duration = Duration::from_secs(30);

/// Why a partner that owes an answer loses its stream.
const SILENT: &str = "no answer for 3.5 s";

/// ```text
/// Connecting ──▶ Up ──▶ Down ──▶ Up …
///      └────────────────▲
/// ```
#[derive(Clone)]
enum LinkState {
    Connecting,
    Up(Queue),
    Down(String),
}

/// What one chunk owes or is owed on a link.
struct Pending {
    transfer: Arc<Transfer>,
    member: usize,
    sent: u64,
    received: u64,
    complete: bool,
    owed_since: Option<Instant>,
}

impl Pending {
    /// Whether the partner has to say something now: a step of credit, or the end.
    fn is_owed(&self) -> bool {
        self.complete || self.sent >= self.received + CREDIT_STEP
    }
}

/// The stream to one partner.
pub(crate) struct Link {
    node: NodeId,
    address: Mutex<NodeEntry>,
    state: watch::Sender<LinkState>,
    pending: Mutex<HashMap<u64, Pending>>,
    /// Try again now.
    kick: Notify,
    stop: CancellationToken,
}

/// One chunk's place on a link. Frames are sent in order by one task.
pub(crate) struct Lane {
    link: Arc<Link>,
    queue: Queue,
    member: usize,
    chunk: u64,
}

impl Lane {
    /// Opens a lane for a chunk, waiting a moment for a link that is being made for the first time.
    pub(crate) async fn open(
        link: Arc<Link>,
        transfer: &Arc<Transfer>,
        member: usize,
    ) -> Result<Self, WireError> {
        let mut watch = link.state.subscribe();
        let ready = watch.wait_for(|state| !matches!(state, LinkState::Connecting));
        let state = clock::timeout(FIRST_CONNECT_WAIT, ready).await;
        let queue = match state.as_ref().map(|state| state.as_deref()) {
            Ok(Ok(LinkState::Up(queue))) => queue.clone(),
            Ok(Ok(LinkState::Down(reason))) => return Err(unavailable(reason.clone())),
            _ => return Err(unavailable("not connected yet")),
        };
        drop(state);
        let chunk = transfer.chunk().get();
        let pending = Pending {
            transfer: Arc::clone(transfer),
            member,
            sent: 0,
            received: 0,
            complete: false,
            owed_since: None,
        };
        link.lock().insert(chunk, pending);
        // A link that was lost meanwhile may have failed its chunks before this one was among them.
        let still_up =
            matches!(&*link.state.borrow(), LinkState::Up(current) if current.same_channel(&queue));
        if !still_up {
            link.lock().remove(&chunk);
            return Err(unavailable("the connection was lost"));
        }
        Ok(Self { link, queue, member, chunk })
    }

    /// Which member of the transfer it leads to.
    pub(crate) fn member(&self) -> usize {
        self.member
    }

    /// Sends a frame when there is room; gives it back when there is none.
    pub(crate) fn try_send(&self, forward: Forward) -> Option<Forward> {
        self.note(&forward.frame);
        match self.queue.try_send(forward) {
            Ok(()) => None,
            Err(TrySendError::Full(forward)) => Some(forward),
            Err(TrySendError::Closed(_)) => {
                self.lost();
                None
            }
        }
    }

    /// Sends a frame that `try_send` gave back. Ends when there is room or the link is lost.
    pub(crate) async fn send(&self, forward: Forward) {
        if self.queue.send(forward).await.is_err() {
            self.lost();
        }
    }

    /// Tells the partner to drop the chunk.
    pub(crate) fn abort(&self) {
        if self.link.lock().remove(&self.chunk).is_some() {
            abort_on(&self.queue, self.chunk);
        }
    }

    fn note(&self, frame: &StoreFrame) {
        if let Some(pending) = self.link.lock().get_mut(&self.chunk) {
            pending.sent = frame.offset + frame.data.len() as u64;
            pending.complete = frame.is_final;
            if pending.is_owed() {
                pending.owed_since.get_or_insert_with(clock::now);
            }
        }
    }

    fn lost(&self) {
        if let Some(pending) = self.link.lock().remove(&self.chunk) {
            pending.transfer.on_ended(self.member, Err(unavailable("the connection was lost")));
        }
    }
}

/// Sends an abort; in the background when the queue is full.
fn abort_on(queue: &Queue, chunk: u64) {
    let frame = StoreFrame { chunk, abort: true, ..StoreFrame::default() };
    if let Err(TrySendError::Full(forward)) = queue.try_send(Forward { frame, _memory: None })
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        // Ends at the latest when the link does.
        let queue = queue.clone();
        runtime.spawn(async move { queue.send(forward).await });
    }
}

/// A stream that is up.
struct Connected {
    queue: Queue,
    acks: Streaming<StoreAck>,
    _drain: Drain,
    /// Keeps the connection.
    _client: DataNodeClient<Channel>,
}

impl Link {
    fn new(node: NodeId, entry: NodeEntry, stop: CancellationToken) -> Self {
        Self {
            node,
            address: Mutex::new(entry),
            state: watch::Sender::new(LinkState::Connecting),
            pending: Mutex::default(),
            kick: Notify::new(),
            stop,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self) -> NodeEntry {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the stream up until told to stop.
    async fn run(self: Arc<Self>) {
        let mut pause = BACKOFF_MIN;
        let mut silent = false;
        while !self.stop.is_cancelled() {
            let reason = match self.connect().await {
                Ok(mut up) => {
                    info!(partner = %self.node, "replication stream is up");
                    self.state.send_replace(LinkState::Up(up.queue.clone()));
                    let (reason, answered) = self.read_acks(&mut up.acks, &up.queue).await;
                    silent = !answered && reason == SILENT;
                    if !silent {
                        pause = BACKOFF_MIN;
                    }
                    ::metrics::counter!(metrics::LINKS_LOST).increment(1);
                    if !self.stop.is_cancelled() {
                        warn!(partner = %self.node, reason, "replication stream is lost");
                    }
                    reason
                }
                Err(reason) => reason,
            };
            self.state.send_replace(LinkState::Down(reason.clone()));
            self.fail_all(&reason);
            tokio::select! {
                () = clock::sleep(random::jitter(pause)) => {}
                () = self.kick.notified() => {}
                () = self.stop.cancelled() => {}
            }
            pause = (pause * 2).min(if silent { BACKOFF_SILENT_MAX } else { BACKOFF_MAX });
        }
    }

    async fn connect(&self) -> Result<Connected, String> {
        let address = self.entry().address;
        let channel = net::connect(&address).map_err(|error| error.to_string())?;
        let (queue, frames, drain) = frame_queue(QUEUE);
        let mut client = DataNodeClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX);
        let answer = tokio::select! {
            answer = clock::timeout(CONNECT_MAX, client.replicate_chunk(frames)) => answer,
            () = self.stop.cancelled() => return Err("this datanode is stopping".into()),
        };
        match answer {
            Ok(Ok(response)) => {
                Ok(Connected { queue, acks: response.into_inner(), _drain: drain, _client: client })
            }
            Ok(Err(status)) => Err(format!("{address}: {}", wire_error_of(&status).message)),
            Err(_) => Err(format!("{address} did not answer")),
        }
    }

    /// Hands acknowledgements to their transfers until the stream ends. Returns why it did,
    /// and whether anything was heard.
    async fn read_acks(&self, acks: &mut Streaming<StoreAck>, queue: &Queue) -> (String, bool) {
        let mut check = clock::interval(CHECK_INTERVAL);
        let mut heard = clock::now();
        let mut answered = false;
        loop {
            tokio::select! {
                message = acks.message() => match message {
                    Ok(Some(ack)) => {
                        heard = clock::now();
                        answered = true;
                        self.on_ack(&ack);
                    }
                    Ok(None) => return ("the partner ended the stream".into(), answered),
                    Err(status) => return (format!("the stream broke: {}", status.message()), answered),
                },
                _ = check.tick() => {
                    let silent = heard.elapsed();
                    if let Some(reason) = self.check(silent, queue) {
                        return (reason.into(), answered);
                    }
                }
                () = self.stop.cancelled() => return ("this datanode is stopping".into(), answered),
            }
        }
    }

    fn on_ack(&self, ack: &StoreAck) {
        let mut pending = self.lock();
        let Some(entry) = pending.get_mut(&ack.chunk) else {
            return; // a sign of life, or a chunk that was given up
        };
        let (transfer, member) = (Arc::clone(&entry.transfer), entry.member);
        match result_of(ack) {
            Some(result) => {
                pending.remove(&ack.chunk);
                drop(pending);
                transfer.on_ended(member, result);
            }
            None => {
                entry.received = entry.received.max(ack.received);
                entry.owed_since = entry.is_owed().then(clock::now);
                drop(pending);
                transfer.on_received(member, ack.received);
            }
        }
    }

    /// Gives up a silent partner (then the reason is returned) or chunks that are stuck on it.
    fn check(&self, silent: Duration, queue: &Queue) -> Option<&'static str> {
        let mut stuck = Vec::new();
        {
            let mut pending = self.lock();
            let waited = |entry: &Pending| entry.owed_since.map_or(Duration::ZERO, |since| since.elapsed());
            if silent >= SILENCE_MAX && pending.values().any(|entry| waited(entry) >= SILENCE_MAX) {
                return Some(SILENT);
            }
            pending.retain(|chunk, entry| {
                let is_stuck = waited(entry) >= STALL_MAX;
                if is_stuck {
                    stuck.push((*chunk, Arc::clone(&entry.transfer), entry.member));
                }
                !is_stuck
            });
        }
        for (chunk, transfer, member) in stuck {
            abort_on(queue, chunk);
            let text = format!("no progress for {} s", STALL_MAX.as_secs());
            transfer.on_ended(member, Err(WireError::new(ErrorKind::TimedOut, text)));
        }
        None
    }

    fn fail_all(&self, reason: &str) {
        let pending = std::mem::take(&mut *self.lock());
        for entry in pending.into_values() {
            entry.transfer.on_ended(entry.member, Err(unavailable(reason)));
        }
    }
}

/// The links to all who share a replica set with this node.
pub(crate) struct Partners {
    me: NodeId,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    shutdown: Shutdown,
}

impl Partners {
    pub(crate) fn new(me: NodeId, shutdown: Shutdown) -> Self {
        Self { me, links: Mutex::default(), shutdown }
    }

    /// Makes links as a new map demands, and drops those it no longer does.
    pub(crate) fn adopt(&self, map: &Map) {
        let wanted = map.partners(self.me);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|node, link| {
            let keep = wanted.get(node).is_some_and(|entry| entry.address == link.entry().address);
            if !keep {
                link.stop.cancel();
            }
            keep
        });
        for (node, entry) in wanted {
            match links.get(&node) {
                Some(link) => {
                    let old = std::mem::replace(
                        &mut *link.address.lock().unwrap_or_else(PoisonError::into_inner),
                        entry.clone(),
                    );
                    if old.state != entry.state && entry.state == v1::NodeState::Up {
                        link.kick.notify_one();
                    }
                }
                None => {
                    let link = Arc::new(Link::new(node, entry, self.shutdown.token().child_token()));
                    self.shutdown.spawn(Arc::clone(&link).run());
                    links.insert(node, link);
                }
            }
        }
    }

    /// The link to a partner.
    pub(crate) fn get(&self, node: NodeId) -> Option<Arc<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}

/// Takes the frames that another datanode forwards, and answers them.
pub(crate) fn receive(node: Arc<Node>, frames: Streaming<StoreFrame>) -> AckStream {
    let outbox = Arc::new(Outbox::default());
    let intake = Intake::new(node, Role::Replica, Arc::clone(&outbox));
    AckStream::new(outbox, intake.run(frames))
}

/// The refusal of a stream while the node stops.
pub(crate) fn stopping() -> Status {
    cairn_proto::status_from(ErrorKind::Unavailable, "this datanode is stopping")
}
