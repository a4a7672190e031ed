//! Clients that ask for much, take nothing and end nothing: no process grows past what its configuration lets it, and
//! others are served on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_proto::v1::mutation::Op;
use cairn_proto::{ErrorKind, v1};
use cairn_tests::http2::{Deaf, message};
use cairn_tests::{Cluster, MIB, Wire};
use prost::Message;
use tower::ServiceExt;

const ROOT: u64 = 1;
/// What is held by a coordinator with the least memory besides its shares, as far as a test here can fill it.
const COORDINATOR_GROWTH_MAX: u64 = 224 * MIB;

fn cluster() -> Cluster {
    Cluster::builder().unmounted().env("CAIRN_COORDINATOR__MEMORY", "512 MiB").start()
}

#[track_caller]
fn check_growth(cluster: &mut Cluster, before: u64, most: u64) {
    let now = cluster.coordinator_process().resident();
    eprintln!("coordinator: {} MiB before, {} MiB now", before / MIB, now / MIB);
    assert!(now < before + most, "memory grew from {before} to {now} bytes");
}

fn file(name: String) -> Op {
    Op::Create(v1::Create {
        parent: ROOT,
        name: name.into(),
        kind: v1::InodeKind::File.into(),
        mode: 0o644,
        exclusive: true,
        ..v1::Create::default()
    })
}

fn apply(wire: &Wire, ops: Vec<Op>) -> Vec<v1::MutationResult> {
    let mutations = ops.into_iter().map(|op| v1::Mutation { op: Some(op), ..v1::Mutation::default() });
    let request = v1::ApplyRequest {
        id: Some(wire.next_id()),
        mutations: mutations.collect(),
        credentials: Some(v1::Credentials::default()),
        want_leases: false,
        earlier: Vec::new(),
    };
    wire.call(wire.coordinator().apply(request)).expect("Apply").results
}

#[test]
fn large_values_do_not_stay_in_the_memory_of_the_coordinator() {
    let mut cluster = cluster();
    let wire = cluster.wire();
    let before = cluster.coordinator_process().resident();
    let value = Bytes::from(vec![7; 65_000]);
    for batch in 0..40 {
        let made = apply(&wire, (0..150).map(|index| file(format!("f{batch}-{index}"))).collect());
        let set = |result: v1::MutationResult| {
            let inode = result.attr.expect("attributes").inode;
            let value = value.clone();
            let name = Bytes::from_static(b"user.big");
            Op::SetXattr(v1::SetXattr { inode, name, value, ..v1::SetXattr::default() })
        };
        let results = apply(&wire, made.into_iter().map(set).collect());
        assert!(results.iter().all(|result| result.error == 0), "{:?}", results.first());
        check_growth(&mut cluster, before, COORDINATOR_GROWTH_MAX);
    }
}

#[test]
fn replies_that_many_sessions_leave_behind_stay_within_their_share() {
    let mut cluster = cluster();
    let before = cluster.coordinator_process().resident();
    let mut wires = Vec::new();
    for index in 0..100 {
        let wire = cluster.wire();
        // Each slot keeps its last reply; these change nothing, so that no store has them.
        for slot in 0..60 {
            let op = Op::Unlink(v1::Unlink { parent: ROOT, name: format!("none-{index}").into() });
            let mutations = vec![v1::Mutation { op: Some(op), ..v1::Mutation::default() }; 1024];
            let id = v1::RequestId { session: wire.session(), slot, sequence: 1 };
            let request = v1::ApplyRequest {
                id: Some(id),
                mutations,
                credentials: Some(v1::Credentials::default()),
                want_leases: false,
                earlier: Vec::new(),
            };
            let results = wire.call(wire.coordinator().apply(request)).expect("Apply").results;
            assert_eq!(results.len(), 1024);
        }
        wires.push(wire);
    }
    // All of them together take 200 MiB.
    check_growth(&mut cluster, before, 96 * MIB);
}

#[test]
fn listings_that_nobody_takes_are_held_back_and_others_are_served() {
    let mut cluster = cluster();
    let wire = cluster.wire();
    for batch in 0..18 {
        let name = |index| format!("{batch:03}-{index:04}-{}", "n".repeat(220));
        apply(&wire, (0..1000).map(|index| file(name(index))).collect());
    }
    let before = cluster.coordinator_process().resident();
    let request = v1::ReadDirRequest { inode: ROOT, limit: 65_536, ..v1::ReadDirRequest::default() };
    let request = message(&request.encode_to_vec());
    let deaf: Vec<_> = (0..3)
        .map(|_| {
            let mut deaf = Deaf::connect(cluster.coordinator_address(), 1);
            for _ in 0..100 {
                assert!(deaf.request("Coordinator/ReadDir", &request, true));
            }
            deaf
        })
        .collect();
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        assert!(wire.lookup("none").is_err_and(|error| error.kind == ErrorKind::NotFound));
        check_growth(&mut cluster, before, COORDINATOR_GROWTH_MAX);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(wire.list_root().len() >= 1000, "another client's listing is served");
    drop(deaf);
}

