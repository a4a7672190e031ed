//! The SQLite engine: one file `meta.db` in WAL mode.
//!
//! A commit is one transaction with `synchronous=FULL`, so it is durable when it returns. Readers
//! are pooled read-only connections, or the writer's while that is idle ([`shared`]); they see committed state and
//! never wait for the writer. Each row ends in a column `crc` over its other columns, verified on every read,
//! because a flipped bit in an SQLite file mostly changes results without any error.

pub(crate) mod rebuild;
mod resident;
mod schema;
mod shared;
mod sound;
mod sql;
mod wal;

use std::cell::RefCell;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cairn_proto::{ClusterId, InodeId};
use cairn_runtime::disk::RealDisk;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql};

use super::value::{Column, Columns, RowChecksum, Value, ValueRef};
use super::{
    Batch, Count, DentryRef, Inode, Key, Kind, ReadThrough, Reader, Readers, Record, Row, Scan, ScanRange,
    Snapshot, Store, StoreError, Table, Writer,
};
use resident::ResidentLog;
use shared::SharedConnection;
pub(crate) use sound::SoundRows;
use sql::TableSql;

/// Page cache of the writer, KiB. With those of the readers it leaves most of 200 MiB free.
const WRITER_CACHE_KIB: i64 = 32 << 10;
/// Page cache of each reader, KiB.
const READER_CACHE_KIB: i64 = 8 << 10;
/// Idle readers that are kept; more are closed after use.
const READERS_KEPT: usize = 4;
/// Pages in the log after which they are copied into the database: 16 MiB.
const CHECKPOINT_PAGES: i64 = 4000;
/// The log file is cut to this after a checkpoint, bytes.
const LOG_SIZE_MAX: i64 = 64 << 20;
/// Prepared statements kept by a connection: a few for each table.
const STATEMENTS: usize = 128;
/// Columns of the widest table, with its checksum, and some to spare.
const COLUMNS_MAX: usize = 24;

/// How to open the store.
#[derive(Debug, Clone)]
pub(crate) struct SqliteOptions {
    /// Directory; made when it is missing.
    pub(crate) directory: PathBuf,
    /// Whether a commit waits until it would survive a power cut.
    pub(crate) sync: bool,
    /// The cluster that is expected, if one is.
    pub(crate) cluster: Option<ClusterId>,
    /// Identity for a store that is made.
    pub(crate) new_cluster: ClusterId,
    pub(crate) now_ns: i64,
}

/// Opens the store in a new term; makes it in an empty directory.
///
/// `Unusable`: the directory is locked, holds something else, a newer schema or another cluster.
pub(crate) fn open(options: &SqliteOptions) -> Result<Store, StoreError> {
    let lock = RealDisk::open(&options.directory).map_err(|error| StoreError::Unusable(error.to_string()))?;
    let file = options.directory.join(schema::FILE);
    let fresh = schema::check_directory(&lock, &options.directory)?;
    let marked = schema::marked_cluster(&lock, &options.directory)?;
    // Without syncs a crash may tear any number of commits.
    if options.sync {
        wal::check(&lock, &options.directory)?;
    }
    let mut connection = Connection::open(&file).map_err(engine("open its file"))?;
    configure(&connection, WRITER_CACHE_KIB, options.sync)?;
    let identity = schema::prepare(&mut connection, options, marked)?;
    if fresh {
        tracing::info!(cluster = %identity.cluster, path = %options.directory.display(), "a new metadata store");
    }
    if marked.is_none() {
        // The identity lies in the database itself from now on, whatever happens to its log.
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(engine("write its identity"))?;
        schema::mark(&lock, &options.directory, identity.cluster)?;
    }
    let tables: Arc<[TableSql]> = Table::ALL.iter().map(|&table| TableSql::new(table)).collect();
    let connected = Arc::new(SharedConnection::new(Connected::new(connection, Arc::clone(&tables))));
    let idle = Arc::new(Mutex::new(Vec::new()));
    let readers = SqliteReaders { file, idle, tables, writer: Arc::downgrade(&connected) };
    let writer = SqliteWriter {
        connected,
        term: identity.term,
        failed: None,
        log: ResidentLog::default(),
        directory: lock,
    };
    Ok(Store {
        writer: Box::new(writer),
        readers: Arc::new(readers),
        cluster: identity.cluster,
        term: identity.term,
    })
}

