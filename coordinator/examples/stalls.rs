//! Measures what operations on files of many extents cost for each of them, and how long the longest of them keeps
//! another client waiting: a coordinator alone, over gRPC on loopback.
//!
//! `cargo run --release -p cairn-coordinator --example stalls -- [most extents]`; from 1,000 on, each time ten times as
//! many.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cairn_proto::limits::COMMIT_EXTENTS_MAX;
use cairn_proto::{ErrorKind, v1, wire_error_of};
use cairn_runtime::clock;
use common::{Client, Cluster, Datanode, commit, file, mutation, stored, unlink};
use v1::mutation::Op;

/// Bytes between the beginnings of two extents.
const STRIDE: u64 = 8192;
const LENGTH: u64 = 4096;
/// Between two requests of the client that looks on.
const PROBE_EVERY: Duration = Duration::from_millis(5);

/// A client that makes and removes a file again and again.
struct Probe {
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Probe {
    fn start(mut client: Client) -> Self {
        let (stop, longest_us) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, longest) = (Arc::clone(&stop), Arc::clone(&longest_us));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                for change in [file(1, "probe"), unlink(1, "probe")] {
                    let began = clock::now();
                    client.apply(vec![change]).await.unwrap();
                    let took = u64::try_from(began.elapsed().as_micros()).unwrap();
                    longest.fetch_max(took, Ordering::Relaxed);
                }
                clock::sleep(PROBE_EVERY).await;
            }
        });
        Self { stop, longest_us, task }
    }

    fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }
}

struct Bench {
    cluster: Cluster,
    client: Client,
    probe: Probe,
}

impl Bench {
    async fn make(&mut self, name: &str) -> u64 {
        let results = self.client.apply(vec![file(1, name)]).await.unwrap();
        results[0].attr.as_ref().unwrap().inode
    }

    async fn change(&mut self, op: Op) -> v1::MutationResult {
        loop {
            match self.client.apply(vec![mutation(op.clone())]).await {
                Ok(results) => return results.into_iter().next().unwrap(),
                Err(status) => wait_if_overloaded(&status).await,
            }
        }
    }

    /// One extent at each multiple of `STRIDE`, so many in each commit as it takes.
    async fn write(&mut self, inode: u64, extents: u64) {
        let each = COMMIT_EXTENTS_MAX as u64;
        for first in (0..extents).step_by(COMMIT_EXTENTS_MAX) {
            let plan = self.client.plan(1).await.unwrap();
            let granted = Datanode::granted(&plan)[0];
            let map = self.client.status().await.unwrap().map.unwrap();
            let count = each.min(extents - first);
            let runs: Vec<_> =
                (0..count).map(|n| ((first + n) * STRIDE, LENGTH, granted.0, n * LENGTH)).collect();
            let chunk = stored(&map, granted, count * LENGTH);
            loop {
                let request = v1::ConfirmUploadRequest {
                    id: Some(self.client.next_id()),
                    chunks: vec![chunk.clone()],
                    files: vec![commit(inode, &runs)],
                };
                match self.client.confirm(request).await {
                    Ok(results) => {
                        assert_eq!(results[0].error, 0, "{}", results[0].message);
                        break;
                    }
                    Err(status) => wait_if_overloaded(&status).await,
                }
            }
        }
    }

    async fn clone(&mut self, source: u64, destination: u64, size: u64) {
        let mut copied = 0;
        while copied < size {
            let op = v1::CloneRange {
                source,
                source_offset: copied,
                destination,
                destination_offset: copied,
                length: size - copied,
            };
            let result = self.change(Op::CloneRange(op)).await;
            assert_eq!(result.error, 0, "{}", result.message);
            match result.copied {
                0 => break, // the end of the source
                more => copied += more,
            }
        }
    }

    async fn set_size(&mut self, inode: u64, size: u64) {
        let op = v1::SetAttr { inode, size: Some(size), via_handle: true, ..v1::SetAttr::default() };
        self.change(Op::SetAttr(op)).await;
    }

    /// Until the worker has removed all that is to go.
    async fn settle(&mut self) {
        loop {
            let status = self.client.status().await.unwrap();
            let reap = status.workers.iter().find(|worker| worker.name == "reap").unwrap();
            if reap.state() == v1::WorkerState::Idle {
                return;
            }
            clock::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn measure(&mut self, what: &str, extents: u64, work: impl AsyncFnOnce(&mut Self)) {
        self.settle().await;
        self.probe.take_longest();
        let began = clock::now();
        work(self).await;
        let answered = began.elapsed();
        // What goes on behind the answer holds others up as well.
        clock::sleep(Duration::from_secs(1)).await;
        self.settle().await;
        let each = answered.as_nanos() as f64 / extents as f64 / 1000.0;
        let longest = self.probe.take_longest().as_secs_f64() * 1000.0;
        println!(
            "{what:12} {extents:9} {:9.3} s {each:9.2} µs each; longest wait {longest:7.1} ms",
            answered.as_secs_f64()
        );
    }

    async fn round(&mut self, extents: u64) {
        let size = extents * STRIDE;
        let [first, second] = [self.make("first").await, self.make("second").await];
        self.measure("write", extents, async |bench| bench.write(first, extents).await).await;
        self.measure("overwrite", extents, async |bench| bench.write(first, extents).await).await;
        self.measure("clone", extents, async |bench| bench.clone(first, second, size).await).await;
        self.measure("punch", extents, async |bench| {
            let op = v1::Allocate { inode: first, offset: 1, length: size, keep_size: true, make_hole: true };
            drop(bench.change(Op::Allocate(op)).await);
        })
        .await;
        self.measure("truncate", extents, async |bench| bench.set_size(second, 1).await).await;
        self.write(first, extents).await;
        self.write(second, extents).await;
        self.measure("O_TRUNC", extents, async |bench| {
            bench.set_size(first, 0).await;
            bench.write(first, 1).await;
        })
        .await;
        self.measure("unlink", extents, async |bench| {
            drop(bench.client.apply(vec![unlink(1, "second")]).await.unwrap());
        })
        .await;
        self.client.apply(vec![unlink(1, "first")]).await.unwrap();
    }
}

async fn wait_if_overloaded(status: &tonic::Status) {
    assert_eq!(wire_error_of(status).kind, ErrorKind::Overloaded, "{status}");
    clock::sleep(Duration::from_millis(50)).await;
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let most = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let cluster = Cluster::start_with(|config| {
        config.lease = Duration::from_secs(600);
        config.garbage_grace = Duration::from_secs(1200);
    });
    let cluster = cluster.await.unwrap();
    let _datanodes = cluster.datanodes(3).await.unwrap();
    let (client, probe) = (cluster.client().await.unwrap(), cluster.client().await.unwrap());
    let mut bench = Bench { client, probe: Probe::start(probe), cluster };
    let mut extents = 1000;
    loop {
        bench.round(extents.min(most)).await;
        if extents >= most {
            break;
        }
        extents *= 10;
    }
    bench.probe.stop.store(true, Ordering::Relaxed);
    bench.probe.task.await.unwrap();
    drop(bench.client);
    bench.cluster.stop().await.unwrap();
}
