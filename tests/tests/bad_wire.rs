//! Bad input from the network, on every call of both services: an error by name to the sender, no
//! panic, no allocation of what is claimed, and everybody else is served on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use cairn_proto::ErrorKind::{self, *};
use cairn_proto::WireError;
use cairn_proto::v1::mutation::Op;
use cairn_proto::v1::{self, session_request};
use cairn_tests::http2::{PREFACE, frame, headers};
use cairn_tests::rpc::frames;
use cairn_tests::table::{all_is_well, check, first_error, memory, row};
use cairn_tests::{Cluster, MIB, Wire, pattern, process};
use futures::StreamExt;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

const ROOT: u64 = 1;
const PAST: u64 = 1 << 63;
fn cluster() -> Cluster {
    Cluster::builder().unmounted().start()
}

fn name(text: &[u8]) -> Bytes {
    Bytes::copy_from_slice(text)
}

/// Names that are none, and what is told.
fn bad_names() -> Vec<(&'static str, Bytes, &'static [ErrorKind])> {
    vec![
        ("an empty name", Bytes::new(), &[InvalidArgument]),
        ("the name '.'", name(b"."), &[InvalidArgument]),
        ("a name with a slash", name(b"a/b"), &[InvalidArgument]),
        ("a name with a NUL", name(b"a\0b"), &[InvalidArgument]),
        ("a name of 256 bytes", vec![b'n'; 256].into(), &[NameTooLong]),
        ("a name of 1 MiB", vec![b'n'; 1 << 20].into(), &[NameTooLong]),
    ]
}

/// Ids that are none.
const BAD_IDS: [u64; 3] = [0, PAST, u64::MAX];

#[test]
fn reads_of_names_and_attributes() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    let lookup = |parent: u64, name: Bytes, groups: usize| {
        move |wire: &Wire| {
            let credentials = Some(v1::Credentials { groups: vec![5; groups], ..v1::Credentials::default() });
            let request = v1::LookupRequest { parent, name, credentials, session: Bytes::new() };
            wire.call(wire.coordinator().lookup(request)).map(drop)
        }
    };
    for id in BAD_IDS {
        rows.push(row(format!("Lookup in {id}"), &[InvalidArgument], lookup(id, name(b"a"), 0)));
        rows.push(row(format!("GetAttr of {id}"), &[InvalidArgument], move |wire| {
            let request = v1::GetAttrRequest { inode: id, session: Bytes::new() };
            wire.call(wire.coordinator().get_attr(request)).map(drop)
        }));
        // Of no inode and no session, for 0.
        rows.push(row(format!("SyncFile of {id}"), &[InvalidArgument], move |wire| {
            let request = v1::SyncFileRequest { inode: id, session: Bytes::new() };
            wire.call(wire.coordinator().sync_file(request)).map(drop)
        }));
        rows.push(row(format!("GetXattrs of {id}"), &[InvalidArgument], move |wire| {
            let request = v1::GetXattrsRequest { inode: id, session: Bytes::new() };
            wire.call(wire.coordinator().get_xattrs(request)).map(drop)
        }));
        rows.push(row(format!("ReadDir of {id}"), &[InvalidArgument], move |wire| {
            let request = v1::ReadDirRequest { inode: id, limit: 10, ..v1::ReadDirRequest::default() };
            wire.call(wire.coordinator().read_dir(request)).map(drop)
        }));
        rows.push(row(format!("DownloadFile of {id}"), &[InvalidArgument], move |wire| {
            let request =
                v1::DownloadFileRequest { inode: id, length: 1, ..v1::DownloadFileRequest::default() };
            wire.call(wire.coordinator().download_file(request)).map(drop)
        }));
    }
    for (what, bytes, expected) in bad_names() {
        rows.push(row(format!("Lookup of {what}"), expected, lookup(ROOT, bytes, 0)));
    }
    rows.push(row(
        "Lookup in an inode that is not",
        &[NotFound, StaleHandle],
        lookup(1 << 60, name(b"a"), 0),
    ));
    rows.push(row("Lookup by 70,000 groups", &[InvalidArgument], lookup(ROOT, name(b"a"), 70_000)));
    rows.push(row("Lookup of what is not", &[NotFound], lookup(ROOT, name(b"\xff\xfe"), 0)));
    rows.push(row("ReadDir of no entries", &[InvalidArgument], |wire| {
        let request = v1::ReadDirRequest { inode: ROOT, limit: 0, ..v1::ReadDirRequest::default() };
        wire.call(wire.coordinator().read_dir(request)).map(drop)
    }));
    rows.push(row("ReadDir of a file", &[NotDirectory], |wire| {
        let inode = wire.create("a-file");
        let request = v1::ReadDirRequest { inode, limit: 1, ..v1::ReadDirRequest::default() };
        wire.call(wire.coordinator().read_dir(request)).map(drop)
    }));
    let download = |offset: u64, length: u64, extents_max: u32| {
        move |wire: &Wire| {
            let inode = wire.lookup("a-file").expect("made above").inode;
            let request = v1::DownloadFileRequest {
                inode,
                offset,
                length,
                extents_max,
                ..v1::DownloadFileRequest::default()
            };
            wire.call(wire.coordinator().download_file(request)).map(drop)
        }
    };
    rows.push(row("DownloadFile from 2^63", &[FileTooLarge, InvalidArgument], download(PAST, 1, 0)));
    rows.push(row("DownloadFile from 2^64 - 1", &[FileTooLarge, InvalidArgument], download(u64::MAX, 1, 0)));
    rows.push(row("DownloadFile of 2^32 - 1 extents", &[InvalidArgument], download(0, 1, u32::MAX)));
    for (session, expected) in [
        (Bytes::from_static(&[1; 3]), &[InvalidArgument][..]),
        (Bytes::from_static(&[1; 16]), &[SessionExpired][..]),
    ] {
        rows.push(row(format!("DownloadFile that opens for {session:?}"), expected, move |wire| {
            let inode = wire.lookup("a-file").expect("made above").inode;
            let open = Some(v1::OpenRegistration { session, sequence: 1 });
            let request = v1::DownloadFileRequest { inode, open, ..v1::DownloadFileRequest::default() };
            wire.call(wire.coordinator().download_file(request)).map(drop)
        }));
    }
    check(&mut cluster, rows);
}

