//! `cairn coordinator` and `cairn datanode`: services in the foreground.

use std::collections::BTreeMap;

use cairn_coordinator::CoordinatorConfig;
use cairn_datanode::DatanodeConfig;
use cairn_runtime::shutdown::Shutdown;
use tokio_util::sync::CancellationToken;

use super::Tool;
use crate::args::{ChildArgs, CoordinatorArgs, DatanodeArgs};
use crate::background;
use crate::config::Flags;
use crate::failure::{Context, Failure};
use crate::notes::Ready;

/// Runs a coordinator until it shall stop.
pub(super) async fn coordinator(tool: &Tool, args: CoordinatorArgs) -> Result<(), Failure> {
    let child = args.child.clone();
    tell("coordinator", &child, run_coordinator(tool, args).await)
}

async fn run_coordinator(tool: &Tool, args: CoordinatorArgs) -> Result<(), Failure> {
    let flags = Flags::new()
        .set("coordinator.listen", "--listen", args.listen)
        .set("coordinator.data", "--data", args.data)
        .set("coordinator.metrics_listen", "--metrics-listen", args.metrics_listen)
        .set("coordinator.replicas", "--replicas", args.replicas)
        .set("coordinator.min_replicas", "--min-replicas", args.min_replicas)
        .switch("coordinator.insecure", "--insecure", args.insecure);
    let config: CoordinatorConfig =
        tool.service_settings(flags, args.child.output.as_deref())?.section("coordinator")?;
    let (shutdown, _) = prepare(&args.child)?;
    let running = cairn_coordinator::start(config, shutdown.clone())
        .await
        .map_err(|error| Failure::new("start the coordinator", error))?;
    let ready = Ready {
        role: "coordinator".to_owned(),
        pid: std::process::id(),
        address: Some(running.address.to_string()),
        metrics_address: running.metrics_address.map(|address| address.to_string()),
        id: Some(running.cluster.to_string()),
        ..Ready::default()
    };
    background::tell_ready(args.child.ready_file.as_deref(), &ready)?;
    tracing::info!(address = %running.address, cluster = %running.cluster, "the coordinator is ready");
    running.wait().await.map_err(|error| Failure::new("run the coordinator", error))
}

/// Runs a datanode until it shall stop.
pub(super) async fn datanode(tool: &Tool, args: DatanodeArgs) -> Result<(), Failure> {
    let child = args.child.clone();
    tell("datanode", &child, run_datanode(tool, args).await)
}

async fn run_datanode(tool: &Tool, args: DatanodeArgs) -> Result<(), Failure> {
    let labels: BTreeMap<String, String> = args.label.into_iter().collect();
    let flags = Flags::new()
        .set("datanode.listen", "--listen", args.listen)
        .set("datanode.advertise", "--advertise", args.advertise)
        .set("datanode.data", "--data", (!args.data.is_empty()).then_some(args.data))
        .set("datanode.labels", "--label", (!labels.is_empty()).then_some(labels))
        .set("datanode.reserve", "--reserve", args.reserve)
        .set("datanode.metrics_listen", "--metrics-listen", args.metrics_listen)
        .switch("datanode.insecure", "--insecure", args.insecure);
    let config: DatanodeConfig =
        tool.service_settings(flags, args.child.output.as_deref())?.section("datanode")?;
    let (shutdown, _) = prepare(&args.child)?;
    let running = cairn_datanode::start(config, shutdown.clone())
        .await
        .map_err(|error| Failure::new("start the datanode", error))?;
    let ready = Ready {
        role: "datanode".to_owned(),
        pid: std::process::id(),
        address: Some(running.address.to_string()),
        metrics_address: running.metrics_address.map(|address| address.to_string()),
        id: Some(running.node.to_string()),
        ..Ready::default()
    };
    background::tell_ready(args.child.ready_file.as_deref(), &ready)?;
    tracing::info!(address = %running.address, node = %running.node, "the datanode is ready");
    running.wait().await.map_err(|error| Failure::new("run the datanode", error))
}

/// What every service does before it starts. The token says that its supervisor is gone.
pub(super) fn prepare(child: &ChildArgs) -> Result<(Shutdown, CancellationToken), Failure> {
    cairn_runtime::telemetry::init_metrics().map_err(|error| Failure::new("start", error))?;
    let shutdown = Shutdown::new();
    shutdown.on_signals().doing("watch for signals")?;
    let orphaned = background::obey_parent(child, &shutdown);
    Ok((shutdown, orphaned))
}

/// Passes a failure on to the parent, which waits for the ready-file.
pub(super) fn tell(role: &str, child: &ChildArgs, result: Result<(), Failure>) -> Result<(), Failure> {
    if let Err(failure) = &result {
        background::tell_failure(child.ready_file.as_deref(), role, failure);
    }
    result
}
