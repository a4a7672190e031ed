//! The life of a request that can not be answered at once.
//!
//! `fuser` does not deliver the kernel's interrupts, and a caller whose request has been read
//! waits for the answer whatever signal comes. So a request that takes long looks for itself
//! whether a signal waits for its caller, and gives up with EINTR: Ctrl-C and `kill -9` work while
//! the cluster is away.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use cairn_client::vfs;
use cairn_proto::ErrorKind;
use cairn_runtime::clock::{self, Instant};
use fuser::Errno;
use tracing::{debug, info, warn};

use crate::metrics::{self, Op};
use crate::status::Status;

/// A request younger than this does not look for signals.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// And then looks this often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A wait of this long is logged.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// One request of the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) op: Op,
    pub(crate) pid: u32,
    /// The inode that it is about, for logs.
    pub(crate) inode: u64,
    pub(crate) started: Instant,
}

impl Asked {
    /// Waits for `work`, or until a signal asks the caller to stop. Dropping `work` is safe: what it
    /// has sent is carried through in the background.
    pub(crate) async fn finish<T>(self, work: impl Future<Output = vfs::Result<T>>) -> Result<T, Errno> {
        let mut work = pin!(work);
        let mut wait = FIRST_LOOK;
        let mut logged = false;
        loop {
            match clock::timeout(wait, &mut work).await {
                Ok(Ok(value)) => {
                    if logged {
                        info!(op = self.op.label(), inode = self.inode, after = ?self.started.elapsed(), "goes on");
                    }
                    return Ok(value);
                }
                Ok(Err(error)) => return Err(self.failed(&error)),
                Err(_) => {}
            }
            wait = LOOK_AGAIN;
            if Status::of(self.pid).is_some_and(|status| status.wants_out()) {
                metrics::interrupted();
                self.op.failed(ErrorKind::Interrupted);
                info!(op = self.op.label(), inode = self.inode, pid = self.pid, "given up: a signal waits");
                return Err(errno(ErrorKind::Interrupted));
            }
            if !logged && self.started.elapsed() > LONG_WAIT {
                logged = true;
                warn!(
                    op = self.op.label(),
                    inode = self.inode,
                    pid = self.pid,
                    "has waited for the cluster for 5 s"
                );
            }
        }
    }

    /// The errno of an error; errors that no program expects are logged with their sentence.
    pub(crate) fn failed(self, error: &vfs::VfsError) -> Errno {
        self.op.failed(error.kind());
        let errno = errno(error.kind());
        if errno.code() == libc::EIO {
            warn!(op = self.op.label(), inode = self.inode, pid = self.pid, %error, kind = ?error.kind(), "failed");
        } else {
            debug!(op = self.op.label(), inode = self.inode, %error, "refused");
        }
        errno
    }
}

/// The errno of a kind of error.
pub(crate) fn errno(kind: ErrorKind) -> Errno {
    Errno::from_i32(kind.errno())
}
