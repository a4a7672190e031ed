//! Directories under write leases: their names are known here, and changed here.
//!
//! ```text
//! granted ──▶ Unread ──first use──▶ Reading ──▶ Ready ──recalled, too many──▶ Closing ──▶ given back
//! made here under a lease ─────────────────────▶ Ready
//! ```
//!
//! While a directory is `Ready`, its attributes are pinned, and so are those of the files that were
//! made in it since: no other mount can know these inodes. What is done locally ([`super::local`]) is
//! queued ([`crate::behind`]) and applied in order ([`super::apply`]); a lease is given back once the
//! queue is empty. Own changes that go to the coordinator all the same (hard links, directories that
//! move) exclude local ones in their directories for that time.
//!
//! Lock order: this state, then inodes, then the content of a file, then the queue.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::InodeId;
use cairn_proto::limits::PAGE_NAMES;
use cairn_proto::v1::mutation::Op;
use cairn_runtime::clock::{self, Instant};
use tokio::sync::Notify;

use super::pages::Page;
use super::{Result, Vfs};
use crate::coordinator::Granted;
use crate::retry::TRY_TIME;
use crate::session::leases::Era;
use crate::{Attr, DirPage, Kind};

mod unleased;

/// Directories whose leases are held; of more the least used are given back.
const DIRECTORIES_MAX: usize = 16_384;
/// Names known of them all, about 100 bytes each.
const NAMES_MAX: usize = 262_144;
/// A directory with more names is not worth reading for the change of one.
const NAMES_READ_MAX: u64 = 65_536;
/// Files whose attributes are pinned, about 400 bytes each.
const PRIVATE_MAX: usize = 65_536;
/// Inode ids that are reserved at once, and below how many more are asked for.
const IDS: u32 = 4096;
const IDS_LOW: u64 = 1024;
/// One in this many is given back when there are too many.
const SHED_SHARE: usize = 8;
/// A directory is being emptied for so long after the last removal of a name.
const EMPTIED_TIME: Duration = Duration::from_secs(1);

/// How an operation ended that was tried locally.
pub(super) enum Local<T> {
    /// It is done, or is known to fail.
    Done(Result<T>),
    /// Something is under way after which it can be tried again.
    Wait,
    /// The coordinator has to be asked.
    Remote,
}

