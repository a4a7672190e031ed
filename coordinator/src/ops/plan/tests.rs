use uuid::Uuid;

use super::*;
use crate::ops::tests::tx;

const WINDOW: i64 = 600_000_000_000;

fn session(number: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(number))
}

#[test]
fn a_session_that_uses_none_of_its_plans_is_refused_more_until_they_are_over() {
    let mut granted = Granted::default();
    let one = session(1);
    for _ in 0..PLANS_OF_SESSION_MAX / 8 {
        granted.check(one, 5, WINDOW).unwrap();
        granted.add(one, 8);
    }
    assert_eq!(granted.check(one, 6, WINDOW).unwrap_err().kind(), ErrorKind::Overloaded);
    assert!(granted.check(session(2), 6, WINDOW).is_ok(), "others are granted theirs");
    // Those of the window before count until all of them are over.
    assert!(granted.check(one, 5 + WINDOW, WINDOW).is_err());
    assert!(granted.check(one, 5 + 2 * WINDOW, WINDOW).is_ok());
    granted.add(one, PLANS_OF_SESSION_MAX);
    granted.end(one);
    assert!(granted.check(one, 5 + 2 * WINDOW, WINDOW).is_ok());
    assert_eq!(granted.0.len(), 2);
}

#[test]
fn all_plans_that_are_long_over_are_forgotten_step_by_step() {
    let mut tx = tx();
    let steps = 3;
    let live = 10;
    let row = |first: usize, expires_ns| Plan {
        first: ChunkId::new(first as u64).unwrap(),
        count: 1,
        replica_set: ReplicaSetId::new(1).unwrap(),
        epoch: 1,
        session: session(1),
        expires_ns,
        used: Bytes::new(),
    };
    for first in 1..=steps * FORGET_STEP {
        tx.put(row(first, 7));
    }
    for first in 1..=live {
        tx.put(row(steps * FORGET_STEP + first, i64::MAX));
    }
    tx.commit().unwrap();
    let mut taken = 0;
    while tx.attempt(forget_expired).unwrap() {
        assert!(tx.changed_rows() <= FORGET_STEP, "a step stays short");
        tx.commit().unwrap();
        taken += 1;
    }
    tx.commit().unwrap();
    assert_eq!(taken, steps);
    let left: Vec<Plan> = tx.list(&Scan::all(Table::Plan)).unwrap();
    assert_eq!(left.len(), live);
}
