//! A map that keeps what was used last, within a bound of bytes.
//!
//! Two generations: what is used moves to the young one; when that is full, the old one is dropped, and the young one
//! takes its place. So nothing is sorted and nothing is linked, and a half of what was used last is always there.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::mem;

/// What a map needs for an entry besides the key and the value themselves: its control bytes, and the room that it has
/// left. A generation is at most one half full of those.
const SLACK: usize = 2;

/// Bytes that a value owns elsewhere, besides its own size.
pub(crate) trait Weigh {
    fn heap_bytes(&self) -> usize;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Generations<K, V> {
    young: HashMap<K, V>,
    young_bytes: usize,
    old: HashMap<K, V>,
    old_bytes: usize,
    /// Of one generation.
    bytes_max: usize,
}

impl<K: Eq + Hash + Weigh, V: Weigh> Generations<K, V> {
    /// Both generations together take at most `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            young: HashMap::new(),
            young_bytes: 0,
            old: HashMap::new(),
            old_bytes: 0,
            bytes_max: bytes / 2,
        }
    }

    fn cost(key: &K, value: &V) -> usize {
        SLACK * (mem::size_of::<K>() + mem::size_of::<V>()) + key.heap_bytes() + value.heap_bytes()
    }

    /// Bytes of what is kept.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.young_bytes + self.old_bytes
    }

    /// What is kept there; it counts as used.
    pub(crate) fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.old_bytes -= Self::cost(&key, &value);
            self.insert(key, value);
        }
        self.young.get(key)
    }

    /// Keeps a value, unless it is larger than a generation; what was there is gone.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        let cost = Self::cost(&key, &value);
        if cost > self.bytes_max {
            return;
        }
        if self.young_bytes + cost > self.bytes_max {
            self.old = mem::take(&mut self.young);
            self.old_bytes = mem::take(&mut self.young_bytes);
        }
        self.young_bytes += cost;
        self.young.insert(key, value);
    }

    /// Takes a value out.
    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some((key, value)) = self.young.remove_entry(key) {
            self.young_bytes -= Self::cost(&key, &value);
            return Some(value);
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.old_bytes -= Self::cost(&key, &value);
        Some(value)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.young = HashMap::new();
        self.old = HashMap::new();
        (self.young_bytes, self.old_bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Weigh for u32 {
        fn heap_bytes(&self) -> usize {
            0
        }
    }

    impl Weigh for Vec<u8> {
        fn heap_bytes(&self) -> usize {
            self.capacity()
        }
    }

    type Kept = Generations<u32, Vec<u8>>;

    /// Counted again.
    fn counted(kept: &Kept) -> usize {
        kept.young.iter().chain(&kept.old).map(|(key, value)| Kept::cost(key, value)).sum()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u32, usize),
        Get(u32),
        Remove(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20u32, 0..3000usize).prop_map(|(key, bytes)| Step::Insert(key, bytes)),
            (0..20u32).prop_map(Step::Get),
            (0..20u32).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bytes_and_never_gives_what_was_not_last_put_in(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut kept = Kept::new(10_000);
            let mut last: HashMap<u32, usize> = HashMap::new();
            for step in steps {
                match step {
                    Step::Insert(key, bytes) => {
                        kept.insert(key, vec![7; bytes]);
                        last.insert(key, bytes);
                    }
                    Step::Get(key) => {
                        if let Some(value) = kept.get(&key) {
                            prop_assert_eq!(Some(&value.len()), last.get(&key));
                        }
                    }
                    Step::Remove(key) => {
                        kept.remove(&key);
                        last.remove(&key);
                    }
                }
                prop_assert_eq!(kept.bytes(), counted(&kept));
                prop_assert!(kept.bytes() <= 10_000);
            }
        }
    }

    #[test]
    fn what_is_used_outlives_what_is_not_and_what_is_too_large_is_not_kept() {
        let mut kept = Kept::new(20_000);
        kept.insert(1, vec![1; 100]);
        kept.insert(2, vec![2; 100]);
        for other in 10..60 {
            kept.insert(other, vec![0; 1000]);
            assert!(kept.get(&1).is_some());
        }
        assert!(kept.get(&2).is_none());
        kept.insert(1, vec![1; 10_000]);
        assert!(kept.get(&1).is_none(), "nor what was there before");
    }
}
