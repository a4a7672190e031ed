//! Write-behind of names: mutations that were performed locally, under leases, and are applied at
//! the coordinator in their order, in batches, in the background.
//!
//! Whoever asks the coordinator about an inode first waits until what is pending on it has been
//! applied. [`crate::vfs`] fills the queue and empties it; the data path only waits.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{ErrorKind, InodeId, v1};
use cairn_runtime::clock::{self, Instant};
use tokio::sync::{Notify, watch};

use crate::error::{ClientError, Result};
use crate::session::OpenGuard;

/// Mutations that may be pending: of small files some seconds of work for the coordinator, a few MiB here.
const PENDING_MAX: usize = 16_384;
/// Mutations in one batch: enough to share a transaction, few enough that an answer stays quick.
const BATCH_MAX: usize = 512;
/// What is pending shall be applied within this time, as far as that can be told: who needs the coordinator, or gives a
/// lease back, waits for all of it. A coordinator that is busy takes half a second for a batch.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// Mutations are gathered for so long, unless somebody waits for them.
const GATHER: Duration = Duration::from_millis(2);
/// That many are not gathered any longer.
const GATHER_MAX: usize = 256;
/// Whoever syncs something that has lost a change is told of it for so long, and one of them in any case.
const LOSS_TOLD: Duration = Duration::from_secs(30);
/// Inodes with lost changes that are remembered one by one, 32 bytes each.
const LOST_MAX: usize = 65_536;

/// One mutation on its way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) op: v1::mutation::Op,
    /// The inodes that its names led to; `None` of what changes no names.
    pub(crate) found: Option<v1::FoundNames>,
    /// When it was performed, by the coordinator's clock.
    pub(crate) at_ns: i64,
    pub(crate) caller: v1::Credentials,
    /// The inodes that it changes.
    pub(crate) concerns: Vec<InodeId>,
    /// A file that is open since its creation: the number of the open, and what keeps its close from being
    /// told before the open.
    pub(crate) open: Option<(u64, OpenGuard)>,
}

impl Pending {
    /// As it travels; `session` is the one of an open.
    pub(crate) fn to_wire(&self, session: &bytes::Bytes) -> v1::Mutation {
        let mut op = self.op.clone();
        if let (v1::mutation::Op::Create(create), Some((sequence, _))) = (&mut op, &self.open) {
            create.open = Some(v1::OpenRegistration { session: session.clone(), sequence: *sequence });
        }
        let credentials = Some(self.caller.clone());
        v1::Mutation { op: Some(op), at_ns: self.at_ns, credentials, found: self.found }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first; the batch under way is not among them.
    queue: VecDeque<Pending>,
    /// Number of the newest mutation ever taken.
    newest: u64,
    /// Inode → the newest mutation that concerns it.
    last_of: HashMap<InodeId, u64>,
    lost: HashMap<InodeId, Loss>,
    /// Others have lost changes, and who syncs next is told of it.
    more_lost: bool,
    /// How long a batch took lately.
    batch_time: Duration,
}

/// A change that was answered here and could not be applied.
#[derive(Debug, Clone, Copy)]
struct Loss {
    at: Instant,
    told: bool,
}

/// Whether another mutation may be performed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    /// When some of what is pending has been applied.
    Later,
    /// What is pending can not be applied at the moment.
    Trouble,
}

/// How far the queue is.
#[derive(Debug, Default, Clone)]
struct Progress {
    /// All mutations up to this number have been applied.
    applied: u64,
    /// Why the next ones can not be at the moment.
    trouble: Option<ClientError>,
}

/// The queue of one client.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    /// There is something to do, or somebody waits for it.
    filled: Notify,
    urgent: Notify,
}

impl Behind {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn room(&self) -> Room {
        if self.progress.borrow().trouble.is_some() {
            return Room::Trouble;
        }
        let state = self.lock();
        let batches = u32::try_from(state.queue.len() / BATCH_MAX).unwrap_or(u32::MAX);
        let is_long = state.batch_time.saturating_mul(batches) > DRAIN_MAX;
        if is_long || state.queue.len() >= PENDING_MAX { Room::Later } else { Room::Free }
    }

