//! How buffered writes are laid out in chunks: full, aligned runs become chunks of their own, all
//! the rest (of one file or of many) is packed together.

use bytes::Bytes;

/// A chunk to be made: pieces one after the other, and which file ranges they are.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) length: u64,
    pub(crate) uses: Vec<Use>,
}

/// A run of a draft that becomes an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    /// Index of the file within the batch.
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) chunk_offset: u64,
}

impl Draft {
    fn push(&mut self, file: usize, offset: u64, piece: Bytes) {
        let (length, chunk_offset) = (piece.len() as u64, self.length);
        self.length += length;
        self.pieces.push(piece);
        match self.uses.last_mut() {
            Some(last) if last.file == file && last.offset + last.length == offset => last.length += length,
            _ => self.uses.push(Use { file, offset, length, chunk_offset }),
        }
    }
}

/// Lays out the sorted, disjoint runs of each file.
pub(crate) fn cut<'a>(files: impl IntoIterator<Item = &'a [(u64, Bytes)]>, chunk_size: u64) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let mut pack = Draft::default();
    for (file, runs) in files.into_iter().enumerate() {
        for contiguous in runs.chunk_by(|one, next| one.0 + one.1.len() as u64 == next.0) {
            cut_contiguous(file, contiguous, chunk_size, &mut drafts, &mut pack);
        }
    }
    if pack.length > 0 {
        drafts.push(pack);
    }
    drafts
}

fn cut_contiguous(
    file: usize,
    runs: &[(u64, Bytes)],
    chunk_size: u64,
    drafts: &mut Vec<Draft>,
    pack: &mut Draft,
) {
    let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return };
    let (start, end) = (first.0, last.0 + last.1.len() as u64);
    // Whole chunks at multiples of the chunk size within [start, end).
    let full = start.next_multiple_of(chunk_size)..(end / chunk_size * chunk_size);
    let mut whole = Draft::default();
    for (offset, run) in runs {
        let (mut offset, mut run) = (*offset, run.clone());
        while !run.is_empty() {
            let boundary = (offset / chunk_size + 1) * chunk_size;
            let mut len = usize::try_from(boundary - offset).unwrap_or(usize::MAX).min(run.len());
            if full.contains(&offset) {
                whole.push(file, offset, run.split_to(len));
                if whole.length == chunk_size {
                    drafts.push(std::mem::take(&mut whole));
                }
            } else {
                len = len.min(usize::try_from(chunk_size - pack.length).unwrap_or(usize::MAX));
                pack.push(file, offset, run.split_to(len));
                if pack.length == chunk_size {
                    drafts.push(std::mem::take(pack));
                }
            }
            offset += len as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn full_chunks_stand_alone_and_the_rest_is_packed() {
        let run = |offset, len| (offset, Bytes::from(vec![1u8; len]));
        let one = [run(0, 10), run(100, 200), run(300, 30)];
        let two = [run(5, 7)];
        let drafts = cut([&one[..], &two[..]], 100);
        let lengths: Vec<_> = drafts.iter().map(|draft| draft.length).collect();
        assert_eq!(lengths, [100, 100, 47]);
        assert_eq!(drafts[1].uses, [Use { file: 0, offset: 200, length: 100, chunk_offset: 0 }]);
        assert_eq!(
            drafts[2].uses,
            [
                Use { file: 0, offset: 0, length: 10, chunk_offset: 0 },
                Use { file: 0, offset: 300, length: 30, chunk_offset: 10 },
                Use { file: 1, offset: 5, length: 7, chunk_offset: 40 },
            ]
        );
    }

    proptest! {
        #[test]
        fn every_byte_lands_exactly_once(
            files in prop::collection::vec(prop::collection::vec((0u64..50, 1usize..260), 0..6), 1..4)
        ) {
            let chunk_size = 64;
            let mut contents = Vec::new();
            for gaps in files {
                let mut at = 0;
                let mut runs = Vec::new();
                for (gap, len) in gaps {
                    at += gap;
                    let data: Vec<u8> = (0..len).map(|i| (at as usize + i) as u8).collect();
                    runs.push((at, Bytes::from(data)));
                    at += len as u64;
                }
                contents.push(runs);
            }
            let drafts = cut(contents.iter().map(Vec::as_slice), chunk_size);
            let mut landed = vec![std::collections::BTreeMap::new(); contents.len()];
            for draft in &drafts {
                let bytes: Vec<u8> = draft.pieces.concat();
                prop_assert!(draft.length > 0 && draft.length <= chunk_size);
                prop_assert_eq!(bytes.len() as u64, draft.length);
                for used in &draft.uses {
                    for i in 0..used.length {
                        let byte = bytes[(used.chunk_offset + i) as usize];
                        prop_assert!(landed[used.file].insert(used.offset + i, byte).is_none());
                    }
                }
            }
            for (file, runs) in contents.iter().enumerate() {
                let expected: std::collections::BTreeMap<u64, u8> =
                    runs.iter().flat_map(|(at, run)| run.iter().enumerate().map(move |(i, b)| (at + i as u64, *b))).collect();
                prop_assert_eq!(&landed[file], &expected);
            }
        }
    }
}
