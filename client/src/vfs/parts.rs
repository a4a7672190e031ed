//! Large directories whose entries are looked up one after another, as `find`, `du` and `rm -r` do: the part that comes
//! next is covered ([`super::covers`]), so that a page of a listing answers thousands of look-ups.
//!
//! A walk is noticed by the names that a listing has left here ([`super::kept`]): what is looked up stands close behind
//! what was looked up before. Random look-ups are asked one by one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{FileName, InodeId};
use cairn_runtime::clock::{self, Instant};

use super::covers::ENTRIES_MAX;
use super::pages::{Listing, Page};
use super::{Result, Vfs};
use crate::listing::Wish;

/// A name that stands so far behind the one before belongs to the walk.
const STRIDE: usize = 32;
/// All names of a directory are searched for the beginning of a walk at most this often.
const SEARCH_EVERY: Duration = Duration::from_secs(1);
/// Directories in which walks are noticed; about 50 bytes each.
const WALKS_MAX: usize = 1024;

/// How far the entries of a directory have been looked up.
#[derive(Debug, Clone, Copy)]
struct Walk {
    /// Of the entry that was reached.
    cookie: Option<u64>,
    searched: Option<Instant>,
}

/// The walks through one mount.
#[derive(Debug, Default)]
pub(super) struct Walks(Mutex<HashMap<InodeId, Walk>>);

impl Walks {
    fn lock(&self) -> MutexGuard<'_, HashMap<InodeId, Walk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the entry stands that a walk has reached with `name`; `None`: it is no walk yet. `pages`: the names of the
    /// directory that are known here.
    fn reach(&self, directory: InodeId, name: &[u8], pages: &[Arc<Page>]) -> Option<u64> {
        let now = clock::now();
        let known = self.lock().get(&directory).copied();
        let close = known.and_then(|walk| walk.cookie).and_then(|cookie| close_behind(pages, cookie, name));
        let may_search = known.and_then(|walk| walk.searched).is_none_or(|at| at + SEARCH_EVERY <= now);
        let walk = match (close, known) {
            (Some(cookie), Some(walk)) => Walk { cookie: Some(cookie), ..walk },
            _ if may_search => Walk { cookie: search(pages, name), searched: Some(now) },
            _ => return None,
        };
        let mut walks = self.lock();
        if walks.len() >= WALKS_MAX && !walks.contains_key(&directory) {
            walks.clear();
        }
        walks.insert(directory, walk);
        close
    }

    /// The part up to here is covered.
    fn covered(&self, directory: InodeId, last: u64) {
        if let Some(walk) = self.lock().get_mut(&directory) {
            walk.cookie = Some(last);
        }
    }
}

/// The cookie of `name` if it stands within [`STRIDE`] entries behind `cookie`.
fn close_behind(pages: &[Arc<Page>], cookie: u64, name: &[u8]) -> Option<u64> {
    let page = pages.iter().find(|page| page.after <= cookie && cookie < page.last())?;
    let first = page.page.behind(cookie);
    page.page.iter_from(first).take(STRIDE).find(|entry| entry.name == name).map(|entry| entry.cookie)
}

fn search(pages: &[Arc<Page>], name: &[u8]) -> Option<u64> {
    let mut entries = pages.iter().flat_map(|page| page.page.iter_from(0));
    entries.find(|entry| entry.name == name).map(|entry| entry.cookie)
}

impl Vfs {
    /// A name was looked up in a large directory: covers what stands from there on when its entries are being walked
    /// through. `true`: look again.
    pub(super) async fn cover_part(&self, directory: InodeId, name: &FileName) -> Result<bool> {
        let Some(known) = self.inodes.last(directory).filter(|_| self.is_quiet(directory)) else {
            return Ok(false);
        };
        if known.size <= ENTRIES_MAX {
            return Ok(false);
        }
        let pages = self.kept_pages.all_of(directory, known.version);
        let Some(cookie) = self.walks.reach(directory, name.as_bytes(), &pages) else { return Ok(false) };
        // With these the session gives up the leases of the part before.
        self.covers.drop_cover(directory);
        let asked = clock::now();
        let limit = u32::try_from(ENTRIES_MAX).unwrap_or(u32::MAX);
        let wish = Wish { layouts: false, write_lease: false, part: true };
        let after = cookie - 1; // cookies begin at 1
        let (page, leases) = self.coordinator().read_dir_leased(directory, after, limit, wish).await?;
        self.inodes.adopt(page.directory.clone(), asked);
        let page = Arc::new(Page { after, listing: Listing::Attributes, page, asked });
        let is_covered = self.take_cover(&page, leases);
        if is_covered {
            self.walks.covered(directory, page.last());
        }
        Ok(is_covered)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pages::tests::names;
    use super::*;

    fn directory() -> InodeId {
        InodeId::new(2).unwrap()
    }

    /// Two pages of a directory whose entries are named after their cookies.
    fn pages() -> Vec<Arc<Page>> {
        vec![Arc::new(names(2, 5, 1015, 1016..2016)), Arc::new(names(2, 5, 0, 16..1016))]
    }

    fn name(cookie: u64) -> Vec<u8> {
        let pages = pages();
        let mut entries = pages.iter().flat_map(|page| page.page.iter_from(0));
        entries.find(|entry| entry.cookie == cookie).unwrap().name.to_vec()
    }

    #[tokio::test]
    async fn a_walk_is_noticed_by_its_second_step_and_goes_on_over_pages() {
        let (walks, pages) = (Walks::default(), pages());
        let reach = |cookie: u64| walks.reach(directory(), &name(cookie), &pages);
        assert_eq!(reach(100), None);
        assert_eq!(reach(101), Some(101));
        assert_eq!(reach(101 + STRIDE as u64), Some(101 + STRIDE as u64), "some entries are left out");
        walks.covered(directory(), 1014);
        assert_eq!(reach(1015), Some(1015));
        assert_eq!(reach(1016), Some(1016), "the first of the next page");
    }

    #[tokio::test(start_paused = true)]
    async fn names_in_no_order_are_no_walk_and_are_searched_for_once_in_a_while() {
        let (walks, pages) = (Walks::default(), pages());
        let reach = |cookie: u64| walks.reach(directory(), &name(cookie), &pages);
        assert_eq!([reach(900), reach(100), reach(101), reach(1500)], [None; 4]);
        tokio::time::sleep(SEARCH_EVERY).await;
        assert_eq!([reach(100), reach(101)], [None, Some(101)]);
        assert_eq!(walks.reach(directory(), b"not there", &pages), None);
    }

    #[tokio::test]
    async fn walks_stay_within_their_bound() {
        let (walks, pages, name) = (Walks::default(), pages(), name(20));
        for directory in 2..2 + 3 * WALKS_MAX as u64 {
            walks.reach(InodeId::new(directory).unwrap(), &name, &pages);
        }
        assert!(walks.lock().len() <= WALKS_MAX);
    }
}
