//! Datanodes and replica sets: who is there, who holds what, and the map that says so.
//!
//! [`state`] holds the rules as one pure state machine, [`selector`] decides where chunks go,
//! [`map`] writes the wire form. [`Cluster`] ties them together: a mutex around the state, and a
//! channel on which every change of the map is published. Rows of datanodes and sets are written by
//! the executor, which alone adds sets.

pub(crate) mod change;
pub(crate) mod map;
pub(crate) mod placement;
pub(crate) mod selector;
pub(crate) mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{ClusterId, NodeId, v1};
use tokio::sync::watch;

use crate::attendance::Moment;
use crate::error::OpError;
use crate::store::ReplicaSet;
use selector::{NodeSelector, SpreadSelector};
use state::{Event, Members, Timing};

/// The map as it is sent, with its number.
pub(crate) type SharedMap = Arc<v1::ClusterMap>;

/// Membership of the cluster, shared by the executor and the services.
#[derive(Debug)]
pub(crate) struct Cluster {
    id: ClusterId,
    term: u64,
    members: Mutex<Members>,
    map: watch::Sender<SharedMap>,
    pub(crate) selector: Box<dyn NodeSelector>,
}

impl Cluster {
    pub(crate) fn new(id: ClusterId, term: u64, members: Members) -> Self {
        let first = Arc::new(map::build(id, term, &members));
        Self {
            id,
            term,
            members: Mutex::new(members),
            map: watch::Sender::new(first),
            selector: Box::new(SpreadSelector),
        }
    }

    pub(crate) fn id(&self) -> ClusterId {
        self.id
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    pub(crate) fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest map that was published.
    pub(crate) fn map(&self) -> SharedMap {
        Arc::clone(&self.map.borrow())
    }

    /// The latest map when the peer's is older. Revisions count from 0 in each reign, so a peer that
    /// names a later one comes from another reign.
    pub(crate) fn map_if_newer(&self, revision: u64) -> Option<v1::ClusterMap> {
        let map = self.map.borrow();
        (map.revision != revision).then(|| v1::ClusterMap::clone(&map))
    }

    /// The map with what datanodes have reported since it was published.
    pub(crate) fn fresh_map(&self) -> v1::ClusterMap {
        map::build(self.id, self.term, &self.members())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<SharedMap> {
        self.map.subscribe()
    }

    /// Applies an event and publishes the map when it changes.
    pub(crate) fn apply(&self, event: Event) -> Result<(), OpError> {
        let result = self.members().apply(event);
        self.publish();
        result
    }

    /// Publishes the map when something has changed since.
    pub(crate) fn publish(&self) {
        let mut members = self.members();
        if members.take_dirty() {
            // Under the lock, so that maps go out in the order of their revisions.
            self.map.send_replace(Arc::new(map::build(self.id, self.term, &members)));
        }
    }

    /// For the executor: takes the sets from the store again after a commit that failed.
    pub(crate) fn reset_sets(&self, sets: Vec<ReplicaSet>) {
        self.members().reset_sets(sets);
        self.publish();
    }

    /// When the next datanode would be silent for too long.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.members().next_deadline()
    }

    /// A stream of heartbeats has ended. Nothing comes of it when the datanode has a newer one.
    pub(crate) fn stream_lost(&self, node: NodeId, stream: u64, now: Moment) {
        let _ = self.apply(Event::StreamLost { node, stream, now });
    }
}

/// From the configuration.
pub(crate) fn timing(suspect_after: Duration, down_after: Duration, lost_after: Duration) -> Timing {
    Timing { suspect_after, down_after, lost_after }
}
