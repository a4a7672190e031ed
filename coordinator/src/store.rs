//! The metadata store: typed rows, range scans, and atomic durable commits fenced by a term.
//!
//! One [`Writer`] exists for each store and is owned by the executor; any number of
//! [`Snapshot`]s read committed state beside it. Engines keep rows and know nothing of what they
//! mean; `conformance.rs` holds what every engine must do.

mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    //! What the fuzzer of rows needs to see of them.
    pub(crate) use super::rows::{Row, Table};
    pub(crate) use super::value::{Value, ValueRef};
}
pub(crate) mod memory;
mod rows;
pub(crate) mod shipped;
pub(crate) mod sqlite;
pub(crate) mod value;

#[cfg(test)]
mod conformance;

use std::ops::Deref;
use std::sync::Arc;

use cairn_proto::{ClusterId, InodeId};

pub(crate) use error::StoreError;
pub(crate) use rows::{
    AdminState, Chunk, Cluster, Count, Counter, Datanode, DeadRange, Dentry, Extent, Fault, Garbage, Inode,
    Key, Kind, Labels, Member, MemberState, Members, Orphan, Plan, Record, ReplicaSet, Row, Session, Slot,
    Table, Unsynced, Xattr,
};

/// Version of the schema that this build reads and writes.
pub(crate) const SCHEMA: u64 = 4;

/// Which rows a scan visits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ScanRange {
    /// A whole table.
    All(Table),
    /// From the first to the last key, both included. They belong to one table and differ in their
    /// last column alone.
    Between(Key, Key),
    /// Those of its table behind a key, so that a table can be read in pages.
    Behind(Key),
}

/// A range, the end at which to start, and how many rows to visit at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) range: ScanRange,
    /// From the greatest key down.
    pub(crate) reverse: bool,
    pub(crate) limit: usize,
}

impl Scan {
    pub(crate) fn all(table: Table) -> Self {
        Self { range: ScanRange::All(table), reverse: false, limit: usize::MAX }
    }

    pub(crate) fn between(first: Key, last: Key) -> Self {
        Self { range: ScanRange::Between(first, last), reverse: false, limit: usize::MAX }
    }

    /// The rows of a table behind `key`; all of them when there is none.
    pub(crate) fn behind(table: Table, key: Option<Key>) -> Self {
        let range = key.map_or(ScanRange::All(table), ScanRange::Behind);
        Self { range, reverse: false, limit: usize::MAX }
    }

    pub(crate) fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    pub(crate) fn reverse(self) -> Self {
        Self { reverse: true, ..self }
    }

    pub(crate) fn table(&self) -> Table {
        match &self.range {
            ScanRange::All(table) => *table,
            ScanRange::Between(key, _) | ScanRange::Behind(key) => key.table(),
        }
    }
}

/// Reads rows. Every row is verified against its checksum first: `Corrupt` names the one that
/// fails.
pub(crate) trait Reader {
    fn get(&self, key: &Key) -> Result<Option<Row>, StoreError>;

    /// Rows of a range in the order of their keys (backwards if asked).
    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError>;

    /// All rows of a table in the order of their keys, one after another, so that a table of any size
    /// takes no memory.
    fn each(
        &self,
        table: Table,
        visit: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Entries of a directory behind cookie `after`, in the order of their cookies, until `visit`
    /// answers false or `limit` are visited.
    fn read_dir(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>) -> bool,
    ) -> Result<(), StoreError>;

    /// The same, each with its inode.
    fn read_dir_inodes(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>, Inode) -> bool,
    ) -> Result<(), StoreError>;
}

/// A dentry in a listing of its directory, borrowed from the engine: ten thousand of them are a few
/// milliseconds of a listing, and most of that would be copies of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DentryRef<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) child: InodeId,
    pub(crate) kind: Kind,
    pub(crate) cookie: u64,
}

/// Reads as another reader does.
pub(crate) trait ReadThrough {
    /// That reader, as it is now.
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError>;
}

