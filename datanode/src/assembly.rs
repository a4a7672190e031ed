//! The rules that the frames of one chunk follow. No I/O: a frame fits, or the error says why not.

use cairn_proto::checksum::verify_blocks;
use cairn_proto::limits::{BLOCK_SIZE, CHUNK_SIZE_MAX, FRAME_SIZE_MAX};
use cairn_proto::{ErrorKind, WireError, v1};

/// How far one chunk has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Assembly {
    length: u32,
    next: u32,
}

impl Assembly {
    /// A chunk whose header announced `length` bytes.
    pub(crate) fn new(length: u64) -> Result<Self, WireError> {
        match u32::try_from(length) {
            Ok(length @ 1..) if u64::from(length) <= CHUNK_SIZE_MAX => Ok(Self { length, next: 0 }),
            _ => Err(invalid(format!("a chunk of {length} bytes; 1 to {CHUNK_SIZE_MAX} were expected"))),
        }
    }

    /// Bytes of the whole chunk.
    pub(crate) fn length(&self) -> u32 {
        self.length
    }

    /// Bytes that arrived so far.
    pub(crate) fn received(&self) -> u32 {
        self.next
    }

    /// Takes a frame; true when it was the last.
    ///
    /// `InvalidArgument`: it does not follow the frame before, or has the wrong size.
    /// `ChecksumMismatch`: its bytes are not those that were sent.
    pub(crate) fn accept(&mut self, frame: &v1::StoreFrame) -> Result<bool, WireError> {
        let (length, next) = (u64::from(self.length), u64::from(self.next));
        let bytes = frame.data.len();
        if bytes == 0 || bytes > FRAME_SIZE_MAX {
            return Err(invalid(format!("a frame of {bytes} bytes; 1 to {FRAME_SIZE_MAX} were expected")));
        }
        if frame.offset != next {
            let what = if frame.offset > next { "a gap" } else { "an overlap" };
            return Err(invalid(format!("{what}: a frame at {} where {next} was expected", frame.offset)));
        }
        let end = next + bytes as u64;
        if end > length {
            return Err(invalid(format!("data up to {end} of a chunk of {length} bytes")));
        }
        if end < length && !bytes.is_multiple_of(BLOCK_SIZE) {
            return Err(invalid(format!(
                "a frame of {bytes} bytes in the middle of a chunk; whole blocks were expected"
            )));
        }
        if frame.is_final != (end == length) {
            return Err(invalid(match frame.is_final {
                true => format!("a short chunk: the final frame ends at {end} of {length}"),
                false => format!("a frame that reaches the end, {length}, is not marked as the final one"),
            }));
        }
        verify_blocks(&frame.data, &frame.crc32c).map_err(|mismatch| {
            WireError::new(ErrorKind::ChecksumMismatch, format!("frame at {next}: {mismatch}"))
        })?;
        self.next = u32::try_from(end).unwrap_or(self.length); // end <= length
        Ok(frame.is_final)
    }
}

fn invalid(message: String) -> WireError {
    WireError::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_proto::checksum::block_crcs;
    use proptest::prelude::*;

    fn frame(offset: u64, len: usize, is_final: bool) -> v1::StoreFrame {
        let data = vec![7u8; len];
        let crc32c = block_crcs(&data);
        v1::StoreFrame { chunk: 1, offset, data: data.into(), crc32c, is_final, ..Default::default() }
    }

    fn kind_of(length: u64, frames: &[v1::StoreFrame]) -> Option<ErrorKind> {
        let mut assembly = Assembly::new(length).expect("length");
        frames.iter().find_map(|frame| assembly.accept(frame).err()).map(|error| error.kind)
    }

    const K64: usize = 64 << 10;

    #[test]
    fn frames_follow_one_another_to_the_announced_end() {
        let length = 2 * K64 as u64 + 5;
        assert_eq!(kind_of(length, &[frame(0, 2 * K64, false), frame(2 * K64 as u64, 5, true)]), None);
        for bad in [
            vec![frame(K64 as u64, K64, false)],
            vec![frame(0, K64, false), frame(0, K64, false)],
            vec![frame(0, K64, true)],
            vec![frame(0, 2 * K64 + 5, false)],
            vec![frame(0, 2 * K64 + 6, true)],
            vec![frame(0, 100, false)],
            vec![frame(0, 0, false)],
            vec![frame(u64::MAX, K64, false)],
        ] {
            assert_eq!(kind_of(length, &bad), Some(ErrorKind::InvalidArgument), "{bad:?}");
        }
    }

    #[test]
    fn damaged_bytes_and_missing_checksums_are_told_apart_from_bad_frames() {
        let mut flipped = frame(0, 10, true);
        flipped.crc32c[0] ^= 1;
        assert_eq!(kind_of(10, &[flipped]), Some(ErrorKind::ChecksumMismatch));
        let mut none = frame(0, 10, true);
        none.crc32c.clear();
        assert_eq!(kind_of(10, &[none]), Some(ErrorKind::ChecksumMismatch));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0, CHUNK_SIZE_MAX + 1, u64::MAX] {
            assert!(Assembly::new(length).is_err());
        }
        assert!(Assembly::new(CHUNK_SIZE_MAX).is_ok());
    }

    proptest! {
        #[test]
        fn no_frame_moves_past_the_length(length in 1u64..300_000, frames in prop::collection::vec((0u64..400_000, 0usize..200_000, any::<bool>()), 0..8)) {
            let mut assembly = Assembly::new(length).expect("length");
            for (offset, len, is_final) in frames {
                let done = assembly.accept(&frame(offset, len, is_final));
                prop_assert!(u64::from(assembly.received()) <= length);
                if done == Ok(true) {
                    prop_assert_eq!(u64::from(assembly.received()), length);
                    break;
                }
            }
        }
    }
}
