//! One request for consecutive blocks of a chunk: from the best replica, from another when that one
//! fails, is late or sends what does not fit its checksums.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::checksum::verify_blocks;
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{ChunkId, ErrorKind, v1};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock;
use futures::future::{Either, select};
use std::pin::pin;
use tokio::sync::watch;
use tonic::Streaming;
use tracing::warn;

use super::{Fetches, blocks_of};
use crate::engine::Engine;
use crate::error::{ClientError, Result};
use crate::layout::ChunkInfo;
use crate::metrics;
use crate::retry::Patience;
use crate::transport::{Health, Link};

/// A replica that sends nothing for this long is left for another.
const FRAME_TIME: Duration = Duration::from_secs(3);
/// One fetch tries all replicas this long; whoever waits for it decides whether to begin again.
const FETCH_TIME: Duration = Duration::from_secs(6);
/// No second replica is asked earlier than this: it would not help.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// One request in so many may be sent twice.
const HEDGE_SHARE: u64 = 20;

#[derive(Debug, Default)]
struct Outcome {
    ready: u32,
    error: Option<ClientError>,
}

/// A fetch of `count` blocks from `first`, which arrive in order.
#[derive(Debug)]
pub(crate) struct Fetch {
    chunk: ChunkId,
    info: ChunkInfo,
    first: u32,
    count: u32,
    blocks: Mutex<Vec<Bytes>>,
    outcome: watch::Sender<Outcome>,
}

impl Fetch {
    pub(super) fn new(chunk: ChunkId, info: ChunkInfo, first: u32, count: u32) -> Arc<Self> {
        let outcome = watch::Sender::new(Outcome::default());
        Arc::new(Self { chunk, info, first, count, blocks: Mutex::default(), outcome })
    }

    pub(super) fn chunk(&self) -> ChunkId {
        self.chunk
    }

    pub(super) fn range(&self) -> Range<u32> {
        self.first..self.first + self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.count as usize * BLOCK_SIZE
    }

    /// Waits for one of the blocks.
    pub(super) async fn wait(&self, block: u32) -> Result<Bytes> {
        let index = block - self.first;
        let mut outcome = self.outcome.subscribe();
        let error = match outcome.wait_for(|now| now.ready > index || now.error.is_some()).await {
            Ok(now) if now.ready > index => None,
            Ok(now) => now.error.clone(),
            Err(_) => None,
        };
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        match (blocks.get(index as usize), error) {
            (Some(data), _) => Ok(data.clone()),
            (None, Some(error)) => Err(error),
            (None, None) => Err(ClientError::Closed),
        }
    }

    /// Brings all blocks, or the error why not.
    pub(super) async fn run(&self, engine: &Engine) {
        if let Err(error) = self.fetch(engine).await {
            self.outcome.send_modify(|outcome| outcome.error = Some(error));
        }
    }

