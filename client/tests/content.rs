//! The data path against a real cluster in this process: what is written is what is read, by the
//! same client and by another one, also when datanodes fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_client::{Attr, Caller, Client, ClientConfig, FileContent, OpenGuard};
use cairn_coordinator::CoordinatorConfig;
use cairn_datanode::DatanodeConfig;
use cairn_proto::{ErrorKind, FileName, InodeId, v1};
use cairn_runtime::config::ByteSize;
use cairn_runtime::shutdown::Shutdown;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const MIB: usize = 1 << 20;

/// A coordinator and datanodes, each with a runtime of its own, so that one can be killed.
struct Cluster {
    address: String,
    data: TempDir,
    clients: Shutdown,
    coordinator: Option<(Runtime, cairn_coordinator::Running, Shutdown)>,
    datanodes: Vec<Option<Runtime>>,
}

impl Cluster {
    async fn start(datanodes: usize) -> Self {
        let data = tempfile::tempdir().unwrap();
        let coordinator = start_coordinator(&data, "127.0.0.1:0").await;
        let address = coordinator.1.address.to_string();
        let mut cluster = Self {
            address,
            data,
            clients: Shutdown::new(),
            coordinator: Some(coordinator),
            datanodes: Vec::new(),
        };
        for index in 0..datanodes {
            let config = DatanodeConfig {
                listen: "127.0.0.1:0".into(),
                coordinator: cluster.address.clone(),
                data: vec![cluster.data_of(index)],
                reserve: ByteSize::mib(64),
                segment_size: ByteSize::mib(64),
                metrics_listen: None,
                ..DatanodeConfig::default()
            };
            let datanode = runtime();
            datanode.spawn(cairn_datanode::start(config, Shutdown::new())).await.unwrap().unwrap();
            cluster.datanodes.push(Some(datanode));
        }
        cluster
    }

    fn data_of(&self, datanode: usize) -> PathBuf {
        self.data.path().join(format!("datanode-{datanode}"))
    }

    /// Ends a datanode without a word.
    fn kill(&mut self, datanode: usize) {
        if let Some(runtime) = self.datanodes[datanode].take() {
            runtime.shutdown_background();
        }
    }

    /// Stops the coordinator and starts it again after `pause`.
    async fn restart_coordinator(&mut self, pause: Duration) {
        if let Some((runtime, running, shutdown)) = self.coordinator.take() {
            shutdown.request();
            runtime.spawn(running.wait()).await.unwrap().unwrap();
            runtime.shutdown_background();
        }
        tokio::time::sleep(pause).await;
        self.coordinator = Some(start_coordinator(&self.data, &self.address).await);
    }

    async fn client(&self) -> Arc<Client> {
        let config = ClientConfig {
            coordinator: self.address.clone(),
            memory: ByteSize::mib(128),
            chunk_size: Some(ByteSize::mib(8)),
            ..ClientConfig::default()
        };
        Client::connect(config, "test".into(), &self.clients).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Runtimes can not be dropped where waiting is not allowed.
        let coordinator = self.coordinator.take().map(|(runtime, _, _)| runtime);
        for runtime in self.datanodes.drain(..).chain([coordinator]).flatten() {
            runtime.shutdown_background();
        }
    }
}