fn configure(connection: &Connection, cache_kib: i64, sync: bool) -> Result<(), StoreError> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let pragmas = format!(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = {};
         PRAGMA cache_size = -{cache_kib};
         PRAGMA mmap_size = 0;
         PRAGMA temp_store = MEMORY;
         PRAGMA busy_timeout = 5000;
         PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
         PRAGMA journal_size_limit = {LOG_SIZE_MAX};",
        if sync { "FULL" } else { "NORMAL" },
    );
    connection.execute_batch(&pragmas).map_err(engine("set itself up"))
}

/// Translates an error of SQLite that happened during `task`.
fn engine(task: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |error| match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StoreError::Damaged(error.to_string()),
        _ => StoreError::Engine { task, source: Box::new(error) },
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Int(value) => rusqlite::types::ValueRef::Integer(*value),
            Self::Text(value) => rusqlite::types::ValueRef::Text(value.as_bytes()),
            Self::Blob(value) => rusqlite::types::ValueRef::Blob(value),
        }))
    }
}

/// Columns of a result row from `first` on.
struct RowColumns<'a, 'stmt> {
    row: &'a rusqlite::Row<'stmt>,
    first: usize,
}

impl Columns for RowColumns<'_, '_> {
    fn column(&self, index: usize) -> Option<ValueRef<'_>> {
        column(self.row, self.first + index)
    }
}

fn column<'row>(row: &'row rusqlite::Row<'_>, index: usize) -> Option<ValueRef<'row>> {
    match row.get_ref(index).ok()? {
        rusqlite::types::ValueRef::Integer(value) => Some(ValueRef::Int(value)),
        rusqlite::types::ValueRef::Blob(value) => Some(ValueRef::Blob(value)),
        rusqlite::types::ValueRef::Text(value) => std::str::from_utf8(value).ok().map(ValueRef::Text),
        rusqlite::types::ValueRef::Null | rusqlite::types::ValueRef::Real(_) => None,
    }
}

/// Room for the columns of a row.
const NO_VALUES: [ValueRef<'static>; COLUMNS_MAX] = [ValueRef::Int(0); COLUMNS_MAX];

/// A connection that reads.
#[derive(Debug)]
struct Connected {
    connection: Connection,
    tables: Arc<[TableSql]>,
    /// Reused for every row.
    checksum: RefCell<RowChecksum>,
}

impl Connected {
    fn new(connection: Connection, tables: Arc<[TableSql]>) -> Self {
        Self { connection, tables, checksum: RefCell::default() }
    }

    fn sql(&self, table: Table) -> &TableSql {
        // `tables` was made from `Table::ALL`, whose order is that of the enum.
        &self.tables[table as usize]
    }

    /// Verifies and decodes the columns of one row; `None` when they do not fit their checksum.
    fn decode(&self, table: Table, row: &rusqlite::Row<'_>, first: usize) -> Option<Row> {
        let mut values = NO_VALUES;
        Row::decode(table, self.verify(table, row, first, &mut values)?)
    }

    /// The columns of one row, when they fit their checksum.
    fn verify<'a, 'row>(
        &self,
        table: Table,
        row: &'row rusqlite::Row<'_>,
        first: usize,
        values: &'a mut [ValueRef<'row>; COLUMNS_MAX],
    ) -> Option<&'a [ValueRef<'row>]> {
        let count = self.sql(table).columns;
        // Each column is asked for once: SQLite's answers cost more than the rest of this.
        let values = values.get_mut(..=count)?;
        for (index, value) in values.iter_mut().enumerate() {
            *value = column(row, first + index)?;
        }
        let (stored, values) = values.split_last()?;
        let mut checksum = self.checksum.borrow_mut();
        checksum.begin(table.name());
        values.iter().for_each(|&value| checksum.add(value));
        (*stored == ValueRef::Int(checksum.finish())).then_some(values)
    }

    /// Verifies and borrows a dentry, whose columns are the first of a row.
    fn dentry<'row>(&self, row: &'row rusqlite::Row<'_>) -> Result<DentryRef<'row>, StoreError> {
        let mut values = NO_VALUES;
        let verified = self.verify(Table::Dentry, row, 0, &mut values).and_then(|values| match *values {
            [_, ValueRef::Blob(name), child, kind, cookie] => Some(DentryRef {
                name,
                child: InodeId::from_value(child)?,
                kind: Kind::from_value(kind)?,
                cookie: u64::from_value(cookie)?,
            }),
            _ => None,
        });
        verified.ok_or_else(|| self.damaged(Table::Dentry, row, 0))
    }

    /// Visits the rows of a listing until `visit` answers false.
    fn list(
        &self,
        text: &str,
        (parent, after, limit): (InodeId, u64, usize),
        mut visit: impl FnMut(&rusqlite::Row<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let failed = engine("list a directory");
        let bounded = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let values = [parent.get(), after, limit as u64].map(bounded);
        let mut statement = self.connection.prepare_cached(text).map_err(&failed)?;
        let mut rows = statement.query(values).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            if !visit(row)? {
                break;
            }
        }
        Ok(())
    }

    /// Says which row is damaged, as well as its key columns still can.
    fn damaged(&self, table: Table, row: &rusqlite::Row<'_>, first: usize) -> StoreError {
        let keys = table.key_columns().iter().enumerate().map(|(index, (name, _))| {
            let value = row.get_ref(first + index).map(|value| format!("{value:?}"));
            format!("{name} {}", value.unwrap_or_else(|_| "?".into()))
        });
        StoreError::Corrupt { table: table.name(), key: keys.collect::<Vec<_>>().join(", ") }
    }
}