fn create(name: Bytes) -> v1::Create {
    let kind = v1::InodeKind::File.into();
    v1::Create { parent: ROOT, name, kind, mode: 0o644, exclusive: true, ..v1::Create::default() }
}

fn apply(op: Op) -> impl FnOnce(&Wire) -> Result<(), WireError> {
    move |wire| wire.apply(op).map(drop)
}

/// As [`apply`], with the id of a fresh file in the place of inode 77.
fn on_file(op: fn(u64) -> Op) -> impl FnOnce(&Wire) -> Result<(), WireError> {
    move |wire| {
        let file = match wire.lookup("target") {
            Ok(attr) => attr.inode,
            Err(_) => wire.create("target"),
        };
        wire.apply(op(file)).map(drop)
    }
}

#[test]
fn changes_of_the_namespace() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    for (what, bytes, expected) in
        bad_names().into_iter().chain([("'..'", name(b".."), &[InvalidArgument, Exists][..])])
    {
        let b = bytes.clone();
        rows.push(row(format!("Create of {what}"), expected, apply(Op::Create(create(bytes.clone())))));
        rows.push(row(format!("Unlink of {what}"), &[InvalidArgument, NameTooLong, IsDirectory], {
            apply(Op::Unlink(v1::Unlink { parent: ROOT, name: bytes.clone() }))
        }));
        rows.push(row(format!("Rmdir of {what}"), &[InvalidArgument, NameTooLong, NotEmpty], {
            apply(Op::Rmdir(v1::Rmdir { parent: ROOT, name: bytes.clone() }))
        }));
        rows.push(row(
            format!("Rename to {what}"),
            &[InvalidArgument, NameTooLong, Exists, NotEmpty, Busy],
            move |wire| {
                if wire.lookup("source").is_err() {
                    wire.create("source");
                }
                let source = name(b"source");
                let op = v1::Rename {
                    parent: ROOT,
                    name: source,
                    new_parent: ROOT,
                    new_name: b,
                    ..v1::Rename::default()
                };
                wire.apply(Op::Rename(op)).map(drop)
            },
        ));
        rows.push(row(format!("Link as {what}"), &[InvalidArgument, NameTooLong, Exists], move |wire| {
            let inode = wire.lookup("source").expect("made above").inode;
            wire.apply(Op::Link(v1::Link { inode, parent: ROOT, name: bytes })).map(drop)
        }));
    }
    for id in BAD_IDS {
        rows.push(row(format!("Create in {id}"), &[InvalidArgument], {
            apply(Op::Create(v1::Create { parent: id, ..create(name(b"x")) }))
        }));
        rows.push(row(format!("Link of {id}"), &[InvalidArgument], {
            apply(Op::Link(v1::Link { inode: id, parent: ROOT, name: name(b"x") }))
        }));
        rows.push(row(format!("SetAttr of {id}"), &[InvalidArgument], {
            apply(Op::SetAttr(v1::SetAttr { inode: id, mode: Some(0o600), ..v1::SetAttr::default() }))
        }));
        rows.push(row(format!("SetXattr of {id}"), &[InvalidArgument], {
            apply(Op::SetXattr(v1::SetXattr { inode: id, name: name(b"user.a"), ..v1::SetXattr::default() }))
        }));
        rows.push(row(format!("Allocate in {id}"), &[InvalidArgument], {
            apply(Op::Allocate(v1::Allocate { inode: id, length: 1, ..v1::Allocate::default() }))
        }));
        rows.push(row(format!("CloneRange from {id}"), &[InvalidArgument], {
            let clone =
                v1::CloneRange { source: id, destination: id, length: 1, ..v1::CloneRange::default() };
            apply(Op::CloneRange(clone))
        }));
    }
    for kind in [0, 8, 99, -1, i32::MIN] {
        rows.push(row(format!("Create of kind {kind}"), &[InvalidArgument], {
            apply(Op::Create(v1::Create { kind, ..create(name(b"kind")) }))
        }));
    }
    for mode in [0o10000, 0o100_644, u32::MAX] {
        rows.push(row(format!("Create with mode {mode:o}"), &[InvalidArgument], {
            apply(Op::Create(v1::Create { mode, ..create(name(b"mode")) }))
        }));
    }
    for target in [Bytes::new(), vec![b't'; 4096].into(), name(b"a\0b"), vec![b't'; 1 << 20].into()] {
        let what = format!("a symlink to {} bytes", target.len());
        rows.push(row(what, &[InvalidArgument, NameTooLong, NotFound], {
            let kind = v1::InodeKind::Symlink.into();
            apply(Op::Create(v1::Create { kind, symlink_target: target, ..create(name(b"link")) }))
        }));
    }
    rows.push(row("Rename with both flags", &[InvalidArgument], {
        apply(Op::Rename(v1::Rename {
            parent: ROOT,
            name: name(b"source"),
            new_parent: ROOT,
            new_name: name(b"other"),
            no_replace: true,
            exchange: true,
        }))
    }));
    rows.push(row(
        "truncate to 2^63",
        &[FileTooLarge],
        on_file(|inode| Op::SetAttr(v1::SetAttr { inode, size: Some(PAST), ..v1::SetAttr::default() })),
    ));
    rows.push(row(
        "truncate to 2^64 - 1",
        &[FileTooLarge],
        on_file(|inode| Op::SetAttr(v1::SetAttr { inode, size: Some(u64::MAX), ..v1::SetAttr::default() })),
    ));
    rows.push(row(
        "chmod of bits past 07777",
        &[InvalidArgument],
        on_file(|inode| Op::SetAttr(v1::SetAttr { inode, mode: Some(0o10000), ..v1::SetAttr::default() })),
    ));
    rows.push(row("truncate of a directory", &[IsDirectory, InvalidArgument], {
        apply(Op::SetAttr(v1::SetAttr { inode: ROOT, size: Some(5), ..v1::SetAttr::default() }))
    }));
    let xattr = |inode: u64, name: &'static [u8], length: usize| {
        Op::SetXattr(v1::SetXattr {
            inode,
            name: Bytes::from_static(name),
            value: vec![1; length].into(),
            ..v1::SetXattr::default()
        })
    };
    rows.push(row("an xattr without a known prefix", &[NotSupported], apply(xattr(ROOT, b"nonsense.a", 1))));
    rows.push(row(
        "an xattr without a name",
        &[InvalidArgument, NotSupported, OutOfRange],
        apply(xattr(ROOT, b"", 1)),
    ));
    rows.push(row(
        "an xattr with a NUL in its name",
        &[InvalidArgument],
        apply(xattr(ROOT, b"user.a\0b", 1)),
    ));
    rows.push(row("an xattr whose name has 300 bytes", &[OutOfRange, NameTooLong, InvalidArgument], {
        apply(xattr(ROOT, &[b'u'; 300], 1))
    }));
    rows.push(row("an xattr of 65,537 bytes", &[TooBig], apply(xattr(ROOT, b"user.a", 65_537))));
    rows.push(row("an xattr of 8 MiB", &[TooBig], apply(xattr(ROOT, b"user.a", 8 << 20))));
    rows.push(row("an xattr that is not removed", &[NoData], {
        apply(Op::RemoveXattr(v1::RemoveXattr { inode: ROOT, name: name(b"user.none") }))
    }));
    for (offset, length) in [(PAST, 1), (u64::MAX, 1), (10, u64::MAX), (PAST - 5, 10)] {
        rows.push(row(
            format!("Allocate {length} at {offset}"),
            &[FileTooLarge, InvalidArgument],
            move |wire| {
                let inode = wire.create(&format!("allocate-{offset}-{length}"));
                wire.apply(Op::Allocate(v1::Allocate { inode, offset, length, ..v1::Allocate::default() }))
                    .map(drop)
            },
        ));
        rows.push(row(
            format!("a hole of {length} at {offset}"),
            &[FileTooLarge, InvalidArgument],
            move |wire| {
                let inode = wire.create(&format!("hole-{offset}-{length}"));
                let hole = v1::Allocate { inode, offset, length, keep_size: true, make_hole: true };
                wire.apply(Op::Allocate(hole)).map(drop)
            },
        ));
        rows.push(row(
            format!("CloneRange of {length} to {offset}"),
            &[FileTooLarge, InvalidArgument],
            move |wire| {
                let source = wire.create(&format!("clone-from-{offset}-{length}"));
                wire.upload(source, 1, 100_000, MIB);
                let destination = wire.create(&format!("clone-to-{offset}-{length}"));
                wire.apply(Op::CloneRange(v1::CloneRange {
                    source,
                    source_offset: if length > PAST { offset } else { 0 },
                    destination,
                    destination_offset: if length > PAST { PAST - 5 } else { offset },
                    length: length.max(10),
                }))
                .map(drop)
            },
        ));
    }
    rows.push(row(
        "Allocate of nothing",
        &[InvalidArgument],
        on_file(|inode| Op::Allocate(v1::Allocate { inode, length: 0, ..v1::Allocate::default() })),
    ));
    rows.push(row("CloneRange onto itself", &[InvalidArgument], |wire| {
        let inode = wire.create("onto-itself");
        wire.upload(inode, 1, 100_000, MIB);
        let (source, destination) = (inode, inode);
        let clone =
            v1::CloneRange { source, source_offset: 0, destination, destination_offset: 10, length: 100 };
        wire.apply(Op::CloneRange(clone)).map(drop)
    }));
    check(&mut cluster, rows);
}

