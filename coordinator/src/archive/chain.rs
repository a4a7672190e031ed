//! Which files of a place belong together: a base, and the way from it through the log files.
//!
//! Sorted by (term, sequence), log files form *chains*: one begins with a file whose header says so, and
//! goes on as long as each file continues where, and with the digest that, one before it has reached. A
//! file may end in a torn record, and may repeat records of the one before it: both come from appends
//! that failed, after which a new file was begun. A new chain begins where commits could not be shipped;
//! it is of use once a base was made in it.

use std::sync::Arc;

use bytes::BytesMut;
use cairn_proto::ClusterId;

use super::error::ArchiveError;
use super::file::{
    END_SIZE, FileHeader, FileKind, HEADER_SIZE, Parsed, Record, RecordKind, parse, parse_name,
};
use super::place::{PIECE, Place};

/// A file of the place that has a sound header.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) length: u64,
    pub(crate) header: FileHeader,
}

impl Found {
    fn order(&self) -> (u64, u64) {
        (self.header.term, self.header.sequence)
    }
}

/// What a place holds.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    /// Complete bases with their number of rows, oldest first.
    pub(crate) bases: Vec<(Found, u64)>,
    /// Bases that were never finished.
    pub(crate) unfinished: Vec<Found>,
    /// Log files, oldest first.
    pub(crate) logs: Vec<Found>,
    /// Files with a name of ours that can not be used, and why.
    pub(crate) unusable: Vec<(String, &'static str)>,
}

impl Catalogue {
    /// `Unusable`: the place belongs to another cluster than `expected`.
    pub(crate) async fn read(place: &Place, expected: Option<ClusterId>) -> Result<Self, ArchiveError> {
        let mut found = Self::default();
        for listed in place.list().await? {
            if parse_name(&listed.name).is_none() {
                continue;
            }
            let bytes = place.read(&listed.name, 0, HEADER_SIZE).await?;
            let header = match FileHeader::decode(&bytes) {
                Ok(header) => header,
                Err(why) => {
                    found.unusable.push((listed.name, why));
                    continue;
                }
            };
            if let Some(expected) = expected.filter(|&expected| expected != header.cluster) {
                return Err(ArchiveError::Unusable(format!(
                    "{} holds the metadata of cluster {}, this is {expected}; choose another place",
                    place.describe(),
                    header.cluster
                )));
            }
            let file = Found { name: listed.name, length: listed.length, header };
            match header.kind {
                FileKind::Log => found.logs.push(file),
                FileKind::Base => match rows_at_end(place, &file).await? {
                    Some(rows) => found.bases.push((file, rows)),
                    None => found.unfinished.push(file),
                },
            }
        }
        found.logs.sort_by_key(Found::order);
        found.bases.sort_by_key(|(file, _)| file.order());
        Ok(found)
    }

    /// The log files of the chain in which `base` was made, oldest first.
    pub(crate) fn chain_of(&self, base: &Found) -> &[Found] {
        let starts = |file: &Found| file.header.begins_chain();
        let begin = self.logs.iter().rposition(|file| starts(file) && file.order() <= base.order());
        // The first files of a long chain go with the bases that needed them.
        let begin = match (begin, self.logs.first()) {
            (Some(begin), _) => begin,
            (None, Some(first)) if !starts(first) => 0,
            _ => return &[],
        };
        let end =
            self.logs.iter().skip(begin + 1).position(starts).map_or(self.logs.len(), |n| begin + 1 + n);
        self.logs.get(begin..end).unwrap_or_default()
    }
}

/// How many rows a base has; `None` when it was not finished.
pub(super) async fn rows_at_end(place: &Place, file: &Found) -> Result<Option<u64>, ArchiveError> {
    let Some(at) = file.length.checked_sub(END_SIZE as u64).filter(|&at| at >= HEADER_SIZE as u64) else {
        return Ok(None);
    };
    let bytes = place.read(&file.name, at, END_SIZE).await?;
    match parse(&bytes) {
        Parsed::Record { record, size: END_SIZE, .. } if record.kind == RecordKind::End => {
            Ok(record.body.as_ref().try_into().ok().map(u64::from_le_bytes))
        }
        _ => Ok(None),
    }
}

/// What comes next in a file.
#[derive(Debug)]
pub(crate) enum Step {
    Record {
        record: Record,
        digest: u64,
    },
    /// The file ends behind a whole record.
    End,
    /// From `offset` on there is no record that fits.
    Bad {
        offset: u64,
        why: &'static str,
    },
}

/// Reads one file from its first record on and checks that each fits the one before.
#[derive(Debug)]
pub(crate) struct FileScan {
    place: Arc<Place>,
    name: String,
    length: u64,
    /// Where `buffer` begins in the file.
    offset: u64,
    buffer: BytesMut,
    previous: u64,
    sequence: u64,
}

