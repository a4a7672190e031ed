//! How replica sets heal: which members a set should have next.
//!
//! ```text
//! (chosen) ──▶ backfilling ── has all chunks ──▶ active ── drained, moved ──▶ leaving
//!                  ▲ │                             │                             │
//!            is back │ └──── datanode lost ──▶ lost ◀── datanode lost ───────────┤
//!                  └─┴────────────────────────── │ ── another is active ──▶ (gone) ◀┘
//!
//! leaving ── too few others are left, and its datanode serves ──▶ active
//! ```
//! One step is a pure function of the present members and the standing of datanodes, so that it can be
//! tried against every history. What it keeps: the last members that hold everything are never counted
//! as lost, and none of them goes before as many others as the policy wants hold everything too.

use std::collections::BTreeMap;

use cairn_proto::{NodeId, ReplicaSetId};
use cairn_runtime::bugs::{Bug, planted};

use super::selector::{Candidate, NodeSelector};
use super::state::{Members, NodeEntry, NodeState};
use crate::store::{AdminState, Member, MemberState, ReplicaSet};

/// New members of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetChange {
    pub(crate) set: ReplicaSetId,
    pub(crate) members: Vec<Member>,
}

/// The sets that need other members now, at most `limit` of them.
pub(crate) fn settle(members: &Members, selector: &dyn NodeSelector, limit: usize) -> Vec<SetChange> {
    let mut load = loads(members);
    let mut changes = Vec::new();
    for set in members.sets.values() {
        if changes.len() >= limit {
            break;
        }
        let wanted = settle_set(set, members, selector, &mut load);
        if wanted != set.members.0 {
            changes.push(SetChange { set: set.id, members: wanted });
        }
    }
    changes
}

/// In how many sets each datanode is, so that new members spread.
fn loads(members: &Members) -> BTreeMap<NodeId, usize> {
    let mut load = BTreeMap::new();
    for node in members.sets.values().flat_map(|set| set.members.nodes()) {
        *load.entry(node).or_insert(0) += 1;
    }
    load
}

fn settle_set(
    set: &ReplicaSet,
    members: &Members,
    selector: &dyn NodeSelector,
    load: &mut BTreeMap<NodeId, usize>,
) -> Vec<Member> {
    let replicas = set.replicas as usize;
    let mut next = set.members.0.clone();
    follow_nodes(&mut next, members);
    call_back(&mut next, members, replicas);
    let keepers = keepers(&next);
    let holders = next.iter().any(|member| holds_all(member.state));
    // Without anybody to copy from, a new member would only wait; unless nobody can come back: then it finds out which
    // chunks are lost, and the set is of use again.
    let given_up = next.iter().all(|member| is_removed(members.nodes.get(&member.node)));
    if (holders || given_up) && keepers < replicas {
        for node in choose(&next, members, selector, replicas - keepers, load) {
            let backfilled = planted(Bug::BackfillTooEarly);
            let state = if backfilled { MemberState::Active } else { MemberState::Backfilling };
            next.push(Member { node, state });
            *load.entry(node).or_insert(0) += 1;
        }
    }
    let_go(&mut next, members, replicas);
    next
}

/// Whether such a member holds every chunk of the set.
fn holds_all(state: MemberState) -> bool {
    matches!(state, MemberState::Active | MemberState::Leaving)
}

/// Whether such a member is to stay, and takes new chunks.
pub(super) fn stays(state: MemberState) -> bool {
    matches!(state, MemberState::Active | MemberState::Backfilling)
}

fn keepers(next: &[Member]) -> usize {
    next.iter().filter(|member| stays(member.state)).count()
}

/// When others are gone, members that were on their way out stay: they hold everything already, and there may
/// be nobody else.
fn call_back(next: &mut [Member], members: &Members, replicas: usize) {
    let missing = replicas.saturating_sub(keepers(next));
    let leaving = |member: &&mut Member| {
        member.state == MemberState::Leaving && serves(members.nodes.get(&member.node))
    };
    next.iter_mut().filter(leaving).take(missing).for_each(|member| member.state = MemberState::Active);
}

/// Takes over what became of the datanodes themselves.
fn follow_nodes(next: &mut [Member], members: &Members) {
    let entry = |node: NodeId| members.nodes.get(&node);
    let removed = |node| is_removed(entry(node));
    let gone = |node| is_gone(members, node);
    let a_holder_stays = next.iter().any(|member| holds_all(member.state) && !gone(member.node));
    for member in next {
        let node = member.node;
        member.state = match member.state {
            // An operator who removes a datanode has been told what is lost by it.
            state if holds_all(state) && (removed(node) || (gone(node) && a_holder_stays)) => {
                MemberState::Lost
            }
            MemberState::Backfilling if gone(node) => MemberState::Lost,
            MemberState::Lost if serves(entry(node)) => MemberState::Backfilling,
            MemberState::Active if entry(node).is_some_and(|e| e.row.admin == AdminState::Draining) => {
                MemberState::Leaving
            }
            state => state,
        };
    }
}

fn is_removed(entry: Option<&NodeEntry>) -> bool {
    entry.is_none_or(|entry| entry.row.admin == AdminState::Out)
}

/// Removed, or silent for so long that nobody waits for it.
pub(crate) fn is_gone(members: &Members, node: NodeId) -> bool {
    let entry = members.nodes.get(&node);
    is_removed(entry) || entry.is_some_and(|entry| entry.state == NodeState::Lost)
}

