//! For the simulation: a metadata store that outlives a crash of its coordinator, and a view of its
//! rows for checks from outside.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::NodeId;
use cairn_runtime::shutdown::Shutdown;

use crate::config::CoordinatorConfig;
use crate::server::{self, CoordinatorError, Running};
use crate::store::memory::MemoryStore;
use crate::store::{Chunk, Fault, Member, MemberState, ReplicaSet, Scan, Table, list};

/// The disk of a simulated coordinator. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Metadata(MemoryStore);

/// A chunk as metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkFacts {
    /// Its id.
    pub id: u64,
    /// Its replica set.
    pub set: u64,
    /// Bytes.
    pub length: u64,
    /// A file uses some of them; else it is garbage, and goes.
    pub is_used: bool,
    /// CRC-32C of all of them.
    pub crc32c: u32,
    /// Copies wanted.
    pub replicas: usize,
    /// Members of its set that are active and have no fault row.
    pub holders: Vec<NodeId>,
    /// Members of its set in other states, or with a fault row.
    pub others: Vec<NodeId>,
}

impl Metadata {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses what was not synced, as a power cut does.
    pub fn crash(&self) {
        self.0.crash();
    }

    /// Every chunk that metadata knows.
    pub fn chunks(&self) -> Result<Vec<ChunkFacts>, CoordinatorError> {
        let rows = self.0.committed();
        let sets: Vec<ReplicaSet> = list(&*rows, &Scan::all(Table::ReplicaSet))?;
        let sets: BTreeMap<_, _> = sets.into_iter().map(|set| (set.id.get(), set)).collect();
        let faults: Vec<Fault> = list(&*rows, &Scan::all(Table::Fault))?;
        let faults: BTreeSet<_> = faults.into_iter().map(|fault| (fault.chunk.get(), fault.node)).collect();
        let chunks: Vec<Chunk> = list(&*rows, &Scan::all(Table::Chunk))?;
        let facts = chunks.into_iter().filter_map(|chunk| {
            let (id, set) = (chunk.id.get(), chunk.replica_set.get());
            let of = sets.get(&set)?;
            let (holders, others): (Vec<_>, Vec<_>) = of.members.0.iter().partition(|member| {
                member.state == MemberState::Active && !faults.contains(&(id, member.node))
            });
            let nodes = |members: Vec<&Member>| members.into_iter().map(|member| member.node).collect();
            Some(ChunkFacts {
                id,
                set,
                length: chunk.length,
                is_used: chunk.live > 0,
                crc32c: chunk.crc32c,
                replicas: of.replicas as usize,
                holders: nodes(holders),
                others: nodes(others),
            })
        });
        Ok(facts.collect())
    }
}

/// As [`crate::start`], on a store that the caller keeps. `config.engine` must be `Memory`.
///
/// # Errors
/// As [`crate::start`].
pub async fn start(
    config: CoordinatorConfig,
    metadata: Metadata,
    shutdown: Shutdown,
) -> Result<Running, CoordinatorError> {
    server::start_on(config, metadata.0, shutdown).await
}
