//! Why the second place could not do something.

use cairn_proto::ErrorKind;

use crate::store::StoreError;

/// Why the second place could not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// It can not be reached, read or written.
    #[error("{place}: {what}: {source}")]
    Place { place: String, what: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// A file holds something else than was written.
    #[error("{file} is damaged at offset {offset}: {why}")]
    Damaged { file: String, offset: u64, why: &'static str },
    /// It can not be used for this; the sentence says why and what to do.
    #[error("{0}")]
    Unusable(String),
    /// The metadata itself could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArchiveError {
    pub(crate) fn place(
        place: &str,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Place { place: place.to_owned(), what: what.into(), source: source.into() }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Place { .. } => ErrorKind::Unavailable,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Unusable(_) => ErrorKind::InvalidArgument,
            Self::Store(error) => error.kind(),
        }
    }
}
