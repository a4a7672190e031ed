//! The coordinator as a client sees it: over gRPC on a free port.

use cairn_proto::{ErrorKind, v1, wire_error_of};
use v1::mutation::Op;

use crate::common;
use crate::common::{Cluster, Datanode, create, dir, file, mutation, unlink};

type Result<T = ()> = anyhow::Result<T>;

#[tokio::test]
async fn what_is_created_is_found_and_listed() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let made = client.apply(vec![dir(1, "d")]).await?;
    let d = made[0].attr.clone().unwrap();
    assert_eq!((d.nlink, d.mode, d.parent), (2, 0o755, 1));
    assert_eq!(made[0].parent.as_ref().unwrap().nlink, 3);
    client.apply(vec![file(d.inode, "a"), file(d.inode, "b")]).await?;
    let names = client.list(d.inode).await?;
    assert_eq!(names, ["a", "b"]);
    assert_eq!(client.lookup(1, "d").await?.inode, d.inode);
    assert_eq!(client.lookup(d.inode, "..").await?.inode, 1);
    assert_eq!(client.error(client.clone().lookup(1, "x").await), ErrorKind::NotFound);
    cluster.stop().await
}

#[tokio::test]
async fn a_repeated_request_gets_its_first_reply() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let id = client.next_id();
    let first = client.apply_as(id.clone(), vec![file(1, "once")]).await?;
    let again = client.apply_as(id.clone(), vec![file(1, "once")]).await?;
    assert_eq!(first, again);
    let next = client.next_id();
    assert_eq!(
        client.apply_as(next, vec![file(1, "once")]).await?[0].error,
        ErrorKind::Exists.number(),
        "a new request is executed"
    );
    let stale = client.apply_as(id.clone(), vec![file(1, "once")]).await;
    assert_eq!(client.error(stale), ErrorKind::StaleSequence);
    let gap = v1::RequestId { sequence: 99, ..id };
    let gap = client.apply_as(gap, vec![file(1, "gap")]).await;
    assert_eq!(client.error(gap), ErrorKind::InvalidArgument);
    cluster.stop().await
}

#[tokio::test]
async fn a_restart_keeps_everything() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let id = client.next_id();
    let made = client.apply_as(id.clone(), vec![dir(1, "d")]).await?;
    let d = made[0].attr.clone().unwrap();
    let session = client.session.clone();
    let first_cluster = cluster.id();
    let cluster = cluster.restart().await?;
    assert_eq!(cluster.id(), first_cluster);
    let mut client = cluster.resume(session, vec![]).await?;
    assert_eq!(client.lookup(1, "d").await?, d);
    assert_eq!(client.apply_as(id.clone(), vec![dir(1, "d")]).await?, made, "the stored reply");
    let next = v1::RequestId { sequence: id.sequence + 1, ..id };
    let other = client.apply_as(next, vec![dir(1, "e")]).await?;
    assert!(other[0].attr.as_ref().unwrap().inode > d.inode, "ids are not given twice");
    cluster.stop().await
}

#[tokio::test]
async fn an_unlinked_file_lives_until_its_last_close() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let made = client.apply(vec![file(1, "f")]).await?;
    let inode = made[0].attr.as_ref().unwrap().inode;
    client.open(inode, 1).await?;
    let gone = client.apply(vec![unlink(1, "f")]).await?;
    assert_eq!(gone[0].attr.as_ref().unwrap().nlink, 0);
    assert_eq!(client.get_attr(inode).await?.nlink, 0);
    client.close_files(vec![v1::OpenFile { inode, sequence: 1 }]).await?;
    client.until_gone(inode).await?;
    // Without holders it goes at once; an open of it comes too late.
    let made = client.apply(vec![file(1, "g")]).await?;
    let inode = made[0].attr.as_ref().unwrap().inode;
    client.apply(vec![unlink(1, "g")]).await?;
    let late = client.open(inode, 2).await;
    assert_eq!(client.error(late), ErrorKind::StaleHandle);
    cluster.stop().await
}

