//! Times of changes: a later change never looks older, on one mount and across two, near to the coordinator or far.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{AttrChange, OpenFlags, Time, Vfs, WriteOrigin};
use cairn_client::{Attr, Caller, ClientConfig};
use cairn_proto::{FileName, InodeId};
use cairn_runtime::net;
use cairn_runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;
/// How long every byte takes one way.
const FAR: Duration = Duration::from_millis(40);

/// How long every byte takes to the coordinator, and from there.
#[derive(Clone, Copy)]
struct Way {
    to: Duration,
    from: Duration,
}

impl Way {
    const EVEN: Self = Self { to: FAR, from: FAR };
    /// A mount estimates the cluster's clock by half a round trip. So it is ahead.
    const SLOW_TO: Self = Self { to: FAR, from: Duration::ZERO };
    /// It is behind.
    const SLOW_FROM: Self = Self { to: Duration::ZERO, from: FAR };
}

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

/// Passes bytes on after a delay, in their order.
async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel(1024);
    let read = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let due = tokio::time::Instant::now() + delay;
            if sender.send((due, buffer[..count].to_vec())).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let write = async {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        receiver.close();
    };
    tokio::join!(read, write);
}

/// The address of a coordinator that is far away.
#[allow(clippy::disallowed_methods)] // a proxy is no part of the product
async fn far_away(address: &str, way: Way) -> String {
    let listener = net::listen("127.0.0.1:0").await.unwrap();
    let (far, near) = (listener.local_addr().unwrap().to_string(), address.to_owned());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(&near).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(pass(from_client, to_server, way.to));
            tokio::spawn(pass(from_server, to_client, way.from));
        }
    });
    far
}

async fn near_mount(cluster: &Cluster) -> Arc<Vfs> {
    Vfs::new(cluster.client().await.unwrap(), Duration::from_secs(1))
}

async fn far_mount(cluster: &Cluster, way: Way) -> Arc<Vfs> {
    let config =
        ClientConfig { coordinator: far_away(&cluster.address, way).await, ..ClientConfig::default() };
    let client = cairn_client::Client::connect(config, "test".into(), &Shutdown::new()).await.unwrap();
    Vfs::new(client, Duration::from_secs(1))
}

/// A directory that `vfs` holds the lease of.
async fn leased(vfs: &Arc<Vfs>, text: &str) -> InodeId {
    let me = Caller::root();
    let outer = vfs.mkdir(ROOT, &name(text), 0o755, &me).await.unwrap().attr.inode;
    vfs.mkdir(outer, &name("first"), 0o755, &me).await.unwrap();
    vfs.mkdir(outer, &name("second"), 0o755, &me).await.unwrap().attr.inode
}

/// Makes a file with content, closes it and returns its attributes.
async fn make_file(vfs: &Arc<Vfs>, directory: InodeId, text: &str) -> Attr {
    let flags = OpenFlags { write: true, exclusive: true, ..OpenFlags::default() };
    let opened = vfs.create_open(directory, &name(text), 0o640, flags, &Caller::root()).await.unwrap();
    vfs.write(opened.handle, 0, Bytes::from_static(b"content"), WriteOrigin::Call).await.unwrap();
    let written = vfs.getattr(opened.entry.attr.inode).await.unwrap().attr;
    vfs.flush(opened.handle).await.unwrap();
    vfs.release(opened.handle);
    let closed = vfs.getattr(opened.entry.attr.inode).await.unwrap().attr;
    assert_eq!(closed.mtime_ns, written.mtime_ns, "it stays what it was when the write returned");
    closed
}

async fn make_directory(vfs: &Arc<Vfs>, directory: InodeId, text: &str) -> Attr {
    vfs.mkdir(directory, &name(text), 0o755, &Caller::root()).await.unwrap().attr
}

/// The times that one program has seen, one change after another.
#[derive(Default)]
struct Seen(Vec<(String, i64)>);

impl Seen {
    fn note(&mut self, what: &str, time_ns: i64) {
        self.0.push((what.to_owned(), time_ns));
    }

    fn check(&self) {
        for pair in self.0.windows(2) {
            let ((before, first), (after, second)) = (&pair[0], &pair[1]);
            assert!(first <= second, "{after} is {} ns older than {before}", first - second);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_mount_a_later_change_never_has_an_earlier_time() {
    let cluster = Cluster::start().await.unwrap();
    let me = Caller::root();
    for (where_it_is, vfs) in [
        ("near", near_mount(&cluster).await),
        ("far", far_mount(&cluster, Way::EVEN).await),
        ("slow-to", far_mount(&cluster, Way::SLOW_TO).await),
        ("slow-from", far_mount(&cluster, Way::SLOW_FROM).await),
    ] {
        let directory = leased(&vfs, where_it_is).await;
        let mut seen = Seen::default();
        for round in 0..10 {
            // Written here, made here, made by the coordinator, set to now.
            let file = make_file(&vfs, directory, &format!("f{round}")).await;
            seen.note("a file's content", file.mtime_ns);
            seen.note("a directory", make_directory(&vfs, directory, &format!("d{round}")).await.mtime_ns);
            let linked =
                vfs.link(file.inode, ROOT, &name(&format!("l-{where_it_is}-{round}")), &me).await.unwrap();
            seen.note("a link", linked.attr.ctime_ns);
            let touched = AttrChange { mtime: Some(Time::Now), ..AttrChange::default() };
            seen.note(
                "a touched file",
                vfs.setattr(file.inode, touched, None, &me).await.unwrap().attr.mtime_ns,
            );
            seen.note(
                "one more directory",
                make_directory(&vfs, directory, &format!("e{round}")).await.ctime_ns,
            );
        }
        seen.check();
        vfs.client().close().await.unwrap();
    }
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn across_two_mounts_a_later_change_never_has_an_earlier_time() {
    let cluster = Cluster::start().await.unwrap();
    let (near, far) = (near_mount(&cluster).await, far_mount(&cluster, Way::EVEN).await);
    let (mine, theirs) = (leased(&near, "near").await, leased(&far, "far").await);
    let me = Caller::root();
    let mut seen = Seen::default();
    for round in 0..10 {
        let text = format!("x{round}");
        // The far one has it committed, so some time has passed when the near one goes on.
        seen.note("a file by the far mount", make_file(&far, theirs, &text).await.mtime_ns);
        let made = make_directory(&near, mine, &text).await;
        seen.note("a directory by the near mount", made.mtime_ns);
        // It looks at what the other has made before it goes on.
        let found = far.lookup(mine, &name(&text), &me).await.unwrap().attr;
        assert_eq!(found.mtime_ns, made.mtime_ns);
        seen.note(
            "a directory by the far mount",
            make_directory(&far, theirs, &format!("d{round}")).await.mtime_ns,
        );
    }
    seen.check();
    near.client().close().await.unwrap();
    far.client().close().await.unwrap();
    cluster.stop().await.unwrap();
}
