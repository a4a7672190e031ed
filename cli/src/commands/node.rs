//! `cairn node drain`, `undrain`, `remove`, `replace`: what is wanted of a datanode.

use std::time::Duration;

use cairn_proto::v1;
use cairn_runtime::clock;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::Tool;
use crate::args::{NodeDrainArgs, NodeNameArgs, NodeRemoveArgs, NodeReplaceArgs};
use crate::cluster::{Cluster, node_name};
use crate::failure::{Context, Failure};
use crate::human;

mod loss;

/// How often it is asked how far a drain is.
const ASK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn drain(tool: &Tool, args: &NodeDrainArgs) -> Result<(), Failure> {
    let cluster = tool.cluster()?;
    let node = find(&cluster, &args.node).await?;
    let action = v1::NodeAction::Drain;
    let done = cluster.set_node_admin(request(&node, action)).await?;
    say_nowhere_to_go(tool, &cluster, &node, done.sets).await?;
    if args.wait {
        return wait_until_empty(tool, &cluster, &node, done.sets).await;
    }
    tell(tool, &node, &done)?;
    if done.sets > 0 {
        tool.output.say("`cairn status` shows how far that is; --wait waits for it");
    }
    Ok(())
}

/// Says so when no datanode can take the places of this one: the drain then waits until one joins.
async fn say_nowhere_to_go(
    tool: &Tool,
    cluster: &Cluster,
    node: &v1::Node,
    places: u32,
) -> Result<(), Failure> {
    if let Some(sentence) = loss::nowhere_to_go(&cluster.map().await?, node).filter(|_| places > 0) {
        tool.output.note(sentence);
    }
    Ok(())
}

pub(super) async fn undrain(tool: &Tool, args: &NodeNameArgs) -> Result<(), Failure> {
    let cluster = tool.cluster()?;
    let node = find(&cluster, &args.node).await?;
    let done = cluster.set_node_admin(request(&node, v1::NodeAction::Undrain)).await?;
    tell(tool, &node, &done)
}

pub(super) async fn remove(tool: &Tool, args: &NodeRemoveArgs) -> Result<(), Failure> {
    let cluster = tool.cluster()?;
    let node = find(&cluster, &args.node).await?;
    if args.force && !args.yes {
        confirm_removal(tool, &cluster, &node).await?;
    }
    let request = v1::SetNodeAdminRequest { force: args.force, ..request(&node, v1::NodeAction::Remove) };
    let done = cluster.set_node_admin(request).await?;
    tell(tool, &node, &done)
}

/// Says what a removal by force takes away, and asks; without a terminal nobody can answer.
async fn confirm_removal(tool: &Tool, cluster: &Cluster, node: &v1::Node) -> Result<(), Failure> {
    let map = cluster.map().await?;
    let what = format!("remove datanode {} by force", short(&node.node));
    let truth = loss::of_removal(&map, node);
    if !(std::io::IsTerminal::is_terminal(&std::io::stdin())
        && std::io::IsTerminal::is_terminal(&std::io::stderr()))
    {
        let next = "it cannot come back: say --yes when that is what you want";
        return Err(Failure::usage(what, truth).next(next));
    }
    tool.output.ask(&format!("{what}: {truth}. It cannot come back. Type yes to go on: "))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).doing(&what)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::new(what, "nothing was done")) }
}

pub(super) async fn replace(tool: &Tool, args: &NodeReplaceArgs) -> Result<(), Failure> {
    let cluster = tool.cluster()?;
    let node = find(&cluster, &args.node).await?;
    let by = find(&cluster, &args.by).await?;
    let request =
        v1::SetNodeAdminRequest { replacement: by.node.clone(), ..request(&node, v1::NodeAction::Replace) };
    let done = cluster.set_node_admin(request).await?;
    if args.wait {
        return wait_until_empty(tool, &cluster, &node, done.sets).await;
    }
    tell(tool, &node, &done)
}

fn request(node: &v1::Node, action: v1::NodeAction) -> v1::SetNodeAdminRequest {
    v1::SetNodeAdminRequest { node: node.node.clone(), action: action.into(), ..Default::default() }
}

/// So many digits at least must an id have: one or two may be typed by mistake, and mean another datanode.
const DIGITS_MIN: usize = 4;

/// The datanode that the beginning of an id, or an address, names.
async fn find(cluster: &Cluster, name: &str) -> Result<v1::Node, Failure> {
    choose(&cluster.map().await?.nodes, name).cloned()
}

