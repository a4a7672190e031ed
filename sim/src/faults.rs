//! What goes wrong, and when. The driver takes one action after another between steps of the
//! simulation and undoes each after a while.
//!
//! Faults stay within what is promised: every node may crash or lose power at any time, all of them
//! at once, too, and disks may refuse to write or to sync. But copies are damaged (bits flipped, reads
//! that fail) on one datanode alone, the victim, so that of three copies never
//! more than one is bad.

mod silence;

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_coordinator::sim::Metadata;
use cairn_runtime::sim as machines;
use rand::Rng;
use rand::rngs::StdRng;
use turmoil::Sim;

use crate::disk::{SimDisk, Trouble};
use crate::fleet::{Fleet, Order, Standing};
use crate::knobs::{COORDINATOR, Knobs};
use crate::world::Shared;
use silence::{Ambush, Silence};

/// A datanode that has nothing yet needs room to write down who it is.
const DISK_MIN: u64 = 256 << 10;
/// Counts what power cuts took; no fault of its own.
pub(crate) const LOST_PAGES: &str = "unsynced pages lost";

/// What a fault is undone by, or what is to be done at a time.
#[derive(Debug, Clone)]
enum Cure {
    Start(String),
    Repair(String, String),
    Release(String, String),
    Calm(usize),
    Grow(usize),
    Order(Order),
    Resume(String),
    /// Begins what waited for a client to change names.
    Silence(Silence, usize),
    /// The client does not reach the coordinator any more either.
    CutOff(String),
}

/// The cluster's machines, and what is wrong with them.
pub(crate) struct Faults {
    shared: Shared,
    rng: StdRng,
    every: Duration,
    capacity: u64,
    lease: Duration,
    ambush: Option<Ambush>,
    pub(crate) metadata: Metadata,
    /// Disks of each datanode.
    pub(crate) disks: Vec<Vec<SimDisk>>,
    clients: usize,
    victim: usize,
    /// When the last datanode starts for the first time.
    joins: Option<Duration>,
    /// When the victim's disks are to go.
    lost: Option<Duration>,
    /// The other datanodes do not hear of it any more.
    isolated: bool,
    back: Option<Duration>,
    next: Duration,
    cures: Vec<(Duration, Cure)>,
    down: BTreeMap<String, ()>,
    /// Errors of the disks of each datanode when it was last looked after.
    errors: BTreeMap<usize, u64>,
}

/// Whether unsynced writes are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    Process,
    Power,
}

impl Faults {
    pub(crate) fn new(
        shared: Shared,
        knobs: &Knobs,
        metadata: Metadata,
        disks: Vec<Vec<SimDisk>>,
        victim: usize,
        fleet: &Fleet,
        rng: StdRng,
    ) -> Self {
        shared.with(|world| world.standings = vec![Standing::Serves; disks.len()]);
        let drained = fleet.drained.map(|(node, at)| (at, Cure::Order(Order::Drain(node))));
        let undrained = fleet.drained.zip(fleet.undrained);
        let undrained = undrained.map(|((node, _), at)| (at, Cure::Order(Order::Undrain(node))));
        let removed = fleet.removed.map(|at| (at, Cure::Order(Order::RemoveLost(victim))));
        Self {
            shared,
            every: knobs.fault_every,
            capacity: knobs.disk_capacity,
            lease: knobs.lease,
            ambush: None,
            metadata,
            disks,
            clients: knobs.clients,
            victim,
            joins: fleet.joins,
            lost: fleet.lost,
            isolated: false,
            back: fleet.back,
            next: Duration::from_secs(3),
            cures: drained.into_iter().chain(undrained).chain(removed).collect(),
            down: BTreeMap::new(),
            errors: BTreeMap::new(),
            rng,
        }
    }

    fn hosts(&self) -> Vec<String> {
        let datanodes = (0..self.disks.len()).map(|index| format!("d{index}"));
        let clients = (0..self.clients).map(|index| format!("u{index}"));
        std::iter::once(COORDINATOR.to_owned()).chain(datanodes).chain(clients).collect()
    }

