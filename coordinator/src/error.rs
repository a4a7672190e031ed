//! Why a request was refused.

use cairn_proto::{ErrorKind, IdError, InodeId, NameError, WireError};

use crate::store::StoreError;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpError {
    /// It breaks a rule; the sentence says which.
    #[error("{message}")]
    Refused { kind: ErrorKind, message: String },
    /// The store could not read or write.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Other sessions hold write leases on these directories. Nothing was changed; the service waits
    /// until they have given them back, and tries again.
    #[error("other sessions hold leases on directories {0:?}")]
    Leased(Vec<InodeId>),
    /// Nothing was changed, and the same request can succeed in a moment; nobody remembers this answer.
    #[error("{0}")]
    Later(String),
}

impl OpError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Refused { kind, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Store(error) => error.kind(),
            Self::Leased(_) => ErrorKind::Unavailable,
            Self::Later(_) => ErrorKind::Overloaded,
        }
    }

    /// As it goes to the client.
    pub(crate) fn to_wire(&self) -> WireError {
        WireError::new(self.kind(), self.to_string())
    }
}

impl From<WireError> for OpError {
    fn from(error: WireError) -> Self {
        Self::Refused { kind: error.kind, message: error.message }
    }
}

impl From<IdError> for OpError {
    fn from(error: IdError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<NameError> for OpError {
    fn from(error: NameError) -> Self {
        let kind = match error {
            NameError::TooLong(_) => ErrorKind::NameTooLong,
            NameError::Empty | NameError::Forbidden => ErrorKind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}
