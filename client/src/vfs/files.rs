//! Open files: create, open, read, write, truncate, and what else needs the content.

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::limits::FILE_SIZE_MAX;
use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{ErrorKind, FileName, InodeId};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock::{self, Instant};

use super::handles::{FileHandle, FileRef, Handle, Mode};
use super::local::Made;
use super::names::create_of;
use super::page_cache::Paging;
use super::{Entry, HandleId, MAY_READ, MAY_WRITE, Result, Vfs, VfsError, Writer, access};
use crate::{Applied, Attr, Caller, ClientError, FileContent, Kind, OpenGuard, Place};

/// How open(2) was called, as far as a file system minds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// Reading is wanted.
    pub read: bool,
    /// Writing is wanted.
    pub write: bool,
    /// O_APPEND.
    pub append: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_EXCL; counts for a create.
    pub exclusive: bool,
    /// O_SYNC or O_DSYNC.
    pub sync: bool,
    /// O_DIRECT.
    pub direct: bool,
}

impl OpenFlags {
    fn mode(self) -> Mode {
        match (self.write, self.append) {
            (false, _) => Mode::Read,
            (true, true) => Mode::Append,
            (true, false) => Mode::Write,
        }
    }

    fn mask(self) -> u32 {
        (if self.read { MAY_READ } else { 0 }) | (if self.write { MAY_WRITE } else { 0 })
    }
}

/// An open file.
#[derive(Debug)]
pub struct Opened {
    /// Names it from here on; end with [`Vfs::release`].
    pub handle: HandleId,
    /// The file as it is now.
    pub entry: Entry,
    /// Nobody but this mount changed the content since this mount last had it open: pages that a
    /// kernel has cached are still good.
    pub pages_good: bool,
    /// Attributes that were handed out before, and may still be valid, are no longer right.
    pub attributes_changed: bool,
}

/// Why a write comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOrigin {
    /// write(2): goes to the end of a file that is open for appending.
    Call,
    /// write(2) past the page cache (O_DIRECT).
    Direct,
    /// A dirty page of a mapping: goes where it belongs, whatever handle it comes with.
    PageCache,
}

/// A time that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// The cluster's clock.
    Now,
    /// Nanoseconds since the Unix epoch.
    At(i64),
}

/// Changes of attributes; what is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// truncate(2).
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of the content.
    pub mtime: Option<Time>,
}

/// fallocate(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocateMode {
    /// Reads of the range give what is there; the file grows to its end unless `keep_size`.
    Reserve {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
    /// Reads of the range give zeros; the file grows to its end unless `keep_size`
    /// (FALLOC_FL_ZERO_RANGE, and FALLOC_FL_PUNCH_HOLE with `keep_size`).
    Zero {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
}

/// lseek(2) to data or holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekFrom {
    /// SEEK_DATA.
    Data(u64),
    /// SEEK_HOLE.
    Hole(u64),
}

impl Vfs {
    /// [`Self::create_open`], when that needs nobody: the name is free, and the directory leased.
    pub fn try_create_open(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        mode: u32,
        flags: OpenFlags,
        caller: &Caller,
    ) -> Option<Result<Opened>> {
        let create = file_to_create(parent, name, mode, flags);
        let made = self.create_locally(&create, Kind::File, true, caller).now()?;
        Some(made.and_then(|made| self.open_made(made, flags)))
    }

    /// Creates a file (or opens the one that is there, unless `flags.exclusive`) and opens it.
    pub async fn create_open(
        self: &Arc<Self>,
        parent: InodeId,
        name: &FileName,
        mode: u32,
        flags: OpenFlags,
        caller: &Caller,
    ) -> Result<Opened> {
        let create = file_to_create(parent, name, mode, flags);
        let local = self.locally(|| self.create_locally(&create, Kind::File, true, caller)).await;
        if let Some(made) = local {
            return made.and_then(|made| self.open_made(made, flags));
        }
        let asked = clock::now();
        let (guard, applied) = self.send_create_open(create, caller).await?;
        let attr = applied.into_attr()?;
        // Without O_EXCL this may be a file that somebody else made a moment ago.
        if attr.uid != caller.uid {
            access::check(&attr, flags.mask(), caller)?;
        }
        let truncate = flags.truncate && attr.size > 0;
        let content = self.client.content(attr.inode, &attr);
        let entry = self.inodes.adopt(attr, asked);
        self.finish_open(guard, content, entry, flags, truncate, caller).await
    }

