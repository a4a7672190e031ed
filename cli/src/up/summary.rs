//! What `cairn up` says when everything runs.

use std::path::Path;

use serde_json::json;

use super::state::State;
use crate::failure::Failure;
use crate::human;
use crate::output::{GOOD, Output, STRONG, table};

/// Prints what runs, where, and what to try next; as JSON: directory, data, log, pid, services.
pub(super) fn print(state: &State, data: &Path, detached: bool, output: Output) -> Result<(), Failure> {
    if output.json {
        return output.json(&json!({
            "directory": state.directory,
            "data": data,
            "log": data.join("log"),
            "pid": state.pid,
            "datanodes": state.datanodes,
            "replicas": state.replicas,
            "services": state.services,
        }));
    }
    if output.quiet {
        return Ok(());
    }
    let directory = state.directory.display();
    let copies = match state.replicas {
        1 => "one copy".to_owned(),
        n => format!("{n} copies"),
    };
    let started = state.services.values().filter(|ready| ready.role == "datanode").count() as u64;
    let nodes = match u64::from(state.datanodes) {
        all if all == started => human::count(all, "datanode"),
        all => format!("{started} of {}", human::count(all, "datanode")),
    };
    output.say(format!(
        "{} at {}: {nodes}, {copies} of each chunk\n",
        output.paint(GOOD, "Cairn is up"),
        output.paint(STRONG, &directory),
    ));
    let mut services = table(&["SERVICE", "PID", "ADDRESS", "METRICS"], &[1]);
    for (name, ready) in &state.services {
        let metrics = ready.metrics_address.as_ref().map(|address| format!("http://{address}/metrics"));
        services.add_row([
            name.clone(),
            ready.pid.to_string(),
            ready.address.clone().unwrap_or_else(|| "-".to_owned()),
            metrics.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    output.table(services)?;
    output.say(format!("\nData and logs: {}\n", data.display()));
    output.say("Try:");
    output.say(format!("  cp -r ~/Documents {directory}     any program works in it"));
    output.say("  cairn status                   is all well");
    if let (Some(node), true) = (state.services.get("datanode-1"), started >= 3) {
        output.say(format!("  kill -9 {:<22} kill a datanode: work goes on", node.pid));
    }
    if detached {
        output.say(format!("\nStop it: cairn down --data {}", data.display()));
    } else {
        output.say("\nStop it: Ctrl-C. The same command starts it again with all its data.");
    }
    Ok(())
}
