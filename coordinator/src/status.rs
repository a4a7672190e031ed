//! What is wrong with the cluster, as named codes, each with what to do about it.

use std::time::Duration;

use cairn_proto::v1;

use crate::archive::queue::{Shipping, Standing};
use crate::config::LogAck;
use crate::context::Policy;
use crate::membership::state::{Members, NodeEntry, NodeState};
use crate::store::ReplicaSet;

/// A datanode with less than this part of its capacity free is nearly full: 10 %.
const NEAR_FULL_PART: u64 = 10;

/// The second place of the metadata log may lack something for so long before it is told.
const LOG_BEHIND_MAX: Duration = Duration::from_secs(10);

struct Finding {
    code: &'static str,
    error: bool,
    detail: String,
    remedy: String,
}

/// Everything that is not well; empty when all is.
pub(crate) fn health(
    members: &Members,
    policy: &Policy,
    faults: u64,
    store_failed: bool,
    shipping: &Shipping,
) -> Vec<v1::HealthCode> {
    let mut found = Vec::new();
    if store_failed {
        found.push(Finding {
            code: "STORE_FAILED",
            error: true,
            detail: "the disk of the metadata store has failed; nothing can be changed".into(),
            remedy: "Look at the coordinator's log and its disk, then restart the coordinator.".into(),
        });
    }
    found.extend(shipping.standing().into_iter().flat_map(|standing| log_health(&standing)));
    found.extend(no_writes(members, policy));
    for entry in members.nodes.values() {
        found.extend(standing(entry));
        found.extend(disks(entry));
        found.extend(near_full(entry));
    }
    found.extend(degraded(members, faults));
    let to_wire = |finding: Finding| v1::HealthCode {
        code: finding.code.into(),
        detail: finding.detail,
        remedy: finding.remedy,
        error: finding.error,
    };
    found.into_iter().map(to_wire).collect()
}

/// Whether what was changed is also in the second place.
fn log_health(standing: &Standing) -> Vec<Finding> {
    let mut found = Vec::new();
    if standing.behind > LOG_BEHIND_MAX {
        let waits = standing.ack == LogAck::Shipped;
        let why = standing.error.as_ref().or(standing.base_error.as_ref());
        found.push(Finding {
            code: "LOG_BEHIND",
            error: waits,
            detail: format!(
                "the second place of the metadata log has lacked something for {} s: it has commit {} of {}{}{}",
                standing.behind.as_secs(),
                standing.shipped,
                standing.committed,
                if standing.covered { "" } else { ", and no base backup that leads there yet" },
                why.map(|why| format!(" ({why})")).unwrap_or_default(),
            ),
            remedy: if waits {
                "Changes wait for it. Bring the place back (log_ship), or set log_ack = \"async\" and restart the \
                 coordinator."
                    .into()
            } else {
                "Bring the place back (log_ship): what is missing is sent by itself.".into()
            },
        });
    } else if let Some(why) = &standing.base_error {
        found.push(Finding {
            code: "BACKUP_FAILED",
            error: false,
            detail: format!("the last backup of the metadata failed: {why}"),
            remedy: "Look at the place (log_ship) and at the coordinator's log; it is tried again by itself."
                .into(),
        });
    }
    found
}

fn no_writes(members: &Members, policy: &Policy) -> Option<Finding> {
    let up = members.nodes.values().filter(|entry| entry.state == NodeState::Up).count();
    let needed = policy.min_replicas as usize;
    (up < needed).then(|| Finding {
        code: "NO_WRITES",
        error: true,
        detail: format!("{up} datanodes are up; writes need {needed}"),
        remedy: "Start more datanodes; writers wait and go on by themselves.".into(),
    })
}

fn standing(entry: &NodeEntry) -> Option<Finding> {
    let name = name_of(entry);
    match entry.state {
        NodeState::Up => None,
        NodeState::Suspect => Some(Finding {
            code: "NODE_SUSPECT",
            error: false,
            detail: format!("{name} is silent; no new chunks are placed there"),
            remedy: "If it does not come back within seconds, look at its process and network.".into(),
        }),
        NodeState::Lost => Some(Finding {
            code: "NODE_LOST",
            error: false,
            detail: format!("{name} is lost; its copies are made again elsewhere"),
            remedy:
                "Start it again with the same data directory: what is still good there is used. If it is \
                     gone for good, remove it."
                    .into(),
        }),
        NodeState::Down => Some(Finding {
            code: "NODE_DOWN",
            error: false,
            detail: format!("{name} is down; its chunks are read from other copies"),
            remedy: "Start it again with the same data directory.".into(),
        }),
    }
}

fn disks(entry: &NodeEntry) -> Vec<Finding> {
    let faulty = entry.report.disks.iter().filter(|disk| !disk.fault.is_empty());
    let finding = |disk: &v1::DiskHealth| Finding {
        code: "DISK_FAULT",
        error: true,
        detail: format!("{}, {}: {}", name_of(entry), disk.path, disk.fault),
        remedy: "Replace the disk, then start the datanode again; other copies serve meanwhile.".into(),
    };
    faulty.map(finding).collect()
}

fn near_full(entry: &NodeEntry) -> Option<Finding> {
    let capacity = entry.report.capacity;
    (capacity > 0 && entry.free() < capacity / NEAR_FULL_PART).then(|| Finding {
        code: "NODE_NEAR_FULL",
        error: false,
        detail: format!("{} has {} MiB of {} MiB left", name_of(entry), entry.free() >> 20, capacity >> 20),
        remedy: "Add disks or datanodes: new chunks go to those with room.".into(),
    })
}

fn degraded(members: &Members, faults: u64) -> Option<Finding> {
    let down = |set: &&ReplicaSet| {
        let state = |node| members.nodes.get(&node).map(|entry| entry.state);
        set.members
            .nodes()
            .any(|node| state(node).is_none_or(|state| matches!(state, NodeState::Down | NodeState::Lost)))
    };
    let short = members.sets.values().filter(|set| set.members.0.len() < set.replicas as usize).count();
    let down = members.sets.values().filter(down).count();
    (faults > 0 || short > 0 || down > 0).then(|| Finding {
        code: "CHUNKS_DEGRADED",
        error: false,
        detail: format!(
            "{faults} copies are missing; of {} replica sets {short} have too few members and {down} have \
             members that are down",
            members.sets.len()
        ),
        remedy:
            "Bring all datanodes back and have as many as there shall be copies. This version does not make \
                 up for copies that were missed meanwhile."
                .into(),
    })
}

fn name_of(entry: &NodeEntry) -> String {
    format!("datanode {} ({})", entry.row.id.short(), entry.row.address)
}
