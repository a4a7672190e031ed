//! The map of the cluster as this node knows it, ordered by (term, revision).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ClusterId, Epoch, ErrorKind, IdError, NodeId, ReplicaSetId, WireError, v1};
use cairn_runtime::clock;
use tokio::sync::watch;

use crate::identity::Fence;

/// A sender whose map is newer than ours waits this long for ours to catch up.
const CATCH_UP: Duration = Duration::from_secs(2);

/// Another datanode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeEntry {
    pub(crate) address: String,
    pub(crate) state: v1::NodeState,
}

/// The members of a replica set, in order; lost ones are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) epoch: Epoch,
    pub(crate) members: Vec<NodeId>,
}

/// One version of the map.
#[derive(Debug, Clone, Default)]
pub(crate) struct Map {
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) term: u64,
    pub(crate) revision: u64,
    pub(crate) epoch: u64,
    pub(crate) nodes: HashMap<NodeId, NodeEntry>,
    pub(crate) sets: HashMap<ReplicaSetId, Set>,
}

impl Map {
    /// Takes a map from the wire.
    ///
    /// # Errors
    /// An identifier that is none: the whole map is refused, the old one stays.
    pub(crate) fn from_wire(map: &v1::ClusterMap) -> Result<Self, IdError> {
        let mut nodes = HashMap::with_capacity(map.nodes.len());
        for node in &map.nodes {
            let state = v1::NodeState::try_from(node.state).unwrap_or(v1::NodeState::Unspecified);
            nodes.insert(NodeId::from_wire(&node.node)?, NodeEntry { address: node.address.clone(), state });
        }
        let mut sets = HashMap::with_capacity(map.sets.len());
        for set in &map.sets {
            let members = set
                .members
                .iter()
                .filter(|member| member.state != i32::from(v1::MemberState::Lost))
                .map(|member| NodeId::from_wire(&member.node))
                .collect::<Result<_, _>>()?;
            sets.insert(ReplicaSetId::new(set.id)?, Set { epoch: Epoch::new(set.epoch)?, members });
        }
        let cluster = (!map.cluster.is_empty()).then(|| ClusterId::from_wire(&map.cluster)).transpose()?;
        Ok(Self { cluster, term: map.term, revision: map.revision, epoch: map.epoch, nodes, sets })
    }

    /// Whether the coordinator counts a node as absent.
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        self.nodes
            .get(&node)
            .is_none_or(|entry| matches!(entry.state, v1::NodeState::Down | v1::NodeState::Lost))
    }

    /// Those who share a set with `me`, and where to reach them.
    pub(crate) fn partners(&self, me: NodeId) -> HashMap<NodeId, NodeEntry> {
        let shared = self.sets.values().filter(|set| set.members.contains(&me));
        shared
            .flat_map(|set| &set.members)
            .filter(|&&node| node != me)
            .filter_map(|&node| Some((node, self.nodes.get(&node)?.clone())))
            .collect()
    }

    /// Where this map stands for deletions.
    pub(crate) fn fence(&self) -> Fence {
        Fence { term: self.term, epoch: self.epoch, sequence: 0 }
    }

    fn order(&self) -> (u64, u64) {
        (self.term, self.revision)
    }
}

/// The newest map, and those who wait for a newer one.
pub(crate) struct Maps {
    me: NodeId,
    current: watch::Sender<Arc<Map>>,
}

impl Maps {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, current: watch::Sender::new(Arc::default()) }
    }

    /// The newest map.
    pub(crate) fn get(&self) -> Arc<Map> {
        Arc::clone(&self.current.borrow())
    }

    /// Takes a map when it is newer; says whether it was.
    pub(crate) fn adopt(&self, map: Map) -> bool {
        self.current.send_if_modified(|current| {
            let is_newer = map.order() > current.order();
            if is_newer {
                *current = Arc::new(map);
            }
            is_newer
        })
    }

    /// The map in which `set` has exactly `epoch` and this node as a member; waits up to two seconds
    /// for a map that is behind.
    ///
    /// `StaleEpoch`: the sender is behind, or this node stays behind. `InvalidArgument`: this node
    /// is no member.
    pub(crate) async fn at(&self, set: ReplicaSetId, epoch: Epoch) -> Result<Arc<Map>, WireError> {
        let mut watch = self.current.subscribe();
        let ready = watch.wait_for(|map| map.sets.get(&set).is_some_and(|found| found.epoch >= epoch));
        let map = match clock::timeout(CATCH_UP, ready).await {
            Ok(Ok(map)) => Arc::clone(&map),
            _ => {
                let text = format!("set {set} is not known here at epoch {epoch}");
                return Err(WireError::new(ErrorKind::StaleEpoch, text));
            }
        };
        let found = map.sets.get(&set).map(|found| (found.epoch, found.members.contains(&self.me)));
        match found {
            Some((now, _)) if now > epoch => {
                let text = format!("set {set} is at epoch {now}, not {epoch}");
                Err(WireError::new(ErrorKind::StaleEpoch, text))
            }
            Some((_, true)) => Ok(map),
            _ => Err(WireError::new(
                ErrorKind::InvalidArgument,
                format!("datanode {} is no member of set {set}", self.me),
            )),
        }
    }
}
