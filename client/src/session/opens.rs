//! Which inodes this client holds open, so that an unlinked file lives until its last close, and
//! what has been closed but not yet told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::{InodeId, v1};
use cairn_runtime::clock::{self, Instant};
use tokio::sync::Notify;

/// Opens named in one message.
const OPEN_BATCH: usize = cairn_proto::limits::LIST_MAX;
/// Closes told in one message; the rest follows in the next.
const CLOSED_BATCH: usize = 4096;

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// How often everything was listed.
    lists: u64,
    open: HashMap<InodeId, Open>,
    closed: Vec<v1::OpenFile>,
    /// Open since then, and the coordinator has not said yet that it knows.
    unregistered: BTreeMap<InodeId, Instant>,
    /// A task sees to those.
    tended: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Open {
    count: usize,
    last: u64,
    /// The coordinator may know of it.
    told: bool,
    /// It surely does.
    registered: bool,
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
            open.told = true;
        });
    }

    /// Adds an open that the coordinator does not have to know of yet. `true`: it has to be told in time, and nobody
    /// was asked to see to that.
    pub(crate) fn add_unregistered(&self, inode: InodeId, sequence: u64) -> bool {
        self.with(|state| {
            let open = state.open.entry(inode).or_default();
            open.count += 1;
            open.last = open.last.max(sequence);
            if open.registered {
                return false;
            }
            state.unregistered.entry(inode).or_insert_with(clock::now);
            !std::mem::replace(&mut state.tended, true)
        })
    }

    /// The coordinator knows that the inode is open here, as long as it is.
    pub(crate) fn registered(&self, inode: InodeId) {
        self.with(|state| {
            if let Some(open) = state.open.get_mut(&inode) {
                open.registered = true;
            }
            state.unregistered.remove(&inode);
        });
    }

    /// Whether the coordinator may not know of the opens of an inode.
    pub(crate) fn is_unregistered(&self, inode: InodeId) -> bool {
        self.with(|state| state.unregistered.contains_key(&inode))
    }

    /// What has been open for `age` and is not registered.
    pub(crate) fn unregistered(&self, age: Duration) -> Vec<InodeId> {
        let now = clock::now();
        let is_due = |&(_, &since): &(&InodeId, &Instant)| since + age <= now;
        self.with(|state| state.unregistered.iter().filter(is_due).map(|(&inode, _)| inode).collect())
    }

    /// When the first one will have been open for `age`. `None`: there are none, and nobody sees to those to come.
    pub(crate) fn tend_unregistered(&self, age: Duration) -> Option<Instant> {
        self.with(|state| {
            let next = state.unregistered.values().min().map(|&since| since + age);
            state.tended = next.is_some();
            next
        })
    }

    /// The last close of an inode is told to the coordinator; it ends all opens up to that moment.
    pub(crate) fn remove(&self, inode: InodeId) {
        let last_one = self.with(|state| {
            let Some(open) = state.open.get_mut(&inode) else { return false };
            open.count -= 1;
            let Open { count, last, told, .. } = *open;
            if count > 0 {
                return false;
            }
            state.open.remove(&inode);
            state.unregistered.remove(&inode);
            if !told {
                return false;
            }
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

    /// Everything open, for a session that begins or goes on. Closes not yet told are implied.
    pub(crate) fn list(&self) -> Vec<v1::OpenFile> {
        self.with(|state| {
            state.lists += 1;
            state.open.values_mut().for_each(|open| open.told = true);
            let open = state.open.iter();
            open.map(|(inode, open)| v1::OpenFile { inode: inode.get(), sequence: open.last }).collect()
        })
    }

    /// How often everything was listed.
    pub(crate) fn lists(&self) -> u64 {
        self.with(|state| state.lists)
    }
}

/// What is open, as it is told with a hello: what goes into the hello itself, and the messages behind it.
pub(crate) fn in_pages(mut open: Vec<v1::OpenFile>) -> (Vec<v1::OpenFile>, Vec<v1::OpenFiles>) {
    let rest = open.split_off(open.len().min(OPEN_BATCH));
    let pages = rest.chunks(OPEN_BATCH);
    let last = pages.len().saturating_sub(1);
    let page = |(at, files): (usize, &[_])| v1::OpenFiles { files: files.to_vec(), more: at < last };
    (open, pages.enumerate().map(page).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_closed_before_it_is_registered_is_told_to_nobody() {
        let opens = Opens::default();
        let (one, two) = (InodeId::ROOT, InodeId::new(2).unwrap());
        let age = Duration::from_millis(300);
        assert!(opens.add_unregistered(one, opens.next_sequence()), "nobody sees to it");
        assert!(!opens.add_unregistered(two, opens.next_sequence()));
        opens.remove(one);
        assert_eq!(opens.take_closed(), None);
        assert!(!opens.is_unregistered(one) && opens.is_unregistered(two));
        assert_eq!(opens.unregistered(age), []);
        assert_eq!(opens.tend_unregistered(age), Some(clock::now() + age));
        clock::sleep(age).await;
        assert_eq!(opens.unregistered(age), [two]);
        opens.registered(two);
        assert_eq!(opens.tend_unregistered(age), None);
        assert!(opens.add_unregistered(one, opens.next_sequence()), "nobody sees to it any more");
    }

    #[test]
    fn what_the_coordinator_may_know_of_is_told_closed() {
        let opens = Opens::default();
        let inode = InodeId::ROOT;
        // Registered while it was open.
        opens.add_unregistered(inode, opens.next_sequence());
        opens.add(inode, opens.next_sequence());
        assert!(opens.is_unregistered(inode), "it is on its way");
        opens.registered(inode);
        opens.remove(inode);
        assert!(!opens.add_unregistered(inode, opens.next_sequence()), "the coordinator knows already");
        opens.remove(inode);
        opens.remove(inode);
        assert_eq!(opens.take_closed().unwrap().files, [v1::OpenFile { inode: 1, sequence: 3 }]);
        // Named in the list of a session that goes on.
        opens.add_unregistered(inode, opens.next_sequence());
        assert_eq!(opens.list(), [v1::OpenFile { inode: 1, sequence: 4 }]);
        assert!(opens.is_unregistered(inode));
        opens.remove(inode);
        assert_eq!(opens.take_closed().unwrap().files, [v1::OpenFile { inode: 1, sequence: 4 }]);
    }

    #[test]
    fn many_opens_are_told_in_several_messages() {
        let all = |count: usize| -> Vec<_> {
            (1..=count as u64).map(|inode| v1::OpenFile { inode, sequence: inode }).collect()
        };
        assert_eq!(in_pages(all(OPEN_BATCH)), (all(OPEN_BATCH), Vec::new()));
        let (mut first, pages) = in_pages(all(3 * OPEN_BATCH));
        assert_eq!(pages.iter().map(|page| page.more).collect::<Vec<_>>(), [true, false]);
        pages.into_iter().for_each(|page| first.extend(page.files));
        assert_eq!(first, all(3 * OPEN_BATCH));
    }

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