#[test]
fn batches_and_request_ids() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    let good = |wire: &Wire| v1::ApplyRequest {
        id: Some(wire.next_id()),
        mutations: vec![v1::Mutation {
            op: Some(Op::Create(create(name(b"batch")))),
            ..v1::Mutation::default()
        }],
        credentials: Some(v1::Credentials::default()),
        ..v1::ApplyRequest::default()
    };
    type Change = fn(&mut v1::ApplyRequest);
    let changes: &[(&str, &'static [ErrorKind], Change)] = &[
        ("no id", &[InvalidArgument], |r| r.id = None),
        ("an earlier id of no session", &[InvalidArgument], |r| r.earlier = vec![v1::RequestId::default()]),
        ("an earlier id of this session", &[InvalidArgument], |r| r.earlier = r.id.iter().cloned().collect()),
        ("slot 256", &[InvalidArgument], |r| r.id.as_mut().unwrap().slot = 256),
        ("slot 2^32 - 1", &[InvalidArgument], |r| r.id.as_mut().unwrap().slot = u32::MAX),
        ("sequence 0", &[InvalidArgument, StaleSequence], |r| r.id.as_mut().unwrap().sequence = 0),
        ("a gap of one", &[InvalidArgument], |r| r.id.as_mut().unwrap().sequence += 1),
        ("sequence 2^64 - 1", &[InvalidArgument], |r| r.id.as_mut().unwrap().sequence = u64::MAX),
        ("no session", &[InvalidArgument], |r| r.id.as_mut().unwrap().session = Bytes::new()),
        ("a session of 17 bytes", &[InvalidArgument], |r| {
            r.id.as_mut().unwrap().session = Bytes::from_static(&[1; 17]);
        }),
        ("a session that is not", &[SessionExpired], |r| {
            r.id.as_mut().unwrap().session = Bytes::from_static(&[1; 16]);
        }),
        ("no mutations", &[InvalidArgument], |r| r.mutations.clear()),
        ("1,025 mutations", &[InvalidArgument], |r| r.mutations = vec![r.mutations[0].clone(); 1025]),
        ("a mutation of no kind", &[InvalidArgument, Protocol], |r| r.mutations[0].op = None),
        ("no credentials", &[InvalidArgument], |r| r.credentials = None),
        ("a time before 1970", &[InvalidArgument], |r| r.mutations[0].at_ns = -1),
        ("an inode id that nobody reserved", &[InvalidArgument], |r| {
            r.mutations[0].op = Some(Op::Create(v1::Create { inode: PAST, ..create(name(b"batch")) }));
        }),
        ("an inode id that is in use", &[InvalidArgument], |r| {
            r.mutations[0].op = Some(Op::Create(v1::Create { inode: ROOT, ..create(name(b"batch")) }));
        }),
        ("a lease on a file", &[InvalidArgument], |r| {
            r.mutations[0].op = Some(Op::Create(v1::Create { lease: true, ..create(name(b"batch")) }));
        }),
        ("70,000 groups", &[InvalidArgument], |r| {
            r.credentials = Some(v1::Credentials { groups: vec![1; 70_000], ..v1::Credentials::default() });
        }),
    ];
    for &(what, expected, change) in changes {
        rows.push(row(format!("Apply with {what}"), expected, move |wire| {
            let mut request = good(wire);
            change(&mut request);
            let results = wire.call(wire.coordinator().apply(request))?.results;
            let error = results.iter().find_map(|r| WireError::from_fields(r.error, &r.message));
            error.map_or(Ok(()), Err)
        }));
    }
    let reserve = |session: &'static [u8], count: u32| {
        move |wire: &Wire| {
            let request = v1::ReserveInodesRequest { session: Bytes::from_static(session), count };
            wire.call(wire.coordinator().reserve_inodes(request)).map(drop)
        }
    };
    rows.push(row("ReserveInodes of none", &[InvalidArgument], reserve(&[1; 16], 0)));
    rows.push(row("ReserveInodes of 2^32 - 1", &[InvalidArgument], reserve(&[1; 16], u32::MAX)));
    rows.push(row("ReserveInodes of no session", &[InvalidArgument], reserve(&[], 1)));
    rows.push(row("ReserveInodes of a session that is not", &[SessionExpired], reserve(&[1; 16], 1)));
    rows.push(row("ConfirmUpload of 1,025 files", &[InvalidArgument], |wire| {
        let file = v1::FileCommit { inode: ROOT, ..v1::FileCommit::default() };
        let files = vec![file; 1025];
        wire.confirm_any(v1::ConfirmUploadRequest { id: Some(wire.next_id()), chunks: vec![], files })
            .map(drop)
    }));
    rows.push(row("ConfirmUpload of 2,049 chunks", &[InvalidArgument], |wire| {
        let chunks =
            (1..=2049).map(|chunk| v1::StoredChunk { chunk, ..v1::StoredChunk::default() }).collect();
        let files = vec![v1::FileCommit { inode: ROOT, ..v1::FileCommit::default() }];
        wire.confirm_any(v1::ConfirmUploadRequest { id: Some(wire.next_id()), chunks, files }).map(drop)
    }));
    rows.push(row("ConfirmUpload of 2,049 extents in two files", &[InvalidArgument], |wire| {
        let file = |name, first: u64, count: u64| {
            let extent = |i| v1::Extent { offset: i * 10, length: 1, chunk: 1, chunk_offset: 0 };
            let extents = (first..first + count).map(extent).collect();
            v1::FileCommit { inode: wire.create(name), extents, ..v1::FileCommit::default() }
        };
        let files = vec![file("many-extents", 0, 2000), file("some-extents", 0, 49)];
        wire.confirm_any(v1::ConfirmUploadRequest { id: Some(wire.next_id()), chunks: vec![], files })
            .map(drop)
    }));
    check(&mut cluster, rows);
    assert!(!cluster.wire().list_root().contains(&"batch".to_owned()), "a refused batch was executed");
}

