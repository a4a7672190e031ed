//! The SQL text of each table, made once from its definition.

use std::sync::OnceLock;

use super::super::Table;

/// Statements of one table. Each row has one column more than its definition: `crc`, the last.
#[derive(Debug)]
pub(super) struct TableSql {
    /// Columns without `crc`.
    pub(super) columns: usize,
    pub(super) create: String,
    pub(super) get: String,
    pub(super) put: String,
    pub(super) delete: String,
    pub(super) all_up: String,
    pub(super) all_down: String,
    /// Parameters: the first key, the last column of the last key, the limit.
    pub(super) range_up: String,
    pub(super) range_down: String,
    /// Parameters: the key, the limit.
    pub(super) behind_up: String,
    pub(super) behind_down: String,
}

impl TableSql {
    pub(super) fn new(table: Table) -> Self {
        let name = table.name();
        let keys: Vec<&str> = table.key_columns().iter().map(|(name, _)| *name).collect();
        let columns = keys.len() + table.value_columns().len();
        let list = column_list(table, "");
        let holes = vec!["?"; columns + 1].join(", ");
        let whole_key = keys.iter().map(|key| format!("\"{key}\" = ?")).collect::<Vec<_>>().join(" AND ");
        let (fixed, last) = keys.split_at(keys.len() - 1);
        let last = last.first().copied().unwrap_or_default();
        let prefix: String = fixed.iter().map(|key| format!("\"{key}\" = ? AND ")).collect();
        let order = |direction: &str| {
            let columns: Vec<_> = keys.iter().map(|key| format!("\"{key}\" {direction}")).collect();
            format!("ORDER BY {} LIMIT ?", columns.join(", "))
        };
        let range = format!("SELECT {list} FROM {name} WHERE {prefix}\"{last}\" BETWEEN ? AND ?");
        let quoted: Vec<_> = keys.iter().map(|key| format!("\"{key}\"")).collect();
        let holes_of_key = vec!["?"; keys.len()].join(", ");
        let behind = format!("SELECT {list} FROM {name} WHERE ({}) > ({holes_of_key})", quoted.join(", "));
        let all = format!("SELECT {list} FROM {name}");
        Self {
            columns,
            create: create(table),
            get: format!("SELECT {list} FROM {name} WHERE {whole_key}"),
            put: format!("INSERT OR REPLACE INTO {name} ({list}) VALUES ({holes})"),
            delete: format!("DELETE FROM {name} WHERE {whole_key}"),
            all_up: format!("{all} {}", order("ASC")),
            all_down: format!("{all} {}", order("DESC")),
            range_up: format!("{range} {}", order("ASC")),
            range_down: format!("{range} {}", order("DESC")),
            behind_up: format!("{behind} {}", order("ASC")),
            behind_down: format!("{behind} {}", order("DESC")),
        }
    }
}

/// All columns and `crc`, each with `prefix` before it.
fn column_list(table: Table, prefix: &str) -> String {
    let columns = table.key_columns().iter().chain(table.value_columns()).map(|(name, _)| *name);
    columns.chain(["crc"]).map(|name| format!("{prefix}\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn create(table: Table) -> String {
    let columns = table.key_columns().iter().chain(table.value_columns());
    let columns: Vec<_> = columns.map(|(name, sql)| format!("\"{name}\" {sql} NOT NULL")).collect();
    let keys: Vec<_> = table.key_columns().iter().map(|(name, _)| format!("\"{name}\"")).collect();
    // A single integer key is the row id itself; other tables are stored in the order of their key.
    let tail = match table.key_columns() {
        [(_, "INTEGER")] => "STRICT",
        _ => "STRICT, WITHOUT ROWID",
    };
    format!(
        "CREATE TABLE {} ({}, \"crc\" INTEGER NOT NULL, PRIMARY KEY ({})) {tail};",
        table.name(),
        columns.join(", "),
        keys.join(", ")
    )
}

/// Indexes besides the primary keys. This one holds all columns of a dentry, so that a listing is
/// one run over it.
pub(super) const INDEXES: &str =
    "CREATE INDEX dentry_cookie ON dentry (parent, cookie, name, child, kind, crc);";

/// Parameters: directory, cookie, limit.
pub(super) fn read_dir() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        format!(
            "SELECT {} FROM dentry INDEXED BY dentry_cookie WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?",
            column_list(Table::Dentry, "")
        )
    })
}

/// The same with the columns of the inode behind those of the dentry; an entry without an inode
/// gives NULLs, which fail the check of that row.
pub(super) fn read_dir_with_inodes() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        format!(
            "SELECT {}, {} FROM dentry d INDEXED BY dentry_cookie LEFT JOIN inode i ON i.id = d.child
             WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?",
            column_list(Table::Dentry, "d."),
            column_list(Table::Inode, "i.")
        )
    })
}
