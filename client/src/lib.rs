//! The SDK of Cairn: a session with the coordinator, the pipelines that write and read file
//! content, and two faces on top of them: [`vfs`] (inodes, what a kernel asks) and [`fs`] (paths).
//!
//! [`Client::connect`] opens a session. [`Client::coordinator`] speaks of names and attributes,
//! [`Client::content`] of the bytes of one file. Memory is bounded by [`ClientConfig::memory`].

mod attr;
mod behind;
mod budget;
mod cache;
mod client;
mod clock;
mod config;
mod content;
mod coordinator;
mod engine;
mod error;
pub mod fs;
mod layout;
mod listing;
mod map;
mod metrics;
mod planner;
mod reader;
mod retry;
mod session;
mod tally;
mod transport;
mod untold;
pub mod vfs;
mod writer;

pub use attr::{Applied, Attr, Caller, Kind, StatFs};
pub use client::Client;
pub use config::{ClientConfig, Unreachable};
pub use content::{FileContent, Place, Told};
pub use coordinator::Coordinator;
pub use error::{ClientError, Result};
pub use layout::Layout;
pub use listing::{DirEntry, DirEntryRef, DirPage};
pub use retry::on_long_waits;
pub use session::OpenGuard;
