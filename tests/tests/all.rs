//! End-to-end tests: real processes, real mounts, all of them in one program, since each program would link
//! the whole file system once more.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used)] // a failure here is a failed test, and its clocks are real

mod availability;
mod backup;
mod bad_config;
mod bad_input;
mod bad_upkeep;
mod bad_wire;
mod bounds;
mod chaos;
mod conformance;
mod corruption;
mod crash_points;
mod disk_faults;
mod faults;
mod files;
mod fsync;
mod gc;
mod growth;
mod healing;
mod leases;
mod mapped;
mod posix;
mod power_cut;
mod privileges;
mod programs;
mod rough_edges;
mod salvage;
mod services;
mod sessions;
mod up;
mod upload;
