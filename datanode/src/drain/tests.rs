#![allow(clippy::disallowed_methods)]

use std::path::Path;

use cairn_proto::NodeId;
use cairn_proto::checksum::block_crcs;
use cairn_runtime::disk::{Disk, RealDisk};
use cairn_runtime::shutdown::Shutdown;

use super::*;
use crate::identity::Fence;
use crate::node::{Facts, Limits};
use crate::replication::Partners;
use crate::scrub::ScrubOptions;
use crate::store::StoreOptions;

const SET: u64 = 7;

/// A node with two disks.
struct Bench {
    dirs: [tempfile::TempDir; 2],
    node: Node,
}

impl Bench {
    fn new() -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let node = node(&dirs);
        Self { dirs, node }
    }

    /// As after a crash of the process.
    fn restarted(self) -> Self {
        drop(self.node);
        Self { node: node(&self.dirs), dirs: self.dirs }
    }

    fn slow(&self) -> &Arc<DiskStore> {
        &self.node.disks.stores()[0]
    }

    fn other(&self) -> &Arc<DiskStore> {
        &self.node.disks.stores()[1]
    }

    async fn drain(&self) {
        drain(&self.node, self.slow(), &Pace::new(0)).await;
    }
}

fn node(dirs: &[tempfile::TempDir; 2]) -> Node {
    let open = |dir: &tempfile::TempDir| -> Arc<dyn Disk> { Arc::new(RealDisk::open(dir.path()).unwrap()) };
    let options =
        StoreOptions { segment_size: 4 << 20, reserve: 0, sync: true, trash_time: Duration::from_secs(3600) };
    let disks = Disks::open(&dirs.each_ref().map(open), Vec::new(), options).unwrap();
    let id = NodeId::from_wire(&[1; 16]).unwrap();
    let facts = Facts { address: String::new(), metrics_address: String::new(), labels: Default::default() };
    let scrub = ScrubOptions { period: Duration::from_secs(1000), rate: 1 << 20 };
    let limits = Limits { memory_bytes: 64 << 20, scrub };
    Node::new(
        id,
        disks,
        Partners::new(id, Shutdown::new()),
        facts,
        limits,
        Fence::default(),
        Default::default(),
    )
}

fn id(chunk: u64) -> ChunkId {
    ChunkId::new(chunk).unwrap()
}

/// Bytes that tell their chunk; of lengths from a few bytes to several frames.
fn content(chunk: u64) -> Vec<u8> {
    let length = if chunk.is_multiple_of(16) { 1_500_000 } else { 1000 + 5000 * chunk as usize };
    (0..length as u64).map(|i| i.wrapping_mul(chunk | 1).wrapping_add(chunk >> 3) as u8).collect()
}

async fn put(store: &Arc<DiskStore>, chunk: u64, data: &[u8]) {
    let mut writer = store.begin(id(chunk), SET, data.len() as u32, Purpose::New).unwrap();
    data.chunks(1 << 20).for_each(|frame| writer.write(frame, &block_crcs(frame)).unwrap());
    writer.finish().unwrap();
    store.synced(id(chunk)).await.unwrap();
}

async fn get(store: &Arc<DiskStore>, chunk: u64) -> Vec<u8> {
    let mut reader = store.reader(id(chunk)).unwrap();
    reader.prepare().await.unwrap();
    assert_eq!(reader.set(), SET);
    let mut data = Vec::new();
    while (data.len() as u64) < reader.length() {
        data.extend_from_slice(&reader.read(data.len() as u64, reader.length()).await.unwrap().data);
    }
    data
}

fn sound(store: &Arc<DiskStore>) -> Vec<u64> {
    let held = store.held_from(1, usize::MAX);
    held.iter().filter(|(_, found)| found.is_sound()).map(|(chunk, _)| chunk.get()).collect()
}

/// Flips a bit in the payload of the only chunk in the segments of a disk that has `data`.
fn damage(dir: &Path, data: &[u8]) {
    let mut hits = 0;
    for file in std::fs::read_dir(dir.join("segments")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let Some(at) = bytes.windows(data.len()).position(|window| window == data) else { continue };
        bytes[at + data.len() / 2] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        hits += 1;
    }
    assert_eq!(hits, 1);
}

#[tokio::test]
async fn what_a_slow_disk_holds_goes_to_the_others() {
    const CHUNKS: u64 = 2 * PAGE as u64 + 5;
    let bench = Bench::new();
    for chunk in 1..=CHUNKS {
        put(bench.slow(), chunk, &content(chunk)).await;
    }
    assert!(bench.slow().delete(&[id(2)]).is_empty());
    damage(bench.dirs[0].path(), &content(3));
    let bench = bench.restarted();

    bench.drain().await;
    assert!(sound(bench.other()).is_empty(), "it is not slow");
    bench.slow().slow_down();
    bench.drain().await;

    let wanted: Vec<u64> = (1..=CHUNKS).filter(|chunk| ![2, 3].contains(chunk)).collect();
    let bench = bench.restarted();
    assert!(sound(bench.slow()).is_empty());
    assert_eq!(sound(bench.other()), wanted);
    for &chunk in &wanted {
        assert_eq!(get(bench.other(), chunk).await, content(chunk));
    }
    // What was in the trash stays there, and what is damaged is set aside where it was, and told.
    assert!(bench.slow().find(id(2)).is_some_and(|found| found.trash));
    assert!(bench.slow().find(id(3)).is_some_and(|found| found.quarantined));
    assert!(bench.other().find(id(3)).is_none());
}

#[tokio::test]
async fn of_two_copies_one_goes_and_of_two_that_differ_none() {
    let bench = Bench::new();
    for chunk in 1..=2 {
        put(bench.slow(), chunk, &content(chunk)).await;
    }
    put(bench.other(), 1, &content(1)).await;
    put(bench.other(), 2, &content(1)).await;
    bench.slow().slow_down();
    bench.drain().await;
    assert_eq!((sound(bench.slow()), sound(bench.other())), (vec![2], vec![1, 2]));
    assert_eq!(get(bench.other(), 1).await, content(1));
    assert_eq!(get(bench.slow(), 2).await, content(2));
}

#[tokio::test]
async fn nothing_goes_to_a_disk_that_is_slow_too() {
    let bench = Bench::new();
    put(bench.slow(), 1, &content(1)).await;
    bench.slow().slow_down();
    bench.other().slow_down();
    bench.drain().await;
    assert_eq!((sound(bench.slow()), sound(bench.other())), (vec![1], vec![]));
    // And of two copies the one is read whose disk is not slow.
    put(bench.other(), 1, &content(1)).await;
    let place = |bench: &Bench| bench.node.disks.find(id(1)).map(|(store, _)| store.name().to_owned());
    let bench = bench.restarted();
    bench.slow().slow_down();
    assert_eq!(place(&bench).as_deref(), Some(bench.other().name()));
}
