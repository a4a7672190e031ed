//! What every engine must do, run on each of them.

use bytes::Bytes;
use cairn_proto::{ChunkId, ClusterId, ErrorKind, InodeId, ReplicaSetId, SessionId};
use uuid::Uuid;

use super::memory::MemoryStore;
use super::sqlite::{self, SqliteOptions};
use super::*;

/// A place where a store can be opened again and again.
enum Place {
    Memory(MemoryStore),
    Sqlite(tempfile::TempDir),
}

impl Place {
    fn all() -> Vec<Self> {
        vec![Self::Memory(MemoryStore::default()), Self::Sqlite(tempfile::tempdir().unwrap())]
    }

    fn open(&self) -> Store {
        let new_cluster = ClusterId::from_uuid(Uuid::from_u128(1));
        match self {
            Self::Memory(store) => store.open(new_cluster, 5).unwrap(),
            Self::Sqlite(directory) => sqlite::open(&SqliteOptions {
                directory: directory.path().to_owned(),
                sync: true,
                cluster: None,
                new_cluster,
                now_ns: 5,
            })
            .unwrap(),
        }
    }
}

fn inode_id(id: u64) -> InodeId {
    InodeId::new(id).unwrap()
}

fn extent(inode: u64, offset: u64) -> Extent {
    let chunk = ChunkId::new(offset + 1).unwrap();
    Extent { inode: inode_id(inode), offset, length: 10, chunk, chunk_offset: 0 }
}

fn entry(parent: u64, name: &str, cookie: u64) -> Dentry {
    let name = Bytes::copy_from_slice(name.as_bytes());
    Dentry { parent: inode_id(parent), name, child: inode_id(1), kind: Kind::Directory, cookie }
}

fn puts(rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { puts: rows.into_iter().collect(), deletes: Vec::new() }
}

fn names(reader: &(impl Reader + ?Sized), parent: u64, after: u64, limit: usize) -> Vec<String> {
    let mut names = Vec::new();
    reader
        .read_dir(inode_id(parent), after, limit, &mut |entry| {
            assert_eq!((entry.child, entry.kind), (InodeId::ROOT, Kind::Directory));
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            true
        })
        .unwrap();
    names
}

#[test]
fn a_new_store_has_a_root_and_its_counters() {
    for place in Place::all() {
        let store = place.open();
        let root: Inode = find(&*store.writer, &Key::Inode(InodeId::ROOT)).unwrap().unwrap();
        assert_eq!((root.kind, root.nlink, root.parent), (Kind::Directory, 2, 1));
        assert_eq!(count(&*store.writer, Count::Inodes).unwrap(), 1);
        assert_eq!(count(&*store.writer, Count::NextInode).unwrap(), 2);
        assert_eq!(count(&*store.writer, Count::Bytes).unwrap(), 0);
    }
}

#[test]
fn every_opening_begins_a_term_and_keeps_the_rows() {
    for place in Place::all() {
        let mut first = place.open();
        first.writer.commit(&puts([extent(7, 0).into()])).unwrap();
        let cluster = first.cluster;
        let term = first.term;
        drop(first);
        let second = place.open();
        assert_eq!((second.cluster, second.term), (cluster, term + 1));
        assert_eq!(list::<Extent>(&*second.writer, &Scan::all(Table::Extent)).unwrap(), [extent(7, 0)]);
    }
}

