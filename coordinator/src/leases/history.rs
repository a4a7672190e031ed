//! What has happened to which inodes lately, in order.
//!
//! Rows that were read before the end of a write lease may lack what was applied under it, so whoever read
//! them reads again; with this it does so for its own directories only, and a long listing comes to an
//! end although leases elsewhere do all the time. Rows that were read before a change are covered by no read lease.

use std::collections::{HashSet, VecDeque};

use cairn_proto::InodeId;

/// Events remembered: those of the longest read.
const EVENTS_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct History {
    /// Number of the first event that is remembered.
    oldest: u64,
    events: VecDeque<InodeId>,
}

impl History {
    /// How many events there were.
    pub(super) fn generation(&self) -> u64 {
        self.oldest + self.events.len() as u64
    }

    pub(super) fn push(&mut self, inode: InodeId) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.oldest += 1;
        }
        self.events.push_back(inode);
    }

    /// Anything may have happened to any.
    pub(super) fn forget(&mut self) {
        self.oldest = self.generation() + 1;
        self.events.clear();
    }

    /// Those to which something has happened since that generation. `None`: it may be any.
    pub(super) fn since(&self, generation: u64) -> Option<HashSet<InodeId>> {
        let known = generation.checked_sub(self.oldest)?;
        Some(self.events.iter().skip(usize::try_from(known).unwrap_or(usize::MAX)).copied().collect())
    }

    /// Whether something may have happened to one of `inodes` since that generation.
    pub(super) fn any_since(&self, generation: u64, mut inodes: impl Iterator<Item = InodeId>) -> bool {
        match self.since(generation) {
            Some(later) => !later.is_empty() && inodes.any(|inode| later.contains(&inode)),
            None => true,
        }
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
        (0..EVENTS_MAX as u64 - 2).for_each(|_| history.push(inode(9)));
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
