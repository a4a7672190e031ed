//! Pages of names of large directories, kept for the next listing.
//!
//! Each listing asks the coordinator for the first entries of its directory, and hears of its version
//! with them. A page that was fetched at the same version holds the names that would come again, so it
//! is shown without asking for them: what a listing shows is never older than its beginning.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::InodeId;

use super::pages::{Listing, Page};
use crate::DirPage;

/// Bytes of all pages, whatever memory there is: names of about two hundred thousand entries.
const BYTES_MAX: usize = 8 << 20;
/// Smaller pages are not worth a place; it also bounds how many there are.
pub(super) const ENTRIES_MIN: usize = 512;

#[derive(Default)]
struct State {
    /// Those used last stand at the end.
    pages: VecDeque<Arc<Page>>,
    bytes: usize,
}

impl State {
    fn take(&mut self, is_it: impl Fn(&Page) -> bool) -> Option<Arc<Page>> {
        let at = self.pages.iter().position(|page| is_it(page))?;
        let page = self.pages.remove(at)?;
        self.bytes -= page.page.size_bytes();
        Some(page)
    }

    fn push(&mut self, page: Arc<Page>) {
        self.bytes += page.page.size_bytes();
        self.pages.push_back(page);
    }
}

/// The pages of one mount.
pub(super) struct KeptPages {
    state: Mutex<State>,
    bytes_max: usize,
}

impl KeptPages {
    /// Keeps at most `bytes`, and [`BYTES_MAX`].
    pub(super) fn new(bytes: u64) -> Self {
        let bytes_max = usize::try_from(bytes).map_or(BYTES_MAX, |bytes| bytes.min(BYTES_MAX));
        Self { state: Mutex::default(), bytes_max }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a page when it is of that kind.
    pub(super) fn keep(&self, page: &Arc<Page>) {
        if page.listing != Listing::Names || page.page.len() < ENTRIES_MIN {
            return;
        }
        let mut state = self.lock();
        let directory = page.page.directory.inode;
        state.take(|kept| kept.page.directory.inode == directory && kept.after == page.after);
        state.push(Arc::clone(page));
        while state.bytes > self.bytes_max
            && let Some(oldest) = state.pages.pop_front()
        {
            state.bytes -= oldest.page.size_bytes();
        }
    }

    /// Whether the first names of a directory are here as they were at `version`.
    pub(super) fn has_first(&self, directory: InodeId, version: u64) -> bool {
        let of = |page: &DirPage| page.directory.inode == directory && page.directory.version == version;
        self.lock().pages.iter().any(|page| page.after == 0 && of(&page.page))
    }

    /// The pages of a directory as it was at `version`, in no order.
    pub(super) fn all_of(&self, directory: InodeId, version: u64) -> Vec<Arc<Page>> {
        let of = |page: &&Arc<Page>| {
            let shown = &page.page.directory;
            shown.inode == directory && shown.version == version
        };
        self.lock().pages.iter().filter(of).cloned().collect()
    }

    /// The names behind cookie `after` of the directory that `shown` is a page of, in the same state.
    pub(super) fn behind(&self, after: u64, shown: &DirPage) -> Option<Arc<Page>> {
        let mut state = self.lock();
        let page = state.take(|page| page.page.is_of_same_state(shown) && page.find(after).is_some())?;
        state.push(Arc::clone(&page));
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pages::tests::{names, page_of};
    use super::*;

    fn ids(directory: u64) -> InodeId {
        InodeId::new(directory).unwrap()
    }

    #[test]
    fn names_are_found_by_place_and_state() {
        let kept = KeptPages::new(u64::MAX);
        let shown = |version| names(2, version, 0, 16..18).page.clone();
        kept.keep(&Arc::new(names(2, 5, 0, 16..1016)));
        kept.keep(&Arc::new(names(2, 5, 1015, 1016..2016)));
        assert!(kept.has_first(ids(2), 5) && !kept.has_first(ids(2), 6) && !kept.has_first(ids(3), 5));
        let at = |after, version| kept.behind(after, &shown(version)).map(|page| page.after);
        assert_eq!([at(0, 5), at(17, 5), at(1014, 5)], [Some(0); 3]);
        assert_eq!([at(1015, 5), at(2014, 5)], [Some(1015); 2]);
        assert_eq!([at(2015, 5), at(17, 4), at(17, 6)], [None; 3]);
        // The next state takes the place of this one.
        kept.keep(&Arc::new(names(2, 6, 0, 16..1017)));
        let at = |after, version| kept.behind(after, &shown(version)).map(|page| page.after);
        assert_eq!([at(17, 5), at(17, 6)], [None, Some(0)]);
    }

    #[test]
    fn few_names_and_attributes_are_not_kept() {
        let kept = KeptPages::new(u64::MAX);
        kept.keep(&Arc::new(names(2, 5, 0, 16..16 + ENTRIES_MIN as u64 - 1)));
        kept.keep(&Arc::new(page_of(2, 5, 0, 16..1016, Listing::Attributes)));
        assert!(kept.lock().pages.is_empty());
    }

    #[test]
    fn all_pages_stay_within_their_bound_and_those_in_use_stay() {
        let kept = KeptPages::new(u64::MAX);
        for directory in 2..400 {
            kept.keep(&Arc::new(names(directory, 1, 0, 16..16 + 600 + directory * 20)));
            assert!(kept.behind(16, &names(2, 1, 0, 16..17).page).is_some());
            let state = kept.lock();
            assert_eq!(state.bytes, state.pages.iter().map(|page| page.page.size_bytes()).sum::<usize>());
            assert!(state.bytes <= BYTES_MAX);
        }
        assert!(kept.has_first(ids(399), 1) && !kept.has_first(ids(3), 1));
        assert!(kept.lock().bytes > BYTES_MAX / 2, "it is made use of");
    }
}
