//! Leases. Read leases ([`reads`]) let a session show what it knows without asking, for a short time. Write leases
//! on directories: which session alone may see and change one, and may do so locally.
//!
//! ```text
//! free ──grant──▶ held ──recall──▶ asked back ──given back, session ended, directory gone──▶ free
//!                                   ▲      │
//!                                   └──────┘ the session's stream is a new one: asked again
//! ```
//!
//! The executor grants, so a grant is atomic with respect to mutations. Everybody else's reads and
//! mutations are checked against the leases of other sessions; what is in the way is recalled over
//! the stream of its session, waited for, and ended with the session when it does not come
//! ([`recall`]). After a restart nothing is known: until a session recorded by an earlier reign has
//! returned or expired it is *absent*, and may hold whatever nobody else is known to hold.
//!
//! One mutex guards it all, held for map look-ups only. While there are neither write leases nor absent sessions only
//! listings that want read leases and the executor, once a job that changes inodes and once a group, take it.

mod cooling;
mod history;
mod reads;
mod recall;
mod state;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{InodeId, SessionId};
use tokio::sync::watch;

use crate::attendance::Attendance;
use crate::error::OpError;
pub(crate) use reads::{READ_LEASE, ReadGrant};
pub(crate) use recall::{Need, Obstacles, Recalls};
pub(crate) use state::Stream;
use state::{Held, Inner, Link};

/// Leases that one session may hold; what a mount changes at a time is far less.
pub(crate) const LEASES_OF_SESSION_MAX: usize = 65_536;

/// A lease as it is told to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) inode: InodeId,
    /// Rises with every grant of a reign.
    pub(crate) number: u64,
}

/// What became of a wish for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Granted {
    New(Grant),
    /// The session has held it all along.
    Already(Grant),
}

impl Granted {
    pub(crate) fn grant(self) -> Grant {
        match self {
            Self::New(grant) | Self::Already(grant) => grant,
        }
    }
}

/// Whether an answer from rows may be given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Stands,
    /// Leases on what it shows have ended since; the rows may be older than that.
    ReadAgain,
    /// Others hold leases on these.
    Leased(Vec<InodeId>),
}

/// All leases.
#[derive(Debug)]
pub(crate) struct Leases {
    inner: Mutex<Inner>,
    lease: Duration,
    attendance: Arc<Attendance>,
    /// Leases held and sessions absent: at 0 nothing can be in anybody's way.
    claims: AtomicUsize,
    /// How many leases have ended.
    generation: AtomicU64,
    changes: watch::Sender<()>,
}

