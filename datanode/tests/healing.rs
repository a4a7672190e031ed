//! What repair, gc and reconciliation ask of datanodes, over real gRPC on loopback.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use cairn_proto::checksum::crc32c;
use cairn_proto::digest::IdDigest;
use cairn_proto::v1::*;
use cairn_proto::{ErrorKind, v1, wire_error_of};
use cairn_runtime::clock;
use futures::StreamExt;

use crate::common;
use crate::common::{Cluster, SET, content, frames, retrieve};

const LEN: usize = 300_000;

/// Stores a chunk on one node alone.
async fn store_on(cluster: &Cluster, node: usize, chunk: u64, len: usize) -> Vec<u8> {
    let data = content(chunk, len);
    let mut client = cluster.client(node);
    let frames = frames(chunk, cluster.header(len as u64), &data);
    // As a primary forwards it.
    let acks = client.replicate_chunk(futures::stream::iter(frames)).await.unwrap().into_inner();
    let stored = acks.filter_map(|ack| async move { ack.ok().filter(|ack| ack.stored || ack.error != 0) });
    let ack = std::pin::pin!(stored).next().await.unwrap();
    assert!(ack.stored, "{ack:?}");
    data
}

fn wanted(cluster: &Cluster, chunk: u64, data: &[u8], sources: &[usize]) -> CopyChunk {
    let source = |&node: &usize| CopySource {
        node: cluster.nodes[node].id.to_wire(),
        address: cluster.nodes[node].address.clone(),
    };
    CopyChunk {
        chunk,
        set: SET,
        length: data.len() as u64,
        crc32c: crc32c(data),
        sources: sources.iter().map(source).collect(),
    }
}

async fn copy(cluster: &Cluster, node: usize, chunks: Vec<CopyChunk>, rate: u64) -> Vec<CopyChunksResponse> {
    let request = CopyChunksRequest { chunks, bytes_per_second: rate };
    let answers = cluster.client(node).copy_chunks(request).await.unwrap().into_inner();
    let mut answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
    answers.sort_by_key(|answer| answer.chunk);
    answers
}

/// Flips a bit in the payload of the only chunk of this length whose content starts like this.
fn damage(dir: &Path, data: &[u8]) {
    for entry in std::fs::read_dir(dir.join("segments")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(64).position(|window| window == &data[1000..1064]) {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            return file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        }
    }
    panic!("the chunk is in no segment of {}", dir.display());
}

async fn list(cluster: &Cluster, node: usize) -> ListChunksResponse {
    let request = ListChunksRequest { first: 1, last: i64::MAX as u64, limit: 65_536 };
    cluster.client(node).list_chunks(request).await.unwrap().into_inner()
}

fn kind(number: u32) -> Option<ErrorKind> {
    ErrorKind::from_number(number)
}

