//! What the simulated processes, the driver and the checks share. One thread runs all of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Arguments;
use std::rc::Rc;
use std::time::Duration;

use cairn_runtime::shutdown::Shutdown;

use crate::fleet::{Figures, Order, Standing};
use crate::model::Area;
use crate::trace::Trace;

/// What the simulated programs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Work, while things go wrong.
    Work,
    /// Store what is left, close, and end.
    Finish,
}

/// What was done, so that a run in which nothing happened does not count.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) operations: u64,
    pub(crate) synced: u64,
    pub(crate) read: u64,
    pub(crate) unknown: u64,
    pub(crate) refused_reads: u64,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) phase: Phase,
    pub(crate) trace: Trace,
    pub(crate) counts: Counts,
    /// Faults by kind.
    pub(crate) faults: Figures,
    pub(crate) violations: Vec<String>,
    /// All areas; of each client the last one is in use.
    pub(crate) areas: Vec<Vec<Area>>,
    /// How to end each running service.
    pub(crate) stops: BTreeMap<String, Shutdown>,
    /// Clients that have ended in order.
    pub(crate) ended: BTreeMap<String, usize>,
    pub(crate) judged: bool,
    /// What the operator has to do, in this order.
    pub(crate) orders: VecDeque<Order>,
    /// Datanodes that the judge has removed.
    pub(crate) removed: BTreeSet<String>,
    /// Whether each datanode is to count at the end.
    pub(crate) standings: Vec<Standing>,
    /// How often each client has begun to rotate names.
    pub(crate) rotations: Vec<u64>,
    /// Until when the session of each client may end because of what went wrong so far.
    pub(crate) at_risk: Vec<Duration>,
    /// How many sessions of each client were seen to be over.
    pub(crate) sessions_gone: Vec<u64>,
    /// How often all sessions were looked at.
    pub(crate) looks: u64,
}

/// The shared world.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Rc<RefCell<World>>);

impl Shared {
    pub(crate) fn new(trace: Trace, clients: usize) -> Self {
        Self(Rc::new(RefCell::new(World {
            now: Duration::ZERO,
            phase: Phase::Work,
            trace,
            counts: Counts::default(),
            faults: Figures::new(),
            violations: Vec::new(),
            areas: (0..clients).map(|_| Vec::new()).collect(),
            stops: BTreeMap::new(),
            ended: BTreeMap::new(),
            judged: false,
            orders: VecDeque::new(),
            removed: BTreeSet::new(),
            standings: Vec::new(),
            rotations: vec![0; clients],
            at_risk: vec![Duration::ZERO; clients],
            sessions_gone: vec![0; clients],
            looks: 0,
        })))
    }

    /// Looks at or changes the world. Not across an await.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        work(&mut self.0.borrow_mut())
    }

    pub(crate) fn event(&self, what: Arguments<'_>) {
        let now = turmoil::sim_elapsed();
        self.with(|world| {
            let now = now.unwrap_or(world.now);
            world.trace.event(now, what);
        });
    }

    /// A promise was broken.
    pub(crate) fn violation(&self, what: Arguments<'_>) {
        self.event(format_args!("VIOLATION {what}"));
        self.with(|world| world.violations.push(what.to_string()));
    }

    pub(crate) fn phase(&self) -> Phase {
        self.with(|world| world.phase)
    }
}
