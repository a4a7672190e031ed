//! Has datanodes sync chunks that were committed without it: those of a file at once, for an fsync; and in the
//! background all that are older, so that they stay few.
//!
//! Who is asked follows from the present members of a chunk's set. A member that has left is not missed, and a copy
//! that was made since is durable and counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::limits::LIST_MAX;
use cairn_proto::{ChunkId, ErrorKind, NodeId, WireError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{Next, Progress, Worker};
use crate::error::OpError;
use crate::membership::state::Members;
use crate::ops::unsynced::{self, Wanted};
use crate::service::Shared;
use crate::store::MemberState;

/// By then the disks have most likely been written anyway.
const OLD: Duration = Duration::from_secs(30);
/// How often older ones are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same while only the extents of a file say which chunks it has.
const LOOK_SOON: Duration = Duration::from_millis(500);
/// Rows that are looked at in one step, or deleted in one job.
const PAGE: usize = 1024;
/// The background waits for a disk that may have much to write.
const BACKGROUND_TIME: Duration = Duration::from_secs(30);
/// As many chunks are looked up on the thread that has the request.
const LOOKED_UP_HERE: usize = 64;

/// Has each of these chunks synced by as many members as its policy demands. What was done stays done when this
/// fails or is dropped.
///
/// * `Unavailable`: within `limit` too few have said so; the message says who has not. Asking again helps.
/// * `ChunkNotFound`: no datanode has a good copy of one of them.
pub(crate) async fn sync(shared: &Shared, chunks: Vec<ChunkId>, limit: Duration) -> Result<(), OpError> {
    if chunks.is_empty() {
        return Ok(());
    }
    let asked = chunks.clone();
    let wanted = match chunks.len() {
        0..=LOOKED_UP_HERE => shared.read(true, |reader| unsynced::wanted(reader, &chunks))?,
        _ => shared.read_many(move |reader| unsynced::wanted(reader, &chunks)).await?,
    };
    let found: BTreeSet<ChunkId> = wanted.iter().map(|wanted| wanted.chunk).collect();
    let gone: Vec<ChunkId> = asked.into_iter().filter(|chunk| !found.contains(chunk)).collect();
    if !gone.is_empty() {
        shared.executor.run(move |tx| unsynced::forget_gone(tx, &gone)).await?;
    }
    let mut round = Round::new(&shared.context.cluster.members(), wanted);
    round.run(shared, limit).await;
    shared.context.unsynced.settle(&round.done);
    round.outcome()
}

/// All members concerned are asked once.
#[derive(Debug, Default)]
struct Round {
    open: HashMap<ChunkId, Open>,
    ask: BTreeMap<NodeId, Vec<ChunkId>>,
    done: Vec<ChunkId>,
    /// Nobody has them.
    lost: Vec<ChunkId>,
    /// Why a datanode has not synced something, the last of each.
    reasons: BTreeMap<NodeId, String>,
}

#[derive(Debug)]
struct Open {
    needed: usize,
    synced: usize,
    holders: Vec<NodeId>,
}

impl Round {
    fn new(members: &Members, wanted: Vec<Wanted>) -> Self {
        let mut round = Self::default();
        for Wanted { chunk, set, missing } in wanted {
            let of_set = members.sets.get(&set).map_or(&[][..], |set| &set.members.0);
            let present = || of_set.iter().filter(|member| member.state != MemberState::Lost);
            let holders: Vec<NodeId> =
                present().map(|member| member.node).filter(|node| !missing.contains(node)).collect();
            if holders.is_empty() {
                round.lost.push(chunk);
                continue;
            }
            for &node in &holders {
                round.ask.entry(node).or_default().push(chunk);
            }
            // All members are enough when there are fewer than the policy wants.
            let wanted = members.sets.get(&set).map_or(1, |set| set.min_replicas as usize);
            let needed = wanted.min(present().count()).max(1);
            round.open.insert(chunk, Open { needed, synced: 0, holders });
        }
        round
    }

    /// Returns as soon as every chunk is done: a datanode that is slow or silent holds nobody up while the others
    /// are enough.
    async fn run(&mut self, shared: &Shared, limit: Duration) {
        let ask = std::mem::take(&mut self.ask);
        let parts =
            ask.iter().flat_map(|(&node, chunks)| chunks.chunks(LIST_MAX).map(move |part| (node, part)));
        let mut answers: FuturesUnordered<_> = parts
            .map(|(node, part)| async move {
                let answer = shared.datanodes.sync(&shared.context.cluster, node, part, limit).await;
                (node, part, answer)
            })
            .collect();
        while !self.open.is_empty()
            && let Some((node, part, answer)) = answers.next().await
        {
            self.on_answer(node, part, answer);
        }
    }

    fn on_answer(
        &mut self,
        node: NodeId,
        asked: &[ChunkId],
        answer: Result<BTreeMap<u64, WireError>, OpError>,
    ) {
        let failed = match answer {
            Ok(failed) => failed,
            Err(error) => {
                self.reasons.insert(node, error.to_string());
                return;
            }
        };
        for &chunk in asked {
            match failed.get(&chunk.get()) {
                None => self.on_synced(chunk),
                Some(error) => {
                    self.reasons.insert(node, format!("datanode {}: {}", node.short(), error.message));
                }
            }
        }
    }

    fn on_synced(&mut self, chunk: ChunkId) {
        let Some(open) = self.open.get_mut(&chunk) else { return };
        open.synced += 1;
        if open.synced >= open.needed {
            self.open.remove(&chunk);
            self.done.push(chunk);
        }
    }

    fn outcome(self) -> Result<(), OpError> {
        if let Some(chunk) = self.lost.first() {
            let message = format!("no datanode has a good copy of chunk {chunk}");
            return Err(OpError::new(ErrorKind::ChunkNotFound, message));
        }
        let Some((chunk, open)) = self.open.iter().min_by_key(|(chunk, _)| **chunk) else { return Ok(()) };
        let reasons = open.holders.iter().filter_map(|node| self.reasons.get(node).map(String::as_str));
        let message = format!(
            "{} chunks are not synced yet; of chunk {chunk} {} of {} copies are: {}",
            self.open.len(),
            open.synced,
            open.needed,
            reasons.collect::<Vec<_>>().join("; "),
        );
        Err(OpError::new(ErrorKind::Unavailable, message))
    }
}

/// Where a pass is.
#[derive(Debug, Clone, Copy, Default)]
enum Place {
    #[default]
    Start,
    /// In the index, behind this chunk.
    Index(ChunkId),
    /// In the rows, behind this chunk: the index does not have all of them.
    Rows(Option<ChunkId>),
}

/// The worker.
#[derive(Debug, Default)]
pub(crate) struct SyncWorker {
    at: Place,
    /// Rows of the pass that the index does not have.
    unknown: usize,
    omissions: u64,
}

impl Worker for SyncWorker {
    const NAME: &'static str = "sync";

    /// Deletes rows that are settled, or syncs some chunks. What fails is met again by the next pass.
    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        let index = &shared.context.unsynced;
        let settled = index.settled(PAGE);
        if !settled.is_empty() {
            let chunks = settled.clone();
            shared.executor.run(move |tx| unsynced::delete_rows(tx, &chunks)).await?;
            index.forget(&settled);
            progress.add(settled.len() as u64, 0);
            return Ok(Next::Busy);
        }
        let due = match self.at {
            Place::Start => {
                progress.begin(0);
                self.in_index(shared, None)
            }
            Place::Index(after) => self.in_index(shared, Some(after)),
            Place::Rows(after) => self.in_rows(shared, after).await?,
        };
        if let Some(due) = due {
            if let Err(error) = sync(shared, due, BACKGROUND_TIME).await {
                tracing::debug!(%error, "chunks could not be synced in the background; they are tried again");
            }
            return Ok(Next::Busy);
        }
        self.at = Place::Start;
        progress.finish();
        Ok(Next::Idle(if index.is_complete() { LOOK_EVERY } else { LOOK_SOON }))
    }
}

