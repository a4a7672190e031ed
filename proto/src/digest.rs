//! Digests of sets of chunk ids, by which two inventories are compared without listing them.
//!
//! The XOR of a mixed form of each id: the order does not matter, ids come and go one at a time, and two
//! sets that differ have the same digest with a chance of one in 2^64 each time they are compared.

/// The mixed form of one id: the finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", OOPSLA 2014).
pub fn splitmix64(id: u64) -> u64 {
    let mut z = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Count and digest of a set of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdDigest {
    /// How many ids there are.
    pub count: u64,
    /// XOR of [`splitmix64`] of each.
    pub digest: u64,
}

impl IdDigest {
    /// Adds an id that is not in the set yet.
    pub fn add(&mut self, id: u64) {
        self.count += 1;
        self.digest ^= splitmix64(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_each_id_does() {
        let of = |ids: &[u64]| {
            let mut digest = IdDigest::default();
            ids.iter().for_each(|&id| digest.add(id));
            digest
        };
        assert_eq!(of(&[1, 2, 3]), of(&[3, 1, 2]));
        assert_ne!(of(&[1, 2, 3]), of(&[1, 2, 4]));
        assert_ne!(of(&[1, 2]), of(&[1, 2, 3]));
        // The first output of SplitMix64 from seed 0, as published.
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
    }
}
