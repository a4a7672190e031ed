//! The session's leases: which write leases it holds, until when it may trust them, which are asked back.
//!
//! A lease is trusted only while the coordinator can not have given the session up: one lease time
//! from the moment a keep-alive was *sent* that has been answered, and not for a moment after the
//! stream has broken. What the coordinator counts begins later (at the receipt), so it never takes
//! a lease away that is still trusted here. Both are counted by a clock that goes on while this machine is suspended.
//!
//! A grant travels with the answer to a call, its recall and its return on the stream. So a recall may come
//! before its grant: it is answered at once. And a lease may be given back while an answer is on its way that names it
//! once more. In both cases the end of the lease is remembered, and the grant ignored.
//!
//! Read leases end by themselves, and who uses them keeps account of them; here they are only asked back
//! and given back.

mod ended;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{InodeId, v1};
use cairn_runtime::clock::{self, BootInstant};
use ended::Ended;
use tokio::sync::Notify;

/// Leases named in one message.
const RELEASED_BATCH: usize = 4096;

/// The leases of the present session.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    state: Mutex<State>,
    /// There is something to be given back to the coordinator.
    pub(crate) released: Notify,
    /// There is something for who works under the leases.
    pub(crate) recalled: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody works under leases: takes recalls and answers them.
    used: bool,
    held: BTreeSet<InodeId>,
    trusted_until: Option<BootInstant>,
    /// When the keep-alives were sent that are not answered yet.
    asked: VecDeque<BootInstant>,
    lease: Duration,
    /// Raised with every connection: grants of an earlier one may have been dropped since.
    link: u64,
    /// How many sessions have followed one another.
    sessions: u64,
    /// Of which session all that belonged to those before has been forgotten.
    cleared: u64,
    recalls: Vec<(InodeId, u64)>,
    released: Vec<v1::Lease>,
    /// The same of read leases.
    read_recalls: Vec<(InodeId, u64)>,
    reads_released: Vec<v1::Lease>,
    ended: Ended,
}

/// Which connection something belongs to, and which stretch of time without a suspension of this machine: what is
/// trusted for a short time is not afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Era {
    link: u64,
    suspended: Duration,
}

