//! The standing of each datanode, as one state machine without clock or I/O.
//!
//! ```text
//!             heartbeat
//!        ┌──────────────────┬─────────────┬─────────────┐
//!        ▼                  │             │             │
//!       up ── silent ──▶ suspect ─ silent ▶ down ─ silent ▶ lost
//!        │    (or its stream broke)       ▲
//!        └─────────── leaving ────────────┘
//! ```
//! Silence counts only while the coordinator listens ([`crate::attendance`]).
//! A datanode known from the store alone starts as `suspect`. One node id has one live process: a
//! second incarnation is refused as long as the first one's stream of heartbeats stands.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_proto::{ErrorKind, NodeId, ReplicaSetId, v1};
use uuid::Uuid;

use crate::attendance::Moment;
use crate::error::OpError;
use crate::store::{AdminState, Datanode, ReplicaSet};

/// How long silence is borne.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) suspect_after: Duration,
    pub(crate) down_after: Duration,
    /// Silence after which copies are made again elsewhere.
    pub(crate) lost_after: Duration,
}

/// The standing of a datanode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeState {
    Up,
    Suspect,
    Down,
    Lost,
}

/// What a datanode reports of itself with each heartbeat.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    pub(crate) disks: Vec<v1::DiskHealth>,
}

/// One datanode.
#[derive(Debug, Clone)]
pub(crate) struct NodeEntry {
    pub(crate) row: Datanode,
    pub(crate) state: NodeState,
    pub(crate) report: Report,
    pub(crate) last_seen_ns: i64,
    last_seen: Moment,
    incarnation: Option<Uuid>,
    /// What was stored before this time, and not synced, may be gone: since then the datanode has started
    /// anew, or has told that it gave chunks up which were in no file.
    doubtful_ns: i64,
    /// How often chunks were committed that may be gone so.
    doubts: u64,
    /// Number of the stream that its heartbeats come on, while it stands.
    stream: Option<u64>,
}

impl NodeEntry {
    /// The process that is this datanode; none until it has registered in this reign.
    pub(crate) fn incarnation(&self) -> Option<Uuid> {
        self.incarnation
    }

    /// Changes when it may lack a chunk that nothing is known of.
    pub(crate) fn doubts(&self) -> u64 {
        self.doubts
    }

    pub(crate) fn free(&self) -> u64 {
        self.report.capacity.saturating_sub(self.report.used)
    }

    /// Whether some disk takes chunks and `size` bytes more fit, with a part of the capacity to spare.
    pub(crate) fn has_room(&self, size: u64) -> bool {
        let disks = &self.report.disks;
        let writable = disks.is_empty() || disks.iter().any(|disk| disk.writable);
        writable && self.free() >= size.saturating_add(self.report.capacity / FREE_PART)
    }

    /// Whether every disk that takes chunks is slow.
    pub(crate) fn is_slow(&self) -> bool {
        let mut writable = self.report.disks.iter().filter(|disk| disk.writable).peekable();
        writable.peek().is_some() && writable.all(|disk| disk.slow)
    }
}

/// A datanode keeps this part of its capacity free of new chunks: 2 %.
const FREE_PART: u64 = 50;

/// What can happen to the membership.
#[derive(Debug)]
pub(crate) enum Event {
    /// A process says which datanode it is. `Busy`: another process is that one.
    Registered {
        row: Datanode,
        incarnation: Uuid,
        report: Report,
        now: Moment,
        now_ns: i64,
    },
    /// A heartbeat. `NotFound`: it has not registered. `Busy`: another process has taken its place.
    Beat {
        node: NodeId,
        incarnation: Uuid,
        stream: u64,
        report: Report,
        now: Moment,
        now_ns: i64,
    },
    /// An orderly stop.
    Leaving {
        node: NodeId,
        incarnation: Uuid,
    },
    StreamLost {
        node: NodeId,
        stream: u64,
        now: Moment,
    },
    /// Time has passed.
    Deadline {
        now: Moment,
        /// Whoever was heard before that counts as heard then.
        resumed: Moment,
    },
}

/// All datanodes and replica sets.
#[derive(Debug)]
pub(crate) struct Members {
    pub(crate) nodes: BTreeMap<NodeId, NodeEntry>,
    pub(crate) sets: BTreeMap<ReplicaSetId, ReplicaSet>,
    /// Raised by any change of any set; kept in the store.
    pub(crate) epoch: u64,
    /// Raised by any change at all, from 1 in each reign.
    pub(crate) revision: u64,
    dirty: bool,
    timing: Timing,
}

