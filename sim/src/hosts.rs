//! The simulated machines: the real services, started as their programs start them.

use std::sync::Arc;
use std::time::Duration;

use cairn_coordinator::sim::Metadata;
use cairn_runtime::shutdown::Shutdown;
use cairn_runtime::{clock, sim};

use crate::disk::SimDisk;
use crate::knobs::{COORDINATOR, Knobs};
use crate::world::{Phase, Shared};

/// What turmoil wants of a host.
pub(crate) type HostResult = Result<(), Box<dyn std::error::Error>>;

/// A service that could not start is tried again after so long, as a supervisor would.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Tasks of a service that has ended may still be on their way for so long.
const LAST_TASKS: Duration = Duration::from_secs(15);

/// One life of the coordinator's machine.
pub(crate) async fn coordinator(
    shared: Shared,
    knobs: Knobs,
    metadata: Metadata,
    skew_ns: i64,
) -> HostResult {
    sim::name_machine(COORDINATOR);
    sim::skew_wall_clock(skew_ns);
    loop {
        let shutdown = enter(&shared, COORDINATOR);
        let started =
            cairn_coordinator::sim::start(knobs.coordinator(), metadata.clone(), shutdown.clone()).await;
        let ended = match started {
            Ok(running) => running.wait().await,
            Err(error) => Err(error),
        };
        if leave(&shared, COORDINATOR, &shutdown, ended.map_err(|error| error.to_string()), false).await {
            return Ok(());
        }
    }
}

/// One life of a datanode's machine.
pub(crate) async fn datanode(
    shared: Shared,
    knobs: Knobs,
    name: String,
    disks: Vec<SimDisk>,
    joins: Duration,
    skew_ns: i64,
) -> HostResult {
    sim::name_machine(&name);
    sim::skew_wall_clock(skew_ns);
    clock::sleep(joins.saturating_sub(turmoil::sim_elapsed().unwrap_or_default())).await;
    loop {
        let shutdown = enter(&shared, &name);
        let errors: u64 = disks.iter().map(SimDisk::errors).sum();
        let mounted = disks.iter().map(SimDisk::mount).collect();
        let started = cairn_datanode::start_on(knobs.datanode(&name), mounted, shutdown.clone()).await;
        let ended = match started {
            Ok(running) => running.wait().await,
            Err(error) => Err(error),
        };
        // A disk that gives errors is a reason to fail, and so is that nobody wants it any more.
        let removed = shared.with(|world| world.removed.contains(&name));
        let excused = removed || disks.iter().map(SimDisk::errors).sum::<u64>() > errors;
        if leave(&shared, &name, &shutdown, ended.map_err(|error| error.to_string()), excused).await {
            return Ok(());
        }
    }
}

fn enter(shared: &Shared, name: &str) -> Shutdown {
    let shutdown = Shutdown::new();
    shared.event(format_args!("{name} starts"));
    shared.with(|world| world.stops.insert(name.to_owned(), shutdown.clone()));
    shutdown
}

/// A service has ended. Whether it was told to; else it starts again after a pause.
async fn leave(
    shared: &Shared,
    name: &str,
    shutdown: &Shutdown,
    ended: Result<(), String>,
    excused: bool,
) -> bool {
    if let Err(error) = &ended {
        match excused {
            true => shared.event(format_args!("{name} has a reason to fail: {error}")),
            false => shared.violation(format_args!("{name} failed: {error}")),
        }
    }
    if shutdown.is_requested() {
        wait_for_last_tasks(shared, name).await;
        return true;
    }
    shutdown.drain().await;
    clock::sleep(RESTART_PAUSE).await;
    false
}

/// No task may outlive the service that started it.
pub(crate) async fn wait_for_last_tasks(shared: &Shared, name: &str) {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let deadline = clock::now() + LAST_TASKS;
    while alive() > 0 && clock::now() < deadline {
        clock::sleep(Duration::from_millis(100)).await;
    }
    match alive() {
        0 => shared.event(format_args!("{name} has ended")),
        tasks => shared.violation(format_args!("{name} has ended, but {tasks} tasks of it live on")),
    }
    shared.with(|world| *world.ended.entry(name.to_owned()).or_default() += 1);
}

/// One life of a client's machine.
pub(crate) async fn client(
    shared: Shared,
    knobs: Knobs,
    index: usize,
    rng_seed: u64,
    skew_ns: i64,
) -> HostResult {
    let name = format!("u{index}");
    sim::name_machine(&name);
    sim::skew_wall_clock(skew_ns);
    let shutdown = Shutdown::new();
    let connected = loop {
        match cairn_client::Client::connect(knobs.client(), name.clone(), &shutdown).await {
            Ok(client) => break Some(client),
            Err(_) if shared.phase() == Phase::Work => clock::sleep(RESTART_PAUSE).await,
            Err(_) => break None,
        }
    };
    if let Some(client) = connected {
        crate::workload::run(&shared, &knobs, index, rng_seed, Arc::clone(&client)).await;
        let closed = client.close().await;
        shared.event(format_args!("{name} closes: {:?}", closed.map_err(|error| error.kind())));
    }
    shutdown.drain().await;
    wait_for_last_tasks(&shared, &name).await;
    Ok(())
}
