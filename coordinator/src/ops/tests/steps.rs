//! Large files: what one job reads and writes has a bound, and a change is seen at once, however many rows it is
//! about.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use cairn_proto::{ByteRange, ChunkId, NodeId, ReplicaSetId, SessionId};
use proptest::prelude::*;

use super::*;
use crate::ops::commit::{Confirm, FileCommit, NewExtent, StoredChunk, confirm};
use crate::ops::layout::layout;
use crate::ops::{Allocate, CloneRange, SetXattr, open, remove};
use crate::sessions::Open;
use crate::store::{
    Batch, Chunk, DeadRange, DentryRef, Extent, Key, Members, Orphan, Plan, Reader, Readers, ReplicaSet, Row,
    Scan, Session, StoreError, Table, list,
};

/// Extents of a large file, and what one job removes of it here.
const EXTENTS: u64 = 3000;
const AT_ONCE: usize = 100;
/// Apart, so that each write is an extent.
const STRIDE: u64 = 8192;

/// What was asked of a store.
#[derive(Debug, Default)]
struct Counts {
    scans: AtomicUsize,
    rows_read: AtomicUsize,
    /// Of the largest commit.
    rows_written: AtomicUsize,
}

impl Counts {
    fn take(&self) -> (usize, usize, usize) {
        let take = |count: &AtomicUsize| count.swap(0, Ordering::Relaxed);
        (take(&self.scans), take(&self.rows_read), take(&self.rows_written))
    }
}

struct Counting {
    inner: Box<dyn Writer>,
    counts: Arc<Counts>,
}

impl Reader for Counting {
    fn get(&self, key: &Key) -> Result<Option<Row>, StoreError> {
        self.inner.get(key)
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let rows = self.inner.scan(scan)?;
        self.counts.scans.fetch_add(1, Ordering::Relaxed);
        self.counts.rows_read.fetch_add(rows.len(), Ordering::Relaxed);
        Ok(rows)
    }

    fn each(
        &self,
        table: Table,
        visit: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.inner.each(table, visit)
    }

    fn read_dir(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>) -> bool,
    ) -> Result<(), StoreError> {
        self.inner.read_dir(parent, after, limit, visit)
    }

    fn read_dir_inodes(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>, Inode) -> bool,
    ) -> Result<(), StoreError> {
        self.inner.read_dir_inodes(parent, after, limit, visit)
    }
}

impl Writer for Counting {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.counts.rows_written.fetch_max(batch.puts.len() + batch.deletes.len(), Ordering::Relaxed);
        self.inner.commit(batch)
    }
}

struct Bench {
    store: MemoryStore,
    counts: Arc<Counts>,
    tx: Tx,
    next_chunk: u64,
}

fn session(number: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(number))
}

impl Bench {
    fn new() -> Self {
        let store = MemoryStore::default();
        let counts = Arc::new(Counts::default());
        let mut tx = Self::open(&store, &counts);
        tx.put(ReplicaSet {
            id: ReplicaSetId::new(1).unwrap(),
            members: Members::active([NodeId::from_uuid(Uuid::nil())]),
            replicas: 1,
            min_replicas: 1,
            epoch: 1,
        });
        let plan = Plan {
            first: ChunkId::new(1).unwrap(),
            count: 1000,
            replica_set: ReplicaSetId::new(1).unwrap(),
            epoch: 1,
            session: session(1),
            expires_ns: i64::MAX,
            used: Bytes::new(),
        };
        tx.put(plan);
        tx.put(crate::store::Counter { name: Count::NextChunk, value: 1001 });
        tx.commit().unwrap();
        Self { store, counts, tx, next_chunk: 1 }
    }