impl Members {
    /// From the rows of the store.
    pub(crate) fn new(
        timing: Timing,
        nodes: Vec<Datanode>,
        sets: Vec<ReplicaSet>,
        epoch: u64,
        now: Moment,
    ) -> Self {
        let entry = |row: Datanode| {
            let report = Report { capacity: row.capacity, used: row.used, disks: Vec::new() };
            let last_seen_ns = row.last_seen_ns;
            let state = NodeState::Suspect;
            (
                row.id,
                NodeEntry {
                    row,
                    state,
                    report,
                    last_seen_ns,
                    last_seen: now,
                    incarnation: None,
                    doubtful_ns: i64::MIN,
                    doubts: 0,
                    stream: None,
                },
            )
        };
        Self {
            nodes: nodes.into_iter().map(entry).collect(),
            sets: sets.into_iter().map(|set| (set.id, set)).collect(),
            epoch,
            revision: 1,
            dirty: false,
            timing,
        }
    }

    /// Applies one event. A refused one changes nothing.
    pub(crate) fn apply(&mut self, event: Event) -> Result<(), OpError> {
        match event {
            Event::Registered { row, incarnation, report, now, now_ns } => {
                self.register(row, incarnation, report, now, now_ns)
            }
            Event::Beat { node, incarnation, stream, report, now, now_ns } => {
                self.beat(node, incarnation, stream, report, now, now_ns)
            }
            Event::Leaving { node, incarnation } => {
                if let Some(entry) = self.nodes.get_mut(&node)
                    && entry.incarnation == Some(incarnation)
                {
                    entry.stream = None;
                    self.set_state(node, NodeState::Down);
                }
                Ok(())
            }
            Event::StreamLost { node, stream, now } => {
                if let Some(entry) = self.nodes.get_mut(&node)
                    && entry.stream == Some(stream)
                {
                    entry.stream = None;
                    entry.last_seen = now;
                    if entry.state == NodeState::Up {
                        self.set_state(node, NodeState::Suspect);
                    }
                }
                Ok(())
            }
            Event::Deadline { now, resumed } => {
                self.on_deadline(now, resumed);
                Ok(())
            }
        }
    }

    fn register(
        &mut self,
        row: Datanode,
        incarnation: Uuid,
        report: Report,
        now: Moment,
        now_ns: i64,
    ) -> Result<(), OpError> {
        let node = row.id;
        let mut row = row;
        let (mut doubtful_ns, mut doubts) = (now_ns, 0);
        if let Some(entry) = self.nodes.get(&node) {
            row.admin = entry.row.admin;
            if row.admin == AdminState::Out {
                return Err(removed(node));
            }
            let other = entry.incarnation.is_some_and(|other| other != incarnation);
            if other && entry.stream.is_some() {
                return Err(busy(node, &entry.row.address));
            }
            doubts = entry.doubts;
            if entry.incarnation == Some(incarnation) {
                doubtful_ns = entry.doubtful_ns;
            }
        }
        let entry = NodeEntry {
            row,
            state: NodeState::Up,
            report,
            last_seen_ns: now_ns,
            last_seen: now,
            incarnation: Some(incarnation),
            doubtful_ns,
            doubts,
            stream: None,
        };
        tracing::info!(node = %node, address = %entry.row.address, "datanode registered");
        self.nodes.insert(node, entry);
        self.changed();
        Ok(())
    }

    fn beat(
        &mut self,
        node: NodeId,
        incarnation: Uuid,
        stream: u64,
        report: Report,
        now: Moment,
        now_ns: i64,
    ) -> Result<(), OpError> {
        let entry = self.nodes.get_mut(&node).ok_or_else(|| {
            OpError::new(ErrorKind::NotFound, format!("datanode {} has not registered", node.short()))
        })?;
        if entry.row.admin == AdminState::Out {
            return Err(removed(node));
        }
        if entry.incarnation.is_some_and(|known| known != incarnation) {
            return Err(busy(node, &entry.row.address));
        }
        let faults = |report: &Report| {
            report.disks.iter().map(|disk| (disk.fault.clone(), disk.writable)).collect::<Vec<_>>()
        };
        let disks_changed = faults(&entry.report) != faults(&report);
        if entry.incarnation.is_none() {
            entry.doubtful_ns = now_ns;
        }
        entry.incarnation = Some(incarnation);
        entry.stream = Some(stream);
        entry.last_seen = now;
        entry.last_seen_ns = now_ns;
        entry.report = report;
        if disks_changed {
            self.changed();
        }
        self.set_state(node, NodeState::Up);
        Ok(())
    }

