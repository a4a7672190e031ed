//! What is left to be done step by step: hints to rows that say so durably.
//!
//! A hint too many costs a look at its row. One too few would leave its row until the next start, so what a group
//! has done is remembered until that is committed.

use std::collections::{BTreeSet, HashSet, VecDeque};

use cairn_proto::{InodeId, SessionId};

use crate::sessions::NOBODY;
use crate::store::Orphan;

/// Work that goes on in steps.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// Inodes without names whose extents are still to be removed.
    pub(crate) reap: BTreeSet<InodeId>,
    /// Orphans whose holders have closed them, or are no more.
    pub(crate) released: VecDeque<(InodeId, SessionId)>,
    /// A file whose dead extents are removed before those of others: somebody waits for it.
    pub(crate) first: Option<InodeId>,
    reaped_by_group: Vec<InodeId>,
    released_by_group: Vec<(InodeId, SessionId)>,
}

impl Steps {
    /// What an earlier reign has left; `sessions` may come back.
    pub(crate) fn of(orphans: &[Orphan], sessions: &HashSet<SessionId>) -> Self {
        let nobodys = orphans.iter().filter(|row| row.session == NOBODY);
        let left = orphans.iter().filter(|row| row.session != NOBODY && !sessions.contains(&row.session));
        Self {
            reap: nobodys.map(|row| row.inode).collect(),
            released: left.map(|row| (row.inode, row.session)).collect(),
            ..Self::default()
        }
    }

    /// An inode is gone with this group.
    pub(crate) fn reaped(&mut self, inode: InodeId) {
        if self.reap.remove(&inode) {
            self.reaped_by_group.push(inode);
        }
    }

    /// The first of those released is dealt with in this group.
    pub(crate) fn next_released(&mut self) {
        self.released_by_group.extend(self.released.pop_front());
    }

    /// How much the group has done so far.
    pub(super) fn mark(&self) -> (usize, usize) {
        (self.reaped_by_group.len(), self.released_by_group.len())
    }

    /// What was done since `mark` has come to nothing; it is tried again after the rest.
    pub(super) fn take_back(&mut self, (reaped, released): (usize, usize)) {
        self.reap.extend(self.reaped_by_group.drain(reaped..));
        self.released.extend(self.released_by_group.drain(released..));
    }

    /// The group is committed.
    pub(super) fn keep(&mut self) {
        self.reaped_by_group.clear();
        self.released_by_group.clear();
    }
}