/// See [`find`].
pub(super) fn choose<'a>(nodes: &'a [v1::Node], name: &str) -> Result<&'a v1::Node, Failure> {
    let what = format!("datanode {name:?}");
    let known = || {
        let known: Vec<_> =
            nodes.iter().map(|node| format!("{} ({})", short(&node.node), node.address)).collect();
        match known.is_empty() {
            true => "no datanode has registered yet".to_owned(),
            false => format!("there are {}", known.join(", ")),
        }
    };
    if let Some(node) = nodes.iter().find(|node| node.address == name) {
        return Ok(node);
    }
    let digits = name.replace('-', "").to_lowercase();
    if digits.len() < DIGITS_MIN {
        let why =
            format!("the first {DIGITS_MIN} digits of an id at least, or a whole address, were expected");
        return Err(Failure::usage(what, why).next(known()));
    }
    let fits = |node: &&v1::Node| node_name(&node.node).replace('-', "").starts_with(&digits);
    let mut found = nodes.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node),
        (Some(_), Some(_)) => {
            Err(Failure::usage(what, "several begin like this").next("give more of its id"))
        }
        (None, _) => Err(Failure::usage(what, "there is no such datanode").next(known())),
    }
}

fn short(id: &[u8]) -> String {
    node_name(id).chars().take(8).collect()
}

fn tell(tool: &Tool, node: &v1::Node, done: &v1::SetNodeAdminResponse) -> Result<(), Failure> {
    if tool.output.json {
        return tool.output.json(&json!({
            "node": node_name(&node.node),
            "admin": admin_of(done.admin()),
            "sets": done.sets,
        }));
    }
    let places = human::count(done.sets.into(), "replica set");
    let name = short(&node.node);
    tool.output.say(match done.admin() {
        v1::AdminState::Draining if done.sets == 0 => {
            format!("datanode {name} is empty; remove it with `cairn node remove {name}`")
        }
        v1::AdminState::Draining => format!("datanode {name} is being emptied: it has a place in {places}"),
        v1::AdminState::Out => {
            format!("datanode {name} is removed; its data directory is of no use any more")
        }
        v1::AdminState::In | v1::AdminState::Unspecified => format!("datanode {name} serves"),
    });
    Ok(())
}

/// The word for what is wanted of a datanode.
pub(super) fn admin_of(admin: v1::AdminState) -> &'static str {
    match admin {
        v1::AdminState::In | v1::AdminState::Unspecified => "in",
        v1::AdminState::Draining => "draining",
        v1::AdminState::Out => "out",
    }
}

/// Shows how the places of a datanode become fewer, until none is left.
async fn wait_until_empty(
    tool: &Tool,
    cluster: &Cluster,
    node: &v1::Node,
    total: u32,
) -> Result<(), Failure> {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let target = match terminal && !tool.output.quiet && !tool.output.json {
        true => ProgressDrawTarget::stderr_with_hz(4),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total.into()), target);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} replica sets  {msg}") {
        bar.set_style(style);
    }
    loop {
        let status = cluster.status().await?;
        let map = status.map.unwrap_or_default();
        let place = |set: &&v1::ReplicaSet| {
            let counts = |member: &&v1::Member| member.state() != v1::MemberState::Lost;
            set.members.iter().filter(counts).any(|member| member.node == node.node)
        };
        let left = map.sets.iter().filter(place).count() as u64;
        let now = map.nodes.iter().find(|known| known.node == node.node);
        let admin = now.map_or(v1::AdminState::Out, v1::Node::admin);
        if admin == v1::AdminState::In {
            let why = "somebody let it serve again";
            return Err(Failure::new(format!("empty datanode {}", short(&node.node)), why));
        }
        bar.set_length(left.max(total.into()));
        bar.set_position(u64::from(total).saturating_sub(left));
        let repair = status.workers.iter().find(|worker| worker.name == "repair");
        bar.set_message(repair.map(super::worker::pace).unwrap_or_default());
        if left == 0 {
            bar.finish_and_clear();
            let done = v1::SetNodeAdminResponse { admin: admin.into(), sets: 0 };
            return tell(tool, node, &done);
        }
        if tool.output.json {
            tool.output.json_line(&json!({ "node": node_name(&node.node), "sets": left }))?;
        }
        clock::sleep(ASK_EVERY).await;
    }
}
