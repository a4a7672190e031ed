//! Rows as bytes, one way only for each row, so that equal contents have equal digests.
//!
//! ```text
//! batch   number of rows (4), rows, number of keys (4), keys
//! row     length of the table's name (1), name, number of columns (1), columns: those of the key first
//! key     the same with the columns of the key alone
//! column  1, integer (8) │ 2, length (4), text │ 3, length (4), bytes          all little endian
//! ```

use bytes::{BufMut, BytesMut};

use crate::store::value::{Value, ValueRef};
use crate::store::{Batch, Key, Row, Table};

/// Columns of the widest table, and some to spare.
const COLUMNS_MAX: usize = 32;

/// Writes what a commit changes.
pub(crate) fn encode_batch(batch: &Batch, out: &mut BytesMut) {
    out.put_u32_le(length(batch.puts.len()));
    batch.puts.iter().for_each(|row| encode(row.key().table(), &row.values(), out));
    out.put_u32_le(length(batch.deletes.len()));
    batch.deletes.iter().for_each(|key| encode(key.table(), &key.values(), out));
}

/// Writes one row as it stands in a batch.
pub(crate) fn encode_row(row: &Row, out: &mut BytesMut) {
    encode(row.key().table(), &row.values(), out);
}

/// A group of commits has at most some ten thousand rows, each below the size of a message.
fn length(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn encode(table: Table, values: &[Value], out: &mut BytesMut) {
    let name = table.name().as_bytes();
    out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.put_slice(name);
    out.put_u8(u8::try_from(values.len()).unwrap_or(u8::MAX));
    for value in values {
        match value {
            Value::Int(value) => {
                out.put_u8(1);
                out.put_i64_le(*value);
            }
            Value::Text(text) => put_bytes(2, text.as_bytes(), out),
            Value::Blob(blob) => put_bytes(3, blob, out),
        }
    }
}

fn put_bytes(tag: u8, bytes: &[u8], out: &mut BytesMut) {
    out.put_u8(tag);
    out.put_u32_le(length(bytes.len()));
    out.put_slice(bytes);
}

/// Reads what [`encode_batch`] wrote; `None` when it can not have written this.
pub(crate) fn decode_batch(bytes: &[u8]) -> Option<Batch> {
    let mut input = Input(bytes);
    let mut batch = Batch::default();
    for _ in 0..input.u32()? {
        batch.puts.push(input.row()?);
    }
    for _ in 0..input.u32()? {
        batch.deletes.push(input.key()?);
    }
    input.0.is_empty().then_some(batch)
}

/// Takes bytes from the front; `None` at the end, so a length that lies costs nothing.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take(8)?.try_into().ok().map(i64::from_le_bytes)
    }

    fn columns(&mut self) -> Option<(Table, Vec<ValueRef<'a>>)> {
        let length = self.u8()?;
        let name = self.take(length.into())?;
        let table = *Table::ALL.iter().find(|table| table.name().as_bytes() == name)?;
        let count = usize::from(self.u8()?);
        if count > COLUMNS_MAX {
            return None;
        }
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(match self.u8()? {
                1 => ValueRef::Int(self.i64()?),
                2 => ValueRef::Text(std::str::from_utf8(self.bytes()?).ok()?),
                3 => ValueRef::Blob(self.bytes()?),
                _ => return None,
            });
        }
        Some((table, values))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }

    fn row(&mut self) -> Option<Row> {
        let (table, values) = self.columns()?;
        let expected = table.key_columns().len() + table.value_columns().len();
        if values.len() != expected {
            return None;
        }
        Row::decode(table, values.as_slice())
    }

    fn key(&mut self) -> Option<Key> {
        let (table, values) = self.columns()?;
        if values.len() != table.key_columns().len() {
            return None;
        }
        Key::decode(table, values.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::{ClusterId, InodeId};
    use uuid::Uuid;

    use super::*;
    use crate::store::{Count, Counter, Extent, first_rows};

    fn batch() -> Batch {
        let mut puts = first_rows(ClusterId::from_uuid(Uuid::from_u128(7)), -5);
        puts.push(Counter { name: Count::Sequence, value: 9 }.into());
        puts.push(
            crate::store::Xattr {
                inode: InodeId::ROOT,
                name: bytes::Bytes::from_static(b"user.a"),
                value: bytes::Bytes::from_static(&[0, 255, 10]),
            }
            .into(),
        );
        let chunk = cairn_proto::ChunkId::new(3).unwrap();
        puts.push(Extent { inode: InodeId::ROOT, offset: 0, length: 1, chunk, chunk_offset: 5 }.into());
        Batch { deletes: vec![Key::Counter(Count::Bytes), Key::Extent(InodeId::ROOT, 77)], puts }
    }

    #[test]
    fn what_was_written_is_read() {
        let batch = batch();
        let mut bytes = BytesMut::new();
        encode_batch(&batch, &mut bytes);
        let read = decode_batch(&bytes).unwrap();
        assert_eq!((read.puts, read.deletes), (batch.puts, batch.deletes));
    }

    #[test]
    fn what_is_cut_or_too_long_is_refused() {
        let mut bytes = BytesMut::new();
        encode_batch(&batch(), &mut bytes);
        for end in 0..bytes.len() {
            assert!(decode_batch(&bytes[..end]).is_none(), "cut at {end}");
        }
        bytes.put_u8(0);
        assert!(decode_batch(&bytes).is_none());
    }

    #[test]
    fn a_length_that_lies_takes_no_memory() {
        let mut bytes = BytesMut::new();
        bytes.put_u32_le(u32::MAX);
        assert!(decode_batch(&bytes).is_none());
        let mut bytes = BytesMut::new();
        bytes.put_u32_le(1);
        bytes.put_slice(&[7]);
        bytes.put_slice(b"counter");
        bytes.put_slice(&[2, 2]);
        bytes.put_u32_le(u32::MAX);
        assert!(decode_batch(&bytes).is_none());
    }
}
