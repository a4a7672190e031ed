//! Looks whether sessions live: one may end only after something went wrong on its client's way to the coordinator.
//! That the coordinator itself stood still is no reason.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::v1;
use cairn_runtime::clock;

use crate::fleet;
use crate::hosts::HostResult;
use crate::world::{Phase, Shared};

const LOOK_EVERY: Duration = Duration::from_millis(300);
/// An answer that takes longer is not waited for.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One session, as it was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    client: usize,
    /// Until when it could end for what had gone wrong before; `None`: it still could.
    safe_since: Option<Duration>,
}

/// Looks until the work is over.
pub(crate) async fn watch(shared: Shared) -> HostResult {
    let mut seen: BTreeMap<Bytes, Seen> = BTreeMap::new();
    while shared.phase() == Phase::Work {
        clock::sleep(LOOK_EVERY).await;
        let Some(sessions) = list().await else { continue };
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let at_risk = shared.with(|world| world.at_risk.clone());
        let view = |info: v1::SessionInfo| {
            let client: usize = info.description.strip_prefix('u')?.parse().ok()?;
            let safe_since = at_risk.get(client).copied().filter(|until| *until < now);
            Some((info.session, Seen { client, safe_since }))
        };
        let present: BTreeMap<Bytes, Seen> = sessions.into_iter().filter_map(view).collect();
        if shared.phase() == Phase::Work {
            for (_, gone) in seen.iter().filter(|(session, _)| !present.contains_key(*session)) {
                shared.with(|world| world.sessions_gone[gone.client] += 1);
                // Of several, those are over soon that nobody was told of, since the answer to the hello was late.
                if seen.values().filter(|other| other.client == gone.client).count() == 1 {
                    judge(&shared, *gone, &at_risk);
                }
            }
        }
        shared.with(|world| world.looks += 1);
        seen = present;
    }
    Ok(())
}

fn judge(shared: &Shared, gone: Seen, at_risk: &[Duration]) {
    if gone.safe_since.is_some() && gone.safe_since == at_risk.get(gone.client).copied() {
        shared.violation(format_args!("a session of u{} has ended without a reason", gone.client));
    }
}

async fn list() -> Option<Vec<v1::SessionInfo>> {
    let mut coordinator = fleet::coordinator().ok()?;
    let status = clock::timeout(ANSWER_MAX, coordinator.get_status(v1::GetStatusRequest::default())).await;
    Some(status.ok()?.ok()?.into_inner().session_list)
}
