//! Bad input to the calls that keep a cluster well: copies, inventories, repacking, scrub, the standing of
//! datanodes, work in the background, garbage, the check of everything, backups. What is refused has
//! changed nothing. For the calls of files and chunks see `bad_wire.rs`.

use bytes::Bytes;
use cairn_proto::ErrorKind::{self, *};
use cairn_proto::limits::CHUNK_SIZE_MAX;
use cairn_proto::v1;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::{WireError, checksum};
use cairn_tests::rpc::{Planned, frames};
use cairn_tests::table::{Row, all_is_well, check, first_error, memory, row};
use cairn_tests::{Cluster, KIB, Wire, pattern};
use tonic::transport::Channel;

const PAST: u64 = 1 << 63;
/// Ids that are none.
const BAD_IDS: [u64; 3] = [0, PAST, u64::MAX];
/// An id that was never granted.
const UNKNOWN: u64 = 1 << 50;
const LENGTH: usize = 100_000;

fn cluster() -> Cluster {
    Cluster::builder().unmounted().start()
}

fn first(wire: &Wire) -> DataNodeClient<Channel> {
    wire.nodes().next().expect("a datanode").1
}

fn bytes_of(byte: u8, count: usize) -> Bytes {
    vec![byte; count].into()
}

/// The error that a list of failed chunks names first.
fn first_failed(failed: Vec<v1::ChunkError>) -> Result<(), WireError> {
    failed.first().and_then(|f| WireError::from_fields(f.error, &f.message)).map_or(Ok(()), Err)
}

/// A change that makes a sound request a bad one.
type Change<T> = fn(&mut T);

/// A chunk that the first two members of its set hold and the third lacks.
fn store_on_two(wire: &Wire) -> (Planned, Vec<Bytes>) {
    let planned = wire.plan_one();
    let members = wire.members(planned.set);
    let mut frames = frames(&planned, &pattern::bytes(1, 0, LENGTH), true);
    frames[0].header.as_mut().unwrap().forward = vec![members[1].clone()];
    let acks = wire.send(&members[0], frames, true).expect("StoreChunk");
    assert!(acks[&planned.chunk].stored, "{acks:?}");
    assert_eq!(wire.holders(planned.chunk).len(), 2, "the third lacks it");
    (planned, members)
}

/// A request that makes the third member get its copy from the first.
fn copy_request(wire: &Wire) -> (v1::CopyChunksRequest, Vec<Bytes>) {
    let (planned, members) = store_on_two(wire);
    let map = wire.list_nodes().expect("ListNodes").map.expect("map");
    let source = map.nodes.iter().find(|node| node.node == members[0]).expect("the source");
    let asked = v1::CopyChunk {
        chunk: planned.chunk,
        set: planned.set,
        length: LENGTH as u64,
        crc32c: checksum::crc32c(&pattern::bytes(1, 0, LENGTH)),
        sources: vec![v1::CopySource { node: members[0].clone(), address: source.address.clone() }],
    };
    (v1::CopyChunksRequest { chunks: vec![asked], bytes_per_second: 0 }, members)
}

/// What a datanode answers to a request for copies: the first error, of the call or of a chunk.
fn copy(wire: &Wire, node: &Bytes, request: v1::CopyChunksRequest) -> Result<(), WireError> {
    let mut client = wire.node(node);
    let mut told = Ok(());
    let answered = first_error(wire, async {
        let mut answers = client.copy_chunks(request).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if let Some(error) = WireError::from_fields(answer.error, &answer.message) {
                told = Err(error);
            }
        }
        Ok(())
    });
    answered.and(told)
}

