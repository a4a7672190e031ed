//! Directories under read leases: while these last, a listing that came with them answers what is looked up,
//! listed and opened in its directory.
//!
//! A cover is good
//! * until its time is over: half of that for which its leases last, and no longer than attributes are valid;
//! * over the connection that it came over;
//! * while nothing of it was asked back: then it is dropped, whole for the directory, else for one entry;
//! * while this mount has not changed the directory, and so its version.
//!
//! It comes with listings that are asked for anyway, and with those that are made because a directory is looked
//! into again and again: one of them costs little more than a look-up.
//!
//! Of a directory that is too large to be covered a part may be (`parts.rs`). It tells of the names in it and of no others.
//!
//! A file that is opened under a cover is registered with the coordinator later (`opening.rs`).
//!
//! Lock order: after that of write leases ([`super::leased`]), before inodes.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{FileName, InodeId};
use cairn_runtime::clock::{self, Instant};

use super::leased::Local;
use super::local::{Found, no_such_name};
use super::pages::{Listing, Page};
use super::{Entry, MAY_EXECUTE, Result, Vfs, access};
use crate::listing::{Covering, PageLeases, Wish};
use crate::session::leases::{Era, Leases};
use crate::{Caller, Kind, Layout, metrics};

/// Larger directories are not covered: the answer to one look-up must not take long.
pub(super) const ENTRIES_MAX: u64 = 4096;
/// Entries of all covers, about 200 bytes each; more push out the oldest.
const ENTRIES_OF_ALL_MAX: usize = 65_536;
/// What one miss is worth: a directory of so many entries for each miss is listed.
const ENTRIES_PER_MISS: u64 = 64;
/// Misses in a directory before it is listed, and the time in which they count.
const MISSES_MIN: u64 = 2;
const MISSES_TIME: Duration = Duration::from_secs(1);
/// Where leases were refused nobody asks for them so soon again.
const REFUSED_TIME: Duration = Duration::from_secs(5);
/// A cover is good for this share of the time for which its leases last.
const LASTS_SHARE: u32 = 2;
/// Directories in which misses are counted.
const MISSES_MAX: usize = 1024;
/// What was asked back is remembered for so long: an answer that is older covers nothing any more.
const RECALLED_TIME: Duration = Duration::from_secs(4);

/// For how long something is covered.
#[derive(Debug, Clone, Copy)]
struct Term {
    until: Instant,
    era: Era,
    grant: u64,
}

impl Term {
    fn is_on(&self, leases: &Leases) -> bool {
        clock::now() < self.until && leases.era() == self.era && leases.are_trusted()
    }
}

struct Cover {
    term: Term,
    /// The whole directory, or a part of it.
    page: Arc<Page>,
    /// The entries whose inodes are not covered.
    without: BTreeSet<usize>,
    /// All entries in the order of their names; made by the first look-up.
    by_name: Option<Vec<usize>>,
}

impl Cover {
    fn is_whole(&self) -> bool {
        self.page.after == 0 && self.page.page.end
    }

    fn find(&mut self, name: &[u8]) -> Option<usize> {
        let page = &self.page.page;
        let name_of = |at: usize| page.get(at).map_or(&[][..], |entry| entry.name);
        let by_name = self.by_name.get_or_insert_with(|| {
            let mut order: Vec<usize> = (0..page.len()).collect();
            order.sort_unstable_by(|&a, &b| name_of(a).cmp(name_of(b)));
            order
        });
        let at = by_name.binary_search_by(|&at| name_of(at).cmp(name)).ok()?;
        by_name.get(at).copied()
    }
}

/// What was asked for in a directory and not known.
struct Misses {
    since: Instant,
    lookups: u64,
    opens: u64,
    /// Not to be listed before.
    not_before: Option<Instant>,
    listing: bool,
}

impl Misses {
    fn new(now: Instant) -> Self {
        Self { since: now, lookups: 0, opens: 0, not_before: None, listing: false }
    }
}

/// What was not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    Name,
    Layout,
}