#[test]
fn plans() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    type Change = fn(&mut v1::UploadFileRequest);
    let changes: &[(&str, &'static [ErrorKind], Change)] = &[
        ("no session", &[InvalidArgument], |r| r.session = Bytes::new()),
        ("a session of 15 bytes", &[InvalidArgument], |r| r.session = Bytes::from_static(&[1; 15])),
        ("a session that is not", &[SessionExpired], |r| r.session = Bytes::from_static(&[1; 16])),
        ("no bytes", &[InvalidArgument], |r| r.bytes = 0),
        ("more than 1 TiB", &[InvalidArgument], |r| r.bytes = (1 << 40) + 1),
        ("2^64 - 1 bytes", &[InvalidArgument, FileTooLarge], |r| r.bytes = u64::MAX),
        ("chunks of 1 byte", &[InvalidArgument], |r| r.chunk_size = 1),
        ("chunks of 64 KiB - 1", &[InvalidArgument], |r| r.chunk_size = (64 << 10) - 1),
        ("chunks of 64 MiB + 1", &[InvalidArgument], |r| r.chunk_size = (64 << 20) + 1),
        ("chunks of 2^64 - 1", &[InvalidArgument], |r| r.chunk_size = u64::MAX),
        ("4,097 chunks", &[InvalidArgument], |r| r.chunks = 4097),
        ("2^32 - 1 chunks", &[InvalidArgument], |r| r.chunks = u32::MAX),
        ("an excluded node of 3 bytes", &[InvalidArgument], |r| {
            r.exclude = vec![Bytes::from_static(&[1; 3])]
        }),
        ("a path and an inode", &[InvalidArgument], |r| {
            r.inode = 1;
            r.path = Bytes::from_static(b"/a");
        }),
        ("inode 2^63", &[InvalidArgument], |r| r.inode = PAST),
        ("a path of 5,000 bytes", &[NameTooLong, InvalidArgument], |r| r.path = vec![b'/'; 5000].into()),
        ("all nodes excluded", &[Unavailable, NoSpace], |_| {}),
    ];
    for &(what, expected, change) in changes {
        rows.push(row(format!("UploadFile with {what}"), expected, move |wire| {
            let mut request = v1::UploadFileRequest {
                session: wire.session(),
                bytes: 1,
                ..v1::UploadFileRequest::default()
            };
            if what == "all nodes excluded" {
                request.exclude = wire.nodes().map(|(id, _)| id.clone()).collect();
            }
            change(&mut request);
            wire.call(wire.coordinator().upload_file(request)).map(drop)
        }));
    }
    check(&mut cluster, rows);
    // The largest that may be asked for is cut or refused, never made in full.
    let wire = cluster.wire();
    let plan = wire.plan(1 << 40, 64 << 10);
    assert!(plan.as_ref().map_or(true, |chunks| chunks.len() <= 4096), "16 million ids at once");
}

