//! The map of datanodes and replica sets, as last heard from the coordinator.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cairn_proto::{NodeId, ReplicaSetId, v1};
use cairn_runtime::clock;
use tokio::sync::watch;
use tracing::warn;

/// How the coordinator sees a datanode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    Up,
    Suspect,
    Down,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) address: String,
    pub(crate) liveness: Liveness,
}

#[derive(Debug, Clone)]
pub(crate) struct ReplicaSet {
    pub(crate) epoch: u64,
    /// Those that hold or get copies; the first is the primary.
    pub(crate) members: Vec<NodeId>,
    /// Those of them that are still to get older chunks.
    pub(crate) backfilling: Vec<NodeId>,
    pub(crate) min_replicas: usize,
}

/// Orders maps.
pub(crate) type Revision = (u64, u64);

#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) revision: Revision,
    pub(crate) nodes: HashMap<NodeId, Node>,
    pub(crate) sets: HashMap<ReplicaSetId, ReplicaSet>,
}

impl Map {
    pub(crate) fn liveness(&self, node: NodeId) -> Liveness {
        self.nodes.get(&node).map_or(Liveness::Down, |node| node.liveness)
    }

    /// Takes what is well-formed; a bad row is left out, so that the rest can be worked with.
    fn from_wire(map: v1::ClusterMap) -> Self {
        let mut taken = Self { revision: (map.term, map.revision), ..Self::default() };
        for node in map.nodes {
            let liveness = match node.state() {
                v1::NodeState::Up => Liveness::Up,
                v1::NodeState::Suspect => Liveness::Suspect,
                v1::NodeState::Down | v1::NodeState::Lost | v1::NodeState::Unspecified => Liveness::Down,
            };
            match NodeId::from_wire(&node.node) {
                Ok(id) => drop(taken.nodes.insert(id, Node { address: node.address, liveness })),
                Err(error) => warn!(%error, "the map names an impossible datanode"),
            }
        }
        for set in map.sets {
            let Ok(id) = ReplicaSetId::new(set.id) else {
                warn!(id = set.id, "the map names an impossible replica set");
                continue;
            };
            let holds = |member: &&v1::Member| member.state() != v1::MemberState::Lost;
            let members = set.members.iter().filter(holds);
            let id_of = |member: &v1::Member| NodeId::from_wire(&member.node).ok();
            let filled = |member: &&v1::Member| member.state() == v1::MemberState::Backfilling;
            let backfilling = members.clone().filter(filled).filter_map(id_of).collect();
            let members = members.filter_map(id_of).collect();
            let min_replicas = usize::try_from(set.min_replicas).unwrap_or(usize::MAX).max(1);
            taken.sets.insert(id, ReplicaSet { epoch: set.epoch, members, backfilling, min_replicas });
        }
        taken
    }
}

/// The present map; replaced as a whole.
#[derive(Debug)]
pub(crate) struct MapCell {
    current: ArcSwap<Map>,
    revision: watch::Sender<Revision>,
}

impl MapCell {
    pub(crate) fn new() -> Self {
        Self { current: ArcSwap::default(), revision: watch::Sender::new((0, 0)) }
    }

    pub(crate) fn get(&self) -> Arc<Map> {
        self.current.load_full()
    }

    /// What a request says it has; 0 when the coordinator is another since.
    pub(crate) fn revision(&self) -> u64 {
        self.current.load().revision.1
    }

    /// Takes a map that came along, when it is newer than the present one.
    pub(crate) fn adopt(&self, map: Option<v1::ClusterMap>) {
        let Some(map) = map else { return };
        let map = Arc::new(Map::from_wire(map));
        self.revision.send_if_modified(|revision| {
            let newer = map.revision > *revision;
            if newer {
                *revision = map.revision;
                self.current.store(Arc::clone(&map));
            }
            newer
        });
    }

    /// Waits until the map is newer than `seen`, at most `limit`.
    pub(crate) async fn newer_than(&self, seen: Revision, limit: Duration) {
        let mut revision = self.revision.subscribe();
        // Either outcome is fine: the caller looks at the map that there is then.
        let _ = clock::timeout(limit, revision.wait_for(|revision| *revision > seen)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_map_never_replaces_a_newer_one() {
        let cell = MapCell::new();
        let map = |term, revision| Some(v1::ClusterMap { term, revision, ..Default::default() });
        cell.adopt(map(1, 9));
        cell.adopt(map(1, 8));
        assert_eq!(cell.get().revision, (1, 9));
        cell.adopt(map(2, 1)); // a restarted coordinator counts from the start
        assert_eq!(cell.get().revision, (2, 1));
        cell.adopt(map(1, 100));
        assert_eq!(cell.get().revision, (2, 1));
    }
}
