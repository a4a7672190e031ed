//! CRC-32Cs of a file as it was read here, to compare with those that the cluster keeps.

use std::collections::BTreeMap;

use cairn_proto::checksum::{combine, crc32c};
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::v1;

/// One CRC-32C for each 64 KiB block of the data of a file; holes have none.
#[derive(Debug, Default)]
pub(super) struct Blocks(BTreeMap<u64, (u32, u32)>);

impl Blocks {
    /// Adds data at an offset. Blocks that are not given whole can not be compared later.
    pub(super) fn add(&mut self, offset: u64, data: &[u8]) {
        let block = BLOCK_SIZE as u64;
        let skip = usize::try_from(offset.next_multiple_of(block) - offset).unwrap_or(usize::MAX);
        let mut at = offset.next_multiple_of(block);
        for part in data.get(skip..).unwrap_or_default().chunks(BLOCK_SIZE) {
            self.0.insert(at, (crc32c(part), u32::try_from(part.len()).unwrap_or(u32::MAX)));
            at += block;
        }
    }

    /// The CRC-32C of a range; `None` when its blocks are not known from edge to edge.
    pub(super) fn of(&self, offset: u64, length: u64) -> Option<u32> {
        let mut whole = crc32c(b"");
        let (mut at, end) = (offset, offset.checked_add(length)?);
        while at < end {
            let (crc, len) = *self.0.get(&at)?;
            if at + u64::from(len) > end {
                return None;
            }
            whole = combine(whole, crc, len.into());
            at += u64::from(len);
        }
        Some(whole)
    }

    /// Compares with the chunks of a file: the offset of the first whole chunk that differs.
    pub(super) fn differs(
        &self,
        extents: &[v1::Extent],
        chunks: &BTreeMap<u64, v1::ChunkRef>,
    ) -> Option<u64> {
        let whole = extents.iter().filter_map(|extent| {
            let chunk = chunks.get(&extent.chunk)?;
            // Small files share chunks; their blocks were compared when they were sent.
            (extent.chunk_offset == 0 && extent.length == chunk.length).then_some((extent, chunk.crc32c))
        });
        whole
            .filter_map(|(extent, crc)| Some((extent.offset, crc, self.of(extent.offset, extent.length)?)))
            .find(|(_, theirs, ours)| theirs != ours)
            .map(|(offset, _, _)| offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_known_when_its_blocks_are() {
        let data: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let mut blocks = Blocks::default();
        blocks.add(0, &data[..131_072]);
        blocks.add(131_072, &data[131_072..]);
        assert_eq!(blocks.of(0, 300_000), Some(crc32c(&data)));
        assert_eq!(blocks.of(65_536, 65_536), Some(crc32c(&data[65_536..131_072])));
        assert_eq!(blocks.of(1, 10), None);
        assert_eq!(blocks.of(262_144, 10), None);
    }

    #[test]
    fn a_chunk_that_differs_is_found() {
        let data = vec![7_u8; 100_000];
        let mut blocks = Blocks::default();
        blocks.add(0, &data);
        let extent = v1::Extent { offset: 0, length: 100_000, chunk: 5, chunk_offset: 0 };
        let mut chunk =
            v1::ChunkRef { chunk: 5, length: 100_000, crc32c: crc32c(&data), ..Default::default() };
        assert_eq!(
            blocks.differs(std::slice::from_ref(&extent), &BTreeMap::from([(5, chunk.clone())])),
            None
        );
        chunk.crc32c ^= 1;
        assert_eq!(blocks.differs(&[extent], &BTreeMap::from([(5, chunk)])), Some(0));
    }
}
