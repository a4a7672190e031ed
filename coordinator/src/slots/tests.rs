use cairn_proto::v1::{ApplyResponse, MutationResult};
use uuid::Uuid;

use super::*;
use crate::ops::tests::tx;
use crate::store::{Count, Counter};

fn session(number: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(number))
}

fn reply(text: String) -> ApplyResponse {
    ApplyResponse { results: vec![MutationResult { message: text, ..MutationResult::default() }] }
}

/// A request whose reply has `bytes`; how often it was executed is counted in `runs`.
fn request(tx: &mut Tx, id: RequestId, changes: bool, bytes: usize, runs: &mut usize) -> ApplyResponse {
    let answer = tx.attempt(|tx| {
        once(tx, &id, Method::Apply, |tx| {
            *runs += 1;
            if changes {
                tx.put(Counter { name: Count::Inodes, value: *runs as u64 });
            }
            Ok(reply("r".repeat(bytes)))
        })
    });
    tx.commit().unwrap();
    answer.unwrap()
}

/// Other sessions leave more replies than are remembered.
fn crowd_out(tx: &mut Tx) {
    let share = tx.context.policy.memory.replies;
    let bytes = 64 << 10;
    for number in 0..2 * share / bytes {
        let other = session(1000 + number as u128);
        tx.context.sessions.open(other, String::new(), true).unwrap();
        let id = RequestId::new(other, 0, 1).unwrap();
        request(tx, id, false, bytes, &mut 0);
        assert!(tx.slots.answered.bytes() <= share);
    }
}

#[test]
fn a_reply_that_was_crowded_out_comes_from_the_store_or_changes_nothing_once_more() {
    let mut tx = tx();
    let one = session(1);
    tx.context.sessions.open(one, String::new(), true).unwrap();
    let [changing, idle] = [0, 1].map(|slot| RequestId::new(one, slot, 1).unwrap());
    let (mut changed, mut idled) = (0, 0);
    for _ in 0..3 {
        request(&mut tx, changing, true, 100, &mut changed);
        request(&mut tx, idle, false, 100, &mut idled);
    }
    assert_eq!((changed, idled), (1, 1), "both are remembered");
    crowd_out(&mut tx);
    let again = request(&mut tx, changing, true, 7, &mut changed);
    assert_eq!((changed, again), (1, reply("r".repeat(100))), "as it was answered");
    request(&mut tx, idle, false, 100, &mut idled);
    assert_eq!(idled, 2);
    // The slots go on where they were.
    for id in [changing, idle] {
        let next = RequestId { sequence: 2, ..id };
        request(&mut tx, next, false, 1, &mut 0);
        let late = tx.attempt(|tx| once(tx, &id, Method::Apply, |_| Ok(ApplyResponse::default())));
        assert_eq!(late.unwrap_err().kind(), ErrorKind::StaleSequence);
    }
}

#[tokio::test]
async fn a_request_that_is_sent_again_waits_for_its_first_attempt_and_no_other_does() {
    let under_way = UnderWay::default();
    let id = |sequence| RequestId::new(SessionId::from_uuid(uuid::Uuid::nil()), 1, sequence).unwrap();
    let first = under_way.enter(id(1)).await;
    let again: Vec<_> = (0..3)
        .map(|_| {
            let under_way = under_way.clone();
            tokio::spawn(async move { drop(under_way.enter(id(1)).await) })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(again.iter().all(|attempt| !attempt.is_finished()));
    drop(under_way.enter(id(2)).await);
    again[1].abort();
    drop(first);
    let mut ended = 0;
    for attempt in again {
        ended += usize::from(attempt.await.is_ok());
    }
    assert_eq!(ended, 2, "one after the other");
    assert!(under_way.0.lock().unwrap().is_empty());
}
