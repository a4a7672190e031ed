//! The path level on a running cluster.

use cairn_client::fs::{Files, Last, RemoveOptions, WriteOptions};
use cairn_client::{Caller, ClientError};
use cairn_proto::{ErrorKind, v1};

use crate::common::Cluster;

fn kind<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorKind {
    match result {
        Ok(value) => panic!("an error was expected, not {value:?}"),
        Err(error) => error.kind(),
    }
}

async fn put(files: &Files, path: &str, data: &[u8]) -> Result<(), ClientError> {
    files.upload(data, path, WriteOptions::default(), |_| {}).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_resolve_as_on_linux() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let files = Files::new(cluster.client().await?, Caller::root());
    files.make_dir("/a/b/c", 0o755, true).await?;
    files.make_dir("a/b/c", 0o755, true).await?;
    assert_eq!(kind(files.make_dir("/a", 0o755, false).await), ErrorKind::Exists);
    assert_eq!(kind(files.make_dir("/x/y", 0o755, false).await), ErrorKind::NotFound);
    put(&files, "/a/b/f", b"content").await?;
    files.symlink(b"../b", "/a/b/up").await?;
    files.symlink(b"/a", "/abs").await?;
    for path in ["a/b/f", "/a/./b/c/../f", "/a/b/up/f", "/abs/b/up/../b/f", "//a//b//f"] {
        assert_eq!(files.read_all(path, 100).await?, "content", "{path}");
    }
    assert_eq!(files.stat("/..", Last::Follow).await?.inode, cairn_proto::InodeId::ROOT);
    assert_eq!(kind(files.stat("/a/b/f/", Last::Keep).await), ErrorKind::NotDirectory);
    assert_eq!(kind(files.stat("/a/b/f/x", Last::Keep).await), ErrorKind::NotDirectory);
    files.symlink(b"loop", "/loop").await?;
    assert_eq!(kind(files.stat("/loop", Last::Follow).await), ErrorKind::SymlinkLoop);
    assert_eq!(files.read_link("/loop").await?, "loop");
    assert!(files.exists("/abs").await? && !files.exists("/nothing").await?);
    let long = "n".repeat(256);
    assert_eq!(kind(files.stat(format!("/{long}"), Last::Keep).await), ErrorKind::NameTooLong);

    files.symlink(b"made", "/dangling").await?;
    put(&files, "/dangling", b"through").await?;
    assert_eq!(files.read_all("/made", 100).await?, "through");
    files.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_travel_whole_and_trees_go() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let files = Files::new(cluster.client().await?, Caller::root());
    let data: Vec<u8> = (0..20_000_001u32).map(|at| (at ^ (at >> 9)) as u8).collect();
    files.make_dir("/d/e", 0o755, true).await?;
    let mut told = 0;
    let sent = files.upload(&data[..], "/d/large", WriteOptions::default(), |bytes| told += bytes).await?;
    assert_eq!((sent.bytes, told), (data.len() as u64, data.len() as u64));
    assert_eq!(sent.crc32c, cairn_proto::checksum::crc32c(&data));
    assert_eq!(files.copy_file("/d/large", "/d/e/copy", WriteOptions::default()).await?, data.len() as u64);
    let mut back = Vec::new();
    let got = files.download("/d/e/copy", &mut back, |_| {}).await?;
    assert!(got == sent && back == data);
    let mut part = files.read("/d/large", 19_000_000, Some(5)).await?;
    assert_eq!(part.next().await?.as_deref(), Some(&data[19_000_000..19_000_005]));
    assert_eq!(part.next().await?, None);
    assert_eq!(kind(files.read_all("/d/large", 10).await), ErrorKind::TooBig);

    files.rename("/d/large", "/d/e/moved", false).await?;
    assert_eq!(kind(files.rename("/d/e/moved", "/d/e/copy", true).await), ErrorKind::Exists);
    let change = v1::SetAttr { mode: Some(0o600), ..v1::SetAttr::default() };
    assert_eq!(files.set_attr("/d/e/moved", Last::Follow, change).await?.mode, 0o600);
    let stranger = Files::new(files.client().clone(), Caller::user(5, 5, vec![]));
    assert_eq!(kind(stranger.read_all("/d/e/moved", u64::MAX).await), ErrorKind::AccessDenied);
    assert_eq!(kind(put(&stranger, "/d/e/copy", b"x").await), ErrorKind::AccessDenied);

    assert_eq!(files.read_dir("/d/e").await?.len(), 2);
    assert_eq!(kind(files.remove("/d", RemoveOptions::default()).await), ErrorKind::IsDirectory);
    let all = RemoveOptions { recursive: true, force: false };
    assert_eq!(files.remove("/d", all).await?, 4);
    assert_eq!(kind(files.remove("/d", all).await), ErrorKind::NotFound);
    assert_eq!(files.remove("/d", RemoveOptions { force: true, ..all }).await?, 0);
    files.client().close().await?;
    cluster.stop().await
}