    fn on_deadline(&mut self, now: Moment, resumed: Moment) {
        self.nodes.values_mut().for_each(|entry| entry.last_seen = entry.last_seen.max(resumed));
        let late: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(&node, entry)| {
                let silent = now.since(entry.last_seen);
                let state = match entry.state {
                    NodeState::Up | NodeState::Suspect | NodeState::Down
                        if silent >= self.timing.lost_after =>
                    {
                        NodeState::Lost
                    }
                    NodeState::Up | NodeState::Suspect if silent >= self.timing.down_after => NodeState::Down,
                    NodeState::Up if silent >= self.timing.suspect_after => NodeState::Suspect,
                    state => state,
                };
                (state != entry.state).then_some((node, state))
            })
            .collect();
        for (node, state) in late {
            self.set_state(node, state);
        }
    }

    /// When silence changes something next.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let deadline = |entry: &NodeEntry| match entry.state {
            NodeState::Up => Some(entry.last_seen + self.timing.suspect_after),
            NodeState::Suspect => Some(entry.last_seen + self.timing.down_after),
            NodeState::Down => Some(entry.last_seen + self.timing.lost_after),
            NodeState::Lost => None,
        };
        self.nodes.values().filter_map(deadline).min()
    }

    fn set_state(&mut self, node: NodeId, state: NodeState) {
        let Some(entry) = self.nodes.get_mut(&node) else { return };
        if entry.state == state {
            return;
        }
        match state {
            NodeState::Up => tracing::info!(node = %node, address = %entry.row.address, "datanode is up"),
            NodeState::Suspect => {
                tracing::warn!(node = %node, address = %entry.row.address, "datanode is silent");
            }
            NodeState::Down => {
                tracing::warn!(node = %node, address = %entry.row.address, "datanode is down");
            }
            NodeState::Lost => {
                tracing::warn!(node = %node, address = %entry.row.address, "datanode is lost");
            }
        }
        entry.state = state;
        self.changed();
    }

    /// A datanode has given up chunks that no file had yet.
    pub(crate) fn gave_up(&mut self, node: NodeId, now_ns: i64) {
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.doubtful_ns = entry.doubtful_ns.max(now_ns);
        }
    }

    /// Whether a datanode may have lost what it stored, unsynced, some time after `granted_ns`.
    pub(crate) fn may_have_lost(&self, node: NodeId, granted_ns: i64) -> bool {
        self.nodes.get(&node).is_some_and(|entry| entry.doubtful_ns >= granted_ns)
    }

    /// Chunks were committed that these may have lost.
    pub(crate) fn doubt(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            if let Some(entry) = self.nodes.get_mut(&node) {
                entry.doubts += 1;
            }
        }
    }

    /// Records what the operator wants of a datanode.
    pub(crate) fn set_admin(&mut self, node: NodeId, admin: AdminState) {
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.row.admin = admin;
            self.changed();
        }
    }

    /// Takes new sets, or new forms of sets, with the epoch that they raise. For the executor, which stores them.
    pub(crate) fn add_sets(&mut self, sets: Vec<ReplicaSet>, epoch: u64) {
        self.sets.extend(sets.into_iter().map(|set| (set.id, set)));
        self.epoch = epoch;
        self.changed();
    }

    pub(super) fn reset_sets(&mut self, sets: Vec<ReplicaSet>) {
        self.sets = sets.into_iter().map(|set| (set.id, set)).collect();
        self.changed();
    }

    fn changed(&mut self) {
        self.revision += 1;
        self.dirty = true;
    }

    /// Whether something has changed since this was last asked.
    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// How far apart the fullest and the emptiest datanode that serve are, as they report, in parts of
    /// their capacity.
    pub(crate) fn usage_apart(&self) -> f64 {
        let serving = self
            .nodes
            .values()
            .filter(|entry| entry.state == NodeState::Up && entry.row.admin == AdminState::In);
        let usage = serving.map(|entry| entry.report.used as f64 / entry.report.capacity.max(1) as f64);
        let (least, most) = usage.fold((f64::MAX, 0.0f64), |(least, most), u| (least.min(u), most.max(u)));
        (most - least).max(0.0)
    }

    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|entry| entry.state == NodeState::Up)
    }
}

fn removed(node: NodeId) -> OpError {
    let message = format!(
        "datanode {} was removed from the cluster and what it holds is out of date; give this machine an \
         empty data directory, and it joins as a new datanode",
        node.short()
    );
    OpError::new(ErrorKind::NotPermitted, message)
}

fn busy(node: NodeId, address: &str) -> OpError {
    let message = format!(
        "datanode {} is already running at {address}; stop that process, or give this one a data \
         directory of its own",
        node.short()
    );
    OpError::new(ErrorKind::Busy, message)
}

#[cfg(test)]
mod tests;
