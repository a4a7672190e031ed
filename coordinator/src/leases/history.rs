//! Which leases have ended lately. Rows that were read before the end of a lease may lack what was
//! applied under it, so whoever read them reads again; with this it does so for its own directories
//! only, and a long listing comes to an end although leases elsewhere do all the time.

use std::collections::{BTreeSet, VecDeque};

use cairn_proto::InodeId;

/// Ends remembered: those of the longest read.
const ENDED_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct History {
    /// Number of the first end that is remembered.
    oldest: u64,
    ended: VecDeque<InodeId>,
}

impl History {
    /// How many leases have ended.
    pub(super) fn generation(&self) -> u64 {
        self.oldest + self.ended.len() as u64
    }

    pub(super) fn push(&mut self, inode: InodeId) {
        if self.ended.len() >= ENDED_MAX {
            self.ended.pop_front();
            self.oldest += 1;
        }
        self.ended.push_back(inode);
    }

    /// Any lease may have ended.
    pub(super) fn forget(&mut self) {
        self.oldest = self.generation() + 1;
        self.ended.clear();
    }

    /// Whether a lease on one of `inodes` may have ended since that generation.
    pub(super) fn any_since(&self, generation: u64, inodes: impl Iterator<Item = InodeId>) -> bool {
        let Some(known) = generation.checked_sub(self.oldest) else { return true };
        let mut later = self.ended.iter().skip(usize::try_from(known).unwrap_or(usize::MAX)).peekable();
        if later.peek().is_none() {
            return false;
        }
        let inodes: BTreeSet<InodeId> = inodes.collect();
        later.any(|inode| inodes.contains(inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_which_ends_a_reader_has_missed_and_errs_towards_all() {
        let inode = |id: u64| InodeId::new(id).unwrap();
        let mut history = History::default();
        history.push(inode(1));
        let then = history.generation();
        history.push(inode(2));
        let missed = |history: &History, id| history.any_since(then, [inode(id)].into_iter());
        assert!(!missed(&history, 1));
        assert!(missed(&history, 2));
        assert!(!history.any_since(history.generation(), [inode(2)].into_iter()));
        (0..ENDED_MAX as u64 - 2).for_each(|_| history.push(inode(9)));
        assert!(!missed(&history, 1), "just remembered");
        history.push(inode(9));
        history.push(inode(9));
        assert!(missed(&history, 1), "forgotten");
        let then = history.generation();
        history.forget();
        assert!(history.any_since(then, [inode(1)].into_iter()));
        assert!(history.generation() > then);
    }
}