#[test]
fn rows_of_every_table_come_back_as_they_were() {
    let uuid = |n| Uuid::from_u128(n);
    let rows: Vec<Row> = vec![
        extent(3, 0).into(),
        entry(3, "x", 16).into(),
        Chunk {
            id: ChunkId::new(i64::MAX as u64).unwrap(),
            replica_set: ReplicaSetId::new(1).unwrap(),
            length: 1,
            crc32c: u32::MAX,
            live: 1,
            faults: 0,
            created_ns: i64::MIN,
        }
        .into(),
        Xattr { inode: inode_id(3), name: Bytes::from_static(b"user.\xff"), value: Bytes::new() }.into(),
        ReplicaSet {
            id: ReplicaSetId::new(1).unwrap(),
            members: Members::active([1, 2].map(|n| cairn_proto::NodeId::from_uuid(uuid(n)))),
            replicas: 3,
            min_replicas: 2,
            epoch: 9,
        }
        .into(),
        Datanode {
            admin: AdminState::Draining,
            id: cairn_proto::NodeId::from_uuid(uuid(4)),
            address: "a:1".into(),
            metrics_address: String::new(),
            labels: Labels([("zone".into(), "ü=1".into())].into()),
            capacity: 1,
            used: 0,
            version: "1".into(),
            last_seen_ns: -1,
        }
        .into(),
        Slot {
            session: SessionId::from_uuid(uuid(5)),
            slot: 255,
            sequence: 1,
            reply: Bytes::from_static(b"\0"),
        }
        .into(),
    ];
    for place in Place::all() {
        let mut store = place.open();
        store.writer.commit(&puts(rows.clone())).unwrap();
        for row in &rows {
            assert_eq!(store.writer.get(&row.key()).unwrap().as_ref(), Some(row));
            assert_eq!(store.readers.reader(false).unwrap().get(&row.key()).unwrap().as_ref(), Some(row));
        }
        store.writer.commit(&Batch { puts: vec![], deletes: rows.iter().map(Row::key).collect() }).unwrap();
        assert!(rows.iter().all(|row| store.writer.get(&row.key()).unwrap().is_none()));
    }
}

#[test]
fn scans_keep_to_their_range_order_and_limit() {
    for place in Place::all() {
        let mut store = place.open();
        let rows = [(7, 0), (7, 10), (7, 20), (6, 5), (8, 5)].map(|(inode, at)| extent(inode, at).into());
        store.writer.commit(&puts(rows)).unwrap();
        let key = |offset| Key::Extent(inode_id(7), offset);
        let offsets = |scan: &Scan| -> Vec<u64> {
            list::<Extent>(&*store.writer, scan).unwrap().iter().map(|extent| extent.offset).collect()
        };
        assert_eq!(offsets(&Scan::between(key(0), key(u64::MAX))), [0, 10, 20]);
        assert_eq!(offsets(&Scan::between(key(1), key(19))), [10]);
        assert_eq!(offsets(&Scan::between(key(0), key(20)).reverse().limit(2)), [20, 10]);
        assert_eq!(offsets(&Scan::between(key(5), key(4))), [0; 0]);
        assert_eq!(offsets(&Scan::all(Table::Extent)).len(), 5);
        assert_eq!(offsets(&Scan::all(Table::Extent).reverse().limit(1)), [5]);
        let behind = |inode, at| Scan::behind(Table::Extent, Some(Key::Extent(inode_id(inode), at)));
        assert_eq!(offsets(&behind(6, 5)), [0, 10, 20, 5]);
        assert_eq!(offsets(&behind(7, 0).limit(2)), [10, 20]);
        assert_eq!(offsets(&behind(7, 20)), [5]);
        assert_eq!(offsets(&behind(7, 9).reverse().limit(2)), [5, 20]);
        assert_eq!(offsets(&behind(8, 5)), [0; 0]);
        assert_eq!(offsets(&Scan::behind(Table::Extent, None)).len(), 5);
    }
}

#[test]
fn a_listing_follows_its_cookies() {
    for place in Place::all() {
        let mut store = place.open();
        let rows = [("c", 16), ("a", 17), ("b", 18)].map(|(name, cookie)| entry(1, name, cookie).into());
        store.writer.commit(&puts(rows)).unwrap();
        store.writer.commit(&puts([entry(2, "other", 16).into()])).unwrap();
        let reader = store.readers.reader(true).unwrap();
        assert_eq!(names(&*reader, 1, 0, 10), ["c", "a", "b"]);
        assert_eq!(names(&*reader, 1, 16, 1), ["a"]);
        assert_eq!(names(&*reader, 1, 18, 10), [""; 0]);
        assert_eq!(names(&*reader, 1, u64::MAX, 10), [""; 0]);
        let mut found = Vec::new();
        reader
            .read_dir_inodes(InodeId::ROOT, 0, 10, &mut |entry, inode| {
                found.push((entry.name.to_vec(), entry.cookie, inode.id));
                found.len() < 2
            })
            .unwrap();
        let expected = [(b"c".to_vec(), 16, InodeId::ROOT), (b"a".to_vec(), 17, InodeId::ROOT)];
        assert_eq!(found, expected, "it ends when the visitor says so");
        let mut visited = 0;
        reader
            .read_dir(InodeId::ROOT, 0, 10, &mut |_| {
                visited += 1;
                false
            })
            .unwrap();
        assert_eq!(visited, 1);
        let nothing = &mut |entry: crate::store::DentryRef<'_>, _: Inode| panic!("{entry:?}");
        for after in [18, u64::MAX] {
            reader.read_dir_inodes(InodeId::ROOT, after, 10, nothing).unwrap();
        }
        // An entry without its inode is damage.
        let orphan = Dentry { child: inode_id(99), ..entry(3, "x", 16) };
        store.writer.commit(&puts([orphan.into()])).unwrap();
        let nothing = &mut |entry: crate::store::DentryRef<'_>, _: Inode| panic!("{entry:?}");
        let damaged = store.writer.read_dir_inodes(inode_id(3), 0, 10, nothing).unwrap_err();
        assert_eq!(damaged.kind(), ErrorKind::Corrupt);
        // Replaced under another cookie it moves; it is not seen twice.
        store.writer.commit(&puts([entry(1, "c", 40).into()])).unwrap();
        assert_eq!(names(&*store.writer, 1, 0, 10), ["a", "b", "c"]);
    }
}

