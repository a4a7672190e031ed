//! What is known of leases and of the sessions that hold them, and the changes that it goes through.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cairn_proto::{InodeId, SessionId};
use tokio::sync::Notify;

use super::cooling::Cooling;
use super::history::History;
use super::reads::Reads;
use super::{Grant, LEASES_OF_SESSION_MAX};
use crate::attendance::Moment;

/// Leases of all sessions: about 100 MiB.
const LEASES_MAX: usize = 1 << 20;

/// A lease.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) session: SessionId,
    pub(super) number: u64,
    pub(super) asked: Option<Asked>,
}

/// Since when somebody else needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) first: Moment,
    /// Over the present stream.
    pub(super) last: Moment,
}

/// One session with its leases.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) leases: BTreeSet<InodeId>,
    /// Asked back, and not told to the stream yet.
    pub(super) to_recall: BTreeSet<InodeId>,
    /// The same of read leases.
    pub(super) reads_to_recall: Vec<Grant>,
    pub(super) link: Link,
    /// When it last applied something.
    pub(super) active: Moment,
    /// When the last sign of life came that was, or may be, answered. It trusts its leases for one lease time from
    /// some moment before this.
    pub(super) renewed: Moment,
    /// It has not given back in time: it is not renewed any more, and ends when it can not trust its leases any longer.
    pub(super) condemned: bool,
}

/// The way to a session.
#[derive(Debug)]
pub(super) enum Link {
    Live(Stream),
    /// The stream ended without goodbye.
    Broken,
}

/// The present stream of a session, as its task knows it.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(super) number: u64,
    /// There are recalls, or the stream is to end.
    pub(crate) wake: Arc<Notify>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) held: HashMap<InodeId, Held>,
    pub(super) holders: HashMap<SessionId, Holder>,
    pub(super) absent: BTreeSet<SessionId>,
    pub(super) cooling: Cooling,
    pub(super) ended: History,
    pub(super) reads: Reads,
    pub(super) last_grant: u64,
    pub(super) last_stream: u64,
}

impl Inner {
    pub(super) fn conflicts(
        &self,
        asker: Option<SessionId>,
        inodes: impl IntoIterator<Item = InodeId>,
    ) -> Vec<InodeId> {
        let is_absent = self.is_absent_other(asker);
        let own = asker.and_then(|asker| self.holders.get(&asker)).map_or(0, |holder| holder.leases.len());
        if !is_absent && own == self.held.len() {
            return Vec::new();
        }
        // What somebody is known to hold, nobody who is absent does.
        let is_others = |inode: &InodeId| match self.held.get(inode) {
            Some(held) => Some(held.session) != asker,
            None => is_absent,
        };
        inodes.into_iter().filter(is_others).collect()
    }

    pub(super) fn is_absent_other(&self, asker: Option<SessionId>) -> bool {
        self.absent.iter().any(|&session| Some(session) != asker)
    }

    pub(super) fn is_present(&self, session: SessionId, stream: &Stream) -> bool {
        let holder = self.holders.get(&session);
        holder.is_some_and(|holder| matches!(&holder.link, Link::Live(live) if live.number == stream.number))
    }

    pub(super) fn is_connected(&self, session: SessionId) -> bool {
        let holder = self.holders.get(&session);
        holder.is_some_and(|holder| matches!(&holder.link, Link::Live(_)))
    }

    pub(super) fn has_room(&self, session: SessionId) -> bool {
        let of_session = self.holders.get(&session).map_or(0, |holder| holder.leases.len());
        of_session < LEASES_OF_SESSION_MAX && self.held.len() < LEASES_MAX
    }

    /// Whether all of `leases` can be held, whoever holds them.
    pub(super) fn have_room_for(&self, leases: &[InodeId]) -> bool {
        let new = leases.iter().filter(|inode| !self.held.contains_key(inode)).count();
        self.held.len() + new <= LEASES_MAX
    }

    pub(super) fn holder(&mut self, session: SessionId, now: Moment) -> &mut Holder {
        self.holders.entry(session).or_insert_with(|| Holder {
            leases: BTreeSet::new(),
            to_recall: BTreeSet::new(),
            reads_to_recall: Vec::new(),
            link: Link::Broken,
            active: now,
            renewed: now,
            condemned: false,
        })
    }

    pub(super) fn insert(&mut self, session: SessionId, inode: InodeId, now: Moment) -> Grant {
        self.last_grant += 1;
        let number = self.last_grant;
        self.held.insert(inode, Held { session, number, asked: None });
        self.holder(session, now).leases.insert(inode);
        Grant { inode, number }
    }

    /// Takes a lease away from its holder; returns whether somebody had asked for it.
    pub(super) fn take(&mut self, inode: InodeId) -> bool {
        let Some(held) = self.held.remove(&inode) else { return false };
        if let Some(holder) = self.holders.get_mut(&held.session) {
            holder.leases.remove(&inode);
            holder.to_recall.remove(&inode);
        }
        self.ended.push(inode);
        held.asked.is_some()
    }

    /// As [`Self::take`], of a directory that stays: when it was asked for, it is fought over.
    pub(super) fn end_lease(&mut self, inode: InodeId) {
        if self.take(inode) {
            self.cooling.insert(inode);
        }
    }

    /// A session that comes back says that it holds this one.
    pub(super) fn keep(&mut self, session: SessionId, inode: InodeId, now: Moment) {
        match self.held.get_mut(&inode) {
            Some(held) if held.session == session => {
                let Some(asked) = &mut held.asked else { return };
                asked.last = now;
                self.holder(session, now).to_recall.insert(inode);
            }
            Some(held) => {
                let other = held.session;
                tracing::warn!(%session, %inode, %other, "a lease that comes back is another session's");
            }
            None => drop(self.insert(session, inode, now)),
        }
    }

    pub(super) fn attach(&mut self, session: SessionId, now: Moment) -> Stream {
        self.last_stream += 1;
        let stream = Stream { number: self.last_stream, wake: Arc::default() };
        let holder = self.holder(session, now);
        holder.renewed = now;
        let before = std::mem::replace(&mut holder.link, Link::Live(stream.clone()));
        before.wake();
        // With its stream a session loses its read leases.
        holder.reads_to_recall.clear();
        if !holder.to_recall.is_empty() {
            stream.wake.notify_one();
        }
        self.reads.forgotten_by(session);
        stream
    }
}

impl Link {
    /// Has the task of the stream look what there is to do.
    pub(super) fn wake(&self) {
        if let Self::Live(stream) = self {
            stream.wake.notify_one();
        }
    }
}
