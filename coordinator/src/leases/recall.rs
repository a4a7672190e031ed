//! Leases that others need: asked back over the stream of their session, once; and when to stop
//! waiting for them.
//!
//! A session that applies something is at work on giving back, and gets a lease time from there; in
//! the end its time is up in any case. Then it is *condemned*: its stream ends and its signs of life are not
//! answered any more. Only when it can not trust its leases any longer (one lease time after the last
//! answer, or as soon as it shows that its stream has ended) is it overdue, and its session may end. A session without
//! a stream may not know that, and gets the same time.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_proto::{InodeId, SessionId};
use cairn_runtime::clock;

use super::state::{Asked, Holder, Inner, Link, Stream};
use super::{Grant, Leases};
use crate::attendance::Moment;
use crate::metrics;

/// Lease times after which a lease that is asked back has to be there, whatever its session does.
const ASKED_LEASES_MAX: u32 = 6;

/// Who is waited for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Obstacles {
    /// Sessions whose time is up, each with a directory that it has not given back.
    pub(crate) overdue: BTreeMap<SessionId, InodeId>,
    /// How long it takes until the next one's time is up.
    pub(crate) wait: Duration,
    /// One of those waited for, with the first directory.
    pub(crate) holder: Option<(SessionId, InodeId)>,
    /// Sessions of an earlier reign that have not returned.
    pub(crate) absent: usize,
    /// There are read leases among it.
    pub(crate) reads: bool,
}

/// What leases are in the way of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A look: write leases.
    Look,
    /// A change: all.
    Change,
}

/// What the task of a stream has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recalls {
    /// To be asked back; either may be empty.
    Ask { leases: Vec<Grant>, reads: Vec<Grant> },
    /// The session has another stream.
    Superseded,
    /// The session is over.
    Over,
}

impl Leases {
    /// Asks back what others than `asker` hold of `inodes`. `None`: nothing is in the way.
    pub(crate) fn recall(
        &self,
        asker: Option<SessionId>,
        inodes: &[InodeId],
        need: Need,
    ) -> Option<Obstacles> {
        let mut inner = self.lock();
        let all = || inodes.iter().copied();
        let absent = inner.is_absent_other(asker);
        let is_read = need == Need::Change && !inner.reads.conflicts(asker, absent, all()).is_empty();
        if !is_read && inner.conflicts(asker, all()).is_empty() {
            return None;
        }
        let times = Times::new(self);
        let absent = inner.absent.iter().filter(|&&session| Some(session) != asker).count();
        let mut found =
            Obstacles { overdue: BTreeMap::new(), wait: self.lease, holder: None, absent, reads: is_read };
        let mut asked = 0;
        for &inode in inodes {
            let Some((session, left, is_new)) = inner.ask(inode, asker, &times) else { continue };
            asked += u64::from(is_new);
            found.holder.get_or_insert((session, inode));
            if left.is_zero() {
                found.overdue.entry(session).or_insert(inode);
            } else {
                found.wait = found.wait.min(left);
            }
        }
        if is_read && let Some(last) = inner.ask_reads(asker, inodes) {
            found.wait = found.wait.min(last.saturating_duration_since(clock::now()));
        }
        metrics::recalled(asked);
        Some(found)
    }

    /// Whether the session's time to give this directory back is up.
    pub(crate) fn is_overdue(&self, session: SessionId, inode: InodeId) -> bool {
        let inner = self.lock();
        let held = inner.held.get(&inode).filter(|held| held.session == session);
        let (asked, holder) = (held.and_then(|held| held.asked), inner.holders.get(&session));
        let times = Times::new(self);
        let left = asked.zip(holder).map(|(asked, holder)| times.left(asked, holder));
        left.is_some_and(|left| left.is_zero())
    }

    /// What a stream has to ask, at most `limit` leases at once.
    pub(crate) fn take_recalls(&self, session: SessionId, stream: &Stream, limit: usize) -> Recalls {
        let mut inner = self.lock();
        if !inner.is_present(session, stream) {
            let is_over = !inner.holders.contains_key(&session);
            return if is_over { Recalls::Over } else { Recalls::Superseded };
        }
        let Inner { holders, held, .. } = &mut *inner;
        let Some(holder) = holders.get_mut(&session).filter(|holder| !holder.condemned) else {
            return Recalls::Over;
        };
        let mut grants = Vec::with_capacity(holder.to_recall.len().min(limit));
        while grants.len() < limit
            && let Some(inode) = holder.to_recall.pop_first()
        {
            grants.extend(held.get(&inode).map(|held| Grant { inode, number: held.number }));
        }
        let reads_from = holder.reads_to_recall.len().saturating_sub(limit);
        let reads = holder.reads_to_recall.split_off(reads_from);
        if !holder.to_recall.is_empty() || !holder.reads_to_recall.is_empty() {
            holder.link.wake();
        }
        Recalls::Ask { leases: grants, reads }
    }
}

impl Inner {
    /// Asks read leases back. Returns when the last of them ends by itself.
    fn ask_reads(&mut self, asker: Option<SessionId>, inodes: &[InodeId]) -> Option<clock::Instant> {
        let (new, last) = self.reads.ask(asker, inodes);
        metrics::reads_recalled(new.len());
        for (session, grant) in new {
            if let Some(holder) = self.holders.get_mut(&session) {
                holder.reads_to_recall.push(grant);
                holder.link.wake();
            }
        }
        last
    }

    /// Asks one lease back unless that was done. Returns its session, how long that may still take, and
    /// whether it was asked just now.
    fn ask(
        &mut self,
        inode: InodeId,
        asker: Option<SessionId>,
        times: &Times,
    ) -> Option<(SessionId, Duration, bool)> {
        let held = self.held.get_mut(&inode).filter(|held| Some(held.session) != asker)?;
        let holder = self.holders.get_mut(&held.session)?;
        let is_new = held.asked.is_none();
        let asked = *held.asked.get_or_insert(Asked { first: times.now, last: times.now });
        if is_new {
            holder.to_recall.insert(inode);
            holder.link.wake();
        }
        if !holder.condemned && times.patience(asked, holder).is_zero() {
            holder.condemned = true;
            holder.link.wake();
        }
        Some((held.session, times.left(asked, holder), is_new))
    }
}

/// The time now, and what is counted by it.
struct Times {
    now: Moment,
    /// Whatever was heard before counts as heard then.
    resumed: Moment,
    lease: Duration,
}

impl Times {
    fn new(leases: &Leases) -> Self {
        let (now, resumed) = leases.attendance.look();
        Self { now, resumed, lease: leases.lease }
    }

    fn until(&self, deadline: Moment) -> Duration {
        deadline.since(self.now)
    }

    /// How long a lease that was asked back may still take while its session is well.
    fn patience(&self, asked: Asked, holder: &Holder) -> Duration {
        let idle = asked.last.max(holder.active) + self.lease;
        let at_last = idle.min(asked.first + self.lease * ASKED_LEASES_MAX);
        self.until(at_last.max(self.resumed + self.lease))
    }

    /// How long the session may still trust its leases, unless it is renewed.
    fn trust(&self, holder: &Holder) -> Duration {
        self.until(holder.renewed.max(self.resumed) + self.lease)
    }

    /// How long a lease that was asked back may still take.
    fn left(&self, asked: Asked, holder: &Holder) -> Duration {
        match holder.link {
            Link::Live(_) if !holder.condemned && !self.patience(asked, holder).is_zero() => {
                self.patience(asked, holder)
            }
            Link::Live(_) | Link::Broken => self.trust(holder),
        }
    }
}