#[tokio::test]
async fn an_open_file_survives_a_restart_of_the_coordinator() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let made = client.apply(vec![file(1, "held"), file(1, "dropped")]).await?;
    let [held, dropped] = [0, 1].map(|i: usize| made[i].attr.as_ref().unwrap().inode);
    client.open(held, 1).await?;
    client.open(dropped, 2).await?;
    client.apply(vec![unlink(1, "held"), unlink(1, "dropped")]).await?;
    let session = client.session.clone();
    let cluster = cluster.restart().await?;
    let mut other = cluster.client().await?;
    assert_eq!(other.get_attr(held).await?.nlink, 0);
    let mut client = cluster.resume(session, vec![v1::OpenFile { inode: held, sequence: 1 }]).await?;
    client.until_gone(dropped).await?;
    assert_eq!(client.get_attr(held).await?.nlink, 0);
    client.goodbye().await?;
    other.until_gone(held).await?;
    cluster.stop().await
}

#[tokio::test]
async fn a_session_that_replaces_an_expired_one_keeps_what_its_mount_holds_open() -> Result {
    let cluster = Cluster::start_with(|config| config.lease = std::time::Duration::from_secs(1)).await?;
    let (mut away, mut other) = (cluster.client().await?, cluster.client().await?);
    let names = ["named", "held", "lost", "closed", "temporary"];
    let made = other.apply(names.map(|name| file(1, name)).to_vec()).await?;
    let [named, held, lost, closed, temporary] =
        [0, 1, 2, 3, 4].map(|i: usize| made[i].attr.as_ref().unwrap().inode);
    for (sequence, inode) in (1..).zip([named, held, lost, closed, temporary]) {
        away.open(inode, sequence).await?;
    }
    other.apply(vec![unlink(1, "temporary")]).await?;
    other.open(held, 1).await?;
    other.open(closed, 2).await?;
    away.stop_keep_alive();
    loop {
        let plan = away.plan(1).await;
        if away.error(plan) == ErrorKind::SessionExpired {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let gone = ["held", "lost", "closed"].map(|name| unlink(1, name));
    other.apply(gone.to_vec()).await?;

    // It comes back in a new session, and says in three messages what it has open.
    let open = |inode, sequence| v1::OpenFile { inode, sequence };
    let pages = vec![vec![open(held, 2)], vec![open(lost, 3), open(temporary, 5)]];
    let mut back = cluster.replace(vec![open(named, 1)], pages).await?;
    other.close_files(vec![open(held, 1), open(closed, 2)]).await?;
    other.until_gone(closed).await?;
    other.apply(vec![unlink(1, "named")]).await?;
    for inode in [named, held, temporary] {
        assert_eq!(back.get_attr(inode).await?.nlink, 0);
        back.open(inode, 9).await?;
    }
    let late = back.open(lost, 10).await;
    assert_eq!(back.error(late), ErrorKind::StaleHandle);
    back.close_files(vec![open(named, 9), open(held, 9), open(temporary, 9)]).await?;
    back.until_gone(named).await?;
    back.until_gone(held).await?;
    cluster.stop().await
}

#[tokio::test]
async fn a_silent_session_expires_and_is_fenced() -> Result {
    let cluster = Cluster::start_with(|config| config.lease = std::time::Duration::from_secs(1)).await?;
    let mut client = cluster.client().await?;
    client.apply(vec![file(1, "f")]).await?;
    client.stop_keep_alive();
    let mut last = Ok(vec![]);
    for round in 0..100 {
        last = client.apply(vec![file(1, &format!("f{round}"))]).await;
        if last.is_err() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(client.error(last), ErrorKind::SessionExpired);
    let plan = client.plan(1).await;
    assert_eq!(client.error(plan), ErrorKind::SessionExpired);
    cluster.stop().await
}

#[tokio::test]
async fn an_upload_becomes_part_of_a_file() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let early = client.plan(1).await;
    assert_eq!(client.error(early), ErrorKind::Unavailable);
    let nodes = cluster.datanodes(3).await?;
    let made = client.apply(vec![file(1, "f"), file(1, "g")]).await?;
    let [f, g] = [0, 1].map(|i: usize| made[i].attr.as_ref().unwrap().inode);
    let plan = client.plan(2).await?;
    let map = plan.map.clone().unwrap();
    let granted = Datanode::granted(&plan);
    let stored: Vec<_> = granted.iter().map(|&grant| common::stored(&map, grant, 1000)).collect();
    let id = client.next_id();
    let request = v1::ConfirmUploadRequest {
        id: Some(id),
        chunks: stored.clone(),
        files: vec![
            common::commit(f, &[(0, 600, stored[0].chunk, 0), (4096, 1000, stored[1].chunk, 0)]),
            common::commit(g, &[(0, 400, stored[0].chunk, 600)]),
        ],
    };
    let first = client.confirm(request.clone()).await?;
    assert!(first.iter().all(|result| result.error == 0), "{first:?}");
    assert_eq!(first, client.confirm(request.clone()).await?, "a replay changes nothing");
    let layout = client.layout(f, 0, 1 << 20).await?;
    let attr = layout.attr.unwrap();
    assert_eq!((attr.size, attr.allocated), (5096, 1600));
    let offsets: Vec<_> = layout.extents.iter().map(|extent| (extent.offset, extent.length)).collect();
    assert_eq!(offsets, [(0, 600), (4096, 1000)]);
    assert_eq!(layout.chunks.len(), 2);
    let twice =
        client.confirm_new(stored.clone(), vec![common::commit(f, &[(0, 10, stored[0].chunk, 0)])]).await?;
    assert_eq!(twice[0].error, ErrorKind::AlreadyCommitted.number());
    client.apply(vec![unlink(1, "f"), unlink(1, "g")]).await?;
    let status = client.status().await?;
    assert_eq!((status.chunks, status.garbage_chunks, status.bytes), (0, 2, 0));
    let back =
        client.confirm_new(stored.clone(), vec![common::commit(f, &[(0, 10, stored[0].chunk, 0)])]).await?;
    assert_ne!(back[0].error, 0, "garbage does not come back to life");
    drop(nodes);
    cluster.stop().await
}

#[tokio::test]
async fn commits_that_break_a_rule_change_nothing() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let mut other = cluster.client().await?;
    let _nodes = cluster.datanodes(3).await?;
    let made = client.apply(vec![file(1, "f"), dir(1, "d")]).await?;
    let f = made[0].attr.as_ref().unwrap().inode;
    let plan = client.plan(16).await?;
    let map = plan.map.clone().unwrap();
    let mut grants = Datanode::granted(&plan).into_iter();
    let mut good = || common::stored(&map, grants.next().unwrap(), 1000);
    let few = {
        let mut chunk = good();
        chunk.stored_by.truncate(1);
        chunk
    };
    let stale = {
        let mut chunk = good();
        chunk.epoch += 1;
        chunk
    };
    let stranger = {
        let mut chunk = good();
        chunk.stored_by[0] = vec![7; 16].into();
        chunk
    };
    let huge = v1::StoredChunk { length: (64 << 20) + 1, ..good() };
    let unknown = v1::StoredChunk { chunk: 1 << 40, ..good() };
    let past = (1u64 << 63) - 10;
    let cases = [
        ("too few replicas", few.clone(), vec![(0, 10, few.chunk, 0)], ErrorKind::TooFewReplicas),
        ("stale epoch", stale.clone(), vec![(0, 10, stale.chunk, 0)], ErrorKind::StaleEpoch),
        ("stranger", stranger.clone(), vec![(0, 10, stranger.chunk, 0)], ErrorKind::InvalidArgument),
        ("huge", huge.clone(), vec![(0, 10, huge.chunk, 0)], ErrorKind::InvalidArgument),
        ("never granted", unknown.clone(), vec![(0, 10, unknown.chunk, 0)], ErrorKind::PlanForeign),
    ];
    for (what, chunk, extents, expected) in cases {
        let result = client.confirm_new(vec![chunk], vec![common::commit(f, &extents)]).await?;
        assert_eq!(ErrorKind::from_number(result[0].error), Some(expected), "{what}");
    }
    let chunk = good();
    let c = chunk.chunk;
    for (what, extents, expected) in [
        ("overlap", vec![(0, 10, c, 0), (5, 10, c, 20)], ErrorKind::InvalidArgument),
        ("past the chunk", vec![(0, 10, c, 991)], ErrorKind::InvalidArgument),
        ("wrapping", vec![(0, 10, c, u64::MAX - 3)], ErrorKind::InvalidArgument),
    ] {
        let chunk = good();
        let extents: Vec<_> = extents.into_iter().map(|(o, l, _, co)| (o, l, chunk.chunk, co)).collect();
        let result = client.confirm_new(vec![chunk], vec![common::commit(f, &extents)]).await?;
        assert_eq!(ErrorKind::from_number(result[0].error), Some(expected), "{what}");
    }
    let far = client.confirm_new(vec![], vec![common::commit(f, &[(past, 100, c, 0)])]).await;
    assert_eq!(client.error(far), ErrorKind::FileTooLarge);
    let empty = client.confirm_new(vec![], vec![common::commit(f, &[(0, 0, c, 0)])]).await;
    assert_eq!(client.error(empty), ErrorKind::InvalidArgument);
    let theirs = other.confirm_new(vec![chunk.clone()], vec![common::commit(f, &[(0, 10, c, 0)])]).await?;
    assert_eq!(theirs[0].error, ErrorKind::PlanForeign.number());
    let attr = client.get_attr(f).await?;
    assert_eq!((attr.size, attr.allocated, attr.version), (0, 0, 1));
    // The same chunk is still good, and a member that missed it is remembered.
    let mut chunk = chunk;
    let missing = chunk.stored_by.pop().unwrap();
    let done = client.confirm_new(vec![chunk], vec![common::commit(f, &[(0, 10, c, 0)])]).await?;
    assert_eq!(done[0].error, 0, "{done:?}");
    let layout = client.layout(f, 0, 100).await?;
    assert_eq!(layout.chunks[0].missing, [missing]);
    let status = client.status().await?;
    assert!(status.health.iter().any(|code| code.code == "CHUNKS_DEGRADED"));
    cluster.stop().await
}

#[tokio::test]
async fn datanodes_register_fall_silent_and_come_back() -> Result {
    let cluster = Cluster::start_with(|config| {
        config.heartbeat = std::time::Duration::from_millis(50);
        config.suspect_after = std::time::Duration::from_millis(300);
        config.down_after = std::time::Duration::from_millis(600);
    })
    .await?;
    let mut client = cluster.client().await?;
    let mut nodes = cluster.datanodes(2).await?;
    client.until_states(&[v1::NodeState::Up, v1::NodeState::Up]).await?;
    let twin = cluster.register(&nodes[0].node, 99, &[]).await;
    assert_eq!(client.error(twin), ErrorKind::Busy);
    let stranger = cluster.register(&[9; 16], 1, &[1; 16]).await;
    assert_eq!(client.error(stranger), ErrorKind::WrongCluster);
    drop(nodes.remove(0));
    client.until_states(&[v1::NodeState::Down, v1::NodeState::Up]).await?;
    let health = client.status().await?.health;
    assert!(health.iter().any(|code| code.code == "NODE_DOWN" && !code.remedy.is_empty()));
    assert!(health.iter().any(|code| code.code == "NO_WRITES" && code.error));
    let plan = client.plan(1).await.unwrap_err();
    assert_eq!(wire_error_of(&plan).message, "2 datanodes are needed, 1 is up");
    cluster.stop().await
}

#[tokio::test]
async fn bad_input_gets_an_error_and_nothing_else() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    let bad = |parent, name: &[u8], change: fn(&mut v1::Create)| {
        let mut op = v1::Create {
            parent,
            name: bytes::Bytes::copy_from_slice(name),
            kind: v1::InodeKind::File.into(),
            mode: 0o644,
            ..v1::Create::default()
        };
        change(&mut op);
        mutation(Op::Create(op))
    };
    let table = [
        ("no parent", bad(0, b"x", |_| {}), ErrorKind::InvalidArgument),
        ("parent out of range", bad(u64::MAX, b"x", |_| {}), ErrorKind::InvalidArgument),
        ("parent not there", bad(77, b"x", |_| {}), ErrorKind::NotFound),
        ("no name", bad(1, b"", |_| {}), ErrorKind::InvalidArgument),
        ("dot", bad(1, b".", |_| {}), ErrorKind::InvalidArgument),
        ("slash", bad(1, b"a/b", |_| {}), ErrorKind::InvalidArgument),
        ("nul", bad(1, b"a\0", |_| {}), ErrorKind::InvalidArgument),
        ("long name", bad(1, &[b'a'; 256], |_| {}), ErrorKind::NameTooLong),
        ("mode", bad(1, b"x", |op| op.mode = 0o10000), ErrorKind::InvalidArgument),
        ("kind 0", bad(1, b"x", |op| op.kind = 0), ErrorKind::InvalidArgument),
        ("kind 99", bad(1, b"x", |op| op.kind = 99), ErrorKind::InvalidArgument),
        ("empty symlink", bad(1, b"x", |op| op.kind = 3), ErrorKind::InvalidArgument),
        (
            "long symlink",
            bad(1, b"x", |op| {
                op.kind = 3;
                op.symlink_target = vec![b'a'; 4096].into();
            }),
            ErrorKind::NameTooLong,
        ),
        (
            "open without session",
            bad(1, b"x", |op| op.open = Some(v1::OpenRegistration::default())),
            ErrorKind::InvalidArgument,
        ),
        (
            "both flags",
            mutation(Op::Rename(v1::Rename {
                parent: 1,
                name: "a".into(),
                new_parent: 1,
                new_name: "b".into(),
                no_replace: true,
                exchange: true,
            })),
            ErrorKind::InvalidArgument,
        ),
        (
            "size past the end",
            mutation(Op::SetAttr(v1::SetAttr { inode: 1, size: Some(1 << 63), ..v1::SetAttr::default() })),
            ErrorKind::FileTooLarge,
        ),
        (
            "time without time",
            mutation(Op::SetAttr(v1::SetAttr {
                inode: 1,
                atime: Some(v1::TimeChange { to: None }),
                ..v1::SetAttr::default()
            })),
            ErrorKind::InvalidArgument,
        ),
        (
            "allocate past the end",
            mutation(Op::Allocate(v1::Allocate {
                inode: 1,
                offset: u64::MAX,
                length: u64::MAX,
                ..v1::Allocate::default()
            })),
            ErrorKind::FileTooLarge,
        ),
        ("nothing", v1::Mutation::default(), ErrorKind::InvalidArgument),
    ];
    for (what, mutation, expected) in table {
        let result = client.apply(vec![mutation]).await?;
        assert_eq!(
            ErrorKind::from_number(result[0].error),
            Some(expected),
            "{what}: {:?}",
            result[0].message
        );
    }
    let none = client.apply(vec![]).await;
    assert_eq!(client.error(none), ErrorKind::InvalidArgument);
    let many = client.apply(vec![v1::Mutation::default(); 1025]).await;
    assert_eq!(client.error(many), ErrorKind::InvalidArgument);
    let bad_id = v1::RequestId { session: vec![1, 2, 3].into(), slot: 0, sequence: 1 };
    let no_session = client.apply_as(bad_id, vec![file(1, "x")]).await;
    assert_eq!(client.error(no_session), ErrorKind::InvalidArgument);
    let foreign = v1::RequestId { session: vec![7; 16].into(), slot: 0, sequence: 1 };
    let foreign = client.apply_as(foreign, vec![file(1, "x")]).await;
    assert_eq!(client.error(foreign), ErrorKind::SessionExpired);
    let slot = v1::RequestId { slot: 256, ..client.next_id() };
    let slot = client.apply_as(slot, vec![file(1, "x")]).await;
    assert_eq!(client.error(slot), ErrorKind::InvalidArgument);
    client.reset_sequence();
    for (chunk_size, chunks, bytes) in
        [(1, 1, 0), (65 << 20, 1, 0), (0, 4097, 0), (0, 0, 0), (0, 0, u64::MAX)]
    {
        let plan = client.plan_with(chunk_size, chunks, bytes).await;
        assert_eq!(client.error(plan), ErrorKind::InvalidArgument, "{chunk_size} {chunks} {bytes}");
    }
    assert_eq!(client.list(1).await?, Vec::<String>::new(), "nothing was made");
    let fine = client.apply(vec![create(1, "\u{fffd}fine", v1::InodeKind::File)]).await?;
    assert_eq!(fine[0].error, 0);
    cluster.stop().await
}
