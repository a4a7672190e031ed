//! Exactly once: each session numbers its mutating requests in slots, and the reply to the last one
//! of each slot is stored in the transaction that executed it.
//!
//! A request that changes no row is not stored (its group may need no commit at all); its reply is
//! remembered in memory, for as long as there is room. So after a restart the sequence in the store may lag behind the client's,
//! and the first request of each slot may jump ahead then.
//!
//! What became of the last requests of a session is kept for a while after its end ([`ended`]).

pub(crate) mod ended;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use cairn_proto::limits::SLOTS_MAX;
use cairn_proto::{ErrorKind, SessionId, WireError};
use cairn_runtime::bugs::{Bug, planted};
use prost::Message;
use tokio::sync::watch;

use crate::error::OpError;
use crate::executor::Tx;
use crate::generations::{Generations, Weigh};
use crate::store::{Key, Slot};

/// Replies longer than this are read from the store again instead of being remembered, bytes.
const REPLY_REMEMBERED_MAX: usize = 16 << 10;

/// Names one mutating request for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestId {
    pub(crate) session: SessionId,
    pub(crate) slot: u32,
    pub(crate) sequence: u64,
}

impl RequestId {
    /// Checks what came from the wire.
    pub(crate) fn new(session: SessionId, slot: u32, sequence: u64) -> Result<Self, OpError> {
        if slot >= SLOTS_MAX {
            return Err(OpError::invalid(format!("slot {slot}; 0 to {} are possible", SLOTS_MAX - 1)));
        }
        if sequence == 0 || sequence > i64::MAX as u64 {
            return Err(OpError::invalid(format!("sequence {sequence}; they start at 1")));
        }
        Ok(Self { session, slot, sequence })
    }
}

/// Requests that wait for the executor or are executed. One that is sent again meanwhile waits here for itself: it
/// would else take a place in the queue each time, only to find its reply there.
#[derive(Debug, Default, Clone)]
pub(crate) struct UnderWay(Arc<Mutex<HashMap<RequestId, watch::Sender<()>>>>);

impl UnderWay {
    /// Waits until no attempt of this request is under way; then it is this one. Cancel-safe.
    pub(crate) async fn enter(&self, id: RequestId) -> Attempt {
        loop {
            let mut earlier = match self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id) {
                Entry::Occupied(attempt) => attempt.get().subscribe(),
                Entry::Vacant(place) => {
                    place.insert(watch::Sender::new(()));
                    return Attempt { all: self.clone(), id };
                }
            };
            // Ends when the sender is dropped.
            let _ = earlier.changed().await;
        }
    }
}

/// One attempt of a request; it goes with its job, and ends with this.
#[derive(Debug)]
pub(crate) struct Attempt {
    all: UnderWay,
    id: RequestId,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Which method a reply belongs to; the first byte of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Method {
    Apply = 1,
    ConfirmUpload = 2,
}

/// A slot of a session.
type SlotKey = (SessionId, u32);

impl Weigh for SlotKey {
    fn heap_bytes(&self) -> usize {
        0
    }
}

#[derive(Debug)]
enum Outcome {
    Reply(Bytes),
    Refused(WireError),
}

/// What became of one request.
#[derive(Debug)]
struct Answered {
    sequence: u64,
    outcome: Outcome,
}

impl Weigh for Answered {
    fn heap_bytes(&self) -> usize {
        match &self.outcome {
            Outcome::Reply(reply) => reply.len(),
            Outcome::Refused(error) => error.message.capacity(),
        }
    }
}

/// The last request of each slot, as far as known to this process.
#[derive(Debug)]
pub(crate) struct SlotCache {
    /// The sequence of the last request of each slot.
    last: HashMap<SessionId, HashMap<u32, u64>>,
    /// What became of those that were answered last. Of the others the reply is in the store, or they have changed
    /// nothing: then they can be executed once more.
    answered: Generations<SlotKey, Answered>,
    /// Something was forgotten, so a slot that is not known may have been used.
    incomplete: bool,
    ended: ended::EndedSessions,
}

impl SlotCache {
    /// Remembers replies of `bytes` together.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            last: HashMap::new(),
            answered: Generations::new(bytes),
            incomplete: false,
            ended: ended::EndedSessions::default(),
        }
    }

    /// Forgets everything: the replies of a group that was not committed are void.
    pub(crate) fn clear(&mut self) {
        self.last.clear();
        self.answered.clear();
        self.incomplete = true;
    }

    /// Notes whose outcomes are in the store although their sessions are over, after a start.
    pub(crate) fn keep_ended(&mut self, sessions: impl IntoIterator<Item = SessionId>) {
        sessions.into_iter().for_each(|session| self.ended.add(session));
    }

    /// `None`: the reply is in the store.
    fn remember(&mut self, id: &RequestId, outcome: Option<Outcome>) {
        self.last.entry(id.session).or_default().insert(id.slot, id.sequence);
        let slot = (id.session, id.slot);
        match outcome {
            Some(outcome) => self.answered.insert(slot, Answered { sequence: id.sequence, outcome }),
            None => drop(self.answered.remove(&slot)),
        }
    }

    /// What became of exactly this request, if that is remembered.
    fn answered(&mut self, id: &RequestId) -> Option<Result<Bytes, OpError>> {
        let found = self.answered.get(&(id.session, id.slot))?;
        (found.sequence == id.sequence).then(|| match &found.outcome {
            Outcome::Reply(reply) => Ok(reply.clone()),
            Outcome::Refused(error) => Err(error.clone().into()),
        })
    }
}

