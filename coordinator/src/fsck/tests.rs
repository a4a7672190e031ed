//! Whole stores are clean; each kind of damage is found, named, and mended where it can be.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_proto::{ByteRange, ChunkId, InodeId, NodeId, ReplicaSetId, SessionId};
use uuid::Uuid;

use super::*;
use crate::executor::Tx;
use crate::ops::access::Caller;
use crate::ops::tests::{make_file, name, set, tx_on};
use crate::ops::{CloneRange, Create, Mutation, NewInode, SetAttr, SetXattr, apply, open, remove};
use crate::store::memory::MemoryStore;
use crate::store::{
    Chunk, Counter, DeadRange, Dentry, Extent, Fault, Garbage, Inode, Key, Kind, Members, Orphan, Readers,
    ReplicaSet, Scan, Table, Xattr, find,
};

struct Bench {
    store: MemoryStore,
    tx: Tx,
}

fn id(chunk: u64) -> ChunkId {
    ChunkId::new(chunk).unwrap()
}

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

fn set_id() -> ReplicaSetId {
    ReplicaSetId::new(1).unwrap()
}

impl Bench {
    /// A store with some of everything: directories, links, shared chunks, an open orphan, garbage, a fault.
    fn new() -> Self {
        let store = MemoryStore::default();
        let mut tx = tx_on(&store, |writer| writer);
        tx.put(ReplicaSet {
            id: set_id(),
            members: Members::active([node(1), node(2)]),
            replicas: 2,
            min_replicas: 1,
            epoch: 1,
        });
        tx.put(Counter { name: Count::NextChunk, value: 50 });
        let root = Caller::default();
        let run = |tx: &mut Tx, op: Mutation| tx.attempt(|tx| apply(tx, &op, &root)).unwrap();
        let mkdir = |parent, text| {
            Mutation::Create(Create {
                parent,
                name: name(text),
                new: NewInode::Directory,
                mode: 0o755,
                id: None,
                lease: false,
            })
        };
        let dir = run(&mut tx, mkdir(InodeId::ROOT, "dir")).inode.unwrap();
        run(&mut tx, mkdir(dir.id, "below"));
        let [a, b, held] = ["a", "b", "held"].map(|text| make_file(&mut tx, text).id);
        run(&mut tx, Mutation::Link { inode: a, parent: dir.id, name: name("again") });
        let mut bench = Self { store, tx };
        bench.write(a, 1, 100);
        bench.write(b, 2, 300);
        bench.write(held, 3, 50);
        bench.write(b, 4, 10);
        let clone = CloneRange {
            source: b,
            source_range: ByteRange::new(0, 200).unwrap(),
            destination: a,
            destination_offset: 500,
        };
        run(&mut bench.tx, Mutation::CloneRange(clone));
        let xattr =
            SetXattr { inode: a, name: "user.x".into(), value: "y".into(), create: false, replace: false };
        run(&mut bench.tx, Mutation::SetXattr(xattr));
        let session = SessionId::from_uuid(Uuid::from_u128(7));
        bench.tx.attempt(|tx| open::begin_session(tx, session, "a mount".into(), true)).unwrap();
        bench
            .tx
            .context
            .sessions
            .register(session, crate::sessions::Open { inode: held, sequence: 1 })
            .unwrap();
        run(&mut bench.tx, Mutation::Unlink { parent: InodeId::ROOT, name: name("held") });
        bench.tx.put(Fault { chunk: id(2), node: node(1), noticed_ns: 1 });
        bench.tx.count(Count::Faults, 1).unwrap();
        bench.change::<Chunk>(Key::Chunk(id(2)), |chunk| chunk.faults = 1);
        bench.tx.commit().unwrap();
        bench
    }

