//! Entries of a directory in one piece: how a page of a listing travels, and how it is kept.
//!
//! Ten thousand entries are a few allocations here instead of one for each name. What is decoded comes
//! from the network: every value is checked before any of it can be seen, and what is allocated is a
//! small multiple of what has arrived, whatever that says.

use std::ops::Range;

use bytes::Bytes;
use prost::Message;

use crate::{FileName, IdError, InodeId, NameError, v1};

/// Why bytes from outside are no entries of a directory.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ListingError {
    /// They are not even a message.
    #[error("a listing can not be decoded: {0}")]
    Message(#[from] prost::DecodeError),
    /// Each column has one value for each entry.
    #[error("a listing of {lengths} names has {kinds} kinds, {inodes} inodes and {cookies} cookies")]
    Columns {
        /// Lengths of names.
        lengths: usize,
        /// Kinds.
        kinds: usize,
        /// Inode ids.
        inodes: usize,
        /// Cookies.
        cookies: usize,
    },
    /// The names are longer or shorter than their lengths.
    #[error("a listing has {names} bytes of names, whose lengths are {lengths} bytes together")]
    Lengths {
        /// Bytes of all names.
        names: usize,
        /// Sum of the lengths.
        lengths: usize,
    },
    /// What is no file name.
    #[error("a listing holds a name that is none: {0}")]
    Name(#[from] NameError),
    /// What is no inode id.
    #[error("a listing holds an inode that is none: {0}")]
    Inode(#[from] IdError),
    /// A step that leads out of all numbers.
    #[error("a listing has an inode {step} behind {before}")]
    InodeStep {
        /// The id before.
        before: u64,
        /// What follows.
        step: i64,
    },
    /// An unknown kind of inode.
    #[error("a listing holds an inode of kind {0}")]
    Kind(u8),
    /// Cookies rise, and are at most 2^63 - 1.
    #[error("a listing has a cookie {step} behind {before}")]
    Cookie {
        /// The cookie before.
        before: u64,
        /// What follows.
        step: u64,
    },
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// A valid file name.
    pub name: &'a [u8],
    /// What it names.
    pub inode: InodeId,
    /// What that is; never `Unspecified` when it was decoded.
    pub kind: v1::InodeKind,
    /// Its place in the directory: rises from entry to entry.
    pub cookie: u64,
}

/// Collects entries, to be sent.
#[derive(Debug, Default)]
pub struct Builder {
    names: Vec<u8>,
    lengths: Vec<u8>,
    kinds: Vec<u8>,
    inode_steps: Vec<i64>,
    cookie_steps: Vec<u64>,
    /// Of the entry before.
    inode: i64,
    cookie: u64,
}

impl Builder {
    /// With room for `entries`.
    pub fn with_capacity(entries: usize) -> Self {
        Self {
            names: Vec::with_capacity(entries * NAME_TYPICAL),
            lengths: Vec::with_capacity(entries),
            kinds: Vec::with_capacity(entries),
            inode_steps: Vec::with_capacity(entries),
            cookie_steps: Vec::with_capacity(entries),
            ..Self::default()
        }
    }

    /// Adds an entry; cookies rise. What breaks the rules of a listing is refused by who decodes it.
    pub fn push(&mut self, entry: EntryRef<'_>) {
        self.names.extend_from_slice(entry.name);
        self.lengths.push(u8::try_from(entry.name.len()).unwrap_or(u8::MAX));
        self.kinds.push(u8::try_from(i32::from(entry.kind)).unwrap_or(0));
        let inode = entry.inode.get().cast_signed();
        self.inode_steps.push(inode - self.inode); // both are ids, which are not negative
        self.cookie_steps.push(entry.cookie.saturating_sub(self.cookie));
        (self.inode, self.cookie) = (inode, entry.cookie);
    }

    /// Entries so far.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The form of the wire: a [`v1::DirEntries`].
    pub fn encode(self) -> Bytes {
        let Self { names, lengths, kinds, inode_steps, cookie_steps, .. } = self;
        let message = v1::DirEntries {
            names: names.into(),
            lengths: lengths.into(),
            kinds: kinds.into(),
            inode_steps,
            cookie_steps,
        };
        message.encode_to_vec().into()
    }
}

/// Bytes of a name, about, when room is made for many.
const NAME_TYPICAL: usize = 16;

/// What is known of one entry besides its name.
#[derive(Debug, Clone, Copy)]
struct Row {
    inode: InodeId,
    cookie: u64,
    /// Where its name ends in the names; it begins where the one before ends.
    end: u32,
    kind: v1::InodeKind,
}

/// Entries that were checked.
#[derive(Debug, Clone, Default)]
pub struct Entries {
    names: Bytes,
    rows: Box<[Row]>,
}

impl Entries {
    /// Checks what came over the wire.
    pub fn decode(encoded: &[u8]) -> Result<Self, ListingError> {
        Self::check(&v1::DirEntries::decode(encoded)?)
    }

    fn check(wire: &v1::DirEntries) -> Result<Self, ListingError> {
        let v1::DirEntries { names, lengths, kinds, inode_steps, cookie_steps } = wire;
        let count = lengths.len();
        if [kinds.len(), inode_steps.len(), cookie_steps.len()] != [count; 3] {
            return Err(ListingError::Columns {
                lengths: count,
                kinds: kinds.len(),
                inodes: inode_steps.len(),
                cookies: cookie_steps.len(),
            });
        }
        let sum: usize = lengths.iter().map(|&length| usize::from(length)).sum();
        let ends_fit = u32::try_from(sum).is_ok();
        if sum != names.len() || !ends_fit {
            return Err(ListingError::Lengths { names: names.len(), lengths: sum });
        }
        // Over all names at once: no early end, so that many bytes are compared in one instruction.
        if names.iter().fold(false, |found, &byte| found | (byte == b'/') | (byte == 0)) {
            return Err(NameError::Forbidden.into());
        }
        let mut rows = Vec::with_capacity(count);
        let (mut inode, mut cookie, mut end) = (0u64, 0u64, 0usize);
        let numbers = inode_steps.iter().zip(cookie_steps);
        for ((&length, &kind), (&inode_step, &cookie_step)) in lengths.iter().zip(kinds).zip(numbers) {
            let begin = end;
            end += usize::from(length);
            match names.get(begin..end) {
                Some([]) | None => return Err(NameError::Empty.into()),
                Some(b"." | b"..") => return Err(NameError::Forbidden.into()),
                Some(_) => {}
            }
            let out_of_range = ListingError::InodeStep { before: inode, step: inode_step };
            inode = inode.checked_add_signed(inode_step).ok_or(out_of_range)?;
            let next = cookie.checked_add(cookie_step).filter(|&next| next <= i64::MAX as u64);
            let next = next.filter(|&next| next > cookie);
            cookie = next.ok_or(ListingError::Cookie { before: cookie, step: cookie_step })?;
            rows.push(Row { inode: InodeId::new(inode)?, cookie, end: end as u32, kind: known(kind)? });
        }
        // A copy, because a slice of a message keeps the whole buffer that it was received in.
        Ok(Self { names: Bytes::copy_from_slice(names), rows: rows.into_boxed_slice() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of memory that they take.
    pub fn size_bytes(&self) -> usize {
        self.names.len() + size_of_val::<[Row]>(&self.rows)
    }

    /// Entries from the one at `first` on.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = EntryRef<'_>> {
        let rows = self.rows.get(first..).unwrap_or_default();
        let mut begin = self.begin(first);
        rows.iter().map(move |row| {
            let name = self.names.get(begin..row.end as usize).unwrap_or_default();
            begin = row.end as usize;
            EntryRef { name, inode: row.inode, kind: row.kind, cookie: row.cookie }
        })
    }

    /// The entry at `index`.
    pub fn get(&self, index: usize) -> Option<EntryRef<'_>> {
        self.iter_from(index).next()
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        self.iter_from(0)
    }

    /// The name of the entry at `index`, shared.
    pub fn name(&self, index: usize) -> Option<FileName> {
        let end = self.rows.get(index)?.end as usize;
        Some(FileName::checked(self.names.slice(Range { start: self.begin(index), end })))
    }

    /// Where the name of the entry at `index` begins.
    fn begin(&self, index: usize) -> usize {
        let before = index.checked_sub(1).and_then(|before| self.rows.get(before));
        before.map_or(0, |row| row.end as usize)
    }

    /// Where entries begin that stand behind `cookie` in the directory.
    pub fn behind(&self, cookie: u64) -> usize {
        self.rows.partition_point(|row| row.cookie <= cookie)
    }

    /// The first cookie.
    pub fn first_cookie(&self) -> Option<u64> {
        self.rows.first().map(|row| row.cookie)
    }

    /// The last cookie.
    pub fn last_cookie(&self) -> Option<u64> {
        self.rows.last().map(|row| row.cookie)
    }
}

fn known(kind: u8) -> Result<v1::InodeKind, ListingError> {
    match v1::InodeKind::try_from(i32::from(kind)) {
        Ok(v1::InodeKind::Unspecified) | Err(_) => Err(ListingError::Kind(kind)),
        Ok(kind) => Ok(kind),
    }
}

#[cfg(test)]
mod tests;
