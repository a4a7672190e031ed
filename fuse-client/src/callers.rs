//! Who asks: the request names process, user and group; supplementary groups and capabilities are looked up.
//!
//! The kernel has checked permissions before a request comes (`default_permissions`), by the capabilities of the
//! process; whoever judges again must know them. The process waits in its call meanwhile, so what is read about it
//! is true. What is remembered may not be, when a process has changed its identity within the last second: who is
//! refused by it is looked at again ([`Callers::changed`]).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_client::{Caller, vfs};
use cairn_proto::ErrorKind;
use cairn_proto::posix::{Ids, Privileges};
use cairn_runtime::clock::{self, Instant};
use fuser::Request;

use crate::status::{self, Status};

/// What is known of a process is looked up again after this long.
const KNOWN_VALID: Duration = Duration::from_secs(1);
/// Processes remembered; more begin anew.
const CALLERS_MAX: usize = 1024;

/// A thread with the user and the group that it asks as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pid: u32,
    uid: u32,
    gid: u32,
}

impl Key {
    pub(crate) fn of(request: &Request) -> Self {
        Self { pid: request.pid(), uid: request.uid(), gid: request.gid() }
    }
}

/// The callers seen lately.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    known: Mutex<HashMap<Key, (Caller, Instant)>>,
}

impl Callers {
    /// The caller with groups and capabilities, for what is checked behind the kernel.
    pub(crate) fn of(&self, request: &Request) -> Caller {
        self.known(Key::of(request))
    }

    /// The same, for who has no request at hand any more.
    pub(crate) fn known(&self, key: Key) -> Caller {
        if key.uid == 0 {
            return Caller::user(key.uid, key.gid, Vec::new());
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((caller, until)) = known.get(&key)
            && *until > clock::now()
        {
            return caller.clone();
        }
        drop(known);
        self.look_up(key)
    }

    /// The caller as it is now, when that is another one than it was taken for.
    pub(crate) fn changed(&self, pid: u32, taken_for: &Caller) -> Option<Caller> {
        if taken_for.uid == 0 {
            return None;
        }
        let now = self.look_up(Key { pid, uid: taken_for.uid, gid: taken_for.gid });
        (now != *taken_for).then_some(now)
    }

    fn look_up(&self, key: Key) -> Caller {
        let Key { pid, uid, gid } = key;
        let caller = match Status::of(pid) {
            Some(status) => {
                let privileges = privileges(pid, status.capabilities);
                Caller { privileges, ..Caller::user(uid, gid, status.groups) }
            }
            // Gone, or in a place that can not be seen from here.
            None => Caller::user(uid, gid, Vec::new()),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CALLERS_MAX {
            known.clear();
        }
        known.insert(key, (caller.clone(), clock::now() + KNOWN_VALID));
        caller
    }
}

/// The caller as the request names it, for what the kernel alone checks.
pub(crate) fn bare(request: &Request) -> Caller {
    Caller::user(request.uid(), request.gid(), Vec::new())
}

/// An answer that was found at once. A refusal of another than root is none yet: he may have become another since he was
/// looked at.
pub(crate) fn settled<T>(caller: &Caller, found: Option<vfs::Result<T>>) -> Option<vfs::Result<T>> {
    let refused = |found: &vfs::Result<T>| found.as_ref().is_err_and(is_refusal);
    found.filter(|found| caller.uid == 0 || !refused(found))
}

/// Whether it is the caller who may not.
pub(crate) fn is_refusal(error: &vfs::VfsError) -> bool {
    matches!(error.kind(), ErrorKind::AccessDenied | ErrorKind::NotPermitted)
}

/// What `capabilities` in effect are worth: those of a process in a user namespace of its own reach the ids that exist
/// there.
fn privileges(pid: u32, capabilities: u64) -> Privileges {
    let everywhere = Privileges::new(capabilities);
    if everywhere.are_none() {
        return everywhere;
    }
    match (reached(pid, "uid_map"), reached(pid, "gid_map")) {
        (Some(users), Some(groups)) => Privileges::within(capabilities, users, groups),
        _ => Privileges::default(),
    }
}

/// The ids that exist in the user namespace of a process, as they are called here. `None`: not a single one.
fn reached(pid: u32, map: &str) -> Option<Ids> {
    let theirs = status::read(&format!("/proc/{pid}/{map}")).ok()?;
    let ours = status::read(&format!("/proc/self/{map}")).ok()?;
    if theirs == ours { Some(Ids::all()) } else { ids_of(&theirs) }
}

/// Lines of three numbers: the first id in the namespace, the same outside, how many.
fn ids_of(map: &[u8]) -> Option<Ids> {
    let numbers =
        |line: &str| line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Vec<u32>>>();
    let lines = std::str::from_utf8(map).ok()?.lines().filter_map(numbers);
    // What does not exist out here is called by the largest number.
    Ids::of(lines.filter(|line| line.len() == 3 && line[1] != u32::MAX).map(|line| (line[1], line[2])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_namespace_are_those_outside() {
        let map = b"         0     100000      65536\n     70000       1000          1\n         9 4294967295          5\n";
        assert_eq!(ids_of(map), Ids::of([(100_000, 65_536), (1000, 1)]));
        assert_eq!(ids_of(b""), None);
        assert_eq!(reached(std::process::id(), "uid_map"), Some(Ids::all()));
    }

    #[test]
    fn capabilities_of_a_process_that_is_gone_are_none() {
        assert_eq!(privileges(0, u64::MAX), Privileges::default());
    }
}