    async fn fetch(&self, engine: &Engine) -> Result<()> {
        let mut patience = Patience::limited("read a chunk", Some(FETCH_TIME));
        let mut bad = HashSet::new();
        let mut last = None;
        loop {
            let map = engine.coordinator.map().get();
            let set = map.sets.get(&self.info.set);
            let members = set.map(|set| set.members.clone()).unwrap_or_default();
            // Those said to lack it are asked when it is all of them: one may have got it since, and if not,
            // the chunk is lost, which nobody should wait for.
            let (missing, holders): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|node| self.info.missing.contains(node));
            let asked = if holders.is_empty() { missing } else { holders };
            let usable = asked.into_iter().filter(|node| !bad.contains(node));
            let mut replicas = engine.transport.rank(&map, usable, Health::cost);
            // New members may not have older chunks yet: they are asked when nobody else answers.
            replicas.sort_by_key(|replica| set.is_some_and(|set| set.backfilling.contains(&replica.node)));
            for (index, replica) in replicas.iter().enumerate() {
                match self.take_from(engine, replica, replicas.get(index + 1)).await {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        metrics::fetch_failed_over();
                        if is_bad_copy(error.kind()) {
                            warn!(chunk = %self.chunk, node = %replica.node, %error, "a replica has no good copy");
                            bad.insert(replica.node);
                        } else {
                            replica.health.failed();
                        }
                        last = Some(error);
                    }
                }
            }
            match last.take() {
                // Every copy is bad: nothing gets better by waiting.
                Some(error) if replicas.iter().all(|replica| bad.contains(&replica.node)) => {
                    return Err(error);
                }
                Some(error) => patience.pause(&error).await?,
                None => {
                    let message = format!("no member of replica set {} is known", self.info.set);
                    patience.pause(&ClientError::new(ErrorKind::Unavailable, message)).await?;
                }
            }
        }
    }

    /// Takes what is still missing from one replica, or from `other` when that one is quicker.
    async fn take_from(&self, engine: &Engine, replica: &Arc<Link>, other: Option<&Arc<Link>>) -> Result<()> {
        engine.fetches.requests.fetch_add(1, Ordering::Relaxed);
        let (link, mut frames, mut frame) = match other.filter(|_| may_hedge(&engine.fetches)) {
            Some(other) => self.first_frame_of_either(engine, replica, other).await?,
            None => self.first_frame(replica).await?,
        };
        let _transfer = link.health.begin();
        loop {
            self.take(engine, frame)?;
            if self.ready() == self.count {
                return Ok(());
            }
            frame = next_frame(&mut frames).await?;
        }
    }

    async fn first_frame_of_either(
        &self,
        engine: &Engine,
        one: &Arc<Link>,
        other: &Arc<Link>,
    ) -> Result<First> {
        let first = pin!(self.first_frame(one));
        let late = one.health.late().unwrap_or(FRAME_TIME).max(HEDGE_MIN);
        let first = match select(first, pin!(clock::sleep(late))).await {
            Either::Left((result, _)) => return result,
            Either::Right(((), first)) => first,
        };
        engine.fetches.hedges.fetch_add(1, Ordering::Relaxed);
        metrics::fetch_hedged();
        match select(first, pin!(self.first_frame(other))).await {
            Either::Left((Ok(first), _)) | Either::Right((Ok(first), _)) => Ok(first),
            Either::Left((Err(_), second)) => second.await,
            Either::Right((Err(_), first)) => first.await,
        }
    }

    async fn first_frame(&self, link: &Arc<Link>) -> Result<First> {
        let started = clock::now();
        let _transfer = link.health.begin();
        let offset = self.next_offset();
        let end = (u64::from(self.first + self.count) * BLOCK_SIZE as u64).min(self.info.length);
        let request = v1::RetrieveChunkRequest {
            chunk: self.chunk.get(),
            set: self.info.set.get(),
            epoch: 0, // chunks never change
            offset,
            length: end.saturating_sub(offset).max(1),
            token: Bytes::new(),
        };
        let answer = async {
            let mut frames = link.retrieve(request).await?;
            let frame = next_frame(&mut frames).await?;
            Ok((Arc::clone(link), frames, frame))
        };
        let first = clock::timeout(FRAME_TIME, answer).await.unwrap_or_else(|_| Err(silent()));
        if first.is_ok() {
            link.health.answered(started.elapsed());
        }
        first
    }

    /// Verifies a frame and hands out its blocks.
    fn take(&self, engine: &Engine, frame: v1::RetrieveFrame) -> Result<()> {
        let bad = |what: String| ClientError::protocol("a datanode", what);
        let expected = self.next_offset();
        let end = frame.offset.saturating_add(frame.data.len() as u64);
        let whole = frame.data.len().is_multiple_of(BLOCK_SIZE) || end == self.info.length;
        if frame.offset != expected || frame.data.is_empty() || end > self.info.length || !whole {
            return Err(bad(format!(
                "bytes {}..{end} of chunk {} after {expected}",
                frame.offset, self.chunk
            )));
        }
        if !planted(Bug::ChecksumSkipped) {
            verify_blocks(&frame.data, &frame.crc32c).map_err(|error| {
                ClientError::new(ErrorKind::Corrupt, format!("chunk {}: {error}", self.chunk))
            })?;
        }
        metrics::fetched(frame.data.len());
        let mut ready = self.ready();
        {
            let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            for block in blocks_of(&frame.data).take((self.count - ready) as usize) {
                blocks.push(engine.cache.insert(self.chunk, self.first + ready, &block));
                ready += 1;
            }
        }
        self.outcome.send_modify(|outcome| outcome.ready = ready);
        Ok(())
    }

    fn ready(&self) -> u32 {
        self.outcome.borrow().ready
    }

    fn next_offset(&self) -> u64 {
        u64::from(self.first + self.ready()) * BLOCK_SIZE as u64
    }
}

type First = (Arc<Link>, Streaming<v1::RetrieveFrame>, v1::RetrieveFrame);

async fn next_frame(frames: &mut Streaming<v1::RetrieveFrame>) -> Result<v1::RetrieveFrame> {
    let frame = clock::timeout(FRAME_TIME, frames.message()).await.map_err(|_| silent())??;
    frame.ok_or_else(|| ClientError::protocol("a datanode", "fewer bytes than were asked for"))
}

fn silent() -> ClientError {
    ClientError::new(ErrorKind::TimedOut, format!("the datanode sent nothing for {FRAME_TIME:?}"))
}

/// This copy will not get better; others may be good.
fn is_bad_copy(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Corrupt
            | ErrorKind::ChecksumMismatch
            | ErrorKind::ChunkNotFound
            | ErrorKind::Protocol
            | ErrorKind::InvalidArgument
            | ErrorKind::Io
            | ErrorKind::WrongCluster
    )
}

/// Keeps the second requests below their share of all.
fn may_hedge(fetches: &Fetches) -> bool {
    let requests = fetches.requests.load(Ordering::Relaxed);
    fetches.hedges.load(Ordering::Relaxed) * HEDGE_SHARE < requests
}
