//! Files of records: a header, then records, each chained to the one before it.
//!
//! ```text
//! header  magic (8), format (2), kind (2), schema (4), cluster (16), term (8), sequence (8), digest (8),
//!         time (8), CRC-32C of all that (4), zeros (4)
//! record  magic (4), length of the body (4), sequence (8), time (8), digest of the record before (8),
//!         kind (4), CRC-32C of all that and the body (4), body              all little endian
//! ```
//!
//! The digest of a record is the CRC-64 of all of it but the CRC-32C. As it covers the digest of the
//! record before, a record that is missing, doubled or from another history breaks the chain. The first
//! record of a file gives the digest in the file's header, or, when that is 0 and a chain begins, the
//! CRC-64 of the header. No digest is 0: 1 stands for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cairn_proto::ClusterId;
use cairn_proto::checksum::{crc32c, crc64, whole};
use uuid::Uuid;

const FILE_MAGIC: &[u8; 8] = b"CAIRNLOG";
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"CREC");
const FORMAT: u16 = 1;
/// Bytes of a file's header.
pub(crate) const HEADER_SIZE: usize = 72;
/// Bytes before the body of a record.
pub(crate) const RECORD_SIZE: usize = 40;
/// Longest body. A commit that would need more is followed by a new base instead.
pub(crate) const BODY_MAX: usize = 256 << 20;
/// The last record of a base: a number of rows.
pub(crate) const END_SIZE: usize = RECORD_SIZE + 8;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// All rows after the commit `sequence`.
    Base = 1,
    /// The commits after `sequence`.
    Log = 2,
}

/// The first bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) kind: FileKind,
    /// Of the rows.
    pub(crate) schema: u32,
    pub(crate) cluster: ClusterId,
    /// The reign that wrote it.
    pub(crate) term: u64,
    pub(crate) sequence: u64,
    /// A log: of the commit `sequence`; 0 when it begins a chain. A base: 0.
    pub(crate) digest: u64,
    /// When it was begun, ns.
    pub(crate) time_ns: i64,
}

impl FileHeader {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_SIZE);
        out.put_slice(FILE_MAGIC);
        out.put_u16_le(FORMAT);
        out.put_u16_le(self.kind as u16);
        out.put_u32_le(self.schema);
        out.put_slice(&self.cluster.to_wire());
        out.put_u64_le(self.term);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.digest);
        out.put_i64_le(self.time_ns);
        let crc = crc32c(&out);
        out.put_u32_le(crc);
        out.put_u32_le(0);
        out.freeze()
    }

    /// What the first record of the file gives as the digest before it.
    pub(crate) fn first_previous(&self) -> u64 {
        match self.digest {
            0 => crc64([self.encode().get(..HEADER_SIZE - 8).unwrap_or_default()]).max(1),
            digest => digest,
        }
    }

    /// Whether it begins a chain of log files.
    pub(crate) fn begins_chain(&self) -> bool {
        self.kind == FileKind::Log && self.digest == 0
    }

    /// The reason when these bytes are no header.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some(mut input) = bytes.get(..HEADER_SIZE) else { return Err("it is too short for a header") };
        let (covered, crc) = input.split_at(HEADER_SIZE - 8);
        if !covered.starts_with(FILE_MAGIC) {
            return Err("it does not begin as a file of metadata backups does");
        }
        let stored = crc.get(..4).and_then(|crc| crc.try_into().ok()).map(u32::from_le_bytes);
        if stored != Some(crc32c(covered)) {
            return Err("its header does not fit its checksum");
        }
        input.advance(FILE_MAGIC.len());
        if input.get_u16_le() != FORMAT {
            return Err("it was written in a newer format; use the version that wrote it");
        }
        let kind = match input.get_u16_le() {
            1 => FileKind::Base,
            2 => FileKind::Log,
            _ => return Err("it is of a kind that this version does not know"),
        };
        let schema = input.get_u32_le();
        let mut uuid = [0; 16];
        input.copy_to_slice(&mut uuid);
        Ok(Self {
            kind,
            schema,
            cluster: ClusterId::from_uuid(Uuid::from_bytes(uuid)),
            term: input.get_u64_le(),
            sequence: input.get_u64_le(),
            digest: input.get_u64_le(),
            time_ns: input.get_i64_le(),
        })
    }
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// One commit, in a log.
    Commit = 1,
    /// Some rows, in a base.
    Rows = 2,
    /// The end of a base: how many rows it has.
    End = 3,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    /// Of the commit; in a base, records count from 1.
    pub(crate) sequence: u64,
    pub(crate) time_ns: i64,
    /// Digest of the record before.
    pub(crate) previous: u64,
    pub(crate) body: Bytes,
}

