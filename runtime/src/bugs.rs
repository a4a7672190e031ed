//! Bugs that a simulation plants, to see that its checks find them.
//!
//! In a build without the feature `sim` [`planted`] is `false` at compile time, and the code behind
//! it does not exist.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A datanode acknowledges a sync that it did not do.
    DatanodeNoSync,
    /// A new segment's directory entry is not made durable.
    DirectoryNotSynced,
    /// A primary acknowledges before its replicas have.
    AckBeforeReplicas,
    /// A primary acknowledges before its own write.
    AckBeforeOwnWrite,
    /// Blocks are returned without a look at their checksums.
    ChecksumSkipped,
    /// What a crash tore is taken for whole at the start.
    TornTailKept,
    /// Replicas count as stored on members that failed.
    FailedMembersCounted,
    /// The coordinator answers before its store has the changes.
    AnswerBeforeCommit,
    /// The coordinator's store does not sync.
    MetadataNoSync,
    /// A repeated request is executed again.
    ReplyNotStored,
    /// A request of a session that has ended is executed.
    SessionNotFenced,
    /// A datanode takes chunks by an old map.
    StaleMapAccepted,
    /// A layout leaves out the newest extents.
    StaleLayout,
    /// Flushes of one file commit in any order.
    CommitOrderIgnored,
    /// `fsync` does not ask for what was stored without sync before.
    UnsyncedForgotten,
    /// Gc deletes without waiting.
    GcNoGrace,
    /// Gc takes chunks that uploads under way will commit.
    GcIgnoresPlans,
    /// Deletions of an older reign are carried out.
    TermNotFenced,
    /// A copy is made from a source without verification.
    RepairUnverified,
    /// A backfilling member counts as whole at once.
    BackfillTooEarly,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::DatanodeNoSync,
        Self::DirectoryNotSynced,
        Self::AckBeforeReplicas,
        Self::AckBeforeOwnWrite,
        Self::ChecksumSkipped,
        Self::TornTailKept,
        Self::FailedMembersCounted,
        Self::AnswerBeforeCommit,
        Self::MetadataNoSync,
        Self::ReplyNotStored,
        Self::SessionNotFenced,
        Self::StaleMapAccepted,
        Self::StaleLayout,
        Self::CommitOrderIgnored,
        Self::UnsyncedForgotten,
        Self::GcNoGrace,
        Self::GcIgnoresPlans,
        Self::TermNotFenced,
        Self::RepairUnverified,
        Self::BackfillTooEarly,
    ];
}

/// Whether a bug is planted.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "sim")]
static PLANTED: std::sync::OnceLock<Bug> = std::sync::OnceLock::new();

/// Whether a bug is planted.
#[cfg(feature = "sim")]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(&bug)
}

/// Plants a bug in this process; the first one stays.
#[cfg(feature = "sim")]
pub fn plant(bug: Bug) {
    let _ = PLANTED.set(bug);
}