impl<T> Local<T> {
    /// For who does not wait.
    pub(super) fn now(self) -> Option<Result<T>> {
        match self {
            Self::Done(result) => Some(result),
            Self::Wait | Self::Remote => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unread,
    Reading,
    Ready,
    Closing,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    pub(super) inode: InodeId,
    pub(super) kind: Kind,
}

struct Dir {
    /// 0: not known yet, it comes with the answer to its creation.
    grant: u64,
    phase: Phase,
    /// The directory that it was made in, when it was made without a lease.
    unleased_in: Option<InodeId>,
    entries: HashMap<Bytes, Child>,
    used: u64,
    /// When a name was last removed.
    removed: Option<Instant>,
}

impl Dir {
    fn new(grant: u64, used: u64) -> Self {
        Self { grant, phase: Phase::Unread, unleased_in: None, entries: HashMap::new(), used, removed: None }
    }

    /// All names are known.
    fn known(mut self, entries: impl Iterator<Item = (Bytes, Child)>) -> Self {
        self.entries = entries.collect();
        self.phase = Phase::Ready;
        self
    }
}

/// How it stands with new inode ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Refill {
    #[default]
    Idle,
    UnderWay,
    /// None could be reserved, and nobody was told yet.
    Failed,
}

#[derive(Default)]
pub(super) struct State {
    dirs: HashMap<InodeId, Dir>,
    /// Files that no other mount can know → the directory of their only name.
    private: HashMap<InodeId, InodeId>,
    /// Own changes at the coordinator under way, by directory.
    under_way: HashMap<InodeId, usize>,
    /// How many of `dirs` were made without a lease.
    unleased: usize,
    names: usize,
    ids: Range<u64>,
    refill: Refill,
    uses: u64,
}

pub(super) struct Leased {
    enabled: bool,
    state: Mutex<State>,
    /// A phase has changed.
    changed: Notify,
}

impl Leased {
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, state: Mutex::default(), changed: Notify::new() }
    }

    /// Some of what was pending has been applied: whoever waits for room goes on.
    pub(super) fn room_again(&self) {
        self.changed.notify_waiters();
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn child(&self, directory: InodeId, name: &Bytes) -> Option<Child> {
        self.dirs.get(&directory)?.entries.get(name).copied()
    }

    /// A directory whose names are still to be read needs no change of one.
    fn readable(&mut self, directory: InodeId) -> Option<&mut Dir> {
        self.dirs.get_mut(&directory).filter(|dir| dir.phase != Phase::Unread)
    }

    pub(super) fn insert(&mut self, directory: InodeId, name: Bytes, child: Child) {
        let Some(dir) = self.readable(directory) else { return };
        if dir.entries.insert(name, child).is_none() {
            self.names += 1;
        }
    }

    pub(super) fn remove(&mut self, directory: InodeId, name: &Bytes) -> Option<Child> {
        let removed = self.readable(directory)?.entries.remove(name)?;
        self.note_removal(directory);
        self.names = self.names.saturating_sub(1);
        Some(removed)
    }

    /// The directory is being emptied, or will be.
    fn note_removal(&mut self, directory: InodeId) {
        if let Some(dir) = self.dirs.get_mut(&directory) {
            dir.removed = Some(clock::now());
        }
    }

    /// `false`: no lease on it is held.
    fn learn_grant(&mut self, directory: InodeId, grant: u64) -> bool {
        let Some(dir) = self.dirs.get_mut(&directory) else { return false };
        dir.grant = dir.grant.max(grant);
        true
    }

    /// Whether a lease on it is held.
    pub(super) fn is_held(&self, directory: InodeId) -> bool {
        self.dirs.contains_key(&directory)
    }

    /// Whether a lease on it is held, and not given back before what is done now has been applied.
    pub(super) fn keeps(&self, directory: InodeId) -> bool {
        self.dirs.get(&directory).is_some_and(|dir| dir.phase != Phase::Closing)
    }

    /// Whether this mount has it changed at the coordinator just now.
    pub(super) fn is_under_way(&self, directory: InodeId) -> bool {
        self.under_way.contains_key(&directory)
    }

    /// Whether names are being removed there, as by `rm -r`.
    pub(super) fn is_being_emptied(&self, directory: InodeId) -> bool {
        let removed = self.dirs.get(&directory).and_then(|dir| dir.removed);
        removed.is_some_and(|at| at.elapsed() < EMPTIED_TIME)
    }

    /// Whether a directory is held whose names are all known: then how many there are.
    pub(super) fn names_in(&self, directory: InodeId) -> Option<usize> {
        let idle = !self.under_way.contains_key(&directory);
        let dir = self.dirs.get(&directory).filter(|dir| idle && dir.phase == Phase::Ready)?;
        Some(dir.entries.len())
    }

    /// A directory that has just been made here.
    pub(super) fn add_new(&mut self, directory: InodeId) {
        self.dirs.insert(directory, Dir::new(0, self.uses).known(std::iter::empty()));
    }

    /// The directory is removed.
    pub(super) fn drop_dir(&mut self, directory: InodeId) {
        drop(self.take_dir(directory));
    }

    fn take_dir(&mut self, directory: InodeId) -> Option<Dir> {
        let dir = self.dirs.remove(&directory)?;
        self.names = self.names.saturating_sub(dir.entries.len());
        self.unleased -= usize::from(dir.unleased_in.is_some());
        Some(dir)
    }

    pub(super) fn may_hold_more(&self) -> bool {
        self.dirs.len() < 2 * DIRECTORIES_MAX
    }

    /// Notes that nobody else can know a file. `false`: there are too many already.
    pub(super) fn add_private(&mut self, inode: InodeId, directory: InodeId) -> bool {
        let room = self.private.len() < PRIVATE_MAX || self.private.contains_key(&inode);
        if room {
            self.private.insert(inode, directory);
        }
        room
    }

    pub(super) fn is_private(&self, inode: InodeId) -> bool {
        self.private.contains_key(&inode)
    }

    pub(super) fn drop_private(&mut self, inode: InodeId) -> bool {
        self.private.remove(&inode).is_some()
    }

    fn is_too_full(&self) -> bool {
        self.dirs.len() > DIRECTORIES_MAX || self.names > NAMES_MAX
    }

    /// The attributes of an inode are this mount's to change: its own lease, or that of the directory of a
    /// private file, is held and nothing else is at work there.
    pub(super) fn covering(&self, inode: InodeId) -> Option<InodeId> {
        if self.dirs.contains_key(&inode) { Some(inode) } else { self.private.get(&inode).copied() }
    }
}

