//! Changes of a group that are not committed yet, by table, and how the latest of them are taken back.
//!
//! A scan merges them with the stored rows in the order of the keys. It reads from the store what it returns
//! and what the group has deleted in front of that, and copies no change that it does not return.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use crate::store::{Key, Reader, Row, Scan, ScanRange, StoreError, Table};

/// A changed row; `None`: it is deleted.
type Change = Option<Row>;

/// What a group has changed, and what the job under way can take back.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// By `Table as usize`; made when the first row changes.
    tables: Vec<BTreeMap<Key, Change>>,
    rows: usize,
    /// What was there before each change of the job under way; `None`: the row was unchanged.
    undo: Vec<(Key, Option<Change>)>,
}

impl Pending {
    /// Rows that the group has changed.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    fn table(&self, table: Table) -> Option<&BTreeMap<Key, Change>> {
        self.tables.get(table as usize)
    }

    fn table_mut(&mut self, table: Table) -> &mut BTreeMap<Key, Change> {
        if self.tables.is_empty() {
            self.tables.resize_with(Table::ALL.len(), BTreeMap::new);
        }
        // An enum without values of its own: its variants count from 0 in the order of `Table::ALL`.
        &mut self.tables[table as usize]
    }

    /// What the group has made of a row; `None`: nothing.
    pub(super) fn get(&self, key: &Key) -> Option<&Change> {
        self.table(key.table())?.get(key)
    }

    pub(super) fn put(&mut self, row: Row) {
        self.change(row.key(), Some(row));
    }

    pub(super) fn delete(&mut self, key: Key) {
        self.change(key, None);
    }

    fn change(&mut self, key: Key, row: Change) {
        let before = self.table_mut(key.table()).insert(key.clone(), row);
        self.rows += usize::from(before.is_none());
        self.undo.push((key, before));
    }

    /// Where the job under way stands, for [`Self::take_back`].
    pub(super) fn mark(&self) -> usize {
        self.undo.len()
    }

    /// Takes back what has changed since `mark`.
    pub(super) fn take_back(&mut self, mark: usize) {
        while self.undo.len() > mark {
            let Some((key, before)) = self.undo.pop() else { break };
            let table = self.table_mut(key.table());
            match before {
                Some(before) => drop(table.insert(key, before)),
                None => {
                    table.remove(&key);
                    self.rows -= 1;
                }
            }
        }
    }

    /// The keys that the job under way has changed; some of them more than once.
    pub(super) fn changed(&self) -> impl Iterator<Item = &Key> {
        self.undo.iter().map(|(key, _)| key)
    }

    /// The job under way stands.
    pub(super) fn keep(&mut self) {
        self.undo.clear();
    }

    /// Takes all changes, in the order of their keys; none is left.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (Key, Change)> + use<> {
        self.rows = 0;
        std::mem::take(&mut self.tables).into_iter().flatten()
    }

    /// The rows of a scan as they are with these changes.
    pub(super) fn scan(&self, store: &(impl Reader + ?Sized), scan: &Scan) -> Result<Vec<Row>, StoreError> {
        if scan.limit == 0 || is_empty(&scan.range) {
            return Ok(Vec::new());
        }
        let mut changes = self.within(scan).peekable();
        if changes.peek().is_none() {
            return store.scan(scan);
        }
        let mut found = Vec::new();
        let mut page = Scan { range: self.narrowed(scan), ..scan.clone() };
        // The last stored row that was looked at, and how many of them are deleted.
        let (mut seen, mut deleted): (Option<Key>, usize) = (None, 0);
        loop {
            let rows = store.scan(&page)?;
            let is_last = rows.len() < page.limit;
            for row in rows {
                let key = row.key();
                let is_new =
                    seen.as_ref().is_none_or(|seen| if scan.reverse { key < *seen } else { key > *seen });
                if is_new {
                    seen = Some(key.clone());
                    deleted += usize::from(!merge(&mut changes, key, row, scan.reverse, &mut found));
                }
            }
            let Some(last) = seen.as_ref().filter(|_| !is_last && found.len() < scan.limit) else { break };
            // As many rows as are missing, as many as fell away so far (they may go on), and `last` again.
            let more = scan.limit.saturating_sub(found.len()).saturating_add(deleted + 1);
            page = onward(page, last, more);
        }
        // Behind the last stored row.
        while found.len() < scan.limit
            && let Some((_, change)) = changes.next()
        {
            found.extend(change.clone());
        }
        found.truncate(scan.limit);
        Ok(found)
    }

    /// The changes in a range, in the order of the scan.
    fn within(&self, scan: &Scan) -> Box<dyn Iterator<Item = (&Key, &Change)> + '_> {
        let Some(table) = self.table(scan.table()) else { return Box::new(std::iter::empty()) };
        let bounds: (Bound<&Key>, Bound<&Key>) = match &scan.range {
            ScanRange::All(_) => (Bound::Unbounded, Bound::Unbounded),
            ScanRange::Between(first, last) => (Bound::Included(first), Bound::Included(last)),
            ScanRange::Behind(after) => (Bound::Excluded(after), Bound::Unbounded),
        };
        let range = table.range::<Key, _>(bounds);
        if scan.reverse { Box::new(range.rev()) } else { Box::new(range) }
    }

    /// The part of a range in which the rows of a scan lie: up to the changed row that fills it at the latest.
    fn narrowed(&self, scan: &Scan) -> ScanRange {
        let ScanRange::Between(first, last) = &scan.range else { return scan.range.clone() };
        let present = self.within(scan).filter(|(_, change)| change.is_some());
        let far = present.map(|(key, _)| key).nth(scan.limit - 1);
        match (far, scan.reverse) {
            (Some(far), true) => ScanRange::Between(far.clone(), last.clone()),
            (Some(far), false) => ScanRange::Between(first.clone(), far.clone()),
            (None, _) => scan.range.clone(),
        }
    }
}

fn is_empty(range: &ScanRange) -> bool {
    matches!(range, ScanRange::Between(first, last) if first > last)
}

/// The same scan from `last` on, which it may visit again, for `more` rows.
fn onward(page: Scan, last: &Key, more: usize) -> Scan {
    let (range, limit) = match (page.range, page.reverse) {
        (ScanRange::Between(_, end), false) => (ScanRange::Between(last.clone(), end), more),
        (ScanRange::Between(first, _), true) => (ScanRange::Between(first, last.clone()), more),
        (ScanRange::All(_) | ScanRange::Behind(_), false) => (ScanRange::Behind(last.clone()), more),
        // No range ends before a key: from the end again, and further.
        (range, true) => (range, page.limit.saturating_add(more)),
    };
    Scan { range, limit, ..page }
}

/// Adds the changes in front of a stored row, and that row as it is now. False: it is deleted.
fn merge<'a>(
    changes: &mut Peekable<Box<dyn Iterator<Item = (&'a Key, &'a Change)> + 'a>>,
    key: Key,
    row: Row,
    reverse: bool,
    found: &mut Vec<Row>,
) -> bool {
    let precedes = |changed: &Key| if reverse { *changed > key } else { *changed < key };
    while let Some((_, change)) = changes.next_if(|(changed, _)| precedes(changed)) {
        found.extend(change.clone());
    }
    let now = match changes.next_if(|(changed, _)| **changed == key) {
        Some((_, change)) => change.clone(),
        None => Some(row),
    };
    let is_there = now.is_some();
    found.extend(now);
    is_there
}

#[cfg(test)]
mod tests;
