//! Fixtures of the end-to-end tests: a running cluster of real processes, with a real mount, in one line.
//!
//! Whatever a test starts ends with it. Guards clean up when the test returns or panics; processes
//! die with the thread that started them (`PR_SET_PDEATHSIG`); and a watchman outside of the test's
//! process group unmounts and removes what is left when the test process itself was killed.
//!
//! These are tests: a broken expectation panics, and the seams of `runtime` are for the product, so
//! `std::fs` and the clock are used directly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

pub mod aio;
pub mod cluster;
pub mod disk;
pub mod http2;
pub mod identity;
pub mod inject;
pub mod mapping;
pub mod network;
pub mod pattern;
pub mod process;
pub mod rounds;
pub mod rpc;
pub mod shell;
pub mod syscalls;
pub mod table;
pub mod throttle;
pub mod wait;
pub mod workload;

pub use cluster::{Builder, Cluster};
pub use process::Process;
pub use rpc::Wire;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Tests that mount with `allow_other`, make devices or loop disks need root; without it they would
/// prove nothing, so they fail.
pub fn need_root() {
    assert!(rustix::process::geteuid().is_root(), "this test must run as root");
}
