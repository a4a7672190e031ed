//! `cairn gc`, `cairn scrub` and `cairn fsck`.

use std::time::Duration;

use cairn_proto::{NodeId, v1};
use cairn_runtime::clock;
use comfy_table::Cell;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::Tool;
use crate::args::{FsckArgs, GcCommand, ScrubCommand};
use crate::cluster::{Cluster, node_name};
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::{BAD, GOOD, Output, STRONG, WARN, table};

/// Shows or controls the deletion of chunks.
pub(super) async fn gc(tool: &Tool, command: &GcCommand) -> Result<(), Failure> {
    let cluster = tool.cluster()?;
    let status = match command {
        GcCommand::Status => cluster.gc_status().await?,
        GcCommand::Run(args) => {
            let status = cluster.control_gc(v1::GcAction::Run).await?;
            match args.wait {
                true => await_garbage(tool, &cluster, status).await?,
                false => status,
            }
        }
        GcCommand::Pause => cluster.control_gc(v1::GcAction::Pause).await?,
        GcCommand::Resume(args) if args.accept_rollback => {
            cluster.control_gc(v1::GcAction::AcceptRollback).await?
        }
        GcCommand::Resume(_) => cluster.control_gc(v1::GcAction::Resume).await?,
    };
    if tool.output.json {
        return tool.output.json(&gc_json(&status));
    }
    print_gc(tool.output, &status);
    Ok(())
}

/// How often it is asked how much is left.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Waits until what was garbage is deleted, but for what datanodes that are away hold.
async fn await_garbage(tool: &Tool, cluster: &Cluster, first: v1::GcStatus) -> Result<v1::GcStatus, Failure> {
    let wanted = first.deleted.saturating_add(first.garbage);
    let mut status = first;
    let mut said = false;
    while status.garbage > 0 && status.deleted < wanted {
        if status.overdue > 0 && !said {
            said = true;
            let chunks = human::count(status.overdue, "chunk");
            let nodes: Vec<_> = status.waiting_for.iter().map(|node| short(node)).collect();
            tool.output.note(format!("{chunks} waited for datanode {}, which is away", nodes.join(", ")));
        }
        if status.overdue >= status.garbage {
            break;
        }
        clock::sleep(ASK_EVERY).await;
        status = cluster.gc_status().await?;
    }
    Ok(status)
}

fn print_gc(output: Output, status: &v1::GcStatus) {
    let now = clock::wall_ns();
    let line = |name: &str, text: String| {
        output.say(format!("{}   {text}", output.paint(STRONG, format!("{name:<8}"))))
    };
    let state = if status.rolled_back_ns > 0 {
        let text = format!("stopped {}: metadata has gone backwards", human::ago(status.rolled_back_ns, now));
        format!(
            "{}\n           Look with `cairn fsck`, then `cairn gc resume --accept-rollback`.",
            output.paint(BAD, text)
        )
    } else if status.paused_ns > 0 {
        output.paint(
            WARN,
            format!("stopped by an operator {}; `cairn gc resume`", human::ago(status.paused_ns, now)),
        )
    } else {
        output.paint(GOOD, "runs")
    };
    line("state", state);
    let due = status.oldest_ns.saturating_sub(now);
    let first = match status.garbage {
        0 => String::new(),
        _ if due > 0 => {
            format!(", the first can go in {}", human::span(Duration::from_nanos(due.unsigned_abs())))
        }
        _ => format!(", the first could go since {}", human::ago(status.oldest_ns, now)),
    };
    let grace = human::span(Duration::from_millis(status.grace_ms));
    line("garbage", format!("{} (kept {grace}){first}", human::count(status.garbage, "chunk")));
    if status.overdue > 0 {
        let nodes: Vec<_> = status.waiting_for.iter().map(|node| short(node)).collect();
        line(
            "waiting",
            format!("{} for datanode {}", human::count(status.overdue, "chunk"), nodes.join(", ")),
        );
    }
    line(
        "strays",
        format!("{} held for nothing, as last compared", human::count_of(status.strays, "copy", "copies")),
    );
    let compared = match status.reconciled_ns {
        0 => "inventories not yet compared".to_owned(),
        at => format!("inventories compared {}", human::ago(at, now)),
    };
    line("compared", compared);
    let strays = human::count_of(status.strays_deleted, "stray", "strays");
    line(
        "deleted",
        format!("{} and {strays} since the coordinator started", human::count(status.deleted, "chunk")),
    );
    if !status.error.is_empty() {
        line("error", output.paint(WARN, &status.error));
    }
}

