//! The life of a file as the design's overview tells it, over real processes: plan, store, commit,
//! every copy fetched from every node and compared, download, list, delete, download fails. And what
//! happens when a client does not keep to it: the named error, nothing committed, nothing left behind.

use std::time::Duration;

use bytes::Bytes;
use cairn_proto::v1::mutation::Op;
use cairn_proto::{ErrorKind, WireError, v1};
use cairn_tests::rpc::{Planned, frames};
use cairn_tests::{Cluster, GIB, KIB, MIB, Wire, pattern, wait};

const BLOCK: usize = 64 << 10;

fn three_nodes() -> Cluster {
    Cluster::builder().unmounted().start()
}

/// Upload, compare every copy, list, delete, download fails: by the services alone.
#[track_caller]
fn whole_life(wire: &Wire, name: &str, length: u64, chunk_size: u64) {
    let seed = length ^ chunk_size;
    let inode = wire.create(name);
    wire.upload(inode, seed, length, chunk_size);
    let copies = wire.check_replicas(inode, seed, length, 3);
    assert_eq!(copies as u64, 3 * length.div_ceil(chunk_size), "copies compared");
    assert!(wire.list_root().contains(&name.to_owned()));
    assert_eq!(wire.lookup(name).expect("lookup").size, length);
    wire.unlink(name).expect("unlink");
    assert!(!wire.list_root().contains(&name.to_owned()));
    assert_eq!(wire.lookup(name).map_err(|e| e.kind), Err(ErrorKind::NotFound));
    let gone = wire.layout(inode).expect_err("the layout of a deleted file").kind;
    assert!(matches!(gone, ErrorKind::NotFound | ErrorKind::StaleHandle), "{gone:?}");
}

#[test]
fn files_of_every_size_live_and_die_by_the_services_alone() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    for length in [0, 1, 4 * KIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1] {
        whole_life(&wire, &format!("size-{length}"), length, 8 * MIB);
    }
}

#[test]
fn chunks_of_every_size_from_1_to_64_mib_are_stored_whole() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    for chunk_size in [1, 2, 4, 16, 32, 64] {
        // One full chunk and a byte of the next.
        whole_life(&wire, &format!("chunk-{chunk_size}"), chunk_size * MIB + 1, chunk_size * MIB);
    }
}

/// Put, compare every copy, ls, stat, get, cat, rm, get fails: by the command line.
#[track_caller]
fn whole_life_by_command(cluster: &Cluster, wire: &Wire, length: u64) {
    let name = format!("put-{length}");
    let local = cluster.local().join(&name);
    let back = cluster.local().join("back");
    let remote = format!("/{name}");
    pattern::write_file(&local, length, length);
    cluster.run_ok(&["put", local.to_str().unwrap(), &remote]);
    let attr = wire.lookup(&name).expect("lookup after put");
    assert_eq!(attr.size, length);
    wire.check_replicas(attr.inode, length, length, 3);
    assert!(cluster.run_ok(&["ls", "/"]).lines().any(|line| line.trim_end_matches('/') == name));
    cluster.run_ok(&["get", &remote, back.to_str().unwrap()]);
    pattern::check_file(&back, length, length);
    std::fs::remove_file(&back).expect("remove");
    cluster.run_ok(&["rm", &remote]);
    assert!(!wire.list_root().contains(&name));
    let output = cluster.run(&["get", &remote, back.to_str().unwrap()]);
    assert!(!output.status.success(), "getting a deleted file must fail");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&remote), "the error names the file: {error}");
    assert!(!back.exists(), "a failed get leaves no file");
    std::fs::remove_file(&local).expect("remove");
}

#[test]
fn files_of_every_size_live_and_die_by_the_command_line() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    for length in [0, 1, 4 * KIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1] {
        whole_life_by_command(&cluster, &wire, length);
    }
}

#[test]
fn one_gib_heavy_lives_and_dies_by_the_command_line() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    whole_life_by_command(&cluster, &wire, GIB);
}

