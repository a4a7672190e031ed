//! From commits to a place and back to a store.
#![allow(clippy::disallowed_methods)] // tests that damage files

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_proto::{ChunkId, ClusterId, InodeId, NodeId, ReplicaSetId, SessionId};
use cairn_runtime::clock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::error::ArchiveError;
use super::place::{DirectoryPlace, Place};
use super::queue::Shipping;
use super::restore::{RestoreOptions, Restored, Until, restore};
use super::shipper::{BaseRequest, Shipper, ShipperSettings};
use crate::config::LogAck;
use crate::server::CoordinatorError;
use crate::store::memory::MemoryStore;
use crate::store::shipped::ShippedWriter;
use crate::store::sqlite::{self, SqliteOptions};
use crate::store::{
    Batch, Count, Counter, Extent, Key, Members, Orphan, Plan, ReplicaSet, Row, Session, Slot, Store,
    StoreError, Table, Writer, count,
};

fn cluster() -> ClusterId {
    ClusterId::from_uuid(Uuid::from_u128(1))
}

/// A store in memory whose commits are shipped to a directory.
struct Bench {
    directory: tempfile::TempDir,
    store: MemoryStore,
    away: Arc<AtomicBool>,
}

/// One reign over it.
struct Reign {
    writer: Box<dyn Writer>,
    shipping: Arc<Shipping>,
    sequence: u64,
    backups: mpsc::Sender<BaseRequest>,
    task: JoinHandle<()>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("place")).unwrap();
        Self { directory, store: MemoryStore::default(), away: Arc::default() }
    }

    fn place(&self) -> PathBuf {
        self.directory.path().join("place")
    }

    fn begin(&self, ack: LogAck, keep: usize) -> Reign {
        let Store { writer, readers, cluster, term } = self.store.open(cluster(), 1).unwrap();
        let sequence = count(&*writer, Count::Sequence).unwrap();
        let shipping = Arc::new(Shipping::new(Some(ack), sequence));
        let (path, away) = (self.place(), Arc::clone(&self.away));
        let (backups, requests) = mpsc::channel(1);
        let settings = ShipperSettings {
            cluster,
            term,
            readers,
            shipping: Arc::clone(&shipping),
            open: Box::new(move || {
                let (path, away) = (path.clone(), away.load(Ordering::Relaxed));
                Box::pin(async move {
                    match away {
                        true => Err(ArchiveError::Unusable("away".into())),
                        false => Ok(Place::Directory(DirectoryPlace::open(&path).await?)),
                    }
                })
            }),
            every: Duration::from_secs(3600),
            keep,
            copies: 1,
        };
        let writer = Box::new(ShippedWriter::new(writer, Arc::clone(&shipping)));
        let task = tokio::spawn(Shipper::new(settings, requests).run());
        Reign { writer, shipping, sequence, backups, task }
    }

    fn names(&self, kind: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.place()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(kind)).collect();
        names.sort();
        names
    }

    async fn restore(&self, until: Option<Until>) -> Result<(Restored, tempfile::TempDir), CoordinatorError> {
        let data = tempfile::tempdir().unwrap();
        let from = vec![self.place().display().to_string()];
        let restored = restore(RestoreOptions { from, data: data.path().to_owned(), until }).await?;
        Ok((restored, data))
    }
}

impl Reign {
    /// Commits rows as the executor does.
    fn commit(&mut self, rows: impl IntoIterator<Item = Row>, deletes: Vec<Key>) -> Result<u64, StoreError> {
        self.sequence += 1;
        let mut puts: Vec<Row> = rows.into_iter().collect();
        puts.push(Counter { name: Count::Sequence, value: self.sequence }.into());
        self.writer.commit(&Batch { puts, deletes })?;
        Ok(self.sequence)
    }

    fn write(&mut self, number: u64) -> u64 {
        self.commit([extent(number)], vec![]).unwrap()
    }

