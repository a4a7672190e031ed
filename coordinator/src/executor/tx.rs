//! What an operation executes against: committed rows, overlaid with the changes of its group.

mod pending;
mod steps;

use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_proto::{ErrorKind, InodeId, NodeId, SessionId};
use cairn_runtime::bugs::{Bug, planted};

use crate::context::Context;
use crate::error::OpError;
use crate::generations::{Generations, Weigh};
use crate::ops::plan::Granted;
use crate::ops::xattr::Totals;
use crate::sessions::Open;
use crate::slots::SlotCache;
use crate::store::{
    Batch, Count, Counter, Inode, Key, Kind, Orphan, Record, Row, Scan, StoreError, Table, Writer,
};

use pending::Pending;
pub(crate) use steps::Steps;

/// Extents that one job removes or copies, with what follows for their chunks: some ten milliseconds.
const EXTENTS_AT_ONCE: usize = 2048;
/// Rows that a job changes before it leaves what it can to later steps.
const JOB_ROWS: usize = 8192;
/// Extents that each part may remove even then, so that small files go at once.
const EXTENTS_ANYHOW: usize = 4;

impl Weigh for Key {
    fn heap_bytes(&self) -> usize {
        self.heap_bytes()
    }
}

impl Weigh for Option<Row> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, Row::heap_bytes)
    }
}

/// Rows as they are after everything executed so far.
pub(crate) struct Tx {
    store: Box<dyn Writer>,
    /// Changes of this group.
    pending: Pending,
    pending_bytes: usize,
    /// Rows remembered from earlier groups; `None`: there is no such row. As the only writer the executor may trust
    /// them.
    cache: Generations<Key, Option<Row>>,
    now_ns: i64,
    /// When the mutation under way was performed, if that is told.
    at_ns: Option<i64>,
    /// The job under way has told which inodes it changes.
    is_settled: bool,
    /// Inodes whose last names the job under way has taken.
    pub(crate) nameless: Vec<InodeId>,
    /// Opens that came with inodes which the job under way has made.
    pub(crate) opened: Vec<(SessionId, Open)>,
    /// Directories that the group removes; with the commit their leases end.
    pub(crate) removed_directories: Vec<InodeId>,
    /// Of the inode whose attributes were changed last.
    pub(crate) xattr_totals: Option<Totals>,
    /// What is left to be done step by step.
    pub(crate) steps: Steps,
    /// Extents that one job removes or copies at most.
    pub(crate) extents_at_once: usize,
    /// Rows after which a job of many parts leaves what it can to later steps.
    pub(crate) job_rows: usize,
    /// Datanodes that may lack a chunk of this group although they said that they have it.
    pub(crate) doubted: BTreeSet<NodeId>,
    pub(crate) slots: SlotCache,
    /// Plans granted lately.
    pub(crate) granted: Granted,
    pub(crate) context: Arc<Context>,
}

impl Tx {
    pub(crate) fn new(store: Box<dyn Writer>, context: Arc<Context>) -> Self {
        Self {
            store,
            pending: Pending::default(),
            pending_bytes: 0,
            cache: Generations::new(context.policy.memory.rows),
            now_ns: context.clock.now_ns(),
            at_ns: None,
            is_settled: false,
            nameless: Vec::new(),
            opened: Vec::new(),
            removed_directories: Vec::new(),
            xattr_totals: None,
            steps: Steps::default(),
            extents_at_once: EXTENTS_AT_ONCE,
            job_rows: JOB_ROWS,
            doubted: BTreeSet::new(),
            slots: SlotCache::new(context.policy.memory.replies),
            granted: Granted::default(),
            context,
        }
    }

    /// The time of what is under way, ns since the epoch, as files show it: that of the job, or the one
    /// given to [`Self::at`].
    pub(crate) fn now_ns(&self) -> i64 {
        self.at_ns.unwrap_or(self.now_ns)
    }

    /// The time of the job under way, for what is kept for a time. Never runs backwards.
    pub(crate) fn job_ns(&self) -> i64 {
        self.now_ns
    }