impl Vfs {
    /// Whether names of `directory` can be looked up and changed locally now.
    pub(super) fn available(self: &Arc<Self>, state: &mut State, directory: InodeId) -> Local<()> {
        let busy = state.under_way.contains_key(&directory);
        state.uses += 1;
        let uses = state.uses;
        let Some(dir) = state.dirs.get_mut(&directory) else { return Local::Remote };
        if !self.session().leases.are_trusted() {
            return Local::Remote;
        }
        dir.used = uses;
        match dir.phase {
            _ if busy => Local::Wait,
            Phase::Ready => Local::Done(Ok(())),
            Phase::Reading | Phase::Closing => Local::Wait,
            Phase::Unread => {
                dir.phase = Phase::Reading;
                drop(self.runtime.spawn(Arc::clone(self).read_names(directory)));
                Local::Wait
            }
        }
    }

    /// Whether nobody but this mount can have changed an inode since its lease was granted.
    pub(super) fn is_alone_with(&self, inode: InodeId) -> bool {
        self.session().leases.are_trusted() && self.leased.lock().covering(inode).is_some()
    }

    /// Tries an operation locally until it is done, or known to be the coordinator's: then `None`.
    pub(super) async fn locally<T>(&self, mut operation: impl FnMut() -> Local<T>) -> Option<Result<T>> {
        loop {
            let changed = self.leased.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match operation() {
                Local::Done(result) => return Some(result),
                Local::Remote => return None,
                // Bounded, so that trust that runs out meanwhile is noticed.
                Local::Wait => drop(clock::timeout(TRY_TIME, changed).await),
            }
        }
    }

    /// Reads the names of a directory whose lease was granted.
    async fn read_names(self: Arc<Self>, directory: InodeId) {
        let read = self.collect_names(directory).await;
        let mut state = self.leased.lock();
        let Some(dir) = state.dirs.get_mut(&directory).filter(|dir| dir.phase == Phase::Reading) else {
            return;
        };
        match read {
            Ok((entries, attr)) => {
                let count = entries.len();
                dir.entries = entries;
                dir.phase = Phase::Ready;
                state.names += count;
                self.inodes.pin(attr);
            }
            Err(error) => {
                tracing::debug!(inode = %directory, %error, "a directory can not be read, its lease is given back");
                let grant = dir.grant;
                state.drop_dir(directory);
                self.session().leases.release(directory, grant);
            }
        }
        drop(state);
        self.leased.changed.notify_waiters();
    }

    async fn collect_names(&self, directory: InodeId) -> Result<(HashMap<Bytes, Child>, Attr)> {
        self.client.behind().applied(directory).await?;
        let mut entries = HashMap::new();
        let mut after = 0;
        loop {
            let page = self.coordinator().read_dir(directory, after, PAGE_NAMES, false).await?;
            entries.extend(entries_of(&page));
            if page.end {
                return Ok((entries, page.directory));
            }
            after = page.last_cookie().unwrap_or(after);
        }
    }

    /// An id for a new inode. When none can be reserved, the coordinator says why at the creation that it is asked for.
    pub(super) fn take_id(self: &Arc<Self>, state: &mut State) -> Local<InodeId> {
        let left = state.ids.end.saturating_sub(state.ids.start);
        if left == 0 && state.refill == Refill::Failed {
            state.refill = Refill::Idle;
            return Local::Remote;
        }
        if left < IDS_LOW && state.refill != Refill::UnderWay {
            state.refill = Refill::UnderWay;
            drop(self.runtime.spawn(Arc::clone(self).refill()));
        }
        match state.ids.next().map(InodeId::new) {
            Some(Ok(id)) => Local::Done(Ok(id)),
            Some(Err(_)) => Local::Remote,
            None => Local::Wait,
        }
    }

    async fn refill(self: Arc<Self>) {
        let reserved = self.coordinator().reserve_inodes(IDS).await;
        let mut state = self.leased.lock();
        match reserved {
            // What is left of the old ones is not missed.
            Ok(ids) => (state.ids, state.refill) = (ids, Refill::Idle),
            Err(error) => {
                tracing::warn!(%error, "no inode ids could be reserved");
                state.refill = Refill::Failed;
            }
        }
        drop(state);
        self.leased.changed.notify_waiters();
    }