#[derive(Default)]
pub(super) struct State {
    covers: HashMap<InodeId, Cover>,
    /// Of them and of some that are gone, in the order in which they end.
    order: VecDeque<(Instant, InodeId)>,
    /// Entries of all covers, and the directories themselves.
    entries: usize,
    layouts: HashMap<InodeId, (Term, Layout)>,
    /// Files of covered directories → the directory.
    homes: HashMap<InodeId, InodeId>,
    /// The newest grant of each inode that was asked back lately.
    recalled: HashMap<InodeId, u64>,
    recalls: VecDeque<(Instant, InodeId, u64)>,
    misses: HashMap<InodeId, Misses>,
}

/// The covers of one mount.
#[derive(Default)]
pub(super) struct Covers(Mutex<State>);

impl Covers {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read lease is asked back.
    pub(super) fn recall(&self, inode: InodeId, grant: u64) {
        let mut state = self.lock();
        let now = clock::now();
        while let Some((_, old, number)) = state.recalls.pop_front_if(|(until, ..)| *until <= now) {
            if state.recalled.get(&old) == Some(&number) {
                state.recalled.remove(&old);
            }
        }
        let newest = state.recalled.entry(inode).or_default();
        *newest = grant.max(*newest);
        let newest = *newest;
        state.recalls.push_back((now + RECALLED_TIME, inode, newest));
        if state.covers.get(&inode).is_some_and(|cover| cover.term.grant <= grant) {
            state.drop_cover(inode);
        }
        if state.layouts.get(&inode).is_some_and(|(term, _)| term.grant <= grant) {
            state.layouts.remove(&inode);
        }
    }

    /// What this mount has done in a directory is not known.
    pub(super) fn drop_cover(&self, directory: InodeId) {
        self.lock().drop_cover(directory);
    }

    /// The session was replaced.
    pub(super) fn clear(&self) {
        *self.lock() = State::default();
    }
}

impl State {
    fn is_recalled(&self, inode: InodeId, grant: u64) -> bool {
        self.recalled.get(&inode).is_some_and(|&recalled| recalled >= grant)
    }

    fn drop_cover(&mut self, directory: InodeId) {
        let Some(cover) = self.covers.remove(&directory) else { return };
        self.entries -= cover.page.page.len() + 1;
        for entry in cover.page.page.iter_from(0).filter(|entry| entry.kind == Kind::File) {
            self.layouts.remove(&entry.inode);
            self.homes.remove(&entry.inode);
        }
    }

    /// Drops covers that are over, and others to make room for a new one.
    fn make_room(&mut self, entries: usize) {
        let now = clock::now();
        while let Some(&(until, directory)) = self.order.front()
            && (until <= now || self.entries + entries > ENTRIES_OF_ALL_MAX)
        {
            self.order.pop_front();
            if self.covers.get(&directory).is_some_and(|cover| cover.term.until == until) {
                self.drop_cover(directory);
            }
        }
    }

    fn insert(&mut self, cover: Cover) {
        let directory = cover.page.page.directory.inode;
        self.drop_cover(directory);
        let entries = cover.page.page.len() + 1;
        self.make_room(entries);
        self.entries += entries;
        self.order.push_back((cover.term.until, directory));
        for entry in cover.page.page.iter_from(0).filter(|entry| entry.kind == Kind::File) {
            self.homes.insert(entry.inode, directory);
        }
        self.covers.insert(directory, cover);
    }

    /// Counts a miss. `true`: the directory, which has `size` entries, is worth being listed now.
    fn miss(&mut self, directory: InodeId, miss: Miss, size: u64) -> bool {
        let now = clock::now();
        if self.misses.len() >= MISSES_MAX && !self.misses.contains_key(&directory) {
            self.misses.retain(|_, misses| misses.listing);
        }
        let misses = self.misses.entry(directory).or_insert_with(|| Misses::new(now));
        if now.saturating_duration_since(misses.since) >= MISSES_TIME {
            let Misses { not_before, listing, .. } = *misses;
            *misses = Misses { not_before, listing, ..Misses::new(now) };
        }
        let count = match miss {
            Miss::Name => &mut misses.lookups,
            Miss::Layout => &mut misses.opens,
        };
        *count += 1;
        let enough = *count >= MISSES_MIN && size <= *count * ENTRIES_PER_MISS;
        let may = !misses.listing && misses.not_before.is_none_or(|at| at <= now);
        let list = enough && may;
        misses.listing |= list;
        list
    }

    /// A listing that a miss began has ended.
    fn end_listing(&mut self, directory: InodeId, is_covered: bool) {
        if let Some(misses) = self.misses.get_mut(&directory) {
            misses.listing = false;
            misses.not_before = (!is_covered).then(|| clock::now() + REFUSED_TIME);
        }
    }
}