#[tokio::test(flavor = "multi_thread")]
async fn inventories_agree_with_what_was_stored() {
    let cluster = Cluster::start(1).await;
    let ids: Vec<u64> = (1..=40).map(|n| n * 37).collect();
    for &chunk in &ids {
        store_on(&cluster, 0, chunk, 1000).await;
    }
    let mut client = cluster.client(0);
    let request = SummarizeChunksRequest { first: 30, span: 100, ranges: 15 };
    let ranges = client.summarize_chunks(request).await.unwrap().into_inner().ranges;
    assert_eq!(ranges.len(), 15);
    for (index, range) in (0u64..).zip(&ranges) {
        let mut expected = IdDigest::default();
        let span = 30 + 100 * index..130 + 100 * index;
        ids.iter().filter(|id| span.contains(id)).for_each(|&id| expected.add(id));
        assert_eq!((range.count, range.digest), (expected.count, expected.digest), "range {index}");
    }
    assert_eq!(ranges.iter().map(|range| range.count).sum::<u64>(), 40);

    let all = list(&cluster, 0).await;
    assert!(all.complete);
    assert_eq!(all.chunks.iter().map(|held| held.chunk).collect::<Vec<_>>(), ids);
    assert!(all.chunks.iter().all(|held| held.length == 1000 && !held.quarantined && !held.trash));
    let part = ListChunksRequest { first: 38, last: 37 * 20, limit: 10 };
    let part = client.list_chunks(part).await.unwrap().into_inner();
    assert!(!part.complete);
    assert_eq!(part.chunks.iter().map(|held| held.chunk).collect::<Vec<_>>(), ids[1..11]);
    let part = ListChunksRequest { first: 38, last: 37 * 11, limit: 10 };
    assert!(client.list_chunks(part).await.unwrap().into_inner().complete);

    // A damaged copy is listed as such and does not count.
    damage(cluster.nodes[0].dir.path(), &store_on(&cluster, 0, 5, LEN).await);
    assert!(retrieve(&mut client, 5, 0, LEN as u64).await.is_err());
    let held = list(&cluster, 0).await.chunks.remove(0);
    assert!(held.chunk == 5 && held.quarantined);
    let request = SummarizeChunksRequest { first: 1, span: 1 << 32, ranges: 1 };
    let ranges = client.summarize_chunks(request).await.unwrap().into_inner().ranges;
    assert_eq!(ranges[0].count, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_fetched_verified_and_durable() {
    let cluster = Cluster::start(3).await;
    let mut chunks = Vec::new();
    for chunk in 1..=20 {
        let data = store_on(&cluster, 0, chunk, LEN + chunk as usize).await;
        chunks.push(wanted(&cluster, chunk, &data, &[0]));
    }
    let answers = copy(&cluster, 1, chunks.clone(), 0).await;
    assert_eq!(answers.len(), 20);
    for answer in &answers {
        assert_eq!((answer.error, answer.bytes), (0, LEN as u64 + answer.chunk), "{answer:?}");
    }
    let stat = StatChunksRequest { chunks: vec![20], verify: true };
    let stat = cluster.client(1).stat_chunks(stat).await.unwrap().into_inner().chunks.remove(0);
    assert!(stat.present && stat.synced && stat.error == 0 && stat.crc32c == chunks[19].crc32c);
    // What is here is not fetched again, and needs no source that lives.
    for answer in copy(&cluster, 1, chunks, 0).await {
        assert_eq!((answer.error, answer.bytes), (0, 0), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_source_is_named_and_never_spreads() {
    let cluster = Cluster::start(3).await;
    let data = store_on(&cluster, 0, 7, LEN).await;
    store_on(&cluster, 2, 7, LEN).await;
    damage(cluster.nodes[0].dir.path(), &data);
    // Damaged on 0, missing on 1 (the destination of the second try), sound on 2.
    let answer = copy(&cluster, 1, vec![wanted(&cluster, 7, &data, &[0])], 0).await.remove(0);
    assert_eq!(kind(answer.error), Some(ErrorKind::Corrupt), "{answer:?}");
    assert!(retrieve(&mut cluster.client(1), 7, 0, 1).await.is_err());
    let answer = copy(&cluster, 1, vec![wanted(&cluster, 7, &data, &[0, 2])], 0).await.remove(0);
    assert_eq!((answer.error, answer.bytes), (0, LEN as u64), "{answer:?}");
    assert_eq!(answer.failed[0].node, cluster.nodes[0].id.to_wire());
    assert_eq!(kind(answer.failed[0].error), Some(ErrorKind::Corrupt));
    assert!(retrieve(&mut cluster.client(1), 7, 0, LEN as u64).await.unwrap().1 == data);
    // The damaged copy is replaced by a sound one.
    let answer = copy(&cluster, 0, vec![wanted(&cluster, 7, &data, &[0, 1])], 0).await.remove(0);
    assert_eq!((answer.error, answer.bytes), (0, LEN as u64), "{answer:?}");
    assert!(retrieve(&mut cluster.client(0), 7, 0, LEN as u64).await.unwrap().1 == data);

    // Nobody has it.
    let answer = copy(&cluster, 1, vec![wanted(&cluster, 99, &data, &[0, 2])], 0).await.remove(0);
    assert_eq!(kind(answer.error), Some(ErrorKind::ChunkNotFound));
    assert!(answer.failed.iter().all(|f| kind(f.error) == Some(ErrorKind::ChunkNotFound)));
    // Of all sources one only can not be reached: it may come back.
    let mut dead = wanted(&cluster, 98, &data, &[0, 2]);
    dead.sources[0].address = "127.0.0.1:1".into();
    let answer = copy(&cluster, 1, vec![dead], 0).await.remove(0);
    assert_eq!(kind(answer.error), Some(ErrorKind::Unavailable), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_not_what_was_committed_gives_way_only_to_the_right_one() {
    let cluster = Cluster::start(2).await;
    let data = store_on(&cluster, 0, 3, LEN).await;
    // Another content under the same id, sound in itself.
    let other = store_on(&cluster, 1, 3, LEN - 1).await;
    let wrong = wanted(&cluster, 3, &content(4, LEN), &[0]);
    let answer = copy(&cluster, 1, vec![wrong], 0).await.remove(0);
    assert_eq!(kind(answer.error), Some(ErrorKind::Corrupt), "{answer:?}");
    let still = retrieve(&mut cluster.client(1), 3, 0, LEN as u64 - 1).await.unwrap().1;
    assert!(still == other, "a wrong request must not cost a copy");
    let answer = copy(&cluster, 1, vec![wanted(&cluster, 3, &data, &[0])], 0).await.remove(0);
    assert_eq!((answer.error, answer.bytes), (0, LEN as u64), "{answer:?}");
    assert!(retrieve(&mut cluster.client(1), 3, 0, LEN as u64).await.unwrap().1 == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_keep_to_their_rate_and_end_with_the_request() {
    let cluster = Cluster::start(2).await;
    let mut chunks = Vec::new();
    for chunk in 1..=8 {
        let data = store_on(&cluster, 0, chunk, 512 << 10).await;
        chunks.push(wanted(&cluster, chunk, &data, &[0]));
    }
    let started = clock::now();
    let answers = copy(&cluster, 1, chunks[..4].to_vec(), 2 << 20).await;
    assert!(answers.iter().all(|answer| answer.error == 0));
    let took = started.elapsed();
    assert!(took > Duration::from_millis(600), "2 MiB at 2 MiB/s took {took:?}");

    // A chunk each second; the last one would be there after three.
    let request = CopyChunksRequest { chunks: chunks[4..].to_vec(), bytes_per_second: 512 << 10 };
    let answers = cluster.client(1).copy_chunks(request).await.unwrap();
    clock::sleep(Duration::from_millis(200)).await;
    drop(answers);
    clock::sleep(Duration::from_secs(4)).await;
    let held = list(&cluster, 1).await;
    assert!(held.chunks.iter().all(|held| held.chunk < 8), "{:?}", held.chunks);
    // What was half copied does not stand in the way of the next try.
    let answers = copy(&cluster, 1, chunks[4..].to_vec(), 0).await;
    assert!(answers.iter().all(|answer| answer.error == 0), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_by_name() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let refused = |error: tonic::Status| assert_eq!(wire_error_of(&error).kind, ErrorKind::InvalidArgument);
    let summaries = [
        (0, 1, 1),
        (1 << 63, 1, 1),
        (1, 0, 1),
        (1, (1 << 32) + 1, 1),
        (1, 1, 0),
        (1, 1, 4097),
        (1, u64::MAX, u32::MAX),
    ];
    for (first, span, ranges) in summaries {
        refused(client.summarize_chunks(SummarizeChunksRequest { first, span, ranges }).await.unwrap_err());
    }
    let most = SummarizeChunksRequest { first: i64::MAX as u64, span: 1 << 32, ranges: 4096 };
    assert_eq!(client.summarize_chunks(most).await.unwrap().into_inner().ranges.len(), 4096);
    for (first, last, limit) in
        [(0, 1, 1), (1, 0, 1), (2, 1, 1), (1, u64::MAX, 1), (1, 2, 0), (1, 2, 65_537), (1, 2, u32::MAX)]
    {
        refused(client.list_chunks(ListChunksRequest { first, last, limit }).await.unwrap_err());
    }

    let good = wanted(&cluster, 1, &[1; 10], &[0]);
    type Break = fn(&mut CopyChunk);
    let breaks: [Break; 10] = [
        |c| c.chunk = 0,
        |c| c.chunk = u64::MAX,
        |c| c.set = 0,
        |c| c.length = 0,
        |c| c.length = (64 << 20) + 1,
        |c| c.sources.clear(),
        |c| c.sources = vec![c.sources[0].clone(); 33],
        |c| c.sources[0].node = vec![1; 15].into(),
        |c| c.sources[0].address = "nowhere".into(),
        |c| c.sources[0].address = "host:0".into(),
    ];
    for spoil in breaks {
        let mut chunk = good.clone();
        spoil(&mut chunk);
        let request = CopyChunksRequest { chunks: vec![chunk], bytes_per_second: 0 };
        refused(client.copy_chunks(request).await.map(drop).unwrap_err());
    }
    for chunks in
        [vec![], vec![good.clone(); 2], (1..=4097).map(|n| CopyChunk { chunk: n, ..good.clone() }).collect()]
    {
        refused(
            client
                .copy_chunks(CopyChunksRequest { chunks, bytes_per_second: 0 })
                .await
                .map(drop)
                .unwrap_err(),
        );
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            clock::sleep(Duration::from_millis(20)).await;
        }
    };
    clock::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_copy_is_told_until_the_coordinator_has_recorded_it() {
    use std::sync::atomic::Ordering;
    let mut cluster = Cluster::start(1).await;
    let id = cluster.nodes[0].id;
    let data = store_on(&cluster, 0, 77, LEN).await;
    damage(cluster.nodes[0].dir.path(), &data);
    cluster.membership.records.store(false, Ordering::SeqCst);
    assert!(retrieve(&mut cluster.client(0), 77, 0, LEN as u64).await.is_err());
    let membership = std::sync::Arc::clone(&cluster.membership);
    until("the bad copy is not told", || !membership.bad.lock().unwrap().is_empty()).await;
    let told = membership.bad.lock().unwrap()[0];
    assert_eq!((told.0, told.1.chunk, kind(told.1.error)), (id, 77, Some(ErrorKind::Corrupt)));

    // It was not recorded: another run of the node tells it again, and what it holds.
    cluster.nodes[0].stop().await;
    membership.bad.lock().unwrap().clear();
    membership.records.store(true, Ordering::SeqCst);
    let config = cluster.config(cluster.nodes[0].dir.path());
    let shutdown = cairn_runtime::shutdown::Shutdown::new();
    let running = cairn_datanode::start(config, shutdown.clone()).await.unwrap();
    until("the bad copy is not told again", || !membership.bad.lock().unwrap().is_empty()).await;
    assert_eq!(membership.registrations.lock().unwrap()[&id].chunk_max, 77);
    clock::sleep(Duration::from_secs(2)).await;
    assert_eq!(membership.bad.lock().unwrap().len(), 1, "what is recorded is told no more");
    shutdown.request();
    running.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_went_backwards_deletes_nothing() {
    let mut cluster = Cluster::start(1).await;
    let id = cluster.nodes[0].id;
    store_on(&cluster, 0, 1, 100).await;
    *cluster.membership.fence.lock().unwrap() = Some(Fence { term: 1, epoch: 1, sequence: 500 });
    clock::sleep(Duration::from_millis(300)).await;
    let delete = |term, sequence| DeleteChunksRequest { chunks: vec![1], term, epoch: 50, sequence };
    let mut client = cluster.client(0);
    for stale in [delete(1, 499), delete(2, 499)] {
        let error = wire_error_of(&client.delete_chunks(stale).await.unwrap_err());
        assert_eq!(error.kind, ErrorKind::StaleEpoch);
        assert!(error.message.contains("went backwards"), "{}", error.message);
    }
    let impossible = wire_error_of(&client.delete_chunks(delete(1, 1 << 63)).await.unwrap_err());
    assert_eq!(impossible.kind, ErrorKind::InvalidArgument);
    assert!(retrieve(&mut client, 1, 0, 100).await.is_ok());
    assert!(client.delete_chunks(delete(1, 501)).await.unwrap().into_inner().failed.is_empty());
    assert!(retrieve(&mut client, 1, 0, 100).await.is_err());

    // The node says where it has been, also after a restart.
    cluster.nodes[0].stop().await;
    let config = cluster.config(cluster.nodes[0].dir.path());
    let shutdown = cairn_runtime::shutdown::Shutdown::new();
    let running = cairn_datanode::start(config, shutdown.clone()).await.unwrap();
    let membership = std::sync::Arc::clone(&cluster.membership);
    until("the node does not say where it has been", || {
        let registrations = membership.registrations.lock().unwrap();
        registrations[&id].fence == Some(Fence { term: 1, epoch: 50, sequence: 501 })
    })
    .await;
    shutdown.request();
    running.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_chunks_become_one_chunk_on_every_member() {
    let cluster = Cluster::start(3).await;
    let (a, b) = (store_on(&cluster, 1, 1, 1 << 20).await, store_on(&cluster, 1, 2, 200_000).await);
    let part = |chunk, offset, length| ChunkPart { chunk, offset, length };
    let parts = vec![
        part(1, 70_000, 300_001),
        part(2, 0, 1),
        part(1, 0, 65_536),
        part(1, 1_000_000, 48_576),
        part(2, 65_535, 2),
    ];
    let made: Vec<u8> = parts
        .iter()
        .flat_map(|p| {
            let source = if p.chunk == 1 { &a } else { &b };
            source[p.offset as usize..(p.offset + p.length) as usize].to_vec()
        })
        .collect();
    let request = |chunk, parts: &[ChunkPart]| RepackChunksRequest {
        chunk,
        header: Some(cluster.header(parts.iter().map(|p| p.length).sum())),
        parts: parts.to_vec(),
    };
    let answer = cluster.client(1).repack_chunks(request(3, &parts)).await.unwrap().into_inner();
    assert_eq!(answer.crc32c, crc32c(&made));
    assert_eq!((answer.stored_by.len(), answer.failed.len()), (3, 0), "{answer:?}");
    for node in 0..3 {
        assert!(retrieve(&mut cluster.client(node), 3, 0, made.len() as u64).await.unwrap().1 == made);
    }

    let told = |error: tonic::Status| wire_error_of(&error).kind;
    let mut client = cluster.client(1);
    let missing = client.repack_chunks(request(4, &[part(1, 0, 10), part(99, 0, 10)])).await.unwrap_err();
    assert_eq!(told(missing), ErrorKind::ChunkNotFound);
    assert_eq!(told(client.repack_chunks(request(3, &parts)).await.unwrap_err()), ErrorKind::ChunkExists);
    let bad_parts = [
        vec![],
        vec![part(0, 0, 10)],
        vec![part(1, 0, 0)],
        vec![part(1, u64::MAX, 2)],
        vec![part(1, 64 << 20, 1)],
        vec![part(2, 199_999, 2)],
        vec![part(5, 0, 1)],
        vec![part(1, 0, 1); 65_537],
    ];
    for parts in bad_parts {
        let request = RepackChunksRequest { chunk: 5, ..request(5, &parts) };
        assert_eq!(
            told(client.repack_chunks(request).await.unwrap_err()),
            ErrorKind::InvalidArgument,
            "{parts:?}"
        );
    }
    for spoil in [
        RepackChunksRequest { header: None, ..request(5, &parts) },
        RepackChunksRequest { chunk: 0, ..request(5, &parts) },
        RepackChunksRequest { header: Some(cluster.header(7)), ..request(5, &parts) },
        RepackChunksRequest {
            header: Some(StoreHeader { set: 0, ..cluster.header(415_116 - 1000) }),
            ..request(5, &parts)
        },
    ] {
        assert_eq!(told(client.repack_chunks(spoil).await.unwrap_err()), ErrorKind::InvalidArgument);
    }
    assert!(retrieve(&mut client, 5, 0, 1).await.is_err() && retrieve(&mut client, 4, 0, 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_chunk_can_be_brought_back_and_a_copy_of_it_is_not_fetched() {
    let cluster = Cluster::start(2).await;
    let data = store_on(&cluster, 0, 1, LEN).await;
    store_on(&cluster, 0, 2, LEN).await;
    let mut client = cluster.client(0);
    let delete = DeleteChunksRequest { chunks: vec![1, 2], term: 9, epoch: 9, sequence: 9 };
    assert!(client.delete_chunks(delete.clone()).await.unwrap().into_inner().failed.is_empty());
    let gone = retrieve(&mut client, 1, 0, 1).await.unwrap_err();
    assert_eq!(wire_error_of(&gone).kind, ErrorKind::ChunkNotFound);
    let stat = StatChunksRequest { chunks: vec![1], verify: true };
    assert!(!client.stat_chunks(stat).await.unwrap().into_inner().chunks[0].present);
    let held = list(&cluster, 0).await.chunks;
    assert!(held.len() == 2 && held.iter().all(|held| held.trash && !held.quarantined));
    let request = SummarizeChunksRequest { first: 1, span: 100, ranges: 1 };
    assert_eq!(client.summarize_chunks(request).await.unwrap().into_inner().ranges[0].count, 0);
    let about = client.get_node_status(GetNodeStatusRequest {}).await.unwrap().into_inner().node.unwrap();
    assert!(about.disks[0].trash > 2 * LEN as u64 && about.disks[0].used == 0, "{:?}", about.disks);

    let restore = RestoreChunksRequest { chunks: vec![1, 99] };
    let failed = client.restore_chunks(restore).await.unwrap().into_inner().failed;
    assert_eq!(
        (failed.len(), failed[0].chunk, kind(failed[0].error)),
        (1, 99, Some(ErrorKind::ChunkNotFound))
    );
    assert!(retrieve(&mut client, 1, 0, LEN as u64).await.unwrap().1 == data);

    client.delete_chunks(delete).await.unwrap();
    let answer = copy(&cluster, 0, vec![wanted(&cluster, 1, &data, &[1])], 0).await.remove(0);
    assert_eq!((answer.error, answer.bytes), (0, 0), "{answer:?}");
    assert!(retrieve(&mut client, 1, 0, LEN as u64).await.unwrap().1 == data);
    for chunks in [vec![0], vec![u64::MAX], (1..70_000).collect()] {
        let error = client.restore_chunks(RestoreChunksRequest { chunks }).await.unwrap_err();
        assert_eq!(wire_error_of(&error).kind, ErrorKind::InvalidArgument);
    }
}

/// Asks for a pass of the scrub and waits for its end.
async fn pass(
    client: &mut v1::data_node_client::DataNodeClient<tonic::transport::Channel>,
    rate: u64,
) -> ScrubStatus {
    let start = ScrubRequest { start: true, bytes_per_second: rate };
    assert!(client.scrub(start).await.unwrap().into_inner().status.unwrap().running);
    let asked = cairn_runtime::clock::wall_ns();
    let done = async {
        loop {
            let status = client.scrub(ScrubRequest::default()).await.unwrap().into_inner().status.unwrap();
            if !status.running && status.finished_ns >= asked {
                return status;
            }
            clock::sleep(Duration::from_millis(20)).await;
        }
    };
    clock::timeout(Duration::from_secs(20), done).await.expect("the pass does not end")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_passes_over_any_amount_of_trash() {
    let cluster = Cluster::start(1).await;
    let ids: Vec<u64> = (1..=700).collect();
    for &chunk in &ids {
        store_on(&cluster, 0, chunk, 100).await;
    }
    let mut client = cluster.client(0);
    let sync = SyncChunksRequest { chunks: ids };
    assert!(client.sync_chunks(sync).await.unwrap().into_inner().failed.is_empty());
    // More in a row than it looks up at once.
    let delete = DeleteChunksRequest { chunks: (11..=690).collect(), term: 9, epoch: 9, sequence: 9 };
    assert!(client.delete_chunks(delete).await.unwrap().into_inner().failed.is_empty());
    let status = pass(&mut client, 1 << 30).await;
    assert_eq!((status.chunks_done, status.bad), (20, 0), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_what_nobody_reads() {
    let mut cluster = Cluster::start(1).await;
    let id = cluster.nodes[0].id;
    // Odd ids alone: content of neighbours is alike.
    let ids: Vec<u64> = (1..=30).map(|n| 2 * n + 1).collect();
    for &chunk in &ids {
        store_on(&cluster, 0, chunk, LEN + chunk as usize).await;
    }
    let mut client = cluster.client(0);
    let sync = SyncChunksRequest { chunks: ids };
    assert!(client.sync_chunks(sync).await.unwrap().into_inner().failed.is_empty());
    damage(cluster.nodes[0].dir.path(), &content(35, LEN));
    let status = pass(&mut client, 1 << 30).await;
    assert_eq!((status.chunks_done, status.bad, status.bad_last), (30, 1, 1), "{status:?}");
    assert!(status.bytes_done > 30 * LEN as u64 && status.error.is_empty());
    let membership = std::sync::Arc::clone(&cluster.membership);
    until("the bad copy is not told", || !membership.bad.lock().unwrap().is_empty()).await;
    assert_eq!(membership.bad.lock().unwrap()[0].1.chunk, 35);
    until("the scrub is not told", || {
        let beats = membership.beats.lock().unwrap();
        beats[&id].scrub.as_ref().is_some_and(|scrub| scrub.finished_ns == status.finished_ns)
    })
    .await;

    let started = clock::now();
    let status = pass(&mut client, 6 << 20).await;
    assert_eq!((status.chunks_done, status.bad), (29, 0), "what is set aside is not read again");
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1000), "8.7 MB at 6 MiB/s took {took:?}");

    // It is known after a restart.
    cluster.nodes[0].stop().await;
    let config = cluster.config(cluster.nodes[0].dir.path());
    let shutdown = cairn_runtime::shutdown::Shutdown::new();
    let running = cairn_datanode::start(config, shutdown.clone()).await.unwrap();
    let mut client = common::client(&running.address.to_string());
    clock::sleep(Duration::from_millis(300)).await;
    let again = client.scrub(ScrubRequest::default()).await.unwrap().into_inner().status.unwrap();
    assert_eq!((again.finished_ns, again.running), (status.finished_ns, false));
    shutdown.request();
    running.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_without_a_lost_disk_and_takes_in_a_new_one() {
    let cluster = Cluster::empty().await;
    let base = tempfile::tempdir().unwrap();
    let (a, b, away) = (base.path().join("a"), base.path().join("b"), base.path().join("away"));
    let config =
        cairn_datanode::DatanodeConfig { data: vec![a.clone(), b.clone()], ..cluster.config(base.path()) };
    let run = || async {
        let shutdown = cairn_runtime::shutdown::Shutdown::new();
        let running = cairn_datanode::start(config.clone(), shutdown.clone()).await.unwrap();
        let client = common::client(&running.address.to_string());
        (running, client, shutdown)
    };
    async fn disks(
        client: &mut v1::data_node_client::DataNodeClient<tonic::transport::Channel>,
    ) -> Vec<DiskHealth> {
        let status = client.get_node_status(GetNodeStatusRequest {}).await.unwrap().into_inner();
        status.node.unwrap().disks
    }
    let (running, mut client, shutdown) = run().await;
    let id = running.node;
    assert!(disks(&mut client).await.iter().all(|disk| disk.writable && disk.fault.is_empty()));
    // The directory vanishes under a running node.
    std::fs::rename(&b, &away).unwrap();
    let gone = async {
        while !disks(&mut client).await[1].fault.contains("vanished") {
            clock::sleep(Duration::from_millis(100)).await;
        }
    };
    clock::timeout(Duration::from_secs(20), gone).await.expect("nobody notices");
    assert!(disks(&mut client).await[0].writable);
    shutdown.request();
    running.wait().await.unwrap();

    // It can not be opened at the start.
    std::fs::write(&b, "no directory").unwrap();
    let (running, mut client, shutdown) = run().await;
    assert_eq!(running.node, id);
    let found = disks(&mut client).await;
    assert!(found[0].writable && !found[1].writable && !found[1].fault.is_empty(), "{found:?}");
    shutdown.request();
    running.wait().await.unwrap();

    // An empty directory may be the mountpoint of a disk that is not mounted.
    std::fs::remove_file(&b).unwrap();
    std::fs::create_dir(&b).unwrap();
    let (running, mut client, shutdown) = run().await;
    let found = disks(&mut client).await;
    assert!(found[0].writable && found[1].fault.contains("mount that disk"), "{found:?}");
    shutdown.request();
    running.wait().await.unwrap();

    // A new one takes its place when an operator says so.
    std::fs::write(b.join("NEW_DISK"), "").unwrap();
    let (running, mut client, shutdown) = run().await;
    assert_eq!(running.node, id);
    assert!(disks(&mut client).await.iter().all(|disk| disk.writable && disk.fault.is_empty()));
    shutdown.request();
    running.wait().await.unwrap();

    // Without any directory that says who the node is, it does not start.
    std::fs::remove_dir_all(&a).unwrap();
    std::fs::remove_dir_all(&b).unwrap();
    std::fs::write(&b, "no directory").unwrap();
    let error = cairn_datanode::start(config.clone(), Default::default()).await.unwrap_err();
    assert!(error.to_string().contains("data directory"), "{error}");
}
