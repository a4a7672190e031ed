//! `cairn worker`: work in the background of the cluster.

use cairn_proto::v1;
use cairn_runtime::clock;
use comfy_table::Cell;
use serde_json::{Value, json};

use super::Tool;
use crate::args::WorkerCommand;
use crate::failure::Failure;
use crate::human;
use crate::output::{BAD, GOOD, Output, WARN, table};

pub(super) async fn run(tool: &Tool, command: &WorkerCommand) -> Result<(), Failure> {
    let cluster = tool.cluster()?;
    let (name, action) = match command {
        WorkerCommand::List => {
            let workers = cluster.status().await?.workers;
            return match tool.output.json {
                true => tool.output.json(&workers.iter().map(as_json).collect::<Vec<_>>()),
                false => print(tool.output, &workers),
            };
        }
        WorkerCommand::Start(args) => (&args.name, v1::WorkerAction::Start),
        WorkerCommand::Pause(args) => (&args.name, v1::WorkerAction::Pause),
        WorkerCommand::Resume(args) => (&args.name, v1::WorkerAction::Resume),
    };
    let worker = cluster.control_worker(name, action).await?;
    if tool.output.json {
        return tool.output.json(&as_json(&worker));
    }
    let done = match action {
        v1::WorkerAction::Pause => "is paused until it is resumed or the coordinator restarts",
        v1::WorkerAction::Resume => "goes on",
        v1::WorkerAction::Start | v1::WorkerAction::Unspecified => "looks for work now",
    };
    tool.output.say(format!("{} {done}", worker.name));
    Ok(())
}

/// Lists workers as a table.
pub(super) fn print(output: Output, workers: &[v1::WorkerStatus]) -> Result<(), Failure> {
    let now = clock::wall_ns();
    let mut rows = table(&["WORK", "STATE", "DONE", "OF", "PACE", "LAST PASS", "LAST ERROR"], &[2, 3]);
    for worker in workers {
        let (style, state) = state_of(worker);
        let finished = match worker.finished_ns {
            0 => "-".to_owned(),
            ns => human::ago(ns, now),
        };
        let total = if worker.total == 0 { "-".to_owned() } else { worker.total.to_string() };
        rows.add_row([
            Cell::new(&worker.name),
            output.cell(style, state),
            Cell::new(worker.done),
            Cell::new(total),
            Cell::new(pace(worker)),
            Cell::new(finished),
            Cell::new(&worker.error),
        ]);
    }
    output.table(rows)
}

/// Rate and remaining time of a pass that is under way.
pub(super) fn pace(worker: &v1::WorkerStatus) -> String {
    let mut parts = Vec::new();
    if worker.bytes_per_second > 0 {
        parts.push(format!("{}/s", human::size(worker.bytes_per_second)));
    }
    if worker.eta_ms > 0 {
        parts.push(format!("ETA {}", human::span(std::time::Duration::from_millis(worker.eta_ms))));
    }
    parts.join(", ")
}

fn state_of(worker: &v1::WorkerStatus) -> (anstyle::Style, &'static str) {
    match worker.state() {
        v1::WorkerState::Idle => (GOOD, "idle"),
        v1::WorkerState::Busy => (GOOD, "busy"),
        v1::WorkerState::Throttled if worker.error.is_empty() => (GOOD, "throttled"),
        v1::WorkerState::Throttled => (BAD, "retrying"),
        v1::WorkerState::Paused => (WARN, "paused"),
        v1::WorkerState::Unspecified => (WARN, "unknown"),
    }
}

/// One worker with stable keys.
pub(super) fn as_json(worker: &v1::WorkerStatus) -> Value {
    json!({
        "name": worker.name,
        "state": state_of(worker).1,
        "done": worker.done,
        "total": worker.total,
        "bytes": worker.bytes,
        "bytes_per_second": worker.bytes_per_second,
        "eta_ms": worker.eta_ms,
        "error": worker.error,
        "finished_ns": worker.finished_ns,
    })
}
