//! One chunk on its way to this node and the other members: who has how much of it, and when the
//! sender is told.
//!
//! A state machine without I/O: this node, and each member that the chunk is forwarded to, ends as
//! stored or failed; the sender is told once all have ended. Its credit is the least that any live
//! party has received.

use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::v1::{FailedMember, StoreAck};
use cairn_proto::{ChunkId, ErrorKind, NodeId, WireError};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock::{self, Instant};
use tracing::{debug, warn};

use crate::metrics;
use crate::outbox::Outbox;

/// Credit is told in steps of this many bytes; a sender's window must be larger.
pub(crate) const CREDIT_STEP: u64 = 512 << 10;

/// What a party has come to.
///
/// ```text
/// Receiving ──▶ Stored
///     └───────▶ Failed
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Receiving,
    Stored,
    Failed(WireError),
}

#[derive(Debug)]
struct Party {
    node: NodeId,
    received: u64,
    outcome: Outcome,
}

struct State {
    here: Party,
    members: Vec<Party>,
    /// Credit that the sender was told.
    told: u64,
    ended: bool,
}

/// One chunk under way.
pub(crate) struct Transfer {
    chunk: ChunkId,
    length: u64,
    sync: bool,
    outbox: Arc<Outbox>,
    role: &'static str,
    started: Instant,
    state: Mutex<State>,
}

impl Transfer {
    /// A chunk admitted to `outbox`, to be stored on `here` and forwarded to `members`; a member
    /// with an error has failed already.
    pub(crate) fn new(
        chunk: ChunkId,
        length: u64,
        sync: bool,
        outbox: Arc<Outbox>,
        here: NodeId,
        members: Vec<(NodeId, Option<WireError>)>,
        role: &'static str,
    ) -> Self {
        let receiving = |node| Party { node, received: 0, outcome: Outcome::Receiving };
        let members = members
            .into_iter()
            .map(|(node, error)| match error {
                Some(error) => Party { outcome: Outcome::Failed(error), ..receiving(node) },
                None => receiving(node),
            })
            .collect();
        let state = State { here: receiving(here), members, told: 0, ended: false };
        ::metrics::gauge!(metrics::TRANSFERS).increment(1.0);
        Self { chunk, length, sync, outbox, role, started: clock::now(), state: Mutex::new(state) }
    }

    /// Which chunk.
    pub(crate) fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// This node has received so much.
    pub(crate) fn on_received_here(&self, received: u64) {
        self.change(|state| state.here.received = received);
    }

    /// This node has stored the chunk (and synced it where that was asked), or could not.
    pub(crate) fn on_ended_here(&self, result: Result<(), WireError>) {
        let length = self.length;
        self.change(|state| end(&mut state.here, length, result));
    }

    /// A member has received so much.
    pub(crate) fn on_received(&self, member: usize, received: u64) {
        self.change(|state| {
            if let Some(party) = state.members.get_mut(member) {
                party.received = party.received.max(received);
            }
        });
    }

    /// A member has stored the chunk, or could not.
    pub(crate) fn on_ended(&self, member: usize, result: Result<(), WireError>) {
        let length = self.length;
        self.change(|state| {
            if let Some(party) = state.members.get_mut(member) {
                if let Err(error) = &result {
                    warn!(chunk = %self.chunk, member = %party.node, %error, "a member could not store a chunk");
                }
                end(party, length, result);
            }
        });
    }

    /// Whether a member still takes frames.
    pub(crate) fn is_receiving(&self, member: usize) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        !state.ended && state.members.get(member).is_some_and(|party| party.outcome == Outcome::Receiving)
    }

    fn change(&self, apply: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return;
        }
        apply(&mut state);
        if let Some(ack) = self.last_ack(&state) {
            state.ended = true;
            self.record(&ack);
            self.outbox.finish(ack);
            return;
        }
        let live = state.members.iter().filter(|party| !matches!(party.outcome, Outcome::Failed(_)));
        let credit = live.map(|party| party.received).fold(state.here.received, u64::min);
        if credit >= state.told + CREDIT_STEP {
            state.told = credit;
            self.outbox.credit(self.chunk.get(), credit);
        }
    }

    /// The final acknowledgement, once there is nothing more to wait for.
    fn last_ack(&self, state: &State) -> Option<StoreAck> {
        let chunk = self.chunk.get();
        match &state.here.outcome {
            Outcome::Receiving => return None,
            Outcome::Failed(error) => return Some(error_ack(chunk, error)),
            Outcome::Stored => {}
        }
        let waits = state.members.iter().any(|party| party.outcome == Outcome::Receiving);
        if waits && !planted(Bug::AckBeforeReplicas) {
            return None;
        }
        let mut ack = StoreAck {
            chunk,
            received: self.length,
            stored: true,
            synced: self.sync,
            stored_by: vec![state.here.node.to_wire()],
            ..StoreAck::default()
        };
        for party in &state.members {
            match &party.outcome {
                Outcome::Failed(error) if !planted(Bug::FailedMembersCounted) => {
                    ack.failed.push(FailedMember {
                        node: party.node.to_wire(),
                        error: error.kind.number(),
                        message: error.message.clone(),
                    })
                }
                _ => ack.stored_by.push(party.node.to_wire()),
            }
        }
        Some(ack)
    }

    fn record(&self, ack: &StoreAck) {
        ::metrics::histogram!(metrics::STORE_SECONDS, "role" => self.role)
            .record(self.started.elapsed().as_secs_f64());
        if ack.stored {
            ::metrics::counter!(metrics::STORED).increment(1);
            ::metrics::counter!(metrics::REPLICA_FAILED).increment(ack.failed.len() as u64);
            debug!(chunk = %self.chunk, failed = ack.failed.len(), "chunk stored");
        } else {
            ::metrics::counter!(metrics::STORE_FAILED).increment(1);
            debug!(chunk = %self.chunk, error = ack.error, message = ack.message, "chunk not stored");
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        ::metrics::gauge!(metrics::TRANSFERS).decrement(1.0);
    }
}

fn end(party: &mut Party, length: u64, result: Result<(), WireError>) {
    if party.outcome != Outcome::Receiving {
        return;
    }
    party.outcome = match result {
        Ok(()) => Outcome::Stored,
        Err(error) => Outcome::Failed(error),
    };
    if party.outcome == Outcome::Stored {
        party.received = length;
    }
}

/// The final acknowledgement of a chunk of which nothing is kept here.
pub(crate) fn error_ack(chunk: u64, error: &WireError) -> StoreAck {
    StoreAck { chunk, error: error.kind.number(), message: error.message.clone(), ..StoreAck::default() }
}

/// What a final acknowledgement says of its sender; `None` when it is not final.
pub(crate) fn result_of(ack: &StoreAck) -> Option<Result<(), WireError>> {
    match WireError::from_fields(ack.error, &ack.message) {
        Some(error) => Some(Err(error)),
        None => ack.stored.then_some(Ok(())),
    }
}

/// A member that can not be reached.
pub(crate) fn unavailable(message: impl Into<String>) -> WireError {
    WireError::new(ErrorKind::Unavailable, message)
}
