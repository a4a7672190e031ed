//! The whole cluster in one deterministic process: the real coordinator, datanodes and clients on
//! simulated machines, with simulated disks and a simulated network, under faults, and with checks
//! that know nothing of how the system works. See `docs/simulation.md`.

mod disk;
mod faults;
mod fleet;
mod hosts;
mod judge;
mod knobs;
mod model;
mod os;
mod scenario;
mod trace;
mod watch;
mod workload;
mod world;

pub use scenario::{Plan, Report, run};
