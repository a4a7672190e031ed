//! The clock that files get their times from. It is never behind a time that was given to anything or that a client has
//! named (`client/src/clock.rs`), so that a change never looks older than one that was answered before it.

use std::sync::atomic::{AtomicI64, Ordering};

use cairn_proto::CLOCK_KEY;
use cairn_proto::limits::CLOCKS_APART;
use cairn_runtime::clock;
use http::{HeaderMap, HeaderValue};

/// The clock. Never runs backwards while the coordinator runs, and is at most [`CLOCKS_APART`] ahead of the machine's,
/// unless that is set back.
#[derive(Debug, Default)]
pub(crate) struct ClusterClock {
    latest_ns: AtomicI64,
}

impl ClusterClock {
    /// Now, ns since the epoch.
    pub(crate) fn now_ns(&self) -> i64 {
        let wall = clock::wall_ns();
        self.latest_ns.fetch_max(wall, Ordering::AcqRel).max(wall)
    }

    /// A client says that it has performed something at this time. `false`: that is still to come, by more than clocks
    /// may be apart, and is not believed.
    pub(crate) fn accept(&self, at_ns: i64) -> bool {
        let is_possible = at_ns <= clock::wall_ns().saturating_add(clock::nanos(CLOCKS_APART));
        if is_possible {
            self.latest_ns.fetch_max(at_ns, Ordering::AcqRel);
        }
        is_possible
    }

    /// Takes the time that comes with a request.
    pub(crate) fn on_request(&self, headers: &HeaderMap) {
        let named = headers.get(CLOCK_KEY).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(named_ns) = named {
            self.accept(named_ns);
        }
    }

    /// Writes the time into an answer, which shows none that is later.
    pub(crate) fn on_answer(&self, headers: &mut HeaderMap) {
        headers.insert(CLOCK_KEY, HeaderValue::from(self.now_ns()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_clients_name_but_not_far() {
        let clock = ClusterClock::default();
        let now = clock.now_ns();
        let ahead = now + 900_000_000;
        assert!(clock.accept(ahead));
        assert!(clock.now_ns() >= ahead);
        assert!(!clock.accept(now + 1_000_000_000_000));
        assert!(clock.accept(5), "long ago is possible");
        assert!((ahead..ahead + 900_000_000).contains(&clock.now_ns()));
    }
}
