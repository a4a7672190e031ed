//! A datanode: keeps chunks on its disks, replicates them to the other members of their sets, and
//! returns them verified.
//!
//! ```text
//! service ─▶ intake ─▶ store (segments, index, syncer) ─▶ runtime::disk
//!               └────▶ replication ─▶ other datanodes
//! membership ◀─▶ coordinator
//! ```

mod assembly;
mod bad;
mod config;
mod copy;
mod disks;
mod drain;
mod frame_queue;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod identity;
mod intake;
mod inventory;
mod map;
mod membership;
mod metalog;
mod metrics;
mod node;
mod outbox;
mod pace;
mod reads;
mod repack;
mod replication;
mod salvage;
mod scrub;
mod server;
mod service;
mod store;
mod transfer;
mod trash;
mod watch;

pub use config::DatanodeConfig;
pub use salvage::Salvage;
pub use server::{DatanodeError, Running, start, start_on};
pub use store::StoreError;
