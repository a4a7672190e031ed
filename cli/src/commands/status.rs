//! `cairn status` and `cairn node list`.

use cairn_proto::v1;
use cairn_runtime::clock;
use comfy_table::Cell;
use serde_json::{Value, json};

use super::Tool;
use crate::args::StatusArgs;
use crate::cluster::node_name;
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::{BAD, GOOD, Output, STRONG, WARN, table};

/// Shows health with remedies, datanodes, capacity, and sessions where asked.
pub(super) async fn status(tool: &Tool, args: &StatusArgs) -> Result<Exit, Failure> {
    let cluster = tool.cluster()?;
    let status = cluster.status().await?;
    // Space is told apart, so that it is missed and not fatal when it is not to be had.
    let space = cluster.stat_fs().await.ok();
    let exit = if status.health.iter().any(|code| code.error) { Exit::Unhealthy } else { Exit::Done };
    let map = status.map.clone().unwrap_or_default();
    if tool.output.json {
        tool.output.json(&as_json(cluster.address(), &status, &map, space.as_ref()))?;
        return Ok(exit);
    }
    let output = tool.output;
    print_health(output, &status, &map);
    let up = map.nodes.iter().filter(|node| node.state() == v1::NodeState::Up).count();
    let wanted = map.nodes.iter().filter(|node| node.admin() != v1::AdminState::Out).count();
    let now = clock::wall_ns();
    output.say(format!("\n{}   {}", output.paint(STRONG, "cluster    "), node_name(&map.cluster)));
    let age = human::ago(status.started_ns, now);
    let version = format!("version {}, schema {}, started {age}", status.version, status.schema);
    output.say(format!("{}   {} ({version})", output.paint(STRONG, "coordinator"), cluster.address()));
    let datanodes = format!("{up} of {wanted} up, {}", human::count(map.sets.len() as u64, "replica set"));
    output.say(format!("{}   {datanodes}", output.paint(STRONG, "datanodes  ")));
    let chunks = human::count(status.chunks, "chunk");
    let mut waiting = vec![format!("{} to delete", status.garbage_chunks)];
    waiting.push(human::count_of(status.faults, "copy to make again", "copies to make again"));
    if let short @ 1.. = short_sets(&map) {
        waiting.push(format!("{} with missing members", human::count(short, "replica set")));
    }
    let waiting = waiting.join(", ");
    let data = format!(
        "{} in {}, {chunks} ({waiting})",
        human::size(status.bytes),
        human::count(status.inodes, "inode")
    );
    output.say(format!("{}   {data}", output.paint(STRONG, "data       ")));
    if let Some(space) = &space {
        let of = format!("{} free of {}", human::size(space.available), human::size(space.capacity));
        output.say(format!("{}   {of}", output.paint(STRONG, "space      ")));
    }
    if let Some(log) = &status.metadata_log {
        output.say(format!("{}   {}", output.paint(STRONG, "backup     "), metadata_log(log, now)));
    }
    output.say(format!("{}   {}", output.paint(STRONG, "sessions   "), status.sessions));
    if !status.workers.is_empty() {
        output.say("");
        super::worker::print(output, &status.workers)?;
    }
    if !map.nodes.is_empty() {
        output.say("");
        print_nodes(output, &map.nodes)?;
    }
    if args.sessions && !status.session_list.is_empty() {
        output.say("");
        print_sessions(output, &status.session_list)?;
    }
    Ok(exit)
}

/// Sets of which fewer members are complete and online than there shall be copies.
fn short_sets(map: &v1::ClusterMap) -> u64 {
    let online = |id: &[u8]| {
        let node = map.nodes.iter().find(|node| node.node == id);
        node.is_some_and(|node| {
            matches!(node.state(), v1::NodeState::Up | v1::NodeState::Suspect)
                && node.admin() != v1::AdminState::Out
        })
    };
    let complete = |member: &&v1::Member| {
        matches!(member.state(), v1::MemberState::Active | v1::MemberState::Leaving) && online(&member.node)
    };
    let short = |set: &&v1::ReplicaSet| set.members.iter().filter(complete).count() < set.replicas as usize;
    map.sets.iter().filter(short).count() as u64
}

