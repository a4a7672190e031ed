//! The pages of one open directory: the one that is being shown, the next one, and which is on its way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_proto::InodeId;
use cairn_runtime::clock::Instant;
use tokio::sync::watch;

use crate::DirPage;
use crate::tally::Counted;

/// What a listing shall bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// Names, numbers and kinds, as getdents(2) shows them.
    Names,
    /// The attributes of each entry besides, for a kernel that will ask for them.
    Attributes,
}

impl Listing {
    fn brings(self, wanted: Self) -> bool {
        self == Self::Attributes || wanted == Self::Names
    }
}

/// A page, and what it was asked with.
pub(super) struct Page {
    /// The cookie that it begins behind.
    pub(super) after: u64,
    pub(super) listing: Listing,
    pub(super) page: DirPage,
    pub(super) asked: Instant,
}

impl Page {
    /// Where to go on behind cookie `after`; `None`: not in this page.
    pub(super) fn find(&self, after: u64) -> Option<usize> {
        let at = (after >= self.after).then(|| self.page.behind(after))?;
        (at < self.page.len() || self.page.end).then_some(at)
    }

    /// The cookie behind which the next page begins.
    pub(super) fn last(&self) -> u64 {
        self.page.last_cookie().unwrap_or(self.after)
    }
}

/// A page on its way.
struct Ahead {
    after: u64,
    listing: Listing,
    /// Its sender is dropped when the page is there, or will never be.
    arrived: watch::Receiver<()>,
}

impl Ahead {
    fn may_bring(&self, after: u64, listing: Listing) -> bool {
        let is_coming = self.arrived.has_changed().is_ok(); // its sender is there
        is_coming && self.after <= after && self.listing.brings(listing)
    }
}

/// Held by who fetches a page ahead.
pub(super) struct Fetching(watch::Sender<()>);

#[derive(Default)]
struct Pages {
    current: Option<Arc<Page>>,
    next: Option<Arc<Page>>,
    ahead: Option<Ahead>,
    counted: Counted,
}

impl Pages {
    fn count(&mut self) {
        let pages = [&self.current, &self.next].into_iter().flatten();
        let bytes = pages.map(|page| page.page.memory_bytes()).sum();
        self.counted.set(bytes);
    }

    fn forget(&mut self) {
        (self.current, self.next) = (None, None);
        self.counted.set(0);
    }
}

/// One open directory.
pub(super) struct DirHandle {
    pub(super) inode: InodeId,
    pages: Mutex<Pages>,
}

impl DirHandle {
    pub(super) fn new(inode: InodeId, counted: Counted) -> Self {
        Self { inode, pages: Mutex::new(Pages { counted, ..Pages::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page that holds what is behind cookie `after`, and where in it.
    pub(super) fn cached(&self, after: u64, listing: Listing) -> Option<(Arc<Page>, usize)> {
        let mut pages = self.lock();
        let current = pages.current.as_ref().filter(|page| page.listing.brings(listing));
        if let Some(found) = current.and_then(|page| Some((Arc::clone(page), page.find(after)?))) {
            return Some(found);
        }
        let shown = pages.current.as_ref().map_or(0, |page| page.page.directory.version);
        let next = pages.next.take_if(|page| page.listing.brings(listing))?;
        // Pages are asked for side by side, and the later one may show an earlier state. A name that was
        // moved in between, from behind to the end, would be in neither.
        let at = next.find(after).filter(|_| next.page.directory.version >= shown)?;
        pages.current = Some(Arc::clone(&next));
        pages.count();
        Some((next, at))
    }

    /// Forgets all pages: a listing begins.
    pub(super) fn restart(&self) {
        let mut pages = self.lock();
        pages.forget();
        pages.ahead = None;
    }

    /// Forgets what is not on its way: it is fetched again when it is needed.
    pub(super) fn forget(&self) {
        self.lock().forget();
    }

    /// The page that is being shown from now on.
    pub(super) fn show(&self, page: &Arc<Page>) {
        let mut pages = self.lock();
        pages.current = Some(Arc::clone(page));
        pages.count();
    }

    /// [`Self::cached`], also when the page is still on its way.
    pub(super) async fn wait_for(&self, after: u64, listing: Listing) -> Option<(Arc<Page>, usize)> {
        // In this order: what is not on its way any more is there.
        let on_its_way = self.on_its_way(after, listing);
        if let Some(found) = self.cached(after, listing) {
            return Some(found);
        }
        let _ = on_its_way?.changed().await; // nothing is ever sent: this is the end of who fetches it
        self.cached(after, listing)
    }

    /// To be waited for by who needs what is behind cookie `after`, when that may be on its way.
    fn on_its_way(&self, after: u64, listing: Listing) -> Option<watch::Receiver<()>> {
        let pages = self.lock();
        let ahead = pages.ahead.as_ref().filter(|ahead| ahead.may_bring(after, listing))?;
        Some(ahead.arrived.clone())
    }

    /// Begins to fetch what is behind cookie `after`; `None` when that is there, or on its way.
    pub(super) fn begin_ahead(&self, after: u64, listing: Listing) -> Option<Fetching> {
        let mut pages = self.lock();
        let brings = |next: &Arc<Page>| next.listing.brings(listing) && next.find(after).is_some();
        let is_there = pages.next.as_ref().is_some_and(brings);
        if is_there || pages.ahead.as_ref().is_some_and(|ahead| ahead.may_bring(after, listing)) {
            return None;
        }
        let (fetching, arrived) = watch::channel(());
        pages.ahead = Some(Ahead { after, listing, arrived });
        Some(Fetching(fetching))
    }

    /// Takes what was fetched ahead, unless the listing has begun anew meanwhile.
    pub(super) fn end_ahead(&self, fetching: Fetching, page: Option<Arc<Page>>) {
        let mut pages = self.lock();
        let is_it = |ahead: &mut Ahead| ahead.arrived.same_channel(&fetching.0.subscribe());
        if pages.ahead.take_if(is_it).is_some() {
            // An error is met again by the reader that comes here.
            pages.next = page;
            pages.count();
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
