//! Identifiers. Made from integers or bytes only where they arrive: wire, disk, kernel.

use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

/// Why bytes or an integer from outside are no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Zero names nothing.
    #[error("{what} is 0; identifiers start at 1")]
    Zero {
        /// Which identifier.
        what: &'static str,
    },
    /// Larger than a signed 64-bit integer, which is what the metadata store holds.
    #[error("{what} {value} is out of range; at most 2^63 - 1 is possible")]
    TooLarge {
        /// Which identifier.
        what: &'static str,
        /// What came.
        value: u64,
    },
    /// A UUID has 16 bytes.
    #[error("{what} has {got} bytes; a UUID of 16 was expected")]
    Length {
        /// Which identifier.
        what: &'static str,
        /// How many bytes came.
        got: usize,
    },
}

macro_rules! integer_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The lowest one.
            pub const MIN: Self = Self(1);

            /// Takes an identifier from outside: 1 to 2^63 - 1.
            pub fn new(value: u64) -> Result<Self, IdError> {
                match value {
                    0 => Err(IdError::Zero { what: $what }),
                    v if v > i64::MAX as u64 => Err(IdError::TooLarge { what: $what, value: v }),
                    v => Ok(Self(v)),
                }
            }

            /// The integer, for the wire, the disk or the kernel.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

integer_id!(
    /// A file, directory or other inode; never reused.
    InodeId, "inode id"
);
integer_id!(
    /// An immutable run of bytes on datanodes; never reused.
    ChunkId, "chunk id"
);
integer_id!(
    /// An ordered list of datanodes that hold the same chunks.
    ReplicaSetId, "replica set id"
);
integer_id!(
    /// Version of the map of replica sets.
    Epoch, "epoch"
);
integer_id!(
    /// Number of a coordinator's reign.
    Term, "term"
);

impl InodeId {
    /// The root directory, the same number that FUSE uses.
    pub const ROOT: Self = Self(1);
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that the caller made or read.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Takes the 16 bytes of the wire.
            pub fn from_wire(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes)
                    .map(Self)
                    .map_err(|_| IdError::Length { what: $what, got: bytes.len() })
            }

            /// The 16 bytes for the wire.
            pub fn to_wire(self) -> Bytes {
                Bytes::copy_from_slice(self.0.as_bytes())
            }

            /// The UUID itself.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }

            /// The first eight digits, enough for a person to tell a few apart.
            pub fn short(self) -> String {
                let mut text = self.0.simple().to_string();
                text.truncate(8);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

uuid_id!(
    /// A datanode; kept in its data directory.
    NodeId, "datanode id"
);
uuid_id!(
    /// One mounted client's registration.
    SessionId, "session id"
);
uuid_id!(
    /// The cluster; made when its metadata store is.
    ClusterId, "cluster id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_the_upper_half_are_no_ids() {
        assert_eq!(InodeId::new(0), Err(IdError::Zero { what: "inode id" }));
        assert!(ChunkId::new(1 << 63).is_err());
        assert_eq!(ChunkId::new(i64::MAX as u64).map(ChunkId::get), Ok(i64::MAX as u64));
    }

    #[test]
    fn a_uuid_of_another_length_is_refused() {
        assert_eq!(NodeId::from_wire(&[1, 2, 3]), Err(IdError::Length { what: "datanode id", got: 3 }));
        let id = NodeId::from_uuid(Uuid::from_u128(7));
        assert_eq!(NodeId::from_wire(&id.to_wire()), Ok(id));
    }
}
