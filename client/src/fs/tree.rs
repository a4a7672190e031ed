//! Whole trees and whole files: emptying a directory, copying.

use std::ops::ControlFlow;
use std::path::Path;

use cairn_proto::v1;
use cairn_proto::v1::mutation::Op;
use cairn_proto::{ErrorKind, InodeId};

use super::{Files, WriteOptions, bytes_of, unlink_of};
use crate::vfs::MAY_READ;
use crate::{Attr, ClientError, DirEntry, FileContent, Kind, Result};

/// Removals sent in one request.
const BATCH: usize = 512;

/// A directory that is being emptied.
struct Level {
    directory: InodeId,
    /// Directories in it that are still to be emptied.
    left: Vec<DirEntry>,
    /// The entry that it is itself, in the directory above.
    entry: Option<DirEntry>,
}

impl Files {
    /// Removes everything below a directory; how many names went. Uses no recursion, so that depth
    /// costs no stack.
    pub(super) async fn empty(&self, directory: InodeId) -> Result<u64> {
        let mut removed = 0;
        let mut levels = vec![self.level(directory, None, &mut removed).await?];
        while let Some(level) = levels.last_mut() {
            if let Some(below) = level.left.pop() {
                let next = self.level(below.inode, Some(below), &mut removed).await?;
                levels.push(next);
                continue;
            }
            let Some(done) = levels.pop() else { break };
            if let (Some(above), Some(entry)) = (levels.last(), done.entry) {
                let rmdir = v1::Rmdir { parent: above.directory.get(), name: entry.name.to_bytes() };
                self.apply(Op::Rmdir(rmdir)).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes what is no directory in `directory`, in batches, and lists the directories.
    async fn level(&self, directory: InodeId, entry: Option<DirEntry>, removed: &mut u64) -> Result<Level> {
        let (mut files, mut left) = (Vec::new(), Vec::new());
        self.each_entry(directory, |entry| {
            match entry.kind {
                Kind::Directory => left.push(entry),
                _ => files.push(unlink_of(directory, &entry.name)),
            }
            ControlFlow::Continue(())
        })
        .await?;
        while !files.is_empty() {
            let rest = files.split_off(files.len().min(BATCH));
            let batch = std::mem::replace(&mut files, rest);
            for result in self.coordinator().apply_many(batch, &self.caller).await? {
                match result {
                    Ok(_) => *removed += 1,
                    Err(error) if error.kind() == ErrorKind::NotFound => {} // somebody was faster
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Level { directory, left, entry })
    }

    /// Copies the content of a file: extents are shared, no byte moves. Gives the bytes copied.
    pub async fn copy_file(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        options: WriteOptions,
    ) -> Result<u64> {
        let may_read = |source: &Attr| {
            if source.kind != Kind::File {
                return Err(ClientError::new(
                    ErrorKind::InvalidArgument,
                    "only a regular file can be copied",
                ));
            }
            self.check(source, MAY_READ)
        };
        let (guard, layout) = self.find_and_open(bytes_of(from.as_ref()), may_read).await?;
        let source = layout.attr.inode;
        let content = self.client.content(source, &layout.attr);
        content.refresh(&layout.attr.clone(), Some(layout));
        let target = self.create(to, options).await?;
        if target.attr().inode == source {
            return Err(ClientError::new(ErrorKind::InvalidArgument, "source and target are the same file"));
        }
        let copied = self.clone_whole(&content, target.content(), content.size()).await?;
        target.finish().await?;
        drop(guard);
        Ok(copied)
    }

    async fn clone_whole(&self, from: &FileContent, to: &FileContent, size: u64) -> Result<u64> {
        let mut copied = 0;
        while copied < size {
            let left = size - copied;
            match FileContent::clone_from(to, from, copied, copied, left, &self.caller).await? {
                0 => break, // the source has become shorter
                more => copied += more,
            }
        }
        Ok(copied)
    }

    /// Attributes of an inode by its number.
    pub async fn stat_inode(&self, inode: InodeId) -> Result<Attr> {
        self.coordinator().get_attr(inode).await
    }
}