    fn write(&mut self, file: InodeId, chunk: u64, length: u64) {
        use crate::ops::commit::{Confirm, FileCommit, NewExtent, StoredChunk, confirm};
        let session = SessionId::from_uuid(Uuid::from_u128(8));
        self.tx.put(crate::store::Plan {
            first: id(chunk),
            count: 1,
            replica_set: set_id(),
            epoch: 1,
            session,
            expires_ns: i64::MAX,
            used: Bytes::new(),
        });
        let stored = StoredChunk {
            id: id(chunk),
            set: set_id(),
            epoch: 1,
            length,
            crc32c: 0,
            stored_by: [node(1), node(2)].into(),
            synced: true,
        };
        let extent =
            NewExtent { range: ByteRange::new(0, length).unwrap(), chunk: id(chunk), chunk_offset: 0 };
        let file = FileCommit {
            inode: file,
            extents: vec![extent],
            mtime_ns: None,
            keep_privileges: true,
            drop_capability: false,
        };
        let op = Confirm { session, chunks: vec![stored], files: vec![file] };
        for result in self.tx.attempt(|tx| confirm(tx, &op)).unwrap() {
            result.unwrap();
        }
    }

    fn change<R: crate::store::Record>(&mut self, key: Key, change: impl FnOnce(&mut R)) {
        let mut row: R = self.tx.find(&key).unwrap().unwrap();
        change(&mut row);
        self.tx.put(row);
    }

    fn child(&mut self, path: &str) -> InodeId {
        let mut at = InodeId::ROOT;
        for part in path.split('/') {
            let entry: Dentry = self.tx.find(&Key::Dentry(at, name(part).to_bytes())).unwrap().unwrap();
            at = entry.child;
        }
        at
    }

    /// Everything that is found, with what would mend it.
    fn check(&mut self) -> Vec<(Finding, Option<Mend>)> {
        self.tx.commit().unwrap();
        let (events, mut found) = mpsc::channel(1 << 16);
        let mut report = Report::new(events);
        let reader = self.store.reader(true).unwrap();
        names::check(&*reader, &mut report).unwrap();
        let lost = chunks::check(&*reader, &mut report).unwrap();
        rest::check(&*reader, &mut report).unwrap();
        if !lost.is_empty() {
            paths::name_files(&*reader, &mut report, &lost).unwrap();
        }
        drop(report);
        let mut all = Vec::new();
        while let Some(event) = found.blocking_recv() {
            if let Event::Finding(finding, mend) = event {
                all.push((finding, mend));
            }
        }
        all
    }

    /// Finds exactly these codes; mends them; then all is well.
    #[track_caller]
    fn finds_and_mends(&mut self, codes: &[&str]) {
        let found = self.check();
        let mut seen: Vec<_> = found.iter().map(|(finding, _)| finding.code).collect();
        seen.sort_unstable();
        assert_eq!(seen, codes, "{found:#?}");
        for (finding, mend) in found {
            let mend = mend.unwrap_or_else(|| panic!("{finding:?} can be mended"));
            assert!(self.tx.attempt(|tx| mend::mend(tx, &mend)).unwrap(), "{finding:?}");
        }
        let left = self.check();
        assert!(left.is_empty(), "{left:#?}");
    }

    #[track_caller]
    fn finds(&mut self, codes: &[&str]) -> Vec<Finding> {
        let found: Vec<_> = self.check().into_iter().map(|(finding, _)| finding).collect();
        let mut seen: Vec<_> = found.iter().map(|finding| finding.code).collect();
        seen.sort_unstable();
        assert_eq!(seen, codes, "{found:#?}");
        found
    }
}

#[test]
fn a_sound_store_is_found_sound() {
    Bench::new().finds(&[]);
}

#[test]
fn counters_that_drifted_are_found_and_mended() {
    let mut bench = Bench::new();
    for name in [Count::Bytes, Count::Chunks, Count::Faults, Count::Garbage, Count::Inodes] {
        bench.tx.count(name, 3).unwrap();
    }
    bench.finds_and_mends(&["COUNTER"; 5]);
}

#[test]
fn a_repair_keeps_what_changed_between_the_look_and_the_repair() {
    let mut bench = Bench::new();
    bench.tx.count(Count::Inodes, 5).unwrap();
    bench.change::<Chunk>(Key::Chunk(id(1)), |chunk| chunk.live += 7);
    let found = bench.check();
    make_file(&mut bench.tx, "meanwhile");
    let b = bench.child("b");
    bench.write(b, 9, 20);
    for (_, mend) in found {
        assert!(bench.tx.attempt(|tx| mend::mend(tx, &mend.unwrap())).unwrap());
    }
    bench.finds(&[]);
}

