//! The content of one file: buffered writes, over those on their way, over committed extents.
//!
//! ```text
//! read:  buffer ▸ flights, newest first ▸ extents ▸ cache ▸ datanodes
//! write: buffer ─(full, old, flush)─▸ flight ─stored, committed─▸ extents
//! ```
//!
//! Invariants:
//! * A byte is always in exactly the layer that holds its newest value on top, so that a read that
//!   looks through the layers under one lock sees each write once, whole or not at all.
//! * Extents belong to the version of `State::attr`.
//! * The lock is held for short computations only, never across a wait.

mod change;
pub(crate) mod extents;
mod failure;
mod read;
mod write;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cairn_proto::{InodeId, mode};
use cairn_runtime::clock::Instant;
use tokio::sync::Notify;

use crate::attr::Attr;
use crate::budget::Reservation;
use crate::engine::Engine;
use crate::error::{ClientError, Result};
use crate::layout::Layout;
use crate::reader::ahead::ReadAhead;
use crate::writer::Landing;
use crate::writer::dirty::DirtyMap;
use crate::writer::flight::Flight;
use extents::ExtentMap;
use failure::Failures;
pub use failure::Told;
pub(crate) use write::Drops;
pub use write::Place;

/// The content of one inode as this client sees it; all its handles share it.
///
/// Every `async` method can be dropped at any time: work that was begun goes on in the background.
#[derive(Debug)]
pub struct FileContent {
    inode: InodeId,
    engine: Arc<Engine>,
    this: Weak<Self>,
    state: Mutex<State>,
    /// Held by changes of the whole file (truncate, allocate, clone), one at a time.
    changes: tokio::sync::Mutex<()>,
    /// Held while a layout is fetched, so that many readers ask once.
    layouts: tokio::sync::Mutex<()>,
    /// Told when a hold ends.
    released: Notify,
    /// Up to where the file has been read by those above.
    read_until: AtomicU64,
    /// Of those who come without a descriptor of their own.
    told: Told,
}

#[derive(Debug)]
struct State {
    /// As last heard, without buffered writes.
    attr: Attr,
    foreign: u64,
    extents: ExtentMap,
    dirty: DirtyMap,
    memory: Reservation,
    dirty_since: Option<Instant>,
    /// The version at which all of the content was known to survive power loss, whoever wrote it.
    synced: Option<u64>,
    /// Something was committed here without sync since.
    unsynced: bool,
    /// When the newest buffered byte was written.
    written_ns: i64,
    /// Of the buffered writes together.
    drops: Drops,
    /// Oldest first.
    flights: VecDeque<Arc<Flight>>,
    /// Nothing is taken into the buffer meanwhile, and what is in it is taken out by the holder alone.
    held: bool,
    /// What stores in the background met.
    failures: Failures,
    ahead: ReadAhead,
}

