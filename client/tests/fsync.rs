//! `fsync` of what others have written, or of what an earlier life of this mount has: datanodes are asked
//! themselves whether they have synced the chunks of a file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{HandleId, OpenFlags, Vfs, WriteOrigin};
use cairn_client::{Caller, Client, ClientConfig, Unreachable};
use cairn_coordinator::SalvagedMetadata;
use cairn_proto::v1::data_node_client::DataNodeClient;
use cairn_proto::{ErrorKind, FileName, InodeId, v1};
use cairn_runtime::clock;

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;
const READ_WRITE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    append: false,
    truncate: false,
    exclusive: false,
    sync: false,
    direct: false,
};
/// More ids than any of these tests is granted.
const CHUNKS: u64 = 4096;

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

async fn mount(cluster: &Cluster) -> Arc<Vfs> {
    Vfs::new(cluster.client().await.unwrap(), Duration::from_secs(1))
}

async fn create(vfs: &Arc<Vfs>, text: &str) -> HandleId {
    let flags = OpenFlags { exclusive: true, ..READ_WRITE };
    vfs.create_open(ROOT, &name(text), 0o644, flags, &Caller::root()).await.unwrap().handle
}

async fn open(vfs: &Arc<Vfs>, text: &str) -> HandleId {
    let me = Caller::root();
    let inode = vfs.lookup(ROOT, &name(text), &me).await.unwrap().attr.inode;
    vfs.open(inode, READ_WRITE, &me).await.unwrap().handle
}

/// Writes a file and closes it, without fsync.
async fn write(vfs: &Arc<Vfs>, text: &str) {
    let handle = create(vfs, text).await;
    vfs.write(handle, 0, Bytes::from(vec![7; 200_000]), WriteOrigin::Call).await.unwrap();
    vfs.flush(handle).await.unwrap();
    vfs.release(handle);
}

async fn close(vfs: &Arc<Vfs>) {
    vfs.client().close().await.unwrap();
}

/// By how many datanodes each chunk that there is was synced.
async fn synced(client: &Client) -> BTreeMap<u64, usize> {
    let mut synced = BTreeMap::new();
    for node in client.coordinator().list_nodes().await.unwrap().nodes {
        let mut datanode = DataNodeClient::connect(format!("http://{}", node.address)).await.unwrap();
        let request = v1::StatChunksRequest { chunks: (1..CHUNKS).collect(), verify: false };
        for chunk in datanode.stat_chunks(request).await.unwrap().into_inner().chunks {
            if chunk.present {
                *synced.entry(chunk.chunk).or_default() += usize::from(chunk.synced);
            }
        }
    }
    synced
}

/// How many names the store of the coordinator has in a directory. Nobody is asked, so that no lease is recalled.
async fn committed_below(cluster: &Cluster, directory: &[&[u8]]) -> usize {
    let work = tempfile::tempdir().unwrap();
    let metadata = SalvagedMetadata::read(&cluster.metadata(), work.path()).await.unwrap();
    let mut count = 0;
    metadata.walk(&mut |entry| {
        let above = entry.path.iter().take(entry.path.len() - 1);
        count += usize::from(above.eq(directory));
    });
    count
}

/// What was only closed is on no disk: else these tests would show nothing.
async fn assert_unsynced(client: &Client) {
    let synced = synced(client).await;
    assert!(!synced.is_empty() && synced.values().all(|&nodes| nodes == 0), "{synced:?}");
}

