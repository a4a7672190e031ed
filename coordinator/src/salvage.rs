//! Names and layouts from a metadata store that may be old or damaged: for `cairn salvage`.
//!
//! The store is a copy, so that nothing of the original is touched. Rows that do not fit their checksums
//! are left out and counted; the rest is given as far as it can be reached from the root.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cairn_proto::InodeId;
use cairn_proto::checksum::crc32c;

use crate::archive::restore::{RestoreOptions, restore};
use crate::server::CoordinatorError;
use crate::store::sqlite::SoundRows;
use crate::store::{Chunk, Dentry, Extent, Inode, Kind, Row, StoreError, Table};

/// The first bytes of an SQLite database.
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
/// Directories within one another; more can only come from damage.
const DEPTH_MAX: usize = 4096;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SalvagedKind {
    /// A directory; what it holds follows.
    Directory,
    /// A file with its extents.
    File(Vec<SalvagedExtent>),
    /// A symlink with its target.
    Symlink(Vec<u8>),
    /// A device, fifo or socket.
    Special,
}

/// A run of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SalvagedExtent {
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Where they are.
    pub chunk: u64,
    /// And from which byte on.
    pub chunk_offset: u64,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SalvagedEntry {
    /// Names from the root down; none holds a slash, a NUL, or is `.` or `..`.
    pub path: Vec<Vec<u8>>,
    /// The inode, which several names may share.
    pub inode: u64,
    /// What it is.
    pub kind: SalvagedKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a file.
    pub size: u64,
    /// Last change of the content, ns.
    pub mtime_ns: i64,
}

/// Metadata to salvage from.
#[derive(Debug, Default)]
pub struct SalvagedMetadata {
    inodes: BTreeMap<u64, Inode>,
    children: BTreeMap<u64, Vec<Dentry>>,
    extents: BTreeMap<u64, Vec<SalvagedExtent>>,
    checksums: BTreeMap<u64, u32>,
    /// Rows that do not fit their checksums.
    pub damaged_rows: u64,
}

impl SalvagedMetadata {
    /// Reads a `meta.db`, or anything that `cairn coordinator restore` takes. `work` is an empty directory
    /// for a copy.
    ///
    /// # Errors
    /// It can not be read at all.
    #[allow(clippy::disallowed_methods)] // files of the person at the machine, copied
    pub async fn read(metadata: &Path, work: &Path) -> Result<Self, CoordinatorError> {
        let mut start = [0; SQLITE_MAGIC.len()];
        let database = std::fs::File::open(metadata)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start))
            .is_ok_and(|()| start == SQLITE_MAGIC);
        let copy = work.join("meta.db");
        if database {
            std::fs::copy(metadata, &copy)?;
            let log = beside(metadata, "-wal");
            if log.exists() {
                std::fs::copy(log, beside(&copy, "-wal"))?;
            }
        } else {
            let from = vec![metadata.display().to_string()];
            restore(RestoreOptions { from, data: work.to_owned(), until: None }).await?;
        }
        Ok(Self::of_store(&copy)?)
    }

    fn of_store(file: &Path) -> Result<Self, StoreError> {
        let mut found = Self::default();
        let rows = SoundRows::open(file)?;
        for table in [Table::Inode, Table::Dentry, Table::Extent, Table::Chunk] {
            found.damaged_rows += rows.each(table, &mut |row| found.add(row))?;
        }
        Ok(found)
    }

    fn add(&mut self, row: Row) {
        match row {
            Row::Inode(inode) => drop(self.inodes.insert(inode.id.get(), inode)),
            Row::Dentry(entry) => self.children.entry(entry.parent.get()).or_default().push(entry),
            Row::Chunk(Chunk { id, crc32c, .. }) => drop(self.checksums.insert(id.get(), crc32c)),
            Row::Extent(Extent { inode, offset, length, chunk, chunk_offset }) => {
                let chunk = chunk.get();
                let extent = SalvagedExtent { offset, length, chunk, chunk_offset };
                self.extents.entry(inode.get()).or_default().push(extent);
            }
            _ => {}
        }
    }

    /// Whether a chunk has the content that was committed, as far as that is known.
    pub fn fits(&self, chunk: u64, content: &[u8]) -> bool {
        self.checksums.get(&chunk).is_none_or(|&expected| crc32c(content) == expected)
    }

    /// The chunks that files refer to.
    pub fn chunks(&self) -> BTreeSet<u64> {
        self.extents.values().flatten().map(|extent| extent.chunk).collect()
    }

    /// Every name that can be reached from the root, directories before what they hold. Returns how many
    /// names could not be used.
    pub fn walk(&self, visit: &mut dyn FnMut(SalvagedEntry)) -> u64 {
        let mut lost = 0;
        let mut seen = BTreeSet::from([InodeId::ROOT.get()]);
        let mut todo = vec![(InodeId::ROOT.get(), Vec::new())];
        while let Some((directory, path)) = todo.pop() {
            for entry in self.children.get(&directory).into_iter().flatten() {
                let inode = self.inodes.get(&entry.child.get());
                let (true, Some(inode)) = (is_plain(&entry.name) && path.len() < DEPTH_MAX, inode) else {
                    lost += 1;
                    continue;
                };
                let mut path = path.clone();
                path.push(entry.name.to_vec());
                let is_directory = inode.kind == Kind::Directory;
                if is_directory && !seen.insert(inode.id.get()) {
                    lost += 1;
                    continue;
                }
                visit(self.entry(inode, path.clone()));
                if is_directory {
                    todo.push((inode.id.get(), path));
                }
            }
        }
        lost
    }

    fn entry(&self, inode: &Inode, path: Vec<Vec<u8>>) -> SalvagedEntry {
        let kind = match inode.kind {
            Kind::Directory => SalvagedKind::Directory,
            Kind::File => SalvagedKind::File(self.extents.get(&inode.id.get()).cloned().unwrap_or_default()),
            Kind::Symlink => SalvagedKind::Symlink(inode.symlink_target.to_vec()),
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => SalvagedKind::Special,
        };
        let Inode { id, mode, uid, gid, size, mtime_ns, .. } = *inode;
        SalvagedEntry { path, inode: id.get(), kind, mode, uid, gid, size, mtime_ns }
    }
}

fn is_plain(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