impl<T: ReadThrough> Reader for T {
    fn get(&self, key: &Key) -> Result<Option<Row>, StoreError> {
        self.through()?.get(key)
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        self.through()?.scan(scan)
    }

    fn each(
        &self,
        table: Table,
        visit: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.through()?.each(table, visit)
    }

    fn read_dir(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>) -> bool,
    ) -> Result<(), StoreError> {
        self.through()?.read_dir(parent, after, limit, visit)
    }

    fn read_dir_inodes(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>, Inode) -> bool,
    ) -> Result<(), StoreError> {
        self.through()?.read_dir_inodes(parent, after, limit, visit)
    }
}

/// What changes in one commit. A key occurs once.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) puts: Vec<Row>,
    pub(crate) deletes: Vec<Key>,
}

/// The only one that changes the store.
pub(crate) trait Writer: Reader + Send {
    /// Applies all of a batch or nothing of it; durable on return.
    ///
    /// `Fenced`: a later term has begun; this writer must not go on. `Sync`: whether the batch is
    /// durable is unknown, and will be after a restart.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;
}

/// A reader at one point in time.
pub(crate) type Snapshot = Box<dyn Reader>;

/// Gives out readers of committed state.
pub(crate) trait Readers: Send + Sync {
    /// With `consistent`, all reads see the same commit; otherwise each sees the latest.
    fn reader(&self, consistent: bool) -> Result<Snapshot, StoreError>;

    /// Calls `read` with a consistent reader that has in memory what was changed lately, if that can be had now. The
    /// writer waits until it returns.
    fn beside_writer(&self, read: &mut dyn FnMut(&dyn Reader)) {
        let _ = read;
    }
}

/// An open store.
pub(crate) struct Store {
    pub(crate) writer: Box<dyn Writer>,
    pub(crate) readers: Arc<dyn Readers>,
    pub(crate) cluster: ClusterId,
    /// This reign; every commit is refused once a later one has begun.
    pub(crate) term: u64,
}

/// Reads one row of a known table.
pub(crate) fn find<R: Record>(reader: &(impl Reader + ?Sized), key: &Key) -> Result<Option<R>, StoreError> {
    Ok(reader.get(key)?.and_then(R::from_row))
}

/// Reads rows of a known table.
pub(crate) fn list<R: Record>(reader: &(impl Reader + ?Sized), scan: &Scan) -> Result<Vec<R>, StoreError> {
    Ok(reader.scan(scan)?.into_iter().filter_map(R::from_row).collect())
}

/// Reads a counter; one that was never set is 0.
pub(crate) fn count(reader: &(impl Reader + ?Sized), count: Count) -> Result<u64, StoreError> {
    Ok(find::<Counter>(reader, &Key::Counter(count))?.map_or(0, |row| row.value))
}

/// The rows of a new store: its identity and the root directory, which belongs to whoever runs the
/// coordinator; else an ordinary user's cluster would be one that he can not write to.
pub(crate) fn first_rows(cluster: ClusterId, now_ns: i64) -> Vec<Row> {
    let root = Inode {
        id: InodeId::ROOT,
        kind: Kind::Directory,
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        nlink: 2,
        size: 0,
        allocated: 0,
        atime_ns: now_ns,
        mtime_ns: now_ns,
        ctime_ns: now_ns,
        btime_ns: now_ns,
        version: 1,
        parent: InodeId::ROOT.get(),
        symlink_target: bytes::Bytes::new(),
        next_cookie: FIRST_COOKIE,
        xattrs: 0,
    };
    let counts = [
        (Count::Inodes, 1),
        (Count::NextInode, InodeId::ROOT.get() + 1),
        (Count::NextChunk, 1),
        (Count::NextSet, 1),
        (Count::Epoch, 1),
    ];
    let mut rows = vec![Cluster { id: 1, cluster, schema: SCHEMA, created_ns: now_ns }.into(), root.into()];
    rows.extend(counts.into_iter().map(|(name, value)| Counter { name, value }.into()));
    rows
}

/// Cookies below this one are left to whoever adds "." and ".." to a listing.
pub(crate) const FIRST_COOKIE: u64 = 16;
