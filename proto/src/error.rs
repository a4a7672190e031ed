//! The kinds of error, the one table that translates them, and how they travel.

use tonic::{Code, Status};

/// gRPC metadata entry with the number of an [`ErrorKind`].
const KIND_KEY: &str = "cairn-error-kind";
/// gRPC metadata entry with the id that a request carries through all processes.
pub const REQUEST_ID_KEY: &str = "cairn-request-id";

macro_rules! error_kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal => ($errno:ident, $code:ident, $retry:ident);)*) => {
        /// What went wrong, as a number that means the same in every process.
        ///
        /// Numbers are never reused; new kinds take new ones.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ErrorKind { $($(#[$doc])* $name = $number,)* }

        impl ErrorKind {
            /// Every kind, for tests that walk the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// `None` for a number that this build does not know.
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The errno that applications see and the gRPC code that tooling sees.
            pub fn translate(self) -> (libc::c_int, Code) {
                match self { $(Self::$name => (libc::$errno, Code::$code),)* }
            }

            /// The name of the errno, such as `ENOENT`, for metrics.
            pub fn errno_name(self) -> &'static str {
                match self { $(Self::$name => stringify!($errno),)* }
            }

            /// Whether the same request may succeed later, without anything else being done first.
            /// The one place where that is decided.
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$name => error_kinds!(@retry $retry),)* }
            }
        }
    };
    (@retry again) => { true };
    (@retry never) => { false };
}

error_kinds! {
    /// No such inode, name or chunk.
    NotFound = 1 => (ENOENT, NotFound, never);
    /// The name is taken.
    Exists = 2 => (EEXIST, AlreadyExists, never);
    /// A directory was needed.
    NotDirectory = 3 => (ENOTDIR, FailedPrecondition, never);
    /// A directory is not possible here.
    IsDirectory = 4 => (EISDIR, FailedPrecondition, never);
    /// The directory has entries.
    NotEmpty = 5 => (ENOTEMPTY, FailedPrecondition, never);
    /// Permission bits forbid it.
    AccessDenied = 6 => (EACCES, PermissionDenied, never);
    /// Only the owner or root may.
    NotPermitted = 7 => (EPERM, PermissionDenied, never);
    /// A name of more than 255 bytes, a path of more than 4095.
    NameTooLong = 8 => (ENAMETOOLONG, InvalidArgument, never);
    /// An argument makes no sense.
    InvalidArgument = 9 => (EINVAL, InvalidArgument, never);
    /// The inode has as many names as are possible.
    TooManyLinks = 10 => (EMLINK, FailedPrecondition, never);
    /// Too many symbolic links, or a directory moved into itself (EINVAL there).
    SymlinkLoop = 11 => (ELOOP, FailedPrecondition, never);
    /// Two file systems.
    CrossDevice = 12 => (EXDEV, FailedPrecondition, never);
    /// An offset or size past 2^63 - 1.
    FileTooLarge = 13 => (EFBIG, OutOfRange, never);
    /// No datanode has room.
    NoSpace = 14 => (ENOSPC, ResourceExhausted, never);
    /// The quota is used up.
    QuotaExceeded = 15 => (EDQUOT, ResourceExhausted, never);
    /// No such extended attribute.
    NoData = 16 => (ENODATA, NotFound, never);
    /// The result does not fit the caller's buffer.
    OutOfRange = 17 => (ERANGE, OutOfRange, never);
    /// A value larger than is possible.
    TooBig = 18 => (E2BIG, InvalidArgument, never);
    /// The operation does not exist here.
    NotSupported = 19 => (EOPNOTSUPP, Unimplemented, never);
    /// Nothing can be changed.
    ReadOnly = 20 => (EROFS, FailedPrecondition, never);
    /// In use.
    Busy = 21 => (EBUSY, FailedPrecondition, never);
    /// The inode that a handle names is gone.
    StaleHandle = 22 => (ESTALE, NotFound, never);
    /// The sender's map is older than the receiver's: fetch the map, then try again.
    StaleEpoch = 23 => (ESTALE, Aborted, again);
    /// The session is over: its requests are refused for good.
    SessionExpired = 24 => (EIO, Unauthenticated, never);
    /// Another coordinator is active.
    NotActive = 25 => (EIO, Unavailable, again);
    /// The other side can not be reached, or not now.
    Unavailable = 26 => (EIO, Unavailable, again);
    /// The time that was given ran out; what became of the request is unknown.
    TimedOut = 27 => (EIO, DeadlineExceeded, again);
    /// A signal ended the wait.
    Interrupted = 28 => (EINTR, Cancelled, never);
    /// Stored data fails its checksum.
    Corrupt = 29 => (EIO, DataLoss, never);
    /// Data arrived that does not fit its checksum.
    ChecksumMismatch = 30 => (EIO, DataLoss, again);
    /// The datanode does not hold the chunk.
    ChunkNotFound = 31 => (EIO, NotFound, never);
    /// The datanode holds the chunk already.
    ChunkExists = 32 => (EIO, AlreadyExists, never);
    /// The plan that granted a chunk id has expired: ask for a new one, store again.
    PlanExpired = 33 => (EIO, FailedPrecondition, never);
    /// The chunk id was granted to another session, or never.
    PlanForeign = 34 => (EIO, FailedPrecondition, never);
    /// The chunk is part of a file already.
    AlreadyCommitted = 35 => (EIO, FailedPrecondition, never);
    /// An older request than the last one of its slot.
    StaleSequence = 36 => (EIO, FailedPrecondition, never);
    /// Fewer members than the policy demands have stored the chunk.
    TooFewReplicas = 37 => (EIO, FailedPrecondition, again);
    /// The receiver has too much to do.
    Overloaded = 38 => (EAGAIN, ResourceExhausted, again);
    /// A disk failed.
    Io = 39 => (EIO, Internal, never);
    /// A broken promise inside Cairn; the message says which.
    Internal = 40 => (EIO, Internal, never);
    /// The data belongs to another cluster.
    WrongCluster = 41 => (EIO, FailedPrecondition, never);
    /// Not a file descriptor that can do this.
    BadHandle = 42 => (EBADF, FailedPrecondition, never);
    /// A seek past the last data (SEEK_DATA, SEEK_HOLE).
    NoSuchOffset = 43 => (ENXIO, OutOfRange, never);
    /// The peer speaks a message that this build does not understand.
    Protocol = 44 => (EIO, InvalidArgument, never);
    /// A name leads to another inode than the one that the sender had found there.
    NameChanged = 45 => (ESTALE, FailedPrecondition, never);
}

