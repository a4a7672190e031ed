//! Decodes a request of the kernel, calls the vfs, encodes the answer.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use cairn_client::vfs::{
    AttrChange, DirEntries, Entry, HandleId, Listing, NewNode, Opened, RenameMode, Result, SeekFrom, Vfs,
    visible_names,
};
use cairn_client::{Caller, StatFs};
use cairn_proto::limits::NAME_MAX;
use cairn_proto::{ErrorKind, FileName, InodeId, SymlinkTarget};
use cairn_runtime::clock;
use cairn_runtime::telemetry::RequestId;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle as Runtime;

use crate::callers::{self, Callers};
use crate::encode;
use crate::metrics::Op;
use crate::request::{Asked, errno};

/// Largest write request: what the kernel's limit of 256 pages allows.
const WRITE_MAX: u32 = 1 << 20;
/// Requests that the kernel sends ahead (read-ahead, releases) before it waits for answers.
const BACKGROUND_MAX: u16 = 64;
/// Longest copy of one copy_file_range request; the kernel counts in 32 bits and page by page.
const COPY_MAX: u64 = 0x7fff_f000;
/// Unit of statfs(2).
const STATFS_BLOCK: u64 = 4096;
/// Inode ids are never reused, so one generation serves them all, and a handle names one inode for ever.
const GENERATION: Generation = Generation(0);

/// What is asked of the kernel where it can do it.
const WANTED: &[InitFlags] = &[
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    // A file held open is looked at again once its attributes are old, so that what another mount
    // wrote is seen; without this its pages would stay for as long as it is open.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    // Attributes with the first entries of a directory, and with the rest when somebody looks at them.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // Handles of name_to_handle_at(2) outlive the kernel's caches: what they name is asked for by its number.
    InitFlags::FUSE_EXPORT_SUPPORT,
];

/// The file system as `fuser` calls it.
pub(crate) struct Adapter {
    vfs: Arc<Vfs>,
    runtime: Runtime,
    callers: Arc<Callers>,
    notifier: Notifications,
    requests: Requests,
}

/// How many requests the kernel has sent so far.
pub(crate) type Requests = Arc<AtomicU64>;

/// Where notifications to the kernel are sent; set once the session is there.
pub(crate) type Notifications = Arc<OnceLock<Notifier>>;

/// What every reply can do.
trait Reply: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! replies {
    ($($name:ident),*) => { $(impl Reply for $name {
        fn fail(self, errno: Errno) { self.error(errno) }
    })* };
}
replies!(ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry);
replies!(ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr);

/// Decodes an argument or answers with its errno.
macro_rules! decode {
    ($reply:ident, $value:expr) => {
        match $value {
            Ok(value) => value,
            Err(errno) => return $reply.error(errno),
        }
    };
}

impl Adapter {
    pub(crate) fn new(vfs: Arc<Vfs>, runtime: Runtime) -> Self {
        let (callers, notifier) = (Arc::default(), Notifications::default());
        Self { vfs, runtime, callers, notifier, requests: Requests::default() }
    }

    /// How many requests came so far.
    pub(crate) fn requests(&self) -> Requests {
        Arc::clone(&self.requests)
    }

    /// To be filled by who makes the session.
    pub(crate) fn notifications(&self) -> Notifications {
        Arc::clone(&self.notifier)
    }

    fn asked(&self, op: Op, request: &Request, inode: INodeNo) -> Asked {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Asked { op, pid: request.pid(), inode: inode.0, started: clock::now() }
    }

    /// Answers on this thread.
    fn now<R: Reply, T>(&self, asked: Asked, reply: R, result: Result<T>, answer: impl FnOnce(R, T)) {
        match result {
            Ok(value) => answer(reply, value),
            Err(error) => fail(&self.vfs, reply, asked.failed(&error)),
        }
        asked.op.answered(asked.started);
    }

    /// Answers from a task.
    fn later<R: Reply, T: Send>(
        &self,
        asked: Asked,
        reply: R,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let vfs = Arc::clone(&self.vfs);
        self.runtime.spawn(RequestId::fresh().scope(async move {
            match asked.finish(work).await {
                Ok(value) => answer(reply, value),
                Err(errno) => fail(&vfs, reply, errno),
            }
            asked.op.answered(asked.started);
        }));
    }

