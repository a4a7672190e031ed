//! Random numbers: one source for the process, so that a run can be repeated from its seed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

static SOURCE: Mutex<Option<StdRng>> = Mutex::new(None);

/// Makes everything drawn from here on repeatable.
pub fn seed(seed: u64) {
    *SOURCE.lock().unwrap_or_else(PoisonError::into_inner) = Some(StdRng::seed_from_u64(seed));
}

fn with_source<T>(draw: impl FnOnce(&mut StdRng) -> T) -> T {
    let mut source = SOURCE.lock().unwrap_or_else(PoisonError::into_inner);
    draw(source.get_or_insert_with(StdRng::from_os_rng))
}

/// A new UUID (version 4).
pub fn uuid() -> Uuid {
    uuid::Builder::from_random_bytes(with_source(Rng::random)).into_uuid()
}

/// A number from 0 up to `bound`, which itself is left out; 0 when `bound` is 0.
pub fn below(bound: u64) -> u64 {
    if bound == 0 { 0 } else { with_source(|rng| rng.random_range(0..bound)) }
}

/// A number in `[0, 1)`.
pub fn unit() -> f64 {
    with_source(Rng::random)
}

/// `duration` give or take half of it, so that many waiters do not come back together.
pub fn jitter(duration: Duration) -> Duration {
    duration.mul_f64(0.5 + unit())
}