#[test]
fn a_tree_put_and_got_again_is_equal() {
    let cluster = three_nodes();
    let source = cluster.local().join("tree");
    for (index, directory) in ["", "a", "a/b", "c d"].iter().enumerate() {
        let directory = source.join(directory);
        std::fs::create_dir_all(&directory).expect("mkdir");
        for file in 0..8_u64 {
            let seed = index as u64 * 10 + file;
            pattern::write_file(&directory.join(format!("f{file}")), seed, seed * 50_000);
        }
    }
    std::os::unix::fs::symlink("a/f1", source.join("link")).expect("symlink");
    let back = cluster.local().join("back");
    cluster.run_ok(&["put", "-r", "--verify", source.to_str().unwrap(), "/tree"]);
    cluster.run_ok(&["get", "-r", "/tree", back.to_str().unwrap()]);
    cairn_tests::shell::bash(&cluster.local(), Duration::from_secs(30), "diff -r --no-dereference tree back");
    // Run again: nothing is left to do, and nothing changes.
    cluster.run_ok(&["put", "-r", source.to_str().unwrap(), "/"]);
    let wire = cluster.wire();
    assert_eq!(wire.list_root(), ["tree"]);
}

#[test]
fn what_the_mount_wrote_lies_on_every_node_and_can_be_got() {
    let cluster = Cluster::builder().start();
    let length = 20 * MIB + 12_345;
    pattern::write_file(&cluster.mount_path().join("file"), 5, length);
    let file = std::fs::File::open(cluster.mount_path().join("file")).expect("open");
    file.sync_all().expect("fsync");
    let wire = cluster.wire();
    let inode = wire.lookup("file").expect("lookup").inode;
    wire.check_replicas(inode, 5, length, 3);
    let back = cluster.local().join("back");
    cluster.run_ok(&["get", "/file", back.to_str().unwrap()]);
    pattern::check_file(&back, 5, length);
    let listing = cluster.run_ok(&["locate", "--json", "--verify", "/file"]);
    serde_json::from_str::<serde_json::Value>(&listing).expect("locate --json prints JSON");
}

/// A file and one planned chunk, and what to compare with afterwards.
struct Case<'a> {
    wire: &'a Wire,
    inode: u64,
    planned: Planned,
    primary: Bytes,
    chunks: u64,
    on_nodes: u64,
}

impl<'a> Case<'a> {
    fn new(wire: &'a Wire, name: &str) -> Self {
        let inode = wire.create(name);
        let planned = wire.plan_one();
        let primary = wire.members(planned.set).remove(0);
        Self { chunks: wire.status().chunks, on_nodes: on_nodes(wire), wire, inode, planned, primary }
    }

    /// Nothing is part of the file, and no node keeps anything of the chunk.
    #[track_caller]
    fn left_nothing(&self) {
        self.committed_nothing();
        let chunk = self.planned.chunk;
        wait::until_true("the nodes to drop the chunk", Duration::from_secs(10), || {
            self.wire.holders(chunk).is_empty() && on_nodes(self.wire) == self.on_nodes
        });
    }

    #[track_caller]
    fn committed_nothing(&self) {
        let layout = self.wire.layout(self.inode).expect("layout");
        assert_eq!(layout.attr.expect("attributes").size, 0, "size of the file");
        assert!(layout.extents.is_empty(), "extents of the file");
        assert_eq!(self.wire.status().chunks, self.chunks, "committed chunks");
    }
}

fn on_nodes(wire: &Wire) -> u64 {
    let ids: Vec<Bytes> = wire.nodes().map(|(id, _)| id.clone()).collect();
    ids.iter().map(|id| wire.node_status(id).chunks).sum()
}

type Spoil = fn(&mut Vec<v1::StoreFrame>);