    async fn wait_until(&self, what: impl Fn(&super::queue::Standing) -> bool) {
        let deadline = clock::now() + Duration::from_secs(20);
        while !what(&self.shipping.standing().unwrap()) {
            assert!(clock::now() < deadline, "{:?}", self.shipping.standing());
            clock::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn arrived(&self) {
        self.wait_until(|standing| standing.covered && standing.shipped == standing.committed).await;
    }

    /// An orderly end.
    async fn end(self) {
        drop(self.writer);
        self.task.await.unwrap();
    }

    /// As if killed.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn back_up(&self) -> String {
        let (answer, made) = tokio::sync::oneshot::channel();
        self.backups.send(answer).await.unwrap();
        made.await.unwrap().unwrap().name
    }
}

fn extent(number: u64) -> Row {
    let chunk = ChunkId::new(number + 1).unwrap();
    Extent { inode: InodeId::ROOT, offset: number * 10, length: 10, chunk, chunk_offset: 0 }.into()
}

fn reopened(data: &Path) -> Store {
    let options = SqliteOptions {
        directory: data.to_owned(),
        sync: true,
        cluster: Some(cluster()),
        new_cluster: cluster(),
        now_ns: 1,
    };
    sqlite::open(&options).unwrap()
}

fn extents(data: &Path) -> Vec<u64> {
    let store = reopened(data);
    let mut offsets = Vec::new();
    store
        .writer
        .each(Table::Extent, &mut |row| {
            let Row::Extent(extent) = row else { panic!("{row:?}") };
            offsets.push(extent.offset / 10);
            Ok(())
        })
        .unwrap();
    offsets
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, by: u64) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - by as usize]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_and_the_commits_after_it_give_the_store_again() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    for number in 0..50 {
        reign.write(number);
    }
    reign.commit([], vec![Key::Extent(InodeId::ROOT, 70)]).unwrap();
    reign.arrived().await;
    let last = reign.sequence;
    reign.kill().await;
    let (restored, data) = bench.restore(None).await.unwrap();
    assert_eq!((restored.sequence, restored.base_sequence), (last, 0));
    assert_eq!(restored.warnings, Vec::<String>::new());
    let expected: Vec<u64> = (0..50).filter(|&number| number != 7).collect();
    assert_eq!(extents(data.path()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_goes_on_above_all_that_was_and_says_so() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 3);
    let (session, node) = (SessionId::from_uuid(Uuid::from_u128(5)), NodeId::from_uuid(Uuid::from_u128(6)));
    let set = ReplicaSet {
        id: ReplicaSetId::new(1).unwrap(),
        members: Members::active([node]),
        replicas: 3,
        min_replicas: 2,
        epoch: 9,
    };
    let first = ChunkId::new(4).unwrap();
    let plan = Plan {
        first,
        count: 1,
        replica_set: set.id,
        epoch: 9,
        session,
        expires_ns: i64::MAX,
        used: bytes::Bytes::new(),
    };
    let orphan = Orphan { inode: InodeId::ROOT, session, since_ns: 3 };
    let rows = [
        set.into(),
        plan.into(),
        orphan.clone().into(),
        Session { id: session, description: "me".into(), opened_ns: 1 }.into(),
        Slot { session, slot: 0, sequence: 4, reply: bytes::Bytes::from_static(b"x") }.into(),
        Counter { name: Count::Epoch, value: 9 }.into(),
        Counter { name: Count::NextChunk, value: 5 }.into(),
    ];
    reign.commit(rows, vec![]).unwrap();
    reign.arrived().await;
    reign.kill().await;
    let (_, data) = bench.restore(None).await.unwrap();
    let store = reopened(data.path());
    let step = 1 << 32;
    for (name, least) in [
        (Count::NextChunk, 5 + step),
        (Count::NextInode, 2 + step),
        (Count::NextSet, 1 + step),
        (Count::Epoch, 9),
        (Count::Sequence, 1),
        (Count::Term, 1 + step),
        (Count::Restored, 1),
    ] {
        assert!(count(&*store.writer, name).unwrap() >= least, "{name:?}");
    }
    let sets: Vec<ReplicaSet> =
        crate::store::list(&*store.writer, &crate::store::Scan::all(Table::ReplicaSet)).unwrap();
    assert_eq!(sets[0].epoch, 9);
    // By these the coordinator notices that a datanode has seen more.
    assert_eq!(count(&*store.writer, Count::Sequence).unwrap(), 1);
    assert_eq!(count(&*store.writer, Count::Epoch).unwrap(), 9);
    for table in [Table::Session, Table::Slot, Table::Plan] {
        let rows = store.writer.scan(&crate::store::Scan::all(table)).unwrap();
        assert_eq!(rows, vec![], "{table:?}");
    }
    let orphans: Vec<Orphan> =
        crate::store::list(&*store.writer, &crate::store::Scan::all(Table::Orphan)).unwrap();
    assert_eq!(orphans, vec![Orphan { session: crate::sessions::NOBODY, ..orphan }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_stops_where_it_was_told_to() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    for number in 0..10 {
        reign.write(number);
    }
    reign.arrived().await;
    let between = clock::wall_ns();
    clock::sleep(Duration::from_millis(20)).await;
    reign.back_up().await;
    reign.write(10);
    reign.arrived().await;
    reign.kill().await;
    let (restored, data) = bench.restore(Some(Until::Sequence(4))).await.unwrap();
    assert_eq!((restored.sequence, extents(data.path())), (4, vec![0, 1, 2, 3]));
    let (restored, data) = bench.restore(Some(Until::TimeNs(between))).await.unwrap();
    assert_eq!((restored.sequence, restored.base_sequence), (10, 0), "the later base is too late");
    assert_eq!(extents(data.path()).len(), 10);
    let (restored, _) = bench.restore(None).await.unwrap();
    assert_eq!((restored.sequence, restored.base_sequence), (11, 10));
    let error = bench.restore(Some(Until::TimeNs(1))).await.unwrap_err().to_string();
    assert!(error.contains("early enough"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_holds_something_is_not_restored_into() {
    let bench = Bench::new();
    let reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    reign.kill().await;
    let (_, data) = bench.restore(None).await.unwrap();
    let from = vec![bench.place().display().to_string()];
    let options = RestoreOptions { from, data: data.path().to_owned(), until: None };
    let error = restore(options).await.unwrap_err().to_string();
    assert!(error.contains("name an empty directory"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_record_is_the_end_and_a_damaged_one_before_it_an_error() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    for number in 0..10 {
        reign.write(number);
        reign.arrived().await;
    }
    reign.kill().await;
    let log = bench.place().join(bench.names("log").pop().unwrap());
    let whole = std::fs::read(&log).unwrap();
    cut(&log, 5);
    let (restored, data) = bench.restore(None).await.unwrap();
    assert_eq!((restored.sequence, extents(data.path()).len()), (9, 9));
    assert!(restored.warnings[0].contains("never completed"), "{:?}", restored.warnings);
    std::fs::write(&log, &whole).unwrap();
    // In the record of the fifth commit.
    let at = super::file::HEADER_SIZE + (whole.len() - super::file::HEADER_SIZE) / 10 * 4 + 60;
    flip(&log, at as u64);
    let error = bench.restore(None).await.unwrap_err().to_string();
    let name = log.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name) && error.contains("offset"), "{error}");
    // What comes before the damage can still be had.
    let (restored, _) = bench.restore(Some(Until::Sequence(3))).await.unwrap();
    assert_eq!(restored.sequence, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_unfinished_base_is_an_error_or_not_used() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    reign.write(0);
    reign.back_up().await;
    reign.kill().await;
    let base = bench.place().join(bench.names("base").pop().unwrap());
    let whole = std::fs::read(&base).unwrap();
    flip(&base, 200);
    let error = bench.restore(None).await.unwrap_err().to_string();
    assert!(error.contains("base-") && error.contains("offset"), "{error}");
    std::fs::write(&base, &whole[..whole.len() - 1]).unwrap();
    let (restored, _) = bench.restore(None).await.unwrap();
    assert_eq!((restored.base_sequence, restored.sequence), (0, 1), "the earlier base and the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_log_file_is_an_error() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 5);
    reign.arrived().await;
    for number in 0..3 {
        reign.write(number);
        reign.arrived().await;
        reign.back_up().await;
    }
    reign.write(3);
    reign.arrived().await;
    reign.kill().await;
    let bases = bench.names("base");
    for later in &bases[1..] {
        std::fs::remove_file(bench.place().join(later)).unwrap();
    }
    let (restored, _) = bench.restore(None).await.unwrap();
    assert_eq!(restored.sequence, 4);
    std::fs::remove_file(bench.place().join(&bench.names("log")[1])).unwrap();
    let error = bench.restore(None).await.unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_reign_goes_on_with_the_chain_without_a_new_base() {
    let bench = Bench::new();
    for round in 0..3 {
        let mut reign = bench.begin(LogAck::Async, 3);
        reign.arrived().await;
        reign.write(round * 2);
        reign.write(round * 2 + 1);
        reign.end().await;
    }
    assert_eq!(bench.names("base").len(), 1);
    let (restored, data) = bench.restore(None).await.unwrap();
    assert_eq!((restored.sequence, extents(data.path()).len()), (6, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_were_never_shipped_are_covered_by_a_new_base() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    reign.write(0);
    reign.arrived().await;
    let Reign { mut writer, task, .. } = reign;
    task.abort();
    let _ = task.await;
    let puts = vec![extent(1), Counter { name: Count::Sequence, value: 2 }.into()];
    writer.commit(&Batch { puts, deletes: vec![] }).unwrap();
    drop(writer);
    let mut reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    reign.write(2);
    reign.arrived().await;
    reign.kill().await;
    assert_eq!(bench.names("base").len(), 2);
    let (restored, data) = bench.restore(None).await.unwrap();
    assert_eq!((restored.sequence, extents(data.path())), (3, vec![0, 1, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_away_costs_no_commit_and_bounded_memory() {
    let bench = Bench::new();
    bench.away.store(true, Ordering::Relaxed);
    let mut reign = bench.begin(LogAck::Async, 3);
    let value = bytes::Bytes::from(vec![7; 60_000]);
    for number in 0..1500u64 {
        let name = bytes::Bytes::from(format!("user.{number}"));
        let row = crate::store::Xattr { inode: InodeId::ROOT, name, value: value.clone() };
        reign.commit([row.into()], vec![]).unwrap();
    }
    reign.wait_until(|standing| standing.error.is_some()).await;
    assert!(!reign.shipping.standing().unwrap().covered);
    bench.away.store(false, Ordering::Relaxed);
    reign.arrived().await;
    reign.write(0);
    reign.arrived().await;
    let last = reign.sequence;
    reign.kill().await;
    let (restored, data) = bench.restore(None).await.unwrap();
    assert_eq!(restored.sequence, last);
    let xattrs = reopened(data.path()).writer.scan(&crate::store::Scan::all(Table::Xattr)).unwrap();
    assert_eq!(xattrs.len(), 1500);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_backups_and_logs_go_and_what_is_kept_restores() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Async, 2);
    reign.arrived().await;
    for number in 0..8 {
        reign.write(number);
        reign.arrived().await;
        reign.back_up().await;
    }
    reign.write(8);
    reign.end().await;
    assert_eq!(bench.names("base").len(), 2);
    assert!(bench.names("log").len() <= 4, "{:?}", bench.names("log"));
    let mut reign = bench.begin(LogAck::Async, 2);
    reign.arrived().await;
    reign.write(9);
    reign.end().await;
    for until in [None, Some(Until::Sequence(7))] {
        let (restored, _) = bench.restore(until).await.unwrap();
        assert_eq!(restored.sequence, if until.is_some() { 7 } else { 10 });
    }
}

fn reply(sequence: u64) -> Row {
    let session = SessionId::from_uuid(Uuid::from_u128(5));
    Slot { session, slot: 0, sequence, reply: bytes::Bytes::new() }.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_commit_is_in_the_place_when_that_was_asked_for() {
    let bench = Bench::new();
    let mut reign = bench.begin(LogAck::Shipped, 3);
    reign.arrived().await;
    for number in 0..20 {
        let committed = tokio::task::block_in_place(|| reign.commit([extent(number), reply(number)], vec![]));
        let sequence = committed.unwrap();
        // Not one step more of the shipper: what it has written now is all that may count.
        let (restored, _) = bench.restore(None).await.unwrap();
        assert!(restored.sequence >= sequence, "{} < {sequence}", restored.sequence);
    }
    reign.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_place_nothing_is_acknowledged_until_it_has_everything() {
    let bench = Bench::new();
    bench.away.store(true, Ordering::Relaxed);
    let mut reign = bench.begin(LogAck::Shipped, 3);
    assert_eq!(reign.shipping.check().unwrap_err().kind(), cairn_proto::ErrorKind::Unavailable);
    // What belongs to no client's request is not held up: datanodes must be able to register.
    reign.write(0);
    let refused = reign.commit([extent(1), reply(1)], vec![]).unwrap_err();
    assert_eq!(refused.kind(), cairn_proto::ErrorKind::TimedOut, "{refused}");
    bench.away.store(false, Ordering::Relaxed);
    reign.arrived().await;
    reign.shipping.check().unwrap();
    let last = reign.sequence;
    reign.kill().await;
    assert_eq!(bench.restore(None).await.unwrap().0.sequence, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_another_cluster_is_refused() {
    let bench = Bench::new();
    let reign = bench.begin(LogAck::Async, 3);
    reign.arrived().await;
    reign.end().await;
    let other = MemoryStore::default();
    let opened = other.open(ClusterId::from_uuid(Uuid::from_u128(2)), 1).unwrap();
    let place = Arc::new(Place::Directory(DirectoryPlace::open(&bench.place()).await.unwrap()));
    let error = super::chain::Catalogue::read(&place, Some(opened.cluster)).await.unwrap_err();
    assert!(error.to_string().contains("choose another place"), "{error}");
}