#[test]
fn numbers_of_an_inode_are_found_and_mended() {
    let mut bench = Bench::new();
    let (a, dir) = (bench.child("a"), bench.child("dir"));
    bench.change::<Inode>(Key::Inode(a), |inode| {
        inode.nlink = 5;
        inode.allocated += 1;
        inode.xattrs = 4;
    });
    bench.change::<Inode>(Key::Inode(dir), |inode| {
        inode.nlink = 9;
        inode.size = 1;
        inode.parent = 99;
    });
    bench.finds_and_mends(&["ALLOCATED", "ENTRIES", "LINKS", "LINKS", "PARENT", "XATTRS"]);
}

#[test]
fn what_a_truncated_file_has_still_to_lose_is_sound() {
    let mut bench = Bench::new();
    let a = bench.child("a");
    bench.tx.extents_at_once = 1;
    let size = |size| Mutation::SetAttr(SetAttr { size: Some(size), via_handle: true, ..set(a) });
    let root = Caller::default();
    bench.tx.attempt(|tx| apply(tx, &size(10), &root)).unwrap();
    bench.finds(&[]);
    assert_eq!(bench.tx.inode(a).unwrap().dead_ranges(), 1);
    // What lies over dead rows overlaps nothing.
    bench.tx.extents_at_once = 2048;
    bench.write(a, 9, 700);
    bench.finds(&[]);
    bench.change::<Inode>(Key::Inode(a), |inode| inode.set_dead_ranges(7));
    let nobodys = InodeId::new(999).unwrap();
    bench.tx.put(DeadRange { inode: nobodys, start: 5, end: 9 });
    bench.finds_and_mends(&["DEAD_RANGES", "DEAD_RANGE_WITHOUT_FILE"]);
    while bench.tx.attempt(remove::go_on).unwrap() {}
    bench.finds(&[]);
    assert_eq!(bench.tx.inode(a).unwrap().allocated, 700);
}

#[test]
fn inodes_without_names_are_adopted() {
    let mut bench = Bench::new();
    let (a, dir) = (bench.child("a"), bench.child("dir"));
    let entry = |text: &str| Key::Dentry(InodeId::ROOT, name(text).to_bytes());
    // The file keeps its other name; the directory has no other.
    for text in ["b", "dir"] {
        bench.tx.delete(entry(text));
    }
    bench.change::<Inode>(Key::Inode(InodeId::ROOT), |root| {
        root.size -= 2;
        root.nlink -= 1;
    });
    bench.finds_and_mends(&["UNREACHABLE"; 2]);
    let found = bench.child("lost+found");
    let adopted: Dentry =
        bench.tx.find(&Key::Dentry(found, name(&dir.to_string()).to_bytes())).unwrap().unwrap();
    assert_eq!(adopted.child, dir);
    assert_eq!(bench.child(&format!("lost+found/{dir}/again")), a);
}

#[test]
fn a_name_of_nothing_is_found_and_removed() {
    let mut bench = Bench::new();
    let below = bench.child("dir/below");
    bench.tx.delete(Key::Inode(below));
    bench.tx.count(Count::Inodes, -1).unwrap();
    bench.finds_and_mends(&["NAME_WITHOUT_INODE"]);
}

#[test]
fn directories_in_a_circle_are_found() {
    let mut bench = Bench::new();
    let (dir, below) = (bench.child("dir"), bench.child("dir/below"));
    // dir moves below its own child.
    bench.tx.delete(Key::Dentry(InodeId::ROOT, name("dir").to_bytes()));
    bench.tx.put(Dentry {
        parent: below,
        name: name("dir").to_bytes(),
        child: dir,
        kind: Kind::Directory,
        cookie: 16,
    });
    for (inode, nlink, size) in [(InodeId::ROOT, -1i32, -1i64), (below, 1, 1)] {
        bench.change::<Inode>(Key::Inode(inode), |inode| {
            inode.nlink = inode.nlink.saturating_add_signed(nlink);
            inode.size = inode.size.saturating_add_signed(size);
        });
    }
    bench.change::<Inode>(Key::Inode(dir), |inode| inode.parent = below.get());
    bench.finds(&["CYCLE"]);
}

