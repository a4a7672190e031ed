//! Read leases: what a session may show without asking, for [`READ_LEASE`] from its request on.
//!
//! They come with a listing, for the directory and what its entries name, and end by themselves, so a holder
//! that is gone holds nobody up for longer than that. Whoever changes one of these inodes has it recalled
//! first. A change is known here from its execution on, before it is committed: rows that were read
//! before are covered by no lease.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use cairn_proto::{InodeId, SessionId};
use cairn_runtime::clock::{self, Instant};

use super::cooling::Cooling;
use super::history::History;
use super::{Grant, Leases};

/// How long a read lease lasts. Clients trust them for a shorter time, counted from when they asked.
pub(crate) const READ_LEASE: Duration = Duration::from_secs(2);
/// Read leases of all sessions: about 30 MiB.
const READS_MAX: usize = 262_144;

/// So many of the newest grants are looked at for one that a new one replaces.
const LAST_LOOKED_AT: usize = 64;

/// A read lease.
#[derive(Debug)]
struct Held {
    session: SessionId,
    number: u64,
    until: Instant,
    asked: bool,
}

/// What came with one listing.
#[derive(Debug)]
struct Granted {
    until: Instant,
    session: SessionId,
    number: u64,
    inodes: Vec<InodeId>,
}

/// All read leases.
#[derive(Debug, Default)]
pub(super) struct Reads {
    by_inode: HashMap<InodeId, Vec<Held>>,
    count: usize,
    /// In the order in which they end.
    granted: VecDeque<Granted>,
    changed: History,
    /// Changes of groups that are committed.
    committed: u64,
    fought_over: Cooling,
    /// Sessions of an earlier reign may trust leases until then.
    unknown_until: Option<Instant>,
}

impl Reads {
    /// `unknown`: there were sessions before.
    pub(super) fn new(unknown: bool) -> Self {
        Self { unknown_until: unknown.then(|| clock::now() + READ_LEASE), ..Self::default() }
    }

    fn insert(&mut self, session: SessionId, number: u64, until: Instant, inode: InodeId) {
        let holders = self.by_inode.entry(inode).or_default();
        let before = holders.len();
        holders.retain(|held| held.session != session);
        holders.push(Held { session, number, until, asked: false });
        self.count = self.count + holders.len() - before;
    }

    fn remove(&mut self, inode: InodeId, gone: impl Fn(&Held) -> bool) {
        let Some(holders) = self.by_inode.get_mut(&inode) else { return };
        let before = holders.len();
        holders.retain(|held| !gone(held));
        self.count -= before - holders.len();
        if holders.is_empty() {
            self.by_inode.remove(&inode);
        }
    }

    /// Ends what `session` was granted last with a listing of `directory`, as far as that is among the newest
    /// grants: its holder shows nothing by it any more, and older ones end soon by themselves.
    fn drop_last(&mut self, session: SessionId, directory: InodeId) {
        let is_it =
            |granted: &Granted| granted.session == session && granted.inodes.first() == Some(&directory);
        let looked_at = self.granted.len().saturating_sub(LAST_LOOKED_AT);
        let Some(at) = self.granted.range(looked_at..).rposition(is_it) else { return };
        if let Some(granted) = self.granted.remove(looked_at + at) {
            let is_it = |held: &Held| held.session == session && held.number == granted.number;
            granted.inodes.into_iter().for_each(|inode| self.remove(inode, is_it));
        }
    }

    fn drop_ended(&mut self, now: Instant) {
        while let Some(granted) = self.granted.pop_front_if(|granted| granted.until <= now) {
            let Granted { session, number, .. } = granted;
            let is_it = |held: &Held| held.session == session && held.number == number;
            granted.inodes.into_iter().for_each(|inode| self.remove(inode, is_it));
        }
    }

    /// Those among `inodes` that others than `asker` may show without asking.
    pub(super) fn conflicts(
        &self,
        asker: Option<SessionId>,
        absent: bool,
        inodes: impl IntoIterator<Item = InodeId>,
    ) -> Vec<InodeId> {
        let now = clock::now();
        let unknown = absent && self.unknown_until.is_some_and(|until| now < until);
        let is_others = |inode: &InodeId| {
            let mut held = self.by_inode.get(inode).into_iter().flatten();
            unknown || held.any(|held| Some(held.session) != asker && now < held.until)
        };
        inodes.into_iter().filter(is_others).collect()
    }

