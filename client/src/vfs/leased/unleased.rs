//! Directories that were made here, and turn out to have been made without a lease, because there are too many.
//!
//! Nobody else can reach such a directory while the lease of its parent is held. So nothing that was done in it is lost:
//! it is given up like one that is recalled, and its parent is not given back before it.

use std::sync::Arc;

use cairn_proto::InodeId;

use super::{Local, Phase, State};
use crate::metrics;
use crate::vfs::Vfs;

impl State {
    /// Whether a directory in `parent` was made without a lease, and may have changes that are not applied.
    fn has_unleased(&self, parent: InodeId) -> bool {
        self.unleased > 0 && self.dirs.values().any(|dir| dir.unleased_in == Some(parent))
    }
}

impl Vfs {
    /// `directory`, made here in `parent`, has been made without a lease: what was done in it is applied, and from then
    /// on the coordinator is asked.
    pub(in crate::vfs) fn give_up_unleased(self: &Arc<Self>, directory: InodeId, parent: InodeId) {
        let mut state = self.leased.lock();
        let Some(dir) = state.dirs.get_mut(&directory).filter(|dir| dir.unleased_in.is_none()) else {
            return;
        };
        dir.unleased_in = Some(parent);
        dir.phase = Phase::Closing;
        state.unleased += 1;
        drop(state);
        metrics::unleased();
        drop(self.runtime.spawn(Arc::clone(self).give_back(directory, 0)));
    }

    /// Waits until all directories in `parent` that were made without a lease have been given up: others can look into
    /// them when `parent` is given back.
    pub(super) async fn unleased_given_up(&self, parent: InodeId) {
        let given_up = || match self.leased.lock().has_unleased(parent) {
            true => Local::Wait,
            false => Local::Done(Ok(())),
        };
        let _ = self.locally(given_up).await;
    }
}
