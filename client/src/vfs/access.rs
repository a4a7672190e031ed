//! The permission check of path_resolution(7), for what is decided locally.

pub use cairn_proto::posix::{MAY_EXECUTE, MAY_READ, MAY_WRITE};

use super::Result;
use crate::{Attr, Caller};

/// Whether `caller` may do all of `mask`.
pub(super) fn check(attr: &Attr, mask: u32, caller: &Caller) -> Result<()> {
    Ok(caller.need(attr, mask & 7)?)
}
