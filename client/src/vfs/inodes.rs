//! What is known about inodes: attributes, extended attributes, names, and which are open.
//!
//! A cache in two generations: what is used moves to the young one; when that is full, the old one
//! is dropped. Losing an entry costs a request, never correctness, since inode ids are the
//! cluster's own. Open inodes are kept apart, and counted. So are *pinned* ones, which a lease covers:
//! nobody else can change them, and what is known here may be newer than what the coordinator knows.
//!
//! *Removed* ones are kept apart too. The coordinator deletes an inode with its last name, but for a file that is open;
//! a program may still hold it in ways that only its kernel knows: as its working directory, by O_PATH, as an open
//! directory, pipe or socket. So what was known at the removal stays until the kernel forgets the inode. Nobody else
//! can reach it any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::InodeId;
use cairn_runtime::clock::{self, Instant};

use super::Entry;
use super::page_cache::Paging;
use crate::session::Session;
use crate::tally::{Counted, Tally};
use crate::{Attr, FileContent};

/// Inodes in one generation; about 300 bytes each.
const GENERATION_MAX: usize = 32_768;

/// Removed inodes that are kept; of more the oldest go. Most are forgotten by the kernel within milliseconds.
const REMOVED_MAX: usize = 16_384;

/// What an extended attribute costs besides its bytes.
const XATTR_COST: usize = 128;

/// The extended attributes of an inode.
pub(super) type Xattrs = Arc<Vec<(Bytes, Bytes)>>;

struct Known {
    attr: Attr,
    until: Instant,
    /// The version whose data the kernel's page cache may hold.
    pages: Option<u64>,
    /// The version whose attributes the kernel was shown last, with what this mount has changed since: that it knows.
    shown: Option<u64>,
    /// With the version that they belong to.
    xattrs: Option<(u64, Xattrs, Counted)>,
    /// This mount took its last name.
    removed_here: bool,
    /// This mount takes a name of it, and the kernel has not forgotten it since.
    loses_name: bool,
}

/// Which of the things that the kernel keeps of a file it may go on with when the file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Good {
    pub(super) pages: bool,
    pub(super) attributes: bool,
}

struct Open {
    content: Arc<FileContent>,
    handles: usize,
    /// Handles through which the file can be mapped for writing.
    mapping: usize,
    /// Handles whose reads fill the kernel's page cache.
    filling: usize,
    /// Changes by others that the kernel's page cache has been told of.
    foreign: u64,
}

/// What is left of a removed inode.
struct Left {
    /// Its place in the order of removals.
    number: u64,
    /// It is shown from then on. Before, a name in the kernel's cache may still lead to it.
    from: Instant,
    known: Known,
}

/// Removed inodes in the order of their removal.
#[derive(Default)]
struct Removed {
    known: HashMap<InodeId, Left>,
    order: BTreeMap<u64, InodeId>,
    next: u64,
}

impl Removed {
    fn get(&mut self, inode: InodeId) -> Option<&mut Known> {
        self.known.get_mut(&inode).map(|left| &mut left.known)
    }

    fn shown(&mut self, inode: InodeId) -> Option<&mut Known> {
        self.known.get_mut(&inode).filter(|left| left.from <= clock::now()).map(|left| &mut left.known)
    }

    fn insert(&mut self, inode: InodeId, from: Instant, known: Known) {
        self.next += 1;
        self.known.insert(inode, Left { number: self.next, from, known });
        self.order.insert(self.next, inode);
        if self.order.len() > REMOVED_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.known.remove(&oldest);
        }
    }

    fn take(&mut self, inode: InodeId) -> Option<Known> {
        let left = self.known.remove(&inode)?;
        self.order.remove(&left.number);
        Some(left.known)
    }
}

#[derive(Default)]
struct State {
    pinned: HashMap<InodeId, Known>,
    removed: Removed,
    young: HashMap<InodeId, Known>,
    old: HashMap<InodeId, Known>,
    open: HashMap<InodeId, Open>,
    /// For how long this machine had been suspended when that was last looked at.
    suspended: Duration,
}

