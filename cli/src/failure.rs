//! What a command says when it fails: one line, what could not be done, why, and what to do next.

use std::fmt;
use std::process::ExitCode;

/// How a command ended, as its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It worked.
    Done = 0,
    /// It failed, or part of it did.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The cluster can not be reached.
    Unreachable = 3,
    /// The cluster was reached, and it is damaged.
    Unhealthy = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command can not go on. Prints as `what: why; next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What could not be done, such as `put photos/a.jpg`.
    pub what: String,
    /// Why.
    pub why: String,
    /// What the person can do about it.
    pub next: Option<String>,
    /// Exit status.
    pub exit: Exit,
}

impl Failure {
    /// A plain failure.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { what: what.to_string(), why: why.to_string(), next: None, exit: Exit::Failed }
    }

    /// A wrong command line or configuration.
    pub fn usage(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, ..Self::new(what, why) }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next(mut self, next: impl fmt::Display) -> Self {
        self.next = Some(next.to_string());
        self
    }

    /// Adds another exit status.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.why.trim_end();
        if self.what.is_empty() {
            f.write_str(why)?;
        } else {
            write!(f, "{}: {why}", self.what)?;
        }
        match &self.next {
            Some(next) => write!(f, "; {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// Turns an error into a [`Failure`] by saying what was being done.
pub trait Context<T> {
    /// Says what was being done.
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: IntoFailure> Context<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| error.into_failure(what.to_string()))
    }
}

/// Errors that know what a person can do about them.
pub trait IntoFailure {
    /// The failure of `what` for this reason.
    fn into_failure(self, what: String) -> Failure;
}

impl IntoFailure for std::io::Error {
    fn into_failure(self, what: String) -> Failure {
        // The system's text without "(os error 2)", which helps nobody.
        let text = self.to_string();
        let why = text.split(" (os error").next().unwrap_or(&text).to_owned();
        Failure::new(what, why)
    }
}

impl IntoFailure for rustix::io::Errno {
    fn into_failure(self, what: String) -> Failure {
        std::io::Error::from(self).into_failure(what)
    }
}

impl IntoFailure for cairn_runtime::threads::PoolError {
    fn into_failure(self, what: String) -> Failure {
        match self {
            Self::Busy(_) => Failure::new(what, self).next("try again with fewer files at once (--parallel)"),
            Self::Failed(_) => Failure::new(what, self),
        }
    }
}
