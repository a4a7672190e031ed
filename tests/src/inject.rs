//! Faults at the Nth call of the kernel, in binaries as they are shipped: `strace` as the injector.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// SIGKILL before the call is carried out.
    Kill,
    Eio,
    Enospc,
}

/// One place where one process is hit: the `nth` time that one of its threads makes `call`.
#[derive(Debug, Clone)]
pub struct Point {
    pub call: &'static str,
    pub nth: u64,
    pub effect: Effect,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {} number {}", self.effect, self.call, self.nth)
    }
}

/// A point together with the file that tells whether it was reached.
#[derive(Debug)]
pub struct Injection {
    wrapper: Vec<OsString>,
    record: PathBuf,
}

impl Injection {
    pub fn new(point: &Point, record: &Path) -> Self {
        let _ = std::fs::remove_file(record);
        let effect = match point.effect {
            Effect::Kill => "signal=KILL",
            Effect::Eio => "error=EIO",
            Effect::Enospc => "error=ENOSPC",
        };
        // -D: the tracer is a grandchild, so that the process keeps the id that its parent knows.
        let mut wrapper: Vec<OsString> =
            ["strace", "-D", "-f", "--seccomp-bpf", "-qqq", "-o"].map(Into::into).into();
        wrapper.push(record.into());
        wrapper.push("-e".into());
        wrapper.push(format!("trace={}", point.call).into());
        wrapper.push("-e".into());
        wrapper.push(format!("inject={}:{effect}:when={}", point.call, point.nth).into());
        wrapper.push("--".into());
        Self { wrapper, record: record.to_owned() }
    }

    /// What runs the process, for `start_node_under` and its like.
    pub fn wrapper(&self) -> &[OsString] {
        &self.wrapper
    }

    /// Whether the call was answered with the error. A process that was killed there has ended.
    pub fn has_hit(&self) -> bool {
        let record = std::fs::read(&self.record).unwrap_or_default();
        String::from_utf8_lossy(&record).contains("(INJECTED)")
    }
}
