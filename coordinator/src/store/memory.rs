//! An engine in memory: for tests and simulation. A commit is as atomic as elsewhere, and lasts as
//! long as the process.

use std::collections::BTreeMap;
use std::ops::{Bound, Deref};
use std::sync::{Arc, PoisonError, RwLock};

use cairn_proto::{ClusterId, InodeId};
#[cfg(feature = "sim")]
use cairn_runtime::bugs::{self, Bug};

use super::{
    Batch, Count, Counter, DentryRef, Inode, Key, ReadThrough, Reader, Readers, Row, Scan, ScanRange,
    Snapshot, Store, StoreError, Table, Writer, first_rows,
};

#[derive(Debug, Default, Clone)]
struct Tables {
    rows: BTreeMap<Table, BTreeMap<Key, Row>>,
    /// (directory, cookie) → key of the entry.
    cookies: BTreeMap<(InodeId, u64), Key>,
}

impl Tables {
    fn put(&mut self, row: Row) {
        let key = row.key();
        self.delete(&key);
        if let Row::Dentry(entry) = &row {
            self.cookies.insert((entry.parent, entry.cookie), key.clone());
        }
        self.rows.entry(key.table()).or_default().insert(key, row);
    }

    /// Entries of a directory behind a cookie.
    fn listing(&self, parent: InodeId, after: u64) -> impl Iterator<Item = DentryRef<'_>> {
        let behind = (Bound::Excluded((parent, after)), Bound::Included((parent, u64::MAX)));
        // A range that excludes its own end would be refused.
        let keys = (after < u64::MAX).then(|| self.cookies.range(behind)).into_iter().flatten();
        let rows = keys.filter_map(|(_, key)| self.rows.get(&key.table())?.get(key));
        rows.filter_map(|row| match row {
            Row::Dentry(entry) => Some(DentryRef {
                name: &entry.name,
                child: entry.child,
                kind: entry.kind,
                cookie: entry.cookie,
            }),
            _ => None,
        })
    }

    fn delete(&mut self, key: &Key) {
        let old = self.rows.get_mut(&key.table()).and_then(|table| table.remove(key));
        if let Some(Row::Dentry(entry)) = old {
            self.cookies.remove(&(entry.parent, entry.cookie));
        }
    }
}

/// The store itself; clones share it, so that a test can open it again.
#[derive(Debug, Default, Clone)]
pub(crate) struct MemoryStore {
    tables: Arc<RwLock<Arc<Tables>>>,
    /// What was committed, but would not survive a power cut: there is none unless that bug is planted.
    #[cfg(feature = "sim")]
    synced: Arc<RwLock<Option<Arc<Tables>>>>,
}

impl MemoryStore {
    /// Opens it in a new term; makes it when it is empty.
    pub(crate) fn open(&self, new_cluster: ClusterId, now_ns: i64) -> Result<Store, StoreError> {
        let mut writer = MemoryWriter { store: self.clone(), term: 0 };
        let cluster = match super::find::<super::Cluster>(&*self.tables(), &Key::Cluster(1))? {
            Some(row) => row.cluster,
            None => {
                self.change(|tables| {
                    first_rows(new_cluster, now_ns).into_iter().for_each(|row| tables.put(row))
                });
                new_cluster
            }
        };
        writer.term = super::count(&writer, Count::Term)? + 1;
        let term = Counter { name: Count::Term, value: writer.term };
        self.change(|tables| tables.put(term.into()));
        let term = writer.term;
        Ok(Store { writer: Box::new(writer), readers: Arc::new(self.clone()), cluster, term })
    }

    fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Committed rows as they are now.
    #[cfg(feature = "sim")]
    pub(crate) fn committed(&self) -> Snapshot {
        Box::new(self.tables())
    }

    /// Loses what was not synced.
    #[cfg(feature = "sim")]
    pub(crate) fn crash(&self) {
        let synced = self.synced.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(synced) = synced {
            *self.tables.write().unwrap_or_else(PoisonError::into_inner) = synced;
        }
    }

    /// Lets most commits go unsynced when that bug is planted.
    #[cfg(feature = "sim")]
    fn maybe_skip_sync(&self) {
        let mut synced = self.synced.write().unwrap_or_else(PoisonError::into_inner);
        *synced = match bugs::planted(Bug::MetadataNoSync) && cairn_runtime::random::below(8) > 0 {
            true => Some(synced.take().unwrap_or_else(|| self.tables())),
            false => None,
        };
    }

    fn change(&self, change: impl FnOnce(&mut Tables)) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut tables));
    }
}

impl Readers for MemoryStore {
    fn reader(&self, _consistent: bool) -> Result<Snapshot, StoreError> {
        Ok(Box::new(self.tables()))
    }
}

impl ReadThrough for Arc<Tables> {
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError> {
        Ok(&**self)
    }
}

impl Reader for Tables {
    fn get(&self, key: &Key) -> Result<Option<Row>, StoreError> {
        Ok(self.rows.get(&key.table()).and_then(|table| table.get(key)).cloned())
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let Some(table) = self.rows.get(&scan.table()) else { return Ok(Vec::new()) };
        let rows: Box<dyn DoubleEndedIterator<Item = &Row>> = match &scan.range {
            ScanRange::All(_) => Box::new(table.values()),
            ScanRange::Between(first, last) if first <= last => {
                Box::new(table.range(first..=last).map(|(_, row)| row))
            }
            ScanRange::Between(..) => return Ok(Vec::new()),
            ScanRange::Behind(key) => {
                let behind = (Bound::Excluded(key), Bound::Unbounded);
                Box::new(table.range::<Key, _>(behind).map(|(_, row)| row))
            }
        };
        Ok(if scan.reverse {
            rows.rev().take(scan.limit).cloned().collect()
        } else {
            rows.take(scan.limit).cloned().collect()
        })
    }

    fn each(
        &self,
        table: Table,
        visit: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.rows.get(&table).into_iter().flat_map(BTreeMap::values).cloned().try_for_each(visit)
    }

    fn read_dir(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>) -> bool,
    ) -> Result<(), StoreError> {
        for entry in self.listing(parent, after).take(limit) {
            if !visit(entry) {
                break;
            }
        }
        Ok(())
    }

    fn read_dir_inodes(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>, Inode) -> bool,
    ) -> Result<(), StoreError> {
        for entry in self.listing(parent, after).take(limit) {
            let key = Key::Inode(entry.child);
            let inode = super::find(self, &key)?.ok_or_else(|| StoreError::corrupt(&key))?;
            if !visit(entry, inode) {
                break;
            }
        }
        Ok(())
    }
}

struct MemoryWriter {
    store: MemoryStore,
    term: u64,
}

impl ReadThrough for MemoryWriter {
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError> {
        Ok(self.store.tables())
    }
}

impl Writer for MemoryWriter {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let found = super::count(self, Count::Term)?;
        if found != self.term {
            return Err(StoreError::Fenced { ours: self.term, found });
        }
        #[cfg(feature = "sim")]
        self.store.maybe_skip_sync();
        self.store.change(|tables| {
            batch.deletes.iter().for_each(|key| tables.delete(key));
            batch.puts.iter().for_each(|row| tables.put(row.clone()));
        });
        Ok(())
    }
}
