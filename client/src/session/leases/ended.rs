//! Write leases that were given back over this connection. An answer that was on its way meanwhile may name them
//! once more; such a grant is void.

use std::collections::{BTreeSet, HashMap};

use cairn_proto::InodeId;

/// Leases remembered; of more the oldest grants are forgotten.
const ENDED_MAX: usize = 65_536;

/// The newest grant of each inode that was given back.
#[derive(Debug, Default)]
pub(super) struct Ended {
    newest: HashMap<InodeId, u64>,
    /// The same, oldest grant first.
    by_grant: BTreeSet<(u64, InodeId)>,
    /// Grants up to this number may have been given back and forgotten.
    forgotten: u64,
}

impl Ended {
    pub(super) fn insert(&mut self, inode: InodeId, grant: u64) {
        match self.newest.get(&inode) {
            Some(&newest) if newest >= grant => return,
            Some(&newest) => drop(self.by_grant.remove(&(newest, inode))),
            None => {}
        }
        self.newest.insert(inode, grant);
        self.by_grant.insert((grant, inode));
        if self.newest.len() > ENDED_MAX
            && let Some((oldest, inode)) = self.by_grant.pop_first()
        {
            self.newest.remove(&inode);
            self.forgotten = self.forgotten.max(oldest);
        }
    }

    /// Whether this grant of an inode was surely given back.
    pub(super) fn contains(&self, inode: InodeId, grant: u64) -> bool {
        self.newest.get(&inode).is_some_and(|&newest| newest >= grant)
    }

    /// Whether this grant is so old that it may have been given back and forgotten.
    pub(super) fn may_contain(&self, grant: u64) -> bool {
        grant <= self.forgotten
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(id: usize) -> InodeId {
        InodeId::new(id as u64).unwrap()
    }

    #[test]
    fn the_oldest_grants_are_forgotten_and_what_is_forgotten_counts_as_given_back() {
        let mut ended = Ended::default();
        let newest = 1_000_000;
        // The lowest inode has the newest grant.
        ended.insert(inode(1), newest);
        (2..=ENDED_MAX + 1).for_each(|id| ended.insert(inode(id), id as u64));
        assert!(ended.contains(inode(1), newest));
        assert!(!ended.may_contain(newest));
        assert!(!ended.contains(inode(2), 2) && ended.may_contain(2), "the oldest grant");
        assert!(ended.contains(inode(3), 3) && !ended.may_contain(3));
        assert_eq!((ended.newest.len(), ended.by_grant.len()), (ENDED_MAX, ENDED_MAX));
    }

    #[test]
    fn an_older_grant_of_the_same_inode_changes_nothing() {
        let mut ended = Ended::default();
        ended.insert(inode(1), 5);
        ended.insert(inode(1), 3);
        ended.insert(inode(1), 7);
        assert!(ended.contains(inode(1), 7) && !ended.contains(inode(1), 8));
        assert_eq!((ended.newest.len(), ended.by_grant.len()), (1, 1));
    }
}
