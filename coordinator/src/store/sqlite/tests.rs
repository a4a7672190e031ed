use std::path::Path;

use cairn_proto::{ErrorKind, InodeId};
use rusqlite::Connection;
use uuid::Uuid;

use super::super::{Key, Scan, Table};
use super::*;

fn options(directory: &Path) -> SqliteOptions {
    SqliteOptions {
        directory: directory.to_owned(),
        sync: true,
        cluster: None,
        new_cluster: ClusterId::from_uuid(Uuid::from_u128(1)),
        now_ns: 1,
    }
}

fn refusal(options: &SqliteOptions) -> String {
    match open(options) {
        Ok(_) => panic!("{options:?} was opened"),
        Err(StoreError::Unusable(why)) => why,
        Err(other) => panic!("{other}"),
    }
}

fn edit(directory: &Path, sql: &str) {
    let connection = Connection::open(directory.join(schema::FILE)).unwrap();
    assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&options(directory.path())).unwrap();
    let why = refusal(&options(directory.path()));
    assert!(why.contains("in use by another process"), "{why}");
    drop(store);
    open(&options(directory.path())).unwrap();
}

#[test]
fn a_directory_with_other_files_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    cairn_runtime::disk::Disk::create_dir(&RealDisk::open(directory.path()).unwrap(), Path::new("segments"))
        .unwrap();
    let why = refusal(&options(directory.path()));
    assert!(why.contains("segments"), "{why}");
}

#[test]
fn another_cluster_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&options(directory.path())).unwrap());
    let other = ClusterId::from_uuid(Uuid::from_u128(2));
    let why = refusal(&SqliteOptions { cluster: Some(other), ..options(directory.path()) });
    assert!(why.contains("belongs to cluster"), "{why}");
}

#[test]
fn a_newer_schema_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(&options(directory.path())).unwrap();
    let identity: super::super::Cluster =
        super::super::find(&*store.writer, &Key::Cluster(1)).unwrap().unwrap();
    let newer = super::super::Cluster { schema: 99, ..identity };
    store.writer.commit(&Batch { puts: vec![newer.into()], deletes: vec![] }).unwrap();
    drop(store);
    let why = refusal(&options(directory.path()));
    assert!(why.contains("newer version (schema 99"), "{why}");
}

#[test]
fn a_changed_column_is_an_error_that_names_its_row() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&options(directory.path())).unwrap());
    edit(directory.path(), "UPDATE inode SET uid = uid + 1 WHERE id = 1");
    let store = open(&options(directory.path())).unwrap();
    for error in [
        store.writer.get(&Key::Inode(InodeId::ROOT)).unwrap_err(),
        store.writer.scan(&Scan::all(Table::Inode)).unwrap_err(),
        store.readers.reader(true).unwrap().get(&Key::Inode(InodeId::ROOT)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("inode"), "{error}");
        assert!(error.to_string().contains("id"), "{error}");
    }
}

#[test]
fn a_changed_identity_or_term_stops_the_start() {
    for sql in ["UPDATE cluster SET created_ns = 7", "UPDATE counter SET value = 0 WHERE name = 'term'"] {
        let directory = tempfile::tempdir().unwrap();
        drop(open(&options(directory.path())).unwrap());
        edit(directory.path(), sql);
        let error = open(&options(directory.path())).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

/// Flips single bits all over the file: a row either reads as it was, or gives an error.
#[test]
fn no_flipped_bit_changes_what_is_read() {
    use std::os::unix::fs::FileExt as _;
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(&options(directory.path())).unwrap();
    let root: Inode = super::super::find(&*store.writer, &Key::Inode(InodeId::ROOT)).unwrap().unwrap();
    let inodes = (2..200).map(|id| Inode { id: InodeId::new(id).unwrap(), ..root.clone() }.into());
    store.writer.commit(&Batch { puts: inodes.collect(), deletes: vec![] }).unwrap();
    let before = store.writer.scan(&Scan::all(Table::Inode)).unwrap();
    drop(store);
    let path = directory.path().join(schema::FILE);
    #[allow(clippy::disallowed_methods)] // a test that damages a file
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut noticed = 0;
    for round in 0..300u64 {
        let at = 100 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (length - 100);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (round % 8))], at).unwrap();
        let connection = Connection::open(directory.path().join(schema::FILE)).unwrap();
        let tables = Table::ALL.iter().map(|&table| TableSql::new(table)).collect();
        let reading = Connected::new(connection, tables);
        for row in &before {
            match reading.get(&row.key()) {
                // A damaged page of the tree may hide a row; it must not show another.
                Ok(None) | Err(_) => noticed += 1,
                Ok(Some(read)) => assert_eq!(&read, row, "bit {} of byte {at}", round % 8),
            }
        }
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(noticed > 0, "no flip hit a row");
}

