//! The bytes of a segment file: its header, records and footer.
//!
//! ```text
//! 0        segment header, one 4 KiB page
//! 4096     record: 64-byte header, one CRC-32C per 64 KiB block, payload, zeros up to 4 KiB
//! …        more records, each at a multiple of 4 KiB
//! sealed:  footer: 32 bytes per record, then the trailer as the last 64 bytes of the file
//! ```
//!
//! All integers are little endian. Every structure carries a CRC-32C and the segment's random salt,
//! so that neither an older segment's bytes nor a user's payload can pass for a record. A record
//! header also names its own offset. The length of a record follows from the length of its chunk.

use cairn_proto::ChunkId;
use cairn_proto::checksum::crc32c;
use cairn_proto::limits::{BLOCK_SIZE, CHUNK_SIZE_MAX};

/// Records start at multiples of this; also the smallest unit that a hole can be punched in.
pub(super) const ALIGN: u64 = 4096;
/// Version of everything in this file; raised when an older build could not read it.
///
/// 2: records and footer entries may say that a chunk is in the trash.
pub(super) const FORMAT: u16 = 2;
/// Bytes of a record's fixed header. Lies in one sector, so a power cut leaves it old or new.
pub(super) const HEADER_LEN: usize = 64;
/// Bytes of one footer entry; a power of two, so that none crosses a sector.
pub(super) const ENTRY_LEN: usize = 32;
/// Bytes of the trailer.
pub(super) const TRAILER_LEN: usize = 64;

const RECORD_MAGIC: u32 = 0x4343_4e4b;
const SEGMENT_MAGIC: u64 = 0x4745_534e_5249_4143;
const TRAILER_MAGIC: u64 = 0x544f_4f46_4e52_4143;

/// What became of a record.
///
/// ```text
/// Intent ──▶ Complete ──▶ Quarantined ──▶ Deleted
///   │          ▲ └──▶ Trash ──▶ Deleted
///   │          └────────┘
///   └──▶ Abandoned
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordState {
    /// Space is reserved, the payload is arriving.
    Intent,
    /// Payload and checksums are there.
    Complete,
    /// Deleted; the payload is or will be a hole.
    Deleted,
    /// Failed verification; kept for a person to look at, never served.
    Quarantined,
    /// The sender gave up.
    Abandoned,
    /// Deleted, and kept for a while: not served, and can be made `Complete` again.
    Trash,
}

impl RecordState {
    fn to_byte(self) -> u8 {
        match self {
            Self::Intent => 1,
            Self::Complete => 2,
            Self::Deleted => 3,
            Self::Quarantined => 4,
            Self::Abandoned => 5,
            Self::Trash => 6,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Intent),
            2 => Some(Self::Complete),
            3 => Some(Self::Deleted),
            4 => Some(Self::Quarantined),
            5 => Some(Self::Abandoned),
            6 => Some(Self::Trash),
            _ => None,
        }
    }
}

/// Why bytes are not the structure that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Zeros: nothing was ever written here, or it was punched out.
    Blank,
    /// Damaged, or something else.
    Bad,
    /// Intact, but of a format that this build does not know.
    Newer(u16),
}

/// Blocks of a chunk of `length` bytes.
pub(super) fn blocks(length: u32) -> usize {
    (length as usize).div_ceil(BLOCK_SIZE)
}

/// Where the payload starts within its record. Small chunks follow their header at once, so that
/// one write and one read do; large ones are aligned.
pub(super) fn payload_start(length: u32) -> u64 {
    let table_end = (HEADER_LEN + 4 * blocks(length)) as u64;
    if length as usize >= BLOCK_SIZE { align_up(table_end) } else { table_end }
}

/// Bytes that the record of a chunk takes in its segment.
pub(super) fn record_len(length: u32) -> u64 {
    align_up(payload_start(length) + u64::from(length))
}

/// The next multiple of 4 KiB.
pub(super) fn align_up(offset: u64) -> u64 {
    offset.div_ceil(ALIGN) * ALIGN
}

/// Bytes of a footer with `count` entries, trailer included.
pub(super) fn footer_len(count: usize) -> u64 {
    (count * ENTRY_LEN + TRAILER_LEN) as u64
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) state: RecordState,
    pub(super) chunk: ChunkId,
    /// Replica set that the chunk was stored for.
    pub(super) set: u64,
    /// Bytes of the payload, 1 to 64 MiB.
    pub(super) length: u32,
    /// CRC-32C of the table of block checksums; 0 while the state is `Intent`.
    pub(super) table_crc: u32,
    /// Offset in the segment file, a multiple of 4 KiB.
    pub(super) offset: u64,
    /// All records before this offset were complete and synced when this header was written.
    pub(super) watermark: u64,
}

