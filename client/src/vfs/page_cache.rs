//! The page cache above: what a kernel keeps of the content of files, and what is asked of it.
//!
//! A kernel writes back the pages that a mapping has made dirty when it likes, and does not tell that a file is mapped.
//! Where that would show, the vfs asks for the pages first:
//! * before times are set, which a later write-back would move again;
//! * before a hole is reported, which may be full of dirty pages;
//! * before a file grows from a size within a page: a mapping may have written behind the end of the file, and these
//!   bytes must not become part of it (mmap(2));
//! * after a direct write, which goes past pages that buffered readers have filled.
//!
//! Only a file that is open for reading and writing can be mapped for writing, and it stays open for as long as it is
//! mapped. Others are never asked for.
//!
//! While a kernel waits for the answer to a truncation it writes nothing back; asking for pages then would never end.
//! It drops all pages of the file afterwards, so that zeros in the last one are enough.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::{ByteRange, ErrorKind, InodeId};
use cairn_runtime::clock;

use super::handles::FileHandle;
use super::{AttrChange, OpenFlags, Result, SeekFrom, Vfs, WriteOrigin};
use crate::{FileContent, Place};

/// A write that leaves a gap behind the end waits this long for the last page. The kernel may hold that page for the
/// write itself; then it had not read it, so that it was not mapped and has no bytes behind the end.
const LAST_PAGE_WAIT: Duration = Duration::from_secs(1);

/// What is asked of a page cache resolves to this.
pub type Done = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Pages of files that somebody above the vfs keeps.
pub trait PageCache: Send + Sync {
    /// Writes back the dirty pages of a range and drops all of its pages. What was dirty has come as writes when the
    /// future resolves.
    fn give_up(&self, inode: InodeId, range: ByteRange) -> Done;

    /// Puts zeros into the pages of a range.
    fn zero(&self, inode: InodeId, range: ByteRange) -> Done;

    /// Bytes in a page; a power of two.
    fn page_size(&self) -> u64;

    /// Has the attributes of an inode asked for before they are used again.
    fn forget_attributes(&self, inode: InodeId);
}

/// What an open makes possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paging {
    /// A mapping through which the file is written.
    pub(super) maps: bool,
    /// Reads that fill the page cache.
    pub(super) fills: bool,
}

impl Paging {
    pub(super) fn of(flags: OpenFlags) -> Self {
        Self { maps: flags.read && flags.write, fills: flags.read && !flags.direct }
    }
}

impl Vfs {
    /// Says who keeps pages of the files; once.
    pub fn attach(&self, pages: Arc<dyn PageCache>) {
        assert!(self.pages.set(pages).is_ok(), "a page cache was attached before");
    }

    /// Whether pages that a mapping made dirty could move the times that `change` sets.
    pub(super) fn pages_move_times(&self, inode: InodeId, change: &AttrChange) -> bool {
        let sets_times = change.atime.is_some() || change.mtime.is_some();
        sets_times && change.size.is_none() && self.may_be_mapped(inode)
    }

    /// Has all pages of a file written back.
    pub(super) async fn give_up_all(&self, inode: InodeId) {
        self.give_up(inode, ByteRange::between(0, FILE_SIZE_MAX)).await;
    }

    /// What of the last page a file that grows to `size`, or is written from there on, would show of the bytes that a
    /// mapping wrote behind its end. A page that the kernel has not read is not mapped.
    pub(super) fn exposed(&self, content: &FileContent, size: u64) -> Option<ByteRange> {
        let end = content.size();
        let page = self.pages.get()?.page_size();
        let range = ByteRange::between(end, end.checked_next_multiple_of(page)?.min(size))?;
        (content.was_read(end) && self.may_be_mapped(content.inode())).then_some(range)
    }

    /// [`Self::exposed`] by a change that is no write: the last page goes.
    pub(super) async fn conceal(&self, content: &FileContent, size: u64) {
        self.give_up(content.inode(), self.exposed(content, size)).await;
    }

    /// Puts zeros where a truncation would expose something.
    pub(super) async fn zero(&self, inode: InodeId, exposed: Option<ByteRange>) {
        if let (Some(range), Some(pages)) = (exposed, self.pages.get()) {
            pages.zero(inode, range).await;
        }
    }

    /// Whether a write has to ask for pages, before or afterwards.
    pub(super) fn concerns_pages(&self, file: &FileHandle, offset: u64, origin: WriteOrigin) -> bool {
        match origin {
            WriteOrigin::PageCache => false,
            WriteOrigin::Call => self.exposed(&file.content, offset).is_some(),
            WriteOrigin::Direct => {
                self.fills_pages(file.inode) || self.exposed(&file.content, offset).is_some()
            }
        }
    }

    /// Before a write at `offset`.
    pub(super) async fn before_write(&self, file: &FileHandle, offset: u64, origin: WriteOrigin) {
        if origin != WriteOrigin::PageCache
            && let Some(range) = self.exposed(&file.content, offset)
        {
            file.content.forget_reads();
            let _ = clock::timeout(LAST_PAGE_WAIT, self.give_up(file.inode, Some(range))).await;
        }
    }

    /// After a write of `len` bytes was taken.
    pub(super) async fn after_write(&self, file: &FileHandle, place: Place, len: u64, origin: WriteOrigin) {
        if origin == WriteOrigin::Direct && self.fills_pages(file.inode) {
            let range = match place {
                Place::At(offset) => ByteRange::new(offset, len),
                // Before those that others have appended meanwhile, at least.
                Place::End => ByteRange::between(file.content.size().saturating_sub(len), FILE_SIZE_MAX),
            };
            self.give_up(file.inode, range).await;
        }
    }

    /// lseek(2) to data or a hole in a file that may have dirty pages: only holes are asked for, others count as data
    /// anyway.
    pub(super) async fn seek_in_pages(&self, file: &FileHandle, from: SeekFrom) -> Result<u64> {
        let content = &file.content;
        match from {
            SeekFrom::Data(offset) => {
                self.give_up(file.inode, ByteRange::between(offset, data_after(content, offset).await?))
                    .await;
                Ok(content.seek(offset, true).await?)
            }
            SeekFrom::Hole(offset) => {
                let mut at = content.seek(offset, false).await?;
                while at < content.size() {
                    let end = data_after(content, at).await?;
                    self.give_up(file.inode, ByteRange::between(at, end)).await;
                    at = content.seek(at, false).await?;
                    if at < end {
                        break;
                    }
                    // All of it was dirty; the next hole was not asked for yet.
                }
                Ok(at)
            }
        }
    }

    async fn give_up(&self, inode: InodeId, range: Option<ByteRange>) {
        if let (Some(range), Some(pages)) = (range, self.pages.get()) {
            pages.give_up(inode, range).await;
        }
    }

    pub(super) fn may_be_mapped(&self, inode: InodeId) -> bool {
        self.pages.get().is_some() && self.inodes.paging(inode).maps
    }

    fn fills_pages(&self, inode: InodeId) -> bool {
        self.pages.get().is_some() && self.inodes.paging(inode).fills
    }
}

/// Where the hole at `offset` ends; `offset` itself when there is data.
async fn data_after(content: &FileContent, offset: u64) -> Result<u64> {
    match content.seek(offset, true).await {
        Err(error) if error.kind() == ErrorKind::NoSuchOffset => Ok(content.size()),
        found => Ok(found?),
    }
}