    /// Whether a lease on `directory` would be of use.
    pub(super) fn wants_lease(&self, directory: InodeId) -> bool {
        let small = |attr: Attr| attr.size <= NAMES_READ_MAX;
        self.leased.is_enabled() && self.inodes.last(directory).is_none_or(small)
    }

    /// Excludes local changes in `directories` until the guard is dropped.
    pub(super) async fn begin_remote(self: &Arc<Self>, directories: &[InodeId]) -> UnderWay {
        let free = || {
            let mut state = self.leased.lock();
            let busy = |directory: &InodeId| {
                let dir = state.dirs.get(directory);
                dir.is_some_and(|dir| matches!(dir.phase, Phase::Reading | Phase::Closing))
            };
            if directories.iter().any(busy) {
                return Local::Wait;
            }
            for &directory in directories {
                *state.under_way.entry(directory).or_default() += 1;
            }
            Local::Done(Ok(()))
        };
        let _ = self.locally(free).await;
        UnderWay { vfs: Arc::clone(self), directories: directories.to_vec(), known: false }
    }

    /// Takes the leases that came with an answer.
    pub(super) fn take_leases(self: &Arc<Self>, op: &Op, granted: &Granted) {
        if !self.leased.is_enabled() {
            return;
        }
        let mut state = self.leased.lock();
        for lease in &granted.leases {
            let Ok(inode) = InodeId::new(lease.inode) else { continue };
            if !self.session().leases.take_grant(inode, lease.grant, granted.era) {
                continue;
            }
            if !state.learn_grant(inode, lease.grant) {
                let known = self.names_before(inode, op, granted);
                let known = known.as_ref().map(|(page, attr)| (&page.page, attr));
                self.begin_lease(&mut state, inode, lease.grant, known);
            }
        }
    }

    /// The names of a directory before a change that brought its lease, when they are known, and its attributes
    /// afterwards.
    fn names_before(&self, directory: InodeId, op: &Op, granted: &Granted) -> Option<(Arc<Page>, Attr)> {
        // Others may succeed and change nothing: then the one change since was somebody else's.
        let is_change = match op {
            Op::Create(create) => create.exclusive,
            Op::Unlink(_) | Op::Rmdir(_) => true,
            _ => false,
        };
        let parent = granted.applied.parent.as_ref();
        let attr = parent.filter(|attr| is_change && attr.inode == directory)?;
        Some((self.covered_before(directory, attr.version, granted.era)?, attr.clone()))
    }

    /// A directory is leased from here on. `known`: all its names, which need not be read then, and its attributes.
    fn begin_lease(
        &self,
        state: &mut State,
        directory: InodeId,
        grant: u64,
        known: Option<(&DirPage, &Attr)>,
    ) {
        let mut dir = Dir::new(grant, state.uses);
        if let Some((page, attr)) = known {
            self.inodes.pin(attr.clone());
            state.names += page.len();
            dir = dir.known(entries_of(page));
        }
        state.dirs.insert(directory, dir);
    }

    /// Whether a directory that is being listed will be emptied next: its parent is.
    pub(super) fn will_be_emptied(&self, directory: InodeId) -> bool {
        let parent = self.inodes.last(directory).and_then(|attr| attr.parent);
        let state = self.leased.lock();
        let is_wanted = !state.is_held(directory) && state.may_hold_more();
        is_wanted && parent.is_some_and(|parent| state.is_being_emptied(parent))
    }

    /// Takes the write lease that came with a listing, and the names with it when they are all.
    pub(super) fn take_listed_lease(&self, page: &DirPage, grant: u64, era: Era) {
        let directory = page.directory.inode;
        let mut state = self.leased.lock();
        if !self.leased.is_enabled() || !self.session().leases.take_grant(directory, grant, era) {
            return;
        }
        if state.learn_grant(directory, grant) {
            return;
        }
        let is_newest = self.inodes.version(directory) == Some(page.directory.version);
        let is_known = page.end && is_newest && !state.is_under_way(directory);
        self.begin_lease(&mut state, directory, grant, is_known.then_some((page, &page.directory)));
        state.note_removal(directory);
    }

    /// The grant of a directory that was made here has come.
    pub(super) fn learn_grant(&self, lease: &cairn_proto::v1::Lease) {
        if let Ok(inode) = InodeId::new(lease.inode) {
            self.leased.lock().learn_grant(inode, lease.grant);
        }
    }

