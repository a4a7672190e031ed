//! The worker that empties the trash.

use std::sync::Arc;
use std::time::Duration;

use cairn_runtime::clock;
use tracing::debug;

use crate::node::Node;

/// How often the trash is looked at; what it costs when there is nothing to do is a lock for each disk.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut tick = clock::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = node.stop.cancelled() => return,
        }
        if let Err(error) = node.disks.empty_trash().await {
            debug!(%error, "the trash is emptied later");
        }
    }
}
