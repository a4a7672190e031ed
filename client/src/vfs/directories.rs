//! Open directories: a listing in pages, each fetched once, the next one ahead of its use.
//!
//! Positions are stable: "." is behind position 0, ".." behind 1, and an entry of the cluster with
//! cookie `c` is behind which position `c + 2` starts, as long as the directory lives.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::{ErrorKind, InodeId};
use cairn_runtime::clock::{self, Instant};

use super::handles::Handle;
use super::{Entry, HandleId, Result, Vfs, VfsError};
use crate::{DirEntry, DirPage, Kind};

/// Entries of the first page of a listing: most directories are smaller.
const FIRST_PAGE: u32 = 512;
/// Entries of each later page; with attributes about 150 bytes each on the wire, without about 40.
const PAGE_WITH_ATTRIBUTES: u32 = 4096;
const PAGE_OF_NAMES: u32 = 16_384;
/// What a listing shall bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// Names, numbers and kinds, as getdents(2) shows them.
    Names,
    /// The attributes of each entry besides, for a kernel that will ask for them.
    Attributes,
}

/// Positions in front of the first entry of the cluster.
const DOTS: u64 = 2;

struct Page {
    /// The cookie that it was asked with.
    after: u64,
    listing: Listing,
    page: DirPage,
    asked: Instant,
    /// Where the last search ended: the next one goes on from there, so that a listing takes no
    /// longer the longer its pages are.
    reached: AtomicUsize,
}

impl Page {
    fn brings(&self, listing: Listing) -> bool {
        self.listing == Listing::Attributes || listing == Listing::Names
    }

    /// Where to go on behind cookie `after`; `None`: not in this page.
    fn find(&self, after: u64) -> Option<usize> {
        if after == self.after {
            return Some(0);
        }
        // The order of cookies is the directory's own, not that of numbers; readers go forward.
        let entries = &self.page.entries;
        let (seen, ahead) = entries.split_at(self.reached.load(Ordering::Relaxed).min(entries.len()));
        let is_it = |entry: &DirEntry| entry.cookie == after;
        let found = ahead.iter().position(is_it).map(|at| seen.len() + at);
        let at = found.or_else(|| seen.iter().position(is_it))?;
        self.reached.store(at, Ordering::Relaxed);
        let at = at + 1;
        (at < self.page.entries.len() || self.page.end).then_some(at)
    }

    fn last(&self) -> u64 {
        self.page.entries.last().map_or(self.after, |entry| entry.cookie)
    }
}

#[derive(Default)]
struct Pages {
    current: Option<Arc<Page>>,
    next: Option<Arc<Page>>,
    /// The cookie that is being fetched ahead.
    fetching: Option<u64>,
}

/// One open directory.
pub(super) struct DirHandle {
    inode: InodeId,
    pages: Mutex<Pages>,
}

impl DirHandle {
    fn lock(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, after: u64, listing: Listing) -> Option<(Arc<Page>, usize)> {
        let mut pages = self.lock();
        let current = pages.current.as_ref().filter(|page| page.brings(listing));
        if let Some(found) = current.and_then(|page| Some((Arc::clone(page), page.find(after)?))) {
            return Some(found);
        }
        let next = pages.next.take_if(|page| page.brings(listing))?;
        let at = next.find(after)?;
        pages.current = Some(Arc::clone(&next));
        Some((next, at))
    }
}

/// Entries of a directory from one position on, as many as are at hand.
pub struct DirEntries {
    vfs: Arc<Vfs>,
    page: Arc<Page>,
    position: u64,
    at: usize,
    /// The directory was changed by this mount after the page was fetched: names may be gone.
    outdated: bool,
}

/// One entry as it is shown to a kernel.
#[derive(Debug)]
pub struct DirEntryView<'a> {
    /// The name; "." and ".." among them.
    pub name: &'a [u8],
    /// What it names.
    pub inode: InodeId,
    /// What that is.
    pub kind: Kind,
    /// Where to go on behind this entry.
    pub next: u64,
    /// Attributes, as new as this mount knows them, and for how long name and attributes may be cached.
    pub entry: Option<Entry>,
}

impl DirEntries {
    /// The entries in order. Nothing at all: the end of the directory.
    pub fn iter(&self) -> impl Iterator<Item = DirEntryView<'_>> {
        let dots = (self.position..DOTS).map(|position| self.dot(position));
        dots.chain(self.page.page.entries[self.at..].iter().map(|entry| self.view(entry)))
    }

    fn dot(&self, position: u64) -> DirEntryView<'_> {
        let directory = &self.page.page.directory;
        let (name, inode): (&[u8], _) = if position == 0 {
            (b".", directory.inode)
        } else {
            (b"..", directory.parent.unwrap_or(directory.inode))
        };
        DirEntryView { name, inode, kind: Kind::Directory, next: position + 1, entry: None }
    }

    fn view<'a>(&self, entry: &'a DirEntry) -> DirEntryView<'a> {
        let until = if self.outdated { self.page.asked } else { self.page.asked + self.vfs.valid };
        DirEntryView {
            name: entry.name.as_bytes(),
            inode: entry.inode,
            kind: entry.kind,
            next: entry.cookie + DOTS,
            entry: entry.attr.as_ref().map(|attr| {
                let newest = self.vfs.inodes.newest(attr, until);
                // The name may be gone, whatever is known of the inode.
                let valid = if self.outdated { Duration::ZERO } else { newest.valid };
                Entry { valid, ..newest }
            }),
        }
    }
}