/// How far the second place of the metadata has come.
fn metadata_log(log: &v1::MetadataLog, now: i64) -> String {
    let reached = match (log.covered, log.behind_ms) {
        (true, 0) => format!("commit {}, all that there is", log.shipped),
        (true, ms) => format!(
            "commit {} of {}, {} behind",
            log.shipped,
            log.committed,
            human::span(std::time::Duration::from_millis(ms))
        ),
        (false, _) => "not yet enough to restore from".to_owned(),
    };
    format!("{reached} (last base {})", human::ago(log.base_time_ns, now))
}

/// Lists the datanodes. As JSON: an array.
pub(super) async fn node_list(tool: &Tool) -> Result<(), Failure> {
    let map = tool.cluster()?.map().await?;
    if tool.output.json {
        return tool.output.json(&map.nodes.iter().map(node_json).collect::<Vec<_>>());
    }
    if map.nodes.is_empty() {
        tool.output
            .say("No datanode has registered yet; start one with `cairn datanode --coordinator HOST:PORT`");
        return Ok(());
    }
    print_nodes(tool.output, &map.nodes)?;
    print_disks(tool.output, &map.nodes)
}

fn print_health(output: Output, status: &v1::GetStatusResponse, map: &v1::ClusterMap) {
    if status.health.is_empty() {
        let text = if map.nodes.is_empty() { "no datanode yet" } else { "all is well" };
        output.say(output.paint(GOOD, text));
    }
    for code in &status.health {
        let (style, word) = if code.error { (BAD, "error") } else { (WARN, "warning") };
        output.say(format!(
            "{} {}: {}",
            output.paint(style, word),
            output.paint(STRONG, &code.code),
            code.detail
        ));
        if !code.remedy.is_empty() {
            output.say(format!("        {}", code.remedy));
        }
    }
}

fn print_nodes(output: Output, nodes: &[v1::Node]) -> Result<(), Failure> {
    let now = clock::wall_ns();
    let mut rows = table(
        &["DATANODE", "ADDRESS", "STATE", "USED", "CAPACITY", "USE", "LAST SEEN", "LABELS"],
        &[3, 4, 5],
    );
    for node in nodes {
        let (style, state) = state_of(node);
        let mut labels: Vec<String> =
            node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort();
        rows.add_row([
            Cell::new(short(&node.node)),
            Cell::new(&node.address),
            output.cell(style, state),
            Cell::new(human::size(node.used)),
            Cell::new(human::size(node.capacity)),
            Cell::new(human::percent(node.used, node.capacity)),
            Cell::new(human::ago(node.last_seen_ns, now)),
            Cell::new(labels.join(",")),
        ]);
    }
    output.table(rows)
}

