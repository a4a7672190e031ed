//! Names of extended attributes, as xattr(7) has them.

use crate::ErrorKind;
use crate::limits::NAME_MAX;

/// The namespaces that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `user.`: as permission bits allow.
    User,
    /// `trusted.`: changed and seen with CAP_SYS_ADMIN.
    Trusted,
    /// `security.`: seen by everybody.
    Security,
}

const PREFIXES: [(Namespace, &[u8]); 3] =
    [(Namespace::User, b"user."), (Namespace::Trusted, b"trusted."), (Namespace::Security, b"security.")];

impl Namespace {
    /// The namespace of an attribute's whole name, with the errors of setxattr(2).
    ///
    /// * `NotSupported`: it is in none that is kept. Access control lists (`system.`) are among these: they are not
    ///   enforced, so pretending to keep them would be unsafe.
    /// * `InvalidArgument`: a namespace and nothing behind it, or a NUL.
    /// * `OutOfRange`: longer than 255 bytes, or empty.
    pub fn of(name: &[u8]) -> Result<Self, ErrorKind> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(ErrorKind::OutOfRange);
        }
        let found = PREFIXES.iter().find(|(_, prefix)| name.starts_with(prefix));
        let (namespace, prefix) = found.ok_or(ErrorKind::NotSupported)?;
        if name.len() == prefix.len() || name.contains(&0) {
            return Err(ErrorKind::InvalidArgument);
        }
        Ok(*namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_namespace_that_is_kept_and_a_word() {
        assert_eq!(Namespace::of(b"user.a"), Ok(Namespace::User));
        assert_eq!(Namespace::of(b"trusted.overlay.opaque"), Ok(Namespace::Trusted));
        assert_eq!(Namespace::of(b"security.capability"), Ok(Namespace::Security));
        for (name, kind) in [
            (&b""[..], ErrorKind::OutOfRange),
            (&[b'u'; 256], ErrorKind::OutOfRange),
            (b"user", ErrorKind::NotSupported),
            (b"system.posix_acl_access", ErrorKind::NotSupported),
            (b"users.a", ErrorKind::NotSupported),
            (b"user.", ErrorKind::InvalidArgument),
            (b"user.a\0b", ErrorKind::InvalidArgument),
        ] {
            assert_eq!(Namespace::of(name), Err(kind), "{name:?}");
        }
    }
}