impl State {
    fn era(&self) -> Era {
        Era { link: self.link, suspended: clock::suspended() }
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on recalls are taken by [`Self::take_recalls`].
    pub(crate) fn begin_use(&self) {
        self.lock().used = true;
    }

    /// Whether nobody else can have been granted what is held. Not while leases of an earlier session may be taken
    /// for those of this one: [`Self::lost`].
    pub(crate) fn are_trusted(&self) -> bool {
        let state = self.lock();
        state.cleared == state.sessions && state.trusted_until.is_some_and(|until| clock::boot_now() < until)
    }

    /// The present session, when what belonged to those before has still to be forgotten; then [`Self::clear`].
    pub(crate) fn lost(&self) -> Option<u64> {
        let state = self.lock();
        (state.cleared != state.sessions).then_some(state.sessions)
    }

    /// What belonged to the sessions before `session` has been forgotten.
    pub(crate) fn clear(&self, session: u64) {
        self.lock().cleared = session;
    }

    pub(crate) fn era(&self) -> Era {
        self.lock().era()
    }

    /// Everything held, for a session that goes on.
    pub(crate) fn list(&self) -> Vec<u64> {
        self.lock().held.iter().map(|inode| inode.get()).collect()
    }

    /// A grant came with an answer to what was asked in `era`. `false`: it is void by now.
    pub(crate) fn take_grant(&self, inode: InodeId, grant: u64, era: Era) -> bool {
        let mut state = self.lock();
        if state.era() != era || state.ended.contains(inode, grant) {
            return false;
        }
        if state.ended.may_contain(grant) && !state.held.contains(&inode) {
            // If it is not void after all, it is given back, and the next answer brings a newer one.
            state.end(inode, grant);
            drop(state);
            self.released.notify_one();
            return false;
        }
        state.held.insert(inode);
        true
    }

    /// A directory that is made under a lease comes with one; nobody else can know it.
    pub(crate) fn hold(&self, inode: InodeId) {
        self.lock().held.insert(inode);
    }

    /// The directory is gone, and its lease with it.
    pub(crate) fn forget(&self, inode: InodeId) {
        self.lock().held.remove(&inode);
    }

    /// Gives a lease back. `grant`: the one recalled, or the one held.
    pub(crate) fn release(&self, inode: InodeId, grant: u64) {
        let mut state = self.lock();
        state.held.remove(&inode);
        state.end(inode, grant);
        drop(state);
        self.released.notify_one();
    }

    /// What is to be told to the coordinator.
    pub(crate) fn take_released(&self) -> Option<v1::Released> {
        let mut state = self.lock();
        let State { released, reads_released, .. } = &mut *state;
        let [leases, reads] = [released, reads_released].map(|list| -> Vec<_> {
            let count = list.len().min(RELEASED_BATCH);
            list.drain(..count).collect()
        });
        (!leases.is_empty() || !reads.is_empty()).then_some(v1::Released { leases, reads })
    }

    /// What is asked back.
    pub(crate) fn take_recalls(&self) -> Vec<(InodeId, u64)> {
        std::mem::take(&mut self.lock().recalls)
    }

    /// The read leases that are asked back.
    pub(crate) fn take_read_recalls(&self) -> Vec<(InodeId, u64)> {
        std::mem::take(&mut self.lock().read_recalls)
    }

    /// Gives read leases back: nothing is shown under them any more.
    pub(crate) fn release_reads(&self, grants: impl IntoIterator<Item = (InodeId, u64)>) {
        let leases = grants.into_iter().map(|(inode, grant)| v1::Lease { inode: inode.get(), grant });
        self.lock().reads_released.extend(leases);
        self.released.notify_one();
    }

    pub(crate) fn on_recall(&self, recall: v1::Recall) {
        let mut state = self.lock();
        for lease in recall.leases {
            let Ok(inode) = InodeId::new(lease.inode) else { continue };
            if state.used && state.held.contains(&inode) {
                state.recalls.push((inode, lease.grant));
                continue;
            }
            state.end(inode, lease.grant);
        }
        for lease in recall.reads {
            match InodeId::new(lease.inode) {
                Ok(inode) if state.used => state.read_recalls.push((inode, lease.grant)),
                _ => state.reads_released.push(lease),
            }
        }
        drop(state);
        self.released.notify_one();
        self.recalled.notify_one();
    }

    /// A connection stands, dialled at `dialled`.
    pub(crate) fn on_welcome(&self, dialled: BootInstant, lease: Duration, resumed: bool) {
        let mut state = self.lock();
        if !resumed {
            state.sessions += 1;
            state.held.clear();
            state.recalls.clear();
        }
        // The list in the hello stands for what was released before.
        state.released.clear();
        state.ended.clear();
        // With the stream before, the read leases are gone.
        state.read_recalls.clear();
        state.reads_released.clear();
        state.asked.clear();
        state.link += 1;
        state.lease = lease;
        state.trusted_until = Some(dialled + lease);
        drop(state);
        self.recalled.notify_one();
    }

    /// The stream has ended: the coordinator may soon give the session up.
    pub(crate) fn on_broken(&self) {
        self.lock().trusted_until = None;
    }

    pub(crate) fn on_keep_alive_sent(&self) {
        self.lock().asked.push_back(clock::boot_now());
    }

    /// A keep-alive is answered. Returns when it was sent.
    pub(crate) fn on_keep_alive(&self) -> Option<BootInstant> {
        let mut state = self.lock();
        let asked = state.asked.pop_front()?;
        state.trusted_until = Some(asked + state.lease);
        Some(asked)
    }
}

impl State {
    fn end(&mut self, inode: InodeId, grant: u64) {
        self.ended.insert(inode, grant);
        self.released.push(v1::Lease { inode: inode.get(), grant });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn inode(id: u64) -> InodeId {
        InodeId::new(id).unwrap()
    }

    fn recall(id: u64, grant: u64) -> v1::Recall {
        v1::Recall { leases: vec![v1::Lease { inode: id, grant }], reads: Vec::new() }
    }

    fn connected() -> Leases {
        let leases = Leases::default();
        leases.begin_use();
        leases.on_welcome(clock::boot_now(), LEASE, false);
        leases.clear(1);
        leases
    }

    #[tokio::test(start_paused = true)]
    async fn leases_are_trusted_for_one_lease_time_after_an_answered_keep_alive_was_sent() {
        let leases = connected();
        clock::sleep(Duration::from_secs(6)).await;
        leases.on_keep_alive_sent();
        clock::sleep(Duration::from_secs(3)).await;
        leases.on_keep_alive();
        clock::sleep(Duration::from_secs(6)).await;
        assert!(leases.are_trusted());
        clock::sleep(Duration::from_secs(2)).await;
        assert!(!leases.are_trusted());
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_was_suspended_for_longer_than_a_lease_trusts_none_and_no_answer_of_before() {
        let leases = connected();
        let era = leases.era();
        clock::pretend_suspended(LEASE / 2);
        assert!(leases.are_trusted());
        assert_ne!(leases.era(), era);
        assert!(!leases.take_grant(inode(7), 1, era));
        clock::pretend_suspended(LEASE / 2);
        assert!(!leases.are_trusted());
    }

    #[tokio::test]
    async fn a_broken_stream_ends_all_trust_at_once() {
        let leases = connected();
        leases.on_broken();
        assert!(!leases.are_trusted());
        leases.on_welcome(clock::boot_now(), LEASE, true);
        assert!(leases.are_trusted());
    }

    #[tokio::test]
    async fn a_new_session_is_not_trusted_until_the_leases_of_the_one_before_are_forgotten() {
        let leases = connected();
        assert!(leases.take_grant(inode(7), 1, leases.era()));
        assert_eq!(leases.lost(), None);
        leases.on_welcome(clock::boot_now(), LEASE, false);
        assert!(!leases.are_trusted());
        let session = leases.lost().unwrap();
        leases.on_welcome(clock::boot_now(), LEASE, false);
        leases.clear(session);
        assert!(!leases.are_trusted(), "one more has come meanwhile");
        leases.clear(leases.lost().unwrap());
        assert!(leases.are_trusted());
    }

    #[tokio::test]
    async fn a_grant_whose_recall_came_first_is_void() {
        let leases = connected();
        let era = leases.era();
        leases.on_recall(recall(7, 3));
        assert_eq!(leases.take_released().unwrap().leases, [v1::Lease { inode: 7, grant: 3 }]);
        assert!(!leases.take_grant(inode(7), 3, era));
        assert!(leases.take_grant(inode(7), 4, era));
    }

    #[tokio::test]
    async fn a_grant_that_was_given_back_is_void_when_an_answer_names_it_again() {
        let leases = connected();
        let era = leases.era();
        assert!(leases.take_grant(inode(7), 3, era));
        leases.release(inode(7), 3);
        assert!(!leases.take_grant(inode(7), 3, era));
        assert!(leases.take_grant(inode(7), 5, era));
    }

    #[tokio::test]
    async fn a_grant_that_was_given_back_stays_void_however_many_were_given_back_since() {
        let leases = connected();
        let era = leases.era();
        leases.on_recall(recall(7, 1));
        // A lower inode with a newer grant, as every one that follows.
        (2..=70_000)
            .for_each(|grant| leases.on_recall(recall(if grant == 2 { 6 } else { 5 + grant }, grant)));
        assert!(!leases.take_grant(inode(6), 2, era), "long ago");
        assert!(!leases.take_grant(inode(7), 1, era), "the oldest of all");
        assert!(!leases.take_grant(inode(70_005), 70_000, era), "the newest");
        assert!(leases.take_grant(inode(6), 70_001, era));
    }

    #[tokio::test]
    async fn a_grant_of_an_earlier_connection_is_void() {
        let leases = connected();
        let era = leases.era();
        leases.on_welcome(clock::boot_now(), LEASE, true);
        assert!(!leases.take_grant(inode(7), 1, era));
    }

    #[tokio::test]
    async fn what_is_held_is_asked_back_from_who_works_with_it() {
        let leases = connected();
        assert!(leases.take_grant(inode(7), 1, leases.era()));
        leases.on_recall(recall(7, 1));
        assert_eq!(leases.take_recalls(), [(inode(7), 1)]);
        assert_eq!(leases.list(), [7]);
        leases.release(inode(7), 1);
        assert!(leases.list().is_empty());
        assert!(leases.take_released().is_some());
    }
}
