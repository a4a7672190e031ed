//! What becomes of data when a datanode leaves, from the map alone: the sentences that a person decides by.

use cairn_proto::v1;

use crate::human;

fn serves(node: &v1::Node) -> bool {
    node.state() == v1::NodeState::Up && node.admin() == v1::AdminState::In
}

/// Whether a member holds every chunk of its set.
fn is_complete(member: &v1::Member) -> bool {
    matches!(member.state(), v1::MemberState::Active | v1::MemberState::Leaving)
}

fn has_place(set: &v1::ReplicaSet, node: &v1::Node) -> bool {
    set.members.iter().any(|member| member.node == node.node && member.state() != v1::MemberState::Lost)
}

/// What a removal by force takes away: nothing, redundancy, or the last copies that are known to be online.
pub(super) fn of_removal(map: &v1::ClusterMap, node: &v1::Node) -> String {
    let is_up =
        |id: &[u8]| map.nodes.iter().any(|other| other.node == id && other.state() == v1::NodeState::Up);
    let places = map.sets.iter().filter(|set| has_place(set, node));
    let only_here = |set: &&v1::ReplicaSet| {
        let mut others = set.members.iter().filter(|member| is_complete(member) && member.node != node.node);
        !others.any(|member| is_up(&member.node))
    };
    let (all, last) = (places.clone().count() as u64, places.filter(only_here).count() as u64);
    match (all, last) {
        (0, _) => "it has no place in any replica set, and nothing is lost".to_owned(),
        (all, 0) => format!(
            "every chunk of its {} has another copy on a datanode that is up, from which a copy is made again where \
             there is a place",
            human::count(all, "replica set")
        ),
        (all, last) => format!(
            "in {last} of its {} no other complete member is up: what only this one holds is lost for good",
            human::count(all, "replica set")
        ),
    }
}

/// Why the places of a datanode can go nowhere; `None` when another one can take them.
pub(super) fn nowhere_to_go(map: &v1::ClusterMap, node: &v1::Node) -> Option<String> {
    let others: Vec<_> = map.nodes.iter().filter(|other| other.node != node.node && serves(other)).collect();
    let free = |set: &&v1::ReplicaSet| {
        let member = |other: &&&v1::Node| set.members.iter().any(|member| member.node == other.node);
        others.iter().any(|other| !member(&other))
    };
    let stuck = map.sets.iter().filter(|set| has_place(set, node)).filter(|set| !free(set)).count() as u64;
    if stuck == 0 {
        return None;
    }
    let copies = map.sets.iter().map(|set| set.replicas).max().unwrap_or(0);
    let stuck = human::count(stuck, "replica set");
    Some(format!(
        "the places in {stuck} have nowhere to go: {} besides this one, and {copies} copies need as many; the drain \
         waits until a datanode joins (`cairn node undrain` takes it back)",
        human::count_of(others.len() as u64, "datanode serves", "datanodes serve")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(nodes: usize, members: &[&[u8]]) -> v1::ClusterMap {
        let node = |id: u8| v1::Node {
            node: bytes::Bytes::from(vec![id; 16]),
            state: v1::NodeState::Up.into(),
            admin: v1::AdminState::In.into(),
            ..Default::default()
        };
        let member = |id: &u8| v1::Member {
            node: bytes::Bytes::from(vec![*id; 16]),
            state: v1::MemberState::Active.into(),
        };
        let set = |ids: &&[u8]| v1::ReplicaSet {
            members: ids.iter().map(member).collect(),
            replicas: ids.len() as u32,
            ..Default::default()
        };
        v1::ClusterMap {
            nodes: (0..nodes as u8).map(node).collect(),
            sets: members.iter().map(set).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_drain_with_as_many_datanodes_as_copies_has_nowhere_to_go() {
        let three = map(3, &[&[0, 1, 2]]);
        let sentence = nowhere_to_go(&three, &three.nodes[0]).unwrap();
        assert!(sentence.contains("2 datanodes serve") && sentence.contains("3 copies"), "{sentence}");
        let four = map(4, &[&[0, 1, 2]]);
        assert_eq!(nowhere_to_go(&four, &four.nodes[0]), None);
        assert_eq!(nowhere_to_go(&four, &four.nodes[3]), None, "it has no place");
    }

    #[test]
    fn a_removal_says_whether_the_last_copies_go() {
        let mut map = map(3, &[&[0, 1, 2]]);
        assert!(of_removal(&map, &map.nodes[0].clone()).contains("another copy"));
        for node in &mut map.nodes[1..] {
            node.state = v1::NodeState::Down.into();
        }
        assert!(of_removal(&map, &map.nodes[0].clone()).contains("lost for good"));
        map.sets.clear();
        assert!(of_removal(&map, &map.nodes[0].clone()).contains("nothing is lost"));
    }
}
