//! How the memory that the coordinator may use is divided. Each share bounds one thing by its bytes.
//!
//! What is not named here has a fixed bound, which the smallest possible budget holds: leases, open files, the page
//! caches of the store, a group of changes.

use cairn_runtime::config::ByteSize;

/// The least that can be set: what has a fixed bound needs about a half of it.
pub(crate) const MEMORY_MIN: ByteSize = ByteSize::mib(512);
/// The most that can be set.
pub(crate) const MEMORY_MAX: ByteSize = ByteSize::mib(1 << 20);

/// The shares, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Rows remembered from earlier groups of changes.
    pub(crate) rows: usize,
    /// Replies to the last request of each slot.
    pub(crate) replies: usize,
    /// Pages of large directories.
    pub(crate) pages: usize,
    /// Requests that arrive, wait and are executed.
    pub(crate) arriving: u64,
    /// Replies that their clients have not taken yet.
    pub(crate) leaving: u64,
}

impl Shares {
    pub(crate) fn of(memory: ByteSize) -> Self {
        let part = |of: u64| memory.as_u64() / of;
        let here = |of: u64| usize::try_from(part(of)).unwrap_or(usize::MAX);
        Self { rows: here(32), replies: here(32), pages: here(32), arriving: part(8), leaving: part(8) }
    }
}

impl Default for Shares {
    fn default() -> Self {
        Self::of(MEMORY_MIN)
    }
}
