//! Files that are opened to be read under a cover ([`super::covers`]), without asking.
//!
//! The coordinator has to know of an open only when the file may lose its last name. Others can not take that while the
//! read lease lasts; so an open is registered
//! * before the lease is given back,
//! * before this mount removes a name itself,
//! * after [`REGISTER_AFTER`], which is well before the lease ends.
//!
//! Most files are closed again by then, and nobody was asked at all.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use cairn_proto::InodeId;
use cairn_runtime::clock;

use super::covers;
use super::{OpenFlags, Opened, Vfs};
use crate::metrics;

/// A file that is open for so long is registered. Covers are good for half of the time for which their leases last, at
/// most a second; this is less than the other half.
const REGISTER_AFTER: Duration = Duration::from_millis(300);

impl Vfs {
    /// [`Self::open`], when that needs nobody.
    pub fn try_open(self: &Arc<Self>, inode: InodeId, flags: OpenFlags) -> Option<Opened> {
        if flags.write || flags.truncate {
            return None;
        }
        let hold = || self.session().hold_unregistered(inode);
        let ((guard, is_untended), layout) = self.covered_layout(inode, hold)?;
        if is_untended {
            drop(self.runtime.spawn(Arc::clone(self).register_in_time()));
        }
        let attr = layout.attr.clone();
        let content = self.client.content(inode, &attr);
        content.refresh(&attr, Some(layout));
        let entry = self.inodes.newest(&attr, clock::now());
        let opened = self.insert_open(guard, Arc::clone(&content), entry, flags);
        if !opened.pages_good {
            let _runtime = self.runtime.enter();
            content.fetch_if_short();
        }
        Some(opened)
    }

    /// [`Self::try_open`], also when the directory has to be listed first.
    pub(super) async fn open_covered(self: &Arc<Self>, inode: InodeId, flags: OpenFlags) -> Option<Opened> {
        if let Some(opened) = self.try_open(inode, flags) {
            return Some(opened);
        }
        let reads = !flags.write && !flags.truncate;
        if reads && self.cover_layouts(inode).await { self.try_open(inode, flags) } else { None }
    }

    /// For who removes the last name of an inode locally: until the guard is dropped it is not opened without asking.
    /// `None`: it is open in this way already.
    pub(super) fn no_unregistered(&self, inode: InodeId) -> Option<MutexGuard<'_, covers::State>> {
        let covers = self.covers.lock();
        (!self.session().opens.is_unregistered(inode)).then_some(covers)
    }

    /// For who has a name removed by the coordinator: until the guard is dropped nothing is opened without asking, and
    /// what was is registered.
    pub(super) async fn begin_removal(&self) -> impl Drop {
        let removal = self.removals.begin();
        self.register_opens(Duration::ZERO).await;
        removal
    }

    /// Registers what stays open, until there is nothing to be registered.
    async fn register_in_time(self: Arc<Self>) {
        while let Some(next) = self.session().opens.tend_unregistered(REGISTER_AFTER) {
            clock::sleep_until(next).await;
            self.register_opens(REGISTER_AFTER).await;
        }
    }

    /// Registers what has been open for `age`.
    async fn register_opens(&self, age: Duration) {
        let due = {
            let _none_is_added = self.covers.lock();
            self.session().opens.unregistered(age)
        };
        for inode in due {
            self.register_open(inode).await;
        }
    }

    async fn register_open(&self, inode: InodeId) {
        match self.coordinator().open(inode).await {
            // The handles keep it open from here on.
            Ok((guard, _)) => drop(guard),
            Err(error) => {
                tracing::warn!(%inode, %error, "an open file can not be registered, and may be removed");
                self.session().opens.registered(inode);
            }
        }
        metrics::registered_late();
    }

    /// Read leases are asked back: what they cover is not shown any more without asking.
    pub(super) fn give_back_reads(self: &Arc<Self>, grants: Vec<(InodeId, u64)>) {
        for &(inode, grant) in &grants {
            self.covers.recall(inode, grant);
            self.inodes.expire_unpinned(inode);
        }
        let is_open = |grant: &(InodeId, u64)| self.session().opens.is_unregistered(grant.0);
        let (open, rest): (Vec<_>, Vec<_>) = grants.into_iter().partition(is_open);
        if !rest.is_empty() {
            self.session().leases.release_reads(rest);
        }
        if !open.is_empty() {
            let vfs = Arc::clone(self);
            drop(self.runtime.spawn(async move {
                for &(inode, _) in &open {
                    vfs.register_open(inode).await;
                }
                vfs.session().leases.release_reads(open);
            }));
        }
    }
}
