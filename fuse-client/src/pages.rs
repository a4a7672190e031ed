//! The kernel's page cache, as the vfs asks for it: by notifications.
//!
//! A notification blocks until the kernel has done what it says, and the kernel may wait for answers of this process
//! meanwhile. So they are sent by threads of their own.

use std::io;
use std::time::Duration;

use cairn_client::vfs::{Done, PageCache};
use cairn_proto::{ByteRange, InodeId};
use cairn_runtime::clock;
use cairn_runtime::threads::Pool;
use fuser::{INodeNo, Notifier};

use crate::adapter::{Notifications, forget_attributes};

/// Notifications under way at once: each may wait for a cluster that is away.
const THREADS: usize = 8;
/// More than the requests that the kernel lets wait in the background.
const QUEUE: usize = 256;
/// How long a notification waits for room in the queue before it tries again.
const RETRY: Duration = Duration::from_millis(10);
/// Zeros for one page of any architecture.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

pub(crate) struct Pages {
    notifier: Notifications,
    threads: Pool,
}

impl Pages {
    pub(crate) fn start(notifier: Notifications) -> io::Result<Self> {
        Ok(Self { notifier, threads: Pool::start("fuse-notify", THREADS, QUEUE)? })
    }

    fn notify(
        &self,
        inode: InodeId,
        what: &'static str,
        send: impl Fn(&Notifier, INodeNo) -> io::Result<()> + Clone + Send + 'static,
    ) -> Done {
        let (notifier, threads) = (Notifications::clone(&self.notifier), self.threads.clone());
        Box::pin(async move {
            loop {
                let (notifier, send) = (Notifications::clone(&notifier), send.clone());
                let work =
                    move || notifier.get().map_or(Ok(()), |notifier| send(notifier, INodeNo(inode.get())));
                match threads.run(work).await {
                    Ok(Ok(())) => return,
                    // Pages that are in use at this moment: what was dirty of them has been written.
                    Ok(Err(error)) => return tracing::debug!(%inode, what, %error, "the kernel kept pages"),
                    Err(_busy) => clock::sleep(RETRY).await,
                }
            }
        })
    }
}

impl PageCache for Pages {
    fn give_up(&self, inode: InodeId, range: ByteRange) -> Done {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (start, len) = (number(range.start()), number(range.len()));
        self.notify(inode, "give up", move |notifier, number| notifier.inval_inode(number, start, len))
    }

    fn zero(&self, inode: InodeId, range: ByteRange) -> Done {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX).min(ZEROS.len());
        self.notify(inode, "zero", move |notifier, number| {
            notifier.store(number, range.start(), &ZEROS[..len])
        })
    }

    fn page_size(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    fn forget_attributes(&self, inode: InodeId) {
        forget_attributes(&self.notifier, INodeNo(inode.get()));
    }
}
