use std::ops::Deref;
use std::sync::{Mutex, mpsc};

use super::*;
use crate::ops::tests::tx_on;
use crate::store::memory::MemoryStore;
use crate::store::{Batch, Count, Key, ReadThrough, Reader, Writer};

/// Counts commits, and fails them on demand.
struct Watched {
    inner: Box<dyn Writer>,
    commits: Arc<Mutex<Vec<usize>>>,
    fail: Arc<AtomicBool>,
}

impl ReadThrough for Watched {
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError> {
        Ok(&*self.inner)
    }
}

impl Writer for Watched {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.fail.load(Ordering::Relaxed) {
            return Err(StoreError::Full);
        }
        self.commits.lock().unwrap().push(batch.puts.len() + batch.deletes.len());
        self.inner.commit(batch)
    }
}

struct Bench {
    executor: Executor,
    commits: Arc<Mutex<Vec<usize>>>,
    fail: Arc<AtomicBool>,
    store: MemoryStore,
    end: oneshot::Receiver<()>,
}

fn bench() -> Bench {
    let store = MemoryStore::default();
    let commits = Arc::default();
    let fail = Arc::default();
    let tx = tx_on(&store, |inner| {
        Box::new(Watched { inner, commits: Arc::clone(&commits), fail: Arc::clone(&fail) })
    });
    let (executor, end) = Executor::start(tx).unwrap();
    Bench { executor, commits, fail, store, end }
}

fn stored(store: &MemoryStore, name: Count) -> u64 {
    let reader = crate::store::Readers::reader(store, true).unwrap();
    crate::store::count(&*reader, name).unwrap()
}

#[tokio::test]
async fn jobs_that_wait_together_share_a_commit() {
    let bench = bench();
    let (started, begun) = oneshot::channel();
    let (release, wait) = mpsc::channel::<()>();
    let first = tokio::spawn({
        let executor = bench.executor.clone();
        async move {
            executor
                .run(move |tx| {
                    let _ = started.send(());
                    let _ = wait.recv();
                    Ok(tx.count(Count::Chunks, 1)?)
                })
                .await
        }
    });
    begun.await.unwrap();
    let mut others = Vec::new();
    for _ in 0..20 {
        let executor = bench.executor.clone();
        others.push(tokio::spawn(async move { executor.run(|tx| Ok(tx.count(Count::Chunks, 1)?)).await }));
    }
    // One thread runs this test, so after some turns all of them have handed in their jobs.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert_eq!(stored(&bench.store, Count::Chunks), 21);
    assert_eq!(bench.commits.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_group_without_changes_commits_nothing() {
    let bench = bench();
    let refused = bench.executor.run(|tx| {
        tx.count(Count::Chunks, 1)?;
        Err::<(), _>(OpError::invalid("no"))
    });
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    bench.executor.run(|tx| Ok(tx.get(&Key::Counter(Count::Chunks))?.is_some())).await.unwrap();
    assert_eq!(*bench.commits.lock().unwrap(), [0; 0]);
    assert_eq!(stored(&bench.store, Count::Chunks), 0);
}

#[tokio::test]
async fn a_group_that_can_not_be_committed_is_forgotten() {
    let bench = bench();
    bench.fail.store(true, Ordering::Relaxed);
    let full = bench.executor.run(|tx| Ok(tx.count(Count::Chunks, 5)?)).await;
    assert_eq!(full.unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(!bench.executor.has_failed(), "a full disk passes");
    bench.fail.store(false, Ordering::Relaxed);
    bench.executor.run(|tx| Ok(tx.count(Count::Chunks, 1)?)).await.unwrap();
    assert_eq!(stored(&bench.store, Count::Chunks), 1);
}

#[tokio::test]
async fn it_ends_when_nobody_can_ask_any_more() {
    let bench = bench();
    drop(bench.executor);
    bench.end.await.unwrap();
}

#[tokio::test]
async fn each_commit_raises_the_sequence_by_one_also_after_one_that_failed() {
    let bench = bench();
    let commit = || bench.executor.run(|tx| Ok((tx.count(Count::Chunks, 1)?, Arc::clone(&tx.context)).1));
    let context = commit().await.unwrap();
    assert_eq!((context.sequence.get(), stored(&bench.store, Count::Sequence)), (1, 1));
    bench.fail.store(true, Ordering::Relaxed);
    assert_eq!(commit().await.unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!((context.sequence.get(), stored(&bench.store, Count::Sequence)), (1, 1));
    bench.fail.store(false, Ordering::Relaxed);
    commit().await.unwrap();
    assert_eq!((context.sequence.get(), stored(&bench.store, Count::Sequence)), (2, 2));
    // Nothing was changed: no commit, no number.
    bench.executor.run(|tx| Ok(tx.get(&Key::Counter(Count::Chunks))?.is_some())).await.unwrap();
    assert_eq!(context.sequence.get(), 2);
}
