//! Which copies are to be made: from the queue of faults, and from sets that have new members.
//!
//! Plain reading of rows; nothing here talks to anybody.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::{ChunkId, NodeId, ReplicaSetId};
use uuid::Uuid;

use crate::membership::state::{Members, NodeState};
use crate::store::{
    self, Chunk, Fault, Key, Member, MemberState, Reader, ReplicaSet, Scan, StoreError, Table,
};

/// Copies that one plan holds; the worst protected are kept, the rest is found again by the next one.
pub(super) const JOBS_MAX: usize = 16_384;
/// Rows of chunks that one read visits.
const PAGE: usize = 4096;

/// One copy to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) chunk: ChunkId,
    pub(super) set: ReplicaSetId,
    pub(super) length: u64,
    pub(super) crc32c: u32,
    pub(super) to: NodeId,
    /// Those that hold a sound copy and are up, as far as is known.
    pub(super) sources: Vec<NodeId>,
}

impl Job {
    /// Nobody has a sound copy: the datanode is only to look whether its own is one after all.
    pub(super) fn is_look(&self) -> bool {
        self.sources == [self.to]
    }
}

/// Sets and datanodes at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    sets: BTreeMap<ReplicaSetId, ReplicaSet>,
    up: BTreeSet<NodeId>,
    /// Silent for so long that nobody waits for them.
    gone: BTreeSet<NodeId>,
}

impl View {
    pub(super) fn of(members: &Members) -> Self {
        let of = |state| {
            let nodes = members.nodes.values().filter(move |entry| entry.state == state);
            nodes.map(|entry| entry.row.id).collect()
        };
        Self { sets: members.sets.clone(), up: of(NodeState::Up), gone: of(NodeState::Lost) }
    }

    pub(super) fn epoch(&self, set: ReplicaSetId) -> Option<u64> {
        self.sets.get(&set).map(|set| set.epoch)
    }
}

fn holds_all(member: &Member) -> bool {
    matches!(member.state, MemberState::Active | MemberState::Leaving)
}

/// What is known of the copies of one chunk.
struct Copies {
    /// Sound as far as is known, and up.
    sources: Vec<NodeId>,
    /// Sound as far as is known, and away.
    away: usize,
}

fn copies(reader: &dyn Reader, view: &View, chunk: &Chunk, but: NodeId) -> Result<Copies, StoreError> {
    let bad: BTreeSet<NodeId> = match chunk.faults {
        0 => BTreeSet::new(),
        _ => {
            let [first, last] =
                [Uuid::nil(), Uuid::max()].map(|id| Key::Fault(chunk.id, NodeId::from_uuid(id)));
            let faults: Vec<Fault> = store::list(reader, &Scan::between(first, last))?;
            faults.into_iter().map(|fault| fault.node).collect()
        }
    };
    let members = view.sets.get(&chunk.replica_set).map(|set| set.members.0.as_slice()).unwrap_or_default();
    let sound = members.iter().filter(|member| member.node != but && !bad.contains(&member.node));
    // Those that are still being filled may have it; they are asked last, and not counted on.
    let (mut sure, mut perhaps, mut away) = (Vec::new(), Vec::new(), 0);
    for member in sound {
        match (holds_all(member), view.up.contains(&member.node)) {
            (true, true) => sure.push(member.node),
            (true, false) => away += 1,
            (false, true) if member.state == MemberState::Backfilling => perhaps.push(member.node),
            (false, _) => {}
        }
    }
    // So that one source does not serve all copies of a set.
    let turn = usize::try_from(chunk.id.get() % sure.len().max(1) as u64).unwrap_or(0);
    sure.rotate_left(turn);
    sure.extend(perhaps);
    Ok(Copies { sources: sure, away })
}

/// What the queue of faults asks for.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    /// The worst protected first.
    pub(super) jobs: Vec<Job>,
    /// Faults of chunks or members that are no more.
    pub(super) obsolete: Vec<(ChunkId, NodeId)>,
    /// Chunks of which no copy is known to be sound, whoever comes back.
    pub(super) lost: u64,
    /// Faults that wait for a datanode to come back.
    pub(super) waiting: u64,
}

