//! Making a store, recognizing one, and bringing an older one to the present schema.

use std::io;
use std::path::Path;

use cairn_proto::ClusterId;
use cairn_runtime::disk::{Disk, RealDisk, open_if_present, replace};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use uuid::Uuid;

use super::super::value::{RowChecksum, ValueRef};
use super::super::{Cluster, Count, Counter, Key, Row, SCHEMA, StoreError, Table, first_rows};
use super::sql::{INDEXES, TableSql};
use super::{RowColumns, SqliteOptions, checked_values, engine};

/// The file of the database.
pub(super) const FILE: &str = "meta.db";
/// Names the cluster whose store the directory holds, so that a database that lost its content is not taken
/// for one that was never written.
const MARK: &str = "CLUSTER";
/// Longest mark that is read: a UUID, a line end, and room for what an editor adds.
const MARK_MAX: u64 = 64;
/// What else may lie in a directory that is still to become a store.
const HARMLESS: &[&str] = &["LOCK", "lost+found"];

/// Step `n` brings schema `n + 1` to `n + 2`, in the transaction that also raises its number.
const MIGRATIONS: &[Migration] = &[add_admin_state, add_dead_ranges, add_unsynced];

type Migration = fn(&Transaction<'_>) -> Result<(), StoreError>;

/// Whose store it is, and which reign began by opening it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) cluster: ClusterId,
    pub(super) term: u64,
}

/// Whether the store is still to be made. A directory that holds something else is refused, so that
/// a mistyped path does not begin a second, empty cluster.
pub(super) fn check_directory(disk: &RealDisk, path: &Path) -> Result<bool, StoreError> {
    let unreadable = |error| StoreError::Unusable(format!("can not read {}: {error}", path.display()));
    let names = disk.list(Path::new("")).map_err(unreadable)?;
    if names.iter().any(|name| name == FILE) {
        return Ok(false);
    }
    match names.iter().find(|name| !HARMLESS.iter().any(|known| name == known)) {
        None => Ok(true),
        Some(other) => Err(StoreError::Unusable(format!(
            "{} holds no metadata store ({FILE}) but other files, such as {}; name the coordinator's \
             directory, or an empty one to begin a new cluster",
            path.display(),
            other.display()
        ))),
    }
}

/// The cluster whose store the directory held before; `None` in a new directory, or one of an older version.
pub(super) fn marked_cluster(disk: &RealDisk, path: &Path) -> Result<Option<ClusterId>, StoreError> {
    let place = path.join(MARK);
    let unreadable =
        |error: io::Error| StoreError::Unusable(format!("can not read {}: {error}", place.display()));
    let Some(file) = open_if_present(disk, Path::new(MARK)).map_err(unreadable)? else {
        return Ok(None);
    };
    let length = file.len().map_err(unreadable)?.min(MARK_MAX);
    let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_at(&mut text, 0).map_err(unreadable)?;
    let cluster = std::str::from_utf8(&text).ok().and_then(|text| Uuid::parse_str(text.trim()).ok());
    let unknown = || {
        StoreError::Unusable(format!(
            "{} is damaged: it should hold the cluster's id, a UUID; remove it if {FILE} beside it is the right one",
            place.display()
        ))
    };
    cluster.map(|id| Some(ClusterId::from_uuid(id))).ok_or_else(unknown)
}

/// Writes what `marked_cluster` reads. Durable on return.
pub(super) fn mark(disk: &RealDisk, path: &Path, cluster: ClusterId) -> Result<(), StoreError> {
    replace(disk, MARK, format!("{cluster}\n").as_bytes())
        .map_err(|error| StoreError::Failed(format!("{}: {error}", path.join(MARK).display())))
}