    fn pause(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(least_ms..=most_ms))
    }

    /// To be called after each step.
    pub(crate) fn tick(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let due: Vec<Cure> = {
            let (due, later) = std::mem::take(&mut self.cures).into_iter().partition(|(at, _)| *at <= now);
            self.cures = later;
            let due: Vec<(Duration, Cure)> = due;
            due.into_iter().map(|(_, cure)| cure).collect()
        };
        for cure in due {
            self.cure(sim, now, cure);
        }
        self.spring(now);
        if self.joins.take_if(|at| now >= *at).is_some() {
            let name = format!("d{}", self.disks.len() - 1);
            self.event("datanodes joined", &format!("{name} joins"));
        }
        if self.lost.is_some_and(|at| now >= at) {
            self.lose_victim(sim, now);
        }
        if now >= self.next {
            let share: f64 = self.rng.random_range(0.2..1.8);
            self.next = now + self.every.mul_f64(share);
            self.strike(sim, now);
        }
    }

    fn event(&mut self, kind: &'static str, what: &str) {
        self.shared.event(format_args!("FAULT {what}"));
        self.shared.with(|world| *world.faults.entry(kind).or_default() += 1);
    }

    /// The machine with damaged copies goes, and all its disks with it.
    fn lose_victim(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let host = format!("d{}", self.victim);
        // First nobody hears of it any more but clients: what it says then, it says alone.
        if !std::mem::replace(&mut self.isolated, true) {
            let pause = self.pause(500, 8000);
            let drops = self.rng.random_bool(0.7);
            let others: Vec<String> =
                self.hosts().into_iter().filter(|other| other.starts_with('d') && *other != host).collect();
            for other in others {
                if drops {
                    sim.partition(host.as_str(), other.as_str());
                    self.cures.push((now + pause, Cure::Repair(host.clone(), other)));
                } else {
                    sim.hold(host.as_str(), other.as_str());
                    self.cures.push((now + pause, Cure::Release(host.clone(), other)));
                }
            }
            self.lost = Some(now + pause);
            return;
        }
        self.lost = None;
        self.event("datanodes lost for good", &format!("{host} loses its disks"));
        self.crash(sim, &host, Crash::Power);
        self.disks[self.victim].iter().for_each(SimDisk::wipe);
        // Whatever was to start it again comes too early now.
        self.cures.retain(|(_, cure)| !matches!(cure, Cure::Start(other) if *other == host));
        self.down.insert(host.clone(), ());
        match self.back {
            Some(at) => self.cures.push((at.max(now), Cure::Start(host))),
            None => self.shared.with(|world| world.standings[self.victim] = Standing::Gone),
        }
    }

    fn strike(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let hosts = self.hosts();
        let datanode = self.rng.random_range(0..self.disks.len());
        match self.rng.random_range(0..114) {
            0..22 => {
                let crash = if self.rng.random_bool(0.6) { Crash::Power } else { Crash::Process };
                self.crash_for_a_while(sim, now, &format!("d{datanode}"), crash);
            }
            22..32 => self.crash_for_a_while(sim, now, COORDINATOR, Crash::Power),
            32..40 => {
                let client = format!("u{}", self.rng.random_range(0..self.clients));
                self.crash_for_a_while(sim, now, &client, Crash::Power);
            }
            40..46 => {
                self.event("power cuts of everything", "the services lose power");
                for host in hosts.iter().filter(|host| !host.starts_with('u')) {
                    self.crash_for_a_while(sim, now, host, Crash::Power);
                }
            }
            46..64 => self.cut_link(sim, now, &hosts),
            64..74 => self.hold_link(sim, now, &hosts),
            74..82 => self.flip_bits(),
            82..87 => {
                let trouble = self.some_trouble(datanode);
                self.trouble(now, datanode, trouble);
            }
            // One batch of disks, with one flaw.
            87..89 => {
                let sync = self.rng.random_range(0.3..1.0);
                for each in 0..self.disks.len() {
                    self.trouble(now, each, Trouble { read: 0.0, write: 0.0, sync });
                }
            }
            89..94 => self.fill(now, datanode),
            100..107 => self.lie_in_wait(),
            107..114 => self.pause_one(now),
            _ => {
                // A partition of one node from all others.
                let alone = hosts[self.rng.random_range(0..hosts.len())].clone();
                let pause = self.pause(200, 6000);
                self.event("nodes cut off", &format!("{alone} is alone"));
                self.put_at_risk(&alone, now + pause);
                for other in hosts.iter().filter(|host| **host != alone) {
                    sim.partition(alone.as_str(), other.as_str());
                    self.cures.push((now + pause, Cure::Repair(alone.clone(), other.clone())));
                }
            }
        }
    }

    fn crash_for_a_while(&mut self, sim: &mut Sim<'_>, now: Duration, host: &str, crash: Crash) {
        if self.down.contains_key(host) {
            return;
        }
        let kind = if crash == Crash::Power { "power cuts" } else { "process crashes" };
        self.event(kind, &format!("{host} crashes ({crash:?})"));
        self.crash(sim, host, crash);
        let pause = match self.rng.random_range(0..4) {
            0 => self.pause(2000, 12_000),
            _ => self.pause(20, 2500),
        };
        self.put_at_risk(host, now + pause);
        self.down.insert(host.to_owned(), ());
        self.cures.push((now + pause, Cure::Start(host.to_owned())));
    }

    /// The disk goes first, so that nothing that happens while the process is taken apart reaches it.
    fn crash(&mut self, sim: &mut Sim<'_>, host: &str, crash: Crash) {
        machines::resume(host);
        let power = crash == Crash::Power;
        let mut lost = 0;
        if host == COORDINATOR {
            if power {
                self.metadata.crash();
            }
        } else if let Some(index) = host.strip_prefix('d').and_then(|text| text.parse::<usize>().ok()) {
            lost = self.disks[index].iter().map(|disk| disk.crash(power)).sum();
        }
        self.shared.with(|world| {
            world.stops.remove(host);
            *world.faults.entry(LOST_PAGES).or_default() += lost;
        });
        sim.crash(host);
    }

    /// Two machines; often the coordinator and a client, whose answers then get lost.
    fn two(&mut self, hosts: &[String]) -> (String, String) {
        if self.rng.random_bool(0.25) {
            return (COORDINATOR.to_owned(), format!("u{}", self.rng.random_range(0..self.clients)));
        }
        let a = self.rng.random_range(0..hosts.len());
        let b = (a + self.rng.random_range(1..hosts.len())) % hosts.len();
        (hosts[a].clone(), hosts[b].clone())
    }

    fn cut_link(&mut self, sim: &mut Sim<'_>, now: Duration, hosts: &[String]) {
        let (a, b) = self.two(hosts);
        let pause = self.pause(100, 8000);
        self.put_link_at_risk(&a, &b, now + pause);
        if self.rng.random_bool(0.5) {
            self.event("partitions", &format!("{a} and {b} are cut off"));
            sim.partition(a.as_str(), b.as_str());
        } else {
            self.event("one-way partitions", &format!("nothing goes from {a} to {b}"));
            sim.partition_oneway(a.as_str(), b.as_str());
        }
        self.cures.push((now + pause, Cure::Repair(a, b)));
    }

    fn hold_link(&mut self, sim: &mut Sim<'_>, now: Duration, hosts: &[String]) {
        let (a, b) = self.two(hosts);
        self.event("delays", &format!("{a} and {b} are slow"));
        sim.hold(a.as_str(), b.as_str());
        let pause = self.pause(50, 3000);
        self.put_link_at_risk(&a, &b, now + pause);
        self.cures.push((now + pause, Cure::Release(a, b)));
    }

    fn flip_bits(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            let disk = self.rng.random_range(0..self.disks[self.victim].len());
            if let Some((path, offset)) = self.disks[self.victim][disk].flip_bit("segments") {
                self.event(
                    "bits flipped",
                    &format!("a bit of d{} {} flips at {offset}", self.victim, path.display()),
                );
            }
        }
    }

    fn some_trouble(&mut self, datanode: usize) -> Trouble {
        let some = |rng: &mut StdRng| if rng.random_bool(0.5) { rng.random_range(0.0..0.6) } else { 0.0 };
        let (write, sync) = (some(&mut self.rng), some(&mut self.rng));
        let read = if datanode == self.victim { some(&mut self.rng) } else { 0.0 };
        Trouble { read, write, sync }
    }

    fn trouble(&mut self, now: Duration, datanode: usize, trouble: Trouble) {
        self.event("disks with errors", &format!("d{datanode} has trouble with its disks: {trouble:.1?}"));
        self.disks[datanode].iter().for_each(|disk| disk.set_trouble(trouble));
        let pause = self.pause(200, 3000);
        self.cures.push((now + pause, Cure::Calm(datanode)));
    }

    fn fill(&mut self, now: Duration, datanode: usize) {
        self.event("full disks", &format!("the disks of d{datanode} are full"));
        self.disks[datanode].iter().for_each(|disk| disk.set_capacity(disk.used().max(DISK_MIN)));
        let pause = self.pause(500, 6000);
        self.cures.push((now + pause, Cure::Grow(datanode)));
    }

    fn cure(&mut self, sim: &mut Sim<'_>, now: Duration, cure: Cure) {
        match cure {
            Cure::Start(host) => {
                self.down.remove(&host);
                sim.bounce(host.as_str());
            }
            Cure::Repair(a, b) => {
                sim.repair(a.as_str(), b.as_str());
            }
            Cure::Release(a, b) => sim.release(a.as_str(), b.as_str()),
            Cure::Calm(datanode) => {
                self.disks[datanode].iter().for_each(|disk| disk.set_trouble(Trouble::default()));
                // A disk that failed is not used again until its node is started anew.
                let host = format!("d{datanode}");
                let errors: u64 = self.disks[datanode].iter().map(SimDisk::errors).sum();
                let failed = self.errors.insert(datanode, errors).unwrap_or(0) < errors;
                if failed && !self.down.contains_key(&host) {
                    self.shared.event(format_args!("{host} is started anew"));
                    self.crash(sim, &host, Crash::Process);
                    sim.bounce(host.as_str());
                }
            }
            Cure::Resume(host) => machines::resume(&host),
            Cure::Silence(silence, client) => self.begin_silence(sim, now, silence, client),
            Cure::CutOff(client) => sim.partition(COORDINATOR, client.as_str()),
            Cure::Order(order) => self.shared.with(|world| world.orders.push_back(order)),
            Cure::Grow(datanode) => {
                self.disks[datanode].iter().for_each(|disk| disk.set_capacity(self.capacity));
            }
        }
    }

    /// Everything is put right.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>) {
        self.shared.event(format_args!("all is healed"));
        for (_, cure) in std::mem::take(&mut self.cures) {
            if !matches!(cure, Cure::Silence(..) | Cure::CutOff(_)) {
                self.cure(sim, Duration::ZERO, cure);
            }
        }
        // A disk that failed is not used again until its node is started anew.
        for index in 0..self.disks.len() {
            let node = format!("d{index}");
            let failed = self.disks[index].iter().any(|disk| disk.errors() > 0);
            if failed && !self.down.contains_key(&node) {
                self.crash(sim, &node, Crash::Process);
                sim.bounce(node.as_str());
            }
        }
    }

    /// The last power cut, of all services at once; then they come back.
    pub(crate) fn cut_all_power(&mut self, sim: &mut Sim<'_>) {
        self.event("power cuts of everything", "all services lose power");
        let here = |host: &String| !host.starts_with('u') && !self.down.contains_key(host);
        let hosts: Vec<String> = self.hosts().into_iter().filter(here).collect();
        for host in &hosts {
            self.crash(sim, host, Crash::Power);
        }
        for host in &hosts {
            sim.bounce(host.as_str());
        }
    }
}
