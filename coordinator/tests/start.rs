//! How a coordinator starts, refuses to, and shows its health.

use cairn_coordinator::{CoordinatorConfig, CoordinatorError, Engine, start};
use cairn_proto::listing::Entries;
use cairn_proto::{ErrorKind, v1};
use cairn_runtime::shutdown::Shutdown;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{Cluster, file};

type Result<T = ()> = anyhow::Result<T>;

#[allow(clippy::expect_used)]
async fn refusal(config: CoordinatorConfig) -> CoordinatorError {
    start(config, Shutdown::new()).await.expect_err("it was to be refused")
}

fn config(directory: &tempfile::TempDir) -> CoordinatorConfig {
    CoordinatorConfig {
        listen: "127.0.0.1:0".into(),
        data: directory.path().join("meta"),
        ..CoordinatorConfig::default()
    }
}

#[tokio::test]
async fn what_can_not_work_is_refused_with_a_sentence() -> Result {
    let directory = tempfile::tempdir()?;
    let open = CoordinatorConfig { listen: "0.0.0.0:0".into(), ..config(&directory) };
    let error = refusal(open).await.to_string();
    assert!(error.contains("insecure"), "{error}");
    let wrong = CoordinatorConfig { replicas: 0, ..config(&directory) };
    assert_eq!(refusal(wrong).await.kind(), ErrorKind::InvalidArgument);
    let cluster = Cluster::start().await?;
    let error = refusal(CoordinatorConfig { listen: "127.0.0.1:0".into(), ..cluster.config().clone() }).await;
    assert!(error.to_string().contains("in use by another process"), "{error}");
    let taken = cluster.config().clone();
    let taken = CoordinatorConfig { listen: cluster.address(), ..taken };
    assert_eq!(refusal(taken).await.kind(), ErrorKind::Io);
    cluster.stop().await
}

#[tokio::test]
async fn the_memory_engine_serves_too() -> Result {
    let cluster = Cluster::start_with(|config| config.engine = Engine::Memory).await?;
    let mut client = cluster.client().await?;
    client.apply(vec![file(1, "f")]).await?;
    assert_eq!(client.list(1).await?, ["f"]);
    cluster.stop().await
}

#[tokio::test]
async fn health_and_metrics_are_shown() -> Result {
    let cluster = Cluster::start_with(|config| config.metrics_listen = Some("127.0.0.1:0".into())).await?;
    cluster.client().await?.apply(vec![file(1, "f")]).await?;
    let get = async |path: &str| -> Result<String> {
        let address = cluster.metrics_address().expect("metrics are on");
        #[allow(clippy::disallowed_methods)] // a test that speaks HTTP by hand
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    assert!(get("/healthz").await?.starts_with("HTTP/1.1 200"));
    // Nothing can be stored yet.
    assert!(get("/readyz").await?.starts_with("HTTP/1.1 503"));
    let metrics = get("/metrics").await?;
    assert!(metrics.contains("cairn_coordinator_jobs_total"), "{metrics}");
    assert!(metrics.contains("cairn_coordinator_request_seconds"), "{metrics}");
    cluster.stop().await
}

#[tokio::test]
async fn a_large_directory_is_listed_in_pages() -> Result {
    let cluster = Cluster::start().await?;
    let mut client = cluster.client().await?;
    for round in 0..4 {
        let files = (0..500).map(|index| file(1, &format!("{round}-{index:03}"))).collect();
        assert!(client.apply(files).await?.iter().all(|result| result.error == 0));
    }
    for (limit, attributes) in [(7, false), (700, true), (u32::MAX, true)] {
        let mut names = Vec::new();
        let mut after = 0;
        loop {
            let request =
                v1::ReadDirRequest { inode: 1, after, limit, attributes, ..v1::ReadDirRequest::default() };
            let page = client.grpc.read_dir(request).await?.into_inner();
            assert_eq!(page.directory.map(|directory| directory.size), Some(2000));
            let entries = Entries::decode(&page.entries)?;
            let inodes: Vec<_> = entries.iter().map(|entry| entry.inode.get()).collect();
            let described: Vec<_> = page.attrs.iter().map(|attr| attr.inode).collect();
            assert_eq!(described, if attributes { inodes } else { vec![] });
            after = entries.last_cookie().unwrap_or(after);
            names.extend(entries.iter().map(|entry| entry.name.to_vec()));
            if page.end {
                break;
            }
        }
        assert_eq!(names.len(), 2000, "pages of {limit}");
        names.dedup();
        assert_eq!(names.len(), 2000);
    }
    cluster.stop().await
}

#[tokio::test]
async fn changes_of_the_map_reach_every_session() -> Result {
    let cluster = Cluster::start().await?;
    let mut grpc = cluster.channel()?;
    let hello = v1::session_request::Message::Hello(v1::ClientHello::default());
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    sender.send(v1::SessionRequest { message: Some(hello) }).await?;
    let stream = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = grpc.session(stream).await?.into_inner();
    let _nodes = cluster.datanodes(1).await?;
    let mut nodes = 0;
    while nodes == 0 {
        if let Some(v1::session_response::Message::Map(map)) =
            answers.message().await?.and_then(|a| a.message)
        {
            nodes = map.nodes.len();
        }
    }
    cluster.stop().await
}