impl Reader for Connected {
    fn get(&self, key: &Key) -> Result<Option<Row>, StoreError> {
        let failed = engine("read a row");
        let table = key.table();
        let mut statement = self.connection.prepare_cached(&self.sql(table).get).map_err(&failed)?;
        let mut rows = statement.query(rusqlite::params_from_iter(key.values())).map_err(&failed)?;
        match rows.next().map_err(&failed)? {
            Some(row) => self.decode(table, row, 0).map(Some).ok_or_else(|| StoreError::corrupt(key)),
            None => Ok(None),
        }
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        let failed = engine("scan rows");
        let table = scan.table();
        let sql = self.sql(table);
        let (text, mut values) = match &scan.range {
            ScanRange::All(_) => (if scan.reverse { &sql.all_down } else { &sql.all_up }, Vec::new()),
            ScanRange::Between(first, last) => {
                let mut values = first.values();
                values.extend(last.values().pop());
                (if scan.reverse { &sql.range_down } else { &sql.range_up }, values)
            }
            ScanRange::Behind(key) => {
                (if scan.reverse { &sql.behind_down } else { &sql.behind_up }, key.values())
            }
        };
        values.push(Value::Int(i64::try_from(scan.limit).unwrap_or(i64::MAX)));
        let mut statement = self.connection.prepare_cached(text).map_err(&failed)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values)).map_err(&failed)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&failed)? {
            found.push(self.decode(table, row, 0).ok_or_else(|| self.damaged(table, row, 0))?);
        }
        Ok(found)
    }

    fn each(
        &self,
        table: Table,
        visit: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let failed = engine("read a table");
        let mut statement = self.connection.prepare_cached(&self.sql(table).all_up).map_err(&failed)?;
        let mut rows = statement.query([i64::MAX]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            visit(self.decode(table, row, 0).ok_or_else(|| self.damaged(table, row, 0))?)?;
        }
        Ok(())
    }

    fn read_dir(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>) -> bool,
    ) -> Result<(), StoreError> {
        self.list(sql::read_dir(), (parent, after, limit), |row| Ok(visit(self.dentry(row)?)))
    }

    fn read_dir_inodes(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        visit: &mut dyn FnMut(DentryRef<'_>, Inode) -> bool,
    ) -> Result<(), StoreError> {
        let behind_dentry = self.sql(Table::Dentry).columns + 1;
        self.list(sql::read_dir_with_inodes(), (parent, after, limit), |row| {
            let entry = self.dentry(row)?;
            let inode = self.decode(Table::Inode, row, behind_dentry).and_then(Inode::from_row);
            Ok(visit(entry, inode.ok_or_else(|| StoreError::corrupt(&Key::Inode(entry.child)))?))
        })
    }
}

/// The one connection that writes, and the lock on the directory.
struct SqliteWriter {
    connected: Arc<SharedConnection>,
    term: u64,
    /// Why a commit ended in doubt; nothing is written after that.
    failed: Option<String>,
    log: ResidentLog,
    /// Locked by this.
    directory: RealDisk,
}

impl ReadThrough for SqliteWriter {
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError> {
        Ok(self.connected.take())
    }
}

