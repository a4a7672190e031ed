//! Listings of large directories, of which the coordinator keeps pages: never an old state.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_proto::listing::Entries;
use cairn_proto::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use v1::mutation::Op;

use crate::common;
use crate::common::{Client, Cluster, dir, file, unlink};

type Result<T = ()> = anyhow::Result<T>;

/// More than what is read anew for each request.
const FILES: usize = 700;

/// Name, inode, kind and cookie of each entry.
type Rows = Vec<(String, u64, v1::InodeKind, u64)>;

/// Pages of names, and the version of the directory that they came with.
async fn names(client: &mut Client, inode: u64, limit: u32) -> Result<(Rows, u64)> {
    let (mut rows, mut after) = (Rows::new(), 0);
    loop {
        let request =
            v1::ReadDirRequest { inode, after, limit, attributes: false, ..v1::ReadDirRequest::default() };
        let page = client.grpc.read_dir(request).await?.into_inner();
        let entries = Entries::decode(&page.entries)?;
        let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        rows.extend(
            entries.iter().map(|entry| (name(entry.name), entry.inode.get(), entry.kind, entry.cookie)),
        );
        after = entries.last_cookie().unwrap_or(after);
        let directory = page.directory.unwrap_or_default();
        if page.end {
            assert_eq!(directory.size, rows.len() as u64);
            return Ok((rows, directory.version));
        }
    }
}

/// The same from the rows of the store, which pages with attributes always come from.
async fn truth(client: &mut Client, inode: u64) -> Result<(Rows, u64)> {
    let page = client.grpc.read_dir(common::listing(inode, &Bytes::new())).await?.into_inner();
    let entries = Entries::decode(&page.entries)?;
    let rows = entries.iter().zip(&page.attrs).map(|(entry, attr)| {
        let name = String::from_utf8_lossy(entry.name).into_owned();
        (name, attr.inode, attr.kind(), entry.cookie)
    });
    Ok((rows.collect(), page.directory.unwrap_or_default().version))
}

fn rename(from: (u64, &str), to: (u64, &str), exchange: bool) -> v1::Mutation {
    let name = |name: &str| Bytes::copy_from_slice(name.as_bytes());
    let rename = v1::Rename {
        parent: from.0,
        name: name(from.1),
        new_parent: to.0,
        new_name: name(to.1),
        no_replace: false,
        exchange,
    };
    v1::Mutation { op: Some(Op::Rename(rename)), ..v1::Mutation::default() }
}

/// How many pages came from memory, how many from the store, and how many were made ahead.
async fn pages(cluster: &Cluster) -> Result<[u64; 3]> {
    let address = cluster.metrics_address().ok_or_else(|| anyhow::anyhow!("metrics are on"))?;
    #[allow(clippy::disallowed_methods)] // a test that speaks HTTP by hand
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let value = |from: &str| {
        let name = format!("cairn_coordinator_listing_pages_total{{from=\"{from}\"}} ");
        let line = answer.lines().find_map(|line| line.strip_prefix(&name));
        line.map_or(Ok(0), |value| value.trim().parse())
    };
    Ok([value("memory")?, value("store")?, value("ahead")?])
}

struct Setup {
    cluster: Cluster,
    one: Client,
    two: Client,
    /// The large directory.
    large: u64,
    /// An empty one beside it.
    other: u64,
}

impl Setup {
    async fn new() -> Result<Self> {
        let cluster =
            Cluster::start_with(|config| config.metrics_listen = Some("127.0.0.1:0".into())).await?;
        let (mut one, two) = (cluster.client().await?, cluster.client().await?);
        let made = one.apply(vec![dir(1, "large"), dir(1, "other")]).await?;
        let [large, other] = [0, 1].map(|at: usize| made[at].attr.as_ref().map_or(0, |attr| attr.inode));
        let files = (0..FILES).map(|index| file(large, &format!("f{index}"))).collect();
        assert!(one.apply(files).await?.iter().all(|result| result.error == 0));
        Ok(Self { cluster, one, two, large, other })
    }

