//! Between the kernel's numbers and the project's types.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cairn_client::vfs::{AllocateMode, OpenFlags, Time, VfsError, WriteOrigin, Writer, XattrMode};
use cairn_client::{Attr, Kind};
use cairn_proto::{ErrorKind, FileName, InodeId};
use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow, WriteFlags};

use crate::request::errno;

/// What stat(2) advises for reads and writes: programs that buffer by it send requests of this size.
const BLOCK_SIZE: u32 = 128 << 10;
/// Unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

pub(crate) fn inode(number: INodeNo) -> Result<InodeId, Errno> {
    InodeId::new(number.0).map_err(|_| Errno::ESTALE)
}

pub(crate) fn name(name: &OsStr) -> Result<FileName, Errno> {
    FileName::new(Bytes::copy_from_slice(name.as_bytes()))
        .map_err(|error| errno(VfsError::from(error).kind()))
}

pub(crate) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in a mode of mknod(2); no type at all means a file.
pub(crate) fn kind_of(mode: u32) -> Result<Kind, Errno> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(Kind::File),
        libc::S_IFIFO => Ok(Kind::Fifo),
        libc::S_IFSOCK => Ok(Kind::Socket),
        libc::S_IFCHR => Ok(Kind::CharDevice),
        libc::S_IFBLK => Ok(Kind::BlockDevice),
        _ => Err(Errno::EINVAL),
    }
}

pub(crate) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode.get()),
        size: attr.size,
        blocks: attr.allocated.div_ceil(STAT_BLOCK),
        atime: system_time(attr.atime_ns),
        mtime: system_time(attr.mtime_ns),
        ctime: system_time(attr.ctime_ns),
        crtime: system_time(attr.btime_ns),
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Number and kind alone, where nothing else is looked at.
pub(crate) fn bare(inode: InodeId, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode.get()),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn system_time(ns: i64) -> SystemTime {
    let span = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + span } else { UNIX_EPOCH - span }
}

pub(crate) fn time(time: TimeOrNow) -> Time {
    let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    match time {
        TimeOrNow::Now => Time::Now,
        TimeOrNow::SpecificTime(at) => Time::At(match at.duration_since(UNIX_EPOCH) {
            Ok(span) => nanos(span),
            // fuser takes the nanoseconds of a time before 1970 away, where the kernel adds them.
            Err(before) => {
                let (secs, subsec) = (before.duration().as_secs(), before.duration().subsec_nanos());
                i64::from(subsec).saturating_sub(nanos(Duration::from_secs(secs)))
            }
        }),
    }
}

pub(crate) fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        // O_SYNC holds the bit of O_DSYNC.
        sync: flags & libc::O_DSYNC != 0,
        direct: flags & libc::O_DIRECT != 0,
    }
}

/// Who writes with these flags through a handle that was opened with `open`, as `uid`.
pub(crate) fn writer(flags: WriteFlags, open: i32, uid: u32) -> Writer {
    let origin = match () {
        () if flags.contains(WriteFlags::FUSE_WRITE_CACHE) => WriteOrigin::PageCache,
        () if open & libc::O_DIRECT != 0 => WriteOrigin::Direct,
        () => WriteOrigin::Call,
    };
    // For other writes the kernel looks for CAP_FSETID itself, and does not say what it found.
    let keeps_set_id = match origin {
        WriteOrigin::Direct => !flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        WriteOrigin::Call | WriteOrigin::PageCache => uid == 0,
    };
    Writer { origin, keeps_set_id }
}

pub(crate) fn allocate_mode(mode: i32) -> Result<AllocateMode, Errno> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    let keep_size = mode & KEEP != 0;
    match mode & !KEEP {
        0 => Ok(AllocateMode::Reserve { keep_size }),
        PUNCH if keep_size => Ok(AllocateMode::Zero { keep_size }),
        ZERO => Ok(AllocateMode::Zero { keep_size }),
        _ => Err(errno(ErrorKind::NotSupported)),
    }
}

pub(crate) fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    const BOTH: i32 = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        BOTH => Ok(XattrMode::CreateAndReplace),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive() {
        for ns in [0, 1, -2_000_000_000, i64::MAX] {
            assert_eq!(time(TimeOrNow::SpecificTime(system_time(ns))), Time::At(ns));
        }
        // What fuser makes of -2 s + 500,000,000 ns.
        let from_kernel = UNIX_EPOCH - Duration::new(2, 500_000_000);
        assert_eq!(time(TimeOrNow::SpecificTime(from_kernel)), Time::At(-1_500_000_000));
    }

    #[test]
    fn fallocate_knows_what_it_can_do() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(allocate_mode(keep), Ok(AllocateMode::Reserve { keep_size: true }));
        let punch = libc::FALLOC_FL_PUNCH_HOLE;
        assert_eq!(allocate_mode(punch | keep), Ok(AllocateMode::Zero { keep_size: true }));
        for bad in [punch, libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
            assert_eq!(allocate_mode(bad), Err(Errno::EOPNOTSUPP));
        }
    }

    #[test]
    fn o_sync_and_o_dsync_are_both_sync() {
        assert!(open_flags(libc::O_SYNC | libc::O_WRONLY).sync);
        assert!(open_flags(libc::O_DSYNC | libc::O_RDWR).sync);
        assert!(!open_flags(libc::O_RDWR).sync);
    }
}
