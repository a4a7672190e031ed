//! Files as streams of bytes: many requests in flight, memory bounded by the client's budget.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cairn_proto::checksum::{combine, crc32c};
use cairn_proto::{ErrorKind, v1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::{Files, Last, bytes_of, resolve::Place};
use crate::vfs::{MAY_READ, MAY_WRITE};
use crate::{Attr, ClientError, FileContent, Kind, Layout, OpenGuard, Result};

/// Bytes of one piece of a stream.
const PIECE: usize = 1 << 20;
/// A file that is replaced between its look-up and its open so many times in a row is given up.
const OPEN_TRIES: usize = 64;
/// Pieces that a reader fetches at once.
const PIECES_AHEAD: usize = 8;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits of a file that is made.
    pub mode: u32,
    /// A file that exists makes it fail.
    pub new: bool,
    /// [`FileWriter::finish`] promises what fsync promises.
    pub durable: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { mode: 0o644, new: false, durable: false }
    }
}

/// What a transfer moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    /// How much.
    pub bytes: u64,
    /// CRC-32C of all of it.
    pub crc32c: u32,
}

impl Transferred {
    fn nothing() -> Self {
        Self { bytes: 0, crc32c: crc32c(b"") }
    }

    fn add(&mut self, piece: &[u8]) {
        self.crc32c = combine(self.crc32c, crc32c(piece), piece.len() as u64);
        self.bytes += piece.len() as u64;
    }
}

/// A file that is being read from some offset on. Dropping it closes the file.
pub struct FileReader {
    content: Arc<FileContent>,
    attr: Attr,
    _guard: OpenGuard,
    next: u64,
    end: u64,
    pieces: VecDeque<JoinHandle<Result<Bytes>>>,
}

impl FileReader {
    /// The file as it was opened.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// The next bytes, at most 1 MiB of them; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.pieces.len() < PIECES_AHEAD && self.next < self.end {
            let (content, offset) = (Arc::clone(&self.content), self.next);
            let len = (self.end - offset).min(PIECE as u64);
            self.next += len;
            // Pieces are at most 1 MiB, so the length fits.
            self.pieces.push_back(tokio::spawn(async move { content.read(offset, len as usize).await }));
        }
        let Some(piece) = self.pieces.pop_front() else { return Ok(None) };
        let piece = piece.await.map_err(|_| ClientError::Closed)??;
        if piece.is_empty() {
            self.stop(); // somebody has cut the file
            return Ok(None);
        }
        Ok(Some(piece))
    }

    fn stop(&mut self) {
        self.next = self.end;
        for piece in self.pieces.drain(..) {
            piece.abort();
        }
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A file that is being written from its start. Dropping it without [`Self::finish`] leaves what was
/// written so far.
pub struct FileWriter {
    content: Arc<FileContent>,
    attr: Attr,
    _guard: OpenGuard,
    durable: bool,
    written: Transferred,
}

impl FileWriter {
    /// The file as it was made or opened.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    pub(super) fn content(&self) -> &FileContent {
        &self.content
    }

    /// Appends bytes; waits while the memory budget is used up.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let offset = self.written.bytes;
        self.written.add(&data);
        self.content.write(offset, data).await
    }

    /// Stores and commits everything.
    pub async fn finish(self) -> Result<Transferred> {
        if self.durable {
            self.content.fsync().await?;
        } else {
            self.content.flush().await?;
        }
        Ok(self.written)
    }
}

impl Files {
    /// Opens a file for reading from `offset` on, `len` bytes or to its end.
    pub async fn read(&self, path: impl AsRef<Path>, offset: u64, len: Option<u64>) -> Result<FileReader> {
        let may_read = |attr: &Attr| regular(attr).and_then(|()| self.check(attr, MAY_READ));
        let (guard, layout) = self.find_and_open(bytes_of(path.as_ref()), may_read).await?;
        Ok(self.reader(guard, layout, offset, len))
    }

    /// As [`Self::read`], of a file that was found already.
    pub async fn read_inode(&self, attr: &Attr, offset: u64, len: Option<u64>) -> Result<FileReader> {
        regular(attr)?;
        self.check(attr, MAY_READ)?;
        let (guard, layout) = self.coordinator().open(attr.inode).await?;
        Ok(self.reader(guard, layout, offset, len))
    }