fn session(messages: Vec<session_request::Message>) -> impl FnOnce(&Wire) -> Result<(), WireError> {
    move |wire| {
        let requests: Vec<_> =
            messages.into_iter().map(|message| v1::SessionRequest { message: Some(message) }).collect();
        session_of(wire, requests)
    }
}

/// The first error of a session stream; none when it goes on for a second.
fn session_of(wire: &Wire, requests: Vec<v1::SessionRequest>) -> Result<(), WireError> {
    let mut client = wire.coordinator();
    let requests = futures::stream::iter(requests).chain(futures::stream::pending());
    let answers = async move {
        let mut answers = client.session(requests).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    };
    first_error(wire, answers)
}

#[test]
fn sessions() {
    use session_request::Message::{Closed, Goodbye, Hello, KeepAlive};
    let mut cluster = cluster();
    let hello = v1::ClientHello::default;
    let rows = vec![
        row("Session that starts with a keep-alive", &[InvalidArgument, Protocol], {
            session(vec![KeepAlive(v1::KeepAlive::default())])
        }),
        row(
            "Session that starts with a goodbye",
            &[InvalidArgument, Protocol],
            session(vec![Goodbye(v1::Goodbye {})]),
        ),
        row(
            "Session that starts with a close",
            &[InvalidArgument, Protocol],
            session(vec![Closed(v1::Closed::default())]),
        ),
        row("Session with an empty message", &[InvalidArgument, Protocol], |wire| {
            session_of(wire, vec![v1::SessionRequest { message: None }])
        }),
        row(
            "Session with two hellos",
            &[InvalidArgument, Protocol],
            session(vec![Hello(hello()), Hello(hello())]),
        ),
        row("Session with an id of 3 bytes", &[InvalidArgument], {
            session(vec![Hello(v1::ClientHello { session: Bytes::from_static(&[1; 3]), ..hello() })])
        }),
        row("Session that is not", &[SessionExpired], {
            session(vec![Hello(v1::ClientHello { session: Bytes::from_static(&[1; 16]), ..hello() })])
        }),
        row("Session with a description of 1,025 bytes", &[InvalidArgument, TooBig], {
            session(vec![Hello(v1::ClientHello { description: "d".repeat(1025), ..hello() })])
        }),
        row("Session that closes inode 0", &[InvalidArgument], {
            let files = vec![v1::OpenFile { inode: 0, sequence: 1 }];
            session(vec![Hello(hello()), Closed(v1::Closed { files })])
        }),
        row("Session that holds inode 2^63 open", &[InvalidArgument], {
            let open = vec![v1::OpenFile { inode: PAST, sequence: 1 }];
            session(vec![Hello(v1::ClientHello { open, ..hello() })])
        }),
    ];
    check(&mut cluster, rows);
}