    /// [`Self::later`] on behalf of `caller`. Whoever is refused, and has become another since he was looked at, gets
    /// one more try as that one.
    fn later_as<R: Reply, T: Send, F>(
        &self,
        caller: Caller,
        asked: Asked,
        reply: R,
        mut work: impl FnMut(Arc<Vfs>, Caller) -> F + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (vfs, callers) = (Arc::clone(&self.vfs), Arc::clone(&self.callers));
        let tried = async move {
            match work(Arc::clone(&vfs), caller.clone()).await {
                Err(error) if callers::is_refusal(&error) => match callers.changed(asked.pid, &caller) {
                    Some(changed) => work(vfs, changed).await,
                    None => Err(error),
                },
                done => done,
            }
        };
        self.later(asked, reply, tried, answer);
    }

    /// Makes an inode and answers with it.
    fn make(
        &self,
        asked: Asked,
        reply: ReplyEntry,
        (parent, name): (InodeId, FileName),
        new: NewNode,
        mode: u32,
        caller: Caller,
    ) {
        let made = self.vfs.try_make(parent, &name, &new, mode, &caller);
        if let Some(made) = callers::settled(&caller, made) {
            return self.now(asked, reply, made, answer_entry(&self.vfs));
        }
        let work = move |vfs: Arc<Vfs>, caller| {
            let (name, new) = (name.clone(), new.clone());
            async move { vfs.make(parent, &name, &new, mode, &caller).await }
        };
        self.later_as(caller, asked, reply, work, answer_entry(&self.vfs));
    }

    /// [`Self::later_as`], answered with success alone.
    fn perform_as<F>(
        &self,
        caller: Caller,
        asked: Asked,
        reply: ReplyEmpty,
        work: impl FnMut(Arc<Vfs>, Caller) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.later_as(caller, asked, reply, work, |reply, ()| reply.ok());
    }

    /// Answers a request with success alone.
    fn perform<F>(&self, asked: Asked, reply: ReplyEmpty, work: impl FnOnce(Arc<Vfs>) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.later(asked, reply, work(Arc::clone(&self.vfs)), |reply, ()| reply.ok());
    }
}

/// A kernel that hears ESTALE walks the path once more, and passes a second one on to the program.
fn fail<R: Reply>(vfs: &Vfs, reply: R, errno: Errno) {
    if errno.code() == libc::ESTALE {
        vfs.told_stale();
    }
    reply.fail(errno);
}

fn answer_entry(vfs: &Arc<Vfs>) -> impl FnOnce(ReplyEntry, Entry) + Send + use<> {
    let vfs = Arc::clone(vfs);
    move |reply, entry| {
        reply.entry(&entry.valid, &encode::attr(&entry.attr), GENERATION);
        vfs.note_shown(std::iter::once((entry.attr.inode, entry.attr.version)));
    }
}

fn answer_attr(vfs: &Arc<Vfs>) -> impl FnOnce(ReplyAttr, Entry) + Send + use<> {
    let vfs = Arc::clone(vfs);
    move |reply, entry| {
        reply.attr(&entry.valid, &encode::attr(&entry.attr));
        vfs.note_shown(std::iter::once((entry.attr.inode, entry.attr.version)));
    }
}

fn answer_xattr(reply: ReplyXattr, size: u32, value: &Bytes) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(len),
        size if len > size => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

fn answer_statfs(reply: ReplyStatfs, stat: StatFs) {
    let blocks = |bytes: u64| bytes / STATFS_BLOCK;
    reply.statfs(
        blocks(stat.capacity),
        blocks(stat.capacity.saturating_sub(stat.used)),
        blocks(stat.available),
        stat.inodes_max,
        stat.inodes_max.saturating_sub(stat.inodes),
        STATFS_BLOCK as u32,
        NAME_MAX as u32,
        STATFS_BLOCK as u32,
    );
}

/// The answer to an open carries no attributes, so the kernel goes on with those it has, as long as
/// they are valid; an old size would hide what another mount has appended. Attributes alone (a negative
/// offset) are dropped without any lock, so this is safe while the kernel waits for an answer.
pub(crate) fn forget_attributes(notifier: &Notifications, inode: INodeNo) {
    if let Some(notifier) = notifier.get()
        && let Err(error) = notifier.inval_inode(inode, -1, 0)
    {
        tracing::debug!(inode = inode.0, %error, "the kernel keeps old attributes for a moment");
    }
}