/// Runs `run` unless its request was executed before; then gives the reply of that time.
///
/// `SessionExpired`: the session is over. `StaleSequence`: the slot is already further.
/// `InvalidArgument`: a sequence was left out. `Unavailable`: replies wait for the second place of the
/// metadata log.
pub(crate) fn once<R: Message + Default>(
    tx: &mut Tx,
    id: &RequestId,
    method: Method,
    run: impl FnOnce(&mut Tx) -> Result<R, OpError>,
) -> Result<R, OpError> {
    tx.context.sessions.check(id.session)?;
    tx.context.shipping.check()?;
    if !planted(Bug::ReplyForgotten)
        && let Some(reply) = earlier_reply(tx, id)?
    {
        return decode(&reply, method);
    }
    match tx.nested(run) {
        Ok(reply) => {
            let mut bytes = BytesMut::with_capacity(1 + reply.encoded_len());
            bytes.put_u8(method as u8);
            reply.encode_raw(&mut bytes);
            let bytes = bytes.freeze();
            let mut outcome = Some(Outcome::Reply(bytes.clone()));
            if tx.has_changes() {
                if bytes.len() > REPLY_REMEMBERED_MAX {
                    outcome = None;
                }
                let RequestId { session, slot, sequence } = *id;
                tx.put(Slot { session, slot, sequence, reply: bytes });
            }
            tx.slots.remember(id, outcome);
            Ok(reply)
        }
        Err(error) => {
            // The store's own failures, leases of others and work under way pass; the same request is then tried
            // again.
            if !matches!(error, OpError::Store(_) | OpError::Leased(_) | OpError::Later(_)) {
                tx.slots.remember(id, Some(Outcome::Refused(error.to_wire())));
            }
            Err(error)
        }
    }
}

fn decode<R: Message + Default>(reply: &[u8], method: Method) -> Result<R, OpError> {
    match reply.split_first() {
        Some((&tag, reply)) if tag == method as u8 => R::decode(reply)
            .map_err(|error| OpError::new(ErrorKind::Internal, format!("a stored reply: {error}"))),
        _ => Err(OpError::invalid("this sequence was used for a request of another kind")),
    }
}

/// The reply of the same request, when it was executed before.
fn earlier_reply(tx: &mut Tx, id: &RequestId) -> Result<Option<Bytes>, OpError> {
    if let Some(answer) = tx.slots.answered(id) {
        return answer.map(Some);
    }
    let known = tx.slots.last.get(&id.session).and_then(|slots| slots.get(&id.slot)).copied();
    let mut jump_allowed = false;
    let last = match known {
        Some(last) if last != id.sequence => last,
        _ => {
            jump_allowed = tx.slots.incomplete || tx.context.sessions.is_recovered(id.session);
            match tx.find::<Slot>(&Key::Slot(id.session, id.slot))? {
                Some(row) if row.sequence == id.sequence => return Ok(Some(row.reply)),
                // It has changed nothing, and its reply is forgotten.
                _ if known.is_some() => return Ok(None),
                Some(row) => row.sequence,
                None => 0,
            }
        }
    };
    if id.sequence < last {
        let message = format!("slot {} is at sequence {last}, {} is over", id.slot, id.sequence);
        return Err(OpError::new(ErrorKind::StaleSequence, message));
    }
    if id.sequence > last + 1 && !jump_allowed {
        let message = format!("slot {} is at sequence {last}, {} leaves some out", id.slot, id.sequence);
        return Err(OpError::invalid(message));
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