/// Makes or checks the store and begins a new term, durably.
pub(super) fn prepare(
    connection: &mut Connection,
    options: &SqliteOptions,
    marked: Option<ClusterId>,
) -> Result<Identity, StoreError> {
    let failed = engine("prepare its tables");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    // A crash while the store was made leaves a file without tables.
    let made = transaction
        .query_row("SELECT 1 FROM sqlite_schema WHERE name = 'cluster'", [], |_| Ok(()))
        .optional()
        .map_err(&failed)?
        .is_some();
    let place = options.directory.display();
    if let Some(cluster) = marked.filter(|_| !made) {
        return Err(StoreError::Unusable(format!(
            "{place}/{FILE} is empty, though the directory belongs to cluster {cluster}: the file or its log is \
             damaged; restore it from a backup (`cairn coordinator restore`)"
        )));
    }
    if !made {
        create(&transaction, options).map_err(&failed)?;
    }
    let identity: Cluster =
        read(&transaction, Table::Cluster, "id = 1", &Key::Cluster(1))?.ok_or_else(|| {
            StoreError::Unusable(format!("{place}/{FILE} holds no cluster; restore it from a backup"))
        })?;
    if identity.schema > SCHEMA {
        return Err(StoreError::Unusable(format!(
            "{place} was written by a newer version (schema {}; this build knows {SCHEMA}); \
             install that version",
            identity.schema
        )));
    }
    if let Some(cluster) = marked.filter(|&cluster| cluster != identity.cluster) {
        return Err(StoreError::Unusable(format!(
            "{place}/{FILE} is of cluster {}, but the directory belongs to cluster {cluster}; put that cluster's \
             {FILE} back, or remove {place}/{MARK} if the change is meant",
            identity.cluster
        )));
    }
    if let Some(expected) = options.cluster.filter(|&expected| expected != identity.cluster) {
        return Err(StoreError::Unusable(format!(
            "{place} belongs to cluster {}, but {expected} is expected; choose its directory, or change \
             the setting `cluster`",
            identity.cluster
        )));
    }
    migrate(&transaction, &identity)?;
    let term = raise_term(&transaction)?;
    transaction.commit().map_err(&failed)?;
    Ok(Identity { cluster: identity.cluster, term })
}

fn create(transaction: &Transaction<'_>, options: &SqliteOptions) -> rusqlite::Result<()> {
    for &table in Table::ALL {
        transaction.execute_batch(&TableSql::new(table).create)?;
    }
    transaction.execute_batch(INDEXES)?;
    first_rows(options.new_cluster, options.now_ns).iter().try_for_each(|row| put(transaction, row))
}

fn put(transaction: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let table = row.key().table();
    let values = checked_values(table, row);
    transaction.execute(&TableSql::new(table).put, rusqlite::params_from_iter(values)).map(|_| ())
}

fn migrate(transaction: &Transaction<'_>, from: &Cluster) -> Result<(), StoreError> {
    let first = usize::try_from(from.schema.saturating_sub(1)).unwrap_or(usize::MAX);
    for step in MIGRATIONS.iter().skip(first) {
        step(transaction)?;
    }
    if from.schema < SCHEMA {
        let row = Cluster { schema: SCHEMA, ..from.clone() };
        put(transaction, &row.into()).map_err(engine("raise its schema"))?;
        tracing::info!(from = from.schema, to = SCHEMA, "the metadata store has a newer schema now");
    }
    Ok(())
}

