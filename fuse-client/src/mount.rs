//! Mounting and unmounting.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_client::Client;
use cairn_client::vfs::Vfs;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::{clock, threads};
use fuser::{Config, MountOption, Session, SessionACL};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::MountConfig;
use crate::adapter::{Adapter, Requests};
use crate::mountpoint::{self, Covered, MountError};
use crate::pages::Pages;

/// A mounted directory must answer within this.
const USABLE_WITHIN: Duration = Duration::from_secs(30);
/// An unmount waits at most this long for the cluster to take what is buffered.
const FLUSH_WITHIN: Duration = Duration::from_secs(120);
/// How often an unmount looks whether the last program has left.
const BUSY_LOOK: Duration = Duration::from_millis(100);
/// After the unmount the session threads end within this.
const SESSION_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// A usable mount. Dropping it detaches the directory without waiting for anything; call
/// [`Self::unmount`] instead.
pub struct Mounted {
    client: Arc<Client>,
    path: PathBuf,
    grace: Duration,
    requests: Requests,
    ended: watch::Receiver<bool>,
    over: bool,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Mounts the cluster of `client`; returns when the directory is usable.
///
/// Works as root, and as an ordinary user with `fusermount3`. When `shutdown` is requested
/// meanwhile, nothing stays mounted; afterwards it is the caller's part to call [`Mounted::unmount`].
pub async fn mount(
    client: Arc<Client>,
    config: MountConfig,
    shutdown: &Shutdown,
) -> Result<Mounted, MountError> {
    if (config.suid || config.dev) && !rustix::process::geteuid().is_root() {
        return Err(MountError::Privileged);
    }
    crate::metrics::register();
    let (wanted, nonempty) = (config.mountpoint.clone(), config.nonempty);
    let prepare = on_thread(move || mountpoint::prepare(&wanted, nonempty));
    let path = in_time(&config.mountpoint, prepare).await???;
    // What mount(8) and df(1) show: where the files come from, and which directory of the cluster it is.
    let source = format!("{}/", client.config().coordinator);
    let vfs = Vfs::new(Arc::clone(&client), config.attr_timeout);
    let adapter = Adapter::new(Arc::clone(&vfs), Runtime::current());
    let unreadable = |source| MountError::Unreadable { path: path.clone(), source };
    vfs.attach(Arc::new(Pages::start(adapter.notifications()).map_err(unreadable)?));
    let requests = adapter.requests();
    let ended = start_session(adapter, source, path.clone(), &config).await?;
    // From here on an early return detaches the directory.
    let mounted = Mounted { client, path, grace: config.unmount_grace, requests, ended, over: false };
    mounted.usable(&config, shutdown).await?;
    info!(path = %mounted.path.display(), "mounted");
    Ok(mounted)
}

/// Mounts and starts the session threads; the receiver turns true when they have ended.
async fn start_session(
    adapter: Adapter,
    source: String,
    path: PathBuf,
    config: &MountConfig,
) -> Result<watch::Receiver<bool>, MountError> {
    let options = session_config(config, source);
    let protect = config.protect_mountpoint;
    let (ended, receiver) = watch::channel(false);
    let (started, result) = oneshot::channel();
    let spawned = threads::spawn("fuse-session", move || {
        let covered = Covered::open(&path);
        let notifications = adapter.notifications();
        let session = match Session::new(adapter, &path, &options) {
            Ok(session) => session,
            Err(error) => {
                let _ = started.send(Err(mountpoint::explain(&path, error)));
                return;
            }
        };
        let _ = notifications.set(session.notifier());
        // Not held any longer: it would look as if this process used the mount.
        let covered = if protect { covered.and_then(|covered| covered.protect()) } else { Ok(()) };
        if let Err(error) = covered {
            warn!(path = %path.display(), %error, "the covered directory can not be protected");
        }
        let _ = started.send(Ok(()));
        if let Err(error) = session.run() {
            warn!(%error, "the session with the kernel ended");
        }
        let _ = ended.send(true);
    });
    if let Err(source) = spawned {
        return Err(MountError::Unreadable { path: config.mountpoint.clone(), source });
    }
    let result = in_time(&config.mountpoint, result).await?;
    result.map_err(|_| MountError::Stopped)??;
    Ok(receiver)
}

/// Waits for what the kernel or its helper does with `path`, which may hang (a dead server there).
async fn in_time<T>(path: &Path, work: impl Future<Output = T>) -> Result<T, MountError> {
    let late = |_| MountError::NotAnswering { path: path.to_owned(), seconds: USABLE_WITHIN.as_secs() };
    clock::timeout(USABLE_WITHIN, work).await.map_err(late)
}

fn session_config(config: &MountConfig, source: String) -> Config {
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(source),
        // Not `MountOption::Subtype`, which is passed over when root mounts: the kernel itself takes it.
        MountOption::CUSTOM("subtype=cairn".into()),
        MountOption::DefaultPermissions,
        // Reading changes no time of access, and this says so.
        MountOption::NoAtime,
    ];
    let switches = [
        (config.read_only, MountOption::RO),
        (config.suid, MountOption::Suid),
        (config.dev, MountOption::Dev),
    ];
    options.mount_options.extend(switches.into_iter().filter_map(|(on, option)| on.then_some(option)));
    options.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    options.n_threads = Some(config.threads);
    options.clone_fd = config.threads > 1;
    options
}