    pub(crate) fn push(&self, pending: Pending) {
        let mut state = self.lock();
        state.newest += 1;
        let newest = state.newest;
        for &inode in &pending.concerns {
            state.last_of.insert(inode, newest);
        }
        state.queue.push_back(pending);
        let len = state.queue.len();
        drop(state);
        match len {
            1 => self.filled.notify_one(),
            GATHER_MAX => self.urgent.notify_one(),
            _ => {}
        }
    }

    /// Whether something on `inode` has not been applied yet.
    pub(crate) fn is_pending(&self, inode: InodeId) -> bool {
        self.lock().last_of.contains_key(&inode)
    }

    /// Has what is pending on `inode` applied soon.
    pub(crate) fn hurry(&self, inode: InodeId) {
        if self.is_pending(inode) {
            self.urgent.notify_one();
        }
    }

    /// Waits until everything that was pending on `inode` has been applied.
    ///
    /// An error says why that is not possible at the moment (`NoSpace`, `Unavailable`); it stays pending.
    pub(crate) async fn applied(&self, inode: InodeId) -> Result<()> {
        let last = self.lock().last_of.get(&inode).copied();
        match last {
            Some(last) => self.wait(last).await,
            None => Ok(()),
        }
    }

    /// As [`Self::all_applied`], whatever keeps it from being applied at the moment.
    pub(crate) async fn all_applied_at_last(&self) -> Result<()> {
        let newest = self.lock().newest;
        let mut progress = self.progress.subscribe();
        self.urgent.notify_one();
        let done = progress.wait_for(|progress| progress.applied >= newest).await;
        done.map(drop).map_err(|_| ClientError::Closed)
    }

    /// Waits until everything that was pending has been applied; as [`Self::applied`].
    pub(crate) async fn all_applied(&self) -> Result<()> {
        let newest = self.lock().newest;
        self.wait(newest).await
    }

    async fn wait(&self, number: u64) -> Result<()> {
        let mut progress = self.progress.subscribe();
        if progress.borrow().applied >= number {
            return Ok(());
        }
        self.urgent.notify_one();
        let done = |progress: &Progress| progress.applied >= number || progress.trouble.is_some();
        match progress.wait_for(done).await {
            Ok(progress) if progress.applied >= number => Ok(()),
            Ok(progress) => progress.trouble.clone().map_or(Ok(()), Err),
            Err(_) => Err(ClientError::Closed),
        }
    }

    /// Waits until there is a batch; then it has been gathered.
    pub(crate) async fn filled(&self) {
        loop {
            let len = self.lock().queue.len();
            if len > 0 {
                if len < GATHER_MAX {
                    let _ = clock::timeout(GATHER, self.urgent.notified()).await;
                }
                return;
            }
            self.filled.notified().await;
        }
    }

    /// The next batch, oldest first.
    pub(crate) fn take(&self) -> Vec<Pending> {
        let mut state = self.lock();
        let count = state.queue.len().min(BATCH_MAX);
        state.queue.drain(..count).collect()
    }

    /// `batch` has been applied, in the time that it `took`, and its results are known to all who care.
    pub(crate) fn landed(&self, batch: Vec<Pending>, took: Duration) {
        let applied = self.progress.borrow().applied + batch.len() as u64;
        {
            let mut state = self.lock();
            state.batch_time = (state.batch_time + took) / 2;
            for inode in batch.iter().flat_map(|pending| &pending.concerns) {
                if state.last_of.get(inode).is_some_and(|&last| last <= applied) {
                    state.last_of.remove(inode);
                }
            }
        }
        self.progress.send_replace(Progress { applied, trouble: None });
        drop(batch); // closes are told from here on
    }

    /// A change of these inodes, which was answered, could not be applied.
    pub(crate) fn lose(&self, inodes: &[InodeId]) {
        let mut state = self.lock();
        let at = clock::now();
        for &inode in inodes {
            if state.lost.len() >= LOST_MAX {
                state.lost.retain(|_, loss| !loss.told || loss.at.elapsed() < LOSS_TOLD);
            }
            if state.lost.len() < LOST_MAX || state.lost.contains_key(&inode) {
                state.lost.insert(inode, Loss { at, told: false });
            } else {
                state.more_lost = true;
            }
        }
    }

