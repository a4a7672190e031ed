//! The content of one file: buffered writes over committed extents.

use bytes::Bytes;
use cairn_proto::{InodeId, v1};

use crate::attr::{Attr, Caller};
use crate::error::{ClientError, Result};
use crate::layout::Layout;

/// The content of one inode as this client sees it; all its handles share it.
///
/// Every `async` method can be dropped at any time: work that was begun goes on in the background.
pub struct FileContent {
    inode: InodeId,
}

impl FileContent {
    /// Which inode.
    pub fn inode(&self) -> InodeId {
        self.inode
    }

    /// Bytes in the file, buffered writes included.
    pub fn size(&self) -> u64 {
        0
    }

    /// Adopts newer attributes (and a layout) from an open, lookup or getattr. Buffered writes stay.
    pub fn refresh(&self, attr: &Attr, layout: Option<Layout>) {
        let _ = (attr, layout);
    }

    /// Attributes as seen through the buffered writes.
    pub fn attr_overlay(&self, attr: Attr) -> Attr {
        attr
    }

    /// The newest attributes known, buffered writes included.
    pub fn attr(&self) -> Attr {
        unreachable!()
    }

    /// Counts the changes of the content by others that were noticed: while it stays the same, what
    /// was read before is still good.
    pub fn foreign_changes(&self) -> u64 {
        0
    }

    /// Whether writes are buffered or under way.
    pub fn is_dirty(&self) -> bool {
        false
    }

    /// Buffers a write when that needs no waiting. `Ok(false)`: nothing was taken, use [`Self::write`].
    ///
    /// An error that an earlier write of this file met in the background is reported here, once.
    pub fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let _ = (offset, data);
        Ok(false)
    }

    /// Buffers a write, waiting for memory.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        let _ = (offset, data);
        Err(ClientError::Closed)
    }

    /// Reads when everything that is asked for is in memory.
    pub fn try_read(&self, offset: u64, len: usize) -> Option<Result<Bytes>> {
        let _ = (offset, len);
        None
    }

    /// Reads `len` bytes; fewer only at the end of the file.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let _ = (offset, len);
        Err(ClientError::Closed)
    }

    /// What close(2) promises: everything is stored and committed. Reports background errors once.
    pub async fn flush(&self) -> Result<()> {
        Err(ClientError::Closed)
    }

    /// What fsync(2) promises: everything survives the power loss of all machines.
    pub async fn fsync(&self) -> Result<()> {
        Err(ClientError::Closed)
    }

    /// Sets the size (and what else `extra` says; its `inode` and `size` are filled in).
    pub async fn truncate(&self, size: u64, caller: &Caller, extra: v1::SetAttr) -> Result<Attr> {
        let _ = (size, caller, extra);
        Err(ClientError::Closed)
    }

    /// Changes attributes other than the size, after all buffered writes (whose commit would
    /// otherwise undo an explicit mtime or a set-user-ID bit). `change.inode` is filled in.
    pub async fn set_attr(&self, caller: &Caller, change: v1::SetAttr) -> Result<Attr> {
        let _ = (caller, change);
        Err(ClientError::Closed)
    }

    /// fallocate(2), after all buffered writes. `op.inode` is filled in.
    pub async fn allocate(&self, op: v1::Allocate, caller: &Caller) -> Result<Attr> {
        let _ = (op, caller);
        Err(ClientError::Closed)
    }

    /// copy_file_range(2) as a copy of extents; how many bytes were copied (cut at the source's end).
    pub async fn clone_from(
        &self,
        source: &FileContent,
        source_offset: u64,
        offset: u64,
        length: u64,
        caller: &Caller,
    ) -> Result<u64> {
        let _ = (source, source_offset, offset, length, caller);
        Err(ClientError::Closed)
    }

    /// SEEK_DATA (`data`) or SEEK_HOLE from `offset`; `NoSuchOffset` past the end.
    pub async fn seek(&self, offset: u64, data: bool) -> Result<u64> {
        let _ = (offset, data);
        Err(ClientError::Closed)
    }
}