impl Leases {
    /// `lease`: the lease time of sessions. `absent`: the sessions of earlier reigns.
    pub(crate) fn new(
        attendance: Arc<Attendance>,
        lease: Duration,
        absent: impl IntoIterator<Item = SessionId>,
    ) -> Self {
        let absent: BTreeSet<SessionId> = absent.into_iter().collect();
        let inner = Inner { reads: reads::Reads::new(!absent.is_empty()), absent, ..Inner::default() };
        Self {
            claims: AtomicUsize::new(inner.absent.len()),
            inner: Mutex::new(inner),
            lease,
            attendance,
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change, and wakes those who wait when a lease has ended by it.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let before = inner.ended.generation();
        let result = change(&mut inner);
        let after = inner.ended.generation();
        // In this order: who sees that nothing is claimed any more also sees that something has ended.
        self.generation.store(after, Ordering::SeqCst);
        self.claims.store(inner.held.len() + inner.absent.len(), Ordering::SeqCst);
        drop(inner);
        if before != after {
            self.changes.send_replace(());
        }
        result
    }

    /// Leases held.
    pub(crate) fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether anything can be in anybody's way.
    pub(crate) fn are_claimed(&self) -> bool {
        self.claims.load(Ordering::SeqCst) > 0
    }

    /// Changes with every lease that ends.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Those among `inodes` that others may have changed locally.
    pub(crate) fn conflicts(
        &self,
        asker: Option<SessionId>,
        inodes: impl IntoIterator<Item = InodeId>,
    ) -> Vec<InodeId> {
        if !self.are_claimed() {
            return Vec::new();
        }
        self.lock().conflicts(asker, inodes)
    }

    /// Whether an answer that shows `shown`, read after the generation was `since`, may be given.
    pub(crate) fn verdict(
        &self,
        asker: Option<SessionId>,
        since: u64,
        shown: impl Iterator<Item = InodeId> + Clone,
    ) -> Verdict {
        if !self.are_claimed() && self.generation() == since {
            return Verdict::Stands;
        }
        let inner = self.lock();
        let leased = inner.conflicts(asker, shown.clone());
        match () {
            () if !leased.is_empty() => Verdict::Leased(leased),
            () if inner.ended.any_since(since, shown) => Verdict::ReadAgain,
            () => Verdict::Stands,
        }
    }

    /// Resolves with the next change that may end a wait.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// For the executor: the session applies something, so what is asked of it may still come.
    pub(crate) fn note_activity(&self, session: SessionId) {
        if self.are_claimed()
            && let Some(holder) = self.lock().holders.get_mut(&session)
        {
            holder.active = self.attendance.now();
        }
    }

    /// For the executor: a lease on a directory that the session has changed, or will, unless others mind. Not
    /// while it is asked back or shown by others either.
    pub(crate) fn grant(&self, session: SessionId, inode: InodeId) -> Option<Granted> {
        self.change(|inner| match inner.held.get(&inode) {
            Some(held) if held.session == session && held.asked.is_none() => {
                Some(Granted::Already(Grant { inode, number: held.number }))
            }
            Some(_) => None,
            None => {
                let now = self.attendance.now();
                let absent = inner.is_absent_other(Some(session));
                let is_shown = || !inner.reads.conflicts(Some(session), absent, [inode]).is_empty();
                let minds = absent || inner.cooling.contains(inode) || is_shown();
                (!minds && inner.has_room(session)).then(|| Granted::New(inner.insert(session, inode, now)))
            }
        })
    }

    /// For the executor: a lease on a directory that the session has just made. `None`: there are too many. The
    /// session may have answered the creation long ago, so it is not refused for that.
    pub(crate) fn grant_new(&self, session: SessionId, inode: InodeId) -> Result<Option<Granted>, OpError> {
        self.change(|inner| match inner.held.get(&inode) {
            Some(held) if held.session == session => {
                Ok(Some(Granted::Already(Grant { inode, number: held.number })))
            }
            Some(_) => Err(OpError::Leased(vec![inode])),
            None => Ok(inner
                .has_room(session)
                .then(|| Granted::New(inner.insert(session, inode, self.attendance.now())))),
        })
    }

    /// For the executor: these directories are gone, or their leases were granted for nothing.
    pub(crate) fn remove(&self, inodes: &[InodeId]) {
        if !inodes.is_empty() {
            self.change(|inner| {
                for &inode in inodes {
                    inner.take(inode);
                }
            });
        }
    }

    /// The session gives leases back. A grant that is newer than the one named is not meant.
    pub(crate) fn give_back(&self, session: SessionId, stream: &Stream, grants: &[Grant]) {
        self.change(|inner| {
            // What an old stream still delivers was settled when the session came back.
            if !inner.is_present(session, stream) {
                return;
            }
            for grant in grants {
                let meant = |held: &Held| held.session == session && held.number <= grant.number;
                if inner.held.get(&grant.inode).is_some_and(meant) {
                    inner.end_lease(grant.inode);
                }
            }
        });
    }

    /// The session is over, and all its leases.
    pub(crate) fn end(&self, session: SessionId) {
        self.change(|inner| {
            if inner.absent.remove(&session) {
                inner.ended.forget();
            }
            let Some(holder) = inner.holders.remove(&session) else { return };
            for inode in holder.leases {
                inner.end_lease(inode);
            }
            holder.link.wake();
        });
    }

    /// The session shows a sign of life on this stream. `false`: its leases are being taken away, so it gets no
    /// answer that would let it trust them any longer.
    pub(crate) fn renew(&self, session: SessionId) -> bool {
        let now = self.attendance.now();
        match self.lock().holders.get_mut(&session) {
            Some(holder) if holder.condemned => false,
            Some(holder) => {
                holder.renewed = now;
                true
            }
            None => true,
        }
    }

    /// Whether the session is about to end because it has not given a lease back.
    pub(crate) fn is_condemned(&self, session: SessionId) -> bool {
        self.lock().holders.get(&session).is_some_and(|holder| holder.condemned)
    }

    /// A new session has a stream.
    pub(crate) fn attach(&self, session: SessionId) -> Stream {
        let now = self.attendance.now();
        let stream = self.change(|inner| inner.attach(session, now));
        // Its read leases are gone.
        self.changes.send_replace(());
        stream
    }

    /// A session has come back over a new stream: it holds `leases`, no others. `None`: together with those of others
    /// these are too many, so it can not go on.
    pub(crate) fn resume(&self, session: SessionId, leases: &[InodeId]) -> Option<Stream> {
        let now = self.attendance.now();
        let stream = self.change(|inner| {
            if !inner.have_room_for(leases) {
                return None;
            }
            let kept: BTreeSet<InodeId> = leases.iter().copied().collect();
            let had = inner.holders.get(&session).map(|holder| holder.leases.clone());
            for &inode in had.unwrap_or_default().difference(&kept) {
                inner.end_lease(inode);
            }
            kept.iter().for_each(|&inode| inner.keep(session, inode, now));
            if inner.absent.remove(&session) {
                // It may have applied and given back anything since the restart.
                inner.ended.forget();
            }
            Some(inner.attach(session, now))
        });
        self.changes.send_replace(());
        stream
    }

    /// A stream has ended.
    pub(crate) fn detach(&self, session: SessionId, stream: &Stream) {
        self.change(|inner| {
            if inner.is_present(session, stream)
                && let Some(holder) = inner.holders.get_mut(&session)
            {
                holder.link = Link::Broken;
            }
        });
        // Its leases are waited for less patiently now.
        self.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests;