/// What a bad sender does to the frames of a chunk of 600 KiB (three frames), and what it is told.
const SPOILT: &[(&str, &[ErrorKind], Spoil)] = &[
    ("a wrong checksum in the first frame", &[ErrorKind::ChecksumMismatch], |f| f[0].crc32c[1] ^= 1),
    ("a wrong checksum in the last frame", &[ErrorKind::ChecksumMismatch], |f| f[2].crc32c[0] ^= 1),
    ("a flipped bit", &[ErrorKind::ChecksumMismatch], |f| {
        let mut data = f[1].data.to_vec();
        data[77_777] ^= 4;
        f[1].data = data.into();
    }),
    ("a checksum too few", &[ErrorKind::ChecksumMismatch, ErrorKind::InvalidArgument], |f| {
        f[1].crc32c.pop();
    }),
    ("a gap", &[ErrorKind::InvalidArgument], |f| {
        f.remove(1);
    }),
    ("an overlap", &[ErrorKind::InvalidArgument], |f| {
        f[2].offset -= BLOCK as u64;
    }),
    ("a frame twice", &[ErrorKind::InvalidArgument], |f| {
        let twice = f[1].clone();
        f.insert(1, twice);
    }),
    ("a first frame that does not start at 0", &[ErrorKind::InvalidArgument], |f| {
        f[0].offset = BLOCK as u64;
    }),
    ("an offset near 2^63", &[ErrorKind::InvalidArgument], |f| {
        f[1].offset = (1 << 63) - (BLOCK as u64);
    }),
    ("an offset near 2^64", &[ErrorKind::InvalidArgument], |f| {
        f[1].offset = u64::MAX - 10;
    }),
    ("data after the end", &[ErrorKind::InvalidArgument], |f| {
        let header = f[0].header.as_mut().unwrap();
        header.length -= 1;
    }),
    ("a final frame too early", &[ErrorKind::InvalidArgument], |f| f[1].is_final = true),
    ("a last frame that is not called final", &[ErrorKind::InvalidArgument], |f| f[2].is_final = false),
    ("an empty frame", &[ErrorKind::InvalidArgument], |f| {
        f[1].data = Bytes::new();
        f[1].crc32c.clear();
    }),
    ("a frame that ends within a block", &[ErrorKind::InvalidArgument], |f| {
        f[0].data.truncate(100_000);
        f[0].crc32c = cairn_proto::checksum::block_crcs(&f[0].data);
        f[1].offset = 100_000;
    }),
    ("a second header", &[ErrorKind::InvalidArgument], |f| f[1].header = f[0].header.clone()),
    ("no header", &[ErrorKind::InvalidArgument], |f| f[0].header = None),
    ("a length of 0", &[ErrorKind::InvalidArgument], |f| f[0].header.as_mut().unwrap().length = 0),
    ("a length past 64 MiB", &[ErrorKind::InvalidArgument], |f| {
        f[0].header.as_mut().unwrap().length = (64 << 20) + 1;
    }),
    ("a length of 2^63", &[ErrorKind::InvalidArgument], |f| {
        f[0].header.as_mut().unwrap().length = 1 << 63;
    }),
    ("an epoch of the future", &[ErrorKind::StaleEpoch], |f| f[0].header.as_mut().unwrap().epoch += 5),
    ("a set that is not", &[ErrorKind::StaleEpoch, ErrorKind::InvalidArgument, ErrorKind::NotFound], |f| {
        f[0].header.as_mut().unwrap().set = 1 << 40;
    }),
    ("a set with the id 0", &[ErrorKind::InvalidArgument], |f| f[0].header.as_mut().unwrap().set = 0),
    ("a set with an id past 2^63", &[ErrorKind::InvalidArgument], |f| {
        f[0].header.as_mut().unwrap().set = u64::MAX;
    }),
    ("a member that is none", &[ErrorKind::InvalidArgument, ErrorKind::StaleEpoch], |f| {
        f[0].header.as_mut().unwrap().forward = vec![Bytes::from_static(&[7; 16])];
    }),
    ("a member whose id is too short", &[ErrorKind::InvalidArgument], |f| {
        f[0].header.as_mut().unwrap().forward = vec![Bytes::from_static(&[7; 3])];
    }),
];