impl State {
    /// How old something is was not counted while this machine was suspended: it has to be asked for.
    fn expire_all(&mut self) {
        let now = clock::now();
        let known = self.young.values_mut().chain(self.old.values_mut());
        known.for_each(|known| known.until = now);
    }

    fn get(&mut self, inode: InodeId) -> Option<&mut Known> {
        if self.pinned.contains_key(&inode) {
            return self.pinned.get_mut(&inode);
        }
        if self.removed.known.contains_key(&inode) {
            return self.removed.get(inode);
        }
        if let Some(known) = self.old.remove(&inode) {
            self.insert(inode, known);
        }
        self.young.get_mut(&inode)
    }

    fn insert(&mut self, inode: InodeId, known: Known) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(inode, known);
    }

    /// The inode has no name any more: what is known of it stays, and is shown from `from` on.
    fn keep_removed(&mut self, inode: InodeId, from: Instant) {
        let known = self.pinned.remove(&inode).or_else(|| self.young.remove(&inode));
        let Some(mut known) = known.or_else(|| self.old.remove(&inode)) else { return };
        known.attr.nlink = 0;
        known.until = clock::now();
        self.removed.insert(inode, from, known);
    }

    fn note_removed_here(&mut self, inode: InodeId) {
        if let Some(known) = self.get(inode) {
            known.removed_here = true;
        }
    }

    /// A newer answer says that the inode has a name after all: the removal was refused.
    fn correct_removal(&mut self, attr: &Attr) {
        let refused = |known: &Known| attr.nlink > 0 && attr.version > known.attr.version;
        if self.removed.get(attr.inode).is_some_and(|known| refused(known)) {
            self.removed.take(attr.inode);
        }
    }

    /// An inode without names that is no open file: these the coordinator knows, and others may write to them.
    fn removed(&mut self, inode: InodeId) -> Option<&mut Known> {
        if self.open.contains_key(&inode) { None } else { self.removed.shown(inode) }
    }

    fn forget_xattrs(&mut self) {
        let all = [&mut self.pinned, &mut self.young, &mut self.old];
        all.into_iter().flat_map(HashMap::values_mut).for_each(|known| known.xattrs = None);
    }

    fn overlay(&self, attr: Attr) -> Attr {
        let Some(open) = self.open.get(&attr.inode) else { return attr };
        let mut attr = open.content.attr_overlay(attr);
        if open.mapping > 0 && attr.size > 0 {
            // Programs take a file of no blocks for one hole and do not look for dirty pages (tar -S).
            attr.allocated = attr.allocated.max(1);
        }
        attr
    }
}

pub(super) struct InodeTable {
    state: Mutex<State>,
    valid: Duration,
    session: Arc<Session>,
    all_xattrs: Tally,
}

impl InodeTable {
    pub(super) fn new(valid: Duration, session: Arc<Session>, all_xattrs: Tally) -> Self {
        Self { state: Mutex::default(), valid, session, all_xattrs }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let suspended = clock::suspended();
        if state.suspended != suspended {
            state.suspended = suspended;
            state.expire_all();
        }
        state
    }

    /// Attributes that may still be shown.
    pub(super) fn fresh(&self, inode: InodeId) -> Option<Entry> {
        let mut state = self.lock();
        if let Some(known) = state.removed(inode) {
            return Some(self.left_of(known));
        }
        if state.pinned.contains_key(&inode) && !self.session.leases.are_trusted() {
            return None;
        }
        let known = state.get(inode)?;
        let valid = self.left(known.until, clock::now());
        if valid.is_zero() {
            return None;
        }
        let attr = known.attr.clone();
        Some(Entry { attr: state.overlay(attr), valid })
    }

