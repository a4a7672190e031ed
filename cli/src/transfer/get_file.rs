//! One file of `cairn get`: skipped when it is there, else copied to a temporary name, renamed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cairn_client::{Attr, Kind};
use cairn_proto::ErrorKind;
use cairn_proto::checksum::{combine, crc32c};
use futures::StreamExt;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};

use super::put::mtime_ns;
use super::{AsyncWork, Job, PIECE, partial_name};
use crate::args::RemotePath;
use crate::failure::{Context, Exit, Failure};
use crate::local;
use crate::remote::RemoteFile;

/// Pieces of one file that are asked for at once.
const PIECES_AT_ONCE: usize = 4;

/// A file to copy, as the walker found it.
pub(super) struct GetFile {
    pub(super) path: RemotePath,
    pub(super) target: PathBuf,
    pub(super) attr: Attr,
}

/// Copies one file after another.
#[derive(Clone)]
pub(super) struct GetWork;

impl AsyncWork<GetFile> for GetWork {
    async fn run(&self, job: &Job, file: GetFile) -> Result<(), Failure> {
        let what = format!("get {} {}", file.path, file.target.display());
        let found = fs::symlink_metadata(&file.target).ok();
        if found.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(Failure::new(what, "a directory of that name is there"));
        }
        if file.attr.kind == Kind::Symlink {
            return get_symlink(job, &file, found.is_some(), &what);
        }
        if is_there(job, &file, found.as_ref(), &what).await? {
            job.progress.skipped(file.attr.size);
            return Ok(());
        }
        copy(job, &file, &what).await?;
        job.progress.copied();
        Ok(())
    }
}

fn get_symlink(job: &Job, file: &GetFile, found: bool, what: &str) -> Result<(), Failure> {
    let target = file.attr.symlink_target.clone().unwrap_or_default();
    let target = Path::new(OsStr::from_bytes(&target));
    if found {
        if fs::read_link(&file.target).is_ok_and(|there| there == target) {
            job.progress.skipped(0);
            return Ok(());
        }
        fs::remove_file(&file.target).doing(what)?;
    }
    std::os::unix::fs::symlink(target, &file.target).doing(what)?;
    set_times(&file.target, &file.attr).doing(what)?;
    job.progress.copied();
    Ok(())
}

/// Whether the destination holds this file already.
async fn is_there(
    job: &Job,
    file: &GetFile,
    found: Option<&fs::Metadata>,
    what: &str,
) -> Result<bool, Failure> {
    let Some(found) = found.filter(|meta| meta.is_file() && meta.len() == file.attr.size) else {
        return Ok(false);
    };
    let equal = mtime_ns(found) == file.attr.mtime_ns;
    if job.options.overwrite {
        return Ok(false);
    }
    if !job.options.checksum {
        return Ok(equal);
    }
    let here = Arc::new(local::open(&file.target).doing(what)?);
    let source = job.remote.open(file.attr.inode).await.doing(what)?;
    let mut offset = 0;
    while offset < file.attr.size {
        let theirs = source.content.read(offset, piece(file.attr.size - offset)).await.doing(what)?;
        let ours = read_here(job, &here, offset, theirs.len(), what).await?;
        if theirs.is_empty() || ours != theirs {
            return Ok(false);
        }
        offset += theirs.len() as u64;
    }
    if !equal {
        set_times(&file.target, &file.attr).doing(what)?;
    }
    Ok(true)
}

async fn copy(job: &Job, file: &GetFile, what: &str) -> Result<(), Failure> {
    let source = job.remote.open(file.attr.inode).await.doing(what)?;
    let name = file.target.file_name().unwrap_or_default().as_bytes();
    let partial = file.target.with_file_name(OsStr::from_bytes(&partial_name(name)));
    let result = copy_to(job, file, &source, &partial, what).await;
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result
}

async fn copy_to(
    job: &Job,
    file: &GetFile,
    source: &RemoteFile,
    partial: &Path,
    what: &str,
) -> Result<(), Failure> {
    let copy = Arc::new(local::create(partial).doing(what)?);
    // The size at the time of opening: a file that grows meanwhile is copied as it was.
    let size = source.content.size();
    let crc = receive(job, source, size, &copy, what).await?;
    copy.set_len(size).doing(what)?;
    if job.options.verify {
        verify(job, &copy, size, crc, what).await?;
    }
    fs::set_permissions(partial, fs::Permissions::from_mode(source.attr.mode)).doing(what)?;
    set_times(partial, &source.attr).doing(what)?;
    fs::rename(partial, &file.target).doing(what)
}

