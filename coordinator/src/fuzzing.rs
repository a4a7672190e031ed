//! Entry points for the fuzzers of `fuzz/`: they feed arbitrary bytes to what decodes and executes
//! input from the network and from the disk. Compiled with the feature `fuzzing` alone.
//!
//! Each panics where a promise is broken; any error is fine.

mod extents;
mod log;
mod rows;
mod wire;

pub use extents::run as extents;
pub use log::run as log;
pub use rows::run as rows;
pub use wire::run as wire;

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::ClusterId;
use uuid::Uuid;

use crate::archive::queue::Shipping;
use crate::attendance::Attendance;
use crate::cluster_clock::ClusterClock;
use crate::context::{Context, Policy, Sequence};
use crate::executor::Tx;
use crate::leases::Leases;
use crate::membership::Cluster;
use crate::membership::state::{Members, Timing};
use crate::sessions::Sessions;
use crate::store::memory::MemoryStore;
use crate::unsynced::UnsyncedFiles;

/// A view on a new, empty file system in memory.
fn new_tx() -> Option<Tx> {
    let opened = MemoryStore::default().open(ClusterId::from_uuid(Uuid::from_u128(1)), 1).ok()?;
    let timing = Timing {
        suspect_after: Duration::from_secs(3),
        down_after: Duration::from_secs(10),
        lost_after: Duration::from_secs(600),
    };
    let attendance = Arc::new(Attendance::unbroken());
    let members = Members::new(timing, vec![], vec![], 1, attendance.now());
    let context = Context {
        policy: Policy::default(),
        sessions: Sessions::new(Arc::clone(&attendance), Duration::from_secs(10), vec![], &[]),
        leases: Leases::new(Arc::clone(&attendance), Duration::from_secs(10), []),
        cluster: Cluster::new(opened.cluster, opened.term, members),
        sequence: Sequence::new(0),
        unsynced: UnsyncedFiles::new(false),
        shipping: Arc::new(Shipping::off()),
        attendance,
        clock: ClusterClock::default(),
    };
    Some(Tx::new(opened.writer, Arc::new(context)))
}

/// Hands out the bytes of an input piece by piece; zeros once they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()])) % bound
    }

    /// At most `len` bytes.
    fn take(&mut self, len: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
