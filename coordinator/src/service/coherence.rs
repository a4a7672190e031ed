//! What other sessions hold write leases on is neither shown nor changed, and what they hold read leases on is not
//! changed: it is recalled first, and waited for.
//!
//! A holder gives its leases back when it has applied what it did under them. One that does not in
//! time, or has lost its stream, is fenced: its session ends, and with it whatever it has not
//! applied. A wait keeps nothing that would be lost with the call that waits.

use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ErrorKind, InodeId, SessionId};
use cairn_runtime::{clock, net};

use super::{Shared, wire};
use crate::error::OpError;
use crate::leases::{Need, Obstacles, Verdict};
use crate::{metrics, ops};

/// A wait that takes longer is logged.
const WAIT_TOLD: Duration = Duration::from_secs(5);

/// One read on behalf of a session.
pub(super) struct Look<'a> {
    shared: &'a Shared,
    pub(super) asker: Option<SessionId>,
    since: u64,
}

impl<'a> Look<'a> {
    /// Begins a read for `session` (empty: nobody's), once others hold no lease on `directory`.
    pub(super) async fn begin(
        shared: &'a Shared,
        session: &Bytes,
        directory: Option<InodeId>,
    ) -> Result<Self, OpError> {
        let asker = wire::asker(session)?;
        let leased = shared.context.leases.conflicts(asker, directory);
        if !leased.is_empty() {
            until_released(shared, asker, &leased, Need::Look).await?;
        }
        Ok(Self { shared, asker, since: shared.context.leases.generation() })
    }

    /// Whether what was read since the last call may be answered: it shows these directories, or
    /// depends on them. `false`: it has to be read again, and by now what was in the way is not.
    pub(super) async fn stands(
        &mut self,
        shown: impl Iterator<Item = InodeId> + Clone,
    ) -> Result<bool, OpError> {
        match self.shared.context.leases.verdict(self.asker, self.since, shown) {
            Verdict::Stands => return Ok(true),
            Verdict::ReadAgain => {}
            Verdict::Leased(inodes) => until_released(self.shared, self.asker, &inodes, Need::Look).await?,
        }
        self.since = self.shared.context.leases.generation();
        Ok(false)
    }
}

/// Recalls what others than `asker` hold of `inodes`, and waits until they hold nothing, or no read leases any
/// more: then write leases may be in the way of the next attempt, which knows on which of them there are any.
///
/// * Cancel-safe: what was asked back stays so, and comes or not whoever waits.
/// * `Unavailable`: the coordinator stops.
pub(super) async fn until_released(
    shared: &Shared,
    asker: Option<SessionId>,
    inodes: &[InodeId],
    need: Need,
) -> Result<(), OpError> {
    // Those who are waited for must not wait for this room.
    net::no_reply_yet();
    let mut changes = shared.context.leases.subscribe();
    let began = clock::now();
    let (mut is_told, mut were_read) = (false, false);
    let stop = shared.shutdown.requested();
    tokio::pin!(stop);
    loop {
        changes.mark_unchanged();
        let Some(obstacles) = shared.context.leases.recall(asker, inodes, need) else { return Ok(()) };
        if were_read && !obstacles.reads {
            return Ok(());
        }
        were_read = obstacles.reads;
        for (&session, &inode) in &obstacles.overdue {
            fence(shared, session, inode).await?;
        }
        if !obstacles.overdue.is_empty() {
            continue;
        }
        if began.elapsed() >= WAIT_TOLD && !is_told {
            tell(shared, asker, &obstacles);
            is_told = true;
        }
        let until_told = WAIT_TOLD.saturating_sub(began.elapsed());
        let wait = if is_told { obstacles.wait } else { obstacles.wait.min(until_told) };
        tokio::select! {
            _ = changes.changed() => {}
            () = clock::sleep(wait) => {}
            // Streams end with the server: their sessions are not to blame for what does not come.
            () = &mut stop => return Err(OpError::new(ErrorKind::Unavailable, "the coordinator is stopping")),
        }
    }
}

fn tell(shared: &Shared, asker: Option<SessionId>, obstacles: &Obstacles) {
    let asker = asker.map(SessionId::short).unwrap_or_default();
    match obstacles.holder {
        Some((session, inode)) => {
            let description = shared.context.sessions.description(session);
            tracing::warn!(asker, %session, description, %inode, "a request waits for a lease that was asked back");
        }
        None => {
            let absent = obstacles.absent;
            tracing::warn!(asker, absent, "a request waits for sessions that may hold leases to come back");
        }
    }
}

/// Ends a session that has not given a directory back.
async fn fence(shared: &Shared, session: SessionId, inode: InodeId) -> Result<(), OpError> {
    let description = shared.context.sessions.description(session);
    let job = move |tx: &mut crate::executor::Tx| {
        // It may have given it back, or applied something, while this job waited behind others.
        if !tx.context.leases.is_overdue(session, inode) {
            return Ok(false);
        }
        let ended = ops::open::end_session(tx, session, false)?;
        tx.context.leases.end(session);
        Ok(ended)
    };
    if shared.executor.run(job).await? {
        metrics::session_fenced();
        tracing::warn!(%session, description, %inode, "session ended: it did not give a lease back");
    }
    Ok(())
}