#[test]
fn a_chunk_sent_wrongly_is_refused_by_name_and_leaves_nothing() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    let data = pattern::bytes(1, 0, 600 << 10);
    let mut wrong = Vec::new();
    for (number, (what, expected, spoil)) in SPOILT.iter().enumerate() {
        let case = Case::new(&wire, &format!("spoilt-{number}"));
        let mut bad = frames(&case.planned, &data, false);
        spoil(&mut bad);
        let told = match wire.send(&case.primary, bad, false) {
            Ok(answers) => answers.get(&case.planned.chunk).map(|ack| {
                assert!(!ack.stored, "{what}: stored");
                WireError::from_fields(ack.error, &ack.message).expect("an error").kind
            }),
            Err(error) => Some(error.kind),
        };
        if !told.is_some_and(|kind| expected.contains(&kind)) {
            wrong.push(format!("{what}: told {told:?}, expected {expected:?}"));
        }
        case.left_nothing();
    }
    // The nodes serve on, and so does the same connection.
    let inode = wire.create("after");
    wire.upload(inode, 9, 3 * MIB, MIB);
    wire.check_replicas(inode, 9, 3 * MIB, 3);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_error_of_one_chunk_leaves_the_stream_usable_for_the_next() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    let planned = wire.plan(2 * MIB, MIB).expect("plan");
    assert_eq!(planned.len(), 2);
    let data = pattern::bytes(1, 0, MIB as usize);
    let mut both = frames(&planned[0], &data, false);
    both[1].crc32c[0] ^= 1;
    both.extend(frames(&planned[1], &data, false));
    let primary = wire.members(planned[0].set).remove(0);
    if wire.members(planned[1].set)[0] != primary {
        both.retain(|frame| frame.chunk == planned[0].chunk);
    }
    let answers = wire.send(&primary, both, true).expect("StoreChunk");
    assert_eq!(answers[&planned[0].chunk].error, ErrorKind::ChecksumMismatch.number());
    if let Some(second) = answers.get(&planned[1].chunk) {
        assert!(second.stored, "{}", second.message);
        assert_eq!(second.stored_by.len(), 3);
    }
}

#[test]
fn a_stream_that_ends_within_a_chunk_leaves_nothing() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    let data = pattern::bytes(1, 0, 600 << 10);
    let case = Case::new(&wire, "short");
    let mut short = frames(&case.planned, &data, false);
    short.truncate(2);
    if let Ok(answers) = wire.send(&case.primary, short, true) {
        let ack = answers.get(&case.planned.chunk).expect("an answer for the chunk");
        assert!(!ack.stored);
        assert_eq!(ack.error, ErrorKind::InvalidArgument.number(), "{}", ack.message);
    }
    case.left_nothing();
    // One that says so itself is no error of anybody.
    let case = Case::new(&wire, "aborted");
    let mut given_up = frames(&case.planned, &data, false);
    given_up[2] = v1::StoreFrame { chunk: case.planned.chunk, abort: true, ..v1::StoreFrame::default() };
    let _ = wire.send(&case.primary, given_up, true);
    case.left_nothing();
}

#[test]
fn a_chunk_is_written_once() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    let case = Case::new(&wire, "twice");
    let data = pattern::bytes(1, 0, 100_000);
    wire.store(&case.planned, &data, true);
    let other = pattern::bytes(2, 0, 100_000);
    let answers = wire.send(&case.primary, frames(&case.planned, &other, true), false).expect("StoreChunk");
    assert_eq!(answers[&case.planned.chunk].error, ErrorKind::ChunkExists.number());
    let chunk = v1::ChunkRef {
        chunk: case.planned.chunk,
        set: case.planned.set,
        length: data.len() as u64,
        ..v1::ChunkRef::default()
    };
    for node in wire.members(case.planned.set) {
        assert_eq!(wire.retrieve(&node, &chunk).expect("retrieve"), data, "the first content stays");
    }
}

#[test]
fn a_replayed_commit_gets_the_same_answer_and_is_executed_once() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    let inode = wire.create("replayed");
    let planned = wire.plan_one();
    let data = pattern::bytes(1, 0, 50_000);
    let ack = wire.store(&planned, &data, true);
    assert!(ack.synced, "sync was asked for");
    let request = wire.commit_of(inode, wire.stored_chunk(&planned, &data, &ack));
    let first = wire.confirm(request.clone()).expect("commit");
    let again = wire.confirm(request.clone()).expect("the same commit again");
    assert_eq!(first, again);
    let truncate = v1::SetAttr { inode, size: Some(10), ..v1::SetAttr::default() };
    wire.apply(Op::SetAttr(truncate)).expect("truncate");
    // Once another request has taken the slot, the old one is known to be old.
    let late = wire.confirm(request.clone()).expect_err("a replay after a later request");
    assert_eq!(late.kind, ErrorKind::StaleSequence, "{late}");
    assert_eq!(wire.layout(inode).expect("layout").attr.unwrap().size, 10);
    // As a new request: the chunk is part of a file already.
    let fresh = v1::ConfirmUploadRequest { id: Some(wire.next_id()), ..request };
    let error = wire.confirm(fresh).expect_err("a committed chunk committed again");
    assert_eq!(error.kind, ErrorKind::AlreadyCommitted, "{error}");
    assert_eq!(wire.layout(inode).expect("layout").attr.unwrap().size, 10);
}

