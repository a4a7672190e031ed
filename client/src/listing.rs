//! Pages of directories as the coordinator gives them, checked. They stay in the compact form that they
//! travel in: a mount shows ten thousand entries to its kernel without an allocation for each.

use std::collections::BTreeSet;
use std::time::Duration;

use cairn_proto::listing::{Entries, EntryRef};
use cairn_proto::{FileName, InodeId, v1};

use crate::attr::{Attr, Kind};
use crate::error::{ClientError, Result};
use crate::layout::Layout;
use crate::session::leases::Era;

/// Whose wrong messages these are.
const PEER: &str = "the coordinator";

/// A part of a directory.
#[derive(Debug, Clone)]
pub struct DirPage {
    /// In the directory's order, without "." and "..".
    entries: Entries,
    kinds: Vec<Kind>,
    /// Of each entry, when asked for; else none at all.
    attrs: Vec<Attr>,
    /// Nothing follows.
    pub end: bool,
    /// Of the directory itself.
    pub directory: Attr,
    /// When the coordinator began that gave it.
    started_ns: i64,
}

/// The read leases that came with a directory, or with a part of it.
#[derive(Debug)]
pub(crate) struct Covering {
    pub(crate) grant: u64,
    /// At least, counted from the request.
    pub(crate) lasts: Duration,
    /// The entries whose inodes they do not cover.
    pub(crate) without: BTreeSet<usize>,
    /// Where the bytes of short files are.
    pub(crate) layouts: Vec<Layout>,
}

/// What is wanted with a listing besides entries and read leases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// Where the bytes of short files are.
    pub(crate) layouts: bool,
    /// A write lease on the directory.
    pub(crate) write_lease: bool,
    /// Read leases also when the page is a part of the directory.
    pub(crate) part: bool,
}

/// The leases that came with a page.
#[derive(Debug)]
pub(crate) struct PageLeases {
    /// When it was asked.
    pub(crate) era: Era,
    /// The number of the write lease on the directory.
    pub(crate) write: Option<u64>,
    pub(crate) reads: Option<Covering>,
}

impl PageLeases {
    /// Parts the answer to what was asked in `era`: what is behind `after` in a directory, with attributes.
    pub(crate) fn split(mut answer: v1::ReadDirResponse, after: u64, era: Era) -> Result<(DirPage, Self)> {
        let (grant, lasts) = (answer.lease_grant, Duration::from_millis(answer.lease_ms.into()));
        let (layouts, unleased) = (std::mem::take(&mut answer.layouts), std::mem::take(&mut answer.unleased));
        let write_lease = answer.write_lease.take();
        let page = DirPage::from_wire(answer, after, true)?;
        let layout = |known: v1::ShortLayout| {
            let attr = page.attrs.get(known.entry as usize);
            let attr = attr.ok_or_else(|| ClientError::protocol(PEER, "a layout of no entry"))?.clone();
            let covered = attr.size;
            Layout::checked(attr, (0, covered), known.extents, known.chunks)
        };
        let reads = Covering {
            grant,
            lasts,
            without: unleased.into_iter().map(|at| at as usize).collect(),
            layouts: layouts.into_iter().map(layout).collect::<Result<_>>()?,
        };
        let is_it = |lease: &v1::Lease| lease.inode == page.directory.inode.get();
        let write = write_lease.filter(is_it).map(|lease| lease.grant);
        Ok((page, Self { era, write, reads: (grant > 0).then_some(reads) }))
    }
}

/// One name in a directory, with all that belongs to it.
#[derive(Debug, Clone)]
pub struct DirEntry {
    /// The name.
    pub name: FileName,
    /// What it names.
    pub inode: InodeId,
    /// What that is.
    pub kind: Kind,
    /// Goes on behind this entry.
    pub cookie: u64,
    /// When asked for.
    pub attr: Option<Attr>,
}

