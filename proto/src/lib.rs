//! What the parts of Cairn say to one another: the wire messages of `cairn.v1`, the identifiers,
//! the kinds of error, and the rules about names, ranges, checksums, modes and permissions that both ends keep.
//! No I/O happens here.

pub mod checksum;
pub mod codec;
pub mod digest;
mod error;
pub mod health;
mod ids;
pub mod limits;
pub mod listing;
pub mod mode;
mod name;
pub mod posix;
mod range;
pub mod xattr;

pub use error::{ErrorKind, REQUEST_ID_KEY, WireError, status_from, wire_error_of};
pub use ids::{ChunkId, ClusterId, Epoch, IdError, InodeId, NodeId, ReplicaSetId, SessionId, Term};
pub use name::{FileName, NameError, SymlinkTarget};
pub use range::ByteRange;

/// Metadata key of the latest time that the sender of a request or an answer has given to anything: ns since the epoch,
/// decimal. Whoever gets it gives no earlier time afterwards.
pub const CLOCK_KEY: &str = "cairn-clock-ns";

/// The generated messages, clients and servers of `cairn.v1`; each is documented in `cairn/v1/*.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("cairn.v1");
}
