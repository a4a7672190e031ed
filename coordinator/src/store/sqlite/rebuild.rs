//! Makes a store of rows that come from elsewhere: a backup.
//!
//! The database is written under another name, without a journal, and gets its own name once it is
//! complete and durable: what was left half-way is never taken for a store.

use std::path::{Path, PathBuf};

use cairn_runtime::disk::{Disk, RealDisk};
use rusqlite::Connection;

use super::super::{Batch, Reader, StoreError, Table};
use super::sql::{INDEXES, TableSql};
use super::{Connected, WRITER_CACHE_KIB, checked_values, engine, schema};

/// The name until the end.
const UNFINISHED: &str = "meta.db.restoring";
/// Rows in one transaction, so that SQLite's list of changed pages stays short.
const ROWS_MAX: usize = 100_000;

/// A store in the making.
pub(crate) struct Rebuild {
    reading: Connected,
    disk: RealDisk,
    directory: PathBuf,
    rows: usize,
}

impl Rebuild {
    /// `Unusable`: the directory holds something.
    pub(crate) fn create(directory: &Path) -> Result<Self, StoreError> {
        let disk = RealDisk::open(directory).map_err(|error| StoreError::Unusable(error.to_string()))?;
        if !schema::check_directory(&disk, directory)? {
            return Err(StoreError::Unusable(format!(
                "{} holds a metadata store already; name an empty directory",
                directory.display()
            )));
        }
        let connection = Connection::open(directory.join(UNFINISHED)).map_err(engine("make its file"))?;
        let failed = engine("make its tables");
        let pragmas = format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{WRITER_CACHE_KIB};
             PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;"
        );
        connection.execute_batch(&pragmas).map_err(&failed)?;
        for &table in Table::ALL {
            connection.execute_batch(&TableSql::new(table).create).map_err(&failed)?;
        }
        connection.execute_batch("BEGIN").map_err(&failed)?;
        let tables = Table::ALL.iter().map(|&table| TableSql::new(table)).collect();
        Ok(Self {
            reading: Connected::new(connection, tables),
            disk,
            directory: directory.to_owned(),
            rows: 0,
        })
    }

    /// What was written so far.
    pub(crate) fn reader(&self) -> &dyn Reader {
        &self.reading
    }

    pub(crate) fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let failed = engine("write rows");
        let connection = &self.reading.connection;
        for key in &batch.deletes {
            let mut statement =
                connection.prepare_cached(&self.reading.sql(key.table()).delete).map_err(&failed)?;
            statement.execute(rusqlite::params_from_iter(key.values())).map_err(&failed)?;
        }
        for row in &batch.puts {
            let table = row.key().table();
            let mut statement = connection.prepare_cached(&self.reading.sql(table).put).map_err(&failed)?;
            statement.execute(rusqlite::params_from_iter(checked_values(table, row))).map_err(&failed)?;
        }
        self.rows += batch.deletes.len() + batch.puts.len();
        if self.rows >= ROWS_MAX {
            self.rows = 0;
            connection.execute_batch("COMMIT; BEGIN").map_err(&failed)?;
        }
        Ok(())
    }

    /// Gives the store its name. Durable on return.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        let failed = engine("complete the store");
        let Self { reading, disk, directory, .. } = self;
        reading.connection.execute_batch(&format!("{INDEXES} COMMIT;")).map_err(&failed)?;
        reading.connection.flush_prepared_statement_cache();
        reading.connection.close().map_err(|(_, error)| failed(error))?;
        let make_durable = || {
            disk.open(Path::new(UNFINISHED))?.sync()?;
            disk.rename(Path::new(UNFINISHED), Path::new(schema::FILE))?;
            disk.sync_dir(Path::new(""))
        };
        make_durable()
            .map_err(|error: std::io::Error| StoreError::Failed(format!("{}: {error}", directory.display())))
    }
}
