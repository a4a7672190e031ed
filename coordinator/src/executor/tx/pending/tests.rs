use std::cell::Cell;
use std::collections::BTreeMap;

use cairn_proto::{ChunkId, InodeId};
use proptest::prelude::*;

use super::*;
use crate::store::{DentryRef, Extent, Inode, Record};

/// Stored rows, and how many of them were read.
#[derive(Default)]
struct Counted {
    rows: BTreeMap<Key, Row>,
    read: Cell<usize>,
}

impl Counted {
    fn of(offsets: impl IntoIterator<Item = u64>) -> Self {
        let rows = offsets.into_iter().map(|offset| extent(offset, 1)).map(|row| (row.key(), row)).collect();
        Self { rows, read: Cell::new(0) }
    }
}

impl Reader for Counted {
    fn get(&self, key: &Key) -> Result<Option<Row>, StoreError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let rows: Vec<Row> = expected(&self.rows, scan);
        self.read.set(self.read.get() + rows.len());
        Ok(rows)
    }

    fn each(
        &self,
        _table: Table,
        visit: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.rows.values().cloned().try_for_each(visit)
    }

    fn read_dir(
        &self,
        _parent: InodeId,
        _after: u64,
        _limit: usize,
        _visit: &mut dyn FnMut(DentryRef<'_>) -> bool,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    fn read_dir_inodes(
        &self,
        _parent: InodeId,
        _after: u64,
        _limit: usize,
        _visit: &mut dyn FnMut(DentryRef<'_>, Inode) -> bool,
    ) -> Result<(), StoreError> {
        Ok(())
    }
}

fn key(offset: u64) -> Key {
    Key::Extent(InodeId::ROOT, offset)
}

fn extent(offset: u64, length: u64) -> Row {
    let chunk = ChunkId::new(1).unwrap();
    Extent { inode: InodeId::ROOT, offset, length, chunk, chunk_offset: 0 }.into()
}

fn expected(rows: &BTreeMap<Key, Row>, scan: &Scan) -> Vec<Row> {
    let within = |key: &Key| match &scan.range {
        ScanRange::All(_) => true,
        ScanRange::Between(first, last) => (first..=last).contains(&key),
        ScanRange::Behind(after) => key > after,
    };
    let mut rows: Vec<Row> = rows.iter().filter(|(key, _)| within(key)).map(|(_, row)| row.clone()).collect();
    if scan.reverse {
        rows.reverse();
    }
    rows.truncate(scan.limit);
    rows
}

fn scan() -> impl Strategy<Value = Scan> {
    let range = prop_oneof![
        Just(ScanRange::All(Table::Extent)),
        (0..40u64, 0..40u64).prop_map(|(first, last)| ScanRange::Between(key(first), key(last))),
        (0..40u64).prop_map(|after| ScanRange::Behind(key(after))),
    ];
    let limit = prop_oneof![0..6usize, Just(usize::MAX)];
    (range, any::<bool>(), limit).prop_map(|(range, reverse, limit)| Scan { range, reverse, limit })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_scan_shows_the_rows_as_they_are_with_the_changes(
        stored in proptest::collection::btree_set(0..40u64, 0..30),
        changes in proptest::collection::vec((0..40u64, any::<bool>()), 0..40),
        scan in scan(),
    ) {
        let store = Counted::of(stored);
        let mut pending = Pending::default();
        let mut now = store.rows.clone();
        for (offset, put) in changes {
            if put {
                pending.put(extent(offset, 2));
                now.insert(key(offset), extent(offset, 2));
            } else {
                pending.delete(key(offset));
                now.remove(&key(offset));
            }
        }
        prop_assert_eq!(pending.scan(&store, &scan).unwrap(), expected(&now, &scan));
        pending.take_back(0);
        prop_assert_eq!(pending.rows(), 0);
        prop_assert_eq!(pending.scan(&store, &scan).unwrap(), expected(&store.rows, &scan));
    }
}

#[test]
fn a_scan_reads_what_it_returns_and_what_is_deleted_in_front_of_it() {
    let store = Counted::of(0..10_000);
    let mut pending = Pending::default();
    // Far from what is looked for, as by the runs before.
    for offset in 0..5_000 {
        pending.put(extent(offset, 2));
    }
    let before = |offset| Scan::between(key(0), key(offset)).reverse().limit(1);
    let offset_of =
        |rows: Vec<Row>| rows.into_iter().filter_map(Extent::from_row).map(|row| row.offset).next();
    for offset in (1..10_000).step_by(100) {
        assert_eq!(offset_of(pending.scan(&store, &before(offset)).unwrap()), Some(offset));
    }
    assert!(store.read.get() <= 100, "{} rows for 100 looks", store.read.get());
    store.read.set(0);
    (6_000..6_100).for_each(|offset| pending.delete(key(offset)));
    assert_eq!(offset_of(pending.scan(&store, &before(6_099)).unwrap()), Some(5_999));
    assert!(store.read.get() <= 300, "{} rows past 100 deleted ones", store.read.get());
}
