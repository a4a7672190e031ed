//! Which sets a plan may use, and which must be made first.
//!
//! Members that are lost or leaving do not count. In this order: sets of full size whose members are all up and have room; new ones of that kind;
//! sets of which at least `min_replicas` members can take chunks; new short ones. When nothing is
//! left, the answer says whether it lacks room or datanodes.

use std::collections::BTreeSet;

use cairn_proto::{ErrorKind, NodeId, ReplicaSetId};

use super::change::stays;
use super::selector::{Candidate, NodeSelector, SetCandidate};
use super::state::{Members, NodeEntry, NodeState};
use crate::context::Policy;
use crate::error::OpError;
use crate::store::{AdminState, MemberState, ReplicaSet};

/// An excluded datanode with less room than this part of its capacity was excluded for lack of it.
const FULL_PART: u64 = 10;
/// Sets at most; the map lists them all.
const SETS_MAX: usize = 10_000;

/// What to do for a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Use some of these sets.
    Use(Vec<ReplicaSetId>),
    /// Make these sets, then ask again.
    Make(Vec<Vec<NodeId>>),
}

/// Decides for chunks of `size` bytes, avoiding `excluded` datanodes.
///
/// `NoSpace`: enough datanodes are up, but they lack room. `Unavailable`: too few are up.
pub(crate) fn place(
    members: &Members,
    selector: &dyn NodeSelector,
    policy: &Policy,
    excluded: &BTreeSet<NodeId>,
    size: u64,
    draw: &mut dyn FnMut() -> f64,
    count: usize,
) -> Result<Placement, OpError> {
    let usable: Vec<&NodeEntry> = members
        .nodes
        .values()
        .filter(|entry| {
            entry.state == NodeState::Up
                && !excluded.contains(&entry.row.id)
                && entry.row.admin == AdminState::In
                && entry.has_room(size)
        })
        .collect();
    let is_usable = |node: NodeId| usable.iter().any(|entry| entry.row.id == node);
    let replicas = policy.replicas as usize;
    let min = policy.min_replicas as usize;
    let may_make = members.sets.len() < SETS_MAX;

    let whole = |set: &&ReplicaSet| {
        let leaving = set.members.0.iter().any(|member| member.state == MemberState::Leaving);
        !leaving && takers(set).count() >= replicas && takers(set).all(is_usable)
    };
    if usable.len() >= replicas && may_make {
        // A node that leads no set would never get its share.
        let full_sets: Vec<_> = members.sets.values().filter(|set| set.members.0.len() >= replicas).collect();
        let leads = |node: NodeId| full_sets.iter().any(|set| set.members.nodes().next() == Some(node));
        let idle: Vec<_> = usable.iter().filter(|entry| !leads(entry.row.id)).collect();
        let stuck = !members.sets.values().any(|set| whole(&set));
        let leaders: Vec<NodeId> = match (idle.is_empty(), stuck) {
            (false, _) => idle.iter().map(|entry| entry.row.id).collect(),
            (true, true) => usable.iter().map(|entry| entry.row.id).collect(),
            (true, false) => Vec::new(),
        };
        if !leaders.is_empty() {
            return Ok(Placement::Make(sets_led_by(&leaders, members, &usable, selector, replicas)));
        }
    }
    let quick = |set: &&ReplicaSet| {
        takers(set).all(|node| members.nodes.get(&node).is_some_and(|entry| !entry.is_slow()))
    };
    let picked = pick(members, selector, members.sets.values().filter(whole).filter(quick), draw, count);
    if !picked.is_empty() {
        return Ok(Placement::Use(picked));
    }
    let picked = pick(members, selector, members.sets.values().filter(whole), draw, count);
    if !picked.is_empty() {
        return Ok(Placement::Use(picked));
    }

    let live = |set: &ReplicaSet| takers(set).filter(|&node| is_usable(node)).count();
    let most = members.sets.values().map(live).max().unwrap_or(0);
    if most < usable.len().min(replicas) && usable.len() >= min && may_make {
        let leaders: Vec<NodeId> = usable.iter().map(|entry| entry.row.id).collect();
        return Ok(Placement::Make(sets_led_by(&leaders, members, &usable, selector, replicas)));
    }
    let degraded = members.sets.values().filter(|set| live(set) >= min && live(set) == most);
    let picked = pick(members, selector, degraded, draw, count);
    if !picked.is_empty() {
        return Ok(Placement::Use(picked));
    }
    Err(nothing_left(members, policy, excluded, size))
}