async fn start_coordinator(data: &TempDir, listen: &str) -> (Runtime, cairn_coordinator::Running, Shutdown) {
    let config = CoordinatorConfig {
        listen: listen.into(),
        data: data.path().join("coordinator"),
        metrics_listen: None,
        ..CoordinatorConfig::default()
    };
    let (runtime, shutdown) = (runtime(), Shutdown::new());
    let running = runtime.spawn(cairn_coordinator::start(config, shutdown.clone())).await.unwrap().unwrap();
    (runtime, running, shutdown)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn create(client: &Arc<Client>, name: &str) -> (OpenGuard, Arc<FileContent>) {
    let create = v1::Create {
        parent: InodeId::ROOT.get(),
        name: Bytes::copy_from_slice(name.as_bytes()),
        kind: v1::InodeKind::File.into(),
        mode: 0o644,
        exclusive: true,
        ..Default::default()
    };
    let (guard, applied) = client.coordinator().create_open(create, &Caller::root()).await.unwrap();
    let attr = applied.attr.unwrap();
    (guard, client.content(attr.inode, &attr))
}

async fn lookup(client: &Client, name: &str) -> Attr {
    let name = FileName::new(name.as_bytes().to_vec()).unwrap();
    client.coordinator().lookup(InodeId::ROOT, &name, &Caller::root()).await.unwrap()
}

/// Opens and reads everything as another client would.
async fn read_all(client: &Arc<Client>, name: &str) -> Bytes {
    let attr = lookup(client, name).await;
    let (_guard, layout) = client.coordinator().open(attr.inode).await.unwrap();
    let attr = layout.attr.clone();
    let content = client.content(attr.inode, &attr);
    content.refresh(&attr, Some(layout));
    content.read(0, usize::try_from(attr.size).unwrap()).await.unwrap()
}

fn pattern(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_all_sizes_are_read_back_by_another_client() {
    let cluster = Cluster::start(3).await;
    let (writer, reader) = (cluster.client().await, cluster.client().await);
    for len in [0, 1, 4096, 65_536, 65_537, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 40 * MIB + 12_345] {
        let name = format!("file-{len}");
        let data = pattern(len, len as u64);
        let (_open, content) = create(&writer, &name).await;
        content.write(0, data.clone()).await.unwrap();
        assert_eq!(content.size(), len as u64);
        assert!(content.read(0, len).await.unwrap() == data, "{len}: own buffered writes");
        content.flush().await.unwrap();
        assert!(!content.is_dirty());
        assert_eq!(lookup(&writer, &name).await.size, len as u64);
        assert!(content.read(0, len + 10).await.unwrap() == data, "{len}: own committed writes");
        assert!(read_all(&reader, &name).await == data, "{len}: another client");
    }
    writer.close().await.unwrap();
    reader.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_give_what_an_array_would() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let other = cluster.client().await;
    let (_open, content) = create(&client, "random").await;
    let caller = Caller::root();
    let mut model: Vec<u8> = Vec::new();
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    for round in 0..300 {
        match next(12) {
            0..=5 => {
                let offset = next(20 * MIB as u64) as usize;
                let most = if next(8) == 0 { 3 * MIB as u64 } else { 9000 };
                let len = 1 + next(most) as usize;
                let data = pattern(len, round);
                if model.len() < offset + len {
                    model.resize(offset + len, 0);
                }
                model[offset..offset + len].copy_from_slice(&data);
                if !content.try_write(&content.told(), offset as u64, &data).unwrap() {
                    content.write(offset as u64, data).await.unwrap();
                }
            }
            6 => {
                let size = next(20 * MIB as u64);
                model.resize(size as usize, 0);
                let attr = content.truncate(size, &caller, v1::SetAttr::default()).await.unwrap();
                assert_eq!(attr.size, size);
            }
            7 => content.flush().await.unwrap(),
            8 => content.fsync().await.unwrap(),
            _ => {
                let offset = next(21 * MIB as u64) as usize;
                let len = next(200_000) as usize;
                let expected = model.get(offset..model.len().min(offset + len)).unwrap_or_default();
                let read = match content.try_read(offset as u64, len) {
                    Some(read) => read.unwrap(),
                    None => content.read(offset as u64, len).await.unwrap(),
                };
                assert!(read == expected, "round {round}: {len} bytes at {offset}");
            }
        }
        assert_eq!(content.size(), model.len() as u64);
    }
    content.flush().await.unwrap();
    assert!(content.read(0, model.len()).await.unwrap() == model);
    assert!(read_all(&other, "random").await == model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_files_flushed_together_share_chunks() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let mut files = Vec::new();
    for index in 0..64 {
        let (open, content) = create(&client, &format!("small-{index}")).await;
        assert!(content.try_write(&content.told(), 0, &pattern(4096, index)).unwrap());
        files.push((open, content));
    }
    let before = client.coordinator().get_status().await.unwrap().chunks;
    futures::future::join_all(files.iter().map(|(_, content)| content.flush())).await;
    let chunks = client.coordinator().get_status().await.unwrap().chunks - before;
    assert!((1..=16).contains(&chunks), "{chunks} chunks for 64 files");
    let other = cluster.client().await;
    for index in 0..64 {
        assert!(read_all(&other, &format!("small-{index}")).await == pattern(4096, index));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scattered_writes_before_an_fsync_share_one_chunk() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (_open, content) = create(&client, "scattered").await;
    content.truncate(1 << 30, &Caller::root(), v1::SetAttr::default()).await.unwrap();
    let before = client.coordinator().get_status().await.unwrap().chunks;
    for index in 0..100u64 {
        assert!(content.try_write(&content.told(), index * 9_999_000, &pattern(4096, index)).unwrap());
    }
    content.fsync().await.unwrap();
    let chunks = client.coordinator().get_status().await.unwrap().chunks - before;
    assert_eq!(chunks, 1);
    let other = cluster.client().await;
    let attr = lookup(&other, "scattered").await;
    let there = other.content(attr.inode, &attr);
    for index in 0..100u64 {
        assert!(there.read(index * 9_999_000, 4096).await.unwrap() == pattern(4096, index));
    }
    assert_eq!(there.seek(0, false).await.unwrap(), 4096);
    assert_eq!(there.seek(4096, true).await.unwrap(), 9_999_000);
    assert_eq!(there.seek(99 * 9_999_000 + 4096, true).await.unwrap_err().kind(), ErrorKind::NoSuchOffset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datanode_that_dies_is_noticed_by_nobody() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (_open, content) = create(&client, "stream").await;
    let data = pattern(96 * MIB, 7);
    let mut slowest = Duration::ZERO;
    for (index, piece) in data.chunks(MIB).enumerate() {
        if index == 30 {
            cluster.kill(0);
        }
        let started = Instant::now();
        content.write((index * MIB) as u64, data.slice_ref(piece)).await.unwrap();
        slowest = slowest.max(started.elapsed());
    }
    let started = Instant::now();
    content.fsync().await.unwrap();
    slowest = slowest.max(started.elapsed());
    assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    assert!(content.read(0, data.len()).await.unwrap() == data);
    let other = cluster.client().await;
    assert!(read_all(&other, "stream").await == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_restarts_is_waited_for() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let data = pattern(48 * MIB, 13);
    let (_open, content) = create(&client, "patient").await;
    let writer = {
        let (content, data) = (Arc::clone(&content), data.clone());
        tokio::spawn(async move {
            for (index, piece) in data.chunks(MIB / 2).enumerate() {
                content.write((index * MIB / 2) as u64, data.slice_ref(piece)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            content.fsync().await.unwrap();
        })
    };
    let creator = {
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            for index in 0..100 {
                create(&client, &format!("created-{index}")).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.restart_coordinator(Duration::from_secs(1)).await;
    writer.await.unwrap();
    creator.await.unwrap(); // exclusive creations: executed twice they would fail
    let other = cluster.client().await;
    assert!(read_all(&other, "patient").await == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_lives_until_its_last_close() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (open, content) = create(&client, "gone").await;
    let data = pattern(100_000, 17);
    content.write(0, data.clone()).await.unwrap();
    content.flush().await.unwrap();
    let unlink = v1::Unlink { parent: InodeId::ROOT.get(), name: Bytes::from_static(b"gone") };
    let applied =
        client.coordinator().apply(v1::mutation::Op::Unlink(unlink), &Caller::root()).await.unwrap();
    assert_eq!(applied.attr.unwrap().nlink, 0);
    content.write(50_000, data.clone()).await.unwrap();
    content.flush().await.unwrap();
    assert!(content.read(50_000, data.len()).await.unwrap() == data);
    let inode = content.inode();
    assert!(client.coordinator().get_attr(inode).await.is_ok());
    drop((open, content));
    let deadline = Instant::now() + Duration::from_secs(5);
    while client.coordinator().get_attr(inode).await.is_ok() {
        assert!(Instant::now() < deadline, "the inode is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_can_not_be_stored_is_reported_once() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (open, content) = create(&client, "vanishing").await;
    let inode = content.inode();
    let unlink = v1::Unlink { parent: InodeId::ROOT.get(), name: Bytes::from_static(b"vanishing") };
    client.coordinator().apply(v1::mutation::Op::Unlink(unlink), &Caller::root()).await.unwrap();
    drop(open);
    while client.coordinator().get_attr(inode).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    content.write(0, pattern(5000, 1)).await.unwrap();
    assert!(content.flush().await.is_err());
    assert!(!content.is_dirty());
    assert_eq!(content.size(), 0);
    assert!(content.flush().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soft_client_gives_up_in_time() {
    let cluster = Cluster::start(2).await;
    let config = ClientConfig {
        coordinator: cluster.address.clone(),
        unreachable: "soft=2".parse().unwrap(),
        ..ClientConfig::default()
    };
    let client = Client::connect(config, "soft".into(), &cluster.clients).await.unwrap();
    let (_open, content) = create(&client, "soft").await;
    let mut cluster = cluster;
    cluster.kill(0);
    cluster.kill(1);
    content.write(0, pattern(5000, 1)).await.unwrap();
    let started = Instant::now();
    let error = content.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_replica_is_never_returned() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (_open, content) = create(&client, "precious").await;
    let data = pattern(3 * MIB, 11);
    content.write(0, data.clone()).await.unwrap();
    content.fsync().await.unwrap();
    for datanode in 0..2 {
        assert!(corrupt(&cluster.data_of(datanode), &data[MIB..MIB + 64]) > 0);
    }
    for _ in 0..5 {
        let other = cluster.client().await; // with an empty cache
        assert!(read_all(&other, "precious").await == data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_chunk_is_an_error_and_no_endless_wait() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (_open, content) = create(&client, "gone").await;
    let data = pattern(MIB, 12);
    content.write(0, data.clone()).await.unwrap();
    content.fsync().await.unwrap();
    for datanode in 0..3 {
        assert!(corrupt(&cluster.data_of(datanode), &data[1000..1064]) > 0);
    }
    // First each copy turns out to be bad; after some heartbeats metadata says so of all of them.
    for _ in 0..6 {
        let other = cluster.client().await; // with an empty cache
        let attr = other.coordinator().get_attr(content.inode()).await.unwrap();
        let lost = other.content(content.inode(), &attr);
        let answer = tokio::time::timeout(Duration::from_secs(30), lost.read(0, data.len())).await;
        let error = answer.expect("the read does not end").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::ChunkNotFound), "{error}");
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

/// Flips a bit wherever `needle` is stored below a directory.
fn corrupt(directory: &std::path::Path, needle: &[u8]) -> usize {
    use std::os::unix::fs::FileExt;
    let mut found = 0;
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() {
            found += corrupt(&entry.path(), needle);
            continue;
        }
        #[allow(clippy::disallowed_methods)]
        let content = std::fs::read(entry.path()).unwrap_or_default();
        let Some(at) = content.windows(needle.len()).position(|window| window == needle) else { continue };
        #[allow(clippy::disallowed_methods)]
        let file = std::fs::OpenOptions::new().write(true).open(entry.path()).unwrap();
        file.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
        found += 1;
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_a_byte_are_counted_with_what_they_cost() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (_open, content) = create(&client, "tiny").await;
    content.write(0, Bytes::from_static(b"x")).await.unwrap();
    content.flush().await.unwrap();
    (0..3).for_each(|datanode| cluster.kill(datanode));
    let told = content.told();
    // Three eighths of 128 MiB, of which each takes a byte, and the memory of much more.
    let taken =
        (1..400_000u64).take_while(|index| content.try_write(&told, index * 8192, b"y").unwrap()).count();
    assert!((50_000..200_000).contains(&taken), "{taken} writes of a byte are buffered");
    let data = content.read(8192, 1).await.unwrap();
    assert_eq!(&data[..], b"y");
}
