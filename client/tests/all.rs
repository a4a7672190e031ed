//! Tests of the client against a cluster in this process, all in one program.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used)] // a failure here is a failed test, and its clocks are real

mod common;
mod content;
mod fs_paths;
mod fsync;
mod vfs_covers;
mod vfs_cut;
mod vfs_files;
mod vfs_leases;
mod vfs_listings;
mod vfs_names;
mod vfs_parts;
mod vfs_replaced;
mod vfs_times;
mod vfs_unleased;