#[test]
fn a_store_of_schema_1_is_brought_up_with_its_datanodes() {
    use super::super::value::{Column, RowChecksum};
    let directory = tempfile::tempdir().unwrap();
    drop(open(&options(directory.path())).unwrap());
    // As schema 1 had it: the last column is missing, and the checksum covers the others.
    let node = cairn_proto::NodeId::from_uuid(Uuid::from_u128(7));
    let values = [
        node.value(),
        String::from("127.0.0.1:7080").value(),
        String::new().value(),
        String::from("rack=r1").value(),
        100u64.value(),
        10u64.value(),
        String::from("0.1.0").value(),
        5i64.value(),
    ];
    let old_row = |damage: i64| {
        let mut checksum = RowChecksum::default();
        checksum.begin("datanode");
        values.iter().for_each(|value| checksum.add(value.as_ref()));
        let connection = Connection::open(directory.path().join(schema::FILE)).unwrap();
        connection
            .execute_batch(
                "DROP TABLE IF EXISTS unsynced; DROP TABLE datanode; CREATE TABLE datanode (id BLOB NOT NULL, address TEXT NOT NULL,
                 metrics_address TEXT NOT NULL, labels TEXT NOT NULL, capacity INTEGER NOT NULL,
                 used INTEGER NOT NULL, version TEXT NOT NULL, last_seen_ns INTEGER NOT NULL,
                 crc INTEGER NOT NULL, PRIMARY KEY (id)) STRICT, WITHOUT ROWID;",
            )
            .unwrap();
        let id = node.to_wire().to_vec();
        connection
            .execute(
                "INSERT INTO datanode VALUES (?, '127.0.0.1:7080', '', 'rack=r1', 100, 10, '0.1.0', 5, ?)",
                rusqlite::params![id, checksum.finish() + damage],
            )
            .unwrap();
        let mut checksum = RowChecksum::default();
        checksum.begin("cluster");
        let identity =
            [1u64.value(), ClusterId::from_uuid(Uuid::from_u128(1)).value(), 1u64.value(), 1i64.value()];
        identity.iter().for_each(|value| checksum.add(value.as_ref()));
        connection.execute("UPDATE cluster SET schema = 1, crc = ?", [checksum.finish()]).unwrap();
    };
    old_row(1);
    let why = refusal(&options(directory.path()));
    assert!(why.contains("datanode is damaged"), "{why}");
    old_row(0);
    let store = open(&options(directory.path())).unwrap();
    let row: Option<super::super::Datanode> =
        super::super::find(&*store.writer, &Key::Datanode(node)).unwrap();
    let row = row.unwrap();
    assert_eq!((row.address.as_str(), row.capacity, row.last_seen_ns), ("127.0.0.1:7080", 100, 5));
    assert_eq!(row.admin, super::super::AdminState::In);
}

/// A store with a log of `commits` changes that was not closed, as after a crash; returns the log's bytes.
fn crashed(directory: &Path, commits: u64) -> Vec<u8> {
    let mut store = open(&options(directory)).unwrap();
    let root: Inode = super::super::find(&*store.writer, &Key::Inode(InodeId::ROOT)).unwrap().unwrap();
    for id in 2..2 + commits {
        let inode = Inode { id: InodeId::new(id).unwrap(), ..root.clone() };
        store.writer.commit(&Batch { puts: vec![inode.into()], deletes: vec![] }).unwrap();
    }
    let (database, log) = (read_file(directory, schema::FILE), read_file(directory, wal::LOG));
    drop(store);
    write_file(directory, schema::FILE, &database);
    write_file(directory, wal::LOG, &log);
    log
}

#[allow(clippy::disallowed_methods)] // tests damage files behind the store's back
fn read_file(directory: &Path, name: &str) -> Vec<u8> {
    std::fs::read(directory.join(name)).unwrap()
}

#[allow(clippy::disallowed_methods)]
fn write_file(directory: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(directory.join(name), bytes).unwrap();
}

fn inodes(store: &Store) -> usize {
    store.writer.scan(&Scan::all(Table::Inode)).unwrap().len()
}

#[test]
fn a_log_torn_at_its_end_is_replayed_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let log = crashed(directory.path(), 10);
    // Within the last frame, and in the middle of it.
    for cut in [1, 2000] {
        write_file(directory.path(), wal::LOG, &log[..log.len() - cut]);
        let copy = tempfile::tempdir().unwrap();
        for name in [schema::FILE, wal::LOG] {
            write_file(copy.path(), name, &read_file(directory.path(), name));
        }
        assert_eq!(inodes(&open(&options(copy.path())).unwrap()), 10, "the root and 9 of 10");
    }
    let mut torn = log.clone();
    let last = torn.len() - 100;
    torn[last] ^= 1;
    write_file(directory.path(), wal::LOG, &torn);
    assert_eq!(inodes(&open(&options(directory.path())).unwrap()), 10, "the root and 9 of 10");
}

#[test]
fn a_log_damaged_before_its_end_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let log = crashed(directory.path(), 10);
    for at in [0, 9, 17, 25, 33, 60, log.len() / 3, log.len() / 2] {
        let mut damaged = log.clone();
        damaged[at] ^= 0x10;
        write_file(directory.path(), wal::LOG, &damaged);
        let why = refusal(&options(directory.path()));
        assert!(why.contains("meta.db-wal is damaged"), "byte {at}: {why}");
    }
    write_file(directory.path(), wal::LOG, &log);
    assert_eq!(inodes(&open(&options(directory.path())).unwrap()), 11);
}

#[test]
fn a_database_that_lost_its_content_is_not_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&options(directory.path())).unwrap());
    let whole = read_file(directory.path(), schema::FILE);
    write_file(directory.path(), schema::FILE, &[]);
    let why = refusal(&options(directory.path()));
    assert!(why.contains("belongs to cluster 00000000-0000-0000-0000-000000000001"), "{why}");
    write_file(directory.path(), schema::FILE, &whole);
    write_file(directory.path(), "CLUSTER", b"x");
    let why = refusal(&options(directory.path()));
    assert!(why.contains("CLUSTER is damaged"), "{why}");
    write_file(directory.path(), "CLUSTER", b"00000000-0000-0000-0000-000000000002\n");
    let why = refusal(&options(directory.path()));
    assert!(why.contains("CLUSTER if the change is meant"), "{why}");
}

#[test]
fn the_identity_does_not_lie_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    crashed(directory.path(), 3);
    write_file(directory.path(), wal::LOG, &[]);
    assert_eq!(inodes(&open(&options(directory.path())).unwrap()), 1);
}