#[test]
fn messages_that_are_never_ended_are_held_back_and_let_go() {
    let mut cluster = cluster();
    let wire = cluster.wire();
    let before = cluster.coordinator_process().resident();
    let address = cluster.coordinator_address().to_owned();
    let _inside = cluster.runtime().enter();
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let channel = cairn_runtime::net::connect(&address).expect("address");
        for _ in 0..8 {
            sending.spawn(channel.clone().oneshot(unended("Coordinator/Apply")));
        }
    }
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        wire.create(&format!("beside-{}", until.duration_since(Instant::now()).as_millis()));
        check_growth(&mut cluster, before, COORDINATOR_GROWTH_MAX);
        std::thread::sleep(Duration::from_secs(1));
    }
    // A large message of somebody else gets its turn, since those that stand still are let go.
    let value = Bytes::from(vec![7; 60_000]);
    let inode = wire.create("large");
    let op = Op::SetXattr(v1::SetXattr {
        inode,
        name: Bytes::from_static(b"user.v"),
        value,
        ..v1::SetXattr::default()
    });
    let until = Instant::now() + Duration::from_secs(90);
    while let Err(error) = wire.apply(op.clone()) {
        assert!(Instant::now() < until, "{error:?}");
    }
    drop(sending);
}

/// A request that says that a message of 16 MiB comes, and sends all of it but the end.
fn unended(method: &str) -> http::Request<tonic::body::Body> {
    let prefix = [&[0], &(16 * MIB as u32).to_be_bytes()[..]].concat();
    let parts = [Bytes::from(prefix)].into_iter().chain(vec![Bytes::from(vec![0; MIB as usize]); 15]);
    let request = http::Request::post(format!("http://localhost/cairn.v1.{method}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    request.body(tonic::body::Body::new(Unended(parts.collect()))).expect("a request")
}

struct Unended(VecDeque<Bytes>);

impl http_body::Body for Unended {
    type Data = Bytes;
    type Error = tonic::Status;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        match self.0.pop_front() {
            Some(part) => Poll::Ready(Some(Ok(http_body::Frame::data(part)))),
            None => Poll::Pending,
        }
    }
}

#[test]
fn readers_that_take_nothing_do_not_stop_those_of_others() {
    let mut cluster = cluster();
    let wire = cluster.wire();
    let inode = wire.create("read");
    wire.upload(inode, 1, MIB, MIB);
    let layout = wire.layout(inode).expect("layout");
    let chunk = layout.chunks.first().expect("a chunk").clone();
    let before = cluster.node_process(0).resident();
    let request =
        v1::RetrieveChunkRequest { chunk: chunk.chunk, length: MIB, ..v1::RetrieveChunkRequest::default() };
    let request = message(&request.encode_to_vec());
    let address = cluster.node_address(0).to_owned();
    let deaf = |count: usize| -> Vec<_> {
        let connect = |_| {
            let mut deaf = Deaf::connect(&address, 1);
            for _ in 0..100 {
                let _ = deaf.request("DataNode/RetrieveChunk", &request, true);
            }
            deaf
        };
        (0..count).map(connect).collect()
    };
    let node = wire
        .nodes()
        .find(|(node, _)| wire.node_status(node).node.is_some_and(|found| found.address == address));
    let node = node.expect("the node").0.clone();
    let two = deaf(2);
    std::thread::sleep(Duration::from_secs(1));
    let read = wire.retrieve(&node, &chunk).expect("beside two that take nothing");
    assert_eq!(read.len() as u64, MIB);
    // So many that nothing is left for this address: they are let go in the end.
    let more = deaf(4);
    let until = Instant::now() + Duration::from_secs(120);
    while let Err(error) = wire.retrieve(&node, &chunk) {
        assert_eq!(error.kind, ErrorKind::Overloaded);
        assert!(Instant::now() < until, "they still hold all that there is");
    }
    let now = cluster.node_process(0).resident();
    assert!(now < before + 192 * MIB, "memory grew from {before} to {now} bytes");
    drop((two, more));
}