#[test]
fn membership() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    let good = || v1::RegisterDataNodeRequest {
        node: Bytes::from_static(&[0xee; 16]),
        address: "127.0.0.1:9".into(),
        incarnation: Bytes::from_static(&[0xdd; 16]),
        capacity: 1 << 30,
        ..v1::RegisterDataNodeRequest::default()
    };
    type Change = fn(&mut v1::RegisterDataNodeRequest);
    let changes: &[(&str, &'static [ErrorKind], Change)] = &[
        ("no id", &[InvalidArgument], |r| r.node = Bytes::new()),
        ("an id of 17 bytes", &[InvalidArgument], |r| r.node = Bytes::from_static(&[1; 17])),
        ("another cluster", &[WrongCluster], |r| r.cluster = Bytes::from_static(&[1; 16])),
        ("a cluster of 2 bytes", &[InvalidArgument], |r| r.cluster = Bytes::from_static(&[1; 2])),
        ("no address", &[InvalidArgument], |r| r.address = String::new()),
        ("an address without a port", &[InvalidArgument], |r| r.address = "localhost".into()),
        ("an address of 1 MiB", &[InvalidArgument], |r| r.address = "a".repeat(1 << 20)),
        ("no incarnation", &[InvalidArgument], |r| r.incarnation = Bytes::new()),
        ("a capacity past 2^63", &[InvalidArgument], |r| r.capacity = u64::MAX),
        ("100,000 labels", &[InvalidArgument, TooBig], |r| {
            r.labels = (0..100_000).map(|i| (i.to_string(), "x".to_owned())).collect();
        }),
    ];
    for &(what, expected, change) in changes {
        rows.push(row(format!("RegisterDataNode with {what}"), expected, move |wire| {
            let mut request = good();
            change(&mut request);
            wire.call(wire.coordinator().register_data_node(request)).map(drop)
        }));
    }
    rows.push(row("RegisterDataNode with the id of a living node", &[Busy], move |wire| {
        let node = wire.nodes().next().expect("a node").0.clone();
        wire.call(wire.coordinator().register_data_node(v1::RegisterDataNodeRequest { node, ..good() }))
            .map(drop)
    }));
    let heartbeat = |request: v1::HeartbeatRequest| {
        move |wire: &Wire| {
            let mut client = wire.coordinator();
            let requests = futures::stream::iter([request]).chain(futures::stream::pending());
            first_error(wire, async move {
                let mut answers = client.heartbeat(requests).await?.into_inner();
                while answers.message().await?.is_some() {}
                Ok(())
            })
        }
    };
    let stranger = || v1::HeartbeatRequest {
        node: Bytes::from_static(&[9; 16]),
        incarnation: Bytes::from_static(&[9; 16]),
        ..v1::HeartbeatRequest::default()
    };
    rows.push(row(
        "Heartbeat of a stranger",
        &[NotFound, SessionExpired, InvalidArgument, WrongCluster],
        heartbeat(stranger()),
    ));
    rows.push(row("Heartbeat without an id", &[InvalidArgument], {
        heartbeat(v1::HeartbeatRequest { node: Bytes::new(), ..stranger() })
    }));
    check(&mut cluster, rows);
    let map = cluster.wire().list_nodes().expect("ListNodes").map.expect("map");
    assert_eq!(map.nodes.len(), 3, "nobody has joined");
}