async fn assert_synced(client: &Client) {
    let synced = synced(client).await;
    assert!(!synced.is_empty() && synced.values().all(|&nodes| nodes >= 2), "{synced:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_mount_closed_is_synced_by_an_fsync_here() {
    let cluster = Cluster::start().await.unwrap();
    let (writer, other) = (mount(&cluster).await, mount(&cluster).await);
    write(&writer, "file").await;
    assert_unsynced(other.client()).await;
    let handle = open(&other, "file").await;
    other.fsync(handle).await.unwrap();
    assert_synced(other.client()).await;
    other.release(handle);
    close(&other).await;
    close(&writer).await;
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn own_writes_that_were_synced_do_not_hide_what_another_mount_closed() {
    let cluster = Cluster::start().await.unwrap();
    let (writer, other) = (mount(&cluster).await, mount(&cluster).await);
    write(&writer, "file").await;
    let handle = open(&other, "file").await;
    other.write(handle, 300_000, Bytes::from_static(b"mine"), WriteOrigin::Call).await.unwrap();
    other.fsync(handle).await.unwrap();
    assert_synced(other.client()).await;
    // And once more, with nothing known of it here.
    let own = open(&writer, "file").await;
    writer.write(own, 100, Bytes::from_static(b"theirs"), WriteOrigin::Call).await.unwrap();
    writer.flush(own).await.unwrap();
    other.fsync(handle).await.unwrap();
    assert_synced(other.client()).await;
    other.release(handle);
    writer.release(own);
    close(&other).await;
    close(&writer).await;
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_what_another_mount_closed_is_synced_with_its_bytes() {
    let cluster = Cluster::start().await.unwrap();
    let (writer, other) = (mount(&cluster).await, mount(&cluster).await);
    write(&writer, "file").await;
    assert_unsynced(other.client()).await;
    let (from, to) = (open(&other, "file").await, create(&other, "clone").await);
    let me = Caller::root();
    assert_eq!(other.copy_file_range(from, 0, to, 0, 200_000, &me).await.unwrap(), 200_000);
    other.fsync(to).await.unwrap();
    assert_synced(other.client()).await;
    other.release(from);
    other.release(to);
    close(&other).await;
    close(&writer).await;
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_closed_is_synced_by_a_later_mount_also_when_the_coordinator_was_restarted() {
    let cluster = Cluster::start().await.unwrap();
    let writer = mount(&cluster).await;
    write(&writer, "file").await;
    close(&writer).await;
    let cluster = cluster.restart_coordinator().await.unwrap();
    let later = mount(&cluster).await;
    let handle = open(&later, "file").await;
    later.fsync(handle).await.unwrap();
    assert_synced(later.client()).await;
    later.release(handle);
    close(&later).await;
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_durable_close_what_left_in_the_background_is_synced_by_the_close() {
    let cluster = Cluster::start().await.unwrap();
    let config = ClientConfig {
        durable_close: true,
        write_back: Duration::from_millis(100),
        ..ClientConfig::default()
    };
    let vfs = Vfs::new(cluster.client_with(config).await.unwrap(), Duration::from_secs(1));
    let handle = create(&vfs, "file").await;
    vfs.write(handle, 0, Bytes::from_static(b"in the background"), WriteOrigin::Call).await.unwrap();
    // Until it has left by itself.
    while synced(vfs.client()).await.is_empty() {
        clock::sleep(Duration::from_millis(20)).await;
    }
    vfs.flush(handle).await.unwrap();
    assert_synced(vfs.client()).await;
    vfs.release(handle);
    close(&vfs).await;
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_another_mount_was_answered_for_are_committed_by_an_fsync_of_the_directory_here() {
    let cluster = Cluster::start().await.unwrap();
    let (maker, other) = (mount(&cluster).await, mount(&cluster).await);
    let me = Caller::root();
    let outer = maker.mkdir(ROOT, &name("outer"), 0o755, &me).await.unwrap().attr.inode;
    maker.mkdir(outer, &name("first"), 0o755, &me).await.unwrap();
    // Local, under the lease of `outer`; so will be what is made in it.
    let inner = maker.mkdir(outer, &name("inner"), 0o755, &me).await.unwrap().attr.inode;
    maker.client().flush_all(false).await.unwrap();
    let handle = other.opendir(inner);
    // A queue that is long enough not to be applied by itself meanwhile.
    let mut made = 0;
    for number in 0..2000 {
        let text = name(&format!("{number}"));
        let flags = OpenFlags { exclusive: true, ..READ_WRITE };
        let Some(opened) = maker.try_create_open(inner, &text, 0o644, flags, &me) else { break };
        maker.release(opened.unwrap().handle);
        made += 1;
    }
    assert!(made > 0, "nothing was made under a lease");
    other.fsyncdir(handle).await.unwrap();
    assert_eq!(committed_below(&cluster, &[b"outer", b"inner"]).await, made);
    other.releasedir(handle);
    close(&other).await;
    close(&maker).await;
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_mount_waits_for_datanodes_and_a_soft_one_gives_up_in_time() {
    let mut cluster = Cluster::start().await.unwrap();
    let hard = mount(&cluster).await;
    let config =
        ClientConfig { unreachable: Unreachable::Soft(Duration::from_secs(2)), ..ClientConfig::default() };
    let soft = Vfs::new(cluster.client_with(config).await.unwrap(), Duration::from_secs(1));
    write(&hard, "file").await;
    let (waits, gives_up) = (open(&hard, "file").await, open(&soft, "file").await);
    cluster.stop_datanodes().await.unwrap();
    assert_eq!(soft.fsync(gives_up).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let waiting = tokio::spawn({
        let hard = Arc::clone(&hard);
        async move { hard.fsync(waits).await }
    });
    clock::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    cluster.start_datanodes().await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_synced(hard.client()).await;
    hard.release(waits);
    soft.release(gives_up);
    close(&hard).await;
    close(&soft).await;
    cluster.stop().await.unwrap();
}
