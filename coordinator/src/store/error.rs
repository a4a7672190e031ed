//! Why the store could not do something.

use cairn_proto::ErrorKind;

use super::Key;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// A row that does not fit its checksum.
    #[error("the row of table {table} with {key} does not fit its checksum; restore it from a backup")]
    Corrupt { table: &'static str, key: String },
    /// The database as a whole is not what SQLite wrote.
    #[error("the metadata store meta.db is damaged ({0}); restore it from a backup")]
    Damaged(String),
    /// The disk of the store is full; nothing was changed.
    #[error("the disk of the metadata store is full; make room on it")]
    Full,
    /// A sync failed, or the store was used after that.
    #[error("the disk of the metadata store has failed; restart the coordinator once it works: {0}")]
    Failed(String),
    /// Another coordinator has begun a later term.
    #[error("this coordinator's term {ours} has ended: term {found} has begun")]
    Fenced { ours: u64, found: u64 },
    /// The engine reports an error.
    #[error("the metadata store failed while it was to {task}: {source}")]
    Engine { task: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    /// The commit is durable here, but not in the second place that was to have it first.
    #[error("the change is not yet in the second place of the metadata log: {0}")]
    NotShipped(String),
    /// The directory can not be used.
    #[error("{0}")]
    Unusable(String),
}

impl StoreError {
    pub(crate) fn corrupt(key: &Key) -> Self {
        Self::Corrupt { table: key.table().name(), key: key.to_string() }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt { .. } | Self::Damaged(_) => ErrorKind::Corrupt,
            Self::Full => ErrorKind::NoSpace,
            Self::Failed(_) | Self::Engine { .. } => ErrorKind::Io,
            Self::Fenced { .. } => ErrorKind::NotActive,
            Self::NotShipped(_) => ErrorKind::TimedOut,
            Self::Unusable(_) => ErrorKind::InvalidArgument,
        }
    }
}
