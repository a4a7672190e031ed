//! Knowledge of every name in a directory, so that a name that is not there costs no request.
//!
//! Only directories that this mount has made are known: they start empty. Each name that is added or
//! removed raises the version of its directory by one, so a move within a directory raises it by two;
//! any other step means that somebody else changed it too, and the knowledge is dropped.

use std::collections::HashSet;

use bytes::Bytes;
use cairn_proto::FileName;

/// Names kept for one directory; a larger one is not worth the memory.
const NAMES_MAX: usize = 32_768;

/// One own change of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change<'a> {
    /// The name is there now.
    Added(&'a FileName),
    /// The name is gone.
    Removed(&'a FileName),
    /// A name was moved within the directory; with `exchange` both stay.
    Moved { from: &'a FileName, to: &'a FileName, exchange: bool },
    /// Something else: the names are as they were.
    Names,
}

/// All names of a directory at one version.
#[derive(Debug)]
pub(super) struct Listing {
    version: u64,
    names: HashSet<Bytes>,
}

impl Listing {
    /// Of a directory that was just made.
    pub(super) fn empty(version: u64) -> Self {
        Self { version, names: HashSet::new() }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn lacks(&self, name: &FileName) -> bool {
        !self.names.contains(name.as_bytes())
    }

    /// By how much a change raises the version of its directory.
    fn step(change: Change<'_>) -> u64 {
        match change {
            Change::Moved { exchange: false, .. } => 2,
            _ => 1,
        }
    }

    /// Follows an own change that led to `version`. `false`: the knowledge is void.
    pub(super) fn follow(&mut self, version: u64, change: Change<'_>) -> bool {
        if version != self.version + Self::step(change) {
            return version <= self.version && matches!(change, Change::Names);
        }
        self.version = version;
        match change {
            Change::Added(name) => {
                self.names.insert(name.to_bytes());
            }
            Change::Removed(name) => {
                self.names.remove(name.as_bytes());
            }
            Change::Moved { from, to, exchange } => {
                self.names.insert(to.to_bytes());
                if !exchange {
                    self.names.remove(from.as_bytes());
                }
            }
            Change::Names => {}
        }
        self.names.len() <= NAMES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_somebody_else_voids_the_knowledge() {
        let (a, b) = (FileName::new(&b"a"[..]).unwrap(), FileName::new(&b"b"[..]).unwrap());
        let mut listing = Listing::empty(4);
        assert!(listing.follow(5, Change::Added(&a)));
        assert!(listing.lacks(&b) && !listing.lacks(&a));
        assert!(listing.follow(7, Change::Moved { from: &a, to: &b, exchange: false }));
        assert!(listing.lacks(&a) && !listing.lacks(&b));
        assert!(!listing.follow(9, Change::Removed(&b)));
    }
}
