//! The coordinator: keeps names, inodes, extents, chunk placement and membership; never file data.
//!
//! A request passes `service` (gRPC) → `ops` (one file for each operation) → `store` (SQLite or
//! memory). Mutations are jobs of one `executor`, which groups them into durable transactions;
//! reads see committed state beside it. `sessions` knows the mounted clients, `membership` the
//! datanodes and replica sets, `maintenance` does what time demands.
//!
//! ```no_run
//! # async fn run() -> Result<(), cairn_coordinator::CoordinatorError> {
//! use cairn_coordinator::{CoordinatorConfig, start};
//! use cairn_runtime::shutdown::Shutdown;
//!
//! let shutdown = Shutdown::new();
//! let running = start(CoordinatorConfig::default(), shutdown.clone()).await?;
//! println!("{}", running.address);
//! shutdown.request();
//! running.wait().await
//! # }
//! ```

mod archive;
mod attendance;
mod cluster_clock;
mod config;
mod context;
mod datanodes;
mod error;
mod executor;
mod fsck;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod generations;
mod leases;
mod listings;
mod maintenance;
mod membership;
mod memory;
mod metrics;
mod ops;
mod salvage;
mod server;
mod service;
mod sessions;
#[cfg(feature = "sim")]
pub mod sim;
mod slots;
mod status;
mod store;
mod unsynced;
mod workers;

pub use archive::restore::{RestoreOptions, Restored, Until, restore};
pub use config::{CoordinatorConfig, Engine, LogAck};
pub use salvage::{SalvagedEntry, SalvagedExtent, SalvagedKind, SalvagedMetadata};
pub use server::{CoordinatorError, Running, start};
