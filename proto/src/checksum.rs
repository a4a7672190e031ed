//! CRC-32C (Castagnoli, RFC 3720 appendix B.4): computed where data enters, carried unchanged to the
//! disks and back, verified before storing, after reading and before returning.

use crc_fast::{CrcAlgorithm, Digest, checksum, checksum_combine};

use crate::limits::BLOCK_SIZE;

/// CRC-32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    low(checksum(CrcAlgorithm::Crc32Iscsi, data))
}

/// CRC-64/NVME of pieces one after the other: for chains of records, where a collision of 32 bits is
/// too likely.
pub fn crc64<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize()
}

/// One CRC-32C for each 64 KiB block of `data`; the last block may be shorter.
pub fn block_crcs(data: &[u8]) -> Vec<u32> {
    data.chunks(BLOCK_SIZE).map(crc32c).collect()
}

/// CRC-32C of pieces one after the other. Faster than [`combine_blocks`] where the bytes are at hand.
pub fn whole<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        digest.update(piece);
    }
    low(digest.finalize())
}

/// CRC-32C of two runs one after the other, from that of each and the length of the second.
pub fn combine(first: u32, second: u32, second_len: u64) -> u32 {
    low(checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), second.into(), second_len))
}

/// CRC-32C of a whole run of `len` bytes from those of its blocks.
pub fn combine_blocks(crcs: &[u32], len: u64) -> u32 {
    let mut whole = crc32c(b"");
    let mut left = len;
    for &crc in crcs {
        let here = left.min(BLOCK_SIZE as u64);
        whole = combine(whole, crc, here);
        left -= here;
    }
    whole
}

/// Why data does not fit its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another number of checksums than blocks.
    #[error("{got} checksums for {blocks} blocks")]
    Count {
        /// Blocks in the data.
        blocks: usize,
        /// Checksums that came with it.
        got: usize,
    },
    /// A block is damaged.
    #[error("block {block}: CRC-32C is {actual:#010x}, {expected:#010x} was expected")]
    Block {
        /// Index of the block within the data.
        block: usize,
        /// What the data gives.
        actual: u32,
        /// What came with it.
        expected: u32,
    },
}

/// Compares each 64 KiB block of `data` with its checksum.
pub fn verify_blocks(data: &[u8], crcs: &[u32]) -> Result<(), Mismatch> {
    let blocks = data.len().div_ceil(BLOCK_SIZE);
    if blocks != crcs.len() {
        return Err(Mismatch::Count { blocks, got: crcs.len() });
    }
    for (block, (bytes, &expected)) in data.chunks(BLOCK_SIZE).zip(crcs).enumerate() {
        let actual = crc32c(bytes);
        if actual != expected {
            return Err(Mismatch::Block { block, actual, expected });
        }
    }
    Ok(())
}

/// A 32-bit algorithm leaves the upper half of the library's 64-bit result empty.
fn low(crc: u64) -> u32 {
    u32::try_from(crc).unwrap_or_else(|_| unreachable!("CRC-32C of more than 32 bits: {crc:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_value_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn one_flipped_bit_names_its_block() {
        let mut data = vec![7u8; 3 * BLOCK_SIZE - 5];
        let crcs = block_crcs(&data);
        assert_eq!(verify_blocks(&data, &crcs), Ok(()));
        data[BLOCK_SIZE] ^= 1;
        assert!(matches!(verify_blocks(&data, &crcs), Err(Mismatch::Block { block: 1, .. })));
        assert!(matches!(verify_blocks(&data, &crcs[1..]), Err(Mismatch::Count { blocks: 3, got: 2 })));
    }

    proptest! {
        #[test]
        fn blocks_combine_to_the_whole(len in 0usize..(3 * BLOCK_SIZE), seed in any::<u8>()) {
            let data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            prop_assert_eq!(combine_blocks(&block_crcs(&data), len as u64), crc32c(&data));
        }
    }
}