    /// Lists with both clients, after a change that the first has made.
    async fn check(&mut self, after: &str) -> Result {
        let expected = truth(&mut self.one, self.large).await?;
        for limit in [65_536, 600] {
            assert_eq!(names(&mut self.two, self.large, limit).await?, expected, "the other, after {after}");
            assert_eq!(names(&mut self.one, self.large, limit).await?, expected, "after {after}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_directory_that_was_listed_before_is_never_shown_as_it_was() -> Result {
    let mut t = Setup::new().await?;
    t.check("its creation").await?;
    let (large, other) = (t.large, t.other);
    let linked = t.one.lookup(large, "f3").await?.inode;
    let link = v1::Link { inode: linked, parent: large, name: Bytes::from_static(b"link") };
    let rmdir = v1::Rmdir { parent: large, name: Bytes::from_static(b"dir") };
    let changes: Vec<(&str, v1::Mutation)> = vec![
        ("create", file(large, "new")),
        ("mkdir", dir(large, "dir")),
        ("link", v1::Mutation { op: Some(Op::Link(link)), ..v1::Mutation::default() }),
        ("unlink", unlink(large, "f0")),
        ("rename within", rename((large, "f1"), (large, "renamed"), false)),
        ("rename over another", rename((large, "f2"), (large, "f5"), false)),
        ("exchange of a file and a directory", rename((large, "f6"), (large, "dir"), true)),
        ("exchange back", rename((large, "f6"), (large, "dir"), true)),
        ("rename out", rename((large, "f7"), (other, "out"), false)),
        ("rename in", rename((other, "out"), (large, "in"), false)),
        ("exchange across", {
            t.one.apply(vec![dir(other, "there")]).await?;
            rename((large, "f8"), (other, "there"), true)
        }),
        ("rename of a directory over a directory", {
            t.one.apply(vec![dir(large, "from")]).await?;
            rename((large, "from"), (large, "f8"), false)
        }),
        ("rmdir", v1::Mutation { op: Some(Op::Rmdir(rmdir)), ..v1::Mutation::default() }),
    ];
    for (what, change) in changes {
        // Listed before, so that pages are at hand.
        names(&mut t.two, large, 65_536).await?;
        names(&mut t.two, large, 600).await?;
        let before = truth(&mut t.one, large).await?;
        let done = t.one.apply(vec![change]).await?;
        assert_eq!(done[0].error, 0, "{what}: {}", done[0].message);
        assert_ne!(truth(&mut t.one, large).await?.0, before.0, "{what} changes a listing");
        t.check(what).await?;
    }
    t.cluster.stop().await
}

#[tokio::test]
async fn a_page_is_read_from_the_store_once_for_each_state() -> Result {
    let mut t = Setup::new().await?;
    let large = t.large;
    for _ in 0..5 {
        names(&mut t.one, large, 65_536).await?;
        names(&mut t.two, large, 65_536).await?;
    }
    assert_eq!(pages(&t.cluster).await?[..2], [9, 1]);
    t.one.apply(vec![unlink(large, "f9")]).await?;
    for _ in 0..5 {
        names(&mut t.one, large, 65_536).await?;
    }
    assert_eq!(pages(&t.cluster).await?[..2], [13, 2]);
    // Attributes of the directory itself are those of now, also beside entries from memory.
    let mode = v1::SetAttr { inode: large, mode: Some(0o700), ..v1::SetAttr::default() };
    t.one.apply(vec![v1::Mutation { op: Some(Op::SetAttr(mode)), ..v1::Mutation::default() }]).await?;
    let request = v1::ReadDirRequest { attributes: false, ..common::listing(large, &Bytes::new()) };
    let page = t.two.grpc.read_dir(request).await?.into_inner();
    assert_eq!(page.directory.unwrap_or_default().mode, 0o700);
    t.cluster.stop().await
}

#[tokio::test]
async fn a_directory_that_has_changed_is_read_before_somebody_lists_it() -> Result {
    let mut t = Setup::new().await?;
    let large = t.large;
    let limit = cairn_proto::limits::PAGE_NAMES;
    let mut ahead = 0;
    for change in [None, Some(file(large, "new")), Some(unlink(large, "f0"))] {
        if let Some(change) = change {
            t.one.apply(vec![change]).await?;
        }
        while pages(&t.cluster).await?[2] == ahead {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        ahead += 1;
        assert_eq!(names(&mut t.two, large, limit).await?, truth(&mut t.one, large).await?);
        assert_eq!(pages(&t.cluster).await?, [ahead, 0, ahead]);
    }
    // Content changes no listing, and what is small is read anew anyway.
    let mode = v1::SetAttr { inode: large, mode: Some(0o700), ..v1::SetAttr::default() };
    t.one.apply(vec![v1::Mutation { op: Some(Op::SetAttr(mode)), ..v1::Mutation::default() }]).await?;
    t.one.apply(vec![file(t.other, "small")]).await?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(pages(&t.cluster).await?[2], ahead);
    t.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_beside_changes_show_no_state_that_was_over_when_they_began() -> Result {
    let t = Setup::new().await?;
    let Setup { cluster, mut one, mut two, large, .. } = t;
    let made = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = std::sync::Arc::clone(&made);
    let maker = tokio::spawn(async move {
        for round in 1..=200u64 {
            let name = format!("n{round}");
            one.apply(vec![file(large, &name), unlink(large, &format!("f{round}"))]).await?;
            made.store(round, std::sync::atomic::Ordering::SeqCst);
        }
        anyhow::Ok(())
    });
    while !maker.is_finished() {
        let done = seen.load(std::sync::atomic::Ordering::SeqCst);
        let (rows, _) = names(&mut two, large, 65_536).await?;
        let by_name: BTreeMap<_, _> = rows.iter().map(|row| (row.0.as_str(), row.1)).collect();
        assert_eq!(by_name.len(), rows.len(), "each name once");
        assert_eq!(rows.len(), FILES, "one page is one state");
        for round in 1..=done {
            assert!(by_name.contains_key(format!("n{round}").as_str()), "n{round} was made before");
            assert!(!by_name.contains_key(format!("f{round}").as_str()), "f{round} was gone before");
        }
    }
    maker.await??;
    cluster.stop().await
}