impl RecordHeader {
    pub(super) fn encode(&self, salt: u64) -> [u8; HEADER_LEN] {
        let mut out = [0u8; HEADER_LEN];
        out[0..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        out[6] = self.state.to_byte();
        out[8..16].copy_from_slice(&self.chunk.get().to_le_bytes());
        out[16..24].copy_from_slice(&self.set.to_le_bytes());
        out[24..28].copy_from_slice(&self.length.to_le_bytes());
        out[28..32].copy_from_slice(&self.table_crc.to_le_bytes());
        out[32..40].copy_from_slice(&salt.to_le_bytes());
        out[40..48].copy_from_slice(&self.offset.to_le_bytes());
        out[48..56].copy_from_slice(&self.watermark.to_le_bytes());
        seal_crc(&mut out);
        out
    }

    /// Reads the header at `offset` of the segment with this salt.
    pub(super) fn decode(bytes: &[u8], salt: u64, offset: u64) -> Result<Self, Unreadable> {
        let bytes = bytes.get(..HEADER_LEN).ok_or(Unreadable::Bad)?;
        if bytes.iter().all(|&b| b == 0) {
            return Err(Unreadable::Blank);
        }
        let intact = u32_at(bytes, 0) == RECORD_MAGIC
            && has_crc(bytes)
            && u64_at(bytes, 32) == salt
            && u64_at(bytes, 40) == offset;
        if !intact {
            return Err(Unreadable::Bad);
        }
        let version = u16_at(bytes, 4);
        if version > FORMAT {
            return Err(Unreadable::Newer(version));
        }
        let length = u32_at(bytes, 24);
        if length == 0 || u64::from(length) > CHUNK_SIZE_MAX {
            return Err(Unreadable::Bad);
        }
        Ok(Self {
            state: RecordState::from_byte(bytes[6]).ok_or(Unreadable::Bad)?,
            chunk: ChunkId::new(u64_at(bytes, 8)).map_err(|_| Unreadable::Bad)?,
            set: u64_at(bytes, 16),
            length,
            table_crc: u32_at(bytes, 28),
            offset,
            watermark: u64_at(bytes, 48),
        })
    }

    /// The salt that a header claims, for a segment whose own header is damaged.
    pub(super) fn claimed_salt(bytes: &[u8]) -> Option<u64> {
        let bytes = bytes.get(..HEADER_LEN)?;
        (u32_at(bytes, 0) == RECORD_MAGIC && has_crc(bytes)).then(|| u64_at(bytes, 32))
    }
}

/// The table of block checksums as it stands behind the header.
pub(super) fn encode_table(crcs: &[u32]) -> Vec<u8> {
    crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect()
}

/// Reads a table; `None` when it does not fit the header's checksum.
pub(super) fn decode_table(bytes: &[u8], header: &RecordHeader) -> Option<Vec<u32>> {
    let bytes = bytes.get(..4 * blocks(header.length))?;
    (crc32c(bytes) == header.table_crc).then(|| bytes.chunks_exact(4).map(|raw| u32_at(raw, 0)).collect())
}

/// The first page of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) id: u32,
    /// Random; part of every structure in the file.
    pub(super) salt: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0u8; HEADER_LEN];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC.to_le_bytes());
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&self.salt.to_le_bytes());
        seal_crc(&mut out);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let bytes = bytes.get(..HEADER_LEN).ok_or(Unreadable::Bad)?;
        if bytes.iter().all(|&b| b == 0) {
            return Err(Unreadable::Blank);
        }
        if u64_at(bytes, 0) != SEGMENT_MAGIC || !has_crc(bytes) {
            return Err(Unreadable::Bad);
        }
        match u16_at(bytes, 8) {
            version if version > FORMAT => Err(Unreadable::Newer(version)),
            _ => Ok(Self { id: u32_at(bytes, 12), salt: u64_at(bytes, 16) }),
        }
    }
}

/// What a footer says of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryState {
    /// In use.
    Live,
    /// Set aside.
    Quarantined,
    /// Deleted; the hole may still have to be punched.
    Deleted,
    /// Deleted and punched.
    Punched,
    /// In the trash.
    Trash,
}

/// One record in a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FooterEntry {
    pub(super) chunk: ChunkId,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) state: EntryState,
}