    fn open(store: &MemoryStore, counts: &Arc<Counts>) -> Tx {
        let mut tx = tx_on(store, |inner| Box::new(Counting { inner, counts: Arc::clone(counts) }));
        tx.extents_at_once = AT_ONCE;
        let rows = |table| store.reader(true).unwrap().scan(&Scan::all(table)).unwrap();
        let orphans: Vec<Orphan> =
            rows(Table::Orphan).into_iter().filter_map(crate::store::Record::from_row).collect();
        let sessions =
            rows(Table::Session).into_iter().filter_map(<Session as crate::store::Record>::from_row);
        tx.steps = crate::executor::Steps::of(&orphans, &sessions.map(|row| row.id).collect());
        tx
    }

    /// The coordinator is killed, and starts again.
    fn restart(&mut self) {
        self.tx = Self::open(&self.store, &self.counts);
    }

    fn job<T>(&mut self, job: impl FnOnce(&mut Tx) -> Result<T, OpError>) -> T {
        let result = self.tx.attempt(job).unwrap();
        self.tx.commit().unwrap();
        result
    }

    /// One chunk, in runs of `length` bytes at each of `offsets`.
    fn write(&mut self, file: InodeId, offsets: impl Iterator<Item = u64>, length: u64) {
        let runs: Vec<_> = (0..).zip(offsets).map(|(n, offset)| (offset, length, n * length)).collect();
        self.write_runs(file, &runs, runs.len() as u64 * length);
    }