#[test]
fn a_consistent_reader_sees_one_commit() {
    for place in Place::all() {
        let mut store = place.open();
        let reader = store.readers.reader(true).unwrap();
        assert_eq!(count(&*reader, Count::Inodes).unwrap(), 1);
        store.writer.commit(&puts([Counter { name: Count::Inodes, value: 2 }.into()])).unwrap();
        assert_eq!(count(&*reader, Count::Inodes).unwrap(), 1);
        drop(reader);
        assert_eq!(count(&*store.readers.reader(false).unwrap(), Count::Inodes).unwrap(), 2);
    }
}

#[test]
fn a_reader_beside_the_writer_sees_what_is_committed() {
    for place in Place::all() {
        let mut store = place.open();
        let sqlite = matches!(place, Place::Sqlite(_));
        let beside = |readers: &dyn Readers| {
            let mut seen = None;
            readers.beside_writer(&mut |reader| seen = Some(count(reader, Count::Inodes).unwrap()));
            seen
        };
        for value in 2..5 {
            store.writer.commit(&puts([Counter { name: Count::Inodes, value }.into()])).unwrap();
            assert_eq!(beside(&*store.readers), sqlite.then_some(value));
        }
        let later = Counter { name: Count::Term, value: store.term + 1 };
        store.writer.commit(&puts([later.into()])).unwrap();
        store.writer.commit(&puts([Counter { name: Count::Inodes, value: 9 }.into()])).unwrap_err();
        assert_eq!(beside(&*store.readers), sqlite.then_some(4), "what was refused is not seen");
        // The store is closed with its writer, whoever else may still read.
        let Store { writer, readers, .. } = store;
        drop(writer);
        assert_eq!(beside(&*readers), None);
    }
}

#[test]
fn a_writer_of_an_earlier_term_is_fenced() {
    for place in Place::all() {
        let mut store = place.open();
        // As if another coordinator had begun its term.
        let later = Counter { name: Count::Term, value: store.term + 1 };
        store.writer.commit(&puts([later.into()])).unwrap();
        let error = store.writer.commit(&puts([extent(7, 0).into()])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotActive, "{error}");
        assert!(matches!(error, StoreError::Fenced { ours, found } if found == ours + 1));
        assert!(store.writer.get(&extent(7, 0).into_key()).unwrap().is_none());
    }
}

impl Extent {
    fn into_key(self) -> Key {
        Key::Extent(self.inode, self.offset)
    }
}

#[test]
fn each_shows_every_row_of_a_table_once_in_order() {
    for place in Place::all() {
        let mut store = place.open();
        let rows = (0..300u64).map(|n| extent(n / 100 + 2, (n % 100) * 10));
        let mut expected: Vec<Extent> = rows.clone().collect();
        store.writer.commit(&puts(rows.rev().map(Into::into))).unwrap();
        expected.sort_by_key(|row| (row.inode, row.offset));
        let mut seen = Vec::new();
        let reader = store.readers.reader(true).unwrap();
        let visited = reader.each(Table::Extent, &mut |row| {
            seen.extend(Extent::from_row(row));
            Ok(())
        });
        visited.unwrap();
        assert_eq!(seen, expected);
        let stopped = reader.each(Table::Extent, &mut |_| Err(StoreError::Full));
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