fn gc_json(status: &v1::GcStatus) -> Value {
    json!({
        "paused_ns": status.paused_ns,
        "rolled_back_ns": status.rolled_back_ns,
        "garbage": status.garbage,
        "oldest_ns": status.oldest_ns,
        "overdue": status.overdue,
        "waiting_for": status.waiting_for.iter().map(|node| node_name(node)).collect::<Vec<_>>(),
        "strays": status.strays,
        "deleted": status.deleted,
        "strays_deleted": status.strays_deleted,
        "grace_ms": status.grace_ms,
        "session_fence_ns": status.session_fence_ns,
        "reconciled_ns": status.reconciled_ns,
        "error": status.error,
    })
}

/// Starts scrubs or shows how far they are. Exit status 4 when something bad was found in the last pass.
pub(super) async fn scrub(tool: &Tool, command: &ScrubCommand) -> Result<Exit, Failure> {
    let cluster = tool.cluster()?;
    let (names, start, rate) = match command {
        ScrubCommand::Start(args) => (&args.nodes.nodes, true, args.rate.map_or(0, |rate| rate.as_u64())),
        ScrubCommand::Status(args) => (&args.nodes, false, 0),
    };
    let nodes = choose(&cluster, names).await?;
    let request = v1::ScrubNodesRequest { nodes, start, bytes_per_second: rate };
    let answer = cluster.scrub(request).await?;
    if tool.output.json {
        tool.output.json(&answer.nodes.iter().map(scrub_json).collect::<Vec<_>>())?;
    } else {
        print_scrub(tool.output, &answer.nodes)?;
    }
    let failed = answer.nodes.iter().any(|node| node.status.is_none());
    let is_bad = |node: &v1::NodeScrub| {
        node.status.as_ref().is_some_and(|status| status.bad > 0 || (!status.running && status.bad_last > 0))
    };
    Ok(if answer.nodes.iter().any(is_bad) {
        Exit::Unhealthy
    } else if start && failed {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// The datanodes that ids, or their first digits, name.
async fn choose(cluster: &Cluster, names: &[String]) -> Result<Vec<bytes::Bytes>, Failure> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let nodes = cluster.map().await?.nodes;
    names.iter().map(|name| super::node::choose(&nodes, name).map(|node| node.node.clone())).collect()
}

fn print_scrub(output: Output, nodes: &[v1::NodeScrub]) -> Result<(), Failure> {
    let now = clock::wall_ns();
    let mut rows =
        table(&["DATANODE", "ADDRESS", "SCRUB", "DONE", "OF", "BAD", "LAST PASS", "BAD THEN"], &[3, 4, 5, 7]);
    for node in nodes {
        let Some(status) = &node.status else {
            let why = output.cell(WARN, &node.error);
            rows.add_row([Cell::new(short(&node.node)), Cell::new(&node.address), why]);
            continue;
        };
        let state = match (status.running, status.error.as_str()) {
            (true, "") => "running".to_owned(),
            (false, "") => "waiting".to_owned(),
            (_, error) => error.to_owned(),
        };
        let bad = |count: u64| output.cell(if count > 0 { BAD } else { GOOD }, count);
        let last =
            if status.finished_ns > 0 { human::ago(status.finished_ns, now) } else { "never".to_owned() };
        rows.add_row([
            Cell::new(short(&node.node)),
            Cell::new(&node.address),
            Cell::new(state),
            Cell::new(human::size(status.bytes_done)),
            Cell::new(human::size(status.bytes_total)),
            bad(status.bad),
            Cell::new(last),
            bad(status.bad_last),
        ]);
    }
    output.table(rows)
}

fn scrub_json(node: &v1::NodeScrub) -> Value {
    let status = node.status.as_ref().map(|status| {
        json!({
            "running": status.running,
            "chunks_done": status.chunks_done, "chunks_total": status.chunks_total,
            "bytes_done": status.bytes_done, "bytes_total": status.bytes_total,
            "bad": status.bad, "bad_last": status.bad_last,
            "started_ns": status.started_ns, "finished_ns": status.finished_ns,
            "error": status.error,
        })
    });
    json!({ "node": node_name(&node.node), "address": node.address, "status": status, "error": node.error })
}

fn short(node: &[u8]) -> String {
    NodeId::from_wire(node).map_or_else(|_| "?".to_owned(), NodeId::short)
}

/// Checks everything. Exit status 4 when damage is left.
pub(super) async fn fsck(tool: &Tool, args: &FsckArgs) -> Result<Exit, Failure> {
    let cluster = tool.cluster()?;
    let request = v1::FsckRequest { repair: args.repair, skip_datanodes: args.metadata_only };
    let mut stream = cluster.fsck(request).await?;
    let output = tool.output;
    let bar = bar(output, args.no_progress);
    let mut summary = None;
    while let Some(message) = cluster.next_of_fsck(&mut stream).await? {
        match message.message {
            Some(v1::fsck_response::Message::Progress(progress)) => {
                if output.json {
                    output.json_line(&json!({
                        "event": "progress", "phase": progress.phase, "done": progress.done, "total": progress.total,
                    }))?;
                }
                bar.set_message(progress.phase);
                bar.set_length(progress.total);
                bar.set_position(progress.done);
            }
            Some(v1::fsck_response::Message::Finding(finding)) => {
                if output.json {
                    output.json_line(&finding_json(&finding))?;
                } else {
                    bar.suspend(|| print_finding(output, &finding));
                }
            }
            Some(v1::fsck_response::Message::Summary(told)) => summary = Some(told),
            None => {}
        }
    }
    bar.finish_and_clear();
    let Some(summary) = summary else {
        return Err(Failure::new("check the cluster", "the coordinator ended the check before its end")
            .next("run it again; the coordinator's log says more"));
    };
    if output.json {
        output.json_line(&summary_json(&summary))?;
    } else {
        print_summary(output, &summary, args);
    }
    let left = summary.losses > 0 || summary.errors > summary.repaired;
    Ok(if left { Exit::Unhealthy } else { Exit::Done })
}

fn bar(output: Output, hidden: bool) -> ProgressBar {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let target = if terminal && !output.quiet && !output.json && !hidden {
        ProgressDrawTarget::stderr_with_hz(8)
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} ETA {eta} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn print_finding(output: Output, finding: &v1::FsckFinding) {
    let (style, word) = match finding.severity() {
        v1::FsckSeverity::Loss => (BAD, "loss"),
        v1::FsckSeverity::Error => (WARN, "error"),
        v1::FsckSeverity::Note | v1::FsckSeverity::Unspecified => (STRONG, "note"),
    };
    let path = match (finding.path.is_empty(), finding.inode) {
        (false, _) => format!("{}: ", human::name(&finding.path)),
        (true, inode) if finding.code == "FILE_DAMAGED" && inode > 0 => {
            format!("inode {inode}, without a name: ")
        }
        (true, _) => String::new(),
    };
    let repaired = if finding.repaired { output.paint(GOOD, " (repaired)") } else { String::new() };
    output.say(format!("{} {}: {path}{}{repaired}", output.paint(style, word), finding.code, finding.detail));
}

fn print_summary(output: Output, summary: &v1::FsckSummary, args: &FsckArgs) {
    let copies = if args.metadata_only {
        "copies not looked at".to_owned()
    } else {
        human::count_of(summary.copies, "good copy", "good copies")
    };
    output.say(format!(
        "{}, {}, {}, {}, {copies}",
        human::count(summary.inodes, "inode"),
        human::count(summary.dentries, "name"),
        human::count(summary.extents, "extent"),
        human::count(summary.chunks, "chunk"),
    ));
    if summary.suppressed > 0 {
        output.say(format!("{} more findings are not shown", summary.suppressed));
    }
    if summary.nodes_missing > 0 {
        let nodes = human::count(summary.nodes_missing, "datanode");
        output.say(output.paint(WARN, format!("{nodes} could not be asked; what they hold is not known")));
    }
    let (style, text) = match (summary.losses, summary.errors, summary.repaired) {
        (0, 0, _) => (GOOD, "no damage".to_owned()),
        (0, errors, repaired) if errors == repaired => {
            (GOOD, format!("{} found, all repaired", human::count(errors, "error")))
        }
        (losses, errors, repaired) => {
            let losses = human::count_of(losses, "loss", "losses");
            (BAD, format!("{losses}, {}, {repaired} repaired", human::count(errors, "error")))
        }
    };
    output.say(output.paint(style, text));
}

fn finding_json(finding: &v1::FsckFinding) -> Value {
    let severity = match finding.severity() {
        v1::FsckSeverity::Loss => "loss",
        v1::FsckSeverity::Error => "error",
        v1::FsckSeverity::Note | v1::FsckSeverity::Unspecified => "note",
    };
    let node = (!finding.node.is_empty()).then(|| node_name(&finding.node));
    json!({
        "event": "finding",
        "code": finding.code,
        "severity": severity,
        "inode": finding.inode,
        "path": String::from_utf8_lossy(&finding.path),
        "chunk": finding.chunk,
        "node": node,
        "detail": finding.detail,
        "repaired": finding.repaired,
        "bytes": finding.bytes,
    })
}

fn summary_json(summary: &v1::FsckSummary) -> Value {
    json!({
        "event": "summary",
        "inodes": summary.inodes,
        "dentries": summary.dentries,
        "extents": summary.extents,
        "chunks": summary.chunks,
        "copies": summary.copies,
        "errors": summary.errors,
        "losses": summary.losses,
        "repaired": summary.repaired,
        "suppressed": summary.suppressed,
        "nodes_asked": summary.nodes_asked,
        "nodes_missing": summary.nodes_missing,
        "sequence": summary.sequence,
    })
}
