//! A whole cluster in this process: one coordinator and three datanodes on loopback.

#![allow(unreachable_pub, dead_code)] // shared by several test programs

pub mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::{Client, ClientConfig};
use cairn_coordinator::CoordinatorConfig;
use cairn_datanode::DatanodeConfig;
use cairn_proto::v1;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_runtime::config::ByteSize;
use cairn_runtime::shutdown::Shutdown;
use tempfile::TempDir;

/// Datanodes of the cluster.
const DATANODES: usize = 3;

/// A running cluster; its data goes when it is dropped.
pub struct Cluster {
    pub address: String,
    lease: Duration,
    data: TempDir,
    clients: Shutdown,
    coordinator: (cairn_coordinator::Running, Shutdown),
    datanodes: Vec<(cairn_datanode::Running, Shutdown)>,
}

impl Cluster {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with_lease(CoordinatorConfig::default().lease).await
    }

    /// Sessions end after a silence of `lease`.
    pub async fn start_with_lease(lease: Duration) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let coordinator = start_coordinator(&data, "127.0.0.1:0", lease).await?;
        let address = coordinator.0.address.to_string();
        let clients = Shutdown::new();
        let mut cluster = Self { address, lease, data, clients, coordinator, datanodes: Vec::new() };
        cluster.start_datanodes().await?;
        Ok(cluster)
    }

    /// Starts all datanodes, again when they have been stopped.
    pub async fn start_datanodes(&mut self) -> anyhow::Result<()> {
        for index in 0..DATANODES {
            let config = DatanodeConfig {
                listen: "127.0.0.1:0".into(),
                coordinator: self.address.clone(),
                data: vec![self.data.path().join(format!("datanode-{index}"))],
                reserve: ByteSize::mib(64),
                segment_size: ByteSize::mib(64),
                metrics_listen: None,
                ..DatanodeConfig::default()
            };
            let shutdown = Shutdown::new();
            self.datanodes.push((cairn_datanode::start(config, shutdown.clone()).await?, shutdown));
        }
        Ok(())
    }

    /// Stops the coordinator and starts it again, at the same place.
    pub async fn restart_coordinator(self) -> anyhow::Result<Self> {
        let (running, shutdown) = self.coordinator;
        shutdown.request();
        running.wait().await?;
        let coordinator = start_coordinator(&self.data, &self.address, self.lease).await?;
        Ok(Self { coordinator, ..self })
    }

    /// Where the coordinator keeps its store.
    pub fn metadata(&self) -> std::path::PathBuf {
        self.data.path().join("coordinator/meta.db")
    }

    /// One more client with a session of its own.
    pub async fn client(&self) -> anyhow::Result<Arc<Client>> {
        self.client_with(ClientConfig::default()).await
    }

    /// The same with a configuration; its address is filled in.
    pub async fn client_with(&self, config: ClientConfig) -> anyhow::Result<Arc<Client>> {
        self.client_at(self.address.clone(), config).await
    }

    /// The same with another way to the coordinator.
    pub async fn client_at(&self, coordinator: String, config: ClientConfig) -> anyhow::Result<Arc<Client>> {
        let config = ClientConfig { coordinator, memory: ByteSize::mib(128), ..config };
        Ok(Client::connect(config, "test".into(), &self.clients).await?)
    }

    /// The sessions that are open, in the words of the coordinator.
    pub async fn sessions(&self) -> anyhow::Result<BTreeSet<Bytes>> {
        let mut rpc = CoordinatorClient::new(cairn_runtime::net::connect(&self.address)?);
        let status = rpc.get_status(v1::GetStatusRequest {}).await?.into_inner();
        Ok(status.session_list.into_iter().map(|session| session.session).collect())
    }

    /// Ends all datanodes.
    pub async fn stop_datanodes(&mut self) -> anyhow::Result<()> {
        for (datanode, shutdown) in self.datanodes.drain(..) {
            shutdown.request();
            datanode.wait().await?;
        }
        Ok(())
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.clients.drain().await;
        self.stop_datanodes().await?;
        let (coordinator, shutdown) = self.coordinator;
        shutdown.request();
        coordinator.wait().await?;
        self.data.close()?;
        Ok(())
    }
}

async fn start_coordinator(
    data: &TempDir,
    listen: &str,
    lease: Duration,
) -> anyhow::Result<(cairn_coordinator::Running, Shutdown)> {
    let config = CoordinatorConfig {
        listen: listen.into(),
        data: data.path().join("coordinator"),
        metrics_listen: None,
        lease,
        ..CoordinatorConfig::default()
    };
    let shutdown = Shutdown::new();
    Ok((cairn_coordinator::start(config, shutdown.clone()).await?, shutdown))
}
