//! Names changed locally by a mount that is cut off for longer than its session lives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{OpenFlags, RenameMode, Vfs, WriteOrigin};
use cairn_client::{Caller, ClientConfig};
use cairn_proto::{ErrorKind, FileName, InodeId};

use crate::common::Cluster;
use crate::common::wire::{Passes, Wire};

const LEASE: Duration = Duration::from_secs(3);
const MAKE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    append: false,
    truncate: false,
    exclusive: true,
    sync: false,
    direct: false,
};

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

/// A mount that can be cut off, another one, and a directory whose lease the first one holds.
struct Stage {
    cluster: Cluster,
    wire: Wire,
    cut: Arc<Vfs>,
    other: Arc<Vfs>,
    directory: InodeId,
    me: Caller,
}

impl Stage {
    async fn new() -> Self {
        let cluster = Cluster::start_with_lease(LEASE).await.unwrap();
        let wire = Wire::to(cluster.address.clone()).await.unwrap();
        let client = cluster.client_at(wire.address.to_string(), ClientConfig::default()).await.unwrap();
        let cut = Vfs::new(client, Duration::from_secs(1));
        let other = Vfs::new(cluster.client().await.unwrap(), Duration::from_secs(1));
        let me = Caller::root();
        let directory = cut.mkdir(InodeId::ROOT, &name("d"), 0o755, &me).await.unwrap().attr.inode;
        Self { cluster, wire, cut, other, directory, me }
    }

    /// A file with content, durable.
    async fn put(&self, vfs: &Arc<Vfs>, text: &str, content: &'static str) {
        let made = vfs.create_open(self.directory, &name(text), 0o644, MAKE, &self.me).await.unwrap();
        vfs.write(made.handle, 0, Bytes::from_static(content.as_bytes()), WriteOrigin::Call).await.unwrap();
        vfs.fsync(made.handle).await.unwrap();
        vfs.release(made.handle);
    }

    async fn rename(&self, vfs: &Arc<Vfs>, from: &str, to: &str) {
        let (from, to) = (name(from), name(to));
        let mode = RenameMode::Replace;
        vfs.rename(self.directory, &from, self.directory, &to, mode, &self.me).await.unwrap();
    }

    /// What a name leads to and has in it, for the other mount.
    async fn get(&self, text: &str) -> Option<Bytes> {
        let found = match self.other.lookup(self.directory, &name(text), &self.me).await {
            Ok(found) => found.attr.inode,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => panic!("{text}: {error}"),
        };
        let flags = OpenFlags { read: true, ..OpenFlags::default() };
        let opened = self.other.open(found, flags, &self.me).await.unwrap();
        let content = self.other.read(opened.handle, 0, 1000).await.unwrap();
        self.other.release(opened.handle);
        Some(content)
    }

    /// Nothing passes until the session of the mount is over.
    async fn outlive_session(&self) {
        let before = self.cluster.sessions().await.unwrap();
        assert_eq!(before.len(), 2);
        self.wire.set(Passes::Nothing);
        while self.cluster.sessions().await.unwrap().len() == 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn fsync(&self) -> Result<(), ErrorKind> {
        let handle = self.cut.opendir(self.directory);
        let synced = self.cut.fsyncdir(handle).await;
        self.cut.releasedir(handle);
        synced.map_err(|error| error.kind())
    }

    async fn end(self) {
        self.wire.set(Passes::All);
        self.cut.client().close().await.unwrap();
        self.other.client().close().await.unwrap();
        drop((self.cut, self.other));
        self.cluster.stop().await.unwrap();
    }
}

/// Changes of one batch that are executed while their answer is lost: a log is rotated, a file replaced by another one,
/// and of two names of a file one removed and the other moved to its place. `false`: it was not one batch.
async fn change_unanswered(stage: &Stage, round: usize) -> bool {
    let Stage { cut, directory, me, wire, other, .. } = stage;
    let text = |what: &str| name(&format!("{what} {round}"));
    for (what, content) in [("log.1", "one"), ("log", "two"), ("x", "old"), ("twice", "many")] {
        stage.put(cut, &format!("{what} {round}"), content).await;
    }
    let twice = cut.lookup(*directory, &text("twice"), me).await.unwrap().attr.inode;
    cut.link(twice, *directory, &text("many"), me).await.unwrap();
    stage.fsync().await.unwrap();
    wire.set(Passes::Requests);
    let rename = |from: &str, to: &str| {
        let (from, to) = (text(from), text(to));
        cut.try_rename((*directory, &from), (*directory, &to), RenameMode::Replace, me)
    };
    let unlink = |what: &str| cut.try_unlink(*directory, &text(what), me);
    let mut made = None;
    let local = [
        rename("log.1", "log.2"),
        rename("log", "log.1"),
        unlink("x"),
        unlink("twice"),
        rename("many", "twice"),
    ];
    if local.into_iter().all(|done| done.is_some_and(|done| done.is_ok())) {
        made = cut.try_create_open(*directory, &text("log"), 0o644, MAKE, me).and_then(Result::ok);
    }
    if let Some(made) = made {
        cut.release(made.handle);
        // It is the last one, and no lease covers it.
        for _ in 0..40 {
            if other.getattr(made.entry.attr.inode).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    wire.set(Passes::All);
    stage.fsync().await.unwrap();
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_whose_answer_was_lost_with_their_session_are_not_made_twice() {
    let stage = Stage::new().await;
    let mut round = 0;
    while !change_unanswered(&stage, round).await {
        round += 1;
    }
    stage.outlive_session().await;
    // Another mount goes on with what it finds.
    let text = |what: &str| format!("{what} {round}");
    stage.other.unlink(stage.directory, &name(&text("log")), &stage.me).await.unwrap();
    stage.put(&stage.other, &text("x"), "new").await;

    stage.wire.set(Passes::All);
    assert_eq!(stage.fsync().await, Ok(()), "everything was done");
    let found = [("log.2", Some("one")), ("log.1", Some("two")), ("x", Some("new")), ("twice", Some("many"))];
    for (what, content) in found.into_iter().chain([("log", None), ("many", None)]) {
        assert_eq!(stage.get(&text(what)).await, content.map(Bytes::from), "{what}");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_came_too_late_touch_nothing_of_others_and_are_told() {
    let stage = Stage::new().await;
    for text in ["removed", "replaced", "moved", "left"] {
        stage.put(&stage.cut, text, "old").await;
    }
    stage.fsync().await.unwrap();
    stage.wire.set(Passes::Nothing);
    stage.cut.unlink(stage.directory, &name("removed"), &stage.me).await.unwrap();
    stage.rename(&stage.cut, "moved", "replaced").await;
    stage.rename(&stage.cut, "left", "away").await;
    stage.outlive_session().await;
    for text in ["removed", "replaced"] {
        stage.put(&stage.other, "new", "new").await;
        stage.rename(&stage.other, "new", text).await;
    }
    stage.wire.set(Passes::All);
    assert_eq!(stage.fsync().await, Err(ErrorKind::Io), "two of three changes are lost");
    let found = [("removed", "new"), ("replaced", "new"), ("moved", "old"), ("away", "old")];
    for (text, content) in found {
        assert_eq!(stage.get(text).await, Some(Bytes::from(content)), "{text}");
    }
    assert_eq!(stage.get("left").await, None);
    stage.end().await;
}