impl Vfs {
    /// Whether covers of `directory` may be used and taken: nothing of this mount is under way there.
    pub(super) fn is_quiet(&self, directory: InodeId) -> bool {
        self.leased.is_enabled() && !self.leased.lock().is_under_way(directory)
    }

    /// The cover of a directory as it is now.
    fn cover<'a>(&self, state: &'a mut State, directory: InodeId) -> Option<&'a mut Cover> {
        let cover = state.covers.get_mut(&directory)?;
        let shown = cover.page.page.directory.version;
        let is_good = cover.term.is_on(&self.session().leases)
            && self.inodes.version(directory) == Some(shown)
            && !self.client.behind().is_pending(directory);
        is_good.then_some(cover)
    }

    /// What a name stands for, when a cover tells.
    pub(super) fn lookup_covered(
        &self,
        directory: InodeId,
        name: &FileName,
        caller: &Caller,
    ) -> Local<Found> {
        if !self.is_quiet(directory) {
            return Local::Remote;
        }
        let mut state = self.covers.lock();
        let Some(cover) = self.cover(&mut state, directory) else { return Local::Remote };
        let term = cover.term;
        if let Err(error) = access::check(&cover.page.page.directory, MAY_EXECUTE, caller) {
            return Local::Done(Err(error));
        }
        let Some(at) = cover.find(name.as_bytes()) else {
            return if cover.is_whole() { Local::Done(Err(no_such_name())) } else { Local::Remote };
        };
        let inode = cover.page.page.get(at).filter(|_| !cover.without.contains(&at)).map(|entry| entry.inode);
        let Some(entry) = inode.and_then(|inode| self.covered_entry(&state, inode, &term)) else {
            return Local::Remote;
        };
        metrics::covered("lookup");
        Local::Done(Ok(Found::Entry(entry)))
    }

    /// The attributes of what a name stands for in a directory that is changed here, when a cover tells: it covers its
    /// entries also when they have other names by now.
    pub(super) fn covered_child(&self, directory: InodeId, name: &FileName, inode: InodeId) -> Option<Entry> {
        let mut state = self.covers.lock();
        let cover =
            state.covers.get_mut(&directory).filter(|cover| cover.term.is_on(&self.session().leases))?;
        let term = cover.term;
        let at = cover.find(name.as_bytes()).filter(|at| !cover.without.contains(at))?;
        let is_it = cover.page.page.get(at).is_some_and(|entry| entry.inode == inode);
        if is_it { self.covered_entry(&state, inode, &term) } else { None }
    }

    /// Attributes that read leases cover.
    fn covered_entry(&self, state: &State, inode: InodeId, term: &Term) -> Option<Entry> {
        if state.is_recalled(inode, term.grant) || self.client.behind().is_pending(inode) {
            return None;
        }
        let entry = self.inodes.fresh(inode)?;
        let valid = entry.valid.min(term.until.saturating_duration_since(clock::now()));
        Some(Entry { valid, ..entry })
    }

    /// A whole directory, when a cover tells. Attributes only while all of them are known: what is not known any
    /// more may have been changed here since.
    pub(super) fn covered_page(&self, directory: InodeId, listing: Listing) -> Option<Arc<Page>> {
        if !self.is_quiet(directory) {
            return None;
        }
        let mut state = self.covers.lock();
        let cover = self.cover(&mut state, directory).filter(|cover| cover.is_whole());
        let page = cover.map(|cover| Arc::clone(&cover.page))?;
        let attrs = || page.page.iter_from(0).filter_map(|entry| entry.attr);
        if listing == Listing::Attributes && !self.inodes.are_fresh(attrs()) {
            return None;
        }
        metrics::covered("readdir");
        Some(page)
    }

    /// The names of a directory one version ago: all of them, whatever the time is.
    pub(super) fn covered_before(&self, directory: InodeId, version: u64, era: Era) -> Option<Arc<Page>> {
        let state = self.covers.lock();
        let is_usable = |cover: &&Cover| cover.term.era == era && cover.is_whole();
        let cover = state.covers.get(&directory).filter(is_usable)?;
        let page = &cover.page;
        (page.page.directory.version + 1 == version).then(|| Arc::clone(page))
    }

    /// Where the bytes of a file are that is opened to be read, when a cover tells. This mount does not begin to
    /// remove it before `hold` has been called.
    pub(super) fn covered_layout<T>(&self, inode: InodeId, hold: impl FnOnce() -> T) -> Option<(T, Layout)> {
        let state = self.covers.lock();
        let (term, layout) = state.layouts.get(&inode)?;
        let is_changing = self.removals.under_way() || self.client.behind().is_pending(inode);
        let is_newest = self.inodes.seen_version(inode) == Some(layout.attr.version);
        let is_good = term.is_on(&self.session().leases) && !state.is_recalled(inode, term.grant);
        if is_changing || !is_newest || !is_good || layout.attr.nlink == 0 {
            return None;
        }
        metrics::covered("open");
        Some((hold(), layout.clone()))
    }

    /// A name was looked up that no cover knows: lists the directory, or a part of it, when that is worth it. `true`:
    /// look again.
    pub(super) async fn cover_names(&self, directory: InodeId, name: &FileName) -> bool {
        let Some(size) = self.worth_covering(directory) else {
            return self.cover_part(directory, name).await.unwrap_or(false);
        };
        let list = self.covers.lock().miss(directory, Miss::Name, size);
        list && self.fetch_cover(directory, false).await.unwrap_or(false)
    }

    /// The same of a file that is opened.
    pub(super) async fn cover_layouts(&self, inode: InodeId) -> bool {
        let home = self.covers.lock().homes.get(&inode).copied();
        let Some((directory, size)) = home.and_then(|home| Some((home, self.worth_covering(home)?))) else {
            return false;
        };
        let list = self.covers.lock().miss(directory, Miss::Layout, size);
        list && self.fetch_cover(directory, true).await.unwrap_or(false)
    }

    /// How many entries a directory has that may be covered.
    fn worth_covering(&self, directory: InodeId) -> Option<u64> {
        let size = self.inodes.last(directory)?.size;
        (size <= ENTRIES_MAX && self.is_quiet(directory)).then_some(size)
    }

    async fn fetch_cover(&self, directory: InodeId, layouts: bool) -> Result<bool> {
        // Also when this is dropped in the middle.
        let mut ending = Ending { vfs: self, directory, is_covered: false };
        self.client.behind().applied(directory).await?;
        let asked = clock::now();
        let limit = u32::try_from(ENTRIES_MAX).unwrap_or(u32::MAX);
        let wish = Wish { layouts, write_lease: false, part: false };
        let (page, leases) = self.coordinator().read_dir_leased(directory, 0, limit, wish).await?;
        self.inodes.adopt(page.directory.clone(), asked);
        let page = Arc::new(Page { after: 0, listing: Listing::Attributes, page, asked });
        ending.is_covered = self.take_cover(&page, leases);
        Ok(ending.is_covered)
    }

    /// Takes the read leases that came with a directory, or with a part of one.
    pub(super) fn take_cover(&self, page: &Arc<Page>, leases: PageLeases) -> bool {
        let directory = page.page.directory.inode;
        let (era, Some(covering)) = (leases.era, leases.reads) else { return false };
        let Covering { grant, lasts, without, layouts } = covering;
        if !self.is_quiet(directory) {
            return false;
        }
        let term = Term { until: page.asked + self.valid.min(lasts / LASTS_SHARE), era, grant };
        let mut state = self.covers.lock();
        let is_newest = self.inodes.version(directory) == Some(page.page.directory.version);
        if !is_newest || !term.is_on(&self.session().leases) || state.is_recalled(directory, grant) {
            return false;
        }
        for (at, entry) in page.page.iter_from(0).enumerate() {
            let attr =
                entry.attr.filter(|_| !without.contains(&at) && !state.is_recalled(entry.inode, grant));
            if let Some(attr) = attr {
                self.inodes.newest(attr, term.until);
            }
        }
        state.insert(Cover { term, page: Arc::clone(page), without, by_name: None });
        for layout in layouts {
            state.layouts.insert(layout.attr.inode, (term, layout));
        }
        true
    }
}

/// A listing under way that a miss began.
struct Ending<'a> {
    vfs: &'a Vfs,
    directory: InodeId,
    is_covered: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.vfs.covers.lock().end_listing(self.directory, self.is_covered);
    }
}
