//! Paths in the cluster, as they are typed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What a path in the cluster may start with, so that it can be told from a local one.
const SCHEME: &[u8] = b"cairn:";

/// An absolute path in the cluster: bytes, components joined by single slashes, no `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemotePath {
    bytes: Vec<u8>,
    /// It was typed with a slash at its end: what it names must be a directory.
    pub is_directory: bool,
}

/// What was typed is no path in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadRemotePath {
    /// It does not start with `/` (nor with `cairn:/`).
    Relative(String),
    /// It has a component `..`, which could mean two things when symlinks are on the way.
    Parent(String),
    /// A NUL inside.
    Nul,
}

impl fmt::Display for BadRemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relative(path) => write!(
                f,
                "{path:?} is no path in the cluster; an absolute one was expected, such as /{}",
                path.trim_start_matches("./")
            ),
            Self::Parent(path) => write!(f, "{path:?} contains '..'; write the path out"),
            Self::Nul => f.write_str("a path can not contain a NUL byte"),
        }
    }
}

impl std::error::Error for BadRemotePath {}

impl RemotePath {
    /// Reads what was typed: `/a/b` or `cairn:/a/b`. Doubled slashes and `.` are dropped.
    pub fn parse(text: &OsStr) -> Result<Self, BadRemotePath> {
        let typed = text.as_bytes();
        let path = typed.strip_prefix(SCHEME).unwrap_or(typed);
        let shown = || text.to_string_lossy().into_owned();
        if path.first() != Some(&b'/') {
            return Err(BadRemotePath::Relative(shown()));
        }
        if path.contains(&0) {
            return Err(BadRemotePath::Nul);
        }
        let mut bytes = Vec::with_capacity(path.len());
        for part in path.split(|&c| c == b'/').filter(|part| !part.is_empty() && part != b".") {
            if part == b".." {
                return Err(BadRemotePath::Parent(shown()));
            }
            bytes.push(b'/');
            bytes.extend_from_slice(part);
        }
        let is_directory = path.ends_with(b"/") || path.ends_with(b"/.");
        if bytes.is_empty() {
            bytes.push(b'/');
        }
        Ok(Self { bytes, is_directory })
    }

    /// The root directory of the cluster.
    pub fn root() -> Self {
        Self { bytes: b"/".to_vec(), is_directory: true }
    }

    /// The path as bytes: `/`, or `/a/b` without a slash at the end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The path for the client library; a slash at its end asks for a directory there, too.
    pub fn to_path(&self) -> PathBuf {
        let mut bytes = self.bytes.clone();
        if self.is_directory && bytes != b"/" {
            bytes.push(b'/');
        }
        OsString::from_vec(bytes).into()
    }

    /// The last component; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.bytes.rsplit(|&c| c == b'/').next().filter(|name| !name.is_empty())
    }

    /// The directory that holds it; the root's is the root.
    pub fn parent(&self) -> Self {
        let cut = self.bytes.iter().rposition(|&c| c == b'/').unwrap_or(0);
        match &self.bytes[..cut] {
            b"" => Self::root(),
            parent => Self { bytes: parent.to_vec(), is_directory: true },
        }
    }

    /// The path of an entry of this directory.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut bytes = if self.bytes == b"/" { Vec::new() } else { self.bytes.clone() };
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Self { bytes, is_directory: false }
    }

    /// Whether `other` is this path or lies below it.
    pub fn contains(&self, other: &Self) -> bool {
        self.bytes == b"/"
            || other
                .bytes
                .strip_prefix(self.bytes.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes))
    }
}

impl fmt::Debug for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.bytes))
    }
}

/// Lets clap read a [`RemotePath`] from any bytes, valid UTF-8 or not.
#[derive(Debug, Clone, Copy)]
pub struct RemotePathParser;

impl clap::builder::TypedValueParser for RemotePathParser {
    type Value = RemotePath;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        RemotePath::parse(value).map_err(|bad| {
            let name = arg.map(|arg| format!(" for {arg}")).unwrap_or_default();
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("invalid path{name}: {bad}\n"))
                .with_cmd(command)
        })
    }
}

impl clap::builder::ValueParserFactory for RemotePath {
    type Parser = RemotePathParser;

    fn value_parser() -> Self::Parser {
        RemotePathParser
    }
}