impl ErrorKind {
    /// The number that travels.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The errno that applications see.
    pub fn errno(self) -> libc::c_int {
        self.translate().0
    }
}

/// An error as it crosses the wire: a kind and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// What to act on.
    pub kind: ErrorKind,
    /// What to show.
    pub message: String,
}

impl WireError {
    /// An error with a sentence.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// From the two fields of a result message; `None` when it reports success.
    pub fn from_fields(number: u32, message: &str) -> Option<Self> {
        (number != 0).then(|| {
            let kind = ErrorKind::from_number(number).unwrap_or(ErrorKind::Protocol);
            Self::new(kind, message)
        })
    }
}

/// Longest sentence that travels: it goes into HTTP/2 trailers, which both ends bound to 16 KiB, and
/// percent-encoding may make it three times as long.
const MESSAGE_MAX: usize = 2048;

/// Puts an error into a gRPC status. A sentence that quotes too much is cut.
pub fn status_from(kind: ErrorKind, message: impl Into<String>) -> Status {
    let mut message = message.into();
    if message.len() > MESSAGE_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        message.push('…');
    }
    let mut status = Status::new(kind.translate().1, message);
    status.metadata_mut().insert(KIND_KEY, kind.number().into());
    status
}

/// Takes the error out of a gRPC status; one that did not come from Cairn's code (a broken
/// connection, a time-out, a refused message) is translated by its gRPC code.
pub fn wire_error_of(status: &Status) -> WireError {
    let stated = status
        .metadata()
        .get(KIND_KEY)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .and_then(ErrorKind::from_number);
    let kind = stated.unwrap_or_else(|| match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => ErrorKind::TimedOut,
        Code::OutOfRange | Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::ResourceExhausted => ErrorKind::Overloaded,
        Code::Unimplemented => ErrorKind::Protocol,
        Code::DataLoss => ErrorKind::Corrupt,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::AccessDenied,
        Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => {
            ErrorKind::Protocol
        }
        // A connection that breaks shows as Unknown or Internal ("h2 protocol error").
        Code::Ok | Code::Unknown | Code::Internal | Code::Unavailable => ErrorKind::Unavailable,
    });
    WireError::new(kind, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_a_status() {
        for &kind in ErrorKind::ALL {
            let back = wire_error_of(&status_from(kind, "why"));
            assert_eq!(back, WireError::new(kind, "why"));
            assert_eq!(ErrorKind::from_number(kind.number()), Some(kind));
        }
    }

    #[test]
    fn a_sentence_that_quotes_too_much_is_cut_between_characters() {
        let cut = wire_error_of(&status_from(ErrorKind::InvalidArgument, "ä".repeat(1 << 20))).message;
        assert_eq!(cut, format!("{}…", "ä".repeat(MESSAGE_MAX / 2)));
    }

    #[test]
    fn foreign_statuses_get_a_kind_too() {
        assert_eq!(wire_error_of(&Status::unavailable("gone")).kind, ErrorKind::Unavailable);
        assert_eq!(wire_error_of(&Status::deadline_exceeded("late")).kind, ErrorKind::TimedOut);
        assert_eq!(WireError::from_fields(9999, "?").map(|e| e.kind), Some(ErrorKind::Protocol));
        assert_eq!(WireError::from_fields(0, ""), None);
    }
}
