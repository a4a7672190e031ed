//! One client: everything that the faces share.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::InodeId;
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock;
use cairn_runtime::config::Validate;
use cairn_runtime::shutdown::Shutdown;
use futures::future::BoxFuture;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::attr::Attr;
use crate::behind::Behind;
use crate::config::ClientConfig;
use crate::content::FileContent;
use crate::coordinator::{self, Coordinator};
use crate::engine::Engine;
use crate::error::{ClientError, Result};
use crate::map::MapCell;
use crate::session::Session;

/// Background tasks are awaited this long at the end.
const END_TIME: Duration = Duration::from_secs(5);

/// A session with the cluster, its caches and pipelines.
#[derive(Debug)]
pub struct Client {
    engine: Arc<Engine>,
}

impl Client {
    /// Opens a session. `description` (host, pid, mountpoint) is shown in `cairn status`.
    ///
    /// Fails when the coordinator can not be reached within 15 seconds. The background tasks are
    /// part of `shutdown`; they end with [`Self::close`], not by its request, since what is
    /// buffered still has to be stored then.
    ///
    /// Boxed: the code of a future is made where it is polled by its type, and sessions and pipelines would be compiled
    /// again in each crate that opens one.
    pub fn connect(
        config: ClientConfig,
        description: String,
        shutdown: &Shutdown,
    ) -> BoxFuture<'_, Result<Arc<Self>>> {
        Box::pin(Self::open(config, description, shutdown))
    }

    async fn open(config: ClientConfig, description: String, shutdown: &Shutdown) -> Result<Arc<Self>> {
        config.validate()?;
        crate::metrics::describe();
        let map = Arc::new(MapCell::new());
        let cluster_clock = Arc::default();
        let rpc = coordinator::dial(&config.coordinator, &cluster_clock)?;
        let session =
            Session::new(rpc.clone(), description, config.unreachable, Arc::clone(&map), cluster_clock);
        let life_line = session.connect().await?;
        let tasks = TaskTracker::new();
        let coordinator = Coordinator::new(rpc, session, map, config.unreachable, tasks.clone());
        let engine = Engine::new(config, coordinator, tasks);
        shutdown.spawn(life_line);
        shutdown.spawn(Arc::clone(&engine).tend());
        Ok(Arc::new(Self { engine }))
    }

    /// Stores everything that is still buffered and ends the session. The first error of data that
    /// could not be stored.
    pub async fn close(&self) -> Result<()> {
        let flushed = self.flush_all(false).await;
        self.engine.coordinator.session().end().await;
        self.engine.stop.cancel();
        self.engine.transport.close();
        self.engine.tasks.close();
        if clock::timeout(END_TIME, self.engine.tasks.wait()).await.is_err() {
            warn!(tasks = self.engine.tasks.len(), "background work of the client did not end in time");
        }
        flushed
    }

    /// Whether the coordinator is heard; else a sentence since when it is not, and why.
    pub fn connected(&self) -> std::result::Result<(), String> {
        self.engine.coordinator.session().connected()
    }

    /// Names, attributes and everything else about metadata.
    pub fn coordinator(&self) -> &Coordinator {
        &self.engine.coordinator
    }

    /// Changes of names that were made locally and are on their way.
    pub(crate) fn behind(&self) -> &Arc<Behind> {
        &self.engine.behind
    }

    /// What all files of this client share.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The settings in use.
    pub fn config(&self) -> &ClientConfig {
        &self.engine.config
    }

    /// The content of one file. All callers share it while any of them holds it, or while it has
    /// buffered writes. `attr` is adopted when it is newer than what is known.
    pub fn content(self: &Arc<Self>, inode: InodeId, attr: &Attr) -> Arc<FileContent> {
        let (content, is_new) = self.engine.content(inode, attr);
        if !is_new && !planted(Bug::OpenKeepsOldLayout) {
            content.refresh(attr, None);
        }
        content
    }

    /// The content of one file, when somebody holds it or it has buffered writes.
    pub fn existing_content(&self, inode: InodeId) -> Option<Arc<FileContent>> {
        self.engine.existing_content(inode)
    }

    /// How much memory what may take.
    pub(crate) fn budget(&self) -> &crate::budget::Budget {
        &self.engine.budget
    }

    /// The file is gone: nobody needs to be told of its errors any more.
    pub(crate) fn forget_untold(&self, inode: InodeId) {
        drop(self.engine.untold.take(inode));
    }

    /// Stores and commits all buffered writes of all files, and applies all changes of names; with `durable` as
    /// `fsync` does. The first error that any of them met.
    pub fn flush_all(&self, durable: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.flush_each(durable))
    }

    async fn flush_each(&self, durable: bool) -> Result<()> {
        let files = self.engine.dirty_files();
        files.iter().for_each(|file| drop(file.start_flush(durable)));
        let mut first: Option<ClientError> = None;
        for file in files {
            if let Err(error) = file.flush().await {
                first.get_or_insert(error);
            }
        }
        if let Err(error) = self.engine.behind.all_applied().await {
            first.get_or_insert(error);
        }
        if durable && let Err(error) = self.engine.coordinator.sync_all().await {
            first.get_or_insert(error);
        }
        first.map_or(Ok(()), Err)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Without `close` the session ends by expiry, and what was buffered is stored as long as
        // the process lives.
        self.engine.coordinator.session().abandon();
        self.engine.stop.cancel();
        self.engine.transport.close();
        self.engine.tasks.close();
    }
}
