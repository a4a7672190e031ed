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
