//! One file of `cairn put`: skipped when it is there, else copied to a temporary name, verified,
//! renamed.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cairn_client::{Attr, ClientError, Kind};
use cairn_proto::checksum::crc32c;
use cairn_proto::{ErrorKind, FileName, InodeId, v1};
use rustix::fs::SeekFrom;

use super::checksum::Blocks;
use super::{AsyncWork, Job, PIECE, partial_name};
use crate::args::RemotePath;
use crate::failure::{Context, Exit, Failure};
use crate::local;
use crate::remote::{self, Remote, RemoteFile};

/// A file to copy, as the walker found it.
pub(super) struct PutFile {
    pub(super) local: PathBuf,
    pub(super) path: RemotePath,
    pub(super) parent: InodeId,
    pub(super) name: FileName,
    /// What is at the destination.
    pub(super) found: Option<Attr>,
    pub(super) is_symlink: bool,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) mtime_ns: i64,
}

/// Copies one file after another.
#[derive(Clone)]
pub(super) struct PutWork;

impl AsyncWork<PutFile> for PutWork {
    async fn run(&self, job: &Job, file: PutFile) -> Result<(), Failure> {
        let what = format!("put {} {}", file.local.display(), file.path);
        if file.found.as_ref().is_some_and(|found| found.kind == Kind::Directory) {
            return Err(Failure::new(what, "a directory of that name is there"));
        }
        if file.is_symlink {
            return put_symlink(job, &file, &what).await;
        }
        if is_there(job, &file, &what).await? {
            job.progress.skipped(file.size);
            return Ok(());
        }
        copy(job, &file, &what).await?;
        job.progress.copied();
        Ok(())
    }
}

async fn put_symlink(job: &Job, file: &PutFile, what: &str) -> Result<(), Failure> {
    let target = std::fs::read_link(&file.local).doing(what)?;
    let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
    match &file.found {
        Some(found) if found.symlink_target.as_ref() == Some(&target) => {
            job.progress.skipped(0);
            return Ok(());
        }
        Some(_) => job.remote.unlink(file.parent, &file.name).await.doing(what)?,
        None => {}
    }
    let made = job.remote.symlink(file.parent, &file.name, target).await.doing(what)?;
    job.remote.apply(remote::times(made.inode, None, file.mtime_ns)).await.doing(what)?;
    job.progress.copied();
    Ok(())
}

/// Whether the destination holds this file already.
async fn is_there(job: &Job, file: &PutFile, what: &str) -> Result<bool, Failure> {
    let Some(found) = &file.found else { return Ok(false) };
    let equal = found.kind == Kind::File && found.size == file.size && found.mtime_ns == file.mtime_ns;
    if job.options.overwrite || found.kind != Kind::File || found.size != file.size {
        return Ok(false);
    }
    if !job.options.checksum {
        return Ok(equal);
    }
    let source = Arc::new(local::open_following(&file.local).doing(what)?);
    let there = job.remote.open(found.inode).await.doing(what)?;
    let mut offset = 0;
    while offset < file.size {
        let ours = read_local(job, &source, offset, PIECE, what).await?;
        let theirs = there.content.read(offset, ours.len()).await.doing(what)?;
        if ours.is_empty() || ours != theirs {
            return Ok(false);
        }
        offset += ours.len() as u64;
    }
    if !equal {
        // The same bytes at another time: only that is set.
        let times = remote::times(found.inode, Some(file.mode), file.mtime_ns);
        job.remote.apply(times).await.doing(what)?;
    }
    Ok(true)
}

async fn copy(job: &Job, file: &PutFile, what: &str) -> Result<(), Failure> {
    let source = Arc::new(local::open_following(&file.local).doing(what)?);
    let partial = FileName::new(partial_name(file.name.as_bytes())).map_err(ClientError::from).doing(what)?;
    let copy = job.remote.create(file.parent, &partial, 0o600).await.doing(what)?;
    let copied = async {
        let blocks = send(job, &source, &copy, what).await?;
        copy.content.flush().await.doing(what)?;
        verify(job, &copy, &blocks, what).await?;
        let changes = vec![
            remote::times(copy.attr.inode, Some(file.mode), file.mtime_ns),
            remote::rename((file.parent, &partial), (file.parent, &file.name), false),
        ];
        for result in job.remote.apply_many(changes).await.doing(what)? {
            result.doing(what)?;
        }
        Ok(())
    };
    let result = copied.await;
    if result.is_err() {
        // Nothing half-done stays, unless the cluster is away: then the next run takes it over.
        let _ = job.remote.unlink(file.parent, &partial).await;
    }
    result
}

