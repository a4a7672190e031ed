//! One run of one seed.

use std::time::Duration;

use cairn_coordinator::sim::Metadata;
use cairn_runtime::{random, sim};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use turmoil::Sim;

use crate::disk::SimDisk;
use crate::faults::{Faults, LOST_PAGES};
use crate::fleet::{self, Figures, Fleet, Standing};
use crate::knobs::{COORDINATOR, Knobs};
use crate::trace::Trace;
use crate::world::{Counts, Phase, Shared};
use crate::{hosts, judge, os, watch};

/// Futures of whole services are large in debug builds.
const STACK: usize = 64 << 20;
/// Time goes on in steps of this length.
const TICK: Duration = Duration::from_millis(2);
/// Clients of a healed cluster get done within this time.
const FINISH_MAX: Duration = Duration::from_secs(150);
/// The judge gets done within this time.
const JUDGE_MAX: Duration = Duration::from_secs(600);
/// Services end in order within this time.
const END_MAX: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// How long things go wrong, in simulated time.
    pub time: Duration,
    /// Show each event.
    pub print: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Of all events and all randomness taken; the same in each run of a seed.
    pub digest: u64,
    /// Promises that were broken.
    pub violations: Vec<String>,
    /// What was done, in words.
    pub summary: String,
    /// What was done, by kind.
    pub figures: Figures,
    /// Whether enough happened for the run to count.
    pub counts: bool,
}

/// Runs one seed. Only once in a process: state of libraries is carried over. On a thread of its own, so
/// that what the caller has done (reading arguments, setting up logs) makes no difference.
pub fn run(plan: Plan) -> Report {
    let ended =
        std::thread::Builder::new().name("simulation".into()).stack_size(STACK).spawn(move || run_here(plan));
    match ended.map(std::thread::JoinHandle::join) {
        Ok(Ok(report)) => report,
        _ => Report {
            digest: 0,
            violations: vec!["the simulation could not be run".into()],
            summary: String::new(),
            figures: Figures::new(),
            counts: false,
        },
    }
}

fn run_here(plan: Plan) -> Report {
    os::seed(plan.seed ^ 0x5eed);
    random::seed(plan.seed);
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let knobs = Knobs::new(&mut rng);
    sim::set_delay_max(knobs.disk_delay_max);
    let shared = Shared::new(Trace::new(plan.print), knobs.clients);
    shared.event(format_args!("seed {} {knobs:?}", plan.seed));
    let mut run = Run::new(plan, knobs, shared, rng);
    run.run();
    run.report()
}

struct Run<'a> {
    plan: Plan,
    knobs: Knobs,
    shared: Shared,
    sim: Sim<'a>,
    faults: Faults,
}

