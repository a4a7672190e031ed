//! A writer whose commits also go to a second place.

use std::sync::Arc;

use cairn_proto::InodeId;

use super::{Batch, Count, Dentry, Inode, Key, Reader, Row, Scan, StoreError, Table, Writer};
use crate::archive::queue::Shipping;

/// Hands each commit on, once the store has made it durable.
pub(crate) struct ShippedWriter {
    inner: Box<dyn Writer>,
    shipping: Arc<Shipping>,
}

impl ShippedWriter {
    pub(crate) fn new(inner: Box<dyn Writer>, shipping: Arc<Shipping>) -> Self {
        Self { inner, shipping }
    }
}

impl Drop for ShippedWriter {
    fn drop(&mut self) {
        self.shipping.close();
    }
}

impl Writer for ShippedWriter {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.inner.commit(batch)?;
        let sequence = batch.puts.iter().find_map(|row| match row {
            Row::Counter(counter) if counter.name == Count::Sequence => Some(counter.value),
            _ => None,
        });
        // The executor numbers every commit; nobody else commits.
        match sequence {
            Some(sequence) => self.shipping.add(sequence, batch),
            None => Ok(()),
        }
    }
}

impl Reader for ShippedWriter {
    fn get(&self, key: &Key) -> Result<Option<Row>, StoreError> {
        self.inner.get(key)
    }
    fn scan(&self, scan: &Scan) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(scan)
    }
    fn each(
        &self,
        table: Table,
        visit: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.inner.each(table, visit)
    }
    fn read_dir(
        &self,
        parent: InodeId,
        after: u64,
        limit: usize,
        inodes: bool,
        visit: &mut dyn FnMut(Dentry, Option<Inode>) -> bool,
    ) -> Result<(), StoreError> {
        self.inner.read_dir(parent, after, limit, inodes, visit)
    }
}
