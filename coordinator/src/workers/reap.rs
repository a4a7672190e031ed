//! Removes what large files have lost, and files that nobody holds any more: a bounded number of rows in each step,
//! between which other jobs get their turn.

use std::sync::Arc;
use std::time::Duration;

use cairn_runtime::clock;

use super::{Next, Progress, Worker};
use crate::error::OpError;
use crate::ops;
use crate::service::Shared;

/// How often it is looked whether there is something to remove.
const PAUSE: Duration = Duration::from_millis(500);

/// The worker.
#[derive(Debug, Default)]
pub(crate) struct Reap {
    busy: bool,
}

impl Worker for Reap {
    const NAME: &'static str = "reap";

    async fn step(&mut self, shared: &Arc<Shared>, progress: &Progress) -> Result<Next, OpError> {
        let began = clock::now();
        let more = shared.executor.run(ops::remove::go_on).await?;
        if more && !self.busy {
            progress.begin(0);
        }
        if self.busy {
            progress.add(1, 0);
        }
        if !more {
            progress.finish();
        }
        self.busy = more;
        // As long idle as busy: users come first.
        Ok(if more { Next::Throttled(began.elapsed()) } else { Next::Idle(PAUSE) })
    }
}