/// Sends the data of a file, without its holes.
async fn send(job: &Job, source: &Arc<File>, copy: &RemoteFile, what: &str) -> Result<Blocks, Failure> {
    let mut blocks = Blocks::default();
    let mut offset = 0;
    loop {
        let file = Arc::clone(source);
        let run = job.pool.run(move || next_data(&file, offset)).await.doing(what)?.doing(what)?;
        let Run { start, end, is_end } = run;
        job.progress.moved(start - offset);
        offset = start;
        while offset < end {
            let data = read_local(job, source, offset, PIECE.min(end - offset), what).await?;
            if data.is_empty() {
                // Somebody has cut the file meanwhile.
                return Ok(blocks);
            }
            blocks.add(offset, &data);
            let length = data.len() as u64;
            copy.content.write(offset, data).await.doing(what)?;
            job.progress.moved(length);
            offset += length;
        }
        if is_end {
            break;
        }
    }
    if copy.content.size() < offset {
        let caller = job.remote.caller();
        copy.content.truncate(offset, caller, v1::SetAttr::default()).await.doing(what)?;
    }
    Ok(blocks)
}

/// A run of data in a file; what is before it is a hole.
struct Run {
    start: u64,
    end: u64,
    /// Nothing follows.
    is_end: bool,
}

/// The next data from `offset` on: lseek(2) with SEEK_DATA and SEEK_HOLE.
fn next_data(file: &File, offset: u64) -> io::Result<Run> {
    use rustix::io::Errno;
    let size = file.metadata()?.len();
    if offset >= size {
        return Ok(Run { start: offset, end: offset, is_end: true });
    }
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => {
            let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
            Ok(Run { start, end, is_end: end >= size })
        }
        // Only a hole is left.
        Err(Errno::NXIO) => Ok(Run { start: size, end: size, is_end: true }),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Run { start: offset, end: size, is_end: true }),
        Err(error) => Err(error.into()),
    }
}

/// Reads up to `length` bytes; less only at the end of the file.
async fn read_local(
    job: &Job,
    file: &Arc<File>,
    offset: u64,
    length: u64,
    what: &str,
) -> Result<Bytes, Failure> {
    let file = Arc::clone(file);
    let read = job.pool.run(move || {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut buffer = BytesMut::zeroed(length);
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok::<_, io::Error>(buffer.freeze())
    });
    read.await.doing(what)?.doing(what)
}

/// Compares what was read here with the checksums that the cluster keeps and, where asked, with
/// what another session reads back.
async fn verify(job: &Job, copy: &RemoteFile, blocks: &Blocks, what: &str) -> Result<(), Failure> {
    let size = copy.content.size();
    let (extents, chunks) = job.cluster.layout(copy.attr.inode.get(), size).await?;
    if let Some(offset) = blocks.differs(&extents, &chunks) {
        return Err(mismatch(what, offset));
    }
    match &job.verifier {
        Some(verifier) => read_back(verifier, copy.attr.inode, size, blocks, what).await,
        None => Ok(()),
    }
}

async fn read_back(
    verifier: &Remote,
    inode: InodeId,
    size: u64,
    blocks: &Blocks,
    what: &str,
) -> Result<(), Failure> {
    let file = verifier.open(inode).await.doing(what)?;
    if file.content.size() != size {
        return Err(mismatch(what, file.content.size().min(size)));
    }
    let mut offset = 0;
    while offset < size {
        // Holes have nothing to compare with.
        offset = match file.content.seek(offset, true).await {
            Ok(data) => data,
            Err(error) if error.kind() == ErrorKind::NoSuchOffset => break,
            Err(error) => return Err(error).doing(what),
        };
        let start = offset - offset % PIECE;
        let length = PIECE.min(size - start);
        let data =
            file.content.read(start, usize::try_from(length).unwrap_or(usize::MAX)).await.doing(what)?;
        if data.len() as u64 != length || blocks.of(start, length).is_some_and(|crc| crc != crc32c(&data)) {
            return Err(mismatch(what, start));
        }
        offset = start + length;
    }
    Ok(())
}

fn mismatch(what: &str, offset: u64) -> Failure {
    Failure::new(what, format!("what the cluster keeps differs from the source at byte {offset}"))
        .next("did the source change meanwhile? run the command again")
        .exit(Exit::Unhealthy)
}
