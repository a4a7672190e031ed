//! Where chunks go: which datanodes form a set, and which set takes the next chunk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cairn_proto::{NodeId, ReplicaSetId};

/// Sets that each datanode leads when there are more datanodes than replicas. With three replicas a
/// datanode then shares chunks with about 8 others: enough to rebuild from in parallel, few enough
/// that three failures at once seldom hit all copies of a chunk (copysets, Cidon 2013).
const SETS_LED: usize = 2;
/// Failure domains, the widest first.
const DOMAINS: [&str; 3] = ["zone", "rack", "host"];

/// A datanode that may become a member.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) node: NodeId,
    pub(crate) labels: BTreeMap<String, String>,
    /// Bytes.
    pub(crate) free: u64,
    /// Sets that it is a member of already.
    pub(crate) sets: usize,
}

/// A set that may take chunks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetCandidate {
    pub(crate) set: ReplicaSetId,
    /// Bytes free on its fullest member.
    pub(crate) free: u64,
}

/// Makes sets and picks one for each chunk.
pub(crate) trait NodeSelector: Send + Sync + fmt::Debug {
    /// New sets led by `primary`, each of `replicas` members or of all nodes when there are fewer.
    fn make_sets(&self, primary: NodeId, nodes: &[Candidate], replicas: usize) -> Vec<Vec<NodeId>>;

    /// At most `count` of `candidates` to join the `staying` members of a set.
    fn extend_set(&self, staying: &[Candidate], candidates: &[Candidate], count: usize) -> Vec<NodeId>;

    /// At most `count` of the sets, in the order in which they are to be used. `draw` gives numbers
    /// in `[0, 1)`.
    fn pick(&self, sets: &[SetCandidate], count: usize, draw: &mut dyn FnMut() -> f64) -> Vec<ReplicaSetId>;
}

/// Spreads members over failure domains, chunks by free space.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpreadSelector;

impl NodeSelector for SpreadSelector {
    fn make_sets(&self, primary: NodeId, nodes: &[Candidate], replicas: usize) -> Vec<Vec<NodeId>> {
        if nodes.len() <= replicas {
            return vec![rotation(primary, nodes)];
        }
        let mut partners: BTreeSet<NodeId> = BTreeSet::new();
        let mut made = Vec::new();
        for _ in 0..SETS_LED {
            let set = spread(primary, nodes, replicas, &partners);
            partners.extend(set.iter().skip(1));
            if made.contains(&set) {
                break;
            }
            made.push(set);
        }
        made
    }

    fn extend_set(&self, staying: &[Candidate], candidates: &[Candidate], count: usize) -> Vec<NodeId> {
        let mut members: Vec<&Candidate> = staying.iter().collect();
        for _ in 0..count {
            match farthest(&members, candidates, &BTreeSet::new()) {
                Some(best) => members.push(best),
                None => break,
            }
        }
        members.split_off(staying.len()).into_iter().map(|member| member.node).collect()
    }

    fn pick(&self, sets: &[SetCandidate], count: usize, draw: &mut dyn FnMut() -> f64) -> Vec<ReplicaSetId> {
        // Weighted sampling without replacement (Efraimidis and Spirakis 2006): the greatest
        // draw^(1/weight) first, in logarithms.
        let mut keyed: Vec<(f64, ReplicaSetId)> = sets
            .iter()
            .map(|candidate| {
                let weight = (candidate.free.max(1) as f64) / f64::from(1 << 30);
                (draw().max(f64::MIN_POSITIVE).ln() / weight, candidate.set)
            })
            .collect();
        keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
        keyed.into_iter().take(count).map(|(_, set)| set).collect()
    }
}

/// All nodes, beginning with `primary`: when each leads one such set, the load of leading spreads.
fn rotation(primary: NodeId, nodes: &[Candidate]) -> Vec<NodeId> {
    let mut all: Vec<NodeId> = nodes.iter().map(|candidate| candidate.node).collect();
    all.sort_unstable();
    let start = all.iter().position(|&node| node == primary).unwrap_or(0);
    all.rotate_left(start);
    all
}

/// `primary` and the others that share the fewest failure domains with the members so far; among
/// equals those not yet `partners`, then those in the fewest sets, then those with the most room.
fn spread(primary: NodeId, nodes: &[Candidate], replicas: usize, partners: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let mut members: Vec<&Candidate> = nodes.iter().filter(|candidate| candidate.node == primary).collect();
    while members.len() < replicas {
        match farthest(&members, nodes, partners) {
            Some(best) => members.push(best),
            None => break,
        }
    }
    members.into_iter().map(|member| member.node).collect()
}

/// The candidate that shares the fewest failure domains with the members; among equals one that is not
/// among the `partners`, then the one in the fewest sets, then that with the most room.
fn farthest<'a>(
    members: &[&Candidate],
    candidates: &'a [Candidate],
    partners: &BTreeSet<NodeId>,
) -> Option<&'a Candidate> {
    let left = candidates.iter().filter(|c| !members.iter().any(|member| member.node == c.node));
    left.min_by_key(|candidate| {
        let shared: usize = members.iter().map(|member| shared_domains(member, candidate)).sum();
        let known = partners.contains(&candidate.node);
        (shared, known, candidate.sets, std::cmp::Reverse(candidate.free), candidate.node)
    })
}

/// How close two nodes are: a shared zone alone counts less than a shared rack, that less than a host.
fn shared_domains(a: &Candidate, b: &Candidate) -> usize {
    shared_labels(Some(&a.labels), Some(&b.labels))
}

/// In how many failure domains both are, by their labels.
pub(super) fn shared_labels(
    a: Option<&BTreeMap<String, String>>,
    b: Option<&BTreeMap<String, String>>,
) -> usize {
    let (Some(a), Some(b)) = (a, b) else { return 0 };
    let shared = |domain: &&str| a.get(*domain).is_some_and(|x| b.get(*domain) == Some(x));
    DOMAINS.iter().filter(|domain| shared(domain)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn node(number: u128, rack: &str) -> Candidate {
        Candidate {
            node: NodeId::from_uuid(Uuid::from_u128(number)),
            labels: BTreeMap::from([("rack".into(), rack.into())]),
            free: 1 << 30,
            sets: 0,
        }
    }

    #[test]
    fn with_as_many_nodes_as_replicas_each_leads_a_rotation() {
        let nodes: Vec<_> = (1..=3).map(|n| node(n, "a")).collect();
        let led = SpreadSelector.make_sets(nodes[1].node, &nodes, 3);
        assert_eq!(led, [vec![nodes[1].node, nodes[2].node, nodes[0].node]]);
    }

    #[test]
    fn members_are_spread_over_racks() {
        let nodes = [node(1, "a"), node(2, "a"), node(3, "b"), node(4, "b"), node(5, "c"), node(6, "c")];
        for led in SpreadSelector.make_sets(nodes[0].node, &nodes, 3) {
            let racks: BTreeSet<_> =
                nodes.iter().filter(|n| led.contains(&n.node)).map(|n| n.labels["rack"].clone()).collect();
            assert_eq!((led[0], led.len(), racks.len()), (nodes[0].node, 3, 3));
        }
    }

    #[test]
    fn sets_with_more_room_are_picked_more_often() {
        let set = |n| ReplicaSetId::new(n).unwrap();
        let sets = [SetCandidate { set: set(1), free: 1 << 30 }, SetCandidate { set: set(2), free: 9 << 30 }];
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let first = (0..2000).filter(|_| SpreadSelector.pick(&sets, 1, &mut draw)[0] == set(2)).count();
        assert!((1700..1900).contains(&first), "{first} of 2000 where 1800 were due");
    }
}
