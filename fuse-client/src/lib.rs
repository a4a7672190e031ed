//! The mount: translates between the kernel's FUSE requests and [`cairn_client::vfs`].
//!
//! The adapter decodes a request, calls one function of the vfs and encodes the answer; it holds no
//! policy and `fuser` types do not leave it. What local state can answer is answered on the thread
//! that read the request; only what needs the network becomes a task.
//!
//! [`mount()`] returns when the directory is usable, [`Mounted::unmount`] when the last byte is stored.

mod adapter;
mod callers;
mod config;
mod encode;
mod metrics;
mod mount;
mod mountpoint;
mod pages;
mod request;
mod status;

pub use config::MountConfig;
pub use mount::{Mounted, mount};
pub use mountpoint::MountError;