    /// Asks these back. Returns those that were not asked for before, and when the last of all ends.
    pub(super) fn ask(
        &mut self,
        asker: Option<SessionId>,
        inodes: &[InodeId],
    ) -> (Vec<(SessionId, Grant)>, Option<Instant>) {
        let now = clock::now();
        let (mut new, mut last) = (Vec::new(), self.unknown_until.filter(|&until| now < until));
        for &inode in inodes {
            for held in self.by_inode.get_mut(&inode).into_iter().flatten() {
                if Some(held.session) == asker || held.until <= now {
                    continue;
                }
                last = last.max(Some(held.until));
                if !std::mem::replace(&mut held.asked, true) {
                    new.push((held.session, Grant { inode, number: held.number }));
                }
            }
            self.fought_over.insert(inode);
        }
        (new, last)
    }

    pub(super) fn give_back(&mut self, session: SessionId, grants: &[Grant]) {
        for grant in grants {
            self.remove(grant.inode, |held| held.session == session && held.number <= grant.number);
        }
    }

    /// The session has forgotten what it knew.
    pub(super) fn forgotten_by(&mut self, session: SessionId) {
        let theirs: Vec<_> = self.granted.iter().filter(|granted| granted.session == session).collect();
        let inodes: Vec<_> = theirs.into_iter().flat_map(|granted| granted.inodes.iter().copied()).collect();
        inodes.into_iter().for_each(|inode| self.remove(inode, |held| held.session == session));
        self.granted.retain(|granted| granted.session != session);
    }
}

/// Leases that were granted with a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadGrant {
    pub(crate) number: u64,
    /// The entries that it does not cover.
    pub(crate) without: Vec<usize>,
}

impl Leases {
    /// Read leases held.
    pub(crate) fn reads_len(&self) -> usize {
        let mut inner = self.lock();
        inner.reads.drop_ended(clock::now());
        inner.reads.count
    }

    /// To be taken before rows are read that a read lease shall cover: what has surely been committed.
    pub(crate) fn committed(&self) -> u64 {
        self.lock().reads.committed
    }

    /// A session is about to be granted leases with another part of a directory, and gives up those with the
    /// part before.
    pub(crate) fn drop_reads_of_part(&self, session: SessionId, directory: InodeId) {
        self.lock().reads.drop_last(session, directory);
        self.changes.send_replace(());
    }

    /// Read leases on a directory and on what its entries name, as they were read after `committed`. `None`:
    /// the directory is being changed, or others mind.
    pub(crate) fn grant_reads(
        &self,
        session: SessionId,
        directory: InodeId,
        entries: &[InodeId],
        committed: u64,
    ) -> Option<ReadGrant> {
        let mut inner = self.lock();
        let now = clock::now();
        inner.reads.drop_ended(now);
        if inner.is_absent_other(Some(session))
            || !inner.is_connected(session)
            || inner.reads.count + entries.len() >= READS_MAX
        {
            return None;
        }
        let changed = inner.reads.changed.since(committed)?;
        let refused = |inode: InodeId| {
            changed.contains(&inode)
                || inner.held.get(&inode).is_some_and(|held| held.session != session)
                || inner.reads.fought_over.contains(inode)
        };
        if refused(directory) {
            return None;
        }
        let without: Vec<usize> = (0..entries.len()).filter(|&at| refused(entries[at])).collect();
        let refused: HashSet<usize> = without.iter().copied().collect();
        inner.last_grant += 1;
        let (number, until) = (inner.last_grant, now + READ_LEASE);
        let mut inodes = Vec::with_capacity(entries.len() + 1);
        inodes.push(directory);
        inodes.extend(entries.iter().enumerate().filter(|(at, _)| !refused.contains(at)).map(|(_, &id)| id));
        for &inode in &inodes {
            inner.reads.insert(session, number, until, inode);
        }
        inner.reads.granted.push_back(Granted { until, session, number, inodes });
        Some(ReadGrant { number, without })
    }

    /// For the executor: a job has changed these inodes. Those that others may show without asking are
    /// in its way.
    pub(crate) fn changing(&self, asker: Option<SessionId>, inodes: &[InodeId]) -> Vec<InodeId> {
        let mut inner = self.lock();
        inodes.iter().for_each(|&inode| inner.reads.changed.push(inode));
        let absent = inner.is_absent_other(asker);
        inner.reads.conflicts(asker, absent, inodes.iter().copied())
    }

    /// For the executor: everything that was changed is committed, or never will be.
    pub(crate) fn group_ended(&self) {
        let mut inner = self.lock();
        inner.reads.committed = inner.reads.changed.generation();
    }

    /// The session has forgotten all that it might have shown.
    pub(crate) fn forget_reads(&self, session: SessionId) {
        self.lock().reads.forgotten_by(session);
        self.changes.send_replace(());
    }

    /// The session gives read leases back.
    pub(crate) fn give_back_reads(&self, session: SessionId, grants: &[Grant]) {
        self.lock().reads.give_back(session, grants);
        self.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests;