fn serves(entry: Option<&NodeEntry>) -> bool {
    entry.is_some_and(|entry| entry.state == NodeState::Up && entry.row.admin == AdminState::In)
}

/// New members for a set: up, wanted, with room, not in it yet, far from those that stay.
fn choose(
    present: &[Member],
    members: &Members,
    selector: &dyn NodeSelector,
    count: usize,
    load: &BTreeMap<NodeId, usize>,
) -> Vec<NodeId> {
    let candidate = |entry: &NodeEntry| Candidate {
        node: entry.row.id,
        labels: entry.row.labels.0.clone(),
        free: entry.free(),
        sets: load.get(&entry.row.id).copied().unwrap_or(0),
    };
    let is_member = |node: NodeId| present.iter().any(|member| member.node == node);
    let keeps = |node: NodeId| present.iter().any(|member| member.node == node && stays(member.state));
    let staying: Vec<Candidate> =
        members.nodes.values().filter(|entry| keeps(entry.row.id)).map(candidate).collect();
    let eligible: Vec<Candidate> = members
        .nodes
        .values()
        .filter(|entry| !is_member(entry.row.id) && can_take(entry))
        .map(candidate)
        .collect();
    selector.extend_set(&staying, &eligible, count)
}

/// Whether a datanode can take a place in a set.
pub(crate) fn can_take(entry: &NodeEntry) -> bool {
    serves(Some(entry)) && entry.has_room(0)
}

/// Lets go of members that are no longer needed: as many others as the policy wants hold everything.
fn let_go(next: &mut Vec<Member>, members: &Members, replicas: usize) {
    let active = next.iter().filter(|member| member.state == MemberState::Active).count();
    if active < replicas {
        return;
    }
    let up = |member: &Member| member.state == MemberState::Active && members.is_up(member.node);
    let safe = next.iter().filter(|member| up(member)).count() >= replicas;
    next.retain(|member| match member.state {
        MemberState::Active => true,
        MemberState::Lost | MemberState::Backfilling => false,
        MemberState::Leaving => !safe,
    });
    let free = |member: &Member| members.nodes.get(&member.node).map_or(0, NodeEntry::free);
    while safe && next.len() > replicas && next.iter().all(up) {
        let fullest = (0..next.len()).min_by_key(|&index| next.get(index).map_or(u64::MAX, free));
        fullest.map(|index| next.remove(index));
    }
}

/// What moving one member of a set would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) set: ReplicaSetId,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
}

/// Differences in use, in parts of the capacity, at which moving begins and at which it ends.
pub(crate) const REBALANCE_START: f64 = 0.10;
pub(crate) const REBALANCE_STOP: f64 = 0.05;

/// The move that brings the fullest and the emptiest datanode nearer to one another, when they are more
/// than `apart` of their capacity from one another.
///
/// `bytes` of each set: use is reckoned from what members will hold when all changes under way are done,
/// so that moves which have not freed anything yet are not made twice.
pub(crate) fn rebalance(members: &Members, bytes: &BTreeMap<ReplicaSetId, u64>, apart: f64) -> Option<Move> {
    let size = |set: ReplicaSetId| bytes.get(&set).copied().unwrap_or(0);
    let mut expected: BTreeMap<NodeId, u64> = BTreeMap::new();
    for set in members.sets.values() {
        for member in &set.members.0 {
            if stays(member.state) {
                *expected.entry(member.node).or_insert(0) += size(set.id);
            }
        }
    }
    let usage = |node: NodeId, change: f64| {
        let capacity = members.nodes.get(&node).map_or(0, |entry| entry.report.capacity).max(1);
        (expected.get(&node).copied().unwrap_or(0) as f64 + change) / capacity as f64
    };
    let mut nodes: Vec<NodeId> =
        members.nodes.values().filter(|entry| can_take(entry)).map(|entry| entry.row.id).collect();
    nodes.sort_by(|&a, &b| usage(b, 0.0).total_cmp(&usage(a, 0.0)).then(a.cmp(&b)));
    let (&fullest, &emptiest) = (nodes.first()?, nodes.last()?);
    let difference = usage(fullest, 0.0) - usage(emptiest, 0.0);
    if difference <= apart {
        return None;
    }
    let settled = |set: &&ReplicaSet| {
        set.members.0.iter().all(|member| member.state == MemberState::Active && members.is_up(member.node))
            && set.members.contains(fullest)
            && !set.members.contains(emptiest)
    };
    // The largest set that does not turn the difference around.
    let fits = |set: &&ReplicaSet| {
        let moved = size(set.id) as f64;
        moved > 0.0 && usage(emptiest, moved) - usage(fullest, -moved) < difference
    };
    let spread = |set: &&ReplicaSet| is_no_closer(set, members, fullest, emptiest);
    let best = members.sets.values().filter(settled).filter(fits).filter(spread);
    let best = best.max_by_key(|set| (size(set.id), std::cmp::Reverse(set.id)))?;
    Some(Move { set: best.id, from: fullest, to: emptiest })
}

/// Whether a set is spread over failure domains as well with `to` in the place of `from`.
fn is_no_closer(set: &ReplicaSet, members: &Members, from: NodeId, to: NodeId) -> bool {
    let labels = |node: NodeId| members.nodes.get(&node).map(|entry| &entry.row.labels.0);
    let shared = |node: NodeId| {
        let others = set.members.nodes().filter(|&other| other != from);
        others.map(|other| super::selector::shared_labels(labels(node), labels(other))).sum::<usize>()
    };
    shared(to) <= shared(from)
}

#[cfg(test)]
mod tests;
