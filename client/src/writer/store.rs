//! Storing one chunk, on one replica set or another.

use std::sync::Arc;

use bytes::Bytes;

use cairn_proto::{ErrorKind, NodeId, v1};
use cairn_runtime::clock;
use cairn_runtime::telemetry::RequestId;
use std::time::Duration;
use tracing::debug;

use super::PACKED_BYTES_MAX;
use crate::engine::Engine;
use crate::error::{ClientError, Result};
use crate::layout::ChunkInfo;
use crate::map::{Liveness, Map, ReplicaSet};
use crate::metrics;
use crate::planner::{Grant, Reason};
use crate::transport::Link;
use crate::transport::store::{ChunkContent, Stored};

/// How long a newer map is waited for after the datanode said that ours is old.
const MAP_TIME: Duration = Duration::from_secs(2);
/// Errors that repeating does not cure are still met this often before they are believed, since
/// each try goes to other datanodes.
const REFUSALS_MAX: usize = 4;

/// A chunk on its members.
#[derive(Debug)]
pub(super) struct StoredDraft {
    pub(super) grant: Grant,
    pub(super) epoch: u64,
    pub(super) by: Vec<NodeId>,
    /// On the disks of all of them.
    pub(super) synced: bool,
    members: Vec<NodeId>,
}

impl StoredDraft {
    pub(super) fn info(&self, content: &ChunkContent) -> ChunkInfo {
        let missing = self.members.iter().filter(|member| !self.by.contains(member));
        ChunkInfo { set: self.grant.set, length: content.length, missing: missing.copied().collect() }
    }
}

/// Stores a chunk on as many members as the policy demands; with `durable` on their disks.
///
/// `NoSpace`: no set has room.
pub(super) async fn store(
    engine: &Arc<Engine>,
    content: &ChunkContent,
    durable: bool,
) -> Result<StoredDraft> {
    // Small packs are few at a time anyway and somebody waits for them.
    let _turn = match content.length > PACKED_BYTES_MAX {
        true => engine.writer.stores.acquire().await.ok(),
        false => None,
    };
    let started = clock::now();
    let mut patience = engine.patience("store a chunk");
    let mut refusals = 0;
    loop {
        let grant = engine.planner.take(&mut patience).await?;
        let map = engine.coordinator.map().get();
        let error = match store_once(engine, &map, &grant, content, durable).await {
            Ok(stored) => {
                metrics::chunk_stored(content.length, started.elapsed());
                keep_in_cache(engine, &grant, content);
                return Ok(stored);
            }
            Err(error) => error,
        };
        debug!(chunk = %grant.chunk, set = %grant.set, %error, "a chunk has to be stored again");
        metrics::store_retried();
        if error.kind() == ErrorKind::StaleEpoch {
            engine.coordinator.map().newer_than(map.revision, MAP_TIME).await;
        }
        refusals += usize::from(!error.kind().is_retryable() && error.kind() != ErrorKind::NoSpace);
        if refusals > REFUSALS_MAX {
            return Err(error);
        }
        patience.pause(&error).await?;
    }
}

/// One try, which uses up the chunk id. Whoever could not store is left out of the next plans.
async fn store_once(
    engine: &Arc<Engine>,
    map: &Map,
    grant: &Grant,
    content: &ChunkContent,
    durable: bool,
) -> Result<StoredDraft> {
    let absent =
        || ClientError::new(ErrorKind::StaleEpoch, "the map does not have the replica set of the plan");
    let set = map.sets.get(&grant.set).ok_or_else(absent)?;
    let primary = engine.transport.rank(map, set.members.iter().copied(), |_| 0).into_iter().next();
    let nobody = || ClientError::new(ErrorKind::Unavailable, "the replica set has no member");
    let primary = primary.ok_or_else(nobody)?;
    let header = v1::StoreHeader {
        set: grant.set.get(),
        epoch: set.epoch,
        length: content.length,
        sync: durable,
        token: grant.token.clone(),
        forward: forward_to(engine, map, set, primary.node),
        request_id: RequestId::current().to_string(),
    };
    let stored = match send(engine, &primary, grant, &header, content).await {
        Ok(stored) => stored,
        Err(error) => {
            blame(engine, &primary, error.kind());
            return Err(error);
        }
    };
    for (node, error) in &stored.failed {
        let reason = if error.kind == ErrorKind::NoSpace { Reason::Full } else { Reason::Failed };
        engine.planner.avoid(*node, reason);
    }
    if stored.by.len() < set.min_replicas || durable && !stored.synced {
        let why = stored.failed.first().map(|(_, error)| error.to_string()).unwrap_or_default();
        let message = format!("{} of {} members stored the chunk: {why}", stored.by.len(), set.members.len());
        return Err(ClientError::new(ErrorKind::TooFewReplicas, message));
    }
    Ok(StoredDraft {
        grant: grant.clone(),
        epoch: set.epoch,
        by: stored.by,
        synced: stored.synced,
        members: set.members.clone(),
    })
}

/// Whom the primary shall forward to: nobody waits for a member that is not well, as long as enough
/// others are. Empty: all that are not down.
fn forward_to(engine: &Engine, map: &Map, set: &ReplicaSet, primary: NodeId) -> Vec<Bytes> {
    let is_well = |node: NodeId| map.liveness(node) == Liveness::Up && !engine.planner.avoids(node);
    let others = || set.members.iter().copied().filter(|node| *node != primary);
    let well: Vec<_> = others().filter(|node| is_well(*node)).collect();
    if well.len() == others().count() || well.len() + 1 < set.min_replicas {
        return Vec::new();
    }
    well.into_iter().map(NodeId::to_wire).collect()
}

async fn send(
    engine: &Arc<Engine>,
    primary: &Arc<Link>,
    grant: &Grant,
    header: &v1::StoreHeader,
    content: &ChunkContent,
) -> Result<Stored> {
    let stream = engine.transport.store_stream(primary);
    let _transfer = primary.health.begin();
    let is_gone = || engine.coordinator.map().get().liveness(primary.node) != Liveness::Up;
    stream.store(grant.chunk, header, content, is_gone).await
}

fn blame(engine: &Engine, primary: &Link, kind: ErrorKind) {
    match kind {
        ErrorKind::StaleEpoch => {} // ours is the old map
        ErrorKind::NoSpace => engine.planner.avoid(primary.node, Reason::Full),
        _ => {
            primary.health.failed();
            engine.planner.avoid(primary.node, Reason::Failed);
        }
    }
}

/// Small files are often read soon after they were written; their blocks cost little to keep.
fn keep_in_cache(engine: &Engine, grant: &Grant, content: &ChunkContent) {
    if content.length > PACKED_BYTES_MAX {
        return;
    }
    let blocks = content.frames.iter().flat_map(|frame| crate::reader::blocks_of(&frame.data));
    for (block, data) in (0..).zip(blocks) {
        engine.cache.insert(grant.chunk, block, &data);
    }
}
