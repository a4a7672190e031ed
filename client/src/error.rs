//! What can go wrong in the client, and which kind of error that is.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ErrorKind, IdError, NameError, WireError, wire_error_of};
use cairn_runtime::config::ConfigError;
use cairn_runtime::net::BadAddress;

/// Result of the client's operations.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// An operation of the client that did not work. [`ClientError::kind`] says what to act on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// A coordinator or datanode answered with an error, or this layer refuses in the same words.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The cluster did not answer within the time that the configuration gives (`soft`).
    #[error("{what}: no success within {waited:.1?}: {last}")]
    GaveUp {
        /// What was asked of the cluster.
        what: &'static str,
        /// How long it was tried.
        waited: Duration,
        /// The last error.
        last: Box<ClientError>,
    },
    /// The session was over before the answer came; what became of the request is unknown.
    #[error("the session expired while {what} was under way")]
    SessionExpired {
        /// What was asked of the cluster.
        what: &'static str,
    },
    /// A setting can not be used.
    #[error(transparent)]
    Config(Arc<ConfigError>),
    /// An address can not be used.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// The peer sent something that the protocol does not allow.
    #[error("{peer} sent {what}")]
    Protocol {
        /// Who.
        peer: &'static str,
        /// What was wrong with it.
        what: String,
    },
    /// The client has been closed.
    #[error("this client has been closed")]
    Closed,
}

impl ClientError {
    /// An error of a given kind with a sentence for a person.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Wire(WireError::new(kind, message))
    }

    /// What to act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Wire(error) => error.kind,
            // What could not be decided in time must not look like an answer.
            Self::GaveUp { last, .. } => match last.kind() {
                ErrorKind::NoSpace => ErrorKind::NoSpace,
                ErrorKind::Corrupt => ErrorKind::Corrupt,
                _ => ErrorKind::Unavailable,
            },
            Self::SessionExpired { .. } => ErrorKind::SessionExpired,
            Self::Config(_) | Self::Address(_) => ErrorKind::InvalidArgument,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Closed => ErrorKind::Unavailable,
        }
    }

    /// The errno that an application sees.
    pub fn errno(&self) -> i32 {
        self.kind().errno()
    }

    pub(crate) fn protocol(peer: &'static str, what: impl std::fmt::Display) -> Self {
        Self::Protocol { peer, what: what.to_string() }
    }
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Wire(wire_error_of(&status))
    }
}

impl From<ConfigError> for ClientError {
    fn from(error: ConfigError) -> Self {
        Self::Config(Arc::new(error))
    }
}

impl From<NameError> for ClientError {
    fn from(error: NameError) -> Self {
        let kind = match error {
            NameError::TooLong(_) => ErrorKind::NameTooLong,
            NameError::Empty | NameError::Forbidden => ErrorKind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<IdError> for ClientError {
    fn from(error: IdError) -> Self {
        Self::new(ErrorKind::InvalidArgument, error.to_string())
    }
}
