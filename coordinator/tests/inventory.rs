//! What the coordinator concludes from what a datanode says it holds: nothing, unless the listing is complete.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_proto::digest::IdDigest;
use cairn_proto::v1;
use cairn_proto::v1::data_node_server::{DataNode, DataNodeServer};
use cairn_runtime::net;
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::common;
use crate::common::Cluster;

/// What a datanode holds, and whether it can say so.
#[derive(Debug, Default)]
struct Held {
    chunks: BTreeSet<u64>,
    incomplete: bool,
    /// A summary takes so long.
    delay: Duration,
    summaries: usize,
    listings: usize,
    deletions: Vec<v1::DeleteChunksRequest>,
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Held>>);

type Nothing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What this test does not need.
fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl DataNode for Fake {
    type StoreChunkStream = Nothing<v1::StoreAck>;
    type ReplicateChunkStream = Nothing<v1::StoreAck>;
    type RetrieveChunkStream = Nothing<v1::RetrieveFrame>;
    type CopyChunksStream = Nothing<v1::CopyChunksResponse>;

    async fn store_chunk(
        &self,
        _: Request<Streaming<v1::StoreFrame>>,
    ) -> Result<Response<Self::StoreChunkStream>, Status> {
        not_here()
    }
    async fn replicate_chunk(
        &self,
        _: Request<Streaming<v1::StoreFrame>>,
    ) -> Result<Response<Self::ReplicateChunkStream>, Status> {
        not_here()
    }
    async fn retrieve_chunk(
        &self,
        _: Request<v1::RetrieveChunkRequest>,
    ) -> Result<Response<Self::RetrieveChunkStream>, Status> {
        not_here()
    }
    async fn copy_chunks(
        &self,
        _: Request<v1::CopyChunksRequest>,
    ) -> Result<Response<Self::CopyChunksStream>, Status> {
        not_here()
    }
    async fn sync_chunks(
        &self,
        _: Request<v1::SyncChunksRequest>,
    ) -> Result<Response<v1::SyncChunksResponse>, Status> {
        not_here()
    }
    async fn restore_chunks(
        &self,
        _: Request<v1::RestoreChunksRequest>,
    ) -> Result<Response<v1::RestoreChunksResponse>, Status> {
        not_here()
    }
    async fn repack_chunks(
        &self,
        _: Request<v1::RepackChunksRequest>,
    ) -> Result<Response<v1::RepackChunksResponse>, Status> {
        not_here()
    }
    async fn scrub(&self, _: Request<v1::ScrubRequest>) -> Result<Response<v1::ScrubResponse>, Status> {
        not_here()
    }
    async fn stat_chunks(
        &self,
        _: Request<v1::StatChunksRequest>,
    ) -> Result<Response<v1::StatChunksResponse>, Status> {
        not_here()
    }
    async fn get_node_status(
        &self,
        _: Request<v1::GetNodeStatusRequest>,
    ) -> Result<Response<v1::GetNodeStatusResponse>, Status> {
        not_here()
    }

    async fn summarize_chunks(
        &self,
        request: Request<v1::SummarizeChunksRequest>,
    ) -> Result<Response<v1::SummarizeChunksResponse>, Status> {
        let v1::SummarizeChunksRequest { first, span, ranges } = request.into_inner();
        let delay = self.0.lock().unwrap().delay;
        tokio::time::sleep(delay).await;
        let mut held = self.0.lock().unwrap();
        held.summaries += 1;
        let range = |index: u64| {
            let mut sum = IdDigest::default();
            let start = first + index * span;
            held.chunks.range(start..start + span).for_each(|&id| sum.add(id));
            v1::ChunkSummary { count: sum.count, digest: sum.digest }
        };
        Ok(Response::new(v1::SummarizeChunksResponse { ranges: (0..ranges.into()).map(range).collect() }))
    }

    async fn list_chunks(
        &self,
        request: Request<v1::ListChunksRequest>,
    ) -> Result<Response<v1::ListChunksResponse>, Status> {
        let v1::ListChunksRequest { first, last, .. } = request.into_inner();
        let mut held = self.0.lock().unwrap();
        held.listings += 1;
        let chunk = |&chunk: &u64| v1::HeldChunk { chunk, length: 100, quarantined: false, trash: false };
        let chunks = held.chunks.range(first..=last).map(chunk).collect();
        Ok(Response::new(v1::ListChunksResponse { chunks, complete: !held.incomplete }))
    }

    async fn delete_chunks(
        &self,
        request: Request<v1::DeleteChunksRequest>,
    ) -> Result<Response<v1::DeleteChunksResponse>, Status> {
        let request = request.into_inner();
        let mut held = self.0.lock().unwrap();
        request.chunks.iter().for_each(|chunk| assert!(held.chunks.remove(chunk)));
        held.deletions.push(request);
        Ok(Response::new(v1::DeleteChunksResponse::default()))
    }
}