#[test]
fn a_commit_of_what_the_session_was_not_granted_is_refused() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    let other = cluster.wire();
    let case = Case::new(&wire, "foreign");
    let data = pattern::bytes(1, 0, 50_000);
    let ack = wire.store(&case.planned, &data, true);
    let stored = wire.stored_chunk(&case.planned, &data, &ack);
    // Of another session.
    let error = other.confirm(other.commit_of(case.inode, stored.clone())).expect_err("a foreign commit");
    assert_eq!(error.kind, ErrorKind::PlanForeign, "{error}");
    // Never granted to anybody.
    let invented = v1::StoredChunk { chunk: stored.chunk + 1_000_000, ..stored.clone() };
    let error = wire.confirm(wire.commit_of(case.inode, invented)).expect_err("an invented chunk");
    assert_eq!(error.kind, ErrorKind::PlanForeign, "{error}");
    case.committed_nothing();
    // The owner still can.
    wire.confirm(wire.commit_of(case.inode, stored)).expect("the owner's commit");
}

#[test]
fn a_commit_that_makes_no_sense_changes_nothing() {
    let cluster = three_nodes();
    let data = pattern::bytes(1, 0, 50_000);
    type Change = fn(&mut v1::ConfirmUploadRequest);
    let cases: &[(&str, &[ErrorKind], Change)] = &[
        ("stored by one member of three", &[ErrorKind::TooFewReplicas], |r| {
            r.chunks[0].stored_by.truncate(1);
        }),
        (
            "stored by one member, named twice",
            &[ErrorKind::TooFewReplicas, ErrorKind::InvalidArgument],
            |r| {
                let one = r.chunks[0].stored_by[0].clone();
                r.chunks[0].stored_by = vec![one.clone(), one];
            },
        ),
        ("stored by strangers", &[ErrorKind::TooFewReplicas, ErrorKind::InvalidArgument], |r| {
            r.chunks[0].stored_by = vec![Bytes::from_static(&[1; 16]), Bytes::from_static(&[2; 16])];
        }),
        ("a member whose id is too short", &[ErrorKind::InvalidArgument], |r| {
            r.chunks[0].stored_by[0] = Bytes::from_static(&[1]);
        }),
        ("extents that overlap", &[ErrorKind::InvalidArgument], |r| {
            let mut second = r.files[0].extents[0];
            second.offset = 10;
            r.files[0].extents.push(second);
        }),
        ("an extent past the end of its chunk", &[ErrorKind::InvalidArgument], |r| {
            r.files[0].extents[0].length += 1;
        }),
        ("a chunk offset near 2^64", &[ErrorKind::InvalidArgument], |r| {
            r.files[0].extents[0].chunk_offset = u64::MAX - 5;
        }),
        ("an extent of no length", &[ErrorKind::InvalidArgument], |r| r.files[0].extents[0].length = 0),
        ("an extent past 2^63", &[ErrorKind::FileTooLarge], |r| {
            r.files[0].extents[0].offset = (1 << 63) - 10;
        }),
        ("an extent past 2^64", &[ErrorKind::FileTooLarge], |r| {
            r.files[0].extents[0].offset = u64::MAX - 10;
        }),
        (
            "an extent of a chunk that is not",
            &[
                ErrorKind::InvalidArgument,
                ErrorKind::PlanForeign,
                ErrorKind::ChunkNotFound,
                ErrorKind::NotFound,
            ],
            |r| {
                r.files[0].extents[0].chunk += 500_000;
            },
        ),
        ("an extent of chunk 0", &[ErrorKind::InvalidArgument], |r| r.files[0].extents[0].chunk = 0),
        ("a chunk of no length", &[ErrorKind::InvalidArgument], |r| r.chunks[0].length = 0),
        ("a chunk longer than any", &[ErrorKind::InvalidArgument], |r| r.chunks[0].length = 65 << 20),
        (
            "the set of another chunk",
            &[ErrorKind::InvalidArgument, ErrorKind::PlanForeign, ErrorKind::StaleEpoch],
            |r| {
                r.chunks[0].set += 77;
            },
        ),
        ("a file that is not", &[ErrorKind::NotFound, ErrorKind::StaleHandle], |r| {
            r.files[0].inode = 1 << 50
        }),
        ("a directory", &[ErrorKind::IsDirectory, ErrorKind::InvalidArgument], |r| r.files[0].inode = 1),
        ("inode 0", &[ErrorKind::InvalidArgument], |r| r.files[0].inode = 0),
        ("inode 2^63", &[ErrorKind::InvalidArgument], |r| r.files[0].inode = 1 << 63),
        ("no file", &[ErrorKind::InvalidArgument], |r| r.files.clear()),
        ("no id", &[ErrorKind::InvalidArgument], |r| r.id = None),
        ("slot 256", &[ErrorKind::InvalidArgument], |r| r.id.as_mut().unwrap().slot = 256),
        ("a gap in the sequence", &[ErrorKind::InvalidArgument], |r| r.id.as_mut().unwrap().sequence += 10),
        ("sequence 0", &[ErrorKind::InvalidArgument, ErrorKind::StaleSequence], |r| {
            r.id.as_mut().unwrap().sequence = 0;
        }),
        ("a session id of 3 bytes", &[ErrorKind::InvalidArgument], |r| {
            r.id.as_mut().unwrap().session = Bytes::from_static(&[1, 2, 3]);
        }),
        ("a session that never was", &[ErrorKind::SessionExpired], |r| {
            r.id.as_mut().unwrap().session = Bytes::from_static(&[9; 16]);
        }),
    ];
    let mut wrong = Vec::new();
    for (number, (what, expected, change)) in cases.iter().enumerate() {
        // A session of its own: a request that is refused before it is executed uses up no sequence.
        let wire = cluster.wire();
        let case = Case::new(&wire, &format!("senseless-{number}"));
        let ack = wire.store(&case.planned, &data, true);
        let mut request = wire.commit_of(case.inode, wire.stored_chunk(&case.planned, &data, &ack));
        change(&mut request);
        match wire.confirm_any(request) {
            Ok(_) => wrong.push(format!("{what}: accepted")),
            Err(error) if !expected.contains(&error.kind) => {
                wrong.push(format!("{what}: told {:?} ({error}), expected {expected:?}", error.kind));
            }
            Err(_) => {}
        }
        case.committed_nothing();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let wire = cluster.wire();
    let inode = wire.create("good");
    wire.upload(inode, 1, 50_000, MIB);
    wire.check_replicas(inode, 1, 50_000, 3);
}

#[test]
fn an_expired_plan_can_not_be_committed() {
    let cluster = Cluster::builder().unmounted().env("CAIRN_COORDINATOR__PLAN_TIME", "1s").start();
    let wire = cluster.wire();
    let case = Case::new(&wire, "late");
    let data = pattern::bytes(1, 0, 50_000);
    let ack = wire.store(&case.planned, &data, true);
    let stored = wire.stored_chunk(&case.planned, &data, &ack);
    std::thread::sleep(Duration::from_millis(1800));
    let error = wire.confirm(wire.commit_of(case.inode, stored)).expect_err("an expired plan");
    assert_eq!(error.kind, ErrorKind::PlanExpired, "{error}");
    case.committed_nothing();
    // A new plan in time works.
    wire.upload(case.inode, 3, 100_000, MIB);
    wire.check_replicas(case.inode, 3, 100_000, 3);
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let cluster = three_nodes();
    let wire = cluster.wire();
    let inode = wire.create("open");
    wire.upload(inode, 4, 70_000, MIB);
    let request = v1::DownloadFileRequest {
        inode,
        length: 1,
        open: Some(v1::OpenRegistration { session: wire.session(), sequence: 1 }),
        ..v1::DownloadFileRequest::default()
    };
    wire.call(wire.coordinator().download_file(request)).expect("open");
    wire.unlink("open").expect("unlink");
    assert_eq!(wire.lookup("open").map_err(|e| e.kind), Err(ErrorKind::NotFound));
    assert_eq!(wire.layout(inode).expect("still there").attr.unwrap().nlink, 0);
    wire.check_replicas(inode, 4, 70_000, 3);
    wire.closed(inode, 1);
    wait::until_true("the file to go with its last close", Duration::from_secs(10), || {
        wire.layout(inode).is_err()
    });
}