    /// One chunk of `length` bytes, in runs (offset, length, offset in the chunk).
    fn write_runs(&mut self, file: InodeId, runs: &[(u64, u64, u64)], length: u64) {
        let chunk = ChunkId::new(self.next_chunk).unwrap();
        self.next_chunk += 1;
        let extent = |&(offset, length, chunk_offset): &(u64, u64, u64)| NewExtent {
            range: ByteRange::new(offset, length).unwrap(),
            chunk,
            chunk_offset,
        };
        let stored = StoredChunk {
            id: chunk,
            set: ReplicaSetId::new(1).unwrap(),
            epoch: 1,
            length,
            crc32c: 0,
            stored_by: [NodeId::from_uuid(Uuid::nil())].into(),
            synced: true,
        };
        let extents = runs.iter().map(extent).collect();
        let files = vec![FileCommit {
            inode: file,
            extents,
            mtime_ns: None,
            keep_privileges: true,
            drop_capability: false,
        }];
        let op = Confirm { session: session(1), chunks: vec![stored], files };
        let results = self.job(|tx| confirm(tx, &op));
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Where each byte of a file lies: in which chunk, and where in it.
    fn bytes(&self, file: InodeId) -> BTreeMap<u64, (u64, u64)> {
        let reader = self.store.reader(true).unwrap();
        let all = ByteRange::between(0, i64::MAX as u64);
        let found = layout(&*reader, file, all, usize::MAX).unwrap();
        let mut bytes = BTreeMap::new();
        for extent in found.extents {
            for i in 0..extent.length {
                let place = (extent.chunk.get(), extent.chunk_offset + i);
                assert!(bytes.insert(extent.offset + i, place).is_none(), "extents overlap");
            }
        }
        bytes
    }

    fn large_file(&mut self, text: &str) -> InodeId {
        let file = make_file(&mut self.tx, text).id;
        self.write(file, (0..EXTENTS).map(|n| n * STRIDE), 4096);
        self.counts.take();
        file
    }

    fn set_size(&mut self, file: InodeId, size: u64) {
        let op = Mutation::SetAttr(SetAttr { size: Some(size), via_handle: true, ..set(file) });
        self.job(|tx| apply(tx, &op, &root()));
    }

    /// What a reader of committed state sees: the size, and where the extents of the file begin.
    fn seen(&self, file: InodeId) -> (u64, Vec<u64>) {
        let reader = self.store.reader(true).unwrap();
        let all = ByteRange::between(0, i64::MAX as u64);
        let found = layout(&*reader, file, all, usize::MAX).unwrap();
        (found.inode.size, found.extents.iter().map(|extent| extent.offset).collect())
    }

    fn rows<R: crate::store::Record>(&self, table: Table) -> Vec<R> {
        list(&*self.store.reader(true).unwrap(), &Scan::all(table)).unwrap()
    }

    /// Runs the worker to its end; how many steps it took.
    fn reap(&mut self) -> usize {
        for step in 1.. {
            if !self.job(remove::go_on) {
                return step;
            }
            let (_, read, written) = self.counts.take();
            assert!(read <= 5 * AT_ONCE && written <= 5 * AT_ONCE, "{read} rows read, {written} written");
        }
        unreachable!()
    }

    /// Nothing is left over, and every count agrees with the rows.
    fn check_clean(&self) {
        assert_eq!(self.rows::<DeadRange>(Table::DeadRange), []);
        let extents = self.rows::<Extent>(Table::Extent);
        for inode in self.rows::<Inode>(Table::Inode) {
            let own = extents.iter().filter(|extent| extent.inode == inode.id);
            assert_eq!((inode.allocated, inode.dead_ranges()), (own.map(|extent| extent.length).sum(), 0));
        }
        for chunk in self.rows::<Chunk>(Table::Chunk) {
            let own = extents.iter().filter(|extent| extent.chunk == chunk.id);
            assert_eq!(chunk.live, own.map(|extent| extent.length).sum::<u64>());
        }
        let bytes = crate::store::count(&*self.store.reader(true).unwrap(), Count::Bytes).unwrap();
        assert_eq!(bytes, extents.iter().map(|extent| extent.length).sum::<u64>());
    }
}

#[test]
fn a_truncation_is_seen_at_once_and_its_rows_go_in_bounded_steps() {
    let mut bench = Bench::new();
    let file = bench.large_file("f");
    bench.set_size(file, 3 * STRIDE + 10);
    let (_, read, written) = bench.counts.take();
    assert!(read <= 2 * AT_ONCE && written < 10, "{read} rows read, {written} written");
    assert_eq!(bench.seen(file), (3 * STRIDE + 10, vec![0, STRIDE, 2 * STRIDE, 3 * STRIDE]));
    // It grows again: what was cut off stays away, also before its rows are gone.
    bench.set_size(file, EXTENTS * STRIDE);
    assert_eq!(bench.seen(file).1.len(), 4);
    assert!(bench.job(remove::go_on));
    // Others have their turn between two steps, also one that writes where the rows are still to go.
    make_file(&mut bench.tx, "other");
    bench.write(file, [7 * STRIDE, 2000 * STRIDE, 2000 * STRIDE + 4096].into_iter(), 4096);
    let expected: Vec<u64> = [0, 1, 2, 3, 7, 2000].map(|n| n * STRIDE).into();
    let expected = [expected, vec![2000 * STRIDE + 4096]].concat();
    assert_eq!(bench.seen(file), (EXTENTS * STRIDE, expected.clone()));
    bench.restart();
    assert_eq!(bench.seen(file), (EXTENTS * STRIDE, expected.clone()));
    bench.counts.take();
    assert!(bench.reap() > 20);
    assert_eq!(bench.seen(file), (EXTENTS * STRIDE, expected));
    bench.check_clean();
}

#[test]
fn a_hole_and_a_large_write_over_many_extents_are_made_at_once() {
    let mut bench = Bench::new();
    let file = bench.large_file("f");
    let range = ByteRange::new(STRIDE, 1000 * STRIDE + 100).unwrap();
    let op = Mutation::Allocate(Allocate { inode: file, range, keep_size: true, make_hole: true });
    bench.job(|tx| apply(tx, &op, &root()));
    bench.write(file, [1500 * STRIDE + 1].into_iter(), 1000 * STRIDE);
    let (_, read, written) = bench.counts.take();
    assert!(read <= 4 * AT_ONCE && written < 20, "{read} rows read, {written} written");
    let mut expected = vec![0, 1001 * STRIDE + 100];
    expected.extend((1002..=1500).map(|n| n * STRIDE));
    expected.push(1500 * STRIDE + 1);
    expected.push(2500 * STRIDE + 1);
    expected.extend((2501..EXTENTS).map(|n| n * STRIDE));
    let size = (EXTENTS - 1) * STRIDE + 4096;
    assert_eq!(bench.seen(file), (size, expected.clone()));
    bench.reap();
    assert_eq!(bench.seen(file), (size, expected));
    bench.check_clean();
}

#[test]
fn a_removed_file_goes_in_bounded_steps_whatever_it_was_before() {
    let mut bench = Bench::new();
    let (cut, whole) = (bench.large_file("cut"), bench.large_file("whole"));
    bench.set_size(cut, 0);
    for text in ["cut", "whole"] {
        let op = Mutation::Unlink { parent: InodeId::ROOT, name: name(text) };
        bench.job(|tx| apply(tx, &op, &root()));
        let (_, read, written) = bench.counts.take();
        assert!(read <= 3 * AT_ONCE && written <= 3 * AT_ONCE, "{read} rows read, {written} written");
    }
    bench.restart();
    bench.reap();
    assert_eq!(bench.rows::<Inode>(Table::Inode).len(), 1, "the root: {cut} and {whole} are gone");
    assert_eq!(bench.rows::<Chunk>(Table::Chunk), []);
    assert_eq!(bench.rows::<Orphan>(Table::Orphan), []);
    bench.check_clean();
}

#[test]
fn a_copy_of_many_extents_goes_part_by_part() {
    let mut bench = Bench::new();
    let (from, to) = (bench.large_file("from"), bench.large_file("to"));
    let (size, expected) = bench.seen(from);
    let mut copied = 0;
    let mut parts = 0;
    while copied < size {
        let op = Mutation::CloneRange(CloneRange {
            source: from,
            source_range: ByteRange::between(copied, size).unwrap(),
            destination: to,
            destination_offset: copied + 1,
        });
        copied += bench.job(|tx| apply(tx, &op, &root())).copied;
        parts += 1;
        let (_, read, written) = bench.counts.take();
        assert!(read <= 8 * AT_ONCE && written <= 6 * AT_ONCE, "{read} rows read, {written} written");
        // As far as the dead ranges of one file may go.
        bench.reap();
    }
    assert!(parts >= EXTENTS as usize / AT_ONCE, "{parts} parts");
    let mut moved = vec![0];
    moved.extend(expected.iter().map(|offset| offset + 1));
    assert_eq!(bench.seen(to), (size + 1, moved));
    assert_eq!(bench.seen(from), (size, expected));
    bench.check_clean();
}

#[test]
fn scattered_writes_cost_rows_in_proportion_to_their_number() {
    // Every second page, and pieces across the edges of others; far apart in a large file.
    let cost = |runs: u64, stride: u64| {
        let mut bench = Bench::new();
        bench.tx.extents_at_once = 2048;
        let file = make_file(&mut bench.tx, "f").id;
        bench.write(file, (0..runs * stride).map(|n| n * 4096), 4096);
        bench.counts.take();
        bench.write(file, (0..runs).map(|n| n * stride * 4096), 4096);
        bench.write(file, (0..runs).map(|n| n * stride * 4096 + 2048), 4096);
        bench.counts.take()
    };
    for runs in [500, 8000] {
        let (scans, rows, _) = cost(runs, 2);
        assert!(
            scans < runs as usize / 10 && rows <= 10 * runs as usize,
            "{runs} runs: {scans} scans, {rows} rows"
        );
    }
    let (scans, rows, _) = cost(500, 30);
    assert!(scans <= 2500 && rows <= 4000, "500 runs far apart: {scans} scans, {rows} rows");
}

#[test]
fn the_orphans_of_a_session_go_in_bounded_steps() {
    const FILES: u64 = 600;
    let mut bench = Bench::new();
    bench.job(|tx| open::begin_session(tx, session(2), "a mount".into(), true));
    for number in 0..FILES {
        let text = number.to_string();
        let file = make_file(&mut bench.tx, &text).id;
        bench.tx.context.sessions.register(session(2), Open { inode: file, sequence: 1 }).unwrap();
        bench.write(file, (0..2).map(|n| n * STRIDE), 1);
        let op = Mutation::Unlink { parent: InodeId::ROOT, name: name(&text) };
        bench.job(|tx| apply(tx, &op, &root()));
    }
    assert_eq!(bench.rows::<Orphan>(Table::Orphan).len() as u64, FILES);
    bench.tx.job_rows = 300;
    bench.counts.take();
    assert!(bench.job(|tx| open::end_session(tx, session(2), false)));
    let (_, _, written) = bench.counts.take();
    assert!(written <= 400, "{written} rows");
    assert!(!bench.rows::<Orphan>(Table::Orphan).is_empty());
    // Whoever left them will not come back.
    bench.restart();
    bench.tx.job_rows = 300;
    while bench.job(remove::go_on) {
        let (_, _, written) = bench.counts.take();
        assert!(written <= 400, "{written} rows");
    }
    assert_eq!((bench.rows::<Orphan>(Table::Orphan).len(), bench.rows::<Inode>(Table::Inode).len()), (0, 1));
    bench.check_clean();
}

#[test]
fn a_batch_of_removals_leaves_to_later_steps_what_does_not_fit_one_job() {
    let mut bench = Bench::new();
    let files: Vec<InodeId> = (0..40).map(|number| bench.large_file(&number.to_string())).collect();
    bench.tx.job_rows = 300;
    bench.counts.take();
    bench.job(|tx| {
        for number in 0..files.len() {
            let op = Mutation::Unlink { parent: InodeId::ROOT, name: name(&number.to_string()) };
            apply(tx, &op, &root())?;
        }
        Ok(())
    });
    let (_, _, written) = bench.counts.take();
    assert!(written <= 800, "{written} rows");
    bench.tx.job_rows = 8192;
    bench.reap();
    assert_eq!(bench.rows::<Inode>(Table::Inode).len(), 1);
    bench.check_clean();
}

#[test]
fn a_file_with_too_many_dead_ranges_makes_writers_wait_and_comes_first() {
    let mut bench = Bench::new();
    let (first, file) = (bench.large_file("first"), bench.large_file("f"));
    bench.set_size(first, 0);
    bench.set_size(file, 0);
    let limit = super::super::extents::DEAD_RANGES_MAX;
    // Each in a place of its own, further apart than the rows that wait.
    let mut refused = None;
    for part in 0..100 {
        let before = bench.next_chunk;
        let offsets: Vec<u64> = (0..100).map(|n| (part * 100 + n) * 2048 + 1).collect();
        let chunk = ChunkId::new(before).unwrap();
        let extents = offsets
            .iter()
            .map(|&offset| NewExtent { range: ByteRange::new(offset, 1).unwrap(), chunk, chunk_offset: 0 })
            .collect();
        let stored = StoredChunk {
            id: chunk,
            set: ReplicaSetId::new(1).unwrap(),
            epoch: 1,
            length: 1,
            crc32c: 0,
            stored_by: [NodeId::from_uuid(Uuid::nil())].into(),
            synced: true,
        };
        let files = vec![FileCommit {
            inode: file,
            extents,
            mtime_ns: None,
            keep_privileges: true,
            drop_capability: false,
        }];
        let op = Confirm { session: session(1), chunks: vec![stored], files };
        bench.counts.take();
        let result = bench.tx.attempt(|tx| confirm(tx, &op));
        let (_, read, _) = bench.counts.take();
        assert!(read <= 1500, "{read} rows read for 100 extents, with many dead ranges");
        match result {
            Ok(results) => assert!(results.iter().all(Result::is_ok), "{results:?}"),
            Err(error) => {
                assert!(matches!(error, OpError::Later(_)), "{error}");
                assert_eq!(error.kind(), ErrorKind::Overloaded);
                refused = Some(op);
                break;
            }
        }
        bench.next_chunk += 1;
        bench.tx.commit().unwrap();
    }
    let op = refused.unwrap();
    assert!(bench.rows::<DeadRange>(Table::DeadRange).len() as u64 >= limit - 100);
    // Some steps for this file, before those for the one that has waited longer.
    let mut steps = 0;
    while bench.tx.attempt(|tx| confirm(tx, &op)).is_err() {
        bench.job(remove::go_on);
        steps += 1;
    }
    bench.tx.commit().unwrap();
    assert!(steps < 40, "{steps} steps");
    assert!(
        bench.rows::<DeadRange>(Table::DeadRange).iter().any(|range| range.inode == first),
        "it is not its turn"
    );
    bench.counts.take();
    bench.reap();
    bench.check_clean();
}

#[test]
fn attributes_that_are_set_one_after_the_other_are_not_all_read_each_time() {
    let mut bench = Bench::new();
    let file = make_file(&mut bench.tx, "f").id;
    let set = |name: String, value: usize| {
        let (name, value) = (Bytes::from(name), Bytes::from(vec![7; value]));
        Mutation::SetXattr(SetXattr { inode: file, name, value, create: false, replace: false })
    };
    for number in 0..300 {
        bench.job(|tx| apply(tx, &set(format!("user.{number}"), 3000), &root()));
    }
    let (_, read, _) = bench.counts.take();
    assert!(read <= 300, "{read} rows read");
    // Whatever comes between, the room is counted right.
    let too_much = |bench: &mut Bench| {
        let result = bench.tx.attempt(|tx| apply(tx, &set("user.x".into(), 60_000), &root()));
        kind_of(result.map(drop)) == Err(ErrorKind::NoSpace)
    };
    for number in 0..48 {
        bench.job(|tx| apply(tx, &set(format!("user.{number}"), 6000), &root()));
    }
    assert!(too_much(&mut bench));
    bench.set_size(file, 5);
    assert!(too_much(&mut bench));
    for number in 0..20 {
        let name = format!("user.{number}").into();
        bench.job(|tx| apply(tx, &Mutation::RemoveXattr { inode: file, name }, &root()));
    }
    assert!(!too_much(&mut bench));
    assert_eq!(bench.tx.inode(file).unwrap().xattrs, 281);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn commits_of_many_runs_give_what_an_array_would(
        commits in proptest::collection::vec(
            (proptest::collection::vec((1..30u64, 1..40u64), 1..30), 0..200u64, any::<bool>()), 1..12),
        at_once in prop_oneof![1..6usize, Just(2048)],
    ) {
        let mut bench = Bench::new();
        bench.tx.extents_at_once = at_once;
        let file = make_file(&mut bench.tx, "f").id;
        // Byte → (chunk, offset in it).
        let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (gaps, first, cut) in commits {
            let chunk = bench.next_chunk;
            let (mut at, mut used, mut runs) = (first, 0, Vec::new());
            for (gap, length) in gaps {
                at += gap - 1;
                runs.push((at, length, used));
                (at, used) = (at + length, used + length);
            }
            bench.write_runs(file, &runs, used);
            for &(start, length, from) in &runs {
                model.extend((0..length).map(|i| (start + i, (chunk, from + i))));
            }
            if cut {
                bench.set_size(file, at / 2);
                model.retain(|&byte, _| byte < at / 2);
            }
            bench.job(remove::go_on);
            prop_assert_eq!(bench.bytes(file), model.clone());
        }
        while bench.job(remove::go_on) {}
        prop_assert_eq!(bench.bytes(file), model);
        bench.check_clean();
    }
}
