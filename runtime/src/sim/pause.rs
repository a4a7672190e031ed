//! Machines that stand still for a while: clocks go on, packets wait, and nothing runs.
//!
//! Every wait of a process ends at one of our seams: time, connections, threads. While its machine is paused each of
//! them stays pending, so whatever else still runs there comes to rest at its next wait. All of it goes on in a random
//! order, since it is a matter of luck what a process that was stopped finds first: a timer that has run out, or what
//! came meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::runtime::{Handle, Id};

use crate::random;

thread_local! {
    /// Names of the processes, by what runs them.
    static NAMES: RefCell<HashMap<Id, String>> = RefCell::default();
    /// Who waits in each machine that stands still.
    static PAUSED: RefCell<BTreeMap<String, Vec<Waker>>> = const { RefCell::new(BTreeMap::new()) };
    static ANY: Cell<bool> = const { Cell::new(false) };
}

/// Says on which machine the calling process runs.
pub fn name_machine(name: &str) {
    if let Ok(handle) = Handle::try_current() {
        NAMES.with_borrow_mut(|names| names.insert(handle.id(), name.to_owned()));
    }
}

/// Stops a machine. Nothing happens when it stands still already.
pub fn pause(name: &str) {
    PAUSED.with_borrow_mut(|paused| {
        paused.entry(name.to_owned()).or_default();
    });
    ANY.set(true);
}

/// Lets a machine go on. Nothing happens when it does not stand still.
pub fn resume(name: &str) {
    let waiting = PAUSED.with_borrow_mut(|paused| paused.remove(name));
    ANY.set(PAUSED.with_borrow(|paused| !paused.is_empty()));
    let mut waiting = waiting.unwrap_or_default();
    while !waiting.is_empty() {
        let next = random::below(waiting.len() as u64) as usize;
        waiting.swap_remove(next).wake();
    }
}

/// Pending while the machine stands still.
pub(crate) fn poll_running(cx: &mut Context<'_>) -> Poll<()> {
    if !ANY.get() {
        return Poll::Ready(());
    }
    let Ok(handle) = Handle::try_current() else { return Poll::Ready(()) };
    let name = NAMES.with_borrow(|names| names.get(&handle.id()).cloned());
    PAUSED.with_borrow_mut(|paused| match name.and_then(|name| paused.get_mut(&name)) {
        Some(waiting) => {
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        }
        None => Poll::Ready(()),
    })
}

/// A future that is not polled while its machine stands still.
pub(crate) async fn while_running<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        ready!(poll_running(cx));
        future.as_mut().poll(cx)
    })
    .await
}
