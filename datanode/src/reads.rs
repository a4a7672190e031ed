//! `RetrieveChunk` streams at once: so many of one connection, of one address, of all. So a client that takes nothing
//! of what it asks for leaves enough to others, until its connection is closed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Each holds some frames; others wait, then get `Overloaded`.
const ALL_MAX: usize = 128;
/// Of one address: others have a quarter for themselves.
const OF_ADDRESS_MAX: usize = 96;
/// Of one connection: a client with the default memory has no more fetches under way.
const OF_CONNECTION_MAX: usize = 32;
/// Origins known before those that read nothing are forgotten.
const ORIGINS_SWEPT: usize = 256;

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    Address(IpAddr),
    Connection(SocketAddr),
}

/// The streams under way.
#[derive(Debug)]
pub(crate) struct Reads {
    all: Arc<Semaphore>,
    of: Mutex<HashMap<Origin, Weak<Semaphore>>>,
}

/// One stream; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ReadSlot {
    _permits: [Option<OwnedSemaphorePermit>; 3],
    _shares: [Option<Arc<Semaphore>>; 2],
}

impl Reads {
    pub(crate) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL_MAX)), of: Mutex::default() }
    }

    /// Waits until one more stream may begin for `peer`. Cancel-safe.
    pub(crate) async fn begin(&self, peer: Option<SocketAddr>) -> ReadSlot {
        let of_connection = peer.map(|peer| self.share(Origin::Connection(peer), OF_CONNECTION_MAX));
        let of_address = peer.map(|peer| self.share(Origin::Address(peer.ip()), OF_ADDRESS_MAX));
        let shares = [of_connection, of_address];
        let mut permits = [None, None, None];
        for (permit, share) in permits.iter_mut().zip(shares.iter().flatten().chain([&self.all])) {
            // The semaphores are never closed.
            *permit = Arc::clone(share).acquire_owned().await.ok();
        }
        ReadSlot { _permits: permits, _shares: shares }
    }

    /// Whether anybody reads.
    pub(crate) fn are_under_way(&self) -> bool {
        self.all.available_permits() < ALL_MAX
    }

    fn share(&self, origin: Origin, count: usize) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = of.get(&origin).and_then(Weak::upgrade) {
            return share;
        }
        if of.len() >= ORIGINS_SWEPT {
            of.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(count));
        of.insert(origin, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn peer(host: u8, port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, host], port)))
    }

    /// Streams that begin at once.
    fn fill(reads: &Reads, peer: Option<SocketAddr>) -> Vec<ReadSlot> {
        std::iter::from_fn(|| reads.begin(peer).now_or_never()).collect()
    }

    #[test]
    fn who_takes_all_that_it_can_leaves_something_to_others() {
        let reads = Reads::new();
        let greedy: Vec<_> = (1..6).map(|port| fill(&reads, peer(1, port))).collect();
        assert_eq!(greedy.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 32, 0, 0]);
        let other = fill(&reads, peer(2, 1));
        assert_eq!(other.len(), 32, "all of one connection");
        assert!(fill(&reads, peer(3, 1)).is_empty(), "all of the node");
        drop(greedy);
        assert_eq!(fill(&reads, peer(1, 7)).len(), 32);
        drop(other);
        assert!(!reads.are_under_way());
    }

    #[test]
    fn who_reads_nothing_is_forgotten() {
        let reads = Reads::new();
        for port in 1..2000 {
            drop(fill(&reads, peer(1, port)));
        }
        assert!(reads.of.lock().unwrap().len() <= ORIGINS_SWEPT);
    }
}
