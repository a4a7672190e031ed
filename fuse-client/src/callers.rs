//! Who asks: the request names user and group, the supplementary groups are looked up.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_client::Caller;
use cairn_runtime::clock::{self, Instant};
use fuser::Request;

use crate::status::Status;

/// Groups of a process are looked up again after this long.
const GROUPS_VALID: Duration = Duration::from_secs(1);
/// Processes remembered; more begin anew.
const CALLERS_MAX: usize = 1024;

type Key = (u32, u32, u32);

/// The callers seen lately.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    known: Mutex<HashMap<Key, (Vec<u32>, Instant)>>,
}

impl Callers {
    /// The caller with its supplementary groups, for what the coordinator checks.
    pub(crate) fn with_groups(&self, request: &Request) -> Caller {
        let mut caller = without_groups(request);
        if caller.uid != 0 {
            caller.groups = self.groups((request.pid(), request.uid(), request.gid()));
        }
        caller
    }

    fn groups(&self, key: Key) -> Vec<u32> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((groups, until)) = lock().get(&key)
            && *until > clock::now()
        {
            return groups.clone();
        }
        let groups = Status::of(key.0).map(|status| status.groups).unwrap_or_default();
        let mut known = lock();
        if known.len() >= CALLERS_MAX {
            known.clear();
        }
        known.insert(key, (groups.clone(), clock::now() + GROUPS_VALID));
        groups
    }
}

/// The caller as the request names it, for what the kernel has already checked.
pub(crate) fn without_groups(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), groups: Vec::new() }
}
