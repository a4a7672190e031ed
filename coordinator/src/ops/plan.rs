//! UploadFile: grants chunk ids with the replica sets that shall hold them.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use cairn_proto::limits::BATCH_MAX;
use cairn_proto::{ChunkId, ErrorKind, InodeId, NodeId, ReplicaSetId, SessionId};
use cairn_runtime::random;

use crate::error::OpError;
use crate::executor::Tx;
use crate::membership::placement::{Placement, place};
use crate::store::{Count, Counter, Key, Members, Plan, ReplicaSet, Scan, Table};

/// Ranges of one plan, each on a set of its own, so that chunks spread over datanodes.
const RANGES_MAX: usize = 8;
/// New sets are made at most this often for one plan: whole ones, then short ones.
const ROUNDS: usize = 3;
/// Plans are remembered this long after they have expired, to say so rather than "never granted".
const REMEMBERED_NS: i64 = 600_000_000_000;
/// Expired plans that one step forgets.
const FORGET_STEP: usize = 1024;
/// Plans that one session is granted within the life of one, and within twice that. A mount has a plan for up to 64
/// chunks, so it could store thousands in a second.
const PLANS_OF_SESSION_MAX: usize = 65_536;

/// How many plans each session was granted lately.
#[derive(Debug, Default)]
pub(crate) struct Granted(HashMap<SessionId, Window>);

/// Plans granted since, and in the window before.
#[derive(Debug, Clone, Copy)]
struct Window {
    since_ns: i64,
    plans: usize,
    before: usize,
}

impl Granted {
    /// `Overloaded`: the session has been granted too many, and is to use them first.
    fn check(&mut self, session: SessionId, now_ns: i64, window_ns: i64) -> Result<(), OpError> {
        let window = self.0.entry(session).or_insert(Window { since_ns: now_ns, plans: 0, before: 0 });
        let age = now_ns.saturating_sub(window.since_ns);
        if age >= window_ns {
            let before = if age < window_ns.saturating_mul(2) { window.plans } else { 0 };
            *window = Window { since_ns: now_ns, plans: 0, before };
        }
        if window.plans + window.before >= PLANS_OF_SESSION_MAX {
            let message = format!(
                "{PLANS_OF_SESSION_MAX} plans were granted to the session lately; no more are possible"
            );
            return Err(OpError::new(ErrorKind::Overloaded, message));
        }
        Ok(())
    }

    fn add(&mut self, session: SessionId, plans: usize) {
        if let Some(window) = self.0.get_mut(&session) {
            window.plans += plans;
        }
    }

    /// The session is over.
    pub(crate) fn end(&mut self, session: SessionId) {
        self.0.remove(&session);
    }
}

/// What is to be stored.
#[derive(Debug, Clone)]
pub(crate) struct PlanRequest {
    pub(crate) session: SessionId,
    pub(crate) inode: Option<InodeId>,
    /// Bytes of each chunk.
    pub(crate) chunk_size: u64,
    /// How many ids, 1 to 4096.
    pub(crate) chunks: u32,
    pub(crate) excluded: BTreeSet<NodeId>,
}

/// Grants ids. They are this session's alone, and never granted again.
pub(crate) fn plan(tx: &mut Tx, request: &PlanRequest) -> Result<Vec<Plan>, OpError> {
    tx.context.sessions.check(request.session)?;
    let (now_ns, window_ns) = (tx.job_ns(), tx.context.policy.plan_ns);
    tx.granted.check(request.session, now_ns, window_ns)?;
    if let Some(inode) = request.inode {
        let inode = tx.inode(inode)?;
        super::clone_range::need_file(&inode)?;
    }
    let sets = choose(tx, request)?;
    let count = u64::from(request.chunks);
    let first = tx.take_ids(Count::NextChunk, count)?;
    let expires_ns = tx.now_ns().saturating_add(tx.context.policy.plan_ns);
    let each = count.div_ceil(sets.len() as u64);
    let mut plans = Vec::with_capacity(sets.len());
    for (index, set) in (0u64..).zip(&sets) {
        let granted = each.min(count.saturating_sub(index * each));
        if granted == 0 {
            break;
        }
        let plan = Plan {
            first: ChunkId::new(first + index * each)?,
            count: u32::try_from(granted).unwrap_or(BATCH_MAX as u32),
            replica_set: set.id,
            epoch: set.epoch,
            session: request.session,
            expires_ns,
            used: Bytes::new(),
        };
        tx.put(plan.clone());
        plans.push(plan);
    }
    tx.granted.add(request.session, plans.len());
    Ok(plans)
}

fn choose(tx: &mut Tx, request: &PlanRequest) -> Result<Vec<ReplicaSet>, OpError> {
    let context = std::sync::Arc::clone(&tx.context);
    let cluster = &context.cluster;
    let ranges = RANGES_MAX.min(request.chunks as usize).max(1);
    for _ in 0..ROUNDS {
        let placement = place(
            &cluster.members(),
            &*cluster.selector,
            &context.policy,
            &request.excluded,
            request.chunk_size,
            &mut random::unit,
            ranges,
        )?;
        match placement {
            Placement::Use(picked) => {
                let members = cluster.members();
                return Ok(picked.iter().filter_map(|set| members.sets.get(set).cloned()).collect());
            }
            Placement::Make(sets) => make_sets(tx, &sets)?,
        }
    }
    Err(OpError::new(ErrorKind::Unavailable, "no replica set fits; datanodes come and go"))
}

fn make_sets(tx: &mut Tx, sets: &[Vec<NodeId>]) -> Result<(), OpError> {
    let context = std::sync::Arc::clone(&tx.context);
    let first = tx.take_ids(Count::NextSet, sets.len() as u64)?;
    let epoch = tx.find::<Counter>(&Key::Counter(Count::Epoch))?.map_or(1, |row| row.value) + 1;
    tx.put(Counter { name: Count::Epoch, value: epoch });
    let mut made = Vec::with_capacity(sets.len());
    for (id, nodes) in (first..).zip(sets) {
        made.push(ReplicaSet {
            id: ReplicaSetId::new(id)?,
            members: Members::active(nodes.iter().copied()),
            replicas: context.policy.replicas,
            min_replicas: context.policy.min_replicas,
            epoch,
        });
    }
    made.iter().for_each(|set| tx.put(set.clone()));
    tracing::info!(sets = made.len(), epoch, "replica sets made");
    context.cluster.members().add_sets(made, epoch);
    Ok(())
}

/// Deletes some of the plans that expired long ago, oldest first. `true`: there are more.
pub(crate) fn forget_expired(tx: &mut Tx) -> Result<bool, OpError> {
    let deadline = tx.now_ns().saturating_sub(REMEMBERED_NS);
    let is_over = |plan: &Plan| plan.expires_ns < deadline;
    let oldest: Vec<Plan> = tx.list(&Scan::all(Table::Plan).limit(1))?;
    if !oldest.iter().any(is_over) {
        return Ok(false);
    }
    let oldest: Vec<Plan> = tx.list(&Scan::all(Table::Plan).limit(FORGET_STEP))?;
    let expired: Vec<_> = oldest.iter().filter(|plan| is_over(plan)).collect();
    expired.iter().for_each(|plan| tx.delete(Key::Plan(plan.first)));
    Ok(expired.len() == FORGET_STEP)
}

#[cfg(test)]
mod tests;
