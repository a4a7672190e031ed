//! `cairn put` and `cairn get`: trees of files, several at once, resumable, verified.
//!
//! One walker goes through the source, makes the directories and hands each file to one of a fixed
//! number of workers through a bounded queue. A worker writes to a temporary name and renames when
//! the file is complete and verified. A file whose size and time of change are equal on both sides
//! is complete, so that running again resumes.
//!
//! A tree that is copied to a new name has the extended attribute [`SOURCE_XATTR`] at its top; by that,
//! running again finds that the directory there is the copy and not one to copy *into*.

use std::sync::Arc;
use std::time::Duration;

use cairn_client::Client;
use cairn_runtime::clock;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::threads::Pool;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::args::{GetArgs, PutArgs, TransferOptions};
use crate::cluster::Cluster;
use crate::commands::{TRANSFER_PATIENCE, Tool, close_within};
use crate::failure::{Context, Exit, Failure};
use crate::output::Output;
use crate::remote::Remote;

mod checksum;
mod get;
mod get_file;
mod progress;
mod put;
mod put_file;

use progress::Progress;

/// Names the source of a copied tree.
const SOURCE_XATTR: &str = "user.cairn.source";
/// Files that are found but not yet taken by a worker.
const QUEUE: usize = 16_384;
/// Bytes that are read or written at once.
const PIECE: u64 = 1 << 20;
/// Threads for local files.
const LOCAL_THREADS: usize = 4;
/// A second session for reading back, so that nothing comes from the first one's memory.
const VERIFY_MEMORY: u64 = 64 << 20;

/// What is in memory at the end is stored within this time, or the transfer has failed.
const FINISH_LIMIT: Duration = Duration::from_secs(300);
/// The same when the cluster could not be reached before.
const GIVE_UP: Duration = Duration::from_secs(2);

/// What walkers and workers share.
#[derive(Clone)]
struct Job {
    remote: Remote,
    cluster: Cluster,
    /// Reads back what was written.
    verifier: Option<Remote>,
    options: TransferOptions,
    pool: Pool,
    progress: Arc<Progress>,
    output: Output,
}

impl Job {
    /// Complains about one file; the others go on.
    fn fail(&self, failure: &Failure) {
        self.progress.failed(failure.exit);
        self.progress.suspend(|| self.output.complain(failure));
    }
}

/// Both sessions of a transfer.
struct Sessions {
    client: Arc<Client>,
    shutdown: Shutdown,
    verifier: Option<(Arc<Client>, Shutdown)>,
}

async fn start(tool: &Tool, options: &TransferOptions, verify: bool) -> Result<(Job, Sessions), Failure> {
    let (client, shutdown) = tool.client_with(TRANSFER_PATIENCE).await?;
    let verifier = match verify {
        true => Some(tool.verifier(TRANSFER_PATIENCE, VERIFY_MEMORY).await?),
        false => None,
    };
    let depth = usize::from(options.parallel) * 4 + 16;
    let job = Job {
        remote: Remote::new(&client),
        cluster: tool.cluster_quietly()?,
        verifier: verifier.as_ref().map(|(client, _)| Remote::new(client)),
        options: options.clone(),
        pool: Pool::start("local-files", LOCAL_THREADS, depth).doing("start")?,
        progress: Progress::start(tool.output, options),
        output: tool.output,
    };
    Ok((job, Sessions { client, shutdown, verifier }))
}

impl Sessions {
    async fn close(self, limit: Duration) -> Result<(), Failure> {
        if let Some((client, shutdown)) = self.verifier {
            close_within(&client, &shutdown, limit).await?;
        }
        close_within(&self.client, &self.shutdown, limit).await
    }
}

/// Runs workers until the queue is closed and empty.
fn workers<T, F>(job: &Job, queue: mpsc::Receiver<T>, work: F) -> JoinSet<()>
where
    T: Send + 'static,
    F: AsyncWork<T>,
{
    let queue = Arc::new(Mutex::new(queue));
    let mut set = JoinSet::new();
    for _ in 0..job.options.parallel {
        let (job, queue, work) = (job.clone(), Arc::clone(&queue), work.clone());
        set.spawn(async move {
            loop {
                let item = queue.lock().await.recv().await;
                let Some(item) = item else { break };
                if let Err(failure) = work.run(&job, item).await {
                    job.fail(&failure);
                }
            }
        });
    }
    set
}

/// What a worker does with one item.
trait AsyncWork<T>: Clone + Send + 'static {
    fn run(&self, job: &Job, item: T) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Runs `cairn put`.
pub(crate) async fn put(tool: &Tool, args: PutArgs) -> Result<Exit, Failure> {
    let (job, sessions) = start(tool, &args.options, args.options.verify).await?;
    let result = put::run(&job, &args).await;
    finish(job, sessions, result).await
}

/// Runs `cairn get`.
pub(crate) async fn get(tool: &Tool, args: GetArgs) -> Result<Exit, Failure> {
    let (job, sessions) = start(tool, &args.options, false).await?;
    let result = get::run(&job, &args).await;
    finish(job, sessions, result).await
}

async fn finish(job: Job, sessions: Sessions, result: Result<(), Failure>) -> Result<Exit, Failure> {
    let progress = Arc::clone(&job.progress);
    let unreachable = progress.worst() == Exit::Unreachable;
    // Everything that was sent becomes durable here, at once for all files. A cluster that could not
    // be reached all the time is not asked once more.
    let durable = match unreachable {
        false => make_durable(&sessions.client).await,
        true => Ok(()),
    };
    drop(job);
    let closed = sessions.close(if unreachable { GIVE_UP } else { FINISH_LIMIT }).await;
    progress.finish();
    result?;
    if !unreachable {
        durable?;
        closed?;
    }
    Ok(progress.worst())
}

async fn make_durable(client: &Client) -> Result<(), Failure> {
    let what = "make the copies durable";
    match clock::timeout(FINISH_LIMIT, client.flush_all(true)).await {
        Ok(result) => result.doing(what),
        Err(_) => Err(Failure::new(what, format!("not done within {} s", FINISH_LIMIT.as_secs()))
            .next("`cairn status` shows what the cluster lacks; then run the command again")
            .exit(Exit::Unreachable)),
    }
}

/// How long ago the last line of progress may be.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The temporary name of a file that is not complete; cut so that it fits 255 bytes.
fn partial_name(name: &[u8]) -> Vec<u8> {
    const SUFFIX: &[u8] = b".cairn-part";
    const LONGEST: usize = 255 - SUFFIX.len() - 1;
    let mut partial = vec![b'.'];
    if name.len() <= LONGEST {
        partial.extend_from_slice(name);
    } else {
        // Long names often differ only at their ends: the checksum tells them apart.
        partial.extend_from_slice(&name[..LONGEST - 9]);
        partial.extend_from_slice(format!("~{:08x}", cairn_proto::checksum::crc32c(name)).as_bytes());
    }
    partial.extend_from_slice(SUFFIX);
    partial
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_fit_and_differ() {
        assert_eq!(partial_name(b"a"), b".a.cairn-part");
        let (mut one, mut two) = (vec![b'x'; 255], vec![b'x'; 255]);
        one[254] = b'1';
        two[254] = b'2';
        assert_eq!(partial_name(&one).len(), 255);
        assert_ne!(partial_name(&one), partial_name(&two));
    }
}
