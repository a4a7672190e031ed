//! Tests of the coordinator through its services, all in one program.
#![allow(clippy::unwrap_used)] // a failure here is a failed test, and its clocks are real

mod common;
mod inventory;
mod leases;
mod listings;
mod read_leases;
mod service;
mod start;
