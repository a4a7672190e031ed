//! Columns as a damaged database may hold them: a row decodes to itself, or not at all.

use super::Input;
use crate::store::fuzzing::{Row, Table, Value, ValueRef};

/// Columns in an input at most; more than the widest table has.
const COLUMNS_MAX: usize = 32;

/// Decodes columns of arbitrary types as a row of some table.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let table = Table::ALL[usize::from(input.byte()) % Table::ALL.len()];
    let mut columns: Vec<Value> = Vec::new();
    while !input.is_empty() && columns.len() < COLUMNS_MAX {
        columns.push(match input.byte() % 4 {
            0 => Value::Int(input.byte().into()),
            1 => Value::Int(input.number().cast_signed()),
            2 => {
                let len = usize::from(input.byte());
                Value::Text(String::from_utf8_lossy(input.take(len)).into_owned())
            }
            _ => {
                let len = usize::from(input.byte());
                Value::Blob(bytes::Bytes::copy_from_slice(input.take(len)))
            }
        });
    }
    let borrowed: Vec<ValueRef<'_>> = columns.iter().map(Value::as_ref).collect();
    let Some(row) = Row::decode(table, borrowed.as_slice()) else { return };
    assert_eq!(row.key().table(), table, "a row of another table");
    let written = row.values();
    assert!(written.len() <= columns.len(), "{row:?} has more columns than it was read from");
    let borrowed: Vec<ValueRef<'_>> = written.iter().map(Value::as_ref).collect();
    assert_eq!(Row::decode(table, borrowed.as_slice()).as_ref(), Some(&row), "a row that does not come back");
}
