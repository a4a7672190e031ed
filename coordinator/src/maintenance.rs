//! What happens by itself: leases that run out, datanodes that fall silent, plans that expire.

use std::sync::{Arc, Weak};
use std::time::Duration;

use cairn_runtime::clock;

use crate::attendance;
use crate::context::Context;
use crate::error::OpError;
use crate::membership::state::{Event, NodeState};
use crate::metrics;
use crate::ops;
use crate::service::Shared;
use crate::slots::ended;
use crate::store::AdminState;

/// How often overdue work is looked for.
const ROUND: Duration = Duration::from_millis(500);
/// Rounds between two looks at what the metrics show of health: 5 s.
const HEALTH_ROUNDS: u64 = 10;
/// Steps of forgetting expired plans in one round: more than can be granted in the same time.
const PLAN_STEPS: usize = 64;
/// Longest sleep of the watch over datanodes; a registration brings the deadline nearer.
const WATCH: Duration = Duration::from_millis(250);

/// Sessions whose outcomes are forgotten in one round: more than end in that time.
const FORGET_STEPS: usize = 64;

/// Starts the tasks. They hold no strong reference while they sleep, and end with the service.
pub(crate) fn start(shared: &Arc<Shared>) {
    let shutdown = shared.shutdown.clone();
    let (rounds, watch, marks) = (Arc::downgrade(shared), Arc::downgrade(shared), Arc::downgrade(shared));
    let stop = shutdown.requested();
    shutdown.spawn(async move {
        tokio::select! { () = run_rounds(rounds) => {}, () = stop => {} }
    });
    let stop = shutdown.requested();
    shutdown.spawn(async move {
        tokio::select! { () = watch_datanodes(watch) => {}, () = stop => {} }
    });
    let stop = shutdown.requested();
    shutdown.spawn(async move {
        tokio::select! { () = attend(marks) => {}, () = stop => {} }
    });
}

/// Says that this coordinator listens.
async fn attend(shared: Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        shared.context.attendance.mark();
        drop(shared);
        clock::sleep(attendance::TICK).await;
    }
}

async fn watch_datanodes(shared: Weak<Shared>) {
    loop {
        let wait = |context: &Context| {
            let deadline = context.cluster.next_deadline();
            deadline.map_or(WATCH, |deadline| deadline.since(context.attendance.now()).min(WATCH))
        };
        let Some(wait) = shared.upgrade().map(|shared| wait(&shared.context)) else { return };
        clock::sleep(wait).await;
        let Some(shared) = shared.upgrade() else { return };
        let (now, resumed) = shared.context.attendance.look();
        let _ = shared.context.cluster.apply(Event::Deadline { now, resumed });
    }
}

async fn run_rounds(shared: Weak<Shared>) {
    for round in 1u64.. {
        clock::sleep(ROUND).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = run_round(&shared, round).await {
            tracing::warn!(%error, "a round of maintenance failed; it is tried again");
        }
    }
}

async fn run_round(shared: &Shared, round: u64) -> Result<(), OpError> {
    for session in shared.context.sessions.overdue() {
        let ended = shared.executor.run(move |tx| ops::open::end_session(tx, session, true)).await?;
        if ended {
            tracing::warn!(session = %session, "session ended: its lease ran out");
        }
    }
    while let Some((session, orphans)) = shared.context.sessions.take_silent() {
        shared.executor.run(move |tx| ops::open::release(tx, session, &orphans)).await?;
    }
    while shared.context.sessions.forget_ended() {
        tokio::task::yield_now().await;
    }
    for _ in 0..PLAN_STEPS {
        if !shared.executor.run(ops::plan::forget_expired).await? {
            break;
        }
    }
    for _ in 0..FORGET_STEPS {
        if !shared.executor.run(ended::forget_one).await? {
            break;
        }
    }
    if let Some(standing) = shared.context.shipping.standing() {
        metrics::log_behind(standing.behind);
    }
    metrics::sessions(shared.context.sessions.len());
    metrics::leases(shared.context.leases.len(), shared.context.leases.reads_len());
    show_members(shared);
    if round.is_multiple_of(HEALTH_ROUNDS) {
        let codes = crate::service::health(shared).await?;
        metrics::health(|condition| codes.iter().any(|code| code.code == condition.code()));
    }
    Ok(())
}

fn show_members(shared: &Shared) {
    let members = shared.context.cluster.members();
    let serving = || members.nodes.values().filter(|entry| entry.row.admin != AdminState::Out);
    let states = [
        ("up", NodeState::Up),
        ("suspect", NodeState::Suspect),
        ("down", NodeState::Down),
        ("lost", NodeState::Lost),
    ];
    for (name, state) in states {
        metrics::nodes(name, serving().filter(|entry| entry.state == state).count());
    }
}
