//! The checks of the edge, for the fuzzer of messages.

use cairn_proto::v1;

use crate::error::OpError;

pub(crate) use super::wire::{batch, confirm, opens, plan, request_id};

/// What a registration is checked for.
pub(crate) fn registration(request: v1::RegisterDataNodeRequest) -> Result<(), OpError> {
    super::membership::check_address(&request.address)?;
    super::membership::report(request.capacity, request.used, request.disks)?;
    super::membership::labels(request.labels).map(drop)
}

/// What a heartbeat is checked for.
pub(crate) fn heartbeat(request: v1::HeartbeatRequest) -> Result<(), OpError> {
    super::membership::report(request.capacity, request.used, request.disks).map(drop)
}
