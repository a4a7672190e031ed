//! Tests of the command line, all in one program.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used)] // a failure here is a failed test, and its clocks are real

mod arguments;
mod binary;
mod human;