    async fn send_create_open(
        self: &Arc<Self>,
        create: v1::Create,
        caller: &Caller,
    ) -> Result<(OpenGuard, Applied)> {
        let (vfs, caller) = (Arc::clone(self), caller.clone());
        self.client
            .engine()
            .complete(async move {
                let parent = InodeId::new(create.parent).map_err(ClientError::from)?;
                let under_way = vfs.prepare(&[parent]).await?;
                let (asked, wanted) = (clock::now(), vfs.wants_lease(parent));
                let op = Op::Create(create.clone());
                match vfs.coordinator().create_open_for_leases(create, &caller, wanted).await {
                    Ok((guard, granted)) => Ok((guard, vfs.sent(&op, Ok(granted), under_way, asked)?)),
                    Err(error) => {
                        Err(vfs.sent(&op, Err(error), under_way, asked).err().unwrap_or_else(closed))
                    }
                }
            })
            .await
    }

    /// A file that was made here a moment ago.
    fn open_made(&self, made: Made, flags: OpenFlags) -> Result<Opened> {
        let guard = made.guard.ok_or_else(closed)?;
        let content = self.client.content(made.entry.attr.inode, &made.entry.attr);
        Ok(self.insert_open(guard, content, made.entry, flags))
    }

    /// Opens a file: asks for its attributes and layout as they are now, and truncates it when
    /// `flags` say so. Permission is the caller's business (the kernel has checked it).
    pub async fn open(self: &Arc<Self>, inode: InodeId, flags: OpenFlags, caller: &Caller) -> Result<Opened> {
        if let Some(opened) = self.open_covered(inode, flags).await {
            return Ok(opened);
        }
        self.client.behind().applied(inode).await?;
        let asked = clock::now();
        let (guard, layout) = self.coordinator().open(inode).await?;
        let attr = layout.attr.clone();
        // Removed by another mount: the name leads elsewhere now, which a kernel finds out when it
        // hears ESTALE. Removed by this one: the caller was a moment faster, and gets what it found.
        // Looked up again after that, it is what the name led to a moment ago.
        let held = self.looked_up_again.take(inode);
        let may_be_gone = self.removals.under_way() || self.inodes.is_removed_here(inode) || held.is_some();
        if attr.nlink == 0 && !may_be_gone {
            return Err(removed_elsewhere());
        }
        let content = self.client.content(inode, &attr);
        if !planted(Bug::OpenKeepsOldLayout) {
            content.refresh(&attr, Some(layout));
        }
        let entry = self.inodes.adopt(attr, asked);
        let opened =
            self.finish_open(guard, Arc::clone(&content), entry, flags, flags.truncate, caller).await?;
        if flags.read && !flags.write && !opened.pages_good {
            content.fetch_if_short();
        }
        Ok(opened)
    }

    async fn finish_open(
        &self,
        guard: OpenGuard,
        content: Arc<FileContent>,
        mut entry: Entry,
        flags: OpenFlags,
        truncate: bool,
        caller: &Caller,
    ) -> Result<Opened> {
        if truncate {
            let asked = clock::now();
            let extra = v1::SetAttr { via_handle: true, ..v1::SetAttr::default() };
            let attr = content.truncate(0, caller, extra).await?;
            entry = self.inodes.adopt_own(attr, asked);
        }
        Ok(self.insert_open(guard, content, entry, flags))
    }

    pub(super) fn insert_open(
        &self,
        guard: OpenGuard,
        content: Arc<FileContent>,
        entry: Entry,
        flags: OpenFlags,
    ) -> Opened {
        let inode = entry.attr.inode;
        let paging = Paging::of(flags);
        let good = self.inodes.opened(inode, &content, entry.attr.version, paging);
        // The overlay counts from here on, so that earlier writes of this mount that are not yet
        // committed show in the size.
        let entry = Entry { attr: content.attr_overlay(entry.attr), ..entry };
        let (mode, sync) = (flags.mode(), flags.sync);
        let told = content.told();
        let file = FileHandle { inode, content, mode, sync, paging, told, guard };
        let handle = self.handles.insert(Handle::File(file));
        Opened { handle, entry, pages_good: good.pages, attributes_changed: !good.attributes }
    }

