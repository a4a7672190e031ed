//! The metrics of the mount, with their units and meaning.

use std::sync::OnceLock;

use cairn_proto::ErrorKind;
use cairn_runtime::clock::Instant;
use metrics::{Counter, Histogram, counter, histogram};

cairn_runtime::metric_catalogue! {
    histogram_events REQUEST_SECONDS = "cairn_fuse_request_seconds", "From the arrival of a request of the kernel to its answer, seconds, by operation.";
    events ERRORS = "cairn_fuse_errors_total", "Requests of the kernel answered with an error, by operation and errno.";
    counter BYTES = "cairn_fuse_bytes_total" ["op": "read", "write", "copy_file_range"], "Bytes that programs have read, written and copied, by operation.";
    counter INTERRUPTED = "cairn_fuse_requests_interrupted_total", "Requests given up because a signal waited for their caller.";
}

macro_rules! ops {
    ($($name:ident => $label:literal),* $(,)?) => {
        /// The kinds of request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Op { $($name),* }

        impl Op {
            const ALL: &[Self] = &[$(Self::$name),*];
            const LABELS: &[&str] = &[$($label),*];
        }
    };
}

ops! {
    Lookup => "lookup", GetAttr => "getattr", SetAttr => "setattr", ReadLink => "readlink",
    MkNod => "mknod", MkDir => "mkdir", Symlink => "symlink", Link => "link", Unlink => "unlink",
    RmDir => "rmdir", Rename => "rename", Create => "create", Open => "open", Read => "read",
    Write => "write", Flush => "flush", Fsync => "fsync", ReadDir => "readdir", StatFs => "statfs",
    SetXattr => "setxattr", GetXattr => "getxattr", ListXattr => "listxattr",
    RemoveXattr => "removexattr", Access => "access", Allocate => "fallocate", Seek => "lseek",
    CopyRange => "copy_file_range",
}

/// The number of operations.
const OPS: usize = Op::LABELS.len();
/// Above every number of an [`ErrorKind`].
const KINDS: usize = 64;

/// The counters of errors, each looked up when it is first needed: a lookup by name costs more than the smallest
/// requests, and a name that is not found is an error like any other.
static ERROR_COUNTERS: [[OnceLock<Counter>; KINDS]; OPS] =
    [const { [const { OnceLock::new() }; KINDS] }; OPS];
/// The same for bytes.
static BYTE_COUNTERS: [OnceLock<Counter>; OPS] = [const { OnceLock::new() }; OPS];

impl Op {
    /// The label of the metric, and the word in logs.
    pub(crate) fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }

    /// Records an answered request.
    pub(crate) fn answered(self, started: Instant) {
        static HISTOGRAMS: OnceLock<Vec<Histogram>> = OnceLock::new();
        // Looked up once: a lookup by name costs more than the smallest requests.
        let all = HISTOGRAMS.get_or_init(|| {
            Self::LABELS.iter().map(|label| histogram!(REQUEST_SECONDS, "op" => *label)).collect()
        });
        all[self as usize].record(started.elapsed().as_secs_f64());
    }

    /// Records that a request was answered with an error.
    pub(crate) fn failed(self, kind: ErrorKind) {
        if let Some(cell) = ERROR_COUNTERS[self as usize].get(kind.number() as usize) {
            cell.get_or_init(|| self.errors(kind)).increment(1);
        }
    }

    fn errors(self, kind: ErrorKind) -> Counter {
        counter!(ERRORS, "op" => self.label(), "errno" => kind.errno_name())
    }

    /// Records bytes that were read, written or copied.
    pub(crate) fn moved(self, bytes: u64) {
        BYTE_COUNTERS[self as usize].get_or_init(|| counter!(BYTES, "op" => self.label())).increment(bytes);
    }
}

/// Tells the exporter about all metrics. The errors that no program expects are shown before the first of them.
pub(crate) fn register() {
    describe();
    for op in Op::ALL {
        op.errors(ErrorKind::Io).increment(0);
    }
}

/// Records a request that was given up for a signal.
pub(crate) fn interrupted() {
    counter!(INTERRUPTED).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_counter() {
        assert!(ErrorKind::ALL.iter().all(|kind| (kind.number() as usize) < KINDS));
    }
}
