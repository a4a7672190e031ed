//! A writer whose commits also go to a second place.

use std::ops::Deref;
use std::sync::Arc;

use super::{Batch, Count, ReadThrough, Reader, Row, StoreError, Writer};
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

impl ReadThrough for ShippedWriter {
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError> {
        Ok(&*self.inner)
    }
}
