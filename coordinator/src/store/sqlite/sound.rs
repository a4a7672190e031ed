//! Rows of a store that may be damaged: those that fit their checksums.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::super::{Row, StoreError, Table};
use super::sql::TableSql;
use super::{Connected, engine};

/// A copy of a store that nobody else uses.
pub(crate) struct SoundRows(Connected);

impl SoundRows {
    pub(crate) fn open(file: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(file, flags).map_err(engine("open its file for reading"))?;
        connection.execute_batch("PRAGMA mmap_size = 0;").map_err(engine("set up a reader"))?;
        let tables = Table::ALL.iter().map(|&table| TableSql::new(table)).collect();
        Ok(Self(Connected::new(connection, tables)))
    }

    /// Shows the rows of a table; returns how many were damaged. Damage of the tree of a table ends it
    /// early, and counts as one.
    pub(crate) fn each(&self, table: Table, visit: &mut dyn FnMut(Row)) -> Result<u64, StoreError> {
        let failed = engine("read a table");
        let mut statement = self.0.connection.prepare_cached(&self.0.sql(table).all_up).map_err(&failed)?;
        let mut rows = statement.query([i64::MAX]).map_err(&failed)?;
        let mut damaged = 0;
        loop {
            match rows.next() {
                Ok(Some(row)) => match self.0.decode(table, row, 0) {
                    Some(row) => visit(row),
                    None => damaged += 1,
                },
                Ok(None) => return Ok(damaged),
                Err(error) => {
                    tracing::error!(table = table.name(), %error, "the rest of a table can not be read");
                    return Ok(damaged + 1);
                }
            }
        }
    }
}