#[test]
fn chunks() {
    let mut cluster = cluster();
    let mut rows = Vec::new();
    let first = |wire: &Wire| wire.nodes().next().expect("a node").1;
    for id in BAD_IDS {
        rows.push(row(format!("RetrieveChunk of {id}"), &[InvalidArgument], move |wire| {
            retrieve(
                wire,
                v1::RetrieveChunkRequest { chunk: id, length: 1, ..v1::RetrieveChunkRequest::default() },
            )
        }));
        rows.push(row(format!("StatChunks of {id}"), &[InvalidArgument], move |wire| {
            wire.call(first(wire).stat_chunks(v1::StatChunksRequest { chunks: vec![id], verify: true }))
                .map(drop)
        }));
        rows.push(row(format!("SyncChunks of {id}"), &[InvalidArgument], move |wire| {
            let failed =
                wire.call(first(wire).sync_chunks(v1::SyncChunksRequest { chunks: vec![id] }))?.failed;
            failed.first().and_then(|f| WireError::from_fields(f.error, &f.message)).map_or(Ok(()), Err)
        }));
        rows.push(row(format!("DeleteChunks of {id}"), &[InvalidArgument, StaleEpoch], move |wire| {
            let request = v1::DeleteChunksRequest { chunks: vec![id], term: 1, epoch: 1, sequence: 0 };
            let failed = wire.call(first(wire).delete_chunks(request))?.failed;
            failed.first().and_then(|f| WireError::from_fields(f.error, &f.message)).map_or(Ok(()), Err)
        }));
        rows.push(row(format!("StoreChunk of {id}"), &[InvalidArgument], move |wire| {
            store(wire, 100_000, move |frames| frames.iter_mut().for_each(|frame| frame.chunk = id))
        }));
    }
    for (what, offset, length) in [
        ("nothing", 0, 0),
        ("what lies past the end", 0, 100_001),
        ("what starts past the end", 100_000, 1),
        ("2^64 - 1 bytes", 0, u64::MAX),
        ("what ends past 2^64", u64::MAX - 5, 10),
        ("what ends at 2^64", u64::MAX, 1),
    ] {
        rows.push(row(format!("RetrieveChunk of {what}"), &[InvalidArgument], move |wire| {
            let planned = wire.plan_one();
            wire.store(&planned, &pattern::bytes(1, 0, 100_000), false);
            let (chunk, set) = (planned.chunk, planned.set);
            retrieve(
                wire,
                v1::RetrieveChunkRequest {
                    chunk,
                    set,
                    offset,
                    length,
                    ..v1::RetrieveChunkRequest::default()
                },
            )
        }));
    }
    rows.push(row("RetrieveChunk of what is not", &[ChunkNotFound], |wire| {
        retrieve(
            wire,
            v1::RetrieveChunkRequest { chunk: 1 << 50, length: 1, ..v1::RetrieveChunkRequest::default() },
        )
    }));
    rows.push(row("StatChunks of 65,537", &[InvalidArgument], move |wire| {
        let chunks = (1..65_538).collect();
        wire.call(first(wire).stat_chunks(v1::StatChunksRequest { chunks, verify: false })).map(drop)
    }));
    rows.push(row("SyncChunks of 65,537", &[InvalidArgument], move |wire| {
        wire.call(first(wire).sync_chunks(v1::SyncChunksRequest { chunks: (1..65_538).collect() })).map(drop)
    }));
    rows.push(row("SyncChunks of what is not", &[ChunkNotFound], move |wire| {
        let failed =
            wire.call(first(wire).sync_chunks(v1::SyncChunksRequest { chunks: vec![1 << 50] }))?.failed;
        failed.first().and_then(|f| WireError::from_fields(f.error, &f.message)).map_or(Ok(()), Err)
    }));
    rows.push(row("DeleteChunks of 65,537", &[InvalidArgument], move |wire| {
        let request = v1::DeleteChunksRequest {
            chunks: (1..65_538).collect(),
            term: 1 << 40,
            epoch: 1 << 40,
            sequence: 0,
        };
        wire.call(first(wire).delete_chunks(request)).map(drop)
    }));
    for (term, epoch) in [(PAST, 1), (1, PAST), (u64::MAX, u64::MAX), (0, 0)] {
        rows.push(row(
            format!("DeleteChunks of term {term}, epoch {epoch}"),
            &[InvalidArgument, StaleEpoch],
            move |wire| {
                let request = v1::DeleteChunksRequest { chunks: vec![1 << 50], term, epoch, sequence: 0 };
                wire.call(first(wire).delete_chunks(request)).map(drop)
            },
        ));
    }
    rows.push(row("DeleteChunks of an old term", &[StaleEpoch], move |wire| {
        let planned = wire.plan_one();
        wire.store(&planned, &pattern::bytes(1, 0, 1000), false);
        // What the coordinator said last is higher.
        let term = wire.map().term;
        assert!(term >= 1);
        let request =
            v1::DeleteChunksRequest { chunks: vec![planned.chunk], term: term - 1, epoch: 1, sequence: 0 };
        let result = match wire.call(wire.node(&wire.members(planned.set)[0]).delete_chunks(request)) {
            Ok(answer) => answer
                .failed
                .first()
                .and_then(|f| WireError::from_fields(f.error, &f.message))
                .map_or(Ok(()), Err),
            // A term of 0 is none.
            Err(error) if term == 1 && error.kind == InvalidArgument => Err(WireError::new(StaleEpoch, "")),
            Err(error) => Err(error),
        };
        assert_eq!(wire.holders(planned.chunk).len(), 3, "nothing was deleted");
        result
    }));
    rows.push(row("a frame of 1 MiB and a block", &[InvalidArgument], |wire| {
        store(wire, 3 << 20, |frames| {
            let data: Vec<u8> = frames[..5].iter().flat_map(|frame| frame.data.to_vec()).collect();
            frames[0].crc32c = cairn_proto::checksum::block_crcs(&data);
            frames[0].data = data.into();
            frames.truncate(1);
        })
    }));
    rows.push(row("a frame of 40 MiB", &[InvalidArgument, Unavailable], |wire| {
        store(wire, 100_000, |frames| frames[0].data = vec![0; 40 << 20].into())
    }));
    rows.push(row("a million checksums", &[InvalidArgument, ChecksumMismatch], |wire| {
        store(wire, 100_000, |frames| frames[0].crc32c = vec![0; 1_000_000])
    }));
    rows.push(row("ReplicateChunk with members to forward to", &[InvalidArgument], |wire| {
        replicate(wire, |frames| {
            frames[0].header.as_mut().unwrap().forward = vec![Bytes::from_static(&[1; 16])]
        })
    }));
    rows.push(row("ReplicateChunk without a header", &[InvalidArgument], |wire| {
        replicate(wire, |frames| frames[0].header = None)
    }));
    rows.push(row("ReplicateChunk with a wrong checksum", &[ChecksumMismatch], |wire| {
        replicate(wire, |frames| frames[0].crc32c[0] ^= 1)
    }));
    rows.push(row("ReplicateChunk with a gap", &[InvalidArgument], |wire| {
        replicate(wire, |frames| drop(frames.remove(1)))
    }));
    check(&mut cluster, rows);
}

fn retrieve(wire: &Wire, request: v1::RetrieveChunkRequest) -> Result<(), WireError> {
    let chunk = request.chunk;
    let holder = wire.nodes().find(|(_, client)| {
        let request = v1::StatChunksRequest { chunks: vec![chunk], verify: false };
        let mut client = client.clone();
        wire.call(client.stat_chunks(request)).is_ok_and(|answer| answer.chunks.iter().any(|c| c.present))
    });
    let mut client = holder.or_else(|| wire.nodes().next()).expect("a node").1;
    first_error(wire, async move {
        let mut frames = client.retrieve_chunk(request).await?.into_inner();
        while frames.message().await?.is_some() {}
        Ok(())
    })
}

/// Sends a spoilt chunk to its primary.
fn store(wire: &Wire, length: usize, spoil: impl FnOnce(&mut Vec<v1::StoreFrame>)) -> Result<(), WireError> {
    let planned = wire.plan_one();
    let mut frames = frames(&planned, &pattern::bytes(1, 0, length), false);
    spoil(&mut frames);
    let answers = wire.send(&wire.members(planned.set)[0], frames, true)?;
    let error = answers.values().find_map(|ack| WireError::from_fields(ack.error, &ack.message));
    error.map_or(Ok(()), Err)
}