impl Record {
    /// Appends the record and returns its digest.
    pub(crate) fn encode(&self, out: &mut BytesMut) -> u64 {
        let start = out.len();
        out.reserve(RECORD_SIZE + self.body.len());
        out.put_u32_le(RECORD_MAGIC);
        out.put_u32_le(u32::try_from(self.body.len()).unwrap_or(u32::MAX));
        out.put_u64_le(self.sequence);
        out.put_i64_le(self.time_ns);
        out.put_u64_le(self.previous);
        out.put_u32_le(self.kind as u32);
        let head = out.get(start..).unwrap_or_default();
        let (crc, digest) = (whole([head, &self.body]), crc64([head, &self.body]).max(1));
        out.put_u32_le(crc);
        out.put_slice(&self.body);
        digest
    }
}

/// What the front of some bytes is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Record {
        record: Record,
        digest: u64,
        size: usize,
    },
    /// So many bytes are needed to say.
    Short(usize),
    Bad(&'static str),
}

/// Reads the record at the front of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let Some(head) = bytes.get(..RECORD_SIZE) else { return Parsed::Short(RECORD_SIZE) };
    let mut input = head;
    if input.get_u32_le() != RECORD_MAGIC {
        return Parsed::Bad("no record begins here");
    }
    let length = input.get_u32_le() as usize;
    if length > BODY_MAX {
        return Parsed::Bad("the length of the record can not be");
    }
    let size = RECORD_SIZE + length;
    let Some(body) = bytes.get(RECORD_SIZE..size) else { return Parsed::Short(size) };
    let (sequence, time_ns, previous) = (input.get_u64_le(), input.get_i64_le(), input.get_u64_le());
    let kind = input.get_u32_le();
    let covered = head.get(..RECORD_SIZE - 4).unwrap_or_default();
    if input.get_u32_le() != whole([covered, body]) {
        return Parsed::Bad("the record does not fit its checksum");
    }
    let kind = match kind {
        1 => RecordKind::Commit,
        2 => RecordKind::Rows,
        3 => RecordKind::End,
        _ => return Parsed::Bad("the record is of a kind that this version does not know"),
    };
    let digest = crc64([covered, body]).max(1);
    let record = Record { kind, sequence, time_ns, previous, body: Bytes::copy_from_slice(body) };
    Parsed::Record { record, digest, size }
}

/// Name of a file in its place. Names of one kind sort by reign, then by sequence.
pub(crate) fn file_name(kind: FileKind, term: u64, sequence: u64) -> String {
    let kind = match kind {
        FileKind::Base => "base",
        FileKind::Log => "log",
    };
    format!("{kind}-{term:016x}-{sequence:016x}.cairn")
}

/// Kind, term and sequence of a file's name; `None` for a name that is not ours.
pub(crate) fn parse_name(name: &str) -> Option<(FileKind, u64, u64)> {
    let mut parts = name.strip_suffix(".cairn")?.split('-');
    let kind = match parts.next()? {
        "base" => FileKind::Base,
        "log" => FileKind::Log,
        _ => return None,
    };
    let mut number =
        || parts.next().filter(|text| text.len() == 16).map(|text| u64::from_str_radix(text, 16));
    let (term, sequence) = (number()?.ok()?, number()?.ok()?);
    (file_name(kind, term, sequence) == name).then_some((kind, term, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FileHeader {
        FileHeader {
            kind: FileKind::Log,
            schema: 2,
            cluster: ClusterId::from_uuid(Uuid::from_u128(3)),
            term: 4,
            sequence: 5,
            digest: u64::MAX,
            time_ns: -7,
        }
    }

    #[test]
    fn a_header_is_read_as_written_and_no_flipped_bit_is_taken() {
        let bytes = header().encode();
        assert_eq!(bytes.len(), HEADER_SIZE);
        assert_eq!(FileHeader::decode(&bytes), Ok(header()));
        for bit in 0..(HEADER_SIZE - 4) * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(FileHeader::decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(FileHeader::decode(&bytes[..HEADER_SIZE - 1]).is_err());
    }

    #[test]
    fn a_record_is_read_as_written_and_no_flipped_bit_is_taken() {
        let body = Bytes::from_static(b"some rows");
        let record = Record { kind: RecordKind::Commit, sequence: 9, time_ns: 1, previous: 2, body };
        let mut bytes = BytesMut::new();
        let digest = record.encode(&mut bytes);
        let size = bytes.len();
        assert_eq!(parse(&bytes), Parsed::Record { record, digest, size });
        for end in 0..size {
            assert!(matches!(parse(&bytes[..end]), Parsed::Short(need) if need > end), "cut at {end}");
        }
        for bit in 0..size * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(&flipped), Parsed::Record { .. }), "bit {bit}");
        }
    }

    #[test]
    fn names_come_back_and_others_are_not_ours() {
        let name = file_name(FileKind::Base, 0xab, 7);
        assert_eq!(name, "base-00000000000000ab-0000000000000007.cairn");
        assert_eq!(parse_name(&name), Some((FileKind::Base, 0xab, 7)));
        for other in
            ["LOCK", "base-1-2.cairn", "log-00000000000000AB-0000000000000007.cairn", "log-.cairn", ""]
        {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
