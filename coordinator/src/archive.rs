//! A second place for metadata: base backups, and the log of every commit since.
//!
//! A *base* holds all rows at one commit; a *log* holds the commits after one another. Both are
//! files of records ([`file`]) in the same encoding of rows ([`record`]), kept in a [`place`]: a
//! directory, or some datanodes. [`queue`] takes commits from the executor and never makes it wait
//! (unless it is to answer only what has arrived), [`shipper`] carries them away and sees to bases,
//! [`base`] reads one, [`chain`] finds the way from a base through the log files, and [`restore`]
//! makes a store of it.

pub(crate) mod base;
pub(crate) mod chain;
pub(crate) mod error;
pub(crate) mod file;
pub(crate) mod place;
pub(crate) mod queue;
pub(crate) mod record;
pub(crate) mod restore;
pub(crate) mod shipper;

#[cfg(test)]
mod tests;