impl Run<'_> {
    fn new(plan: Plan, knobs: Knobs, shared: Shared, mut rng: StdRng) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(rng.random())
            .tick_duration(TICK)
            .simulation_duration(plan.time + FINISH_MAX + JUDGE_MAX + END_MAX * 2)
            .min_message_latency(Duration::from_micros(100))
            .max_message_latency(knobs.latency_max)
            .tcp_capacity(1 << 16)
            .enable_random_order()
            .build();
        let metadata = Metadata::new();
        let skew_most = i64::try_from(knobs.skew_max.as_nanos()).unwrap_or(0).max(1);
        let mut skew = || rng.random_range(-skew_most..skew_most);
        let coordinator_skew = skew();
        {
            let (shared, knobs, metadata) = (shared.clone(), knobs.clone(), metadata.clone());
            sim.host(COORDINATOR, move || {
                hosts::coordinator(shared.clone(), knobs.clone(), metadata.clone(), coordinator_skew)
            });
        }
        let mut faults_rng = StdRng::seed_from_u64(!plan.seed);
        let victim = faults_rng.random_range(0..knobs.datanodes);
        let fleet = Fleet::new(&knobs, victim, plan.time, &mut faults_rng);
        shared.event(format_args!("victim d{victim}, {fleet:?}"));
        let mut disks = Vec::new();
        for index in 0..fleet.datanodes {
            let name = format!("d{index}");
            let joins = fleet.joins.filter(|_| index == knobs.datanodes).unwrap_or_default();
            let skew = skew();
            let of_node: Vec<SimDisk> = (0..knobs.disks)
                .map(|disk| {
                    let seed = plan.seed.wrapping_mul(31).wrapping_add((index * 8 + disk) as u64);
                    SimDisk::new(format!("/{name}/{disk}"), knobs.disk_capacity, StdRng::seed_from_u64(seed))
                })
                .collect();
            let (shared, knobs, mine) = (shared.clone(), knobs.clone(), of_node.clone());
            sim.host(name.clone(), move || {
                hosts::datanode(shared.clone(), knobs.clone(), name.clone(), mine.clone(), joins, skew)
            });
            disks.push(of_node);
        }
        for index in 0..knobs.clients {
            let skew = skew();
            let seed = plan.seed.wrapping_mul(1009).wrapping_add(index as u64 * 101);
            let (shared, knobs) = (shared.clone(), knobs.clone());
            sim.host(format!("u{index}"), move || {
                hosts::client(shared.clone(), knobs.clone(), index, seed, skew)
            });
        }
        {
            let shared = shared.clone();
            sim.client("operator", fleet::operator(shared));
        }
        sim.client("watch", watch::watch(shared.clone()));
        let faults = Faults::new(shared.clone(), &knobs, metadata, disks, victim, &fleet, faults_rng);
        Self { plan, knobs, shared, sim, faults }
    }

    /// One step. `false`: the simulation itself has failed.
    fn step(&mut self) -> bool {
        os::advance(TICK);
        match self.sim.step() {
            Ok(_) => {
                let now = self.sim.elapsed();
                self.shared.with(|world| world.now = now);
                true
            }
            Err(error) => {
                self.shared.violation(format_args!("the simulation failed: {error}"));
                false
            }
        }
    }

    /// Steps until `done`, at most so long.
    fn step_until(&mut self, limit: Duration, what: &str, done: impl Fn(&Shared) -> bool) -> bool {
        let deadline = self.sim.elapsed() + limit;
        while !done(&self.shared) {
            if self.sim.elapsed() > deadline {
                self.shared.violation(format_args!("{what} within {limit:?}"));
                return false;
            }
            if !self.step() {
                return false;
            }
        }
        true
    }

    fn run(&mut self) {
        while self.sim.elapsed() < self.plan.time {
            if !self.step() {
                return;
            }
            let now = self.sim.elapsed();
            self.faults.tick(&mut self.sim, now);
        }
        self.faults.heal(&mut self.sim);
        self.shared.with(|world| {
            world.phase = Phase::Finish;
            world.ended.clear();
        });
        let clients: Vec<String> = (0..self.knobs.clients).map(|index| format!("u{index}")).collect();
        let all_ended = |names: Vec<String>| {
            move |shared: &Shared| {
                shared.with(|world| names.iter().all(|name| world.ended.contains_key(name)))
            }
        };
        if !self.step_until(FINISH_MAX, "the clients did not get done", all_ended(clients))
            || !self.step_until(FINISH_MAX, "the operator did not get done", |shared| {
                shared.with(|world| world.orders.is_empty())
            })
        {
            return;
        }
        self.faults.cut_all_power(&mut self.sim);
        {
            let (shared, knobs) = (self.shared.clone(), self.knobs.clone());
            let metadata = self.faults.metadata.clone();
            self.sim.client("judge", async move {
                judge::judge(shared, knobs, metadata).await;
                Ok(())
            });
        }
        if !self
            .step_until(JUDGE_MAX, "the judge did not get done", |shared| shared.with(|world| world.judged))
        {
            return;
        }
        self.shared.with(|world| {
            world.ended.clear();
            world.stops.values().for_each(|stop| stop.request());
        });
        let standings = self.shared.with(|world| world.standings.clone());
        let serving = standings.iter().enumerate().filter(|(_, standing)| **standing == Standing::Serves);
        let datanodes = serving.map(|(index, _)| format!("d{index}"));
        let services: Vec<String> = datanodes.chain([COORDINATOR.to_owned()]).collect();
        self.step_until(END_MAX, "the services did not end", all_ended(services));
    }

    fn report(self) -> Report {
        let Self { plan, shared, sim, faults, .. } = self;
        let counts: Counts = shared.with(|world| world.counts);
        let violations = shared.with(|world| std::mem::take(&mut world.violations));
        let mut figures = shared.with(|world| std::mem::take(&mut world.faults));
        let hit: u64 = figures.iter().filter(|(kind, _)| **kind != LOST_PAGES).map(|(_, count)| count).sum();
        let errors: u64 = faults.disks.iter().flatten().map(SimDisk::errors).sum();
        let elapsed = sim.elapsed();
        let events = shared.with(|world| world.trace.events());
        let trace = shared.with(|world| std::mem::replace(&mut world.trace, Trace::new(false)));
        let digest = trace.finish();
        // What is torn down here is no part of the run.
        std::mem::forget(sim);
        figures.extend([
            ("errors of disks", errors),
            ("simulated seconds", elapsed.as_secs()),
            ("operations", counts.operations),
            ("fsyncs acknowledged", counts.synced),
            ("reads compared", counts.read),
            ("operations of unknown outcome", counts.unknown),
        ]);
        Report {
            digest,
            violations,
            summary: format!(
                "{:.0} s, {events} events, {} operations, {} synced, {} read ({} refused), {} unknown, {hit} faults",
                elapsed.as_secs_f64(),
                counts.operations,
                counts.synced,
                counts.read,
                counts.refused_reads,
                counts.unknown,
            ),
            figures,
            counts: counts.synced > 0 && counts.read > 0 && (hit > 1 || plan.time.as_secs() < 5),
        }
    }
}
