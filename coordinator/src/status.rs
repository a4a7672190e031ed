//! What is wrong with the cluster, by the named conditions of `cairn_proto::health`.

use std::time::Duration;

use cairn_proto::health::Condition;
use cairn_proto::{NodeId, v1};

use crate::archive::queue::{Shipping, Standing};
use crate::config::LogAck;
use crate::context::Policy;
use crate::membership::placement;
use crate::membership::state::{Members, NodeEntry, NodeState};
use crate::ops::gc::Stopped;
use crate::ops::members::holds_place;
use crate::store::{AdminState, Member, MemberState, ReplicaSet};
use crate::workers::Worker;
use crate::workers::repair::RepairWorker;

/// A datanode with less than this part of its capacity free is nearly full: 10 %.
const NEAR_FULL_PART: u64 = 10;

/// The second place of the metadata log may lack something for so long before it is told.
const LOG_BEHIND_MAX: Duration = Duration::from_secs(10);

struct Finding {
    condition: Condition,
    detail: String,
}

/// What is known of the cluster besides its members.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) shipping: &'a Shipping,
    pub(crate) store_failed: bool,
    /// Rows in the queue of faults.
    pub(crate) faults: u64,
    /// Chunks of which no copy is known to be sound.
    pub(crate) lost_chunks: u64,
    /// Why nothing is deleted at present.
    pub(crate) deletion: Option<Stopped>,
    pub(crate) workers: &'a [v1::WorkerStatus],
}

