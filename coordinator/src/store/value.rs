//! Column values, and how the types of the project become columns and come back.

use bytes::Bytes;
use cairn_proto::checksum::crc32c;
use cairn_proto::{ChunkId, ClusterId, InodeId, NodeId, ReplicaSetId, SessionId};
use uuid::Uuid;

/// One column of a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Value {
    Int(i64),
    Text(String),
    Blob(Bytes),
}

impl Value {
    pub(crate) fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Int(value) => ValueRef::Int(*value),
            Self::Text(value) => ValueRef::Text(value),
            Self::Blob(value) => ValueRef::Blob(value),
        }
    }
}

/// One column of a row, borrowed from the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueRef<'a> {
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

/// The columns of one row, keys first, in the order of its definition.
pub(crate) trait Columns {
    /// `None` when the engine holds something there that no column can be.
    fn column(&self, index: usize) -> Option<ValueRef<'_>>;
}

impl Columns for [ValueRef<'_>] {
    fn column(&self, index: usize) -> Option<ValueRef<'_>> {
        self.get(index).copied()
    }
}

/// What a buffer costs besides its bytes: its count of references, and what the allocator adds.
const BUFFER_OVERHEAD: usize = 48;

/// A type that is stored as one column.
pub(crate) trait Column: Sized {
    /// Its type in SQL.
    const SQL: &'static str;
    fn value(&self) -> Value;
    /// Bytes that it owns elsewhere.
    fn heap_bytes(&self) -> usize {
        0
    }
    /// Makes it keep no more alive than its own bytes: what came in a message is a part of that.
    fn detach(&mut self) {}
    /// `None` when the value can not have come from [`Self::value`].
    fn from_value(value: ValueRef<'_>) -> Option<Self>;
}

/// The checksum of a row: CRC-32C over its table and the tagged bytes of its columns, so that a
/// flipped bit, a swapped column and a row in the wrong table all show.
#[derive(Debug, Default)]
pub(crate) struct RowChecksum(Vec<u8>);

impl RowChecksum {
    /// Begins a row of a table.
    pub(crate) fn begin(&mut self, table: &str) {
        self.0.clear();
        self.0.extend_from_slice(table.as_bytes());
    }

    pub(crate) fn add(&mut self, value: ValueRef<'_>) {
        let (tag, length, bytes): (u8, u64, &[u8]) = match value {
            ValueRef::Int(value) => {
                self.0.push(1);
                self.0.extend_from_slice(&value.to_le_bytes());
                return;
            }
            ValueRef::Text(text) => (2, text.len() as u64, text.as_bytes()),
            ValueRef::Blob(blob) => (3, blob.len() as u64, blob),
        };
        self.0.push(tag);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn finish(&self) -> i64 {
        crc32c(&self.0).into()
    }
}

impl Column for u64 {
    const SQL: &'static str = "INTEGER";
    /// Ids, sizes and counts are kept below 2^63 where they arrive.
    fn value(&self) -> Value {
        Value::Int(i64::try_from(*self).unwrap_or(i64::MAX))
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        if let ValueRef::Int(value) = value { u64::try_from(value).ok() } else { None }
    }
}

impl Column for i64 {
    const SQL: &'static str = "INTEGER";
    fn value(&self) -> Value {
        Value::Int(*self)
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        if let ValueRef::Int(value) = value { Some(value) } else { None }
    }
}

impl Column for u32 {
    const SQL: &'static str = "INTEGER";
    fn value(&self) -> Value {
        Value::Int((*self).into())
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        if let ValueRef::Int(value) = value { u32::try_from(value).ok() } else { None }
    }
}

impl Column for Bytes {
    const SQL: &'static str = "BLOB";
    fn value(&self) -> Value {
        Value::Blob(self.clone())
    }
    fn heap_bytes(&self) -> usize {
        if self.is_empty() { 0 } else { self.len() + BUFFER_OVERHEAD }
    }
    fn detach(&mut self) {
        *self = Bytes::copy_from_slice(self);
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        if let ValueRef::Blob(value) = value { Some(Bytes::copy_from_slice(value)) } else { None }
    }
}

impl Column for String {
    const SQL: &'static str = "TEXT";
    fn value(&self) -> Value {
        Value::Text(self.clone())
    }
    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
    fn from_value(value: ValueRef<'_>) -> Option<Self> {
        if let ValueRef::Text(value) = value { Some(value.to_owned()) } else { None }
    }
}

macro_rules! integer_columns {
    ($($id:ty),*) => { $(
        impl Column for $id {
            const SQL: &'static str = "INTEGER";
            fn value(&self) -> Value {
                self.get().value()
            }
            fn from_value(value: ValueRef<'_>) -> Option<Self> {
                u64::from_value(value).and_then(|value| Self::new(value).ok())
            }
        }
    )* };
}
integer_columns!(InodeId, ChunkId, ReplicaSetId);

macro_rules! uuid_columns {
    ($($id:ty),*) => { $(
        impl Column for $id {
            const SQL: &'static str = "BLOB";
            fn value(&self) -> Value {
                Value::Blob(self.to_wire())
            }
            fn from_value(value: ValueRef<'_>) -> Option<Self> {
                let ValueRef::Blob(value) = value else { return None };
                Uuid::from_slice(value).ok().map(Self::from_uuid)
            }
        }
    )* };
}
uuid_columns!(NodeId, SessionId, ClusterId);
