//! Sessions and the files they hold open: beginnings and ends.

use cairn_proto::{InodeId, SessionId};

use crate::error::OpError;
use crate::executor::Tx;
use crate::slots::ended;
use crate::store::{Key, Session};

use super::remove::{self, release_step};

/// Records a new session. Unless `returned`, it may hold anything open until it has said what.
pub(crate) fn begin_session(
    tx: &mut Tx,
    id: SessionId,
    description: String,
    returned: bool,
) -> Result<(), OpError> {
    tx.context.sessions.open(id, description.clone(), returned)?;
    tx.put(Session { id, description, opened_ns: tx.now_ns() });
    Ok(())
}

/// Ends a session and what hangs on it: replies, and orphans that nobody else holds. With
/// `only_overdue` it goes on if it has shown itself meanwhile, and its orphans stay for a while. Returns whether it ended.
pub(crate) fn end_session(tx: &mut Tx, id: SessionId, only_overdue: bool) -> Result<bool, OpError> {
    let Some(orphans) = tx.context.sessions.end(id, only_overdue) else { return Ok(false) };
    tx.context.leases.end(id);
    tx.granted.end(id);
    tx.delete(Key::Session(id));
    ended::end(tx, id)?;
    release(tx, id, &orphans)?;
    Ok(true)
}

/// A session holds these open. Those that have lost their last name, and are still there, live for it, too.
pub(crate) fn hold_orphans(tx: &mut Tx, session: SessionId, inodes: &[InodeId]) -> Result<(), OpError> {
    tx.context.sessions.check(session)?;
    inodes.iter().try_for_each(|&inode| remove::hold(tx, inode, session))
}

/// A session has closed these orphans. What does not fit one job is done step by step; should the coordinator
/// stop before, the session says again what it holds, or is no more.
pub(crate) fn release(tx: &mut Tx, session: SessionId, orphans: &[InodeId]) -> Result<(), OpError> {
    tx.steps.released.extend(orphans.iter().map(|&inode| (inode, session)));
    release_step(tx).map(|_| ())
}
