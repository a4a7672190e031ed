//! Datanodes and the replica sets that they are members of.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::{ChunkId, ErrorKind, NodeId, ReplicaSetId};

use crate::error::OpError;
use crate::executor::Tx;
use crate::membership::change::{self, Move, SetChange};
use crate::store::{
    AdminState, Chunk, Count, Counter, Datanode, Fault, Key, Member, MemberState, ReplicaSet, Scan, Table,
};

/// Sets that one call of [`settle`] changes at most.
const SETTLE_STEP: usize = 256;
/// Faults that are looked at before a member is let go; while there are more, none is.
const FAULTS_MAX: usize = 4096;

/// What an operator wants of a datanode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeWish {
    /// Take no new chunks; let others take its places.
    Drain,
    /// Serve again.
    Undrain,
    /// It is gone and may not come back.
    Remove { force: bool },
    /// Another one takes all its places.
    Replace { by: NodeId },
}

/// A datanode has registered. What the operator wants of it stays.
pub(crate) fn record(tx: &mut Tx, mut node: Datanode) -> Result<(), OpError> {
    if let Some(known) = tx.find::<Datanode>(&Key::Datanode(node.id))? {
        node.admin = known.admin;
    }
    tx.put(node);
    Ok(())
}

/// Does what an operator wants of a datanode. Returns its state, and in how many sets it has a place.
///
/// `NotFound`: no such datanode. `Busy`: it can not be removed yet. `InvalidArgument`: it can not be
/// replaced by itself, or by one that does not serve.
pub(crate) fn set_admin(tx: &mut Tx, node: NodeId, wish: NodeWish) -> Result<(AdminState, u32), OpError> {
    let unknown = || OpError::new(ErrorKind::NotFound, format!("there is no datanode {node}"));
    let mut row: Datanode = tx.find(&Key::Datanode(node))?.ok_or_else(unknown)?;
    if row.admin == AdminState::Out && !matches!(wish, NodeWish::Remove { .. }) {
        let message = format!("datanode {} was removed; it can not serve again", node.short());
        return Err(OpError::invalid(message));
    }
    let changes = match wish {
        NodeWish::Drain => Vec::new(),
        NodeWish::Undrain => return_places(tx, node),
        NodeWish::Remove { force } => {
            check_removal(tx, node, force)?;
            Vec::new()
        }
        NodeWish::Replace { by } => hand_over(tx, node, by)?,
    };
    row.admin = match wish {
        NodeWish::Drain | NodeWish::Replace { .. } => AdminState::Draining,
        NodeWish::Undrain => AdminState::In,
        NodeWish::Remove { .. } => AdminState::Out,
    };
    let admin = row.admin;
    tx.put(row);
    tx.context.cluster.members().set_admin(node, admin);
    tracing::info!(node = %node, ?wish, "an operator changed the standing of a datanode");
    change_sets(tx, changes)?;
    let sets = tx.context.cluster.members().sets.values().filter(|set| holds_place(set, node)).count();
    Ok((admin, u32::try_from(sets).unwrap_or(u32::MAX)))
}

/// Whether a datanode counts for something in a set.
pub(crate) fn holds_place(set: &ReplicaSet, node: NodeId) -> bool {
    set.members.0.iter().any(|member| member.node == node && member.state != MemberState::Lost)
}

fn return_places(tx: &Tx, node: NodeId) -> Vec<SetChange> {
    let members = tx.context.cluster.members();
    let leaving = |set: &&ReplicaSet| {
        set.members.0.iter().any(|member| member.node == node && member.state == MemberState::Leaving)
    };
    let back = |set: &ReplicaSet| {
        let back = |member: &Member| match member.state {
            MemberState::Leaving if member.node == node => Member { state: MemberState::Active, ..*member },
            _ => *member,
        };
        SetChange { set: set.id, members: set.members.0.iter().map(back).collect() }
    };
    members.sets.values().filter(leaving).map(back).collect()
}

fn check_removal(tx: &Tx, node: NodeId, force: bool) -> Result<(), OpError> {
    let members = tx.context.cluster.members();
    let holds_all = |member: &Member| matches!(member.state, MemberState::Active | MemberState::Leaving);
    let places = members.sets.values().filter(|set| holds_place(set, node)).count();
    let last = members.sets.values().filter(|set| {
        let mut holders = set.members.0.iter().filter(|member| holds_all(member)).map(|member| member.node);
        holders.clone().any(|holder| holder == node)
            && !holders.any(|holder| holder != node && members.is_up(holder))
    });
    let last = last.count();
    if force || (places == 0) {
        return Ok(());
    }
    let short = node.short();
    let message = match last {
        0 => format!(
            "datanode {short} still has a place in {places} replica sets; drain it first (`cairn node drain \
             {short} --wait`), or remove it by force when it is gone for good: every set has another complete member \
             that is up"
        ),
        _ => format!(
            "datanode {short} holds the only copies that are up of the chunks of {last} replica sets; bring it or \
             the others back, and drain it. Removed by force, what only it holds is lost"
        ),
    };
    Err(OpError::new(ErrorKind::Busy, message))
}

