//! The wire form of membership.

use cairn_proto::{ClusterId, v1};

use super::state::{Members, NodeEntry, NodeState};
use crate::store::{AdminState, MemberState, ReplicaSet};

/// The whole map.
pub(super) fn build(cluster: ClusterId, term: u64, members: &Members) -> v1::ClusterMap {
    v1::ClusterMap {
        epoch: members.epoch,
        revision: members.revision,
        term,
        nodes: members.nodes.values().map(node).collect(),
        sets: members.sets.values().map(replica_set).collect(),
        cluster: cluster.to_wire(),
    }
}

fn node(entry: &NodeEntry) -> v1::Node {
    let state = match entry.state {
        NodeState::Up => v1::NodeState::Up,
        NodeState::Suspect => v1::NodeState::Suspect,
        NodeState::Down => v1::NodeState::Down,
        NodeState::Lost => v1::NodeState::Lost,
    };
    v1::Node {
        node: entry.row.id.to_wire(),
        address: entry.row.address.clone(),
        state: state.into(),
        labels: entry.row.labels.0.clone(),
        capacity: entry.report.capacity,
        used: entry.report.used,
        last_seen_ns: entry.last_seen_ns,
        metrics_address: entry.row.metrics_address.clone(),
        disks: entry.report.disks.clone(),
        version: entry.row.version.clone(),
        admin: admin_to_wire(entry.row.admin).into(),
    }
}

fn replica_set(set: &ReplicaSet) -> v1::ReplicaSet {
    let member = |member: &crate::store::Member| {
        let state = match member.state {
            MemberState::Active => v1::MemberState::Active,
            MemberState::Backfilling => v1::MemberState::Backfilling,
            MemberState::Lost => v1::MemberState::Lost,
            MemberState::Leaving => v1::MemberState::Leaving,
        };
        v1::Member { node: member.node.to_wire(), state: state.into() }
    };
    v1::ReplicaSet {
        id: set.id.get(),
        epoch: set.epoch,
        members: set.members.0.iter().map(member).collect(),
        replicas: set.replicas,
        min_replicas: set.min_replicas,
    }
}

/// What the operator wants of a datanode.
pub(crate) fn admin_to_wire(admin: AdminState) -> v1::AdminState {
    match admin {
        AdminState::In => v1::AdminState::In,
        AdminState::Draining => v1::AdminState::Draining,
        AdminState::Out => v1::AdminState::Out,
    }
}
