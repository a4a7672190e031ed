//! Garbage, scrub and the check of everything: what operators ask for.

use std::sync::Arc;

use cairn_proto::v1;
use tokio_stream::wrappers::ReceiverStream;

use super::{Replies, Shared};
use crate::error::OpError;
use crate::workers::gc;
use crate::{fsck, ops};

pub(super) async fn gc_status(shared: &Shared) -> Result<v1::GcStatus, OpError> {
    gc::status(shared).await
}

pub(super) async fn control_gc(
    shared: &Shared,
    request: v1::ControlGcRequest,
) -> Result<v1::GcStatus, OpError> {
    let action = request.action();
    shared
        .executor
        .run(move |tx| match action {
            v1::GcAction::Unspecified => Err(OpError::invalid("an action was expected")),
            v1::GcAction::Pause => ops::gc::set_paused(tx, true),
            v1::GcAction::Run => ops::gc::need_running(tx),
            v1::GcAction::Resume => ops::gc::resume(tx),
            v1::GcAction::AcceptRollback => {
                ops::rollback::accept(tx)?;
                ops::gc::set_paused(tx, false)
            }
        })
        .await?;
    if action == v1::GcAction::Run {
        gc::hurry(shared);
    }
    tracing::warn!(action = action.as_str_name(), "an operator controls the deletion of chunks");
    gc::status(shared).await
}

pub(super) async fn scrub(
    shared: &Shared,
    request: v1::ScrubNodesRequest,
) -> Result<v1::ScrubNodesResponse, OpError> {
    gc::scrub(shared, request).await
}

pub(super) async fn fsck(
    shared: &Arc<Shared>,
    request: v1::FsckRequest,
) -> Result<Replies<v1::FsckResponse>, OpError> {
    Ok(Box::pin(ReceiverStream::new(fsck::start(shared, request)?)))
}
