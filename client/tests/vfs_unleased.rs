//! Directories made when no more leases are to be had: nothing that was answered is undone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{Listing, Vfs};
use cairn_client::{Caller, Kind};
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_proto::v1::{self, session_request, session_response};
use cairn_proto::{FileName, InodeId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;
/// Leases that one session can hold, and all together.
const OF_SESSION: u64 = 65_536;
const ALL: u64 = 1 << 20;
/// Leases that are left for mounts.
const LEFT: u64 = 16;
/// Numbers that no inode has.
const NOBODYS: u64 = 1 << 50;

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

async fn mount(cluster: &Cluster) -> Arc<Vfs> {
    Vfs::new(cluster.client().await.unwrap(), Duration::from_secs(1))
}

async fn say(line: &mpsc::Sender<v1::SessionRequest>, message: session_request::Message) {
    line.send(v1::SessionRequest { message: Some(message) }).await.unwrap();
}

async fn greet(
    address: &str,
    hello: v1::ClientHello,
) -> (mpsc::Sender<v1::SessionRequest>, Streaming<v1::SessionResponse>, Bytes) {
    let channel = cairn_runtime::net::connect(address).unwrap();
    let mut client = CoordinatorClient::new(channel).max_encoding_message_size(16 << 20);
    let (line, requests) = mpsc::channel(4);
    say(&line, session_request::Message::Hello(hello)).await;
    let mut answers = client.session(ReceiverStream::new(requests)).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().message {
        Some(session_response::Message::Welcome(welcome)) => (line, answers, welcome.session),
        other => panic!("{other:?}"),
    }
}

/// A session that says it holds so many leases, and stays.
async fn hold_many(address: String, number: u64, count: u64) -> JoinSet<()> {
    let (line, _, session) = greet(&address, v1::ClientHello::default()).await;
    drop(line);
    let first = NOBODYS + number * OF_SESSION;
    let leases = (first..first + count).collect();
    let (line, mut answers, _) =
        greet(&address, v1::ClientHello { session, leases, ..v1::ClientHello::default() }).await;
    let mut alive = JoinSet::new();
    alive.spawn(async move { while let Ok(Some(_)) = answers.message().await {} });
    alive.spawn(async move {
        loop {
            say(&line, session_request::Message::KeepAlive(v1::KeepAlive::default())).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    alive
}

async fn names(vfs: &Arc<Vfs>, directory: InodeId) -> Vec<String> {
    let handle = vfs.opendir(directory);
    let entries = vfs.readdir(handle, 0, Listing::Names).await.unwrap();
    let mut names: Vec<_> =
        entries.iter().map(|entry| String::from_utf8_lossy(entry.name).into_owned()).collect();
    vfs.releasedir(handle);
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_no_lease_is_left_for_is_made_with_all_that_is_in_it() {
    let cluster = Cluster::start().await.unwrap();
    let (one, other) = (mount(&cluster).await, mount(&cluster).await);
    let me = Caller::root();
    let outer = one.mkdir(ROOT, &name("d"), 0o755, &me).await.unwrap().attr.inode;
    // The first change brings the lease of the directory, in which the second is local.
    one.mkdir(outer, &name("first"), 0o755, &me).await.unwrap();
    let top = one.mkdir(outer, &name("second"), 0o755, &me).await.unwrap().attr.inode;
    let mut holders = Vec::new();
    for number in 0..ALL / OF_SESSION {
        let count = if number == 0 { OF_SESSION - LEFT } else { OF_SESSION };
        holders.push(hold_many(cluster.address.clone(), number, count).await);
    }
    for round in 0..30 {
        let text = format!("d{round}");
        let made = one.mkdir(top, &name(&text), 0o755, &me).await.unwrap().attr.inode;
        let inner = one.mkdir(made, &name("inner"), 0o755, &me).await.unwrap().attr.inode;
        for file in 0..5 {
            one.mknod(inner, &name(&format!("f{file}")), Kind::File, 0o644, 0, &me).await.unwrap();
        }
        if round % 3 == 0 {
            // Somebody looks at once, and adds something.
            let seen = other.lookup(top, &name(&text), &me).await.unwrap().attr.inode;
            assert_eq!(seen, made);
            other.mknod(inner, &name("theirs"), Kind::File, 0o644, 0, &me).await.unwrap();
            assert!(one.lookup(inner, &name("theirs"), &me).await.is_ok(), "round {round}");
            assert_eq!(names(&other, inner).await.len(), 6);
        }
    }
    let handle = one.opendir(top);
    one.fsyncdir(handle).await.unwrap();
    for vfs in [&one, &other] {
        assert_eq!(names(vfs, top).await.len(), 30);
        for round in 0..30 {
            let made = vfs.lookup(top, &name(&format!("d{round}")), &me).await.unwrap().attr.inode;
            let inner = vfs.lookup(made, &name("inner"), &me).await.unwrap().attr;
            assert_eq!(names(vfs, inner.inode).await.len(), if round % 3 == 0 { 6 } else { 5 });
            assert_eq!(vfs.getattr(made).await.unwrap().attr.nlink, 3);
        }
    }
    drop(holders);
    for vfs in [one, other] {
        vfs.client().close().await.unwrap();
    }
    cluster.stop().await.unwrap();
}