#[test]
fn numbers_of_chunks_are_found_and_mended() {
    let mut bench = Bench::new();
    bench.change::<Chunk>(Key::Chunk(id(1)), |chunk| chunk.live = 1);
    bench.change::<Chunk>(Key::Chunk(id(2)), |chunk| chunk.faults = 7);
    // A chunk that nothing refers to becomes garbage.
    bench.tx.put(Chunk {
        id: id(40),
        replica_set: set_id(),
        length: 9,
        crc32c: 0,
        live: 9,
        faults: 0,
        created_ns: 0,
    });
    bench.tx.count(Count::Chunks, 1).unwrap();
    bench.tx.put(Fault { chunk: id(30), node: node(1), noticed_ns: 0 });
    bench.tx.count(Count::Faults, 1).unwrap();
    bench.tx.put(Garbage { not_before_ns: 9, chunk: id(1), replica_set: set_id() });
    bench.tx.count(Count::Garbage, 1).unwrap();
    bench.tx.put(Counter { name: Count::NextChunk, value: 40 });
    bench.finds_and_mends(&[
        "FAULTS",
        "FAULT_WITHOUT_CHUNK",
        "GARBAGE_IN_USE",
        "LIVE_BYTES",
        "LIVE_BYTES",
        "NEXT_ID",
    ]);
    let rows: Vec<Garbage> = bench.tx.list(&Scan::all(Table::Garbage)).unwrap();
    assert!(rows.iter().any(|row| row.chunk == id(40)), "{rows:?}");
}

#[test]
fn rows_of_what_is_gone_are_found_and_removed() {
    let mut bench = Bench::new();
    let nobody = InodeId::new(900).unwrap();
    bench.tx.put(Orphan { inode: nobody, session: SessionId::from_uuid(Uuid::from_u128(1)), since_ns: 0 });
    bench.tx.put(Xattr { inode: nobody, name: "user.x".into(), value: Bytes::new() });
    bench.finds_and_mends(&["ORPHAN_WITHOUT_INODE", "XATTR_WITHOUT_INODE"]);
}

#[test]
fn files_whose_chunks_are_gone_are_named_with_all_their_names() {
    let mut bench = Bench::new();
    bench.tx.delete(Key::Chunk(id(1)));
    bench.tx.delete(Key::ReplicaSet(set_id()));
    let gone = Chunk {
        length: 1,
        ..find::<Chunk>(&*bench.store.reader(true).unwrap(), &Key::Chunk(id(4))).unwrap().unwrap()
    };
    bench.tx.put(gone);
    let found: BTreeMap<Vec<u8>, u64> = bench
        .check()
        .into_iter()
        .map(|(finding, _)| finding)
        .filter(|finding| finding.code == "FILE_DAMAGED")
        .map(|finding| (finding.path, finding.bytes))
        .collect();
    let names: Vec<_> = found.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    // The file that is held open has no name.
    assert_eq!(names, ["", "/a", "/b", "/dir/again"]);
}

#[test]
fn extents_that_can_not_be_are_found() {
    let mut bench = Bench::new();
    let a = bench.child("a");
    bench.change::<Extent>(Key::Extent(a, 0), |extent| extent.length = 501);
    let found = bench.finds(&[
        "ALLOCATED",
        "CHUNK_TOO_SHORT",
        "COUNTER",
        "EXTENT",
        "FILE_DAMAGED",
        "FILE_DAMAGED",
        "LIVE_BYTES",
    ]);
    assert!(found.iter().any(|finding| finding.detail.contains("overlaps")), "{found:?}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let (answers, mut taken) = mpsc::channel(1);
    let limit = Duration::from_millis(20);
    assert!(deliver(&answers, v1::FsckResponse::default(), limit).await.is_ok());
    assert!(matches!(deliver(&answers, v1::FsckResponse::default(), limit).await, Err(Abort::Gone)));
    assert!(taken.recv().await.is_some());
    assert!(deliver(&answers, v1::FsckResponse::default(), limit).await.is_ok(), "it may be slow");
}
