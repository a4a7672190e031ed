//! Faults that outlast a session: its client was told nothing, or too late, and goes on in another one. Most begin
//! while a client changes names in quick succession, so that several changes are on their way together.

use std::time::Duration;

use cairn_runtime::sim;
use rand::Rng;
use turmoil::Sim;

use super::{Cure, Faults};
use crate::knobs::COORDINATOR;

/// The coordinator looks this often for sessions that are over.
const ROUND: Duration = Duration::from_millis(600);
/// After silence, a client needs so long at most to notice it, and to be in a session again, beside two leases.
const RETURN_MAX: Duration = Duration::from_secs(3);

/// What is to befall a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// Its requests are executed, the answers are lost, and then it is cut off.
    AnswersLost,
    /// Everything between it and the coordinator comes after its session has ended.
    AnswersLate,
    /// It stands still.
    Paused,
}

/// A silence that begins with the next rotation of names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ambush {
    silence: Silence,
    client: usize,
    /// How often the client had rotated names before.
    rotations: u64,
}

impl Faults {
    /// Sees to it that the answers to a client's changes of names are lost, or late.
    pub(super) fn lie_in_wait(&mut self) {
        let client = self.rng.random_range(0..self.clients);
        let silence = match self.rng.random_range(0..4) {
            0 | 1 => Silence::AnswersLost,
            2 => Silence::AnswersLate,
            _ => Silence::Paused,
        };
        let rotations = self.shared.with(|world| world.rotations[client]);
        self.ambush = Some(Ambush { silence, client, rotations });
    }

    /// To be called after each step: begins what waits for a rotation of names.
    pub(super) fn spring(&mut self, now: Duration) {
        let has_begun =
            |ambush: &mut Ambush| self.shared.with(|world| world.rotations[ambush.client] > ambush.rotations);
        if let Some(ambush) = self.ambush.take_if(has_begun) {
            let pause = self.pause(0, 150);
            self.cures.push((now + pause, Cure::Silence(ambush.silence, ambush.client)));
        }
    }

    /// Longer than the coordinator waits for a client.
    fn longer_than_session(&mut self) -> Duration {
        self.lease + ROUND + self.pause(0, 4000)
    }

    pub(super) fn begin_silence(
        &mut self,
        sim: &mut Sim<'_>,
        now: Duration,
        silence: Silence,
        client: usize,
    ) {
        let (host, time) = (format!("u{client}"), self.longer_than_session());
        if self.down.contains_key(&host) {
            return;
        }
        self.put_at_risk(&host, now + time);
        let link = (COORDINATOR.to_owned(), host.clone());
        match silence {
            Silence::AnswersLost => {
                self.event("answers lost with their session", &format!("no answer comes to {host}"));
                sim.partition_oneway(COORDINATOR, host.as_str());
                let pause = self.pause(20, 400);
                self.cures.push((now + pause, Cure::CutOff(host)));
                self.cures.push((now + pause + time, Cure::Repair(link.0, link.1)));
            }
            Silence::AnswersLate => {
                self.event("answers that outlast their session", &format!("answers to {host} are late"));
                sim.hold(COORDINATOR, host.as_str());
                self.cures.push((now + time, Cure::Release(link.0, link.1)));
            }
            Silence::Paused => self.pause_machine(now, &host, time),
        }
    }

    /// The coordinator or a client stands still, in most cases for longer than a session lasts.
    pub(super) fn pause_one(&mut self, now: Duration) {
        let host = match self.rng.random_bool(0.6) {
            true => COORDINATOR.to_owned(),
            false => format!("u{}", self.rng.random_range(0..self.clients)),
        };
        let time = match self.rng.random_bool(0.25) {
            true => self.lease.mul_f64(self.rng.random_range(0.1..1.0)),
            false => self.longer_than_session(),
        };
        if self.down.contains_key(&host) {
            return;
        }
        // A coordinator that stood still has ended no session for that.
        if host != COORDINATOR {
            self.put_at_risk(&host, now + time);
        }
        self.pause_machine(now, &host, time);
    }

    fn pause_machine(&mut self, now: Duration, host: &str, time: Duration) {
        let kind = if host == COORDINATOR { "pauses of the coordinator" } else { "pauses of clients" };
        self.event(kind, &format!("{host} stands still for {time:?}"));
        sim::pause(host);
        self.cures.push((now + time, Cure::Resume(host.to_owned())));
    }

    /// What goes wrong at a machine until `end` may end sessions: that of a client, or all of them.
    pub(super) fn put_at_risk(&self, host: &str, end: Duration) {
        let until = end + self.lease * 2 + RETURN_MAX;
        self.shared.with(|world| {
            for (index, at_risk) in world.at_risk.iter_mut().enumerate() {
                if host == COORDINATOR || host == format!("u{index}") {
                    *at_risk = until.max(*at_risk);
                }
            }
        });
    }

    /// The same for a link: only one to the coordinator keeps a session alive.
    pub(super) fn put_link_at_risk(&self, a: &str, b: &str, end: Duration) {
        match (a, b) {
            (COORDINATOR, client) | (client, COORDINATOR) => self.put_at_risk(client, end),
            _ => {}
        }
    }
}
