//! Keeps replica sets as the standing of datanodes asks for: replaces members that are lost, fills short
//! sets, empties datanodes that are drained, and evens out how full they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ChunkId, ReplicaSetId};
use cairn_runtime::clock::{self, Instant};

use super::repair::RepairWorker;
use super::{Next, Progress, Worker};
use crate::error::OpError;
use crate::membership::change::{self, Move, REBALANCE_START, REBALANCE_STOP};
use crate::ops;
use crate::service::Shared;
use crate::store::{self, Chunk, Key, MemberState, Scan};

/// How often sets are compared with the standing of datanodes.
const LOOK: Duration = Duration::from_secs(1);
/// Members that are being moved at once to even out use.
const MOVES_MAX: usize = 2;
/// Rows of chunks that one read visits.
const PAGE: usize = 8192;

/// Changes replica sets.
#[derive(Debug)]
pub(crate) struct PlacementWorker {
    /// How often use is compared.
    every: Duration,
    next_look: Option<Instant>,
    /// Whether use is being evened out: begins at one difference, ends at a smaller one.
    moving: bool,
}

impl PlacementWorker {
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, next_look: None, moving: false }
    }

    async fn rebalance(&mut self, shared: &Arc<Shared>) -> Result<(), OpError> {
        let cluster = &shared.context.cluster;
        let under_way = cluster.members().sets.values().filter(|set| is_changing(set)).count();
        if under_way >= MOVES_MAX || !self.is_time() {
            return Ok(());
        }
        self.next_look = Some(clock::now() + self.every);
        let apart = if self.moving { REBALANCE_STOP } else { REBALANCE_START };
        // The cheap look first: with equal reports there is nothing to count chunks for.
        if cluster.members().usage_apart() <= apart / 2.0 {
            self.moving = false;
            return Ok(());
        }
        let bytes = bytes_of_sets(shared).await?;
        let wish = change::rebalance(&cluster.members(), &bytes, apart);
        self.moving = wish.is_some();
        let Some(wish) = wish else { return Ok(()) };
        let Move { set, from, to } = wish;
        if shared.executor.run(move |tx| ops::members::begin_move(tx, wish)).await? {
            tracing::info!(%set, from = %from, to = %to, "a member moves, to even out use");
            shared.workers.wake(RepairWorker::NAME);
        }
        Ok(())
    }

    fn is_time(&self) -> bool {
        self.next_look.is_none_or(|at| clock::now() >= at)
    }
}

impl Worker for PlacementWorker {
    const NAME: &'static str = "placement";

    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        let due = {
            let cluster = &shared.context.cluster;
            !change::settle(&cluster.members(), &*cluster.selector, 1).is_empty()
        };
        if due {
            progress.begin(0);
            let changed = shared.executor.run(ops::members::settle).await?;
            progress.add(changed as u64, 0);
            progress.finish();
            // None: members that are to go are needed until others have what they have.
            if changed > 0 {
                shared.workers.wake(RepairWorker::NAME);
                return Ok(Next::Busy);
            }
        }
        self.rebalance(shared).await?;
        Ok(Next::Idle(LOOK))
    }
}

/// Whether members of a set come or go.
fn is_changing(set: &store::ReplicaSet) -> bool {
    set.members.0.iter().any(|member| member.state != MemberState::Active)
}

/// Bytes of the chunks of each set; reads every row of chunks, page by page.
async fn bytes_of_sets(shared: &Arc<Shared>) -> Result<BTreeMap<ReplicaSetId, u64>, OpError> {
    let mut bytes = BTreeMap::new();
    let mut after = 0;
    while let Ok(first) = ChunkId::new(after + 1) {
        let last = ChunkId::new(i64::MAX as u64)?;
        let page: Vec<Chunk> = shared
            .read_many(move |reader| {
                Ok(store::list(reader, &Scan::between(Key::Chunk(first), Key::Chunk(last)).limit(PAGE))?)
            })
            .await?;
        for chunk in &page {
            *bytes.entry(chunk.replica_set).or_insert(0) += chunk.length;
        }
        match page.last() {
            Some(chunk) if page.len() == PAGE => after = chunk.id.get(),
            _ => break,
        }
    }
    Ok(bytes)
}
