//! Sessions that end, against a real coordinator.

use std::sync::Arc;

use cairn_coordinator::CoordinatorConfig;
use cairn_proto::{InodeId, v1};
use cairn_runtime::shutdown::Shutdown;

use crate::{Caller, Client, ClientConfig};

fn make_directory(name: &str) -> v1::mutation::Op {
    v1::mutation::Op::Create(v1::Create {
        parent: InodeId::ROOT.get(),
        name: bytes::Bytes::copy_from_slice(name.as_bytes()),
        kind: v1::InodeKind::Directory.into(),
        mode: 0o755,
        exclusive: true,
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_over_is_replaced_and_work_goes_on() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let shutdown = Shutdown::new();
    let config = CoordinatorConfig {
        listen: "127.0.0.1:0".into(),
        data: data.path().to_owned(),
        metrics_listen: None,
        ..CoordinatorConfig::default()
    };
    let coordinator = cairn_coordinator::start(config, shutdown.clone()).await?;
    let config = ClientConfig { coordinator: coordinator.address.to_string(), ..ClientConfig::default() };
    let client = Client::connect(config, "test".into(), &Shutdown::new()).await?;
    let session = Arc::clone(client.coordinator().session());
    client.coordinator().apply(make_directory("before"), &Caller::root()).await?;
    let first = session.identity()?.session;
    session.give_up_on(first);
    session.renewed(first, &mut crate::retry::Patience::limited("test", None)).await?;
    assert_ne!(session.identity()?.session, first);
    // Calls of the old session and new ones meet.
    let calls =
        (0..100).map(|index| {
            let client = Arc::clone(&client);
            async move {
                client.coordinator().apply(make_directory(&format!("after-{index}")), &Caller::root()).await
            }
        });
    for result in futures::future::join_all(calls).await {
        result?;
    }
    let page = client.coordinator().read_dir(InodeId::ROOT, 0, 1000, true).await?;
    assert_eq!(page.len(), 101);
    client.close().await?;
    shutdown.request();
    coordinator.wait().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_leaves_its_slot_usable() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let shutdown = Shutdown::new();
    let config = CoordinatorConfig {
        listen: "127.0.0.1:0".into(),
        data: data.path().to_owned(),
        metrics_listen: None,
        ..CoordinatorConfig::default()
    };
    let coordinator = cairn_coordinator::start(config, shutdown.clone()).await?;
    let config = ClientConfig { coordinator: coordinator.address.to_string(), ..ClientConfig::default() };
    let client = Client::connect(config, "test".into(), &Shutdown::new()).await?;
    for index in 0..5 {
        // An impossible inode: refused while decoding, or while executing.
        let bad =
            v1::mutation::Op::Rmdir(v1::Rmdir { parent: u64::MAX, name: bytes::Bytes::from_static(b"x") });
        assert!(client.coordinator().apply(bad, &Caller::root()).await.is_err());
        let session = client.coordinator().session().identity()?.session;
        let chunk = v1::StoredChunk { chunk: 1, ..Default::default() };
        let file = v1::FileCommit { inode: 1, ..Default::default() };
        let refused = client.coordinator().confirm(session, vec![chunk.clone(), chunk], vec![file]).await;
        assert!(refused.is_err() || refused.is_ok_and(|results| results[0].error != 0));
        client.coordinator().apply(make_directory(&format!("good-{index}")), &Caller::root()).await?;
    }
    client.close().await?;
    shutdown.request();
    coordinator.wait().await?;
    Ok(())
}