    /// Whether these attributes, or newer ones, are known and may still be shown.
    pub(super) fn are_fresh<'a>(&self, mut attrs: impl Iterator<Item = &'a Attr>) -> bool {
        let (now, trusted) = (clock::now(), self.session.leases.are_trusted());
        let mut state = self.lock();
        attrs.all(|attr| {
            let is_usable = trusted || !state.pinned.contains_key(&attr.inode);
            let known = state.get(attr.inode).filter(|known| now < known.until);
            is_usable && known.is_some_and(|known| known.attr.version >= attr.version)
        })
    }

    /// How long something may be shown that is valid until then.
    fn left(&self, until: Instant, now: Instant) -> Duration {
        until.saturating_duration_since(now).min(self.valid)
    }

    fn left_of(&self, removed: &Known) -> Entry {
        Entry { attr: removed.attr.clone(), valid: self.valid }
    }

    /// What is left of an inode that has no name any more, and is no open file.
    pub(super) fn removed(&self, inode: InodeId) -> Option<Entry> {
        self.lock().removed(inode).map(|known| self.left_of(known))
    }

    /// The coordinator does not know the inode any more. What is known of it is shown from `from` on.
    pub(super) fn note_removed(&self, inode: InodeId, from: Instant) {
        self.lock().keep_removed(inode, from);
    }

    /// Its removal was refused.
    pub(super) fn forget_removal(&self, inode: InodeId) {
        self.lock().removed.take(inode);
    }

    /// Changes what is known of a removed inode. `None`: it is none.
    pub(super) fn change_removed(&self, inode: InodeId, change: impl FnOnce(&mut Attr)) -> Option<Entry> {
        let mut state = self.lock();
        let known = state.removed(inode)?;
        change(&mut known.attr);
        known.attr.version += 1;
        Some(self.left_of(known))
    }

    /// From here on a lease covers the inode, whose attributes are these.
    pub(super) fn pin(&self, attr: Attr) -> Entry {
        let mut state = self.lock();
        let inode = attr.inode;
        let before = state.young.remove(&inode).or_else(|| state.old.remove(&inode));
        let mut known = before.unwrap_or_else(|| Known::new(attr.clone(), forever()));
        known.take(attr, forever(), true);
        let attr = known.attr.clone();
        state.pinned.insert(inode, known);
        Entry { attr: state.overlay(attr), valid: self.valid }
    }

    /// The lease is over: the attributes are asked for before they are shown again.
    pub(super) fn unpin(&self, inode: InodeId) {
        let mut state = self.lock();
        if let Some(known) = state.pinned.remove(&inode) {
            let nlink = known.attr.nlink;
            state.insert(inode, Known { until: clock::now(), ..known });
            if nlink == 0 {
                state.keep_removed(inode, clock::now());
            }
        }
    }

    /// The attributes of a pinned inode, without what is buffered of its content.
    pub(super) fn pinned(&self, inode: InodeId) -> Option<Attr> {
        self.lock().pinned.get(&inode).map(|known| known.attr.clone())
    }

    /// The attributes of a pinned inode as they are shown.
    pub(super) fn pinned_entry(&self, inode: InodeId) -> Option<Entry> {
        let state = self.lock();
        let attr = state.pinned.get(&inode)?.attr.clone();
        Some(Entry { attr: state.overlay(attr), valid: self.valid })
    }

    /// An own change of a pinned inode that the coordinator will make in the same way. `content`: that of the
    /// inode, when there is one. `None`: it is not pinned.
    pub(super) fn change(
        &self,
        inode: InodeId,
        content: Option<&FileContent>,
        change: impl FnOnce(&mut Attr),
    ) -> Option<Attr> {
        let mut state = self.lock();
        let known = state.pinned.get_mut(&inode)?;
        let committed = content.map(FileContent::attr_committed);
        let newer = committed.filter(|attr| attr.version > known.attr.version);
        let mut attr = newer.unwrap_or_else(|| known.attr.clone());
        change(&mut attr);
        attr.version += 1;
        known.take(attr.clone(), forever(), true);
        known.removed_here |= attr.nlink == 0;
        if let Some(content) = content {
            content.refresh_own(&attr);
        }
        Some(attr)
    }

    /// The attributes seen last, however old.
    pub(super) fn last(&self, inode: InodeId) -> Option<Attr> {
        self.lock().get(inode).map(|known| known.attr.clone())
    }

    /// Takes attributes from an answer to a request that was sent at `asked`. Gives the newest ones
    /// known, which may be others.
    pub(super) fn adopt(&self, attr: Attr, asked: Instant) -> Entry {
        self.take(attr, asked, false)
    }

    /// Takes the result of an own change of the inode, which somebody waits for.
    pub(super) fn adopt_own(&self, attr: Attr, asked: Instant) -> Entry {
        self.take(attr, asked, true)
    }

    /// The same of a change of names. An inode that has none any more was removed by this mount.
    pub(super) fn adopt_named(&self, attr: Attr, asked: Instant) -> Entry {
        let (inode, is_removed) = (attr.inode, attr.nlink == 0);
        let entry = self.take(attr, asked, true);
        if is_removed {
            let mut state = self.lock();
            state.note_removed_here(inode);
            state.keep_removed(inode, clock::now());
        }
        entry
    }

    /// Takes the result of an own change that was answered before. Of what it removed the kernel may have forgotten
    /// everything by now, and would not say so again.
    pub(super) fn adopt_applied(&self, attr: Attr, asked: Instant) {
        let (inode, is_removed) = (attr.inode, attr.nlink == 0);
        self.take(attr, asked, true);
        let mut state = self.lock();
        if is_removed {
            state.note_removed_here(inode);
        }
        if is_removed && state.get(inode).is_some_and(|known| known.loses_name) {
            state.keep_removed(inode, clock::now());
        }
    }

    /// This mount takes a name of an inode whose number of names it can not be sure of.
    pub(super) fn loses_name(&self, inode: InodeId) {
        if let Some(known) = self.lock().get(inode) {
            known.loses_name = true;
        }
    }

    fn take(&self, attr: Attr, asked: Instant, own: bool) -> Entry {
        let mut until = asked + self.valid;
        let mut state = self.lock();
        if state.pinned.contains_key(&attr.inode) {
            until = forever();
        }
        if let Some(open) = state.open.get(&attr.inode) {
            if own {
                open.content.refresh_own(&attr);
            } else {
                open.content.refresh(&attr, None);
            }
        }
        let inode = attr.inode;
        state.correct_removal(&attr);
        if state.get(inode).is_none() {
            state.insert(inode, Known::new(attr.clone(), until));
        }
        let (attr, until) = match state.get(inode) {
            Some(known) => {
                known.take(attr, until, own);
                (known.attr.clone(), known.until)
            }
            None => (attr, until),
        };
        let valid = self.left(until, clock::now());
        Entry { attr: state.overlay(attr), valid }
    }

    /// As [`Self::adopt`] for an entry of a listing, whose attributes may be shown until `until`.
    pub(super) fn newest(&self, attr: &Attr, until: Instant) -> Entry {
        let now = clock::now();
        let mut state = self.lock();
        let (attr, until) = match state.get(attr.inode) {
            Some(known) if known.attr.version > attr.version => (known.attr.clone(), known.until),
            Some(known) if until > known.until => {
                known.take(attr.clone(), until, false);
                (attr.clone(), until)
            }
            None if until > now => {
                state.insert(attr.inode, Known::new(attr.clone(), until));
                (attr.clone(), until)
            }
            _ => (attr.clone(), until),
        };
        Entry { attr: state.overlay(attr), valid: self.left(until, now) }
    }

    /// Whether an inode without names was removed by another mount, and is not open here.
    pub(super) fn is_removed_elsewhere(&self, inode: InodeId) -> bool {
        let mut state = self.lock();
        !state.open.contains_key(&inode) && !state.get(inode).is_some_and(|known| known.removed_here)
    }

    /// The kernel has been shown attributes of these versions.
    pub(super) fn note_shown(&self, shown: impl Iterator<Item = (InodeId, u64)>) {
        let mut state = self.lock();
        for (inode, version) in shown {
            if let Some(known) = state.get(inode) {
                known.shown = known.shown.max(Some(version));
            }
        }
    }

    /// Whether this mount took the last name of an inode.
    pub(super) fn is_removed_here(&self, inode: InodeId) -> bool {
        self.lock().get(inode).is_some_and(|known| known.removed_here)
    }

    /// The newest version that this mount has shown or made itself.
    pub(super) fn seen_version(&self, inode: InodeId) -> Option<u64> {
        let mut state = self.lock();
        let made = state.open.get(&inode).map(|open| open.content.attr().version);
        let shown = state.get(inode).map(|known| known.attr.version);
        made.max(shown)
    }

    /// The version seen last.
    pub(super) fn version(&self, inode: InodeId) -> Option<u64> {
        self.lock().get(inode).map(|known| known.attr.version)
    }

    /// Drops what is cached for an inode.
    pub(super) fn forget(&self, inode: InodeId) {
        let mut state = self.lock();
        state.removed.take(inode);
        state.young.remove(&inode);
        state.old.remove(&inode);
    }

    /// Makes sure that attributes are fetched before they are shown again.
    pub(super) fn expire(&self, inode: InodeId) {
        if let Some(known) = self.lock().get(inode) {
            known.until = clock::now();
        }
    }

    /// [`Self::expire`], unless a lease covers the inode.
    pub(super) fn expire_unpinned(&self, inode: InodeId) {
        let mut state = self.lock();
        if !state.pinned.contains_key(&inode)
            && let Some(known) = state.get(inode)
        {
            known.until = clock::now();
        }
    }

    /// The extended attributes, when those of the present version are known.
    pub(super) fn xattrs(&self, inode: InodeId) -> Option<Xattrs> {
        let mut state = self.lock();
        if let Some(known) = state.removed(inode) {
            return known.xattrs.as_ref().map(|(_, xattrs, _)| Arc::clone(xattrs));
        }
        let known = state.get(inode)?;
        let fresh = known.until > clock::now();
        let (version, xattrs, _) = known.xattrs.as_ref()?;
        (fresh && *version == known.attr.version).then(|| Arc::clone(xattrs))
    }

    /// Keeps the extended attributes that belong to `version` of an inode.
    pub(super) fn keep_xattrs(&self, inode: InodeId, version: u64, xattrs: &Xattrs) {
        let mut state = self.lock();
        if self.all_xattrs.is_over() {
            state.forget_xattrs();
        }
        if let Some(known) = state.get(inode) {
            let mut counted = self.all_xattrs.begin();
            let bytes = |(name, value): &(Bytes, Bytes)| name.len() + value.len() + XATTR_COST;
            counted.set(XATTR_COST + xattrs.iter().map(bytes).sum::<usize>());
            known.xattrs = Some((version, Arc::clone(xattrs), counted));
        }
    }

    /// The content of an inode that is open here.
    pub(super) fn content(&self, inode: InodeId) -> Option<Arc<FileContent>> {
        self.lock().open.get(&inode).map(|open| Arc::clone(&open.content))
    }

    /// Counts one more open of an inode that was found at `version`. Tells what of that which the kernel may keep of it is
    /// still good; of what is not, it is told with the open.
    pub(super) fn opened(
        &self,
        inode: InodeId,
        content: &Arc<FileContent>,
        version: u64,
        paging: Paging,
    ) -> Good {
        let mut state = self.lock();
        let known = state.get(inode);
        let (pages, shown) = known.as_ref().map_or((None, None), |known| (known.pages, known.shown));
        if let Some(known) = known {
            known.shown = Some(version);
        }
        let foreign = content.foreign_changes();
        let mut good = Good { pages: true, attributes: true };
        let open = state.open.entry(inode).or_insert_with(|| {
            good = Good { pages: pages == Some(version), attributes: shown == Some(version) };
            Open { content: Arc::clone(content), handles: 0, mapping: 0, filling: 0, foreign }
        });
        if good.pages && open.handles == 0 {
            content.assume_read();
        }
        if open.foreign != foreign {
            good = Good { pages: false, attributes: false };
        }
        open.foreign = foreign;
        open.handles += 1;
        open.mapping += usize::from(paging.maps);
        open.filling += usize::from(paging.fills);
        good
    }

    /// What the handles of an inode make possible together.
    pub(super) fn paging(&self, inode: InodeId) -> Paging {
        let state = self.lock();
        let open = state.open.get(&inode);
        Paging {
            maps: open.is_some_and(|open| open.mapping > 0),
            fills: open.is_some_and(|open| open.filling > 0),
        }
    }

    /// Counts one open less. With the last one, what the content knows becomes what is known.
    pub(super) fn closed(&self, inode: InodeId, paging: Paging) {
        let mut state = self.lock();
        let Some(open) = state.open.get_mut(&inode) else { return };
        open.handles = open.handles.saturating_sub(1);
        open.mapping = open.mapping.saturating_sub(usize::from(paging.maps));
        open.filling = open.filling.saturating_sub(usize::from(paging.fills));
        if open.handles > 0 {
            return;
        }
        let Some(open) = state.open.remove(&inode) else { return };
        let undisturbed = open.foreign == open.content.foreign_changes();
        let attr = open.content.attr();
        if let Some(known) = state.get(inode) {
            known.pages = undisturbed.then_some(attr.version);
            known.shown = known.pages;
            if attr.version > known.attr.version {
                // Commits of this mount raised the version; nobody else can have done so unseen
                // when it was undisturbed. Their time is not known, so the old limit stays.
                known.attr = attr;
            }
        }
    }
}

