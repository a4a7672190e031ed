//! What can go wrong in a chunk store.

use std::io;

use cairn_proto::{ChunkId, ErrorKind, WireError};
use cairn_runtime::threads::PoolError;

/// Why a chunk was not stored, read, synced or deleted.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room above the reserve on any writable disk; store elsewhere.
    #[error("no room for {0} more bytes above the reserve")]
    NoSpace(u64),
    /// Not held here.
    #[error("chunk {0} is not held here")]
    NotFound(ChunkId),
    /// Held or being written; chunk ids are used once.
    #[error("chunk {0} is held here already, or is being written")]
    Exists(ChunkId),
    /// The bytes on the disk fail their checksum; the record is set aside. Read another replica.
    #[error("chunk {chunk} on {disk} is damaged: {what}")]
    Corrupt {
        /// The chunk.
        chunk: ChunkId,
        /// Which disk.
        disk: String,
        /// What did not fit.
        what: String,
    },
    /// The disk takes no new chunks, since it failed earlier.
    #[error("{disk} takes no new chunks: {fault}")]
    Faulty {
        /// Which disk.
        disk: String,
        /// How it failed.
        fault: String,
    },
    /// The disk refused an operation.
    #[error("{disk}: {doing}: {source}")]
    Io {
        /// Which disk.
        disk: String,
        /// What was being done.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The data directory can not be used as it is; the sentence says what to do.
    #[error("{0}")]
    Unusable(String),
    /// Too many disk reads are waiting.
    #[error("too many reads are waiting for the disks")]
    Overloaded,
    /// A job of the disk's threads has failed; how far it came is not known.
    #[error("a job of the disk's threads has failed")]
    Failed,
}

impl StoreError {
    /// What to act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSpace(_) => ErrorKind::NoSpace,
            Self::NotFound(_) => ErrorKind::ChunkNotFound,
            Self::Exists(_) => ErrorKind::ChunkExists,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Faulty { .. } | Self::Io { .. } => ErrorKind::Io,
            Self::Unusable(_) => ErrorKind::WrongCluster,
            Self::Overloaded => ErrorKind::Overloaded,
            Self::Failed => ErrorKind::Internal,
        }
    }

    /// As it crosses the wire.
    pub(crate) fn to_wire(&self) -> WireError {
        WireError::new(self.kind(), self.to_string())
    }
}

impl From<PoolError> for StoreError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Busy(_) => Self::Overloaded,
            PoolError::Failed(_) => Self::Failed,
        }
    }
}

/// Whether the disk is full, as opposed to broken.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
