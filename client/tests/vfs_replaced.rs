//! Files that other mounts replace and remove while they are opened here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_client::Caller;
use cairn_client::vfs::{OpenFlags, Opened, RenameMode, Vfs, VfsError, WriteOrigin};
use cairn_proto::{ErrorKind, FileName, InodeId};

use crate::common::Cluster;

const READ: OpenFlags = OpenFlags {
    read: true,
    write: false,
    append: false,
    truncate: false,
    exclusive: false,
    sync: false,
    direct: false,
};
const MAKE: OpenFlags = OpenFlags { write: true, exclusive: true, ..READ };
/// Opens of each reader.
const OPENS: usize = 400;

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

async fn look_up_and_open(vfs: &Arc<Vfs>, directory: InodeId, text: &FileName) -> Result<Opened, VfsError> {
    let me = Caller::root();
    let found = vfs.lookup(directory, text, &me).await?;
    vfs.open(found.attr.inode, READ, &me).await
}

/// As Linux does it: after ESTALE the path is walked once more.
async fn open(vfs: &Arc<Vfs>, directory: InodeId, text: &FileName) -> Result<Opened, VfsError> {
    match look_up_and_open(vfs, directory, text).await {
        Err(error) if error.kind() == ErrorKind::StaleHandle => {
            vfs.told_stale();
            look_up_and_open(vfs, directory, text).await
        }
        opened => opened,
    }
}

async fn replace(vfs: &Arc<Vfs>, directory: InodeId, version: usize) {
    let me = Caller::root();
    let (new, file) = (name("new"), name("file"));
    let made = vfs.create_open(directory, &new, 0o644, MAKE, &me).await.unwrap();
    let content = Bytes::from(format!("{version:08}"));
    vfs.write(made.handle, 0, content, WriteOrigin::Call).await.unwrap();
    vfs.flush(made.handle).await.unwrap();
    vfs.release(made.handle);
    vfs.rename(directory, &new, directory, &file, RenameMode::Replace, &me).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_that_another_mount_replaces_all_the_time_is_always_opened() {
    let cluster = Cluster::start().await.unwrap();
    let [writer, reader] = [cluster.client().await.unwrap(), cluster.client().await.unwrap()]
        .map(|client| Vfs::new(client, Duration::from_secs(1)));
    let directory = writer.mkdir(InodeId::ROOT, &name("d"), 0o755, &Caller::root()).await.unwrap().attr.inode;
    replace(&writer, directory, 0).await;
    let done = Arc::new(AtomicBool::new(false));
    let replacer = {
        let (writer, done) = (Arc::clone(&writer), Arc::clone(&done));
        tokio::spawn(async move {
            let mut version = 0;
            while !done.load(Ordering::SeqCst) {
                version += 1;
                replace(&writer, directory, version).await;
            }
            version
        })
    };
    let openers: Vec<_> = (0..4)
        .map(|_| {
            let reader = Arc::clone(&reader);
            tokio::spawn(async move {
                let text = name("file");
                for round in 0..OPENS {
                    let opened = match open(&reader, directory, &text).await {
                        Ok(opened) => opened,
                        Err(error) => panic!("open {round}: {:?} {error}", error.kind()),
                    };
                    let content = reader.read(opened.handle, 0, 100).await.unwrap();
                    reader.release(opened.handle);
                    assert_eq!(content.len(), 8, "the old file or the new one, whole");
                }
            })
        })
        .collect();
    for opener in openers {
        opener.await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    assert!(replacer.await.unwrap() > 10, "it was replaced while it was opened");
    for vfs in [writer, reader] {
        vfs.client().close().await.unwrap();
    }
    cluster.stop().await.unwrap();
}

/// A look-up after ESTALE whose open never comes, as that of a rename's target; then the kernel keeps what it looks up,
/// and opens it after its removal was answered.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_for_an_open_that_never_came_is_not_opened_later() {
    let cluster = Cluster::start().await.unwrap();
    let [writer, reader] = [cluster.client().await.unwrap(), cluster.client().await.unwrap()]
        .map(|client| Vfs::new(client, Duration::from_secs(1)));
    let me = Caller::root();
    let directory = writer.mkdir(InodeId::ROOT, &name("d"), 0o755, &me).await.unwrap().attr.inode;
    replace(&writer, directory, 0).await;
    reader.told_stale();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let held = reader.lookup(directory, &name("file"), &me).await.unwrap();
    assert_eq!(held.valid, Duration::ZERO, "no kernel keeps what is held for one open");
    // The time after an ESTALE in which look-ups are held is over, that of the look-up is not.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let kept = reader.lookup(directory, &name("file"), &me).await.unwrap();
    assert!(kept.attr.inode == held.attr.inode && !kept.valid.is_zero());
    replace(&writer, directory, 1).await;
    let opened = reader.open(kept.attr.inode, READ, &me).await;
    let error = opened.expect_err("a file whose replacement was answered before");
    assert_eq!(error.kind(), ErrorKind::StaleHandle);
    for vfs in [writer, reader] {
        vfs.client().close().await.unwrap();
    }
    cluster.stop().await.unwrap();
}