    /// Something went otherwise than expected there: the names are read again before they are used.
    pub(super) fn reread(&self, directory: InodeId) {
        let mut state = self.leased.lock();
        let Some(dir) = state.dirs.get_mut(&directory).filter(|dir| dir.phase == Phase::Ready) else {
            return;
        };
        dir.phase = Phase::Unread;
        let entries = std::mem::take(&mut dir.entries);
        state.names = state.names.saturating_sub(entries.len());
        drop(state);
        self.inodes.unpin(directory);
    }

    /// Gives a lease back once everything done under it has been applied. `recalled`: the grant that is asked for.
    pub(super) async fn give_back(self: Arc<Self>, directory: InodeId, recalled: u64) {
        if let Some(dir) = self.leased.lock().dirs.get_mut(&directory) {
            dir.phase = Phase::Closing;
        } else {
            return self.session().leases.release(directory, recalled);
        }
        let era = self.session().leases.era();
        while clock::timeout(TRY_TIME, self.client.behind().all_applied_at_last()).await.is_err() {
            tracing::warn!(inode = %directory, "a lease can not be given back yet: changes are still to be applied");
            if self.session().leases.era() != era {
                break; // the coordinator knows what this client said on its return
            }
        }
        self.unleased_given_up(directory).await;
        {
            let mut state = self.leased.lock();
            let grant = state.dirs.get(&directory).map_or(recalled, |dir| dir.grant.max(recalled));
            for inode in state.end(directory) {
                self.inodes.unpin(inode);
            }
            self.session().leases.release(directory, grant);
        }
        self.leased.changed.notify_waiters();
    }

    /// The session was replaced: all leases are gone. What is queued is applied all the same.
    pub(super) fn lose_leases(&self) {
        let Some(session) = self.session().leases.lost() else { return };
        self.covers.clear();
        let mut state = self.leased.lock();
        let dirs: Vec<_> = state.dirs.keys().copied().collect();
        if !dirs.is_empty() {
            tracing::warn!(directories = dirs.len(), "the leases of an expired session are lost");
        }
        for directory in dirs {
            for inode in state.end(directory) {
                self.inodes.unpin(inode);
            }
        }
        self.session().leases.clear(session);
        drop(state);
        self.leased.changed.notify_waiters();
    }

    /// Gives back the leases used least, when there are too many.
    pub(super) fn shed(self: &Arc<Self>) {
        let least_used: Vec<InodeId> = {
            let state = self.leased.lock();
            if !state.is_too_full() {
                return;
            }
            let ready = state.dirs.iter().filter(|(_, dir)| dir.phase == Phase::Ready);
            let mut by_use: Vec<_> = ready.map(|(&inode, dir)| (dir.used, inode)).collect();
            by_use.sort_unstable();
            let count = (by_use.len() / SHED_SHARE).max(1);
            by_use.into_iter().take(count).map(|(_, inode)| inode).collect()
        };
        for directory in least_used {
            drop(self.runtime.spawn(Arc::clone(self).give_back(directory, 0)));
        }
    }
}

fn entries_of(page: &DirPage) -> impl Iterator<Item = (Bytes, Child)> {
    page.iter_from(0)
        .map(|entry| (Bytes::copy_from_slice(entry.name), Child { inode: entry.inode, kind: entry.kind }))
}

impl State {
    /// Ends a lease; the inodes that it covered.
    fn end(&mut self, directory: InodeId) -> Vec<InodeId> {
        let Some(dir) = self.take_dir(directory) else { return Vec::new() };
        let mut covered = vec![directory];
        for child in dir.entries.values() {
            if self.private.get(&child.inode) == Some(&directory) {
                self.private.remove(&child.inode);
                covered.push(child.inode);
            }
        }
        covered
    }
}

/// Own changes of directories that are under way at the coordinator.
pub(super) struct UnderWay {
    vfs: Arc<Vfs>,
    directories: Vec<InodeId>,
    /// What became of them is known, and what is known of the directories is right.
    known: bool,
}

impl UnderWay {
    /// The outcome is known and has been taken into account.
    pub(super) fn end(mut self) {
        self.known = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.vfs.leased.lock();
        for directory in &self.directories {
            if let Some(count) = state.under_way.get_mut(directory) {
                *count -= 1;
                if *count == 0 {
                    state.under_way.remove(directory);
                }
            }
        }
        drop(state);
        if !self.known {
            for &directory in &self.directories {
                self.vfs.covers.drop_cover(directory);
                self.vfs.reread(directory);
            }
        }
        self.vfs.leased.changed.notify_waiters();
    }
}