fn hand_over(tx: &Tx, node: NodeId, by: NodeId) -> Result<Vec<SetChange>, OpError> {
    let members = tx.context.cluster.members();
    if by == node || !members.nodes.get(&by).is_some_and(change::can_take) {
        let message = format!(
            "datanode {} can not take the places of {}: another one that is up, serves and has room was expected",
            by.short(),
            node.short()
        );
        return Err(OpError::invalid(message));
    }
    let concerned = |set: &&ReplicaSet| holds_place(set, node) && !set.members.contains(by);
    let take = |set: &ReplicaSet| {
        let mut next = set.members.0.clone();
        for member in next.iter_mut().filter(|member| member.node == node) {
            if member.state == MemberState::Active {
                member.state = MemberState::Leaving;
            }
        }
        next.push(Member { node: by, state: MemberState::Backfilling });
        SetChange { set: set.id, members: next }
    };
    Ok(members.sets.values().filter(concerned).map(take).collect())
}

/// Gives sets the members that the standing of datanodes asks for. Returns how many were changed.
pub(crate) fn settle(tx: &mut Tx) -> Result<usize, OpError> {
    let context = std::sync::Arc::clone(&tx.context);
    let cluster = &context.cluster;
    let changes = change::settle(&cluster.members(), &*cluster.selector, SETTLE_STEP);
    let changes = keep_needed(tx, changes, |node| change::is_gone(&cluster.members(), node))?;
    let count = changes.len();
    change_sets(tx, changes)?;
    Ok(count)
}

/// Leaves out of `changes` that a member is let go while another one lacks a chunk that this one may have,
/// whether it was leaving or is one too many: its copy may be the last sound one.
fn keep_needed(
    tx: &mut Tx,
    changes: Vec<SetChange>,
    gone: impl Fn(NodeId) -> bool,
) -> Result<Vec<SetChange>, OpError> {
    let mut lacking = None;
    let mut left = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(set) = tx.find::<ReplicaSet>(&Key::ReplicaSet(change.set))? else { continue };
        let stays = |node: NodeId| change.members.iter().find(|member| member.node == node);
        let mut next = Vec::with_capacity(set.members.0.len());
        for member in &set.members.0 {
            if let Some(stays) = stays(member.node) {
                next.push(*stays);
            } else if member.state != MemberState::Lost && !gone(member.node) {
                let lacking: &Lacking = match &mut lacking {
                    Some(lacking) => lacking,
                    none => none.insert(Lacking::read(tx)?),
                };
                if lacking.need(change.set, &change.members, member.node) {
                    next.push(*member);
                }
            }
        }
        next.extend(change.members.iter().filter(|member| !set.members.contains(member.node)));
        if next != set.members.0 {
            left.push(SetChange { set: change.set, members: next });
        }
    }
    Ok(left)
}

/// Who lacks chunks, by set. `None`: there are too many to look at.
struct Lacking(Option<BTreeMap<ReplicaSetId, Vec<BTreeSet<NodeId>>>>);

impl Lacking {
    fn read(tx: &mut Tx) -> Result<Self, OpError> {
        let faults: Vec<Fault> = tx.list(&Scan::all(Table::Fault).limit(FAULTS_MAX + 1))?;
        if faults.len() > FAULTS_MAX {
            return Ok(Self(None));
        }
        let mut chunks: BTreeMap<ChunkId, BTreeSet<NodeId>> = BTreeMap::new();
        for fault in faults {
            chunks.entry(fault.chunk).or_default().insert(fault.node);
        }
        let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (chunk, nodes) in chunks {
            if let Some(row) = tx.find::<Chunk>(&Key::Chunk(chunk))? {
                sets.entry(row.replica_set).or_default().push(nodes);
            }
        }
        Ok(Self(Some(sets)))
    }

    /// Whether `node` may have a chunk that one of those who stay in the set lacks.
    fn need(&self, set: ReplicaSetId, staying: &[Member], node: NodeId) -> bool {
        let Some(sets) = &self.0 else { return true };
        let concerned = |lacking: &BTreeSet<NodeId>| {
            !lacking.contains(&node)
                && staying.iter().any(|m| m.state != MemberState::Lost && lacking.contains(&m.node))
        };
        sets.get(&set).is_some_and(|chunks| chunks.iter().any(concerned))
    }
}

/// Begins to move a member of a set to another datanode, when the set is still as it was.
pub(crate) fn begin_move(tx: &mut Tx, wish: Move) -> Result<bool, OpError> {
    let next = {
        let members = tx.context.cluster.members();
        let settled = |set: &&ReplicaSet| {
            set.members.0.iter().all(|member| member.state == MemberState::Active)
                && set.members.contains(wish.from)
                && !set.members.contains(wish.to)
        };
        let ready = members.nodes.get(&wish.to).is_some_and(change::can_take);
        members.sets.get(&wish.set).filter(|_| ready).filter(settled).map(|set| set.members.0.clone())
    };
    let Some(mut next) = next else { return Ok(false) };
    next.iter_mut().filter(|member| member.node == wish.from).for_each(|m| m.state = MemberState::Leaving);
    next.push(Member { node: wish.to, state: MemberState::Backfilling });
    change_sets(tx, vec![SetChange { set: wish.set, members: next }])?;
    Ok(true)
}