/// Reads the whole queue of faults. Datanodes in `resting` get no copies now. With `look_again`, those whose
/// copy is missing or bad look at it once more when no other is sound: their disk may have come back, or have
/// the record although its sync failed.
pub(super) fn faults(
    reader: &dyn Reader,
    view: &View,
    resting: &BTreeSet<NodeId>,
    look_again: bool,
) -> Result<FaultPlan, StoreError> {
    let mut plan = FaultPlan::default();
    // By the number of sound copies, then by age of the chunk.
    let mut jobs: BTreeMap<(usize, ChunkId, NodeId), Job> = BTreeMap::new();
    let mut lost = BTreeSet::new();
    let faults: Vec<Fault> = store::list(reader, &Scan::all(Table::Fault).limit(JOBS_MAX * 4))?;
    for Fault { chunk, node, .. } in faults {
        let row: Option<Chunk> = store::find(reader, &Key::Chunk(chunk))?;
        let member = row.as_ref().and_then(|row| view.sets.get(&row.replica_set)).and_then(|set| {
            set.members.0.iter().find(|member| member.node == node && member.state != MemberState::Lost)
        });
        let (Some(row), Some(_)) = (row, member) else {
            plan.obsolete.push((chunk, node));
            continue;
        };
        let copies = copies(reader, view, &row, node)?;
        if copies.sources.is_empty() && look_again && view.up.contains(&node) && !resting.contains(&node) {
            // Behind all that can be repaired for sure.
            jobs.insert((usize::MAX, chunk, node), job_of(&row, node, vec![node]));
        }
        if copies.sources.is_empty() && copies.away == 0 {
            lost.insert(chunk);
        } else if copies.sources.is_empty() || !view.up.contains(&node) || resting.contains(&node) {
            plan.waiting += 1;
        } else {
            let left = copies.sources.len();
            let job = job_of(&row, node, copies.sources);
            jobs.insert((left, chunk, node), job);
        }
        if jobs.len() > JOBS_MAX {
            jobs.pop_last();
        }
    }
    plan.lost = lost.len() as u64;
    plan.jobs = jobs.into_values().collect();
    Ok(plan)
}

fn job_of(row: &Chunk, to: NodeId, sources: Vec<NodeId>) -> Job {
    Job { chunk: row.id, set: row.replica_set, length: row.length, crc32c: row.crc32c, to, sources }
}

/// New members that are to get the older chunks of their sets: all those of the worst protected sets.
///
/// Last come sets whose holders are all gone for good, as when the last of many that were down never came
/// back: their members may have everything between them. Who was found to have it all becomes active; a
/// chunk that only a holder has keeps all of them from it, until an operator gives the holder up.
///
/// By set: its epoch, and the members to be filled.
pub(super) type Fills = BTreeMap<ReplicaSetId, (u64, Vec<NodeId>)>;

pub(super) fn fills(view: &View, resting: &BTreeSet<NodeId>) -> Fills {
    let up = |member: &Member| view.up.contains(&member.node);
    let left =
        |set: &ReplicaSet| set.members.0.iter().filter(|member| holds_all(member) && up(member)).count();
    let filled = |set: &ReplicaSet| -> Vec<NodeId> {
        let due = |member: &&Member| {
            member.state == MemberState::Backfilling && up(member) && !resting.contains(&member.node)
        };
        set.members.0.iter().filter(due).map(|member| member.node).collect()
    };
    let orphaned = |set: &ReplicaSet| {
        set.members.0.iter().filter(|member| holds_all(member)).all(|member| view.gone.contains(&member.node))
    };
    // A set whose holders are down for a while can only wait.
    let rank = |set: &ReplicaSet| match left(set) {
        0 => orphaned(set).then_some(usize::MAX),
        left => Some(left),
    };
    let open: Vec<_> = view
        .sets
        .values()
        .filter_map(|set| Some((rank(set)?, set, filled(set))))
        .filter(|(_, _, filled)| !filled.is_empty())
        .collect();
    let worst = open.iter().map(|(rank, ..)| *rank).min().unwrap_or(0);
    let worst = open.into_iter().filter(|(rank, ..)| *rank == worst);
    worst.map(|(_, set, filled)| (set.id, (set.epoch, filled))).collect()
}

/// One page of the chunks that new members are to get.
#[derive(Debug, Default)]
pub(super) struct FillPage {
    pub(super) jobs: Vec<Job>,
    /// Chunks that nobody has: the new members will not get them either.
    pub(super) missing: Vec<(ChunkId, NodeId)>,
    /// Members that could not be given a chunk now, because its holders are away.
    pub(super) blocked: BTreeSet<(ReplicaSetId, NodeId)>,
    /// Rows that were looked at.
    pub(super) visited: u64,
    /// The last of them; none: the end is reached.
    pub(super) last: Option<ChunkId>,
}

