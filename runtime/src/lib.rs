//! The seams to the outside world (network, clock, disk, random numbers, threads) and what all
//! daemons share: configuration values, telemetry, shutdown.
//!
//! Nothing outside this crate opens sockets or files, reads clocks or draws random numbers
//! directly (clippy's `disallowed-methods` sees to it), so that the whole cluster can be run in one
//! deterministic process with these modules replaced.

pub mod bugs;
pub mod clock;
pub mod config;
pub mod disk;
pub mod net;
pub mod random;
pub mod shutdown;
#[cfg(feature = "sim")]
pub mod sim;
pub mod telemetry;
pub mod threads;

/// Version of this build, shown in registrations and status.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