impl Vfs {
    /// Opens a directory. Nothing is asked: the caller has just looked it up.
    pub fn opendir(&self, inode: InodeId) -> HandleId {
        let handle = DirHandle { inode, pages: Mutex::default() };
        self.handles.insert(Handle::Directory(Arc::new(handle)))
    }

    /// Ends the open of a directory.
    pub fn releasedir(&self, handle: HandleId) {
        self.handles.remove(handle);
    }

    /// fsync(2) of a directory: its changes were durable when they were answered.
    pub fn fsyncdir(&self, handle: HandleId) -> Result<()> {
        self.handles.directory(handle).map(drop)
    }

    /// Entries from `position` (0: the start, else `next` of an entry), when they are at hand.
    pub fn try_readdir(
        self: &Arc<Self>,
        handle: HandleId,
        position: u64,
        listing: Listing,
    ) -> Option<Result<DirEntries>> {
        let directory = match self.handles.directory(handle) {
            Ok(directory) => directory,
            Err(error) => return Some(Err(error)),
        };
        if position == 0 {
            return None; // rewinddir(3) shows the directory as it is now
        }
        let (page, at) = directory.cached(position.saturating_sub(DOTS), listing)?;
        Some(Ok(self.entries(&directory, page, position, at)))
    }

    /// Entries from `position`.
    pub async fn readdir(
        self: &Arc<Self>,
        handle: HandleId,
        position: u64,
        listing: Listing,
    ) -> Result<DirEntries> {
        let directory = self.handles.directory(handle)?;
        let after = position.saturating_sub(DOTS);
        let page = self.fetch_page(&directory, after, listing).await?;
        {
            let mut pages = directory.lock();
            *pages = Pages { current: Some(Arc::clone(&page)), ..Pages::default() };
        }
        Ok(self.entries(&directory, page, position, 0))
    }

    async fn fetch_page(&self, directory: &DirHandle, after: u64, listing: Listing) -> Result<Arc<Page>> {
        let asked = clock::now();
        let limit = match listing {
            _ if after == 0 => FIRST_PAGE,
            Listing::Names => PAGE_OF_NAMES,
            Listing::Attributes => PAGE_WITH_ATTRIBUTES,
        };
        let attributes = listing == Listing::Attributes;
        let page = self.coordinator().read_dir(directory.inode, after, limit, attributes).await?;
        let largest = page.entries.iter().map(|entry| entry.cookie).max().unwrap_or(0);
        if largest > i64::MAX as u64 - DOTS {
            return Err(VfsError::refused(ErrorKind::Protocol, "a directory cookie is out of range"));
        }
        self.inodes.adopt(page.directory.clone(), asked);
        Ok(Arc::new(Page { after, listing, page, asked, reached: AtomicUsize::new(0) }))
    }

    fn entries(
        self: &Arc<Self>,
        directory: &Arc<DirHandle>,
        page: Arc<Page>,
        position: u64,
        at: usize,
    ) -> DirEntries {
        self.fetch_ahead(directory, &page);
        let version = page.page.directory.version;
        let outdated = self.inodes.version(directory.inode).is_some_and(|known| known > version);
        DirEntries { vfs: Arc::clone(self), page, position, at, outdated }
    }

    /// Fetches the page behind `page` while that one is being shown. Behind the first page only names:
    /// a kernel that goes on without looking at the entries wants no more, and one that does look
    /// asks for attributes, which then are fetched ahead, too.
    fn fetch_ahead(self: &Arc<Self>, directory: &Arc<DirHandle>, page: &Arc<Page>) {
        if page.page.end {
            return;
        }
        let after = page.last();
        {
            let mut pages = directory.lock();
            let there = pages.next.as_ref().is_some_and(|next| next.after == after);
            if there || pages.fetching == Some(after) {
                return;
            }
            pages.fetching = Some(after);
        }
        let listing = if page.after == 0 { Listing::Names } else { page.listing };
        let (vfs, directory) = (Arc::clone(self), Arc::clone(directory));
        self.runtime.spawn(async move {
            let fetched = vfs.fetch_page(&directory, after, listing).await;
            let mut pages = directory.lock();
            if pages.fetching == Some(after) {
                pages.fetching = None;
                // An error is met again by the reader that comes here.
                pages.next = fetched.ok();
            }
        });
    }
}