#[test]
fn copies() {
    let mut cluster = cluster();
    let changes: &[(&str, &'static [ErrorKind], Change<v1::CopyChunksRequest>)] = &[
        ("no chunks", &[InvalidArgument], |r| r.chunks.clear()),
        ("4,097 chunks", &[InvalidArgument], |r| {
            r.chunks = (1..4098).map(|chunk| v1::CopyChunk { chunk, ..r.chunks[0].clone() }).collect();
        }),
        ("a chunk twice", &[InvalidArgument], |r| r.chunks.push(r.chunks[0].clone())),
        ("chunk 0", &[InvalidArgument], |r| r.chunks[0].chunk = 0),
        ("chunk 2^63", &[InvalidArgument], |r| r.chunks[0].chunk = PAST),
        ("set 0", &[InvalidArgument], |r| r.chunks[0].set = 0),
        ("set 2^64 - 1", &[InvalidArgument], |r| r.chunks[0].set = u64::MAX),
        ("no bytes", &[InvalidArgument], |r| r.chunks[0].length = 0),
        ("a byte more than 64 MiB", &[InvalidArgument], |r| r.chunks[0].length = CHUNK_SIZE_MAX + 1),
        ("2^32 bytes more than there are", &[InvalidArgument], |r| r.chunks[0].length += 1 << 32),
        ("2^64 - 1 bytes", &[InvalidArgument], |r| r.chunks[0].length = u64::MAX),
        ("no sources", &[InvalidArgument], |r| r.chunks[0].sources.clear()),
        ("33 sources", &[InvalidArgument], |r| {
            r.chunks[0].sources = vec![r.chunks[0].sources[0].clone(); 33];
        }),
        ("a source of 3 bytes", &[InvalidArgument], |r| r.chunks[0].sources[0].node = bytes_of(1, 3)),
        ("no address", &[InvalidArgument], |r| r.chunks[0].sources[0].address.clear()),
        ("an address without a port", &[InvalidArgument], |r| {
            r.chunks[0].sources[0].address = "localhost".into();
        }),
        ("an address of 1 MiB", &[InvalidArgument], |r| {
            r.chunks[0].sources[0].address = format!("{}:1", "a".repeat(1 << 20));
        }),
        ("a path in the address", &[InvalidArgument], |r| {
            r.chunks[0].sources[0].address = "localhost/../x:1".into();
        }),
        ("a source that nobody listens at", &[Unavailable], |r| {
            r.chunks[0].sources[0].address = "127.0.0.1:9".into();
        }),
        ("a chunk that the source lacks", &[ChunkNotFound], |r| r.chunks[0].chunk = UNKNOWN),
        ("another checksum", &[ChecksumMismatch, Corrupt], |r| r.chunks[0].crc32c ^= 1),
        ("a byte less than there is", &[ChecksumMismatch, Corrupt, InvalidArgument], |r| {
            r.chunks[0].length -= 1;
        }),
        ("a byte more than there is", &[ChecksumMismatch, Corrupt, InvalidArgument], |r| {
            r.chunks[0].length += 1;
        }),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for &(what, expected, change) in changes {
        rows.push(row(format!("CopyChunks with {what}"), expected, move |wire| {
            let (mut request, members) = copy_request(wire);
            let chunk = request.chunks[0].chunk;
            change(&mut request);
            let told = copy(wire, &members[2], request);
            assert_eq!(wire.holders(chunk).len(), 2, "{what}: a copy was kept");
            told
        }));
    }
    check(&mut cluster, rows);
    // The sound request, at a speed that is none: so a row is refused for what it changes, not for the rest.
    let wire = cluster.wire();
    let (mut request, members) = copy_request(&wire);
    request.bytes_per_second = u64::MAX;
    let chunk = request.chunks[0].chunk;
    copy(&wire, &members[2], request).expect("CopyChunks");
    assert_eq!(wire.holders(chunk).len(), 3);
}

#[test]
fn inventories() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    let summarize = |first_id: u64, span: u64, ranges: u32| {
        move |wire: &Wire| {
            let request = v1::SummarizeChunksRequest { first: first_id, span, ranges };
            wire.call(first(wire).summarize_chunks(request)).map(drop)
        }
    };
    let list = |first_id: u64, last: u64, limit: u32| {
        move |wire: &Wire| {
            let request = v1::ListChunksRequest { first: first_id, last, limit };
            wire.call(first(wire).list_chunks(request)).map(drop)
        }
    };
    for id in BAD_IDS {
        rows.push(row(format!("SummarizeChunks from {id}"), &[InvalidArgument], summarize(id, 10, 10)));
        rows.push(row(format!("ListChunks from {id}"), &[InvalidArgument], list(id, 10, 10)));
        rows.push(row(format!("ListChunks to {id}"), &[InvalidArgument], list(1, id, 10)));
        rows.push(row(format!("RestoreChunks of {id}"), &[InvalidArgument], move |wire| {
            let request = v1::RestoreChunksRequest { chunks: vec![id] };
            first_failed(wire.call(first(wire).restore_chunks(request))?.failed)
        }));
    }
    for (span, ranges) in [(0, 1), ((1 << 32) + 1, 1), (u64::MAX, 1), (1, 0), (1, 4097), (1, u32::MAX)] {
        let what = format!("SummarizeChunks of {ranges} ranges of {span}");
        rows.push(row(what, &[InvalidArgument], summarize(1, span, ranges)));
    }
    rows.push(row("ListChunks of falling ids", &[InvalidArgument], list(10, 9, 10)));
    for limit in [0, 65_537, u32::MAX] {
        rows.push(row(format!("ListChunks of {limit}"), &[InvalidArgument], list(1, 10, limit)));
    }
    rows.push(row("RestoreChunks of 65,537", &[InvalidArgument], |wire| {
        let request = v1::RestoreChunksRequest { chunks: (1..65_538).collect() };
        wire.call(first(wire).restore_chunks(request)).map(drop)
    }));
    rows.push(row("RestoreChunks of what was never there", &[ChunkNotFound], |wire| {
        let request = v1::RestoreChunksRequest { chunks: vec![UNKNOWN] };
        first_failed(wire.call(first(wire).restore_chunks(request))?.failed)
    }));
    check(&mut cluster, rows);
    // The widest that may be asked for, up to the highest id, costs nothing.
    let wire = cluster.wire();
    let request = v1::SummarizeChunksRequest { first: PAST - 1, span: 1 << 32, ranges: 4096 };
    let ranges = wire.call(first(&wire).summarize_chunks(request)).expect("SummarizeChunks").ranges;
    assert!(ranges.len() == 4096 && ranges.iter().all(|range| range.count == 0));
    let request = v1::ListChunksRequest { first: 1, last: PAST - 1, limit: 65_536 };
    let listed = wire.call(first(&wire).list_chunks(request)).expect("ListChunks");
    assert!(listed.complete && !listed.chunks.is_empty(), "{listed:?}");
}

/// A request to make a new chunk of two parts of one that is stored.
fn repack_request(wire: &Wire) -> (v1::RepackChunksRequest, Bytes) {
    let source = wire.plan_one();
    wire.store(&source, &pattern::bytes(1, 0, LENGTH), true);
    // The new one has to be of the same set.
    let made = std::iter::repeat_with(|| wire.plan_one()).take(100).find(|made| made.set == source.set);
    let made = made.expect("a chunk of the same set");
    let header = v1::StoreHeader {
        set: made.set,
        epoch: made.epoch,
        length: 30_000,
        token: made.token,
        ..v1::StoreHeader::default()
    };
    let part = |offset, length| v1::ChunkPart { chunk: source.chunk, offset, length };
    let parts = vec![part(5, 10_000), part(50_000, 20_000)];
    let request = v1::RepackChunksRequest { chunk: made.chunk, header: Some(header), parts };
    (request, wire.members(source.set).remove(0))
}

#[test]
fn repacking() {
    let mut cluster = cluster();
    let changes: &[(&str, &'static [ErrorKind], Change<v1::RepackChunksRequest>)] = &[
        ("chunk 0", &[InvalidArgument], |r| r.chunk = 0),
        ("chunk 2^63", &[InvalidArgument], |r| r.chunk = PAST),
        ("no header", &[InvalidArgument], |r| r.header = None),
        ("set 0", &[InvalidArgument], |r| r.header.as_mut().unwrap().set = 0),
        ("set 2^63", &[InvalidArgument], |r| r.header.as_mut().unwrap().set = PAST),
        ("epoch 2^64 - 1", &[InvalidArgument], |r| r.header.as_mut().unwrap().epoch = u64::MAX),
        ("members of 3 bytes", &[InvalidArgument], |r| {
            r.header.as_mut().unwrap().forward = vec![bytes_of(1, 3)];
        }),
        ("1,000 members", &[InvalidArgument], |r| {
            r.header.as_mut().unwrap().forward = vec![bytes_of(1, 16); 1000];
        }),
        ("no parts", &[InvalidArgument], |r| r.parts.clear()),
        ("65,537 parts", &[InvalidArgument], |r| r.parts = vec![r.parts[0]; 65_537]),
        ("a part of chunk 0", &[InvalidArgument], |r| r.parts[1].chunk = 0),
        ("a part of chunk 2^64 - 1", &[InvalidArgument], |r| r.parts[1].chunk = u64::MAX),
        ("a part of itself", &[InvalidArgument], |r| r.parts[1].chunk = r.chunk),
        ("a part of no bytes", &[InvalidArgument], |r| r.parts[1].length = 0),
        ("a part at 2^63", &[InvalidArgument], |r| r.parts[1].offset = PAST),
        ("a part that ends past 2^64", &[InvalidArgument], |r| r.parts[1].offset = u64::MAX - 5),
        ("a part of 2^64 - 1 bytes", &[InvalidArgument], |r| r.parts[1].length = u64::MAX),
        ("parts that do not add up", &[InvalidArgument], |r| r.parts[1].length -= 1),
        ("a length of 2^64 - 1", &[InvalidArgument], |r| r.header.as_mut().unwrap().length = u64::MAX),
        ("parts of more than 64 MiB", &[InvalidArgument], |r| {
            r.parts = vec![v1::ChunkPart { offset: 0, length: CHUNK_SIZE_MAX, ..r.parts[0] }; 2];
            r.header.as_mut().unwrap().length = 2 * CHUNK_SIZE_MAX;
        }),
        ("a part past the end of its chunk", &[InvalidArgument], |r| r.parts[1].offset = 90_000),
        ("a part of what is not there", &[ChunkNotFound], |r| r.parts[1].chunk = UNKNOWN),
    ];
    let mut rows = Vec::new();
    for &(what, expected, change) in changes {
        rows.push(row(format!("RepackChunks with {what}"), expected, move |wire| {
            let (mut request, node) = repack_request(wire);
            let chunk = request.chunk;
            change(&mut request);
            let told = wire.call(wire.node(&node).repack_chunks(request)).map(drop);
            assert_eq!(wire.holders(chunk).len(), 0, "{what}: something was kept");
            told
        }));
    }
    check(&mut cluster, rows);
    let wire = cluster.wire();
    let (request, node) = repack_request(&wire);
    let made = wire.call(wire.node(&node).repack_chunks(request.clone())).expect("RepackChunks");
    let data = [pattern::bytes(1, 5, 10_000), pattern::bytes(1, 50_000, 20_000)].concat();
    assert_eq!(made.crc32c, checksum::crc32c(&data));
    let again = wire.call(wire.node(&node).repack_chunks(request)).expect_err("it is there already");
    assert_eq!(again.kind, ChunkExists, "{again}");
}

/// Values that name no action.
const BAD_ACTIONS: [i32; 5] = [0, 99, -1, i32::MIN, i32::MAX];

#[test]
fn administration() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    let first_id = |wire: &Wire| wire.nodes().next().expect("a datanode").0.clone();
    let admin = |wire: &Wire, request: v1::SetNodeAdminRequest| {
        wire.call(wire.coordinator().set_node_admin(request)).map(drop)
    };
    let drain = v1::NodeAction::Drain.into();
    for (what, node, expected) in [
        ("no id", Bytes::new(), &[InvalidArgument][..]),
        ("an id of 15 bytes", bytes_of(1, 15), &[InvalidArgument]),
        ("an id of 1 MiB", bytes_of(1, 1 << 20), &[InvalidArgument]),
        ("an id of nobody", bytes_of(1, 16), &[NotFound]),
    ] {
        let by = node.clone();
        rows.push(row(format!("SetNodeAdmin with {what}"), expected, move |wire| {
            let action = drain;
            admin(wire, v1::SetNodeAdminRequest { node, action, ..v1::SetNodeAdminRequest::default() })
        }));
        rows.push(row(
            format!("SetNodeAdmin with {what} as the replacement"),
            &[InvalidArgument, NotFound],
            move |wire| {
                let action = v1::NodeAction::Replace.into();
                let (node, replacement) = (first_id(wire), by);
                admin(wire, v1::SetNodeAdminRequest { node, action, replacement, force: false })
            },
        ));
    }
    for action in BAD_ACTIONS {
        rows.push(row(format!("SetNodeAdmin of action {action}"), &[InvalidArgument], move |wire| {
            let node = first_id(wire);
            admin(wire, v1::SetNodeAdminRequest { node, action, ..v1::SetNodeAdminRequest::default() })
        }));
        rows.push(row(format!("ControlWorker of action {action}"), &[InvalidArgument], move |wire| {
            let request = v1::ControlWorkerRequest { worker: "repair".into(), action };
            wire.call(wire.coordinator().control_worker(request)).map(drop)
        }));
        rows.push(row(format!("ControlGc of action {action}"), &[InvalidArgument], move |wire| {
            wire.call(wire.coordinator().control_gc(v1::ControlGcRequest { action })).map(drop)
        }));
    }
    rows.push(row("SetNodeAdmin of a datanode that replaces itself", &[InvalidArgument], move |wire| {
        let node = first_id(wire);
        let replacement = node.clone();
        let action = v1::NodeAction::Replace.into();
        admin(wire, v1::SetNodeAdminRequest { node, action, replacement, force: false })
    }));
    rows.push(row("SetNodeAdmin that removes what holds copies", &[Busy], move |wire| {
        let planned = wire.plan_one();
        let node = wire.members(planned.set).remove(0);
        let action = v1::NodeAction::Remove.into();
        admin(wire, v1::SetNodeAdminRequest { node, action, ..v1::SetNodeAdminRequest::default() })
    }));
    for worker in [String::new(), "Repair".into(), "no-such\0".into(), "w".repeat(1 << 20)] {
        let what = format!("ControlWorker of a name of {} bytes", worker.len());
        rows.push(row(what, &[InvalidArgument], move |wire| {
            let action = v1::WorkerAction::Pause.into();
            wire.call(wire.coordinator().control_worker(v1::ControlWorkerRequest { worker, action }))
                .map(drop)
        }));
    }
    let scrub = |nodes: Vec<Bytes>| {
        move |wire: &Wire| {
            let request = v1::ScrubNodesRequest { nodes, start: true, bytes_per_second: 1 };
            wire.call(wire.coordinator().scrub_nodes(request)).map(drop)
        }
    };
    rows.push(row("ScrubNodes of no id", &[InvalidArgument], scrub(vec![Bytes::new()])));
    rows.push(row("ScrubNodes of 17 bytes", &[InvalidArgument], scrub(vec![bytes_of(1, 17)])));
    rows.push(row("ScrubNodes of nobody", &[NotFound], scrub(vec![bytes_of(1, 16)])));
    rows.push(row("ScrubNodes of 500,000 ids", &[NotFound, InvalidArgument], {
        scrub((0..500_000_u128).map(|id| Bytes::copy_from_slice(&id.to_be_bytes())).collect())
    }));
    rows.push(row("Backup to a place that there is not", &[InvalidArgument], |wire| {
        let mut client = wire.coordinator();
        first_error(wire, async move {
            let mut answers = client.backup(v1::BackupRequest { to_place: true }).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        })
    }));
    check(&mut cluster, rows);
    let wire = cluster.wire();
    let map = wire.list_nodes().expect("ListNodes").map.expect("map");
    assert!(map.nodes.iter().all(|node| node.admin() == v1::AdminState::In), "{:#?}", map.nodes);
    let gc = wire.call(wire.coordinator().get_gc_status(v1::GetGcStatusRequest {})).expect("GetGcStatus");
    assert_eq!((gc.paused_ns, gc.rolled_back_ns), (0, 0), "deletion goes on");
    let paused = |worker: &v1::WorkerStatus| worker.state() == v1::WorkerState::Paused;
    assert!(!wire.status().workers.iter().any(paused), "work goes on");
}

#[test]
fn passes_at_speeds_that_are_none_and_streams_that_nobody_reads() {
    let mut cluster = cluster();
    let before = memory(&mut cluster);
    let wire = cluster.wire();
    let inode = wire.create("scrubbed");
    wire.upload(inode, 3, 1 << 20, 64 * KIB);
    for rate in [u64::MAX, 1] {
        for (_, mut node) in wire.nodes() {
            let request = v1::ScrubRequest { start: true, bytes_per_second: rate };
            let answer = wire.call(node.scrub(request)).expect("Scrub");
            assert!(answer.status.is_some());
        }
    }
    // Streams that are opened and given up, and some that are held and not read.
    let mut held = Vec::new();
    for number in 0..200 {
        let mut client = wire.coordinator();
        let backup = wire.call(client.backup(v1::BackupRequest { to_place: false })).expect("Backup");
        if number < 8 {
            held.push(backup);
        }
    }
    let fsck = wire.block_on(async {
        let mut client = wire.coordinator();
        client.fsck(v1::FsckRequest { repair: false, skip_datanodes: false }).await
    });
    drop(fsck);
    all_is_well(&mut cluster, before);
    drop(held);
    // And a check can be had by the next one.
    let output = cluster.run_ok(&["fsck"]);
    assert!(!output.is_empty());
}