fn fopen_flags(opened: &Opened, flags: i32) -> FopenFlags {
    let mut answer = FopenFlags::empty();
    if opened.pages_good {
        answer |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if flags & libc::O_DIRECT != 0 {
        answer |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        answer |= FopenFlags::FOPEN_NOFLUSH;
    }
    answer
}

fn answer_listing(mut reply: ReplyDirectory, entries: &DirEntries) {
    for entry in entries.iter() {
        let (name, kind) = (OsStr::from_bytes(entry.name), encode::file_type(entry.kind));
        if reply.add(INodeNo(entry.inode.get()), entry.next, kind, name) {
            break;
        }
    }
    reply.ok();
}

fn answer_listing_plus(vfs: &Vfs, mut reply: ReplyDirectoryPlus, entries: &DirEntries) {
    let mut shown = Vec::new();
    for entry in entries.iter() {
        let (name, ino) = (OsStr::from_bytes(entry.name), INodeNo(entry.inode.get()));
        let (valid, attr) = match &entry.entry {
            Some(known) => (known.valid, encode::attr(&known.attr)),
            // "." and "..": the kernel takes no more than number and kind.
            None => (std::time::Duration::ZERO, encode::bare(entry.inode, entry.kind)),
        };
        if reply.add(ino, entry.next, name, &valid, &attr, GENERATION) {
            break;
        }
        shown.extend(entry.entry.map(|known| (known.attr.inode, known.attr.version)));
    }
    reply.ok();
    vfs.note_shown(shown.into_iter());
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for &flag in WANTED {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "the kernel can not do this");
            }
        }
        // An error names the nearest possible value, which is then taken.
        if let Err(nearest) = config.set_max_write(WRITE_MAX) {
            let _ = config.set_max_write(nearest);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let asked = self.asked(Op::Lookup, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        // A kernel asks for these only to find what a program has kept a handle of (open_by_handle_at(2)).
        let vfs = Arc::clone(&self.vfs);
        match name.as_bytes() {
            b"." => {
                let work = async move { vfs.lookup_inode(parent).await };
                return self.later(asked, reply, work, answer_entry(&self.vfs));
            }
            b".." => {
                let work = async move { vfs.lookup_parent(parent, &Caller::root()).await };
                return self.later(asked, reply, work, answer_entry(&self.vfs));
            }
            _ => {}
        }
        let name = decode!(reply, encode::name(name));
        // The kernel has checked that the caller may search the directory.
        if let Some(known) = self.vfs.try_lookup(parent, &name, &Caller::root()) {
            return self.now(asked, reply, known, answer_entry(&self.vfs));
        }
        let work = async move { vfs.lookup(parent, &name, &Caller::root()).await };
        self.later(asked, reply, work, answer_entry(&self.vfs));
    }

    fn forget(&self, _request: &Request, ino: INodeNo, _nlookup: u64) {
        if let Ok(inode) = encode::inode(ino) {
            self.vfs.forget(inode);
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let asked = self.asked(Op::GetAttr, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        if let Some(entry) = self.vfs.try_getattr(inode) {
            return self.now(asked, reply, Ok(entry), answer_attr(&self.vfs));
        }
        let vfs = Arc::clone(&self.vfs);
        self.later(asked, reply, async move { vfs.getattr(inode).await }, answer_attr(&self.vfs));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let asked = self.asked(Op::SetAttr, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let (atime, mtime) = (atime.map(encode::time), mtime.map(encode::time));
        let change = AttrChange { mode, uid, gid, size, atime, mtime };
        let (handle, caller) = (fh.map(|fh| HandleId(fh.0)), self.callers.of(request));
        let done = self.vfs.try_setattr(inode, change, handle, &caller);
        if let Some(done) = callers::settled(&caller, done) {
            return self.now(asked, reply, done, answer_attr(&self.vfs));
        }
        let work =
            move |vfs: Arc<Vfs>, caller| async move { vfs.setattr(inode, change, handle, &caller).await };
        self.later_as(caller, asked, reply, work, answer_attr(&self.vfs));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let asked = self.asked(Op::ReadLink, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let answer = |reply: ReplyData, target: Bytes| reply.data(&target);
        if let Some(known) = self.vfs.try_readlink(inode) {
            return self.now(asked, reply, known, answer);
        }
        let vfs = Arc::clone(&self.vfs);
        self.later(asked, reply, async move { vfs.readlink(inode).await }, answer);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let asked = self.asked(Op::MkNod, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        let name = decode!(reply, encode::name(name));
        let kind = decode!(reply, encode::kind_of(mode));
        let caller = self.callers.of(request);
        self.make(asked, reply, (parent, name), NewNode::Other(kind, rdev), mode, caller);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let asked = self.asked(Op::MkDir, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        let name = decode!(reply, encode::name(name));
        let caller = self.callers.of(request);
        self.make(asked, reply, (parent, name), NewNode::Directory, mode, caller);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let asked = self.asked(Op::Unlink, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        let name = decode!(reply, encode::name(name));
        let caller = self.callers.of(request);
        let done = self.vfs.try_unlink(parent, &name, &caller);
        if let Some(done) = callers::settled(&caller, done) {
            return self.now(asked, reply, done, |reply, ()| reply.ok());
        }
        self.perform_as(caller, asked, reply, move |vfs, caller| {
            let name = name.clone();
            async move { vfs.unlink(parent, &name, &caller).await }
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let asked = self.asked(Op::RmDir, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        let name = decode!(reply, encode::name(name));
        let caller = self.callers.of(request);
        let done = self.vfs.try_rmdir(parent, &name, &caller);
        if let Some(done) = callers::settled(&caller, done) {
            return self.now(asked, reply, done, |reply, ()| reply.ok());
        }
        self.perform_as(caller, asked, reply, move |vfs, caller| {
            let name = name.clone();
            async move { vfs.rmdir(parent, &name, &caller).await }
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let asked = self.asked(Op::Symlink, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        let name = decode!(reply, encode::name(name));
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        let target = SymlinkTarget::new(target)
            .map_err(|error| errno(cairn_client::vfs::VfsError::from(error).kind()));
        let target = decode!(reply, target);
        let caller = self.callers.of(request);
        self.make(asked, reply, (parent, name), NewNode::Symlink(target), 0o777, caller);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(Op::Rename, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        let name = decode!(reply, encode::name(name));
        let new_parent = decode!(reply, encode::inode(newparent));
        let new_name = decode!(reply, encode::name(newname));
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let caller = self.callers.of(request);
        let (from, to) = ((parent, &name), (new_parent, &new_name));
        let done = self.vfs.try_rename(from, to, mode, &caller);
        if let Some(done) = callers::settled(&caller, done) {
            return self.now(asked, reply, done, |reply, ()| reply.ok());
        }
        self.perform_as(caller, asked, reply, move |vfs, caller| {
            let (name, new_name) = (name.clone(), new_name.clone());
            async move { vfs.rename(parent, &name, new_parent, &new_name, mode, &caller).await }
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let asked = self.asked(Op::Link, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let parent = decode!(reply, encode::inode(newparent));
        let name = decode!(reply, encode::name(newname));
        let caller = self.callers.of(request);
        let work = move |vfs: Arc<Vfs>, caller| {
            let name = name.clone();
            async move { vfs.link(inode, parent, &name, &caller).await }
        };
        self.later_as(caller, asked, reply, work, answer_entry(&self.vfs));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let asked = self.asked(Op::Open, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let (vfs, flags) = (Arc::clone(&self.vfs), flags.0);
        // A truncation may take set-user-ID away, by who does it; all else the kernel has checked.
        let truncates = flags & libc::O_TRUNC != 0;
        let caller = if truncates { self.callers.of(request) } else { callers::bare(request) };
        let (opening, notifier) = (encode::open_flags(flags), Arc::clone(&self.notifier));
        let answer = move |reply: ReplyOpen, opened: Opened| {
            if opened.attributes_changed {
                forget_attributes(&notifier, ino);
            }
            reply.opened(FileHandle(opened.handle.0), fopen_flags(&opened, flags));
        };
        if let Some(opened) = self.vfs.try_open(inode, opening) {
            return self.now(asked, reply, Ok(opened), answer);
        }
        let work = async move { vfs.open(inode, opening, &caller).await };
        self.later(asked, reply, work, answer);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let asked = self.asked(Op::Create, request, parent);
        let parent = decode!(reply, encode::inode(parent));
        let name = decode!(reply, encode::name(name));
        let caller = self.callers.of(request);
        let (opening, answer) = (encode::open_flags(flags), move |reply: ReplyCreate, opened: Opened| {
            let (entry, handle) = (&opened.entry, FileHandle(opened.handle.0));
            let flags = fopen_flags(&opened, flags);
            reply.created(&entry.valid, &encode::attr(&entry.attr), GENERATION, handle, flags);
        });
        let made = self.vfs.try_create_open(parent, &name, mode, opening, &caller);
        if let Some(made) = callers::settled(&caller, made) {
            return self.now(asked, reply, made, answer);
        }
        let work = move |vfs: Arc<Vfs>, caller| {
            let name = name.clone();
            async move { vfs.create_open(parent, &name, mode, opening, &caller).await }
        };
        self.later_as(caller, asked, reply, work, answer);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let asked = self.asked(Op::Read, request, ino);
        let (handle, len) = (HandleId(fh.0), size as usize);
        let answer = |reply: ReplyData, data: Bytes| {
            Op::Read.moved(data.len() as u64);
            reply.data(&data);
        };
        let known = {
            let _runtime = self.runtime.enter(); // the data path starts its read-ahead from here
            self.vfs.try_read(handle, offset, len)
        };
        if let Some(known) = known {
            return self.now(asked, reply, known, answer);
        }
        let vfs = Arc::clone(&self.vfs);
        self.later(asked, reply, async move { vfs.read(handle, offset, len).await }, answer);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let asked = self.asked(Op::Write, request, ino);
        let handle = HandleId(fh.0);
        let writer = encode::writer(write_flags, flags.0, request.uid());
        let written = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let answer = move |reply: ReplyWrite, ()| {
            Op::Write.moved(written.into());
            reply.written(written);
        };
        let taken = {
            let _runtime = self.runtime.enter(); // a chunk that is full now leaves from here
            self.vfs.try_write(handle, offset, data, writer)
        };
        if let Some(taken) = taken {
            return self.now(asked, reply, taken, answer);
        }
        // The one copy of the way: the kernel's bytes lie in a buffer that the next request needs.
        let (vfs, data) = (Arc::clone(&self.vfs), Bytes::copy_from_slice(data));
        let work = async move { vfs.write(handle, offset, data, writer).await };
        self.later(asked, reply, work, answer);
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let asked = self.asked(Op::Flush, request, ino);
        let handle = HandleId(fh.0);
        if let Some(done) = self.vfs.try_flush(handle) {
            return self.now(asked, reply, done, |reply, ()| reply.ok());
        }
        self.perform(asked, reply, |vfs| async move { vfs.flush(handle).await });
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _runtime = self.runtime.enter();
        self.vfs.release(HandleId(fh.0));
        reply.ok();
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let asked = self.asked(Op::Fsync, request, ino);
        let handle = HandleId(fh.0);
        self.perform(asked, reply, |vfs| async move { vfs.fsync(handle).await });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let inode = decode!(reply, encode::inode(ino));
        // No FOPEN_CACHE_DIR: a listing from the kernel's cache renews no attributes, and a lookup
        // for each entry afterwards costs more than the one request that is saved.
        reply.opened(FileHandle(self.vfs.opendir(inode).0), FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let asked = self.asked(Op::ReadDir, request, ino);
        let handle = HandleId(fh.0);
        if let Some(known) = self.vfs.try_readdir(handle, offset, Listing::Names) {
            return self.now(asked, reply, known, |reply, entries| answer_listing(reply, &entries));
        }
        let vfs = Arc::clone(&self.vfs);
        let work = async move { vfs.readdir(handle, offset, Listing::Names).await };
        self.later(asked, reply, work, |reply, entries| answer_listing(reply, &entries));
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let asked = self.asked(Op::ReadDir, request, ino);
        let handle = HandleId(fh.0);
        if let Some(known) = self.vfs.try_readdir(handle, offset, Listing::Attributes) {
            let answer = |reply, entries| answer_listing_plus(&self.vfs, reply, &entries);
            return self.now(asked, reply, known, answer);
        }
        let (vfs, shown_by) = (Arc::clone(&self.vfs), Arc::clone(&self.vfs));
        let work = async move { vfs.readdir(handle, offset, Listing::Attributes).await };
        self.later(asked, reply, work, move |reply, entries| {
            answer_listing_plus(&shown_by, reply, &entries);
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.vfs.releasedir(HandleId(fh.0));
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let asked = self.asked(Op::Fsync, request, ino);
        let handle = HandleId(fh.0);
        self.perform(asked, reply, |vfs| async move { vfs.fsyncdir(handle).await });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let asked = self.asked(Op::StatFs, request, ino);
        if let Some(known) = self.vfs.try_statfs() {
            return self.now(asked, reply, Ok(known), answer_statfs);
        }
        let vfs = Arc::clone(&self.vfs);
        self.later(asked, reply, async move { vfs.statfs().await }, answer_statfs);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(Op::SetXattr, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let mode = decode!(reply, encode::xattr_mode(flags));
        let (name, value) = (Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value));
        let caller = self.callers.of(request);
        self.perform_as(caller, asked, reply, move |vfs, caller| {
            let (name, value) = (name.clone(), value.clone());
            async move { vfs.setxattr(inode, &name, &value, mode, &caller).await }
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let asked = self.asked(Op::GetXattr, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let answer = move |reply: ReplyXattr, value: Bytes| answer_xattr(reply, size, &value);
        if let Some(known) = self.vfs.try_getxattr(inode, name.as_bytes()) {
            return self.now(asked, reply, known, answer);
        }
        let (vfs, name) = (Arc::clone(&self.vfs), name.as_bytes().to_vec());
        self.later(asked, reply, async move { vfs.getxattr(inode, &name).await }, answer);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let asked = self.asked(Op::ListXattr, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let (callers, who) = (Arc::clone(&self.callers), callers::Key::of(request));
        let answer = move |reply: ReplyXattr, names: Bytes| {
            answer_xattr(reply, size, &visible_names(names, || callers.known(who)));
        };
        if let Some(known) = self.vfs.try_listxattr(inode) {
            return self.now(asked, reply, Ok(known), answer);
        }
        let vfs = Arc::clone(&self.vfs);
        self.later(asked, reply, async move { vfs.listxattr(inode).await }, answer);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let asked = self.asked(Op::RemoveXattr, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let (name, caller) = (Bytes::copy_from_slice(name.as_bytes()), self.callers.of(request));
        self.perform_as(caller, asked, reply, move |vfs, caller| {
            let name = name.clone();
            async move { vfs.removexattr(inode, &name, &caller).await }
        });
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let asked = self.asked(Op::Access, request, ino);
        let inode = decode!(reply, encode::inode(ino));
        let (mask, caller) = (mask.bits().unsigned_abs(), self.callers.of(request));
        self.perform_as(caller, asked, reply, move |vfs, caller| async move {
            vfs.access(inode, mask, &caller).await
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(Op::Allocate, request, ino);
        let mode = decode!(reply, encode::allocate_mode(mode));
        let (handle, caller) = (HandleId(fh.0), self.callers.of(request));
        self.perform(asked, reply, |vfs| async move {
            vfs.fallocate(handle, offset, length, mode, &caller).await
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let asked = self.asked(Op::Seek, request, ino);
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(errno(ErrorKind::NoSuchOffset));
        };
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        let (vfs, handle) = (Arc::clone(&self.vfs), HandleId(fh.0));
        self.later(asked, reply, async move { vfs.lseek(handle, from).await }, |reply, found| {
            reply.offset(i64::try_from(found).unwrap_or(i64::MAX));
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let asked = self.asked(Op::CopyRange, request, ino_in);
        let (source, target) = (HandleId(fh_in.0), HandleId(fh_out.0));
        let (vfs, caller, len) = (Arc::clone(&self.vfs), self.callers.of(request), len.min(COPY_MAX));
        let work =
            async move { vfs.copy_file_range(source, offset_in, target, offset_out, len, &caller).await };
        self.later(asked, reply, work, |reply, copied| {
            Op::CopyRange.moved(copied);
            reply.written(u32::try_from(copied).unwrap_or(u32::MAX));
        });
    }

    // What a local file system does not have either; fuser's own answers are the same but logged.

    fn bmap(&self, _request: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