/// A member has got all chunks of the set: it is active, unless it has become something else meanwhile.
pub(crate) fn activate(tx: &mut Tx, set: ReplicaSetId, node: NodeId) -> Result<bool, OpError> {
    let members = tx.context.cluster.members().sets.get(&set).map(|set| set.members.0.clone());
    let Some(mut next) = members else { return Ok(false) };
    let backfilling = |m: &&mut Member| m.node == node && m.state == MemberState::Backfilling;
    let Some(member) = next.iter_mut().find(backfilling) else { return Ok(false) };
    member.state = MemberState::Active;
    change_sets(tx, vec![SetChange { set, members: next }])?;
    Ok(true)
}

/// Stores new members of sets under a new epoch, which shuts out senders that know the old ones.
fn change_sets(tx: &mut Tx, changes: Vec<SetChange>) -> Result<(), OpError> {
    if changes.is_empty() {
        return Ok(());
    }
    let epoch = tx.find::<Counter>(&Key::Counter(Count::Epoch))?.map_or(1, |row| row.value) + 1;
    tx.put(Counter { name: Count::Epoch, value: epoch });
    let mut changed = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(row) = tx.find::<ReplicaSet>(&Key::ReplicaSet(change.set))? else { continue };
        let members = crate::store::Members(change.members);
        tracing::info!(set = %row.id, epoch, members = ?members.summary(), "a replica set changes");
        changed.push(ReplicaSet { members, epoch, ..row });
    }
    changed.iter().for_each(|set| tx.put(set.clone()));
    tx.context.cluster.members().add_sets(changed, epoch);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::tx;
    use crate::store::Members;
    use uuid::Uuid;

    #[test]
    fn no_member_goes_while_another_lacks_what_it_has() {
        let mut tx = tx();
        let node = |number| NodeId::from_uuid(Uuid::from_u128(number));
        let member = |number, state| Member { node: node(number), state };
        let id = ReplicaSetId::new(1).unwrap();
        let kept = vec![member(2, MemberState::Active), member(3, MemberState::Active)];
        let all = [vec![member(1, MemberState::Leaving)], kept.clone()].concat();
        tx.put(ReplicaSet { id, members: Members(all.clone()), replicas: 2, min_replicas: 1, epoch: 1 });
        let chunk = ChunkId::new(7).unwrap();
        let mut settle = |lacking: &[u128], lost: bool| {
            let faults = lacking.len() as u32;
            tx.put(Chunk {
                id: chunk,
                replica_set: id,
                length: 9,
                crc32c: 7,
                live: 9,
                faults,
                created_ns: 1,
            });
            (1..=3).for_each(|number| tx.delete(Key::Fault(chunk, node(number))));
            lacking.iter().for_each(|&n| tx.put(Fault { chunk, node: node(n), noticed_ns: 1 }));
            let change = SetChange { set: id, members: kept.clone() };
            let left = keep_needed(&mut tx, vec![change], |_| lost).unwrap();
            left.into_iter().next().map(|change| change.members)
        };
        assert_eq!(settle(&[], false), Some(kept.clone()), "nobody lacks anything");
        assert_eq!(settle(&[3], false), None, "it may have the last sound copy but one");
        assert_eq!(settle(&[1, 3], false), Some(kept.clone()), "it lacks the chunk itself");
        assert_eq!(settle(&[3], true), Some(kept.clone()), "it is gone for good");
        // One too many, as after an undrain, has as much as one that leaves.
        for state in [MemberState::Active, MemberState::Backfilling, MemberState::Lost] {
            let all = [vec![member(1, state)], kept.clone()].concat();
            tx.put(ReplicaSet { id, members: Members(all), replicas: 2, min_replicas: 1, epoch: 1 });
            tx.put(Fault { chunk, node: node(3), noticed_ns: 1 });
            let change = SetChange { set: id, members: kept.clone() };
            let goes = !keep_needed(&mut tx, vec![change], |_| false).unwrap().is_empty();
            assert_eq!(goes, state == MemberState::Lost, "{state:?}");
        }
        tx.put(ReplicaSet { id, members: Members(all.clone()), replicas: 2, min_replicas: 1, epoch: 1 });
        // What else the change asks for is done.
        let joined = [kept.clone(), vec![member(4, MemberState::Backfilling)]].concat();
        tx.put(Fault { chunk, node: node(2), noticed_ns: 1 });
        let change = SetChange { set: id, members: joined };
        let left = keep_needed(&mut tx, vec![change], |_| false).unwrap();
        assert_eq!(left[0].members, [all, vec![member(4, MemberState::Backfilling)]].concat());
    }
}