impl Fake {
    /// Serves, and registers as the datanode with this number.
    async fn join(&self, cluster: &Cluster, number: u8) -> anyhow::Result<String> {
        let listener = net::listen("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let server =
            net::server(net::Load::of_replies(64 << 20)).add_service(DataNodeServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(net::incoming(listener)));
        cluster.channel()?.register_data_node(registration(number, &address, number.into())).await?;
        Ok(address)
    }

    fn deleted(&self) -> Vec<u64> {
        self.0.lock().unwrap().deletions.iter().flat_map(|request| request.chunks.clone()).collect()
    }

    fn summaries(&self) -> usize {
        self.0.lock().unwrap().summaries
    }

    fn listings(&self) -> usize {
        self.0.lock().unwrap().listings
    }
}

fn registration(number: u8, address: &str, incarnation: u128) -> v1::RegisterDataNodeRequest {
    v1::RegisterDataNodeRequest {
        node: vec![number; 16].into(),
        address: address.to_owned(),
        capacity: 100 << 30,
        incarnation: incarnation.to_be_bytes().to_vec().into(),
        ..v1::RegisterDataNodeRequest::default()
    }
}

async fn cluster() -> anyhow::Result<Cluster> {
    Cluster::start_with(|config| {
        config.suspect_after = Duration::from_secs(60);
        config.down_after = Duration::from_secs(60);
        config.lease = Duration::from_secs(1);
        config.garbage_grace = Duration::from_secs(2);
        config.plan_time = Duration::from_secs(1);
        config.reconcile_every = Duration::from_secs(1);
    })
    .await
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "still waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_is_not_complete_deletes_nothing_and_misses_nothing() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let fakes = [Fake::default(), Fake::default(), Fake::default()];
    for (number, fake) in (1..).zip(&fakes) {
        fake.join(&cluster, number).await?;
    }
    // Ids that were granted, and whose plan is over.
    let mut client = cluster.client().await?;
    let plan = client.plan(20).await?;
    let ids: BTreeSet<u64> = common::Datanode::granted(&plan).iter().map(|(id, _, _)| *id).collect();
    fakes[0].0.lock().unwrap().chunks = ids.clone();
    fakes[0].0.lock().unwrap().incomplete = true;
    until("a few comparisons that had to be given up", || fakes[0].listings() >= 4).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(fakes[0].deleted(), [0; 0]);
    let status = cluster.channel()?.get_gc_status(v1::GetGcStatusRequest {}).await?.into_inner();
    assert_eq!(status.strays, 0, "nothing is concluded: {status:?}");
    assert_eq!(cluster.channel()?.get_status(v1::GetStatusRequest {}).await?.into_inner().faults, 0);
    // Every disk is back: seen twice, they go.
    fakes[0].0.lock().unwrap().incomplete = false;
    until("the strays to go", || fakes[0].0.lock().unwrap().chunks.is_empty()).await;
    assert_eq!(fakes[0].deleted().into_iter().collect::<BTreeSet<_>>(), ids);
    let fence = fakes[0].0.lock().unwrap().deletions[0].clone();
    assert!(fence.term >= 1 && fence.epoch >= 1 && fence.sequence >= 1, "{fence:?}");
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datanode_that_starts_again_and_again_keeps_no_other_from_being_compared() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let (restless, quiet) = (Fake::default(), Fake::default());
    // So that it has started again by the end of each comparison.
    restless.0.lock().unwrap().delay = Duration::from_millis(50);
    let address = restless.join(&cluster, 1).await?;
    let restarts: Vec<_> = (1..=2u128)
        .map(|task| {
            let (mut channel, address) = (cluster.channel().unwrap(), address.clone());
            tokio::spawn(async move {
                for count in 1.. {
                    let request = registration(1, &address, task << 64 | count);
                    channel.register_data_node(request).await.unwrap();
                }
            })
        })
        .collect();
    until("the one that restarts to be compared", || restless.summaries() >= 3).await;
    quiet.join(&cluster, 2).await?;
    until("the other to be compared, and again", || quiet.summaries() >= 3).await;
    restarts.iter().for_each(|task| task.abort());
    cluster.stop().await
}
