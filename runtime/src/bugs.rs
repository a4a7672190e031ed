//! Bugs that a simulation plants, to see that its checks find them.
//!
//! In a build without the feature `sim` [`planted`] is `false` at compile time, and the code behind
//! it does not exist.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A datanode acknowledges a sync that it did not do.
    DatanodeNoSync,
    /// A sync that failed counts as done.
    FailedSyncForgiven,
    /// A new segment's name is not made durable.
    DirectoryNotSynced,
    /// A primary acknowledges before its replicas have.
    AckBeforeReplicas,
    /// A datanode acknowledges before its own sync.
    AckBeforeOwnSync,
    /// Blocks are returned without a look at their checksums.
    ChecksumSkipped,
    /// What a crash tore is taken for whole at the start.
    TornTailKept,
    /// Members that failed count as holders.
    FailedMembersCounted,
    /// The coordinator answers before its store has the changes.
    AnswerBeforeCommit,
    /// The coordinator's store does not sync.
    MetadataNoSync,
    /// A repeated request is executed again.
    ReplyForgotten,
    /// An open goes on with the layout that was known before.
    OpenKeepsOldLayout,
    /// Flushes of one file commit in any order.
    CommitOrderIgnored,
    /// `fsync` does not see to what was committed without sync before.
    UnsyncedForgotten,
    /// A chunk that is mostly overwritten is deleted.
    GcTakesLive,
    /// Gc does not wait with chunks that uploads under way will commit.
    GcTakesStraysAtOnce,
    /// A copy is made from a source without verification, and gets checksums of its own.
    RepairUnverified,
    /// A new member of a set counts as whole at once.
    BackfillTooEarly,
    /// What others may show without asking is changed all the same.
    ReadLeasesIgnored,
    /// What was done locally is executed again in the next session, whatever its names lead to by then.
    BatchExecutedTwice,
    /// A session that takes the place of another one is not told what its mount holds open.
    OpensNotToldAgain,
    /// The time for which the coordinator stood still counts against everybody.
    PauseCountsAsSilence,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::DatanodeNoSync,
        Self::FailedSyncForgiven,
        Self::DirectoryNotSynced,
        Self::AckBeforeReplicas,
        Self::AckBeforeOwnSync,
        Self::ChecksumSkipped,
        Self::TornTailKept,
        Self::FailedMembersCounted,
        Self::AnswerBeforeCommit,
        Self::MetadataNoSync,
        Self::ReplyForgotten,
        Self::OpenKeepsOldLayout,
        Self::CommitOrderIgnored,
        Self::UnsyncedForgotten,
        Self::GcTakesLive,
        Self::GcTakesStraysAtOnce,
        Self::RepairUnverified,
        Self::BackfillTooEarly,
        Self::ReadLeasesIgnored,
        Self::BatchExecutedTwice,
        Self::OpensNotToldAgain,
        Self::PauseCountsAsSilence,
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