/// Looks at the chunks behind `after`.
pub(super) fn fill_page(
    reader: &dyn Reader,
    view: &View,
    fills: &Fills,
    after: Option<ChunkId>,
) -> Result<FillPage, StoreError> {
    let first = after.map_or(1, |id| id.get().saturating_add(1));
    let (Ok(first), Ok(last)) = (ChunkId::new(first), ChunkId::new(i64::MAX as u64)) else {
        return Ok(FillPage::default());
    };
    let rows: Vec<Chunk> =
        store::list(reader, &Scan::between(Key::Chunk(first), Key::Chunk(last)).limit(PAGE))?;
    let mut page = FillPage { visited: rows.len() as u64, ..FillPage::default() };
    page.last = rows.last().map(|row| row.id);
    for row in &rows {
        let Some((_, nodes)) = fills.get(&row.replica_set) else { continue };
        for &node in nodes {
            let copies = copies(reader, view, row, node)?;
            match (copies.sources.is_empty(), copies.away) {
                (false, _) => page.jobs.push(job_of(row, node, copies.sources)),
                (true, 0) => page.missing.push((row.id, node)),
                (true, _) => drop(page.blocked.insert((row.replica_set, node))),
            }
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::tx_on;
    use crate::store::memory::MemoryStore;
    use crate::store::{Members as SetMembers, Readers};

    fn node(number: u128) -> NodeId {
        NodeId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn who_had_a_lost_chunk_is_asked_again_when_its_turn_has_come() {
        let store = MemoryStore::default();
        let mut tx = tx_on(&store, |writer| writer);
        let id = ReplicaSetId::new(1).unwrap();
        let members = SetMembers::active([node(1), node(2)]);
        let set = ReplicaSet { id, members, replicas: 2, min_replicas: 1, epoch: 1 };
        let [lost, repairable] = [5, 6].map(|number| ChunkId::new(number).unwrap());
        tx.put(set.clone());
        for (chunk, bad) in [(lost, vec![1, 2]), (repairable, vec![2])] {
            tx.put(Chunk {
                id: chunk,
                replica_set: id,
                length: 100,
                crc32c: 7,
                live: 100,
                faults: bad.len() as u32,
                created_ns: 1,
            });
            bad.iter().for_each(|&at| tx.put(Fault { chunk, node: node(at), noticed_ns: 1 }));
        }
        tx.commit().unwrap();
        let view = View { sets: [(id, set)].into(), up: [node(1)].into(), gone: BTreeSet::new() };
        let plan = |view: &View, look| {
            let reader = store.reader(true).unwrap();
            faults(&*reader, view, &BTreeSet::new(), look).unwrap()
        };
        let quiet = plan(&view, false);
        assert_eq!((quiet.lost, quiet.jobs.len()), (1, 0));
        let asked = plan(&view, true);
        assert_eq!(asked.lost, 1, "it is lost until it is found");
        let [job] = &asked.jobs[..] else { panic!("who is up is asked: {:?}", asked.jobs) };
        assert!(job.is_look() && (job.chunk, job.to) == (lost, node(1)), "{job:?}");
        // With both up, what can be repaired comes first.
        let view = View { up: [node(1), node(2)].into(), ..view };
        let jobs = plan(&view, true).jobs;
        let order: Vec<_> = jobs.iter().map(|job| (job.chunk, job.is_look())).collect();
        assert_eq!(order, [(repairable, false), (lost, true), (lost, true)]);
    }

    #[test]
    fn members_fill_one_another_when_their_last_holder_is_gone_for_good() {
        let id = |number| ReplicaSetId::new(number).unwrap();
        let set = |number, states: [(u128, MemberState); 3]| {
            let members = states.map(|(number, state)| Member { node: node(number), state });
            let members = SetMembers(members.to_vec());
            (id(number), ReplicaSet { id: id(number), members, replicas: 3, min_replicas: 2, epoch: 4 })
        };
        use MemberState::{Active, Backfilling, Lost};
        let orphaned = set(1, [(1, Backfilling), (2, Backfilling), (9, Active)]);
        let fills_of = |sets: &[(ReplicaSetId, ReplicaSet)], gone: &[u128]| {
            let view = View {
                sets: sets.iter().cloned().collect(),
                up: [node(1), node(2)].into(),
                gone: gone.iter().map(|&number| node(number)).collect(),
            };
            fills(&view, &BTreeSet::new())
        };
        let both = Fills::from([(id(1), (4, vec![node(1), node(2)]))]);
        assert_eq!(fills_of(std::slice::from_ref(&orphaned), &[]), Fills::new()); // it may be back in a moment
        assert_eq!(fills_of(std::slice::from_ref(&orphaned), &[9]), both);
        // An operator has given the last holder up.
        assert_eq!(fills_of(&[set(1, [(1, Backfilling), (2, Backfilling), (9, Lost)])], &[]), both);
        // Those that have a holder come first.
        let held = set(2, [(1, Active), (2, Backfilling), (9, Lost)]);
        let first = Fills::from([(id(2), (4, vec![node(2)]))]);
        assert_eq!(fills_of(&[orphaned, held], &[9]), first);
    }
}