impl FileContent {
    pub(crate) fn new(engine: &Arc<Engine>, attr: &Attr) -> Arc<Self> {
        let mut extents = ExtentMap::new(engine.budget.layouts.begin());
        if attr.size == 0 {
            extents.empty();
        }
        let state = State {
            attr: attr.clone(),
            foreign: 0,
            extents,
            dirty: DirtyMap::default(),
            memory: engine.budget.writes.nothing(),
            dirty_since: None,
            synced: (attr.allocated == 0).then_some(attr.version),
            unsynced: false,
            written_ns: 0,
            drops: Drops::default(),
            flights: VecDeque::new(),
            held: false,
            failures: Failures::after(engine.untold.take(attr.inode)),
            ahead: ReadAhead::default(),
        };
        Arc::new_cyclic(|this| Self {
            inode: attr.inode,
            engine: Arc::clone(engine),
            this: Weak::clone(this),
            state: Mutex::new(state),
            changes: tokio::sync::Mutex::default(),
            layouts: tokio::sync::Mutex::default(),
            released: Notify::new(),
            read_until: AtomicU64::new(0),
            told: Told::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share in this content for work that outlives the call.
    fn shared(&self) -> Result<Arc<Self>> {
        // Only a value that is being dropped can not be shared any more.
        self.this.upgrade().ok_or(ClientError::Closed)
    }

    /// Which inode.
    pub fn inode(&self) -> InodeId {
        self.inode
    }

    /// Bytes in the file, buffered writes included.
    pub fn size(&self) -> u64 {
        self.lock().size()
    }

    /// The newest attributes known, buffered writes included.
    pub fn attr(&self) -> Attr {
        let state = self.lock();
        state.overlay(state.attr.clone())
    }

    /// The newest attributes known, without buffered writes.
    pub(crate) fn attr_committed(&self) -> Attr {
        self.lock().attr.clone()
    }

    /// Attributes as seen through the buffered writes; the newest known ones when those are newer.
    pub fn attr_overlay(&self, attr: Attr) -> Attr {
        let state = self.lock();
        let newest = if state.attr.version > attr.version { state.attr.clone() } else { attr };
        state.overlay(newest)
    }

    /// Adopts newer attributes (and a layout) from an open, lookup or getattr. Buffered writes stay.
    pub fn refresh(&self, attr: &Attr, layout: Option<Layout>) {
        let mut state = self.lock();
        state.adopt(attr, false);
        if let Some(layout) = layout {
            state.adopt(&layout.attr, false);
            state.learn(&layout);
        }
        drop(state);
        self.engine.trim_layouts(self.inode);
    }

    /// Adopts the attributes that an own change of the inode gave (mode, times, names, xattrs; not
    /// its content): what is known of the content stays when nobody else came between.
    pub fn refresh_own(&self, attr: &Attr) {
        self.lock().adopt(attr, true);
    }

    /// Counts the changes of the content by others that were noticed: while it stays the same, what
    /// was read before is still good.
    pub fn foreign_changes(&self) -> u64 {
        self.lock().foreign
    }

    /// Whether writes are buffered or under way.
    pub fn is_dirty(&self) -> bool {
        self.lock().is_dirty()
    }

    /// Whether the file has set-user-ID or set-group-ID, as last heard.
    pub(crate) fn has_set_id(&self) -> bool {
        let mode = self.lock().attr.mode;
        mode != mode::without_privileges(mode)
    }

    /// Whether a read has asked for the byte at `offset`, or a later one, so that a page cache above may have it.
    pub(crate) fn was_read(&self, offset: u64) -> bool {
        self.read_until.load(Ordering::Relaxed) > offset
    }

    /// A page cache above may have anything, from before.
    pub(crate) fn assume_read(&self) {
        self.read_until.store(u64::MAX, Ordering::Relaxed);
    }

    /// No page cache above has the last page.
    pub(crate) fn forget_reads(&self) {
        self.read_until.store(0, Ordering::Relaxed);
    }

    /// For a descriptor that is opened now.
    pub fn told(&self) -> Told {
        self.lock().failures.told()
    }

    /// Whether [`Self::flush_for`] has anything to do or to tell.
    pub fn needs_flush(&self, told: &Told) -> bool {
        let state = self.lock();
        let unsure = self.engine.config.durable_close && state.unsynced;
        state.is_dirty() || state.failures.concern(told) || unsure
    }

    /// How long the oldest byte has been in the buffer.
    pub(crate) fn dirty_age(&self) -> Option<Duration> {
        self.lock().dirty_since.map(|since| since.elapsed())
    }

    /// A flight is committed, or has failed for good.
    pub(crate) fn on_landed(&self, flight: &Arc<Flight>, outcome: Result<Landing>) {
        let clean = {
            let mut state = self.lock();
            state.flights.retain(|other| !Arc::ptr_eq(other, flight));
            match outcome {
                Ok(landing) => {
                    if landing.synced {
                        flight.leave_synced();
                        state.know_synced(landing.attr.version);
                    } else {
                        state.unsynced = true;
                    }
                    state.land(&landing);
                }
                Err(error) => state.failures.add(error),
            }
            let clean = !state.is_dirty();
            if clean {
                self.engine.remove_dirty(self.inode);
            }
            clean
        };
        if clean {
            self.released.notify_waiters();
        }
        self.engine.trim_layouts(self.inode);
    }

    /// Forgets where the bytes of the file lie; it is asked for again where it is needed.
    pub(crate) fn forget_layout(&self) {
        let mut state = self.lock();
        if state.extents.is_worth_dropping() {
            state.extents.clear();
        }
    }

    /// The error that the background has met, while nobody was told of it.
    pub(crate) fn check_failures(&self) -> Result<()> {
        self.lock().failures.check()
    }
}

impl State {
    fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.flights.is_empty()
    }

    fn size(&self) -> u64 {
        let flying = self.flights.iter().map(|flight| flight.end()).max().unwrap_or(0);
        self.attr.size.max(flying).max(self.dirty.end().unwrap_or(0))
    }

    fn overlay(&self, mut attr: Attr) -> Attr {
        if self.is_dirty() {
            let flying = self.flights.iter().map(|flight| flight.end()).max().unwrap_or(0);
            attr.size = attr.size.max(flying).max(self.dirty.end().unwrap_or(0));
            let buffered =
                self.flights.iter().map(|flight| flight.bytes).sum::<u64>() + self.dirty.bytes() as u64;
            attr.allocated = attr.allocated.max(attr.size.min(attr.allocated + buffered));
            attr.mtime_ns = self.written_ns;
            attr.ctime_ns = attr.ctime_ns.max(self.written_ns);
        }
        attr
    }

    /// Takes newer attributes. With `own` the change is known not to concern the content.
    fn adopt(&mut self, attr: &Attr, own: bool) {
        if attr.version < self.attr.version || attr.inode != self.attr.inode {
            return;
        }
        let follows = own && attr.version == self.attr.version + 1;
        if follows && self.synced == Some(self.attr.version) {
            self.synced = Some(attr.version);
        }
        if follows && attr.size > self.attr.size {
            self.extents.resize(self.attr.size, attr.size);
        }
        if attr.version > self.attr.version && !follows {
            self.foreign += 1;
            self.extents.clear();
            if attr.size == 0 {
                self.extents.empty();
            }
        }
        self.attr = attr.clone();
    }

    /// All content as of a version survives power loss.
    fn know_synced(&mut self, version: u64) {
        self.synced = self.synced.max(Some(version));
        self.unsynced &= self.attr.version > version;
    }

    /// Takes a layout when it is of the present version.
    fn learn(&mut self, layout: &Layout) {
        if layout.attr.version == self.attr.version {
            self.extents.merge(layout);
        }
    }

    /// Takes what a commit of this client has changed.
    fn land(&mut self, landing: &Landing) {
        let (old, new) = (self.attr.size, &landing.attr);
        if new.version < self.attr.version {
            return; // a later state is known already, this commit included
        }
        if new.version > self.attr.version + 1 {
            self.foreign += 1;
            self.extents.clear();
        } else if new.version == self.attr.version + 1 && new.size > old {
            self.extents.resize(old, new.size);
        }
        self.attr = new.clone();
        for (extent, info) in &landing.extents {
            self.extents.insert(*extent, info);
        }
    }
}

impl Drop for FileContent {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.failures.unseen().filter(|_| state.attr.nlink > 0) {
            self.engine.untold.keep(self.inode, error.clone());
        }
        self.engine.forget_content(self.inode);
    }
}
