//! Which datanodes there are: one may join while all goes on, one may be drained, one may be lost for
//! good. What an operator does about it, he does by the calls that the command line uses.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::v1;
use cairn_proto::v1::coordinator_client::CoordinatorClient;
use cairn_runtime::{clock, net};
use rand::Rng;
use rand::rngs::StdRng;
use tonic::transport::Channel;

use crate::hosts::HostResult;
use crate::knobs::{COORDINATOR_ADDRESS, Knobs};
use crate::world::{Phase, Shared};

/// Copies wanted of each chunk: the policy of the root.
const REPLICAS: usize = 3;
/// How often the operator looks whether there is something to do, and tries again.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// An answer that takes longer is not waited for.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What becomes of the datanodes of one seed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fleet {
    /// How many there are in the end, the one that joins and the one that is lost included.
    pub(crate) datanodes: usize,
    /// When the last one of them starts for the first time.
    pub(crate) joins: Option<Duration>,
    /// Which one is drained, and when.
    pub(crate) drained: Option<(usize, Duration)>,
    /// When it is to serve again; never: it is removed at the end.
    pub(crate) undrained: Option<Duration>,
    /// When the one with damaged copies loses all its disks.
    pub(crate) lost: Option<Duration>,
    /// When it comes back, with nothing; never: an operator may remove it.
    pub(crate) back: Option<Duration>,
    /// When the operator removes what is lost.
    pub(crate) removed: Option<Duration>,
}

/// What the operator is to see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Drain(usize),
    Undrain(usize),
    /// It is gone, with its disks.
    RemoveLost(usize),
}

/// Whether a datanode counts at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Serves,
    /// To be empty, and then removed.
    Leaves,
    /// It is not there any more.
    Gone,
}

impl Fleet {
    /// `victim`: whose copies may be bad; of the others no copy may be lost.
    pub(crate) fn new(knobs: &Knobs, victim: usize, time: Duration, rng: &mut StdRng) -> Self {
        let mut at = |from: f64, to: f64| time.mul_f64(rng.random_range(from..to));
        let (join, drain, undrain) = (at(0.1, 0.7), at(0.05, 0.6), at(0.1, 0.3));
        let (lost, back, removed) = (at(0.1, 0.7), at(0.02, 0.3), at(0.05, 0.3));
        let joins = rng.random_bool(0.35);
        let datanodes = knobs.datanodes + usize::from(joins);
        let mut spare = datanodes - REPLICAS;
        // Whether one may go for good: as many as copies are wanted have to stay.
        let mut stays_away = |rng: &mut StdRng| {
            let away = spare > 0 && rng.random_bool(0.5);
            spare -= usize::from(away);
            away
        };
        let is_lost = rng.random_bool(0.4);
        let stays_lost = is_lost && stays_away(rng);
        let is_drained = rng.random_bool(0.4);
        let stays_drained = is_drained && stays_away(rng);
        let other = (victim + rng.random_range(1..knobs.datanodes)) % knobs.datanodes;
        Self {
            datanodes,
            joins: joins.then_some(join),
            drained: is_drained.then_some((other, drain)),
            undrained: (is_drained && !stays_drained).then_some(drain + undrain),
            lost: is_lost.then_some(lost),
            back: (is_lost && !stays_lost).then_some(lost + back),
            removed: (stays_lost && rng.random_bool(0.5)).then_some(lost + removed),
        }
    }
}

/// The coordinator, for calls without a session.
pub(crate) fn coordinator() -> Result<CoordinatorClient<Channel>, String> {
    let channel = net::connect(COORDINATOR_ADDRESS).map_err(|error| error.to_string())?;
    Ok(CoordinatorClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX))
}

/// Asks the coordinator to change the standing of the datanodes at an address: of the one that is up
/// there, or of those that are not.
pub(crate) async fn ask(
    address: &str,
    is_up: bool,
    action: v1::NodeAction,
    force: bool,
) -> Result<(), String> {
    let mut coordinator = coordinator()?;
    let work = async {
        let map = coordinator.list_nodes(v1::ListNodesRequest {}).await?.into_inner().map.unwrap_or_default();
        let mut asked = 0;
        for node in map.nodes.iter().filter(|node| node.address == address) {
            let up = node.state() == v1::NodeState::Up;
            if up == is_up && node.admin() != v1::AdminState::Out {
                let node = node.node.clone();
                let request =
                    v1::SetNodeAdminRequest { node, action: action.into(), force, ..Default::default() };
                coordinator.set_node_admin(request).await?;
                asked += 1;
            }
        }
        Ok::<_, tonic::Status>(asked)
    };
    match clock::timeout(ANSWER_MAX, work).await {
        Ok(Ok(0)) => Err(format!("there is no datanode at {address} of which up is {is_up}")),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(format!("{:?} {}", status.code(), status.message())),
        Err(_) => Err("no answer".into()),
    }
}

/// Carries out orders, again and again until they are done or overtaken.
pub(crate) async fn operator(shared: Shared) -> HostResult {
    while shared.phase() == Phase::Work || shared.with(|world| !world.orders.is_empty()) {
        let next = shared.with(|world| world.orders.front().copied());
        if let Some(order) = next {
            let (index, up, action, force) = match order {
                Order::Drain(index) => (index, true, v1::NodeAction::Drain, false),
                Order::Undrain(index) => (index, true, v1::NodeAction::Undrain, false),
                Order::RemoveLost(index) => (index, false, v1::NodeAction::Remove, true),
            };
            let done = ask(&crate::knobs::datanode_address(&format!("d{index}")), up, action, force).await;
            shared.event(format_args!("operator: {order:?}: {done:?}"));
            if done.is_ok() {
                shared.with(|world| {
                    world.orders.pop_front();
                    match order {
                        Order::Drain(index) => {
                            world.standings[index] = Standing::Leaves;
                            *world.faults.entry("datanodes drained").or_default() += 1;
                        }
                        Order::Undrain(index) => world.standings[index] = Standing::Serves,
                        Order::RemoveLost(_) => {}
                    }
                });
            }
        }
        clock::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// What was done, by kind.
pub(crate) type Figures = BTreeMap<&'static str, u64>;
