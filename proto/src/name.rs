//! Names of directory entries and symlink targets: bytes, checked once where they arrive.

use std::fmt;

use bytes::Bytes;

use crate::limits::{NAME_MAX, SYMLINK_MAX};

/// Why bytes are no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("an empty name")]
    Empty,
    /// More than 255 bytes (4095 for a symlink target).
    #[error("a name of {0} bytes; 255 are possible (4095 for a symlink target)")]
    TooLong(usize),
    /// A '/' or NUL inside, or "." or "..".
    #[error("a name with '/' or NUL, or one of \".\" and \"..\"")]
    Forbidden,
}

/// The name of a directory entry: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Bytes);

impl FileName {
    /// Checks a name from outside.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        match bytes.as_ref() {
            b"" => Err(NameError::Empty),
            b if b.len() > NAME_MAX => Err(NameError::TooLong(b.len())),
            b"." | b".." => Err(NameError::Forbidden),
            b if b.iter().any(|&c| c == b'/' || c == 0) => Err(NameError::Forbidden),
            _ => Ok(Self(bytes)),
        }
    }

    /// A name that has passed the same checks elsewhere.
    pub(crate) fn checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes of the name, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0).escape_debug())
    }
}

/// What a symlink points to: 1 to 4095 bytes without NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SymlinkTarget(Bytes);

impl SymlinkTarget {
    /// Checks a target from outside.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(NameError::Empty),
            n if n > SYMLINK_MAX => Err(NameError::TooLong(n)),
            _ if bytes.contains(&0) => Err(NameError::Forbidden),
            _ => Ok(Self(bytes)),
        }
    }

    /// The bytes of the target, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bytes_with_few_exceptions() {
        assert!(FileName::new(&b"\xff\xfe"[..]).is_ok());
        assert!(FileName::new(vec![b'a'; 255]).is_ok());
        assert_eq!(FileName::new(vec![b'a'; 256]), Err(NameError::TooLong(256)));
        assert_eq!(FileName::new(&b""[..]), Err(NameError::Empty));
        for bad in [&b"."[..], b"..", b"a/b", b"a\0b"] {
            assert_eq!(FileName::new(bad), Err(NameError::Forbidden));
        }
    }
}