/// The same, within its page.
#[derive(Debug, Clone, Copy)]
pub struct DirEntryRef<'a> {
    /// The name, a valid one.
    pub name: &'a [u8],
    /// What it names.
    pub inode: InodeId,
    /// What that is.
    pub kind: Kind,
    /// Goes on behind this entry.
    pub cookie: u64,
    /// When asked for.
    pub attr: Option<&'a Attr>,
}

impl DirPage {
    /// Checks the answer to a request for entries behind `after`, with or without attributes.
    pub(crate) fn from_wire(page: v1::ReadDirResponse, after: u64, attributes: bool) -> Result<Self> {
        let broken = |what: &dyn std::fmt::Display| ClientError::protocol(PEER, what);
        let entries = Entries::decode(&page.entries).map_err(|error| broken(&error))?;
        if let Some(first) = entries.first_cookie().filter(|&first| first <= after) {
            return Err(broken(&format_args!("the cookie {first} behind {after}")));
        }
        let kind = |entry: EntryRef<'_>| Kind::known(entry.kind);
        let kinds: Option<Vec<_>> = entries.iter().map(kind).collect();
        let kinds = kinds.ok_or_else(|| broken(&"an entry of no kind"))?;
        let attrs: Vec<_> = page.attrs.into_iter().map(Attr::from_wire).collect::<Result<_>>()?;
        let expected = if attributes { entries.len() } else { 0 };
        let fit = |(attr, entry): (&Attr, EntryRef<'_>)| attr.inode == entry.inode;
        if attrs.len() != expected || !attrs.iter().zip(entries.iter()).all(fit) {
            return Err(broken(&"attributes that do not belong to the entries beside them"));
        }
        let directory = Attr::required(page.directory)?;
        Ok(Self { entries, kinds, attrs, end: page.end, directory, started_ns: page.started_ns })
    }

    /// Whether both show the same state of one directory: every change of an entry raises its version.
    pub fn is_of_same_state(&self, other: &Self) -> bool {
        let state = |page: &Self| (page.directory.inode, page.directory.version, page.started_ns);
        state(self) == state(other)
    }

    /// Bytes of memory that a page of names takes.
    pub fn size_bytes(&self) -> usize {
        self.entries.size_bytes() + size_of_val::<[Kind]>(&self.kinds)
    }

    /// [`Self::size_bytes`], and those of the attributes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.size_bytes() + size_of_val::<[Attr]>(&self.attrs)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries from the one at `first` on.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = DirEntryRef<'_>> {
        let kinds = self.kinds.get(first..).unwrap_or_default();
        let attrs = self.attrs.get(first..).unwrap_or_default();
        let attrs = attrs.iter().map(Some).chain(std::iter::repeat(None));
        let entries = self.entries.iter_from(first).zip(kinds).zip(attrs);
        entries.map(|((entry, &kind), attr)| {
            let EntryRef { name, inode, cookie, .. } = entry;
            DirEntryRef { name, inode, kind, cookie, attr }
        })
    }

    /// The entry at `index`.
    pub fn get(&self, index: usize) -> Option<DirEntryRef<'_>> {
        let EntryRef { name, inode, cookie, .. } = self.entries.get(index)?;
        let kind = *self.kinds.get(index)?;
        Some(DirEntryRef { name, inode, kind, cookie, attr: self.attrs.get(index) })
    }

    /// Where entries begin that stand behind `cookie` in the directory.
    pub fn behind(&self, cookie: u64) -> usize {
        self.entries.behind(cookie)
    }

    /// The cookie of the last entry.
    pub fn last_cookie(&self) -> Option<u64> {
        self.entries.last_cookie()
    }

    /// The entries, each on its own.
    pub fn into_entries(self) -> impl Iterator<Item = DirEntry> {
        let Self { entries, kinds, attrs, .. } = self;
        let mut attrs = attrs.into_iter();
        kinds.into_iter().enumerate().filter_map(move |(index, kind)| {
            let EntryRef { inode, cookie, .. } = entries.get(index)?;
            Some(DirEntry { name: entries.name(index)?, inode, kind, cookie, attr: attrs.next() })
        })
    }
}

#[cfg(test)]
mod tests;