impl Known {
    fn new(attr: Attr, until: Instant) -> Self {
        Self { attr, until, pages: None, shown: None, xattrs: None, removed_here: false, loses_name: false }
    }

    fn take(&mut self, attr: Attr, until: Instant, own: bool) {
        if attr.version < self.attr.version {
            return;
        }
        let follows =
            |version: Option<u64>| own && version.is_some_and(|version| version + 1 == attr.version);
        if follows(self.pages) {
            self.pages = Some(attr.version);
        }
        if follows(self.shown) {
            self.shown = Some(attr.version);
        }
        if self.xattrs.as_ref().is_some_and(|(version, ..)| *version != attr.version) {
            self.xattrs = None;
        }
        self.attr = attr;
        self.until = self.until.max(until);
    }
}

/// For what nobody else can change.
fn forever() -> Instant {
    clock::now() + Duration::from_secs(365 * 24 * 3600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn known(inode: InodeId) -> Known {
        let attr = Attr {
            inode,
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 0,
            size: 0,
            allocated: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            btime_ns: 0,
            version: 1,
            parent: Some(InodeId::ROOT),
            symlink_target: None,
            has_xattrs: false,
        };
        Known::new(attr, clock::now())
    }

    #[test]
    fn a_removed_inode_outlives_those_that_are_forgotten_and_there_are_not_too_many() {
        let ids = |count: usize| (2..2 + count as u64).map(|id| InodeId::new(id).unwrap());
        let mut removed = Removed::default();
        let now = clock::now();
        removed.insert(InodeId::ROOT, now, known(InodeId::ROOT));
        for inode in ids(2 * REMOVED_MAX) {
            removed.insert(inode, now, known(inode));
            assert!(removed.take(inode).is_some());
        }
        assert!(removed.shown(InodeId::ROOT).is_some());
        for inode in ids(REMOVED_MAX) {
            removed.insert(inode, now, known(inode));
        }
        assert!(removed.get(InodeId::ROOT).is_none(), "the oldest goes");
        assert_eq!((removed.known.len(), removed.order.len()), (REMOVED_MAX, REMOVED_MAX));
    }

    #[test]
    fn what_others_removed_is_shown_when_no_name_leads_there_any_more() {
        let mut removed = Removed::default();
        removed.insert(InodeId::ROOT, clock::now() + Duration::from_secs(3600), known(InodeId::ROOT));
        assert!(removed.get(InodeId::ROOT).is_some() && removed.shown(InodeId::ROOT).is_none());
    }
}
