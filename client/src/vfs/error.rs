use cairn_proto::posix::Denied;
use cairn_proto::{ErrorKind, NameError};

use super::HandleId;
use crate::ClientError;

/// Why an operation failed; [`Self::kind`] gives the errno.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// The data path or the cluster says so.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The caller may not do it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No such handle, or one that was opened for something else.
    #[error("handle {handle} can not {operation}")]
    Handle {
        /// What was asked.
        handle: HandleId,
        /// What it can not do.
        operation: &'static str,
    },
    /// Known without asking anybody.
    #[error("{why}")]
    Refused {
        /// What to act on.
        kind: ErrorKind,
        /// What to show.
        why: &'static str,
    },
}

impl VfsError {
    /// What to act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Client(error) => error.kind(),
            Self::Name(NameError::TooLong(_)) => ErrorKind::NameTooLong,
            Self::Name(NameError::Empty) => ErrorKind::NotFound,
            Self::Name(NameError::Forbidden) => ErrorKind::InvalidArgument,
            Self::Denied(denied) => denied.kind(),
            Self::Handle { .. } => ErrorKind::BadHandle,
            Self::Refused { kind, .. } => *kind,
        }
    }

    pub(super) fn refused(kind: ErrorKind, why: &'static str) -> Self {
        Self::Refused { kind, why }
    }
}
