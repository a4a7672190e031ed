//! Open directories: a listing in pages, each fetched once, the next one ahead of its use.
//!
//! Positions are stable: "." is behind position 0, ".." behind 1, and an entry of the cluster with
//! cookie `c` is behind which position `c + 2` starts, as long as the directory lives.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::limits::PAGE_NAMES;
use cairn_proto::{ErrorKind, InodeId};
use cairn_runtime::clock;

use super::handles::Handle;
use super::kept::ENTRIES_MIN;
use super::pages::{DirHandle, Listing, Page};
use super::{Entry, HandleId, Result, Vfs, VfsError, removed_directory};
use crate::listing::Wish;
use crate::{Attr, ClientError, DirEntryRef, DirPage, Kind};

/// Entries of the first page with attributes: most directories are smaller.
const FIRST_PAGE: u32 = ENTRIES_MIN as u32;
/// The same of a directory that is known to have more. A kernel asks for attributes at the start, whoever
/// lists; these are enough to find out whether somebody looks at them, and the names follow at once.
const FIRST_PAGE_OF_MANY: u32 = 16;
/// Entries of each other page with attributes, about 100 bytes each on the wire; names alone take about 15.
const PAGE_WITH_ATTRIBUTES: u32 = 4096;

/// Positions in front of the first entry of the cluster.
const DOTS: u64 = 2;

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
        dots.chain(self.page.page.iter_from(self.at).map(|entry| self.view(entry)))
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

    fn view<'a>(&self, entry: DirEntryRef<'a>) -> DirEntryView<'a> {
        let DirEntryRef { name, inode, kind, cookie, attr } = entry;
        DirEntryView { name, inode, kind, next: cookie + DOTS, entry: attr.map(|attr| self.newest(attr)) }
    }

    fn newest(&self, attr: &Attr) -> Entry {
        let until = if self.outdated { self.page.asked } else { self.page.asked + self.vfs.valid };
        let newest = self.vfs.inodes.newest(attr, until);
        // The name may be gone, whatever is known of the inode.
        let valid = if self.outdated { Duration::ZERO } else { newest.valid };
        Entry { valid, ..newest }
    }
}

impl Vfs {
    /// Opens a directory. Nothing is asked: the caller has just looked it up.
    pub fn opendir(&self, inode: InodeId) -> HandleId {
        self.handles
            .insert(Handle::Directory(Arc::new(DirHandle::new(inode, self.client.budget().pages.begin()))))
    }

    /// Ends the open of a directory.
    pub fn releasedir(&self, handle: HandleId) {
        self.handles.remove(handle);
    }

    /// fsync(2) of a directory: what was changed in it is durable, by whomever.
    pub async fn fsyncdir(&self, handle: HandleId) -> Result<()> {
        let directory = self.handles.directory(handle)?;
        let behind = self.client.behind();
        behind.all_applied().await?;
        behind.check_losses(directory.inode)?;
        if !self.is_alone_with(directory.inode) {
            self.coordinator().sync(directory.inode).await?;
        }
        Ok(())
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
            // rewinddir(3) shows the directory as it is now.
            let page = self.covered_page(directory.inode, listing)?;
            directory.restart();
            directory.show(&page);
            return Some(Ok(self.entries(&directory, page, 0, 0)));
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
        if position == 0 {
            directory.restart();
        } else if let Some((page, at)) = directory.wait_for(after, listing).await {
            return Ok(self.entries(&directory, page, position, at));
        }
        let limit = match listing {
            Listing::Names => PAGE_NAMES,
            Listing::Attributes if after > 0 => PAGE_WITH_ATTRIBUTES,
            Listing::Attributes => match self.inodes.last(directory.inode) {
                Some(known) if known.size > ENTRIES_MIN as u64 => {
                    // Both at once, since most listings of so many want no more than names.
                    if !self.kept_pages.has_first(known.inode, known.version) {
                        self.fetch_ahead(&directory, 0, Listing::Names, None);
                    }
                    FIRST_PAGE_OF_MANY
                }
                _ => FIRST_PAGE,
            },
        };
        let page = self.fetch_page(&directory, after, limit, listing).await?;
        directory.show(&page);
        Ok(self.entries(&directory, page, position, 0))
    }

