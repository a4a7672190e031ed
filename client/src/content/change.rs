//! Changes of the whole file: they come after all buffered writes, and no write comes between.

use std::sync::Arc;

use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::v1::mutation::Op;
use cairn_proto::{ByteRange, ErrorKind, v1};

use super::FileContent;
use super::extents::Part;
use crate::attr::{Attr, Caller};
use crate::error::{ClientError, Result};

/// The buffer takes no writes while this lives; who writes waits.
struct Hold(Arc<FileContent>);

impl Hold {
    fn begin(content: &Arc<FileContent>) -> Self {
        content.lock().held = true;
        Self(Arc::clone(content))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.lock().held = false;
        self.0.released.notify_waiters();
    }
}

impl FileContent {
    /// Sets the size (and what else `extra` says; its `inode` and `size` are filled in), after all
    /// buffered writes.
    pub async fn truncate(&self, size: u64, caller: &Caller, extra: v1::SetAttr) -> Result<Attr> {
        if size > FILE_SIZE_MAX {
            return Err(ClientError::new(ErrorKind::FileTooLarge, "a size past 2^63 - 1"));
        }
        let change = v1::SetAttr { inode: self.inode.get(), size: Some(size), ..extra };
        let caller = caller.clone();
        self.exclusively(async move |this| {
            let attr = this.apply(Op::SetAttr(change), &caller).await?;
            let mut state = this.lock();
            let follows = attr.version == state.attr.version + 1;
            let old = state.attr.size;
            state.adopt(&attr, true);
            if follows {
                state.extents.resize(old, size);
            }
            Ok(attr)
        })
        .await
    }

    /// Changes attributes other than the size, after all buffered writes (whose commit would
    /// otherwise undo an explicit mtime or a set-user-ID bit). `change.inode` is filled in.
    pub async fn set_attr(&self, caller: &Caller, change: v1::SetAttr) -> Result<Attr> {
        let change = v1::SetAttr { inode: self.inode.get(), ..change };
        let caller = caller.clone();
        self.exclusively(async move |this| {
            let attr = this.apply(Op::SetAttr(change), &caller).await?;
            this.lock().adopt(&attr, true);
            Ok(attr)
        })
        .await
    }

    /// Runs `change` with all buffered writes committed, and none coming between.
    pub(crate) async fn change_locally<T: Send + 'static>(
        &self,
        change: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.exclusively(async move |_| Ok(change())).await
    }

    /// fallocate(2), after all buffered writes. `op.inode` is filled in.
    pub async fn allocate(&self, op: v1::Allocate, caller: &Caller) -> Result<Attr> {
        let op = v1::Allocate { inode: self.inode.get(), ..op };
        let caller = caller.clone();
        self.exclusively(async move |this| {
            let attr = this.apply(Op::Allocate(op), &caller).await?;
            let mut state = this.lock();
            state.adopt(&attr, true);
            state.extents.clear();
            Ok(attr)
        })
        .await
    }

    /// copy_file_range(2) as a copy of extents, after all buffered writes of both files; how many bytes were
    /// copied. Fewer than `length`: to the source's end, or to where a later part failed.
    ///
    /// The coordinator copies a bounded number of extents at a time; each part is atomic, all of them are not.
    pub async fn clone_from(
        &self,
        source: &FileContent,
        source_offset: u64,
        offset: u64,
        length: u64,
        caller: &Caller,
    ) -> Result<u64> {
        if source.inode != self.inode {
            source.settle(false).await;
            source.check_failures()?;
        }
        let (source, caller) = (source.shared()?, caller.clone());
        self.exclusively(async move |this| {
            let length = length.min(source.lock().attr.size.saturating_sub(source_offset));
            if length == 0 {
                return Ok(0);
            }
            this.engine.behind.applied(source.inode).await?;
            let mut copied = 0;
            while copied < length {
                let op = v1::CloneRange {
                    source: source.inode.get(),
                    source_offset: source_offset + copied,
                    destination: this.inode.get(),
                    destination_offset: offset + copied,
                    length: length - copied,
                };
                match this.clone_part(op, &caller).await {
                    // The source has become shorter.
                    Ok(0) => break,
                    Ok(more) => copied += more.min(length - copied),
                    Err(error) if copied == 0 => return Err(error),
                    // Whoever goes on from there meets the error, if it is still one.
                    Err(_) => break,
                }
            }
            Ok(copied)
        })
        .await
    }

    /// SEEK_DATA (`data`) or SEEK_HOLE from `offset`; `NoSuchOffset` past the end. Holes are runs
    /// without extents; buffered writes are committed first.
    pub async fn seek(&self, offset: u64, data: bool) -> Result<u64> {
        self.settle(false).await;
        self.check_failures()?;
        let nothing =
            || ClientError::new(ErrorKind::NoSuchOffset, "nothing from there to the end of the file");
        let mut at = offset;
        loop {
            let size = self.size();
            if at >= size {
                // A file ends with a hole.
                return if !data && offset < size { Ok(size) } else { Err(nothing()) };
            }
            let part = ByteRange::between(at, size).map(|rest| self.lock().extents.parts(rest));
            let found = part.and_then(|parts| first_match(&parts, data));
            match found {
                Some(Ok(found)) => return Ok(found.min(size)),
                Some(Err(unknown)) => self.fetch_layout(unknown).await?,
                None => at = size,
            }
        }
    }

    async fn clone_part(&self, op: v1::CloneRange, caller: &Caller) -> Result<u64> {
        self.engine.behind.applied(self.inode).await?;
        let applied = self.engine.coordinator.apply(Op::CloneRange(op), caller).await?;
        let copied = applied.copied;
        let attr = applied.into_attr()?;
        let mut state = self.lock();
        state.adopt(&attr, true);
        // What it has now may be unsynced.
        state.synced = None;
        state.unsynced = true;
        state.extents.clear();
        Ok(copied)
    }

    async fn apply(&self, op: Op, caller: &Caller) -> Result<Attr> {
        self.engine.behind.applied(self.inode).await?;
        self.engine.coordinator.apply(op, caller).await?.into_attr()
    }

    /// Runs a change with everything committed and the buffer held. Goes on in the background when
    /// the caller goes away.
    async fn exclusively<T: Send + 'static, F: Future<Output = Result<T>> + Send>(
        &self,
        change: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T> {
        let this = self.shared()?;
        let work = async move {
            let _alone = this.changes.lock().await;
            let hold = this.hold().await;
            let result = change(Arc::clone(&this)).await;
            drop(hold);
            result
        };
        self.engine.complete(work).await
    }

    /// Has everything committed, and lets no write come until the guard is dropped.
    ///
    /// Most of the buffer leaves while writers go on, so that they wait for the rest alone. They do have to wait for
    /// that: a file that is written without a pause is never found clean.
    async fn hold(self: &Arc<Self>) -> Hold {
        self.settle(false).await;
        let hold = Hold::begin(self);
        self.drain().await;
        hold
    }
}

/// The first data or hole among consecutive parts; or the unknown part that has to be known first.
fn first_match(parts: &[Part], data: bool) -> Option<std::result::Result<u64, ByteRange>> {
    parts.iter().find_map(|part| match part {
        Part::Unknown(range) => Some(Err(*range)),
        Part::Data(extent) => data.then(|| Ok(extent.range.start())),
        Part::Hole(range) => (!data).then(|| Ok(range.start())),
    })
}
