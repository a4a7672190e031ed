//! Draining slow disks: what a disk holds that has been slow for long goes to the other disks of the node,
//! since a disk that is slow today is often broken tomorrow, and all who read from it wait.
//!
//! A chunk is copied verified, synced at its new place, and only then deleted from the slow disk; it lies in
//! the trash there like any other. A crash in between leaves two sound copies, of which the next pass
//! deletes one. The coordinator is not asked: for it the node holds the chunk all the time. Copies go at
//! most at the rate of the scrub, wait a little for clients, and leave a tenth of each disk free.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::ChunkId;
use cairn_runtime::clock;
use futures::StreamExt;
use tracing::{debug, info, warn};

use crate::disks::Disks;
use crate::metrics;
use crate::node::Node;
use crate::pace::Pace;
use crate::store::{ChunkReader, DiskStore, Purpose, StoreError, verify_on_device};

/// How often slow disks are looked for; and how soon again after a pass that moved nothing.
const INTERVAL: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(60);
/// Chunks that are deleted together: on a slow disk that takes its time.
const PAGE: usize = 64;
/// Chunks that are copied at once; a slow disk has others to serve.
const AT_ONCE: usize = 2;
/// So much of a disk stays free for new chunks: one part of ten.
const FREE_PART: u64 = 10;

/// When, and how fast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainOptions {
    /// How long a disk is slow before it is drained; zero: it never is.
    pub(crate) after: Duration,
    /// Bytes per second, at most.
    pub(crate) rate: u64,
}

/// Runs until the node stops.
pub(crate) async fn run(node: Arc<Node>, options: DrainOptions) {
    if options.after.is_zero() || node.disks.stores().len() < 2 {
        return;
    }
    let pace = Pace::new(options.rate);
    let mut wait = INTERVAL;
    loop {
        tokio::select! {
            () = clock::sleep(wait) => wait = INTERVAL,
            () = node.stop.cancelled() => return,
        }
        for slow in node.disks.stores() {
            if slow.slow_for().is_none_or(|time| time < options.after) {
                continue;
            }
            tokio::select! {
                moved = drain(&node, slow, &pace) => if moved == 0 { wait = PAUSE },
                () = node.stop.cancelled() => return,
            }
        }
    }
}

/// Goes through what a slow disk holds, once, for as long as it is slow and others have room; how many
/// chunks were moved. Nothing can be deleted from a faulty disk, so that one is left alone.
async fn drain(node: &Node, slow: &Arc<DiskStore>, pace: &Pace) -> usize {
    let mut next = 0;
    let mut moved_in_all = 0;
    loop {
        let page = slow.held_from(next, PAGE);
        let targets = targets(&node.disks, slow);
        let Some((last, _)) = page.last() else { break };
        if targets.is_empty() || !slow.is_slow() || !slow.health().fault.is_empty() {
            break;
        }
        next = last.get() + 1; // ids stay below 2^63
        let mut copied = Vec::new();
        let copies = page.into_iter().filter(|(_, found)| found.is_sound()).map(|(chunk, found)| {
            let targets = &targets;
            async move {
                pace.take(found.length.into()).await;
                node.give_way().await;
                (chunk, copy(slow, targets, chunk).await)
            }
        });
        let mut copies = futures::stream::iter(copies).buffer_unordered(AT_ONCE);
        while let Some((chunk, result)) = copies.next().await {
            match result {
                Ok(()) => copied.push(chunk),
                Err(error) => debug!(%chunk, %error, "a chunk stays on a slow disk for now"),
            }
        }
        moved_in_all += remove(slow, copied).await;
        tokio::task::yield_now().await;
    }
    if moved_in_all > 0 {
        info!(disk = slow.name(), chunks = moved_in_all, "chunks of a slow disk went to the other disks");
    }
    moved_in_all
}

/// The disks that can take chunks of a slow one, the emptiest first.
fn targets(disks: &Disks, slow: &Arc<DiskStore>) -> Vec<Arc<DiskStore>> {
    let others = disks.stores().iter().filter(|store| !Arc::ptr_eq(store, slow) && !store.is_slow());
    let mut roomy: Vec<_> = others
        .filter_map(|store| {
            let health = store.health();
            let room = health.capacity.saturating_sub(health.used);
            (health.writable && room > health.capacity / FREE_PART).then_some((room, store))
        })
        .collect();
    roomy.sort_by_key(|(room, _)| std::cmp::Reverse(*room));
    roomy.into_iter().map(|(_, store)| Arc::clone(store)).collect()
}

/// Makes another disk hold a chunk, durably.
async fn copy(slow: &Arc<DiskStore>, targets: &[Arc<DiskStore>], chunk: ChunkId) -> Result<(), StoreError> {
    let mut source = slow.reader(chunk)?;
    source.prepare().await?;
    for target in targets {
        let copied = match target.find(chunk).is_some_and(|found| found.is_sound()) {
            true => check(target, chunk, source.whole_crc()).await,
            false => write(target, chunk, &source).await,
        };
        match copied {
            Ok(()) => target.synced(chunk).await?,
            Err(StoreError::NoSpace(_) | StoreError::Faulty { .. }) => continue,
            Err(error) => return Err(error),
        }
        if !slow.find(chunk).is_some_and(|found| found.is_sound()) {
            // Deleted meanwhile, and so is the copy.
            target.run(move |target| target.delete(&[chunk])).await?;
            return Err(StoreError::NotFound(chunk));
        }
        return Ok(());
    }
    Err(StoreError::NoSpace(source.length()))
}

/// A copy that an earlier pass has left has to be the same.
async fn check(target: &Arc<DiskStore>, chunk: ChunkId, crc: u32) -> Result<(), StoreError> {
    let reader = target.reader(chunk)?;
    let found = target.run(move |_| verify_on_device(reader)).await??;
    if found == crc {
        return Ok(());
    }
    warn!(%chunk, disk = target.name(), "two disks hold different bytes of one chunk; both stay");
    Err(StoreError::Exists(chunk))
}

async fn write(target: &Arc<DiskStore>, chunk: ChunkId, source: &ChunkReader) -> Result<(), StoreError> {
    let length = source.length();
    // At most 64 MiB, as its record says.
    let mut writer =
        target.begin(chunk, source.set(), u32::try_from(length).unwrap_or(u32::MAX), Purpose::Replacement)?;
    while writer.written() < length {
        let blocks = source.read(writer.written(), length).await?;
        writer.write(&blocks.data, &blocks.crcs)?;
    }
    writer.finish()
}

/// Deletes from a slow disk what others hold; how many chunks that were.
async fn remove(slow: &Arc<DiskStore>, chunks: Vec<ChunkId>) -> usize {
    let count = chunks.len();
    if count == 0 {
        return 0;
    }
    match slow.run(move |slow| slow.delete(&chunks)).await {
        Ok(failed) => {
            if let Some((chunk, error)) = failed.first() {
                debug!(%chunk, %error, "a chunk stays on a slow disk as well");
            }
            let moved = count - failed.len();
            ::metrics::counter!(metrics::DRAINED).increment(moved as u64);
            moved
        }
        Err(error) => {
            debug!(%error, "chunks stay on a slow disk as well");
            0
        }
    }
}

#[cfg(test)]
#[path = "drain/tests.rs"]
mod tests;
