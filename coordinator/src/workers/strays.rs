//! Copies that no row accounts for, as the comparison of inventories has found them, until they are seen
//! again. Kept in memory: after a restart they are found anew, and their grace begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cairn_proto::{ChunkId, NodeId};

/// Strays that are remembered, of all datanodes; about 64 bytes each. More wait for the next comparison.
const STRAYS_MAX: usize = 1 << 20;

/// Datanode → chunk → when it was first seen.
#[derive(Debug, Default)]
pub(crate) struct Strays(Mutex<BTreeMap<NodeId, BTreeMap<ChunkId, i64>>>);

impl Strays {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, BTreeMap<ChunkId, i64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A complete listing of the ids from `first` to `last` shows these and no others.
    pub(crate) fn listed(
        &self,
        node: NodeId,
        (first, last): (ChunkId, ChunkId),
        extra: &[ChunkId],
        now_ns: i64,
    ) {
        let mut all = self.lock();
        let mut room = STRAYS_MAX.saturating_sub(all.values().map(BTreeMap::len).sum());
        let of_node = all.entry(node).or_default();
        let listed: BTreeSet<_> = extra.iter().copied().collect();
        of_node.retain(|chunk, _| !(first..=last).contains(chunk) || listed.contains(chunk));
        for chunk in listed {
            if room > 0 && !of_node.contains_key(&chunk) {
                of_node.insert(chunk, now_ns);
                room -= 1;
            }
        }
        all.retain(|_, chunks| !chunks.is_empty());
    }

    /// Strays of `node` that were first seen at `seen_ns` or before, the lowest ids first: at most `limit`,
    /// all within `span` ids.
    pub(crate) fn due(&self, node: NodeId, seen_ns: i64, span: u64, limit: usize) -> BTreeSet<ChunkId> {
        let all = self.lock();
        let of_node = all.get(&node).into_iter().flatten();
        let mut due = of_node.filter(|(_, first)| **first <= seen_ns).map(|(chunk, _)| *chunk).peekable();
        let Some(&first) = due.peek() else { return BTreeSet::new() };
        due.take_while(|chunk| chunk.get() - first.get() < span).take(limit).collect()
    }

    /// These are dealt with: deleted, gone, or accounted for.
    pub(crate) fn forget(&self, node: NodeId, chunks: &BTreeSet<ChunkId>) {
        let mut all = self.lock();
        if let Some(of_node) = all.get_mut(&node) {
            of_node.retain(|chunk, _| !chunks.contains(chunk));
        }
        all.retain(|_, chunks| !chunks.is_empty());
    }

    /// These may not be deleted yet: their grace begins anew.
    pub(crate) fn defer(&self, node: NodeId, chunks: &BTreeSet<ChunkId>, now_ns: i64) {
        if let Some(of_node) = self.lock().get_mut(&node) {
            for (_, first) in of_node.iter_mut().filter(|(chunk, _)| chunks.contains(chunk)) {
                *first = now_ns;
            }
        }
    }

    /// Datanodes that have any.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    pub(crate) fn len(&self) -> u64 {
        self.lock().values().map(|chunks| chunks.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn ids(ids: &[u64]) -> Vec<ChunkId> {
        ids.iter().map(|&id| ChunkId::new(id).unwrap()).collect()
    }

    #[test]
    fn a_stray_keeps_the_time_of_its_first_sight_and_one_that_is_gone_is_forgotten() {
        let (strays, node) = (Strays::default(), NodeId::from_uuid(Uuid::from_u128(1)));
        let range = |first, last| (ChunkId::new(first).unwrap(), ChunkId::new(last).unwrap());
        let due = |seen, span, limit| strays.due(node, seen, span, limit).into_iter().collect::<Vec<_>>();
        strays.listed(node, range(1, 100), &ids(&[3, 50, 90]), 10);
        strays.listed(node, range(1, 60), &ids(&[3, 4]), 20);
        assert_eq!(strays.len(), 3);
        assert_eq!(due(10, 1000, 10), ids(&[3, 90]));
        assert_eq!(due(20, 1000, 2), ids(&[3, 4]));
        assert_eq!(due(20, 50, 10), ids(&[3, 4]));
        assert_eq!(due(9, 1000, 10), ids(&[]));
        strays.defer(node, &ids(&[3]).into_iter().collect(), 30);
        assert_eq!(due(20, 1000, 10), ids(&[4, 90]));
        strays.forget(node, &ids(&[3, 4, 90]).into_iter().collect());
        assert_eq!((strays.len(), strays.nodes().len()), (0, 0));
    }
}
