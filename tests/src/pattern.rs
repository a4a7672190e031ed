//! Bytes that can be made again from a seed and a position, at the speed of a copy: so that a
//! gigabyte is compared without being kept, and a byte in the wrong place is noticed.

use std::path::Path;
use std::sync::OnceLock;

const PAGE: usize = 4096;
/// Pages of noise; a prime, so that no chunk or block size is a multiple of the period.
const PAGES: usize = 17;

fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(PAGE * PAGES);
        while bytes.len() < PAGE * PAGES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes
    })
}

fn page(seed: u64, number: u64, into: &mut [u8; PAGE]) {
    let from = (number.wrapping_add(seed) % PAGES as u64) as usize * PAGE;
    into.copy_from_slice(&noise()[from..from + PAGE]);
    into[..8].copy_from_slice(&seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number).to_le_bytes());
    into[8..16].copy_from_slice(&number.to_be_bytes());
}

/// Fills `into` with the pattern's bytes from `offset` on.
pub fn fill(seed: u64, offset: u64, into: &mut [u8]) {
    let mut buffer = [0; PAGE];
    let mut done = 0;
    while done < into.len() {
        let position = offset + done as u64;
        let skip = (position % PAGE as u64) as usize;
        let here = (PAGE - skip).min(into.len() - done);
        page(seed, position / PAGE as u64, &mut buffer);
        into[done..done + here].copy_from_slice(&buffer[skip..skip + here]);
        done += here;
    }
}

/// `length` bytes of the pattern from `offset` on.
pub fn bytes(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill(seed, offset, &mut bytes);
    bytes
}

/// The first position where `data`, which lies at `offset`, is not the pattern.
pub fn first_difference(seed: u64, offset: u64, data: &[u8]) -> Option<u64> {
    let want = bytes(seed, offset, data.len());
    if want == data {
        return None;
    }
    want.iter().zip(data).position(|(a, b)| a != b).map(|at| offset + at as u64)
}

/// Writes a file of `length` pattern bytes.
pub fn write_file(path: &Path, seed: u64, length: u64) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < length {
        let here = (length - offset).min(buffer.len() as u64) as usize;
        fill(seed, offset, &mut buffer[..here]);
        file.write_all(&buffer[..here]).unwrap_or_else(|e| panic!("{} at {offset}: {e}", path.display()));
        offset += here as u64;
    }
}

/// Panics unless the file holds exactly `length` pattern bytes.
#[track_caller]
pub fn check_file(path: &Path, seed: u64, length: u64) {
    use std::io::Read;
    let mut file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let got = file.read(&mut buffer).unwrap_or_else(|e| panic!("{} at {offset}: {e}", path.display()));
        if got == 0 {
            break;
        }
        if let Some(at) = first_difference(seed, offset, &buffer[..got]) {
            panic!("{}: byte {at} of {length} is wrong", path.display());
        }
        offset += got as u64;
    }
    assert_eq!(offset, length, "length of {}", path.display());
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_pattern_does_not_depend_on_where_a_range_starts() {
        let whole = super::bytes(3, 0, 20_000);
        assert_eq!(super::bytes(3, 4095, 9000), whole[4095..13_095]);
        assert_eq!(super::first_difference(3, 100, &whole[100..]), None);
        assert_eq!(super::first_difference(3, 101, &whole[100..]), Some(101));
        assert_ne!(super::bytes(4, 0, 4096), whole[..4096]);
    }
}
