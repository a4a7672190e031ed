//! What became of the last requests of sessions that are over.
//!
//! A mount whose session ended between a request and its answer sends the same changes of names again in its next
//! session, and names the request of that time. When it was executed, its outcome is given here, and nothing is
//! executed twice. Of each result the error alone is kept: attributes and leases are void by then.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use cairn_proto::{SessionId, v1};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock::{self, Instant};
use prost::Message;

use super::{Method, RequestId, decode};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Key, Scan, Slot};

/// How long outcomes are kept after the end of their session: longer than a machine is cut off and still comes back.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Sessions whose outcomes are kept, a few kilobytes each; with one more the oldest are forgotten.
const ENDED_MAX: usize = 4096;

/// In the order of their ends.
#[derive(Debug, Default)]
pub(super) struct EndedSessions(VecDeque<(Instant, SessionId)>);

impl EndedSessions {
    pub(super) fn add(&mut self, session: SessionId) {
        self.0.push_back((clock::now(), session));
    }

    fn take_due(&mut self) -> Option<SessionId> {
        let is_full = self.0.len() > ENDED_MAX;
        self.0.pop_front_if(|(since, _)| is_full || since.elapsed() >= KEPT).map(|(_, session)| session)
    }
}

/// A session has ended: keeps what became of its last requests, and that it is known.
pub(crate) fn end(tx: &mut Tx, session: SessionId) -> Result<(), OpError> {
    tx.slots.last.remove(&session);
    let rows = of_session(tx, session)?;
    if rows.is_empty() {
        tx.put(Slot { session, slot: 0, sequence: 0, reply: Bytes::new() });
    }
    for row in rows {
        tx.put(Slot { reply: outcomes(&row.reply), ..row });
    }
    tx.slots.ended.add(session);
    forget_one(tx).map(drop)
}

/// Forgets one session whose time is over; false when there is none.
pub(crate) fn forget_one(tx: &mut Tx) -> Result<bool, OpError> {
    let Some(session) = tx.slots.ended.take_due() else { return Ok(false) };
    for row in of_session(tx, session)? {
        tx.delete(Key::Slot(session, row.slot));
    }
    Ok(true)
}

fn of_session(tx: &mut Tx, session: SessionId) -> Result<Vec<Slot>, OpError> {
    Ok(tx.list(&Scan::between(Key::Slot(session, 0), Key::Slot(session, u32::MAX)))?)
}

/// A stored reply without what is void after the session; of one that is not to `Apply` nothing.
fn outcomes(reply: &[u8]) -> Bytes {
    let Ok(full) = decode::<v1::ApplyResponse>(reply, Method::Apply) else { return Bytes::new() };
    let only_error = |result: v1::MutationResult| {
        let v1::MutationResult { error, message, .. } = result;
        v1::MutationResult { error, message, ..v1::MutationResult::default() }
    };
    let kept = v1::ApplyResponse { results: full.results.into_iter().map(only_error).collect() };
    let mut bytes = BytesMut::with_capacity(1 + kept.encoded_len());
    bytes.put_u8(Method::Apply as u8);
    kept.encode_raw(&mut bytes);
    bytes.freeze()
}

/// What is known of a request that was sent before, in sessions that are over.
#[derive(Debug)]
pub(crate) enum Earlier {
    /// It was executed, with this outcome.
    Executed(v1::ApplyResponse),
    /// It was not, and will not be; or it was sent in no other session.
    NotExecuted,
    /// What was known of one of the sessions is forgotten.
    Unknown,
}

/// What became of a request that was sent as each of `earlier`.
///
/// `InvalidArgument`: a session of them is not over, so that its request may still be executed.
pub(crate) fn outcome(tx: &mut Tx, earlier: &[RequestId]) -> Result<Earlier, OpError> {
    let mut is_known = true;
    for id in earlier {
        if tx.context.sessions.check(id.session).is_ok() {
            return Err(OpError::invalid(format!("session {} is not over", id.session.short())));
        }
        if planted(Bug::BatchExecutedTwice) {
            continue;
        }
        let row: Option<Slot> = tx.find(&Key::Slot(id.session, id.slot))?;
        if let Some(row) = row.filter(|row| row.sequence == id.sequence) {
            return decode(&row.reply, Method::Apply).map(Earlier::Executed);
        }
        is_known &= !of_session(tx, id.session)?.is_empty();
    }
    Ok(if is_known { Earlier::NotExecuted } else { Earlier::Unknown })
}