impl SyncWorker {
    /// Old ones that the index has. `None`: the pass is over.
    fn in_index(&mut self, shared: &Shared, after: Option<ChunkId>) -> Option<Vec<ChunkId>> {
        let index = &shared.context.unsynced;
        let age = if index.is_filling() { Duration::ZERO } else { OLD };
        let due = index.older_than(age, after, PAGE);
        match due.last() {
            Some(&last) => self.at = Place::Index(last),
            None if index.is_complete() => return None,
            None => {
                self.at = Place::Rows(None);
                (self.unknown, self.omissions) = (0, index.omissions());
            }
        }
        Some(due)
    }

    /// Those that only have rows. `None`: the pass is over.
    async fn in_rows(
        &mut self,
        shared: &Shared,
        after: Option<ChunkId>,
    ) -> Result<Option<Vec<ChunkId>>, OpError> {
        let index = &shared.context.unsynced;
        let mut rows = shared.read_many(move |reader| Ok(unsynced::page(reader, after, PAGE)?)).await?;
        let Some(&last) = rows.last() else {
            if self.unknown == 0 {
                index.found_complete(self.omissions);
            }
            return Ok(None);
        };
        self.at = Place::Rows(Some(last));
        rows.retain(|&chunk| !index.has(chunk));
        self.unknown += rows.len();
        Ok(Some(rows))
    }
}

#[cfg(test)]
mod tests;
