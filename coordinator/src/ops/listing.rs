//! Pages of directories, from committed state.

use cairn_proto::listing::{Builder, EntryRef};
use cairn_proto::{ErrorKind, InodeId, v1};

use super::read;
use crate::error::OpError;
use crate::store::{DentryRef, Inode, Kind, Reader};

/// A page of a directory.
#[derive(Debug)]
pub(crate) struct Page {
    /// The directory itself, in the state whose entries these are.
    pub(crate) directory: Inode,
    pub(crate) entries: Builder,
    /// What the entries name, when asked for.
    pub(crate) inodes: Vec<Inode>,
    /// Nothing follows.
    pub(crate) end: bool,
}

/// What a page shall hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) directory: InodeId,
    /// Entries behind this cookie; 0 starts.
    pub(crate) after: u64,
    /// Entries at most.
    pub(crate) limit: usize,
    /// Whether the inodes of the entries come along.
    pub(crate) inodes: bool,
    /// The page ends when it has about so many bytes.
    pub(crate) bytes_max: usize,
}

/// A directory to be listed. `StaleHandle`: it is gone.
pub(crate) fn directory(reader: &dyn Reader, id: InodeId) -> Result<Inode, OpError> {
    let directory = read::inode(reader, id)?;
    match directory.kind {
        Kind::Directory => Ok(directory),
        _ => Err(OpError::new(ErrorKind::NotDirectory, format!("inode {id} is no directory"))),
    }
}

/// A page. The reader is a consistent one, so that the entries are those of the directory's version.
pub(crate) fn page(reader: &dyn Reader, wanted: Wanted) -> Result<Page, OpError> {
    let Wanted { directory: id, after, limit, .. } = wanted;
    let directory = directory(reader, id)?;
    let expected = usize::try_from(directory.size).unwrap_or(limit).min(limit);
    let mut page =
        Page { directory, entries: Builder::with_capacity(expected), inodes: Vec::new(), end: false };
    let mut bytes = 0;
    let Page { entries, inodes, .. } = &mut page;
    let mut add = |entry: DentryRef<'_>, inode: Option<Inode>| {
        bytes += entry.name.len() + ENTRY_BYTES;
        bytes += inode.as_ref().map_or(0, |inode| inode.symlink_target.len() + ATTR_BYTES);
        let DentryRef { name, child, kind, cookie } = entry;
        entries.push(EntryRef { name, inode: child, kind: kind.into(), cookie });
        inodes.extend(inode);
        bytes < wanted.bytes_max
    };
    let mut cut = false;
    if wanted.inodes {
        reader.read_dir_inodes(id, after, limit, &mut |entry, inode| {
            cut = !add(entry, Some(inode));
            !cut
        })?;
    } else {
        reader.read_dir(id, after, limit, &mut |entry| {
            cut = !add(entry, None);
            !cut
        })?;
    }
    page.end = !cut && page.entries.len() < limit;
    Ok(page)
}

/// An entry on the wire besides its name, at most.
const ENTRY_BYTES: usize = 24;
/// Attributes on the wire besides a symlink's target, at most.
const ATTR_BYTES: usize = 160;

impl From<Kind> for v1::InodeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::File,
            Kind::Directory => Self::Directory,
            Kind::Symlink => Self::Symlink,
            Kind::Fifo => Self::Fifo,
            Kind::Socket => Self::Socket,
            Kind::CharDevice => Self::CharDevice,
            Kind::BlockDevice => Self::BlockDevice,
        }
    }
}
