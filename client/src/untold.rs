//! Errors of stores in the background that nobody has been told of, of files that nobody holds any more.
//!
//! Whoever opens such a file next is told. An error stays for a day, and not longer than its file; of too many the
//! oldest goes. The log tells them all.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::InodeId;
use cairn_runtime::clock::{self, Instant};

use crate::error::ClientError;

/// Files with an error.
const FILES_MAX: usize = 4096;
/// How long an error is kept.
const KEPT_TIME: Duration = Duration::from_secs(24 * 3600);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Untold(Mutex<HashMap<InodeId, (Instant, ClientError)>>);

impl Untold {
    fn lock(&self) -> MutexGuard<'_, HashMap<InodeId, (Instant, ClientError)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the error of a file.
    pub(crate) fn keep(&self, inode: InodeId, error: ClientError) {
        let now = clock::now();
        let mut kept = self.lock();
        if kept.len() >= FILES_MAX && !kept.contains_key(&inode) {
            kept.retain(|_, (at, _)| now.duration_since(*at) < KEPT_TIME);
            let oldest = kept.iter().min_by_key(|(_, (at, _))| *at).map(|(&inode, _)| inode);
            if let Some(oldest) = oldest.filter(|_| kept.len() >= FILES_MAX) {
                kept.remove(&oldest);
            }
        }
        kept.insert(inode, (now, error));
    }

    /// Takes what was kept of a file: it is told, or the file is gone.
    pub(crate) fn take(&self, inode: InodeId) -> Option<ClientError> {
        let (at, error) = self.lock().remove(&inode)?;
        (at.elapsed() < KEPT_TIME).then_some(error)
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::ErrorKind;

    use super::*;

    fn inode(id: u64) -> InodeId {
        InodeId::new(id).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_told_once_and_not_kept_for_ever() {
        let untold = Untold::default();
        let error = || ClientError::new(ErrorKind::NoSpace, "full");
        untold.keep(inode(1), error());
        assert!(untold.take(inode(1)).is_some());
        assert!(untold.take(inode(1)).is_none());
        untold.keep(inode(1), error());
        clock::sleep(KEPT_TIME).await;
        assert!(untold.take(inode(1)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_makes_room_for_the_newest() {
        let untold = Untold::default();
        for id in 1..=FILES_MAX as u64 + 10 {
            untold.keep(inode(id), ClientError::new(ErrorKind::NoSpace, "full"));
            clock::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(untold.lock().len(), FILES_MAX);
        assert!(untold.take(inode(10)).is_none());
        assert!(untold.take(inode(11)).is_some());
        assert!(untold.take(inode(FILES_MAX as u64 + 10)).is_some());
    }
}