    /// Opens what a path leads to, also when others replace it again and again. `may`: whether the caller may.
    pub(super) async fn find_and_open(
        &self,
        path: &[u8],
        may: impl Fn(&Attr) -> Result<()>,
    ) -> Result<(OpenGuard, Layout)> {
        let mut tries = 0;
        loop {
            let attr = self.resolve(path, Last::Follow).await?;
            may(&attr)?;
            tries += 1;
            match self.coordinator().open(attr.inode).await {
                // Replaced since it was found: the name leads elsewhere by now.
                Err(error) if error.kind() == ErrorKind::StaleHandle && tries < OPEN_TRIES => {}
                opened => return opened,
            }
        }
    }

    fn reader(&self, guard: OpenGuard, layout: Layout, offset: u64, len: Option<u64>) -> FileReader {
        let attr = layout.attr.clone();
        let content = self.client.content(attr.inode, &attr);
        content.refresh(&attr, Some(layout));
        let size = content.size();
        let end = len.map_or(size, |len| offset.saturating_add(len).min(size));
        FileReader { content, attr, _guard: guard, next: offset, end, pieces: VecDeque::new() }
    }

    /// All of a file, which must not be larger than `max` bytes.
    pub async fn read_all(&self, path: impl AsRef<Path>, max: u64) -> Result<Bytes> {
        let mut reader = self.read(path, 0, None).await?;
        let size = reader.end;
        if size > max {
            let message = format!("the file has {size} bytes; at most {max} were expected");
            return Err(ClientError::new(ErrorKind::TooBig, message));
        }
        let mut all = BytesMut::new();
        while let Some(piece) = reader.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Makes a file, or empties the one that is there, and opens it for writing.
    pub async fn create(&self, path: impl AsRef<Path>, options: WriteOptions) -> Result<FileWriter> {
        let path = bytes_of(path.as_ref());
        let place = if options.new { self.place(path).await? } else { self.place_followed(path).await? };
        let Place::Entry { parent, name } = place else {
            return Err(ClientError::new(ErrorKind::IsDirectory, "it is a directory"));
        };
        let create = v1::Create {
            parent: parent.get(),
            name: name.to_bytes(),
            kind: Kind::File.to_wire().into(),
            mode: options.mode & 0o7777,
            exclusive: options.new,
            ..v1::Create::default()
        };
        let (guard, applied) = self.coordinator().create_open(create, &self.caller).await?;
        let mut attr = applied.into_attr()?;
        regular(&attr)?;
        if attr.uid != self.caller.uid {
            self.check(&attr, MAY_WRITE)?; // somebody else's, so it was there already
        }
        let content = self.client.content(attr.inode, &attr);
        if attr.size > 0 || content.size() > 0 {
            attr = content.truncate(0, &self.caller, v1::SetAttr::default()).await?;
        }
        let (durable, written) = (options.durable, Transferred::nothing());
        Ok(FileWriter { content, attr, _guard: guard, durable, written })
    }

    /// Stores everything that `source` gives. `progress` is told the bytes of each piece.
    pub async fn upload(
        &self,
        mut source: impl AsyncRead + Unpin,
        path: impl AsRef<Path>,
        options: WriteOptions,
        mut progress: impl FnMut(u64),
    ) -> Result<Transferred> {
        let mut writer = self.create(path, options).await?;
        loop {
            let mut piece = BytesMut::with_capacity(PIECE);
            while piece.len() < PIECE {
                match source.read_buf(&mut piece).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => return Err(local("the source can not be read", &error)),
                }
            }
            if piece.is_empty() {
                return writer.finish().await;
            }
            let len = piece.len() as u64;
            writer.write(piece.freeze()).await?;
            progress(len);
        }
    }

    /// Gives everything in a file to `target`. `progress` is told the bytes of each piece.
    pub async fn download(
        &self,
        path: impl AsRef<Path>,
        mut target: impl AsyncWrite + Unpin,
        mut progress: impl FnMut(u64),
    ) -> Result<Transferred> {
        let mut reader = self.read(path, 0, None).await?;
        let mut moved = Transferred::nothing();
        while let Some(piece) = reader.next().await? {
            target.write_all(&piece).await.map_err(|error| local("the target can not be written", &error))?;
            moved.add(&piece);
            progress(piece.len() as u64);
        }
        target.flush().await.map_err(|error| local("the target can not be written", &error))?;
        Ok(moved)
    }
}

fn regular(attr: &Attr) -> Result<()> {
    match attr.kind {
        Kind::File => Ok(()),
        Kind::Directory => Err(ClientError::new(ErrorKind::IsDirectory, "it is a directory")),
        _ => Err(ClientError::new(ErrorKind::InvalidArgument, "it is not a regular file")),
    }
}

fn local(what: &str, error: &std::io::Error) -> ClientError {
    ClientError::new(ErrorKind::Io, format!("{what}: {error}"))
}
