//! Which inodes this client holds open, so that an unlinked file lives until its last close, and
//! what has been closed but not yet told.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cairn_proto::{InodeId, v1};
use tokio::sync::Notify;

/// Closes told in one message; the rest follows in the next.
const CLOSED_BATCH: usize = 4096;

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: HashMap<InodeId, Open>,
    closed: Vec<v1::OpenFile>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Open {
    count: usize,
    last: u64,
}

/// The opens of one session.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    state: Mutex<State>,
    pub(crate) closed: Notify,
}

impl Opens {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of the next open; each is used once.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.with(|state| {
            state.next += 1;
            state.next
        })
    }

    pub(crate) fn add(&self, inode: InodeId, sequence: u64) {
        self.with(|state| {
            let open = state.open.entry(inode).or_default();
            open.count += 1;
            open.last = open.last.max(sequence);
        });
    }

    /// The last close of an inode is told to the coordinator; it ends all opens up to that moment.
    pub(crate) fn remove(&self, inode: InodeId) {
        let last_one = self.with(|state| {
            let Some(open) = state.open.get_mut(&inode) else { return false };
            open.count -= 1;
            let last = open.last;
            if open.count > 0 {
                return false;
            }
            state.open.remove(&inode);
            state.closed.push(v1::OpenFile { inode: inode.get(), sequence: last });
            true
        });
        if last_one {
            self.closed.notify_one();
        }
    }

    /// Closes to be told.
    pub(crate) fn take_closed(&self) -> Option<v1::Closed> {
        self.with(|state| {
            let from = state.closed.len().saturating_sub(CLOSED_BATCH);
            let files = state.closed.split_off(from);
            (!files.is_empty()).then_some(v1::Closed { files })
        })
    }

    /// Everything open, for a session that goes on. Closes not yet told are implied.
    pub(crate) fn list(&self) -> Vec<v1::OpenFile> {
        self.with(|state| {
            let open = state.open.iter();
            open.map(|(inode, open)| v1::OpenFile { inode: inode.get(), sequence: open.last }).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_close_names_the_last_open() {
        let opens = Opens::default();
        let inode = InodeId::ROOT;
        let (one, two) = (opens.next_sequence(), opens.next_sequence());
        opens.add(inode, two);
        opens.add(inode, one);
        opens.remove(inode);
        assert_eq!(opens.take_closed(), None);
        assert_eq!(opens.list(), [v1::OpenFile { inode: 1, sequence: two }]);
        opens.remove(inode);
        assert_eq!(opens.take_closed().unwrap().files, [v1::OpenFile { inode: 1, sequence: two }]);
        assert_eq!(opens.take_closed(), None);
        assert!(opens.list().is_empty());
    }
}