/// Everything that is not well, errors first; empty when all is.
pub(crate) fn health(members: &Members, facts: &Facts<'_>) -> Vec<v1::HealthCode> {
    let mut found = Vec::new();
    let mut tell = |condition, detail: String| found.push(Finding { condition, detail });
    if facts.store_failed {
        tell(Condition::StoreFailed, "the metadata store takes no changes".into());
    }
    match facts.deletion {
        Some(Stopped::RolledBack { .. }) => tell(Condition::MetadataRolledBack, "deletion is stopped".into()),
        Some(Stopped::ByOperator { .. }) => tell(Condition::GcPaused, "deletion is stopped".into()),
        None => {}
    }
    if facts.lost_chunks > 0 {
        let chunks = count(facts.lost_chunks, "chunk has", "chunks have");
        tell(Condition::ChunksLost, format!("{chunks} no copy that is known to be sound"));
    }
    found.extend(facts.shipping.standing().into_iter().flat_map(|standing| log_health(&standing)));
    found.extend(no_writes(members, facts.policy));
    for entry in members.nodes.values() {
        found.extend(standing(entry, members));
        if entry.row.admin != AdminState::Out {
            found.extend(disks(entry));
            found.extend(near_full(entry));
        }
    }
    found.extend(degraded(members, facts.policy, facts.faults));
    found.extend(work(facts.workers));
    // Without the second place nothing can be changed when changes wait for it.
    let log_waits = facts.shipping.standing().is_some_and(|standing| standing.ack == LogAck::Shipped);
    let is_error =
        |condition: Condition| condition.is_error() || (condition == Condition::LogBehind && log_waits);
    found.sort_by_key(|finding| !is_error(finding.condition));
    let to_wire = |finding: Finding| v1::HealthCode {
        code: finding.condition.code().into(),
        detail: finding.detail,
        remedy: finding.condition.remedy().into(),
        error: is_error(finding.condition),
    };
    found.into_iter().map(to_wire).collect()
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Whether what was changed is also in the second place.
fn log_health(standing: &Standing) -> Option<Finding> {
    if standing.behind > LOG_BEHIND_MAX {
        let why = standing.error.as_ref().or(standing.base_error.as_ref());
        let detail = format!(
            "the second place of the metadata log has lacked something for {} s: it has commit {} of {}{}{}{}",
            standing.behind.as_secs(),
            standing.shipped,
            standing.committed,
            if standing.covered { "" } else { ", and no base backup that leads there yet" },
            if standing.ack == LogAck::Shipped { "; changes wait for it" } else { "" },
            why.map(|why| format!(" ({why})")).unwrap_or_default(),
        );
        return Some(Finding { condition: Condition::LogBehind, detail });
    }
    let why = standing.base_error.as_ref()?;
    Some(Finding { condition: Condition::BackupFailed, detail: why.to_string() })
}

/// Whether so many datanodes are up that writes can be acknowledged, or a sentence how many are missing.
pub(crate) fn enough_nodes(members: &Members, policy: &Policy) -> Result<(), String> {
    let serves = |entry: &&NodeEntry| entry.state == NodeState::Up && entry.row.admin != AdminState::Out;
    let up = members.nodes.values().filter(serves).count();
    let needed = policy.min_replicas as usize;
    if up >= needed {
        return Ok(());
    }
    let up = count(up as u64, "datanode is", "datanodes are");
    Err(format!("{up} up; writes need {needed}"))
}

/// Too few datanodes, or too few with room, to store a chunk.
fn no_writes(members: &Members, policy: &Policy) -> Option<Finding> {
    if let Err(detail) = enough_nodes(members, policy) {
        return Some(Finding { condition: Condition::NoWrites, detail });
    }
    let detail = placement::lack_of_room(members, policy)?;
    Some(Finding { condition: Condition::NoSpace, detail })
}

fn standing(entry: &NodeEntry, members: &Members) -> Vec<Finding> {
    let name = name_of(entry);
    let places = members.sets.values().filter(|set| holds_place(set, entry.row.id)).count();
    let mut found = Vec::new();
    let mut tell = |condition, detail| found.push(Finding { condition, detail });
    match entry.row.admin {
        // Whatever becomes of it: it is gone.
        AdminState::Out => return found,
        AdminState::Draining => tell(
            Condition::NodeDraining,
            match places {
                0 => format!("{name} is empty and can be removed"),
                _ => format!(
                    "{name} still has a place in {}",
                    count(places as u64, "replica set", "replica sets")
                ),
            },
        ),
        AdminState::In => {}
    }
    match entry.state {
        NodeState::Up => {}
        NodeState::Suspect => tell(Condition::NodeSuspect, format!("{name} is silent")),
        NodeState::Down => tell(Condition::NodeDown, format!("{name} is down")),
        NodeState::Lost => tell(Condition::NodeLost, format!("{name} is lost")),
    }
    found
}

fn disks(entry: &NodeEntry) -> Vec<Finding> {
    let name = name_of(entry);
    let mut found = Vec::new();
    for disk in &entry.report.disks {
        if !disk.fault.is_empty() {
            let detail = format!("{name}, {}: {}", disk.path, disk.fault);
            found.push(Finding { condition: Condition::DiskFault, detail });
        } else {
            let detail = || format!("{name}, {}", disk.path);
            if !disk.writable {
                found.push(Finding { condition: Condition::DiskFull, detail: detail() });
            }
            if disk.slow {
                found.push(Finding { condition: Condition::DiskSlow, detail: detail() });
            }
        }
    }
    found
}

fn near_full(entry: &NodeEntry) -> Option<Finding> {
    let capacity = entry.report.capacity;
    let detail = format!("{} has {} MiB of {} MiB left", name_of(entry), entry.free() >> 20, capacity >> 20);
    let near = capacity > 0 && entry.free() < capacity / NEAR_FULL_PART;
    near.then_some(Finding { condition: Condition::NodeNearFull, detail })
}

/// Copies that are missing: those that repair makes again, and those for which a datanode is missing.
fn degraded(members: &Members, policy: &Policy, faults: u64) -> Vec<Finding> {
    let serves = |node: &NodeId| {
        let entry = members.nodes.get(node);
        entry.is_some_and(|entry| {
            matches!(entry.state, NodeState::Up | NodeState::Suspect) && entry.row.admin != AdminState::Out
        })
    };
    let complete = |set: &ReplicaSet| {
        let holds = |member: &&Member| matches!(member.state, MemberState::Active | MemberState::Leaving);
        set.members.0.iter().filter(holds).filter(|member| serves(&member.node)).count()
    };
    let short: Vec<_> = members.sets.values().filter(|set| complete(set) < set.replicas as usize).collect();
    let mut found = Vec::new();
    let fewest = short.iter().map(|set| complete(set)).min().unwrap_or(0);
    let sets = format!(
        "chunks of {} of {} lack copies: as few as {fewest} of {} members are complete and online",
        short.len(),
        count(members.sets.len() as u64, "replica set", "replica sets"),
        policy.replicas,
    );
    let serving = members.nodes.keys().filter(|node| serves(node)).count();
    if !short.is_empty() && serving < policy.replicas as usize {
        let nodes = count(serving as u64, "datanode serves", "datanodes serve");
        let detail = format!("{sets}; {nodes}, {} copies need {}", policy.replicas, policy.replicas);
        found.push(Finding { condition: Condition::RedundancyReduced, detail });
    } else if !short.is_empty() {
        found.push(Finding { condition: Condition::ChunksDegraded, detail: sets });
    }
    if faults > 0 {
        let detail = format!("{} missing or bad", count(faults, "single copy is", "single copies are"));
        found.push(Finding { condition: Condition::ChunksDegraded, detail });
    }
    found
}

fn work(workers: &[v1::WorkerStatus]) -> Vec<Finding> {
    let mut found = Vec::new();
    for worker in workers {
        if worker.state() == v1::WorkerState::Paused {
            found.push(Finding {
                condition: Condition::WorkPaused,
                detail: format!("{} is paused", worker.name),
            });
        } else if worker.name == RepairWorker::NAME && !worker.error.is_empty() {
            found.push(Finding { condition: Condition::RepairStalled, detail: worker.error.clone() });
        }
    }
    found
}

fn name_of(entry: &NodeEntry) -> String {
    format!("datanode {} ({})", entry.row.id.short(), entry.row.address)
}