/// Members that new chunks of a set are meant for.
fn takers(set: &ReplicaSet) -> impl Iterator<Item = NodeId> + '_ {
    set.members.0.iter().filter(|member| stays(member.state)).map(|member| member.node)
}

fn sets_led_by(
    leaders: &[NodeId],
    members: &Members,
    usable: &[&NodeEntry],
    selector: &dyn NodeSelector,
    replicas: usize,
) -> Vec<Vec<NodeId>> {
    let membership = |node: NodeId| members.sets.values().filter(|set| set.members.contains(node)).count();
    let mut candidates: Vec<Candidate> = usable
        .iter()
        .map(|entry| Candidate {
            node: entry.row.id,
            labels: entry.row.labels.0.clone(),
            free: entry.free(),
            sets: membership(entry.row.id),
        })
        .collect();
    let mut made = Vec::new();
    for &leader in leaders {
        let sets = selector.make_sets(leader, &candidates, replicas);
        for candidate in &mut candidates {
            candidate.sets += sets.iter().filter(|set| set.contains(&candidate.node)).count();
        }
        made.extend(sets);
    }
    made
}

fn pick<'a>(
    members: &Members,
    selector: &dyn NodeSelector,
    sets: impl Iterator<Item = &'a ReplicaSet>,
    draw: &mut dyn FnMut() -> f64,
    count: usize,
) -> Vec<ReplicaSetId> {
    let free = |set: &ReplicaSet| {
        let up = set.members.nodes().filter(|&node| members.is_up(node));
        up.filter_map(|node| members.nodes.get(&node)).map(NodeEntry::free).min().unwrap_or(0)
    };
    let candidates: Vec<_> = sets.map(|set| SetCandidate { set: set.id, free: free(set) }).collect();
    selector.pick(&candidates, count, draw)
}

/// Why new chunks of the usual size find no room although enough datanodes are up; `None` when they do.
pub(crate) fn lack_of_room(members: &Members, policy: &Policy) -> Option<String> {
    full(members, policy, &BTreeSet::new(), policy.chunk_size)
}

fn full(members: &Members, policy: &Policy, excluded: &BTreeSet<NodeId>, size: u64) -> Option<String> {
    let min = policy.min_replicas as usize;
    let up: Vec<_> = members.nodes.values().filter(|entry| entry.state == NodeState::Up).collect();
    let full = |entry: &&&NodeEntry| {
        let excluded = excluded.contains(&entry.row.id);
        !entry.has_room(size) || (excluded && entry.free() < entry.report.capacity / FULL_PART + size)
    };
    let full = up.iter().filter(full).count();
    (up.len() >= min && up.len() - full < min)
        .then(|| format!("{full} of {} datanodes are full; {min} with room are needed", up.len()))
}

fn nothing_left(members: &Members, policy: &Policy, excluded: &BTreeSet<NodeId>, size: u64) -> OpError {
    if let Some(message) = full(members, policy, excluded, size) {
        return OpError::new(ErrorKind::NoSpace, message);
    }
    let min = policy.min_replicas as usize;
    let up: Vec<_> = members.nodes.values().filter(|entry| entry.state == NodeState::Up).collect();
    let (needed, are) = match (min, up.len()) {
        (1, up) => ("1 datanode is needed".to_owned(), up),
        (min, up) => (format!("{min} datanodes are needed"), up),
    };
    let are = match are {
        1 => "1 is up".to_owned(),
        n => format!("{n} are up"),
    };
    let excluded = match excluded.len() {
        0 => String::new(),
        n => format!(", {n} of all are excluded by the request"),
    };
    OpError::new(ErrorKind::Unavailable, format!("{needed}, {are}{excluded}"))
}

#[cfg(test)]
mod tests;
