//! What all files of one client share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cairn_proto::InodeId;
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::telemetry::RequestId;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attr::Attr;
use crate::behind::Behind;
use crate::budget::Budget;
use crate::cache::BlockCache;
use crate::config::ClientConfig;
use crate::content::FileContent;
use crate::coordinator::Coordinator;
use crate::error::{ClientError, Result};
use crate::metrics;
use crate::planner::Planner;
use crate::reader::Fetches;
use crate::retry::Patience;
use crate::transport::Transport;
use crate::untold::Untold;
use crate::writer::Writer;

/// How often old dirty data is looked for.
const WRITE_BACK_TICK: Duration = Duration::from_millis(500);
/// After the cluster had no room, writes are stored before they return for this long, so that the
/// error is told at the write and not later.
const NO_SPACE_TIME: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: ClientConfig,
    pub(crate) chunk_size: u64,
    pub(crate) coordinator: Coordinator,
    /// Names that were changed locally.
    pub(crate) behind: Arc<Behind>,
    pub(crate) transport: Transport,
    pub(crate) planner: Arc<Planner>,
    pub(crate) budget: Budget,
    pub(crate) cache: BlockCache,
    pub(crate) fetches: Fetches,
    pub(crate) writer: Writer,
    /// Files with buffered writes; they live until these are stored, held open or not.
    dirty: Mutex<HashMap<InodeId, Arc<FileContent>>>,
    /// Files that somebody holds.
    contents: Mutex<HashMap<InodeId, Weak<FileContent>>>,
    /// What a background store met of files that nobody holds any more.
    pub(crate) untold: Untold,
    no_space: Mutex<Option<Instant>>,
    runtime: Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Engine {
    pub(crate) fn new(config: ClientConfig, coordinator: Coordinator, tasks: TaskTracker) -> Arc<Self> {
        let chunk_size = config.chunk_bytes();
        let budget = Budget::new(config.memory.as_u64());
        Arc::new(Self {
            chunk_size,
            transport: Transport::new(tasks.clone()),
            planner: Planner::new(coordinator.clone(), chunk_size, tasks.clone()),
            cache: BlockCache::new(budget.cache),
            fetches: Fetches::default(),
            writer: Writer::new(),
            behind: Arc::default(),
            dirty: Mutex::default(),
            contents: Mutex::default(),
            untold: Untold::default(),
            no_space: Mutex::default(),
            runtime: Handle::current(),
            stop: CancellationToken::new(),
            tasks,
            budget,
            coordinator,
            config,
        })
    }

    /// Runs work to its end on behalf of the present request; callable from any thread.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tasks.spawn_on(RequestId::current().scope(work), &self.runtime)
    }

    /// Runs work to its end, also when the future that waits for it is dropped.
    pub(crate) async fn complete<T: Send + 'static, E: From<ClientError> + Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        // A task ends early only when the runtime is torn down.
        self.spawn(work).await.unwrap_or(Err(ClientError::Closed.into()))
    }

    pub(crate) fn patience(&self, what: &'static str) -> Patience {
        Patience::new(what, self.config.unreachable)
    }

    pub(crate) fn add_dirty(&self, content: Arc<FileContent>) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).insert(content.inode(), content);
    }

    pub(crate) fn remove_dirty(&self, inode: InodeId) {
        // Dropped after the lock is released.
        let removed = self.dirty.lock().unwrap_or_else(PoisonError::into_inner).remove(&inode);
        drop(removed);
    }

    pub(crate) fn dirty_files(&self) -> Vec<Arc<FileContent>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn contents(&self) -> MutexGuard<'_, HashMap<InodeId, Weak<FileContent>>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one content of a file, and whether it was made here.
    pub(crate) fn content(self: &Arc<Self>, inode: InodeId, attr: &Attr) -> (Arc<FileContent>, bool) {
        let mut contents = self.contents();
        if let Some(content) = contents.get(&inode).and_then(Weak::upgrade) {
            return (content, false);
        }
        let content = FileContent::new(self, attr);
        contents.insert(inode, Arc::downgrade(&content));
        (content, true)
    }

    pub(crate) fn existing_content(&self, inode: InodeId) -> Option<Arc<FileContent>> {
        self.contents().get(&inode).and_then(Weak::upgrade)
    }

    /// Has layouts of files forgotten while all together are too large; not that of the file that is in use.
    pub(crate) fn trim_layouts(&self, used: InodeId) {
        let layouts = &self.budget.layouts;
        if !layouts.is_over() {
            return;
        }
        let others: Vec<_> = self.contents().values().filter_map(Weak::upgrade).collect();
        let others = others.iter().filter(|content| content.inode() != used);
        others.take_while(|_| !layouts.is_low()).for_each(|content| content.forget_layout());
    }

    /// A content has been dropped; another one may have taken its place already.
    pub(crate) fn forget_content(&self, inode: InodeId) {
        let mut contents = self.contents();
        if contents.get(&inode).is_some_and(|content| content.strong_count() == 0) {
            contents.remove(&inode);
        }
    }

    /// Sends all that is buffered on its way.
    pub(crate) fn start_all(&self) {
        for file in self.dirty_files() {
            file.start_flush(false);
        }
    }

    pub(crate) fn had_no_space(&self) {
        *self.no_space.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
    }

    pub(crate) fn lacks_space(&self) -> bool {
        let since = *self.no_space.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < NO_SPACE_TIME)
    }

    /// Background work until the client is closed: stores what has been dirty for long. Waits for nobody.
    pub(crate) async fn tend(self: Arc<Self>) {
        let mut tick = clock::interval(WRITE_BACK_TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stop.cancelled() => return,
            }
            for file in self.dirty_files() {
                if file.dirty_age().is_some_and(|age| age >= self.config.write_back) {
                    file.start_flush(false);
                }
            }
            metrics::memory(self.budget.writes.used(), self.budget.fetches.used(), self.cache.weight());
        }
    }
}
