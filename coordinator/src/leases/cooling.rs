//! What was fought over: after a recall nobody gets a lease for a while, so that those
//! who use it together go straight to the coordinator instead of taking it from one another.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use cairn_proto::InodeId;
use cairn_runtime::clock::{self, Instant};

/// How long.
pub(super) const LEASE_COOL: Duration = Duration::from_secs(5);
/// Directories remembered; of more the oldest are forgotten, which costs a recall.
const COOLING_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Cooling {
    until: HashMap<InodeId, Instant>,
    /// In the order in which they end.
    order: VecDeque<(Instant, InodeId)>,
}

impl Cooling {
    pub(super) fn insert(&mut self, inode: InodeId) {
        let now = clock::now();
        while let Some(&(until, oldest)) = self.order.front()
            && (until <= now || self.order.len() >= COOLING_MAX)
        {
            self.order.pop_front();
            // It may have been fought over again since.
            if self.until.get(&oldest) == Some(&until) {
                self.until.remove(&oldest);
            }
        }
        let until = now + LEASE_COOL;
        self.until.insert(inode, until);
        self.order.push_back((until, inode));
    }

    pub(super) fn contains(&self, inode: InodeId) -> bool {
        self.until.get(&inode).is_some_and(|&until| clock::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_forgets_what_is_over_and_stays_small() {
        let mut cooling = Cooling::default();
        let inode = |id: usize| InodeId::new(id as u64).unwrap();
        cooling.insert(inode(1));
        clock::sleep(LEASE_COOL / 2).await;
        cooling.insert(inode(1));
        clock::sleep(LEASE_COOL * 3 / 4).await;
        cooling.insert(inode(2));
        assert!(cooling.contains(inode(1)), "counted from the second time");
        assert_eq!(cooling.order.len(), 2);
        (3..COOLING_MAX * 2).for_each(|id| cooling.insert(inode(id)));
        assert_eq!((cooling.order.len(), cooling.until.len()), (COOLING_MAX, COOLING_MAX));
        clock::sleep(LEASE_COOL).await;
        assert!(!cooling.contains(inode(COOLING_MAX)));
    }
}