    /// Runs a part of a job as performed at `at_ns`, unless that is still to come.
    pub(crate) fn at<T>(&mut self, at_ns: Option<i64>, run: impl FnOnce(&mut Self) -> T) -> T {
        self.at_ns = at_ns.filter(|&at_ns| self.context.clock.accept(at_ns));
        let result = run(self);
        self.at_ns = None;
        result
    }

    /// Rows that the group has changed.
    pub(crate) fn changed_rows(&self) -> usize {
        self.pending.rows()
    }

    /// Bytes of rows that the group has put, those of jobs that failed included.
    pub(crate) fn changed_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Whether the job under way may begin with something more that can wait.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.mark() < self.job_rows
    }

    /// How many extents the job under way may still remove or copy; what is more has to wait for later steps.
    pub(crate) fn extents_left(&self) -> usize {
        let rows_left = self.job_rows.saturating_sub(self.pending.mark());
        // With each goes a row of its chunk and what the garbage of that takes.
        (rows_left / 4).max(EXTENTS_ANYHOW).min(self.extents_at_once)
    }

    /// Runs one job: when it fails, nothing of it stays.
    pub(crate) fn attempt<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        self.now_ns = self.context.clock.now_ns();
        self.is_settled = false;
        let mark = self.steps.mark();
        let result = self.nested(run);
        if !self.is_settled {
            // The coordinator's own work shows in no attribute that anybody has seen.
            self.settle(None);
        }
        self.pending.keep();
        if result.is_err() {
            self.steps.take_back(mark);
        }
        self.nameless.clear();
        self.opened.clear();
        result
    }

    /// At the end of what `session` has changed. `Leased`: others may show it as it was, without asking.
    pub(crate) fn settle_for(&mut self, session: SessionId) -> Result<(), OpError> {
        let leased = self.settle(Some(session));
        if leased.is_empty() || planted(Bug::ReadLeasesIgnored) {
            Ok(())
        } else {
            Err(OpError::Leased(leased))
        }
    }

    fn settle(&mut self, asker: Option<SessionId>) -> Vec<InodeId> {
        self.is_settled = true;
        let inode = |key: &Key| match key {
            Key::Inode(id) => Some(*id),
            _ => None,
        };
        let changed: BTreeSet<InodeId> = self.pending.changed().filter_map(inode).collect();
        if changed.is_empty() {
            return Vec::new();
        }
        self.context.leases.changing(asker, &Vec::from_iter(changed))
    }

    /// Runs a part of a job: when it fails, nothing of this part stays.
    pub(crate) fn nested<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        let (mark, nameless, opened) = (self.pending.mark(), self.nameless.len(), self.opened.len());
        let result = run(self);
        if result.is_err() {
            let (nameless, opened) = (self.nameless.split_off(nameless), self.opened.split_off(opened));
            self.context.sessions.take_back(&nameless, &opened);
            self.pending.take_back(mark);
            self.xattr_totals = None;
        }
        result
    }

    /// Whether the job under way has changed any row.
    pub(crate) fn has_changes(&self) -> bool {
        self.pending.mark() > 0
    }

    /// Writes the changes of the group, and the number of this commit with them.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        self.pending_bytes = 0;
        let removed = std::mem::take(&mut self.removed_directories);
        if self.pending.rows() == 0 {
            self.steps.keep();
            self.context.sessions.clear_condemned();
            return Ok(());
        }
        let sequence =
            Counter { name: Count::Sequence, value: self.context.sequence.get().saturating_add(1) };
        self.pending.put(sequence.clone().into());
        self.pending.keep();
        let mut batch = Batch::default();
        for (key, row) in self.pending.take() {
            self.remember(key.clone(), row.clone());
            match row {
                Some(row) => batch.puts.push(row),
                None => batch.deletes.push(key),
            }
        }
        let committed = self.store.commit(&batch);
        // Only now: who compares them reads what is committed.
        self.context.cluster.members().doubt(std::mem::take(&mut self.doubted));
        if committed.is_err() {
            self.forget();
        } else {
            self.context.sequence.set(sequence.value);
            self.context.cluster.publish();
            self.context.leases.remove(&removed);
            self.steps.keep();
        }
        self.context.sessions.clear_condemned();
        committed
    }

    /// Drops what is remembered of a group that was not written.
    fn forget(&mut self) {
        self.cache.clear();
        self.slots.clear();
        let sets = crate::store::list(&*self.store, &Scan::all(Table::ReplicaSet));
        let orphans = crate::store::list::<Orphan>(&*self.store, &Scan::all(Table::Orphan));
        // What became of the commit may be unknown: the store says which was the last.
        let sequence = crate::store::count(&*self.store, Count::Sequence);
        self.steps.take_back((0, 0));
        self.xattr_totals = None;
        match (sets, orphans, sequence) {
            (Ok(sets), Ok(orphans), Ok(sequence)) => {
                self.context.sequence.set(sequence);
                self.context.cluster.reset_sets(sets);
                self.context.sessions.reset_orphans(&orphans);
            }
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                tracing::error!(%error, "replica sets and orphans can not be read again");
            }
        }
    }

    pub(crate) fn get(&mut self, key: &Key) -> Result<Option<Row>, StoreError> {
        if let Some(change) = self.pending.get(key) {
            return Ok(change.clone());
        }
        if let Some(row) = self.cache.get(key) {
            return Ok(row.clone());
        }
        let row = self.store.get(key)?;
        self.remember(key.clone(), row.clone());
        Ok(row)
    }

    fn remember(&mut self, key: Key, row: Option<Row>) {
        // Replies are remembered elsewhere, and are much larger than other rows.
        if matches!(key, Key::Slot(..)) {
            return;
        }
        match row.map(Row::detached) {
            Some(row) => self.cache.insert(row.key(), Some(row)),
            None => self.cache.insert(key.detached(), None),
        }
    }

    pub(crate) fn find<R: Record>(&mut self, key: &Key) -> Result<Option<R>, StoreError> {
        Ok(self.get(key)?.and_then(R::from_row))
    }

    /// Rows of a range, with the changes of the group.
    pub(crate) fn list<R: Record>(&mut self, scan: &Scan) -> Result<Vec<R>, StoreError> {
        let rows = self.pending.scan(&*self.store, scan)?;
        Ok(rows.into_iter().filter_map(R::from_row).collect())
    }

    pub(crate) fn put(&mut self, row: impl Into<Row>) {
        let row: Row = row.into();
        self.pending_bytes += size_of::<Row>() + row.heap_bytes();
        self.pending.put(row);
    }

    pub(crate) fn delete(&mut self, key: Key) {
        self.pending.delete(key);
    }

    /// Adds to a counter.
    pub(crate) fn count(&mut self, name: Count, change: i64) -> Result<(), StoreError> {
        if change == 0 {
            return Ok(());
        }
        let old = self.find::<Counter>(&Key::Counter(name))?.map_or(0, |row| row.value);
        let value = old.saturating_add_signed(change);
        self.put(Counter { name, value });
        Ok(())
    }

    /// Takes `count` consecutive ids and returns the first. They are never given again.
    pub(crate) fn take_ids(&mut self, name: Count, count: u64) -> Result<u64, OpError> {
        let first = self.find::<Counter>(&Key::Counter(name))?.map_or(1, |row| row.value);
        let next = first.checked_add(count).filter(|&next| next <= i64::MAX as u64);
        let next = next.ok_or_else(|| OpError::new(ErrorKind::NoSpace, "all ids are used up"))?;
        self.put(Counter { name, value: next });
        Ok(first)
    }

    /// The inode that a handle names. `StaleHandle`: it is gone.
    pub(crate) fn inode(&mut self, id: InodeId) -> Result<Inode, OpError> {
        let stale = || OpError::new(ErrorKind::StaleHandle, format!("inode {id} is gone"));
        self.find(&Key::Inode(id))?.ok_or_else(stale)
    }

    /// A directory in which names are looked up or changed. `NotFound`: it is gone.
    pub(crate) fn directory(&mut self, id: InodeId) -> Result<Inode, OpError> {
        let gone = || OpError::new(ErrorKind::NotFound, format!("directory {id} is gone"));
        let inode: Inode = self.find(&Key::Inode(id))?.ok_or_else(gone)?;
        match inode.kind {
            Kind::Directory => Ok(inode),
            _ => Err(OpError::new(ErrorKind::NotDirectory, format!("inode {id} is no directory"))),
        }
    }
}

#[cfg(test)]
mod tests;