impl Connected {
    fn write(&self, batch: &Batch, term: u64) -> Result<(), StoreError> {
        let failed = engine("write rows");
        let found = super::count(self, Count::Term)?;
        if found != term {
            return Err(StoreError::Fenced { ours: term, found });
        }
        for key in &batch.deletes {
            let text = &self.sql(key.table()).delete;
            let mut statement = self.connection.prepare_cached(text).map_err(&failed)?;
            statement.execute(rusqlite::params_from_iter(key.values())).map_err(&failed)?;
        }
        for row in &batch.puts {
            let table = row.key().table();
            let mut statement = self.connection.prepare_cached(&self.sql(table).put).map_err(&failed)?;
            statement.execute(rusqlite::params_from_iter(checked_values(table, row))).map_err(&failed)?;
        }
        Ok(())
    }

    fn run(&self, text: &'static str) -> Result<(), StoreError> {
        let failed = engine("commit");
        self.connection.prepare_cached(text).and_then(|mut s| s.execute([])).map_err(failed)?;
        Ok(())
    }
}

/// The columns of a row with its checksum behind them.
fn checked_values(table: Table, row: &Row) -> Vec<Value> {
    let mut values = row.values();
    let mut checksum = RowChecksum::default();
    checksum.begin(table.name());
    values.iter().for_each(|value| checksum.add(value.as_ref()));
    values.push(Value::Int(checksum.finish()));
    values
}

impl Writer for SqliteWriter {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if let Some(why) = &self.failed {
            return Err(StoreError::Failed(why.clone()));
        }
        self.log.keep(&self.directory);
        // Nobody reads in the middle of a transaction.
        let connected = self.connected.take();
        connected.run("BEGIN IMMEDIATE")?;
        let written = connected.write(batch, self.term);
        let committed = written.and_then(|()| connected.run("COMMIT"));
        let Err(error) = committed else { return Ok(()) };
        // Already rolled back by SQLite after some errors, by us after the others.
        if !connected.connection.is_autocommit() {
            let _ = connected.run("ROLLBACK");
        }
        if matches!(error, StoreError::Engine { .. }) {
            // A failed sync: what became of the pages is unknown, so nothing may follow.
            self.failed = Some(error.to_string());
        }
        Err(error)
    }
}

/// Read-only connections, reused.
struct SqliteReaders {
    file: PathBuf,
    idle: Arc<Mutex<Vec<Connected>>>,
    tables: Arc<[TableSql]>,
    /// It ends with the writer.
    writer: Weak<SharedConnection>,
}

impl SqliteReaders {
    fn connect(&self) -> Result<Connected, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&self.file, flags).map_err(engine("open its file for reading"))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let pragmas = format!(
            "PRAGMA cache_size = -{READER_CACHE_KIB}; PRAGMA mmap_size = 0; PRAGMA busy_timeout = 5000;"
        );
        connection.execute_batch(&pragmas).map_err(engine("set up a reader"))?;
        Ok(Connected::new(connection, Arc::clone(&self.tables)))
    }
}

impl Readers for SqliteReaders {
    fn reader(&self, consistent: bool) -> Result<Snapshot, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reading = idle.map_or_else(|| self.connect(), Ok)?;
        if consistent {
            reading
                .connection
                .prepare_cached("BEGIN")
                .and_then(|mut statement| statement.execute([]))
                .map_err(engine("begin to read"))?;
        }
        Ok(Box::new(Pooled { reading: Some(reading), idle: Arc::clone(&self.idle) }))
    }

    fn beside_writer(&self, read: &mut dyn FnMut(&dyn Reader)) {
        if let Some(writer) = self.writer.upgrade()
            && let Some(connected) = writer.try_take()
        {
            read(&*connected);
        }
    }
}

/// A reader that goes back to its pool.
struct Pooled {
    /// Always there until it is dropped.
    reading: Option<Connected>,
    idle: Arc<Mutex<Vec<Connected>>>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(reading) = self.reading.take() else { return };
        if !reading.connection.is_autocommit() {
            let ended = reading.connection.prepare_cached("ROLLBACK").and_then(|mut s| s.execute([]));
            if ended.is_err() {
                return;
            }
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS_KEPT {
            idle.push(reading);
        }
    }
}

impl ReadThrough for Pooled {
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError> {
        self.reading.as_ref().ok_or_else(|| StoreError::Failed("a reader was used after its end".into()))
    }
}

#[cfg(test)]
mod tests;