/// Schema 2: rows of datanodes say what the operator wants of them. The checksum of a row covers all of its
/// columns, so each is verified in its old form and written anew.
fn add_admin_state(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    const COLUMNS: usize = 8;
    let failed = engine("bring its datanodes to schema 2");
    let mut rows = Vec::new();
    {
        let mut statement = transaction.prepare("SELECT * FROM datanode").map_err(&failed)?;
        let mut found = statement.query([]).map_err(&failed)?;
        while let Some(row) = found.next().map_err(&failed)? {
            let mut values: Vec<rusqlite::types::Value> =
                (0..COLUMNS).map(|index| row.get(index)).collect::<Result<_, _>>().map_err(&failed)?;
            let columns = RowColumns { row, first: 0 };
            let stored = super::Columns::column(&columns, COLUMNS);
            let mut checksum = RowChecksum::default();
            checksum.begin(Table::Datanode.name());
            (0..COLUMNS)
                .filter_map(|index| super::Columns::column(&columns, index))
                .for_each(|v| checksum.add(v));
            if stored != Some(ValueRef::Int(checksum.finish())) {
                let message = "a row of the table datanode is damaged; restore the store from a backup";
                return Err(StoreError::Unusable(message.into()));
            }
            values.push(rusqlite::types::Value::Text("in".into()));
            rows.push(values);
        }
    }
    transaction.execute_batch("DROP TABLE datanode").map_err(&failed)?;
    let sql = TableSql::new(Table::Datanode);
    transaction.execute_batch(&sql.create).map_err(&failed)?;
    for mut values in rows {
        let mut checksum = RowChecksum::default();
        checksum.begin(Table::Datanode.name());
        for value in &values {
            match value {
                rusqlite::types::Value::Integer(value) => checksum.add(ValueRef::Int(*value)),
                rusqlite::types::Value::Text(text) => checksum.add(ValueRef::Text(text)),
                rusqlite::types::Value::Blob(blob) => checksum.add(ValueRef::Blob(blob)),
                rusqlite::types::Value::Null | rusqlite::types::Value::Real(_) => {}
            }
        }
        values.push(rusqlite::types::Value::Integer(checksum.finish()));
        transaction.execute(&sql.put, rusqlite::params_from_iter(values)).map_err(&failed)?;
    }
    Ok(())
}

/// Schema 3: a table of dead ranges.
fn add_dead_ranges(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    add_table(transaction, Table::DeadRange, "bring it to schema 3")
}

/// Schema 4: chunks that were committed without sync have rows.
fn add_unsynced(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    add_table(transaction, Table::Unsynced, "bring it to schema 4")
}

/// A store that was restored from an older backup has it already.
fn add_table(transaction: &Transaction<'_>, table: Table, doing: &'static str) -> Result<(), StoreError> {
    let failed = engine(doing);
    let is_there = transaction
        .query_row("SELECT 1 FROM sqlite_schema WHERE name = ?", [table.name()], |_| Ok(()))
        .optional()
        .map_err(&failed)?
        .is_some();
    match is_there {
        true => Ok(()),
        false => transaction.execute_batch(&TableSql::new(table).create).map_err(&failed),
    }
}

fn raise_term(transaction: &Transaction<'_>) -> Result<u64, StoreError> {
    let old: Option<Counter> =
        read(transaction, Table::Counter, "name = 'term'", &Key::Counter(Count::Term))?;
    let term = old.map_or(0, |row| row.value) + 1;
    put(transaction, &Counter { name: Count::Term, value: term }.into()).map_err(engine("begin a term"))?;
    Ok(term)
}

/// Reads and verifies one row before the engine as a whole is there.
fn read<R: super::Record>(
    transaction: &Transaction<'_>,
    table: Table,
    condition: &str,
    key: &Key,
) -> Result<Option<R>, StoreError> {
    let text = format!("SELECT * FROM {} WHERE {condition}", table.name());
    let columns = table.key_columns().len() + table.value_columns().len();
    let decoded = transaction.query_row(&text, [], |row| {
        let row = RowColumns { row, first: 0 };
        let mut checksum = RowChecksum::default();
        checksum.begin(table.name());
        let mut whole = true;
        for index in 0..columns {
            match super::Columns::column(&row, index) {
                Some(value) => checksum.add(value),
                None => whole = false,
            }
        }
        let stored = super::Columns::column(&row, columns);
        let fits = whole && stored == Some(ValueRef::Int(checksum.finish()));
        Ok(fits.then(|| Row::decode(table, &row)).flatten())
    });
    match decoded.optional().map_err(engine("read its identity"))? {
        None => Ok(None),
        Some(row) => row.and_then(R::from_row).map(Some).ok_or_else(|| StoreError::corrupt(key)),
    }
}
