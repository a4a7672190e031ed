//! Three datanodes over real gRPC on loopback: what a client, and the other nodes, can observe.

use std::time::Duration;

use cairn_proto::checksum::crc32c;
use cairn_proto::v1::*;
use cairn_proto::{ErrorKind, wire_error_of};
use cairn_runtime::clock;

use crate::common;
use crate::common::{Cluster, SET, content, frames, retrieve, silent_node};

const K64: usize = 64 << 10;

fn kind(number: u32) -> ErrorKind {
    ErrorKind::from_number(number).unwrap()
}

async fn assert_absent(cluster: &Cluster, chunk: u64) {
    // Aborts travel to the replicas without an answer.
    let gone = async {
        for node in 0..cluster.nodes.len() {
            loop {
                match retrieve(&mut cluster.client(node), chunk, 0, 1).await {
                    Err(status) if wire_error_of(&status).kind == ErrorKind::ChunkNotFound => break,
                    other => assert!(other.is_err(), "node {node} serves chunk {chunk}"),
                }
                clock::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    clock::timeout(Duration::from_secs(5), gone).await.expect("the chunk stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_once_is_on_every_replica() {
    let cluster = Cluster::start(3).await;
    let mut stream = cluster.stream(0).await;
    let sizes = [1, 4096, K64 - 1, K64, K64 + 1, (1 << 20) - 1, (8 << 20) + 1, 64 << 20];
    for (chunk, &size) in (10u64..).zip(&sizes) {
        let data = content(chunk, size);
        let header = StoreHeader { sync: size == 4096, ..cluster.header(size as u64) };
        let ack = stream.store(chunk, header, &data).await;
        assert!(ack.stored && ack.failed.is_empty(), "{size}: {ack:?}");
        assert_eq!((ack.stored_by.len(), ack.synced, ack.received), (3, size == 4096, size as u64));
        for node in 0..3 {
            let mut client = cluster.client(node);
            assert!(retrieve(&mut client, chunk, 0, size as u64).await.unwrap() == (0, data.clone()));
            let stat = client.stat_chunks(StatChunksRequest { chunks: vec![chunk], verify: true }).await;
            let stat = stat.unwrap().into_inner().chunks.remove(0);
            assert_eq!((stat.length, stat.crc32c, stat.error), (size as u64, crc32c(&data), 0));
        }
    }
    // Ranges come as the whole blocks that hold them.
    let data = content(16, sizes[6]);
    let mut client = cluster.client(2);
    let (start, bytes) = retrieve(&mut client, 16, 100_000, 200_000).await.unwrap();
    assert_eq!(start, K64 as u64);
    assert!(bytes == data[K64..K64 + bytes.len()] && bytes.len() >= 200_000 + 100_000 - K64);
    for (offset, length) in [(0, 0), (0, sizes[6] as u64 + 1), (u64::MAX, 2), (1 << 63, 1)] {
        let error = retrieve(&mut client, 16, offset, length).await.unwrap_err();
        assert_eq!(wire_error_of(&error).kind, ErrorKind::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interleaved_chunks_each_get_their_acknowledgement() {
    let cluster = Cluster::start(3).await;
    let mut stream = cluster.stream(1).await;
    let chunks: Vec<(u64, Vec<u8>)> = (1..=8).map(|chunk| (chunk, content(chunk, 2 << 20))).collect();
    let mut all: Vec<_> =
        chunks.iter().map(|(chunk, data)| frames(*chunk, cluster.header(2 << 20), data)).collect();
    while all.iter().any(|frames| !frames.is_empty()) {
        for frames in &mut all {
            if !frames.is_empty() {
                stream.send(frames.remove(0)).await;
            }
        }
    }
    for _ in &chunks {
        let ack = stream.ack().await;
        assert!(ack.stored && ack.stored_by.len() == 3, "{ack:?}");
    }
    for (chunk, data) in &chunks {
        assert!(retrieve(&mut cluster.client(0), *chunk, 0, 2 << 20).await.unwrap().1 == *data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_broken_chunk_gets_its_error_and_leaves_nothing_and_the_stream_goes_on() {
    let cluster = Cluster::start(3).await;
    let mut stream = cluster.stream(0).await;
    let len = 3 * 256 * 1024;
    let whole = |chunk: u64| frames(chunk, cluster.header(len as u64), &content(chunk, len));
    type Break = fn(&mut Vec<StoreFrame>);
    let breaks: [(&str, ErrorKind, Break); 11] = [
        ("checksum", ErrorKind::ChecksumMismatch, |f| f[1].crc32c[2] ^= 1),
        ("checksum count", ErrorKind::ChecksumMismatch, |f| _ = f[1].crc32c.pop()),
        ("gap", ErrorKind::InvalidArgument, |f| drop(f.remove(1))),
        ("overlap", ErrorKind::InvalidArgument, |f| f[1].offset -= 65_536),
        ("short", ErrorKind::InvalidArgument, |f| {
            f.pop();
            f[1].is_final = true;
        }),
        ("data past the end", ErrorKind::InvalidArgument, |f| f[0].header.as_mut().unwrap().length -= 1),
        ("second header", ErrorKind::InvalidArgument, |f| f[1].header = f[0].header.clone()),
        ("no header", ErrorKind::InvalidArgument, |f| f[0].header = None),
        ("unknown set", ErrorKind::StaleEpoch, |f| f[0].header.as_mut().unwrap().set = 99),
        ("stale epoch", ErrorKind::StaleEpoch, |f| f[0].header.as_mut().unwrap().epoch -= 1),
        ("length", ErrorKind::InvalidArgument, |f| f[0].header.as_mut().unwrap().length = 1 << 40),
    ];
    for (chunk, (name, expected, spoil)) in (100u64..).zip(breaks) {
        let mut frames = whole(chunk);
        spoil(&mut frames);
        for frame in frames {
            stream.send(frame).await;
        }
        let ack = stream.ack().await;
        assert_eq!((ack.chunk, kind(ack.error)), (chunk, expected), "{name}: {}", ack.message);
        assert!(!ack.stored && !ack.message.is_empty());
        assert_absent(&cluster, chunk).await;
    }
    let ack = stream.store(200, cluster.header(10), &content(200, 10)).await;
    assert!(ack.stored && ack.stored_by.len() == 3, "{ack:?}");
    let again = stream.store(200, cluster.header(10), &content(200, 10)).await;
    assert_eq!(kind(again.error), ErrorKind::ChunkExists);
    let ack = stream.store(0, cluster.header(10), &content(1, 10)).await;
    assert_eq!(kind(ack.error), ErrorKind::InvalidArgument);
    let foreign = StoreHeader { forward: vec![vec![9; 16].into()], ..cluster.header(10) };
    assert_eq!(kind(stream.store(201, foreign, &content(201, 10)).await.error), ErrorKind::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_or_an_abort_in_the_middle_of_a_chunk_leaves_nothing() {
    let cluster = Cluster::start(3).await;
    let mut stream = cluster.stream(0).await;
    let parts = frames(1, cluster.header(1 << 20), &content(1, 1 << 20));
    stream.send(parts[0].clone()).await;
    stream.send(parts[1].clone()).await;
    stream.finish();
    let ack = stream.ack().await;
    assert_eq!(kind(ack.error), ErrorKind::InvalidArgument);
    assert!(ack.message.contains("short"), "{}", ack.message);
    assert_absent(&cluster, 1).await;

    let mut stream = cluster.stream(0).await;
    let parts = frames(2, cluster.header(1 << 20), &content(2, 1 << 20));
    stream.send(parts[0].clone()).await;
    stream.send(StoreFrame { chunk: 2, abort: true, ..StoreFrame::default() }).await;
    assert_eq!(kind(stream.ack().await.error), ErrorKind::Interrupted);
    assert_absent(&cluster, 2).await;

    // A connection that breaks.
    let stream = cluster.stream(0).await;
    let parts = frames(3, cluster.header(1 << 20), &content(3, 1 << 20));
    stream.send(parts[0].clone()).await;
    drop(stream);
    assert_absent(&cluster, 3).await;
}

/// A replica is given up after 3.5 s of silence; the rest is for a busy machine. What this must not
/// reach is the 15 s after which a replica that shows signs of life is given up.
const GIVEN_UP: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_replica_is_named_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    let mut stream = cluster.stream(0).await;
    assert!(stream.store(1, cluster.header(10), &content(1, 10)).await.failed.is_empty());
    let parts = frames(2, cluster.header(4 << 20), &content(2, 4 << 20));
    stream.send(parts[0].clone()).await;
    cluster.nodes[2].kill();
    for part in &parts[1..] {
        stream.send(part.clone()).await;
    }
    let started = clock::now();
    let ack = stream.ack().await;
    assert!(started.elapsed() < GIVEN_UP, "{:?}", started.elapsed());
    assert!(ack.stored && ack.stored_by.len() == 2, "{ack:?}");
    assert_eq!(ack.failed[0].node, cluster.nodes[2].id.to_wire());
    assert_eq!(kind(ack.failed[0].error), ErrorKind::Unavailable);
    let ack = stream.store(3, cluster.header(10), &content(3, 10)).await;
    assert_eq!((ack.stored_by.len(), ack.failed.len()), (2, 1));
    for node in 0..2 {
        assert!(retrieve(&mut cluster.client(node), 2, 0, 4 << 20).await.unwrap().1 == content(2, 4 << 20));
    }
    // Known to be down, it is not waited for, and still named.
    cluster.membership.change(|map| map.nodes[2].state = NodeState::Down.into());
    cluster.settle().await;
    let ack = stream.store(4, cluster.header(10), &content(4, 10)).await;
    assert_eq!((ack.stored_by.len(), ack.failed.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_replica_is_given_up_long_before_its_connection() {
    let cluster = Cluster::start(2).await;
    let address = silent_node().await;
    cluster.membership.add(Node {
        node: vec![5; 16].into(),
        address,
        state: NodeState::Up.into(),
        ..Node::default()
    });
    cluster.settle().await;
    let mut stream = cluster.stream(0).await;
    let started = clock::now();
    let ack = stream.store(1, cluster.header(16 << 20), &content(1, 16 << 20)).await;
    assert!(started.elapsed() < GIVEN_UP, "{:?}", started.elapsed());
    assert!(ack.stored && ack.stored_by.len() == 2, "{ack:?}");
    assert_eq!(ack.failed[0].node.as_ref(), [5; 16]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_behind_catches_up_and_an_old_epoch_is_refused() {
    let cluster = Cluster::start(2).await;
    let mut stream = cluster.stream(0).await;
    let old = cluster.header(10);
    let ahead = StoreHeader { epoch: old.epoch + 1, ..old.clone() };
    for frame in frames(1, ahead, &content(1, 10)) {
        stream.send(frame).await;
    }
    clock::sleep(Duration::from_millis(200)).await;
    cluster.membership.raise_epoch();
    assert!(stream.ack().await.stored);
    assert_eq!(kind(stream.store(2, old, &content(2, 10)).await.error), ErrorKind::StaleEpoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_is_fenced_and_syncing_reports_what_is_not_there() {
    let mut cluster = Cluster::start(1).await;
    let mut stream = cluster.stream(0).await;
    for chunk in 1..=2 {
        assert!(stream.store(chunk, cluster.header(100), &content(chunk, 100)).await.stored);
    }
    let mut client = cluster.client(0);
    let synced = client.sync_chunks(SyncChunksRequest { chunks: vec![1, 99] }).await.unwrap().into_inner();
    assert_eq!(synced.failed.len(), 1);
    assert_eq!((synced.failed[0].chunk, kind(synced.failed[0].error)), (99, ErrorKind::ChunkNotFound));
    let stats = client.stat_chunks(StatChunksRequest { chunks: vec![1, 99], verify: false }).await.unwrap();
    let stats = stats.into_inner().chunks;
    assert!(stats[0].present && stats[0].synced && !stats[1].present);

    let delete = |term, epoch| DeleteChunksRequest { chunks: vec![1], term, epoch, sequence: 0 };
    let newer = client.delete_chunks(delete(5, 3)).await.unwrap().into_inner();
    assert!(newer.failed.is_empty());
    assert_absent(&cluster, 1).await;
    for (term, epoch) in [(4, 100), (1, 3), (5, 2)] {
        let error = client.delete_chunks(delete(term, epoch)).await.unwrap_err();
        assert_eq!(wire_error_of(&error).kind, ErrorKind::StaleEpoch);
    }
    // Also after a restart.
    cluster.nodes[0].stop().await;
    let config = cluster.config(cluster.nodes[0].dir.path());
    let shutdown = cairn_runtime::shutdown::Shutdown::new();
    let running = cairn_datanode::start(config, shutdown.clone()).await.unwrap();
    assert_eq!(running.node, cluster.nodes[0].id);
    let mut client = common::client(&running.address.to_string());
    let error = client.delete_chunks(delete(4, 100)).await.unwrap_err();
    assert_eq!(wire_error_of(&error).kind, ErrorKind::StaleEpoch);
    assert!(retrieve(&mut client, 2, 0, 100).await.unwrap().1 == content(2, 100));
    shutdown.request();
    running.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_leave_and_says_how_it_is() {
    let mut cluster = Cluster::start(2).await;
    let status = cluster.client(0).get_node_status(GetNodeStatusRequest {}).await.unwrap().into_inner();
    let node = status.node.unwrap();
    assert!(node.capacity > 0 && node.disks.len() == 1 && node.disks[0].writable);
    // Both ends of idle streams are open; stopping must not wait for them.
    let _idle = cluster.stream(0).await;
    let started = clock::now();
    let id = cluster.nodes[0].id;
    cluster.nodes[0].stop().await;
    assert!(started.elapsed() < GIVEN_UP, "{:?}", started.elapsed());
    assert!(cluster.membership.beats.lock().unwrap()[&id].leaving);
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_can_not_be_used_are_refused_with_a_sentence() {
    let mut cluster = Cluster::start(1).await;
    let config = cluster.config(cluster.nodes[0].dir.path());
    let error = cairn_datanode::start(config.clone(), Default::default()).await.unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    cluster.nodes[0].stop().await;

    let other = Cluster::empty().await;
    other.membership.change(|map| map.cluster = vec![8; 16].into());
    let moved = cairn_datanode::DatanodeConfig { coordinator: other.coordinator.clone(), ..config.clone() };
    let running = cairn_datanode::start(moved, Default::default()).await.unwrap();
    let error = clock::timeout(Duration::from_secs(10), running.wait()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongCluster);
    assert!(error.to_string().contains("belongs to cluster"), "{error}");

    let outside = cairn_datanode::DatanodeConfig { listen: "0.0.0.0:0".into(), ..config };
    let error = cairn_datanode::start(outside, Default::default()).await.unwrap_err();
    assert!(error.to_string().contains("insecure"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_claims_cost_nothing() {
    let cluster = Cluster::start(1).await;
    let mut client = cluster.client(0);
    let many = SyncChunksRequest { chunks: (1..70_000).collect() };
    let error = client.sync_chunks(many).await.unwrap_err();
    assert_eq!(wire_error_of(&error).kind, ErrorKind::InvalidArgument);
    let error =
        client.stat_chunks(StatChunksRequest { chunks: vec![u64::MAX], verify: true }).await.unwrap_err();
    assert_eq!(wire_error_of(&error).kind, ErrorKind::InvalidArgument);
    let mut stream = cluster.stream(0).await;
    let header = StoreHeader { set: SET, epoch: u64::MAX, length: u64::MAX, ..StoreHeader::default() };
    let ack = stream.store(u64::MAX, header, &content(1, 10)).await;
    assert_eq!(kind(ack.error), ErrorKind::InvalidArgument);
}