impl FooterEntry {
    pub(super) fn encode(&self, salt: u64) -> [u8; ENTRY_LEN] {
        let mut out = [0u8; ENTRY_LEN];
        out[0..8].copy_from_slice(&self.chunk.get().to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.length.to_le_bytes());
        out[20] = match self.state {
            EntryState::Live => 1,
            EntryState::Quarantined => 2,
            EntryState::Deleted => 3,
            EntryState::Punched => 4,
            EntryState::Trash => 5,
        };
        let crc = Self::crc(&out, salt);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` when damaged.
    pub(super) fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        let bytes: &[u8; ENTRY_LEN] = bytes.try_into().ok()?;
        if Self::crc(bytes, salt) != u32_at(bytes, 28) {
            return None;
        }
        let state = match bytes[20] {
            1 => EntryState::Live,
            2 => EntryState::Quarantined,
            3 => EntryState::Deleted,
            4 => EntryState::Punched,
            5 => EntryState::Trash,
            _ => return None,
        };
        let length = u32_at(bytes, 16);
        let chunk = ChunkId::new(u64_at(bytes, 0)).ok()?;
        (length > 0 && u64::from(length) <= CHUNK_SIZE_MAX).then(|| Self {
            chunk,
            offset: u64_at(bytes, 8),
            length,
            state,
        })
    }

    fn crc(bytes: &[u8; ENTRY_LEN], salt: u64) -> u32 {
        let mut covered = [0u8; 36];
        covered[..28].copy_from_slice(&bytes[..28]);
        covered[28..].copy_from_slice(&salt.to_le_bytes());
        crc32c(&covered)
    }
}

/// The last 64 bytes of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) salt: u64,
    /// Where the footer starts, a multiple of 4 KiB.
    pub(super) footer: u64,
    pub(super) count: u32,
}

impl Trailer {
    pub(super) fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = [0u8; TRAILER_LEN];
        out[0..8].copy_from_slice(&TRAILER_MAGIC.to_le_bytes());
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.salt.to_le_bytes());
        out[24..32].copy_from_slice(&self.footer.to_le_bytes());
        seal_crc(&mut out);
        out
    }

    /// Reads the trailer of a file of `file_len` bytes; `None` when it is not sealed or damaged.
    pub(super) fn decode(bytes: &[u8], file_len: u64) -> Option<Self> {
        let bytes = bytes.get(..TRAILER_LEN)?;
        if u64_at(bytes, 0) != TRAILER_MAGIC || !has_crc(bytes) {
            return None;
        }
        let trailer = Self { salt: u64_at(bytes, 16), footer: u64_at(bytes, 24), count: u32_at(bytes, 12) };
        let end = trailer.footer.checked_add(footer_len(trailer.count as usize))?;
        (end == file_len && trailer.footer.is_multiple_of(ALIGN)).then_some(trailer)
    }
}

/// Puts the CRC-32C of a 64-byte structure into its last four bytes.
fn seal_crc(bytes: &mut [u8; HEADER_LEN]) {
    let crc = crc32c(&bytes[..HEADER_LEN - 4]);
    bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn has_crc(bytes: &[u8]) -> bool {
    crc32c(&bytes[..HEADER_LEN - 4]) == u32_at(bytes, HEADER_LEN - 4)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(length: u32) -> RecordHeader {
        RecordHeader {
            state: RecordState::Complete,
            chunk: ChunkId::new(77).unwrap(),
            set: 3,
            length,
            table_crc: 9,
            offset: 8192,
            watermark: 4096,
        }
    }

    #[test]
    fn small_chunks_follow_their_header_and_large_ones_are_aligned() {
        assert_eq!((payload_start(1), record_len(1)), (68, 4096));
        assert_eq!((payload_start(4096), record_len(4096)), (68, 8192));
        assert_eq!((payload_start(8 << 20), record_len(8 << 20)), (4096, (8 << 20) + 4096));
        assert_eq!((payload_start(64 << 20), record_len(64 << 20)), (8192, (64 << 20) + 8192));
    }

    #[test]
    fn a_header_is_readable_only_where_and_in_the_segment_that_it_was_written_for() {
        let bytes = header(5).encode(42);
        assert_eq!(RecordHeader::decode(&bytes, 42, 8192), Ok(header(5)));
        assert_eq!(RecordHeader::decode(&bytes, 42, 4096), Err(Unreadable::Bad));
        assert_eq!(RecordHeader::decode(&bytes, 43, 8192), Err(Unreadable::Bad));
        assert_eq!(RecordHeader::decode(&[0; 64], 42, 8192), Err(Unreadable::Blank));
    }

    proptest! {
        #[test]
        fn no_flipped_bit_passes(bit in 0usize..512) {
            let mut record = header(70_000).encode(1);
            record[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(RecordHeader::decode(&record, 1, 8192), Err(Unreadable::Bad));
            let mut segment = SegmentHeader { id: 4, salt: 1 }.encode();
            segment[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(SegmentHeader::decode(&segment), Err(Unreadable::Bad));
            let mut trailer = Trailer { salt: 1, footer: 4096, count: 2 }.encode();
            trailer[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Trailer::decode(&trailer, 4096 + footer_len(2)), None);
        }

        #[test]
        fn no_flipped_bit_of_a_footer_entry_passes(bit in 0usize..256) {
            let entry = FooterEntry { chunk: ChunkId::new(5).unwrap(), offset: 4096, length: 7, state: EntryState::Live };
            let mut bytes = entry.encode(6);
            prop_assert_eq!(FooterEntry::decode(&bytes, 6), Some(entry));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(FooterEntry::decode(&bytes, 6), None);
        }
    }
}
