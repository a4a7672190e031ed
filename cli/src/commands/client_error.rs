//! Errors of the client library as failures of commands.

use cairn_client::ClientError;
use cairn_proto::ErrorKind;

use crate::cluster::advice;
use crate::failure::{Exit, Failure, IntoFailure};

/// Why, in the words that people know from other programs.
pub(crate) fn describe(error: &ClientError) -> String {
    let known = match error.kind() {
        ErrorKind::NotFound => "no such file or directory",
        ErrorKind::Exists => "it exists already",
        ErrorKind::NotDirectory => "not a directory",
        ErrorKind::IsDirectory => "it is a directory",
        ErrorKind::NotEmpty => "the directory is not empty",
        ErrorKind::AccessDenied => "permission denied",
        ErrorKind::NotPermitted => "operation not permitted",
        ErrorKind::NameTooLong => "the name is too long (255 bytes are possible)",
        ErrorKind::SymlinkLoop => "too many symbolic links",
        ErrorKind::NoSpace => "no space left in the cluster",
        ErrorKind::QuotaExceeded => "the quota is used up",
        _ => return error.to_string(),
    };
    known.to_owned()
}

impl IntoFailure for ClientError {
    fn into_failure(self, what: String) -> Failure {
        let failure = Failure::new(what, describe(&self));
        match advice(self.kind()) {
            Some((next, exit)) => failure.next(next).exit(exit),
            None if self.kind() == ErrorKind::InvalidArgument && matches!(self, Self::Config(_)) => {
                failure.exit(Exit::Usage)
            }
            None => failure,
        }
    }
}