/// Sends a spoilt chunk of 600 KiB to a member, as a primary would.
fn replicate(wire: &Wire, spoil: impl FnOnce(&mut Vec<v1::StoreFrame>)) -> Result<(), WireError> {
    let planned = wire.plan_one();
    let mut frames = frames(&planned, &pattern::bytes(1, 0, 600 << 10), false);
    spoil(&mut frames);
    let mut client = wire.node(&wire.members(planned.set)[1]);
    let requests = futures::stream::iter(frames).chain(futures::stream::pending());
    let mut told = Ok(());
    let answered = first_error(wire, async {
        let mut acks = client.replicate_chunk(requests).await?.into_inner();
        while let Some(ack) = acks.message().await? {
            if let Some(error) = WireError::from_fields(ack.error, &ack.message) {
                told = Err(error);
                break;
            }
            if ack.stored {
                break;
            }
        }
        Ok(())
    });
    answered.and(told)
}

/// Bytes as they are, in the place of a message.
#[derive(Debug, Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;
    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The services as they are described, so that no call is forgotten: each with who serves it.
const SERVICES: [(&str, &str); 3] = [
    ("Coordinator", include_str!("../../proto/cairn/v1/coordinator.proto")),
    ("DataNode", include_str!("../../proto/cairn/v1/datanode.proto")),
    ("MetaLog", include_str!("../../proto/cairn/v1/metalog.proto")),
];

/// The names of the calls in a description of services.
fn calls(description: &str) -> impl Iterator<Item = &str> {
    let names = description.lines().filter_map(|line| line.trim_start().strip_prefix("rpc "));
    names.filter_map(|rest| rest.split('(').next())
}

#[test]
fn messages_that_are_none_on_every_call() {
    let mut cluster = cluster();
    let coordinator = cluster.coordinator_address().to_owned();
    let datanode = cluster.node_address(0).to_owned();
    let payloads: [(&str, Bytes); 5] = [
        ("a field that ends too early", Bytes::from_static(&[0x0a, 0xff, 0xff, 0xff, 0x0f])),
        ("a tag of no type", Bytes::from_static(&[0xff; 40])),
        ("an unknown group", Bytes::from(vec![0x0b; 5000])),
        ("noise", pattern::bytes(5, 16, 9000).into()),
        ("20 MiB", vec![0; 20 << 20].into()),
    ];
    let mut rows = Vec::new();
    let calls: Vec<_> =
        SERVICES.iter().flat_map(|(service, text)| calls(text).map(move |c| (*service, c))).collect();
    assert!(
        calls.contains(&("MetaLog", "RemoveLogs")) && calls.len() > 30,
        "calls that were found: {calls:?}"
    );
    for (service, call) in calls {
        let address = if service == "Coordinator" { &coordinator } else { &datanode };
        for (what, payload) in payloads.clone() {
            let address = address.clone();
            let method = format!("/cairn.v1.{service}/{call}");
            // Any error will do, as long as it comes from there.
            let any: &'static [ErrorKind] = &[InvalidArgument, Protocol, Unavailable, Overloaded, Internal];
            rows.push(row(format!("{method}: {what}"), any, move |wire| {
                let answers = async move {
                    let channel = cairn_runtime::net::connect(&address).expect("address");
                    let mut client = tonic::client::Grpc::new(channel);
                    client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
                    let path = method.parse().expect("path");
                    let request = tonic::Request::new(
                        futures::stream::iter([payload]).chain(futures::stream::pending()),
                    );
                    let mut answers = client.streaming(request, path, Raw).await?.into_inner();
                    while answers.message().await?.is_some() {}
                    Ok(())
                };
                first_error(wire, answers)
            }));
        }
    }
    check(&mut cluster, rows);
}

#[test]
fn bytes_that_are_no_grpc() {
    let mut cluster = cluster();
    let before = memory(&mut cluster);
    let addresses = [cluster.coordinator_address().to_owned(), cluster.node_address(0).to_owned()];
    for address in &addresses {
        let connect = || {
            let stream = TcpStream::connect(address).expect("connect");
            stream.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
            stream
        };
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            pattern::bytes(1, 0, 100_000),
            vec![0; 1000],
            [PREFACE, &[0xff; 9000]].concat(),
            // A header block that never ends.
            [
                PREFACE,
                &frame(4, 0, 0, &[]),
                &frame(1, 0, 1, &[0x40; 10]),
                &frame(9, 0, 1, &[0; 16_000]).repeat(40),
            ]
            .concat(),
        ] {
            let mut stream = connect();
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0; 1000]);
        }
        // Messages that claim 4 GiB, and send nothing of it; many at once, and all held open.
        let service = if *address == addresses[0] { "Coordinator/Apply" } else { "DataNode/StatChunks" };
        let claims: Vec<_> = (0..20)
            .map(|_| {
                let mut stream = connect();
                stream.write_all(&claim_of_4_gib(service)).expect("send");
                stream
            })
            .collect();
        // Connections that say nothing.
        let idle: Vec<_> = (0..300).map(|_| connect()).collect();
        std::thread::sleep(Duration::from_millis(500));
        all_is_well(&mut cluster, before.clone());
        drop((claims, idle));
    }
    // Thousands of requests that are given up at once.
    for address in &addresses {
        let mut stream = TcpStream::connect(address).expect("connect");
        let mut bytes = [PREFACE, &frame(4, 0, 0, &[])].concat();
        let headers = headers("Coordinator/ListNodes");
        for id in 0..5000_u32 {
            bytes.extend(frame(1, 0x4, 1 + 2 * id, &headers));
            bytes.extend(frame(3, 0, 1 + 2 * id, &[0, 0, 0, 8]));
        }
        let _ = stream.write_all(&bytes);
    }
    all_is_well(&mut cluster, before);
    let _ = process::resident(std::process::id());
}

fn claim_of_4_gib(method: &str) -> Vec<u8> {
    [
        PREFACE,
        &frame(4, 0, 0, &[]),
        &frame(1, 0x4, 1, &headers(method)),
        &frame(0, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]),
    ]
    .concat()
}