/// Copies the data of a file, without its holes. Gives the CRC-32C of the whole content.
async fn receive(
    job: &Job,
    source: &RemoteFile,
    size: u64,
    copy: &Arc<File>,
    what: &str,
) -> Result<u32, Failure> {
    let mut crc = crc32c(b"");
    let mut offset = 0;
    while offset < size {
        let start = match source.content.seek(offset, true).await {
            Ok(start) => start.min(size),
            Err(error) if error.kind() == ErrorKind::NoSuchOffset => size,
            Err(error) => return Err(error).doing(what),
        };
        crc = zeros(crc, start - offset);
        job.progress.moved(start - offset);
        offset = start;
        if offset == size {
            break;
        }
        let end = source.content.seek(offset, false).await.doing(what)?.clamp(offset + 1, size);
        let mut starts = Vec::new();
        let mut next = offset;
        while next < end {
            starts.push(next);
            next = next.saturating_add(PIECE);
        }
        let mut pieces = futures::stream::iter(starts)
            .map(|start| async move { source.content.read(start, piece(end - start)).await })
            .buffered(PIECES_AT_ONCE);
        while let Some(data) = pieces.next().await {
            let data = data.doing(what)?;
            if data.len() != piece(end - offset) {
                return Err(Failure::new(what, "the file became shorter while it was read")
                    .next("run the command again"));
            }
            crc = combine(crc, crc32c(&data), data.len() as u64);
            let length = data.len() as u64;
            write_here(job, copy, offset, data, what).await?;
            job.progress.moved(length);
            offset += length;
        }
    }
    Ok(crc)
}

/// The CRC-32C of a run followed by `length` zeros.
fn zeros(mut crc: u32, mut length: u64) -> u32 {
    const ZEROS: &[u8] = &[0; 64 << 10];
    // Doubling: the checksum of 2n zeros is made of two of n.
    let (mut unit, mut unit_len) = (crc32c(ZEROS), ZEROS.len() as u64);
    let rest = usize::try_from(length % unit_len).unwrap_or(0);
    crc = combine(crc, crc32c(&ZEROS[..rest]), rest as u64);
    length /= unit_len;
    while length > 0 {
        if length & 1 == 1 {
            crc = combine(crc, unit, unit_len);
        }
        length >>= 1;
        if length > 0 {
            unit = combine(unit, unit, unit_len);
            unit_len *= 2;
        }
    }
    crc
}

/// Reads back what was written here.
async fn verify(job: &Job, copy: &Arc<File>, size: u64, expected: u32, what: &str) -> Result<(), Failure> {
    let (mut crc, mut offset) = (crc32c(b""), 0);
    while offset < size {
        let data = read_here(job, copy, offset, piece(size - offset), what).await?;
        crc = combine(crc, crc32c(&data), data.len() as u64);
        offset += data.len().max(1) as u64;
    }
    if crc == expected {
        return Ok(());
    }
    Err(Failure::new(what, "what was written to the local disk reads back differently")
        .next("check that disk")
        .exit(Exit::Failed))
}

async fn read_here(
    job: &Job,
    file: &Arc<File>,
    offset: u64,
    length: usize,
    what: &str,
) -> Result<Bytes, Failure> {
    let file = Arc::clone(file);
    let read = job.pool.run(move || {
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, offset).map(|()| Bytes::from(buffer))
    });
    read.await.doing(what)?.doing(what)
}

async fn write_here(
    job: &Job,
    file: &Arc<File>,
    offset: u64,
    data: Bytes,
    what: &str,
) -> Result<(), Failure> {
    let file = Arc::clone(file);
    job.pool.run(move || file.write_all_at(&data, offset)).await.doing(what)?.doing(what)
}

/// At most one piece of what is left.
fn piece(left: u64) -> usize {
    usize::try_from(left.min(PIECE)).unwrap_or(usize::MAX)
}

/// Sets the time of the last change, of a symlink itself where it is one.
pub(super) fn set_times(path: &Path, attr: &Attr) -> io::Result<()> {
    let ns = attr.mtime_ns;
    let mtime = Timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: omit, last_modification: mtime };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_count_like_any_bytes() {
        for length in [0, 1, 65_535, 65_536, 65_537, 1_000_000] {
            let mut data = b"head".to_vec();
            data.resize(4 + length, 0);
            assert_eq!(zeros(crc32c(b"head"), length as u64), crc32c(&data), "{length}");
        }
    }
}
