//! Pages of large directories as they were sent, so that the next listing neither reads nor encodes
//! the same rows again: ten thousand of them take the store a few milliseconds.
//!
//! A page holds for one version of its directory. Every change of an entry raises the version in the
//! same commit, and versions never go back while a coordinator lives, so a page is exact when the
//! directory still has the version that the page was read with. Who asks reads the directory's row
//! first, as for any other request.
//!
//! The first page of a directory that has changed is made anew once the directory is quiet, since who fills a directory
//! often lists it next.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::InodeId;
use cairn_runtime::clock::{self, Instant};

use crate::generations::{Generations, Weigh};

/// A directory without changes for so long is quiet.
const QUIET_TIME: Duration = Duration::from_millis(100);
/// Directories that are waited for at once.
const CHANGING_MAX: usize = 256;

/// Which page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PageKey {
    pub(crate) directory: InodeId,
    /// The cookie that it begins behind.
    pub(crate) after: u64,
    /// Entries that were asked for at most.
    pub(crate) limit: usize,
}

/// A page of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Of the directory, in the state that the entries were read from.
    pub(crate) version: u64,
    /// Entries in the form of the wire.
    pub(crate) entries: Bytes,
    /// Nothing follows.
    pub(crate) end: bool,
}

impl Weigh for PageKey {
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl Weigh for Listed {
    fn heap_bytes(&self) -> usize {
        self.entries.len()
    }
}

#[derive(Debug)]
struct State {
    pages: Generations<PageKey, Listed>,
    /// Directories that somebody waits for, with their last change.
    changing: HashMap<InodeId, Instant>,
}

/// The pages that were sent last.
#[derive(Debug)]
pub(crate) struct Listings(Mutex<State>);

impl Listings {
    /// Of the names of a million entries it takes about 16 MiB.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Mutex::new(State { pages: Generations::new(bytes), changing: HashMap::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries of a directory have changed. `true`: the caller shall wait with [`Self::until_quiet`].
    pub(crate) fn changed(&self, directory: InodeId) -> bool {
        let mut state = self.lock();
        let is_new = !state.changing.contains_key(&directory);
        if is_new && state.changing.len() >= CHANGING_MAX {
            return false;
        }
        state.changing.insert(directory, clock::now());
        is_new
    }

    /// How long to wait until a directory may be quiet; `None`: it is.
    pub(crate) fn until_quiet(&self, directory: InodeId) -> Option<Duration> {
        let mut state = self.lock();
        let changed = state.changing.get(&directory)?;
        let left = QUIET_TIME.saturating_sub(changed.elapsed());
        if left.is_zero() {
            state.changing.remove(&directory);
            return None;
        }
        Some(left)
    }

    /// A page of a directory that has this version now.
    pub(crate) fn get(&self, key: &PageKey, version: u64) -> Option<Listed> {
        let mut state = self.lock();
        // One of another version is of no use to anybody who comes later.
        if state.pages.get(key)?.version != version {
            state.pages.remove(key);
            return None;
        }
        state.pages.get(key).cloned()
    }

    /// Keeps a page.
    pub(crate) fn keep(&self, key: PageKey, page: Listed) {
        let mut state = self.lock();
        // Somebody slower may bring what was read earlier.
        if state.pages.get(&key).is_none_or(|kept| kept.version <= page.version) {
            state.pages.insert(key, page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(directory: u64, after: u64) -> PageKey {
        PageKey { directory: InodeId::new(directory).unwrap(), after, limit: 1000 }
    }

    fn page(version: u64, bytes: usize) -> Listed {
        Listed { version, entries: vec![7; bytes].into(), end: true }
    }

    const BYTES: usize = 32 << 20;

    fn kept(listings: &Listings) -> usize {
        listings.lock().pages.bytes()
    }

    #[test]
    fn a_page_is_given_for_its_own_version_alone() {
        let listings = Listings::new(BYTES);
        listings.keep(key(2, 0), page(5, 10));
        assert_eq!(listings.get(&key(2, 0), 5), Some(page(5, 10)));
        assert_eq!(listings.get(&key(2, 16), 5), None);
        assert_eq!(listings.get(&key(3, 0), 5), None);
        assert_eq!(listings.get(&PageKey { limit: 999, ..key(2, 0) }, 5), None);
        assert_eq!(listings.get(&key(2, 0), 6), None);
        assert_eq!(kept(&listings), 0, "what is outdated does not stay");
        listings.keep(key(2, 0), page(7, 10));
        listings.keep(key(2, 0), page(6, 20));
        assert_eq!(listings.get(&key(2, 0), 7), Some(page(7, 10)), "a late page replaces no newer one");
    }

    #[tokio::test(start_paused = true)]
    async fn one_waits_for_each_directory_until_it_is_quiet() {
        let listings = Listings::new(BYTES);
        let [one, two] = [1, 2].map(|id| InodeId::new(id).unwrap());
        assert!(listings.changed(one));
        assert!(listings.changed(two), "each has its own");
        clock::sleep(QUIET_TIME / 2).await;
        assert!(!listings.changed(one), "somebody waits already");
        clock::sleep(QUIET_TIME / 2).await;
        assert_eq!(listings.until_quiet(two), None);
        assert_eq!(listings.until_quiet(one), Some(QUIET_TIME / 2));
        clock::sleep(QUIET_TIME / 2).await;
        assert_eq!(listings.until_quiet(one), None);
        assert!(listings.changed(one));
        for id in 2..CHANGING_MAX as u64 + 1 {
            assert!(listings.changed(InodeId::new(id).unwrap()));
        }
        assert!(!listings.changed(InodeId::new(9999).unwrap()), "nobody waits for any number");
        assert!(!listings.changed(one));
    }

    #[test]
    fn what_is_kept_stays_within_its_bound() {
        let listings = Listings::new(BYTES);
        for round in 0..300u64 {
            let size = (round as usize * 7919 * 131) % (2 << 20);
            listings.keep(key(round % 40 + 1, round % 3), page(round, size));
            listings.get(&key((round * 7) % 40 + 1, round % 3), round);
            assert!(kept(&listings) <= BYTES);
        }
        assert!(kept(&listings) > BYTES / 4, "it is made use of");
        listings.keep(key(1, 77), page(1, BYTES / 2));
        assert_eq!(listings.get(&key(1, 77), 1), None, "what is larger than all is not kept");
    }
}