    /// For who has an inode synced, once everything has been applied.
    ///
    /// `Io`: something that was done to it, and answered, is lost.
    pub(crate) fn check_losses(&self, inode: InodeId) -> Result<()> {
        let mut state = self.lock();
        let is_lost = match state.lost.get_mut(&inode) {
            Some(loss) if loss.told && loss.at.elapsed() >= LOSS_TOLD => {
                state.lost.remove(&inode);
                false
            }
            Some(loss) => {
                loss.told = true;
                true
            }
            None => std::mem::take(&mut state.more_lost),
        };
        if is_lost {
            return Err(ClientError::new(
                ErrorKind::Io,
                "a change of names was lost: another mount was faster",
            ));
        }
        Ok(())
    }

    /// The batch under way can not be applied at the moment; it is tried again.
    pub(crate) fn stuck(&self, error: ClientError) {
        self.progress.send_modify(|progress| progress.trouble = Some(error));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn pending(inode: InodeId) -> Pending {
        let op = v1::mutation::Op::Unlink(v1::Unlink::default());
        let caller = v1::Credentials::default();
        Pending { op, found: None, at_ns: 0, caller, concerns: vec![inode], open: None }
    }

    #[tokio::test]
    async fn who_waits_for_an_inode_waits_for_the_last_change_of_it_alone() {
        let behind = Behind::default();
        let (one, two) = (InodeId::ROOT, InodeId::new(2).unwrap());
        behind.push(pending(one));
        behind.push(pending(two));
        let mut first = behind.take();
        let second = first.pop().unwrap();
        behind.landed(first, Duration::ZERO);
        behind.applied(one).await.unwrap();
        assert!(behind.is_pending(two));
        let waits = clock::timeout(Duration::from_millis(20), behind.applied(two)).await;
        assert!(waits.is_err());
        behind.landed(vec![second], Duration::ZERO);
        behind.all_applied().await.unwrap();
        assert!(!behind.is_pending(two));
    }

    #[tokio::test]
    async fn trouble_is_told_to_who_waits_and_ends_with_the_next_batch_that_lands() {
        let behind = Behind::default();
        behind.push(pending(InodeId::ROOT));
        let batch = behind.take();
        behind.stuck(ClientError::new(cairn_proto::ErrorKind::NoSpace, "full"));
        assert_eq!(behind.room(), Room::Trouble);
        assert_eq!(behind.all_applied().await.unwrap_err().kind(), cairn_proto::ErrorKind::NoSpace);
        behind.landed(batch, Duration::ZERO);
        assert_eq!(behind.room(), Room::Free);
        behind.all_applied().await.unwrap();
    }

    #[tokio::test]
    async fn no_more_is_pending_than_the_coordinator_applies_within_a_second() {
        let behind = Behind::default();
        let fill = |count| (0..count).for_each(|_| behind.push(pending(InodeId::ROOT)));
        // One that is quick: as much as there is room for.
        fill(PENDING_MAX - 1);
        assert_eq!(behind.room(), Room::Free);
        fill(1);
        assert_eq!(behind.room(), Room::Later);
        while behind.all_applied().now_or_never().is_none() {
            behind.landed(behind.take(), Duration::from_millis(400));
        }
        // One that takes 0.4 s for a batch: as much as it applies in a second, so nobody waits for 16.
        fill(3 * BATCH_MAX - 1);
        assert_eq!(behind.room(), Room::Free);
        fill(1);
        assert_eq!(behind.room(), Room::Later);
        behind.landed(behind.take(), Duration::from_millis(400));
        assert_eq!(behind.room(), Room::Free);
        // A short batch that takes long leaves room for one.
        behind.landed(behind.take(), Duration::from_secs(60));
        behind.landed(behind.take(), Duration::from_secs(60));
        fill(BATCH_MAX - 1);
        assert_eq!(behind.room(), Room::Free);
    }

    #[tokio::test]
    async fn who_gives_a_lease_back_waits_through_trouble() {
        let behind = Behind::default();
        behind.push(pending(InodeId::ROOT));
        let batch = behind.take();
        behind.stuck(ClientError::new(cairn_proto::ErrorKind::NoSpace, "full"));
        let mut waits = std::pin::pin!(behind.all_applied_at_last());
        assert!(waits.as_mut().now_or_never().is_none());
        behind.landed(batch, Duration::ZERO);
        waits.await.unwrap();
    }
}