/// Runs what blocks on a thread of its own: a pool's would be lost if the kernel never answered.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MountError> {
    let (answer, result) = oneshot::channel();
    threads::spawn("fuse-mount", move || {
        let _ = answer.send(work());
    })
    .map_err(|source| MountError::Unreadable { path: PathBuf::new(), source })?;
    result.await.map_err(|_| MountError::Stopped)
}

impl Mounted {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn usable(&self, config: &MountConfig, shutdown: &Shutdown) -> Result<(), MountError> {
        let (path, read_ahead) = (self.path.clone(), config.read_ahead.as_u64());
        let check = on_thread(move || {
            mountpoint::answers(&path)?;
            mountpoint::raise_read_ahead(&path, read_ahead);
            Ok(())
        });
        tokio::select! {
            checked = in_time(&self.path, check) => {
                checked??.map_err(|source| MountError::Unreadable { path: self.path.clone(), source })
            }
            () = shutdown.requested() => Err(MountError::Stopped),
        }
    }

    /// Resolves when the directory is no longer mounted, whoever did that.
    pub async fn unmounted(&self) {
        // An error: the session thread is gone, and with it the mount.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// How many requests programs have made so far; it stands still while nobody does anything there.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Unmounts when no program uses the directory; `false`: one does.
    pub async fn try_leave(&self) -> Result<bool, MountError> {
        let path = self.path.clone();
        on_thread(move || mountpoint::try_unmount(&path)).await?
    }

    /// Stores what is buffered, unmounts, and stores what the kernel handed over last: on success
    /// every byte that was written is durable in the cluster. A mount that programs still use after
    /// the grace is detached from its place; what they write later goes on to be stored as long as
    /// this process lives.
    pub async fn unmount(mut self) -> Result<(), MountError> {
        if !*self.ended.borrow() {
            self.flush().await?;
            self.leave().await?;
        }
        self.over = true;
        if clock::timeout(SESSION_ENDS_WITHIN, self.unmounted()).await.is_err() {
            warn!(path = %self.path.display(), "programs still hold files of the detached mount open");
        }
        self.flush().await?;
        info!(path = %self.path.display(), "unmounted, everything is stored");
        Ok(())
    }

    async fn flush(&self) -> Result<(), MountError> {
        match clock::timeout(FLUSH_WITHIN, self.client.flush_all(true)).await {
            Ok(result) => result.map_err(MountError::Flush),
            Err(_) => Err(MountError::FlushTime(FLUSH_WITHIN.as_secs())),
        }
    }

    async fn leave(&self) -> Result<(), MountError> {
        let until = clock::now() + self.grace;
        loop {
            if self.try_leave().await? {
                return Ok(());
            }
            if clock::now() >= until {
                warn!(path = %self.path.display(), "still in use: detached from its place");
                let path = self.path.clone();
                return on_thread(move || mountpoint::detach(&path)).await?;
            }
            clock::sleep(BUSY_LOOK).await;
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.over || *self.ended.borrow() || !mountpoint::is_ours(&self.path) {
            return;
        }
        if let Err(error) = mountpoint::detach(&self.path) {
            warn!(path = %self.path.display(), %error, "left mounted");
        }
    }
}