impl FileScan {
    pub(crate) fn new(place: Arc<Place>, file: &Found) -> Self {
        let sequence = match file.header.kind {
            FileKind::Base => 0,
            FileKind::Log => file.header.sequence,
        };
        Self {
            place,
            name: file.name.clone(),
            length: file.length,
            offset: HEADER_SIZE as u64,
            buffer: BytesMut::new(),
            previous: file.header.first_previous(),
            sequence,
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Step, ArchiveError> {
        let mut need = 1;
        loop {
            if !self.fill(need).await? {
                return Ok(match self.buffer.is_empty() {
                    true => Step::End,
                    false => Step::Bad { offset: self.offset, why: "the record is cut off" },
                });
            }
            match parse(&self.buffer) {
                Parsed::Short(more) => need = more,
                Parsed::Bad(why) => return Ok(Step::Bad { offset: self.offset, why }),
                Parsed::Record { record, digest, size } => {
                    if record.previous != self.previous || record.sequence != self.sequence + 1 {
                        let why = "the record does not follow the one before it";
                        return Ok(Step::Bad { offset: self.offset, why });
                    }
                    let _ = self.buffer.split_to(size);
                    self.offset += size as u64;
                    (self.previous, self.sequence) = (digest, record.sequence);
                    return Ok(Step::Record { record, digest });
                }
            }
        }
    }

    /// Whether `need` bytes are in the buffer, after reading what it takes.
    async fn fill(&mut self, need: usize) -> Result<bool, ArchiveError> {
        while self.buffer.len() < need {
            let at = self.offset + self.buffer.len() as u64;
            let piece = match at < self.length {
                true => self.place.read(&self.name, at, PIECE).await?,
                false => return Ok(false),
            };
            if piece.is_empty() {
                return Ok(false);
            }
            self.buffer.extend_from_slice(&piece);
        }
        Ok(true)
    }

    /// Whether a sound record with a higher sequence lies anywhere behind a bad one: then the file is
    /// damaged in its middle, and not merely cut short while it was written.
    pub(crate) async fn sound_record_follows(&mut self) -> Result<bool, ArchiveError> {
        let mut skip = 1;
        while self.fill(skip + super::file::RECORD_SIZE).await? {
            let rest = self.buffer.get(skip..).unwrap_or_default();
            match parse(rest) {
                Parsed::Record { record, .. } if record.sequence > self.sequence => return Ok(true),
                Parsed::Short(more) if self.fill(skip + more).await? => continue,
                _ => skip += 1,
            }
            if skip >= PIECE {
                let _ = self.buffer.split_to(skip);
                self.offset += skip as u64;
                skip = 0;
            }
        }
        Ok(false)
    }
}

/// Follows the commits after a base through the files of its chain.
#[derive(Debug)]
pub(crate) struct Follow {
    place: Arc<Place>,
    files: Vec<Found>,
    /// Index of the file to look at next; `None` before the first.
    next: Option<usize>,
    scan: Option<FileScan>,
    /// The last commit that was given out, with its digest once that is known.
    position: u64,
    digest: Option<u64>,
    /// The file whose last record is torn, and where; known at the end.
    pub(crate) torn: Option<(String, u64)>,
}

impl Follow {
    /// Gives out the commits after `position` of a chain.
    pub(crate) fn new(place: Arc<Place>, chain: &[Found], position: u64) -> Self {
        Self { place, files: chain.to_vec(), next: None, scan: None, position, digest: None, torn: None }
    }

    /// The last commit that was given out, or the one that it began behind.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The digest of the commit at the position; `None` before it was seen.
    pub(crate) fn digest(&self) -> Option<u64> {
        self.digest
    }

    /// The next commit; `None` at the end of the chain.
    ///
    /// `Damaged`: the chain is broken, and there is more behind the break.
    pub(crate) async fn next(&mut self) -> Result<Option<Record>, ArchiveError> {
        loop {
            let Some(scan) = &mut self.scan else {
                match self.open()? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            match scan.next().await? {
                Step::Record { record, digest } if record.sequence > self.position => {
                    (self.position, self.digest) = (record.sequence, Some(digest));
                    return Ok(Some(record));
                }
                Step::Record { record, digest } if record.sequence == self.position => {
                    if self.digest.is_some_and(|known| known != digest) {
                        return Err(damaged(&scan.name, scan.offset, "it is of another history"));
                    }
                    self.digest = Some(digest);
                }
                Step::Record { .. } => {}
                Step::End => self.scan = None,
                Step::Bad { offset, why } => {
                    let behind = self.files.get(self.next.unwrap_or_default());
                    let goes_on = behind.is_some_and(|file| file.header.sequence <= self.position);
                    let is_end = behind.is_none() && !scan.sound_record_follows().await?;
                    if !goes_on && !is_end {
                        return Err(damaged(&scan.name, offset, why));
                    }
                    if is_end {
                        self.torn = Some((scan.name.clone(), offset));
                    }
                    self.scan = None;
                }
            }
        }
    }

    /// Begins the next file; false when there is none.
    fn open(&mut self) -> Result<bool, ArchiveError> {
        let reachable = |file: &Found| file.header.sequence <= self.position;
        let next = self.next.or_else(|| self.files.iter().rposition(reachable)).unwrap_or_default();
        let Some(file) = self.files.get(next) else { return Ok(false) };
        if !reachable(file) {
            return Err(damaged(&file.name, 0, "the log file before it is missing or not complete"));
        }
        let joins = file.header.sequence == self.position;
        if joins && self.digest.is_some_and(|known| known != file.header.first_previous()) {
            return Err(damaged(&file.name, 0, "it is of another history"));
        }
        if joins {
            self.digest = Some(file.header.first_previous());
        }
        self.scan = Some(FileScan::new(Arc::clone(&self.place), file));
        self.next = Some(next + 1);
        Ok(true)
    }
}

fn damaged(file: &str, offset: u64, why: &'static str) -> ArchiveError {
    ArchiveError::Damaged { file: file.to_owned(), offset, why }
}
