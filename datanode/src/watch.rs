//! The worker that looks how the disks are.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cairn_runtime::clock;
use tracing::debug;

use crate::identity::IDENTITY;
use crate::node::Node;

/// How often each disk is looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Runs until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut tick = clock::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = node.stop.cancelled() => return,
        }
        if let Err(error) = node.disks.check(Path::new(IDENTITY)).await {
            debug!(%error, "the disks are looked at later");
        }
    }
}
