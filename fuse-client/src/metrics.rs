//! Every metric of the mount.
//!
//! * `cairn_fuse_request_seconds{op}`: from a request's arrival to its answer.
//! * `cairn_fuse_requests_interrupted_total`: requests given up because a signal waited for their caller.

use std::sync::OnceLock;

use cairn_runtime::clock::Instant;
use metrics::{Histogram, counter, histogram};

macro_rules! ops {
    ($($name:ident => $label:literal),* $(,)?) => {
        /// The kinds of request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Op { $($name),* }

        impl Op {
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
            Self::LABELS
                .iter()
                .map(|label| histogram!("cairn_fuse_request_seconds", "op" => *label))
                .collect()
        });
        all[self as usize].record(started.elapsed().as_secs_f64());
    }
}

/// Records a request that was given up for a signal.
pub(crate) fn interrupted() {
    counter!("cairn_fuse_requests_interrupted_total").increment(1);
}