    /// Reads what is in memory. The answer is shorter than `len` only at the end of the file.
    pub fn try_read(&self, handle: HandleId, offset: u64, len: usize) -> Option<Result<Bytes>> {
        match self.handles.file(handle, "be read") {
            Ok(file) => file.content.try_read(offset, len).map(|result| result.map_err(VfsError::from)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Reads `len` bytes; fewer only at the end of the file.
    pub async fn read(&self, handle: HandleId, offset: u64, len: usize) -> Result<Bytes> {
        let file = self.handles.file(handle, "be read")?;
        Ok(file.content.read(offset, len).await?)
    }

    /// Buffers a write when there is room for it now.
    pub fn try_write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        writer: impl Into<Writer>,
    ) -> Option<Result<()>> {
        let writer = writer.into();
        let file = match self.writable(handle) {
            Ok(file) if file.sync || self.concerns_pages(&file, offset, writer.origin) => return None,
            Ok(file) if self.has_privileges(&file, writer) => return None,
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        let (drops, place) = (self.drops(&file, writer), place(&file, offset, writer.origin));
        match file.content.try_write_for(&file.told, drops, place, data) {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(error) => Some(Err(error.into())),
        }
    }

    /// Writes all of `data`; waits for memory, and with O_SYNC until it is durable.
    pub async fn write(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        data: Bytes,
        writer: impl Into<Writer>,
    ) -> Result<()> {
        let writer = writer.into();
        let origin = writer.origin;
        let file = self.writable(handle)?;
        let len = data.len() as u64;
        self.take_privileges(handle, &file, writer).await?;
        self.before_write(&file, offset, origin).await;
        let (drops, place) = (self.drops(&file, writer), place(&file, offset, origin));
        file.content.write_for(&file.told, drops, place, data).await?;
        self.after_write(&file, place, len, origin).await;
        if file.sync {
            file.content.fsync_for(&file.told).await?;
        }
        Ok(())
    }

    pub(super) fn writable(&self, handle: HandleId) -> Result<FileRef> {
        let file = self.handles.file(handle, "be written")?;
        if !file.mode.writes() {
            return Err(VfsError::Handle { handle, operation: "be written" });
        }
        Ok(file)
    }

    /// What [`Self::flush`] gives when nothing is left to do.
    pub fn try_flush(&self, handle: HandleId) -> Option<Result<()>> {
        match self.handles.file(handle, "be closed") {
            Ok(file) if file.mode.writes() && self.needs_flush(&file) => None,
            Ok(_) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    }

    fn needs_flush(&self, file: &FileHandle) -> bool {
        let unnamed = self.client.config().durable_close && self.client.behind().is_pending(file.inode);
        unnamed || file.content.needs_flush(&file.told)
    }

    /// close(2) of one descriptor: what was written is what other mounts see. A lost write is told by each close until a
    /// write or a sync has told it.
    pub async fn flush(&self, handle: HandleId) -> Result<()> {
        let file = self.handles.file(handle, "be closed")?;
        file.content.flush_for(&file.told.for_close()).await?;
        if self.client.config().durable_close {
            self.name_applied(file.inode).await?;
        }
        Ok(())
    }

    /// Waits until the changes of an inode's name are durable. An error tells that one of them is lost.
    async fn name_applied(&self, inode: InodeId) -> Result<()> {
        let behind = self.client.behind();
        behind.applied(inode).await?;
        Ok(behind.check_losses(inode)?)
    }

    /// fsync(2): what was written survives.
    pub async fn fsync(&self, handle: HandleId) -> Result<()> {
        let file = self.handles.file(handle, "be synced")?;
        file.content.fsync_knowing(&file.told, || self.is_alone_with(file.inode)).await?;
        self.name_applied(file.inode).await
    }

    /// The last descriptor of an open is gone. Writes that are still buffered (a mapping's) are
    /// stored in the background; the inode lives until then. An error that this meets is told to the next
    /// one who writes to the file, syncs or closes it.
    pub fn release(self: &Arc<Self>, handle: HandleId) {
        let Some(released) = self.handles.remove(handle) else { return };
        let Handle::File(file) = &*released else { return };
        if !file.content.is_dirty() {
            self.inodes.closed(file.inode, file.paging);
            // One that nobody knows of keeps nothing alive.
            if !self.session().opens.is_unregistered(file.inode) {
                self.closed_lately.add(released, &self.runtime);
            }
            return;
        }
        let vfs = Arc::clone(self);
        self.runtime.spawn(async move {
            let Handle::File(file) = &*released else { return };
            if !file.content.store_untold().await {
                tracing::error!(inode = %file.guard.inode(), "written data of a closed file is lost");
            }
            vfs.inodes.closed(file.inode, file.paging);
            vfs.closed_lately.add(released, &vfs.runtime);
        });
    }

    /// [`Self::setattr`], when that needs nobody.
    pub fn try_setattr(
        self: &Arc<Self>,
        inode: InodeId,
        change: AttrChange,
        handle: Option<HandleId>,
        caller: &Caller,
    ) -> Option<Result<Entry>> {
        if let Some(removed) = self.set_attr_removed(inode, change, caller) {
            return Some(Ok(removed));
        }
        if self.pages_move_times(inode, &change) {
            return None;
        }
        if let Some(size) = self.sized_through(change, handle) {
            let exposes = self.inodes.content(inode).and_then(|content| self.exposed(&content, size));
            return if exposes.is_some() { None } else { self.grow_locally(inode, size, caller).now() };
        }
        self.set_attr_locally(inode, change, caller).now()
    }

    /// Changes attributes; `handle` is the open file that a change of size came with.
    pub async fn setattr(
        self: &Arc<Self>,
        inode: InodeId,
        change: AttrChange,
        handle: Option<HandleId>,
        caller: &Caller,
    ) -> Result<Entry> {
        if self.pages_move_times(inode, &change) {
            self.give_up_all(inode).await;
        }
        let content = self.inodes.content(inode).or_else(|| self.client.existing_content(inode));
        let exposed =
            content.as_ref().zip(change.size).and_then(|(content, size)| self.exposed(content, size));
        if let (Some(content), Some(size)) = (&content, self.sized_through(change, handle))
            && let Some(done) = self.grow_under_lease(content, size, caller).await?
        {
            self.zero(inode, exposed).await;
            return Ok(done);
        }
        if let Some(done) = self.set_attr_under_lease(inode, content.as_ref(), change, caller).await? {
            return Ok(done);
        }
        let via_handle = handle.is_some_and(|handle| self.writable(handle).is_ok());
        let set = set_attr_of(inode, change, via_handle);
        self.client.behind().applied(inode).await?;
        if let Some(done) = self.set_attr_removed(inode, change, caller) {
            return Ok(done);
        }
        let asked = clock::now();
        let attr = match (content, change.size) {
            (Some(content), Some(size)) => {
                let attr = content.truncate(size, caller, set).await?;
                self.zero(inode, exposed).await;
                attr
            }
            (Some(content), None) => content.set_attr(caller, set).await?,
            (None, _) => {
                let applied = self.coordinator().apply(Op::SetAttr(set), caller).await;
                applied.map_err(|error| self.on_stale(inode, error))?.into_attr()?
            }
        };
        self.adopt_changed(attr, asked)
    }

    /// Takes the result of a change that names an inode. When another mount has removed that inode, the change went to a
    /// file that nobody finds any more, and the kernel, which found it by a name that it has kept, is to look again.
    pub(super) fn adopt_changed(&self, attr: Attr, asked: Instant) -> Result<Entry> {
        let is_removed = attr.nlink == 0 && !self.removals.under_way();
        if is_removed && self.inodes.is_removed_elsewhere(attr.inode) {
            self.inodes.note_removed(attr.inode, clock::now() + self.valid);
            return Err(removed_elsewhere());
        }
        Ok(self.inodes.adopt_own(attr, asked))
    }

    /// `None`: no lease covers the inode, or the change is the coordinator's to make.
    async fn set_attr_under_lease(
        self: &Arc<Self>,
        inode: InodeId,
        content: Option<&Arc<FileContent>>,
        change: AttrChange,
        caller: &Caller,
    ) -> Result<Option<Entry>> {
        let dirty = content.filter(|content| content.is_dirty() && change.size.is_none());
        let done = match dirty {
            None => self.locally(|| self.set_attr_locally(inode, change, caller)).await,
            Some(content) => {
                let (vfs, caller) = (Arc::clone(self), caller.clone());
                content.change_locally(move || vfs.set_attr_settled(inode, change, &caller).now()).await?
            }
        };
        done.transpose()
    }

    /// fallocate(2). `length` is at least 1.
    pub async fn fallocate(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        length: u64,
        mode: AllocateMode,
        caller: &Caller,
    ) -> Result<()> {
        let file = self.writable(handle)?;
        if length == 0 {
            return Err(VfsError::refused(ErrorKind::InvalidArgument, "a range of no bytes"));
        }
        let end = end_of(offset, length)?;
        let (make_hole, keep_size) = match mode {
            AllocateMode::Reserve { keep_size } => (false, keep_size),
            AllocateMode::Zero { keep_size } => (true, keep_size),
        };
        self.check_room(&file.content, length, mode).await?;
        if !keep_size {
            self.conceal(&file.content, end).await;
        }
        if !make_hole && !keep_size && self.grow_under_lease(&file.content, end, caller).await?.is_some() {
            return Ok(());
        }
        let asked = clock::now();
        let op = v1::Allocate { inode: file.inode.get(), offset, length, keep_size, make_hole };
        let attr = file.content.allocate(op, caller).await?;
        self.inodes.adopt_own(attr, asked);
        Ok(())
    }

    /// lseek(2) to the next data or hole at or behind an offset.
    pub async fn lseek(&self, handle: HandleId, from: SeekFrom) -> Result<u64> {
        let file = self.handles.file(handle, "seek")?;
        if self.may_be_mapped(file.inode) {
            return self.seek_in_pages(&file, from).await;
        }
        let found = match from {
            SeekFrom::Data(offset) => file.content.seek(offset, true).await?,
            SeekFrom::Hole(offset) => file.content.seek(offset, false).await?,
        };
        Ok(found)
    }

    /// copy_file_range(2): copies extents, no bytes move. How many bytes were copied; fewer than
    /// `length` only at the end of the source.
    pub async fn copy_file_range(
        &self,
        source: HandleId,
        source_offset: u64,
        target: HandleId,
        offset: u64,
        length: u64,
        caller: &Caller,
    ) -> Result<u64> {
        let from = self.handles.file(source, "be read")?;
        let to = self.writable(target)?;
        let length = length.min(from.content.size().saturating_sub(source_offset));
        // A write that was lost in the background must not look like the end of the source.
        from.content.check_failures()?;
        if length == 0 {
            return Ok(0);
        }
        end_of(offset, length)?;
        let (first, last) = (source_offset.min(offset), source_offset.max(offset));
        if from.inode == to.inode && last - first < length {
            return Err(VfsError::refused(ErrorKind::InvalidArgument, "the ranges overlap"));
        }
        self.conceal(&to.content, offset).await;
        // Named in full: Arc's own clone_from would win.
        let (to, from) = (&*to.content, &*from.content);
        let copied = FileContent::clone_from(to, from, source_offset, offset, length, caller).await?;
        self.inodes.expire(to.inode());
        Ok(copied)
    }
}

/// Where a write goes.
fn place(file: &FileHandle, offset: u64, origin: WriteOrigin) -> Place {
    match (file.mode, origin) {
        (Mode::Append, WriteOrigin::Call | WriteOrigin::Direct) => Place::End,
        _ => Place::At(offset),
    }
}

fn removed_elsewhere() -> VfsError {
    VfsError::refused(ErrorKind::StaleHandle, "the file was removed by another mount")
}

fn end_of(offset: u64, length: u64) -> Result<u64> {
    let end = offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
    end.ok_or_else(|| VfsError::refused(ErrorKind::FileTooLarge, "a file has at most 2^63 - 1 bytes"))
}

pub(super) fn set_attr_of(inode: InodeId, change: AttrChange, via_handle: bool) -> v1::SetAttr {
    v1::SetAttr {
        inode: inode.get(),
        mode: change.mode.map(|mode| mode & 0o7777),
        uid: change.uid,
        gid: change.gid,
        size: change.size,
        atime: change.atime.map(time_of),
        mtime: change.mtime.map(time_of),
        via_handle,
    }
}

fn time_of(time: Time) -> v1::TimeChange {
    let to = match time {
        Time::Now => v1::time_change::To::Now(true),
        Time::At(ns) => v1::time_change::To::AtNs(ns),
    };
    v1::TimeChange { to: Some(to) }
}

fn file_to_create(parent: InodeId, name: &FileName, mode: u32, flags: OpenFlags) -> v1::Create {
    v1::Create { exclusive: flags.exclusive, ..create_of(parent, name, Kind::File, mode) }
}

fn closed() -> VfsError {
    ClientError::Closed.into()
}