fn print_disks(output: Output, nodes: &[v1::Node]) -> Result<(), Failure> {
    let mut rows =
        table(&["DATANODE", "DISK", "USED", "CAPACITY", "CHUNKS", "SET ASIDE", "HEALTH"], &[2, 3, 4, 5]);
    for node in nodes {
        for disk in &node.disks {
            let health = match (disk.fault.as_str(), disk.writable, disk.slow) {
                ("", true, false) => output.cell(GOOD, "healthy"),
                ("", true, true) => output.cell(WARN, "slow"),
                ("", false, _) => output.cell(WARN, "full"),
                (fault, ..) => output.cell(BAD, fault),
            };
            rows.add_row([
                Cell::new(short(&node.node)),
                Cell::new(&disk.path),
                Cell::new(human::size(disk.used)),
                Cell::new(human::size(disk.capacity)),
                Cell::new(disk.chunks),
                Cell::new(disk.quarantined),
                health,
            ]);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    output.say("");
    output.table(rows)
}

fn print_sessions(output: Output, sessions: &[v1::SessionInfo]) -> Result<(), Failure> {
    let now = clock::wall_ns();
    let mut rows = table(&["SESSION", "OPEN FILES", "LAST SEEN", "WHO"], &[1]);
    for session in sessions {
        rows.add_row([
            short(&session.session),
            session.open_files.to_string(),
            human::ago(session.last_seen_ns, now),
            human::name(session.description.as_bytes()),
        ]);
    }
    output.table(rows)
}

/// The first digits of an id, enough for a person to tell a few apart.
fn short(id: &[u8]) -> String {
    node_name(id).chars().take(8).collect()
}

fn state_of(node: &v1::Node) -> (anstyle::Style, &'static str) {
    match (node.admin(), node.state()) {
        (v1::AdminState::Out, _) => return (WARN, "removed"),
        (v1::AdminState::Draining, v1::NodeState::Up) => return (WARN, "draining"),
        _ => {}
    }
    match node.state() {
        v1::NodeState::Up => (GOOD, "up"),
        v1::NodeState::Suspect => (WARN, "suspect"),
        v1::NodeState::Down => (BAD, "down"),
        v1::NodeState::Lost => (BAD, "lost"),
        v1::NodeState::Unspecified => (WARN, "unknown"),
    }
}

fn as_json(
    address: &str,
    status: &v1::GetStatusResponse,
    map: &v1::ClusterMap,
    space: Option<&v1::StatFsResponse>,
) -> Value {
    let health: Vec<Value> = status
        .health
        .iter()
        .map(|code| json!({ "code": code.code, "error": code.error, "detail": code.detail, "remedy": code.remedy }))
        .collect();
    let sessions: Vec<Value> = status
        .session_list
        .iter()
        .map(|session| {
            json!({
                "session": node_name(&session.session),
                "description": session.description,
                "last_seen_ns": session.last_seen_ns,
                "open_files": session.open_files,
            })
        })
        .collect();
    json!({
        "cluster": node_name(&map.cluster),
        "coordinator": address,
        "version": status.version,
        "schema": status.schema,
        "started_ns": status.started_ns,
        "term": map.term,
        "epoch": map.epoch,
        "health": health,
        "inodes": status.inodes,
        "bytes": status.bytes,
        "chunks": status.chunks,
        "garbage_chunks": status.garbage_chunks,
        "faults": status.faults,
        "short_replica_sets": short_sets(map),
        "replica_sets": map.sets.len(),
        "metadata_log": status.metadata_log.as_ref().map(|log| json!({
            "committed": log.committed, "shipped": log.shipped, "covered": log.covered,
            "behind_ms": log.behind_ms, "base_sequence": log.base_sequence, "base_time_ns": log.base_time_ns,
            "waits": log.waits,
        })),
        "capacity": space.map(|space| space.capacity),
        "used": space.map(|space| space.used),
        "available": space.map(|space| space.available),
        "nodes": map.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "sessions": sessions,
        "workers": status.workers.iter().map(super::worker::as_json).collect::<Vec<_>>(),
    })
}

fn node_json(node: &v1::Node) -> Value {
    let disks: Vec<Value> = node
        .disks
        .iter()
        .map(|disk| {
            json!({
                "path": disk.path, "capacity": disk.capacity, "used": disk.used, "writable": disk.writable,
                "fault": disk.fault, "chunks": disk.chunks, "quarantined": disk.quarantined,
                "trash": disk.trash, "slow": disk.slow,
            })
        })
        .collect();
    json!({
        "node": node_name(&node.node),
        "address": node.address,
        "state": state_of(node).1,
        "admin": super::node::admin_of(node.admin()),
        "labels": node.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "capacity": node.capacity,
        "used": node.used,
        "last_seen_ns": node.last_seen_ns,
        "metrics_address": node.metrics_address,
        "version": node.version,
        "disks": disks,
    })
}
