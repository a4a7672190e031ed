//! Reply slots: what makes mutations happen exactly once.
//!
//! A slot carries one request at a time; its sequence rises by one with each request that was
//! executed. A request that was refused as a whole may or may not have used its sequence up
//! (the coordinator remembers what it refused while executing, not what it refused before): the
//! next sequence is tried first, and when it leaves one out, the same again. A request whose outcome
//! stays unknown takes its slot out of use.

use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::{SessionId, v1};
use tokio::sync::Semaphore;

#[derive(Debug, Clone, Copy)]
struct Free {
    number: u32,
    sequence: u64,
    doubtful: bool,
}

/// The slots of one session.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Mutex<Vec<Free>>,
    available: Semaphore,
    count: u32,
    retired: std::sync::atomic::AtomicU32,
}

impl Slots {
    pub(crate) fn new(count: u32) -> Arc<Self> {
        let free = (0..count).rev().map(|number| Free { number, sequence: 1, doubtful: false }).collect();
        let available = Semaphore::new(count as usize);
        Arc::new(Self { free: Mutex::new(free), available, count, retired: 0.into() })
    }

    /// Waits for a free slot. The one used last comes first, so that an idle session uses few.
    pub(crate) async fn take(self: &Arc<Self>) -> Slot {
        // Never closed, so that the wait can only end with a permit.
        if let Ok(permit) = self.available.acquire().await {
            permit.forget();
        }
        let taken = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(Free { number, sequence, doubtful }) = taken else {
            unreachable!("there are as many permits as free slots")
        };
        Slot { slots: Arc::clone(self), number, sequence, doubtful, outcome: Outcome::Unknown }
    }

    /// Whether so many slots are out of use that a new session is better.
    pub(crate) fn is_worn_out(&self) -> bool {
        self.retired.load(std::sync::atomic::Ordering::Relaxed) > self.count / 2
    }
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Unknown,
    Executed,
    Refused,
}

/// A slot in use.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    number: u32,
    sequence: u64,
    doubtful: bool,
    outcome: Outcome,
}

impl Slot {
    /// The name of the request; the same for each of its tries.
    pub(crate) fn request_id(&self, session: SessionId) -> v1::RequestId {
        v1::RequestId { session: session.to_wire(), slot: self.number, sequence: self.sequence }
    }

    /// The request was executed and its reply received.
    pub(crate) fn executed(mut self) {
        self.outcome = Outcome::Executed;
    }

    /// The request was refused with `InvalidArgument`. Goes back to the sequence before, when that
    /// may have been what was wrong; `false`: it was not.
    pub(crate) fn step_back(&mut self) -> bool {
        let back = self.doubtful;
        self.doubtful = false;
        self.sequence -= u64::from(back);
        back
    }

    /// The sequence before was used up after all.
    pub(crate) fn step_forward(&mut self) {
        self.sequence += 1;
    }

    /// The request was refused as a whole: its sequence is used up, or not.
    pub(crate) fn refused(mut self) {
        self.outcome = Outcome::Refused;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let next = match self.outcome {
            Outcome::Executed => Free { number: self.number, sequence: self.sequence + 1, doubtful: false },
            Outcome::Refused => Free { number: self.number, sequence: self.sequence + 1, doubtful: true },
            Outcome::Unknown => {
                self.slots.retired.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                return;
            }
        };
        self.slots.free.lock().unwrap_or_else(PoisonError::into_inner).push(next);
        self.slots.available.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionId {
        SessionId::from_uuid(uuid::Uuid::from_u128(1))
    }

    #[tokio::test]
    async fn sequences_rise_by_one_with_each_executed_request() {
        let slots = Slots::new(2);
        for expected in 1..5 {
            let slot = slots.take().await;
            assert_eq!((slot.number, slot.request_id(session()).sequence), (0, expected));
            slot.executed();
        }
    }

    #[tokio::test]
    async fn a_refused_sequence_is_used_again_only_when_the_next_one_leaves_it_out() {
        let slots = Slots::new(1);
        slots.take().await.refused();
        let mut slot = slots.take().await;
        assert_eq!(slot.sequence, 2);
        assert!(slot.step_back());
        assert_eq!(slot.sequence, 1);
        assert!(!slot.step_back());
        slot.executed();
        assert_eq!(slots.take().await.sequence, 2);
    }

    #[tokio::test]
    async fn one_request_at_a_time_in_a_slot() {
        let slots = Slots::new(2);
        let (one, two) = (slots.take().await, slots.take().await);
        assert_ne!(one.number, two.number);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), slots.take()).await.is_err());
        let number = two.number;
        two.executed();
        assert_eq!(slots.take().await.number, number);
    }

    #[tokio::test]
    async fn an_unknown_outcome_takes_the_slot_out_of_use() {
        let slots = Slots::new(2);
        drop(slots.take().await);
        assert!(!slots.is_worn_out());
        drop(slots.take().await);
        assert!(slots.is_worn_out());
    }
}
