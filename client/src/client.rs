//! One client: everything that the faces share.

use std::sync::Arc;

use cairn_proto::InodeId;
use cairn_runtime::shutdown::Shutdown;

use crate::attr::Attr;
use crate::config::ClientConfig;
use crate::content::FileContent;
use crate::coordinator::Coordinator;
use crate::error::{ClientError, Result};

/// A session with the cluster, its caches and pipelines.
pub struct Client {
    coordinator: Coordinator,
}

impl Client {
    /// Opens a session. `description` (host, pid, mountpoint) is shown in `cairn status`.
    pub async fn connect(config: ClientConfig, description: String, shutdown: &Shutdown) -> Result<Arc<Self>> {
        let _ = (config, description, shutdown);
        Err(ClientError::Closed)
    }

    /// Stores everything that is still buffered and ends the session.
    ///
    /// The first error of data that could not be stored.
    pub async fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Names, attributes and everything else about metadata.
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The settings in use.
    pub fn config(&self) -> &ClientConfig {
        unreachable!()
    }

    /// The content of one file. All callers share it while any of them holds it.
    pub fn content(self: &Arc<Self>, inode: InodeId, attr: &Attr) -> Arc<FileContent> {
        let _ = (inode, attr);
        unreachable!()
    }

    /// The content of one file, when somebody holds it or it has buffered writes.
    pub fn existing_content(&self, inode: InodeId) -> Option<Arc<FileContent>> {
        let _ = inode;
        None
    }

    /// Stores and commits all buffered writes of all files; with `durable` as `fsync` does.
    pub async fn flush_all(&self, durable: bool) -> Result<()> {
        let _ = durable;
        Ok(())
    }
}
