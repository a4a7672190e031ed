//! What a simulation decides for the processes in it: wall clocks, delays of disks and threads, pauses of machines.
//!
//! Everything runs on one thread, so plain thread-local state is enough and repeats with the seed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::random;

mod pause;

pub use pause::{name_machine, pause, resume};
pub(crate) use pause::{poll_running, while_running};

/// The wall clock of a simulation starts here, ns since the Unix epoch.
const EPOCH_NS: i64 = 1_800_000_000_000_000_000;

thread_local! {
    static SKEWS: RefCell<BTreeMap<String, i64>> = const { RefCell::new(BTreeMap::new()) };
    static DELAY_MAX: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Sets the wall clock of the simulated process that calls off by so many nanoseconds.
pub fn skew_wall_clock(skew_ns: i64) {
    SKEWS.with_borrow_mut(|skews| skews.insert(process(), skew_ns));
}

/// Sets the longest delay of work on disks and threads.
pub fn set_delay_max(longest: Duration) {
    DELAY_MAX.set(longest);
}

/// The simulated process whose code is running; none: the one that drives the simulation.
fn process() -> String {
    tokio::runtime::Handle::try_current().map(|handle| handle.id().to_string()).unwrap_or_default()
}

/// Waits as long as work on a thread takes, most of it short.
pub(crate) async fn delay() {
    while_running(undisturbed_delay()).await;
}

async fn undisturbed_delay() {
    let longest = DELAY_MAX.get();
    let share = random::unit();
    let delay = longest.mul_f64(share * share * share);
    if delay >= Duration::from_millis(1) {
        tokio::time::sleep(delay).await;
    } else {
        tokio::task::yield_now().await;
    }
}

/// Now, by the clock on the wall of this process.
pub fn wall_ns() -> i64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    let skew = SKEWS.with_borrow(|skews| skews.get(&process()).copied().unwrap_or(0));
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX).saturating_add(EPOCH_NS).saturating_add(skew)
}