    /// Has pages of open directories forgotten while all together are too large; not those of the one in use.
    fn trim_pages(&self, used: &Arc<DirHandle>) {
        let pages = &self.client.budget().pages;
        if !pages.is_over() {
            return;
        }
        let open = self.handles.directories();
        let others = open.iter().filter(|directory| !Arc::ptr_eq(directory, used));
        others.take_while(|_| !pages.is_low()).for_each(|directory| directory.forget());
    }

    async fn fetch_page(
        &self,
        directory: &DirHandle,
        after: u64,
        limit: u32,
        listing: Listing,
    ) -> Result<Arc<Page>> {
        let asked = clock::now();
        let attributes = listing == Listing::Attributes;
        let inode = directory.inode;
        self.client.behind().applied(inode).await?;
        self.need_names(inode)?;
        let (page, leases) = if after == 0 && attributes && self.is_quiet(inode) {
            let wish = Wish { layouts: false, write_lease: self.will_be_emptied(inode), part: false };
            let listed = self.coordinator().read_dir_leased(inode, 0, limit, wish).await;
            let (page, leases) = listed.map_err(|error| self.on_unlisted(inode, error))?;
            (page, Some(leases))
        } else {
            let listed = self.coordinator().read_dir(inode, after, limit, attributes).await;
            (listed.map_err(|error| self.on_unlisted(inode, error))?, None)
        };
        if page.last_cookie().is_some_and(|last| last > i64::MAX as u64 - DOTS) {
            return Err(VfsError::refused(ErrorKind::Protocol, "a directory cookie is out of range"));
        }
        self.inodes.adopt(page.directory.clone(), asked);
        let page = Arc::new(Page { after, listing, page, asked });
        self.kept_pages.keep(&page);
        if let Some(leases) = leases {
            if let Some(grant) = leases.write {
                self.take_listed_lease(&page.page, grant, leases.era);
            }
            self.take_cover(&page, leases);
        }
        Ok(page)
    }

    /// An open directory that has been removed ends with what getdents(2) says then; readdir(3) takes it for its end.
    fn on_unlisted(&self, directory: InodeId, error: ClientError) -> VfsError {
        match self.on_stale(directory, error) {
            error if error.kind() == ErrorKind::StaleHandle => removed_directory(),
            error => error,
        }
    }

    fn entries(
        self: &Arc<Self>,
        directory: &Arc<DirHandle>,
        page: Arc<Page>,
        position: u64,
        at: usize,
    ) -> DirEntries {
        self.fetch_next(directory, &page);
        self.trim_pages(directory);
        let version = page.page.directory.version;
        let outdated = self.inodes.version(directory.inode).is_some_and(|known| known > version);
        DirEntries { vfs: Arc::clone(self), page, position, at, outdated }
    }

    /// Fetches the page behind `page` while that one is being shown. Behind the first page only names:
    /// a kernel that goes on without looking at the entries wants no more, and one that does look
    /// asks for attributes, which then are fetched ahead, too.
    fn fetch_next(self: &Arc<Self>, directory: &Arc<DirHandle>, page: &Page) {
        if !page.page.end {
            let listing = if page.after == 0 { Listing::Names } else { page.listing };
            self.fetch_ahead(directory, page.last(), listing, Some(&page.page));
        }
    }

    /// `shown`: the page in front, which says what state of the directory is wanted.
    fn fetch_ahead(
        self: &Arc<Self>,
        directory: &Arc<DirHandle>,
        after: u64,
        listing: Listing,
        shown: Option<&DirPage>,
    ) {
        let Some(fetching) = directory.begin_ahead(after, listing) else { return };
        let kept = shown.filter(|_| listing == Listing::Names);
        if let Some(kept) = kept.and_then(|shown| self.kept_pages.behind(after, shown)) {
            return directory.end_ahead(fetching, Some(kept));
        }
        let limit = match listing {
            Listing::Names => PAGE_NAMES,
            Listing::Attributes => PAGE_WITH_ATTRIBUTES,
        };
        let (vfs, directory) = (Arc::clone(self), Arc::clone(directory));
        self.runtime.spawn(async move {
            let fetched = vfs.fetch_page(&directory, after, limit, listing).await;
            directory.end_ahead(fetching, fetched.ok());
            vfs.trim_pages(&directory);
        });
    }
}
