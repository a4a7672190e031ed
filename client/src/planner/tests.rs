//! What the stock promises, without a coordinator.

use super::*;
use crate::map::{Node, ReplicaSet};
use uuid::Uuid;

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

fn session(number: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(number))
}

/// Four nodes; set 1 is {1, 2, 3}, set 2 is {2, 3, 4}.
fn map(down: &[u128]) -> Map {
    let mut map = Map::default();
    for number in 1..=4 {
        let liveness = if down.contains(&number) { Liveness::Down } else { Liveness::Up };
        map.nodes.insert(node(number), Node { address: format!("127.0.0.1:{number}"), liveness });
    }
    for (id, members) in [(1, [1, 2, 3]), (2, [2, 3, 4])] {
        let members = members.into_iter().map(node).collect();
        let set = ReplicaSet { epoch: 1, members, backfilling: Vec::new(), min_replicas: 2 };
        map.sets.insert(ReplicaSetId::new(id).unwrap(), set);
    }
    map
}

fn plan() -> v1::UploadFileResponse {
    let range = |first, set| v1::PlanRange { first, count: 2, set, epoch: 1, token: Bytes::new() };
    v1::UploadFileResponse {
        ranges: vec![range(10, 1), range(20, 2)],
        expires_in_ms: 600_000,
        map: None,
        chunk_size: 8 << 20,
    }
}

fn stocked() -> Stock {
    let mut stock = Stock::default();
    stock.add(session(1), plan()).unwrap();
    stock
}

#[tokio::test]
async fn every_id_is_handed_out_once_and_sets_take_turns() {
    let mut stock = stocked();
    let map = map(&[]);
    let mut taken = Vec::new();
    while let Some(grant) = stock.take(session(1), &map, true) {
        taken.push(grant.chunk.get());
    }
    assert_eq!(taken, [10, 20, 11, 21]);
}

#[tokio::test]
async fn another_session_never_gets_ids_of_this_one() {
    assert_eq!(stocked().take(session(2), &map(&[]), true), None);
}

#[tokio::test]
async fn sets_with_a_bad_member_are_left_out_while_there_are_others() {
    let mut stock = stocked();
    let map = map(&[1]);
    assert_eq!(stock.take(session(1), &map, true).unwrap().chunk.get(), 20);
    stock.avoid.insert(node(4), (clock::now(), Reason::Failed));
    assert_eq!(stock.take(session(1), &map, true), None);
    assert!(stock.take(session(1), &map, false).is_some());
}

#[tokio::test]
async fn too_few_live_members_are_never_enough() {
    let map = map(&[2, 3]);
    assert_eq!(stocked().take(session(1), &map, false), None);
}

#[tokio::test(start_paused = true)]
async fn plans_are_not_used_near_their_end() {
    let mut stock = stocked();
    clock::sleep(Duration::from_secs(541)).await;
    assert_eq!(stock.take(session(1), &map(&[]), true), None);
}

#[tokio::test(start_paused = true)]
async fn a_stock_that_is_used_up_quickly_grows() {
    let mut stock = Stock::default();
    let sizes: Vec<_> = (0..8).map(|_| stock.next_batch()).collect();
    assert_eq!(sizes, [8, 16, 32, 64, 128, 256, 512, 512]);
    clock::sleep(QUICK * 2).await;
    assert_eq!(stock.next_batch(), 256);
}

#[tokio::test(start_paused = true)]
async fn plans_of_a_cluster_that_grants_them_for_a_short_time_are_used_all_the_same() {
    let mut stock = Stock::default();
    stock.add(session(1), v1::UploadFileResponse { expires_in_ms: 10_000, ..plan() }).unwrap();
    assert!(stock.take(session(1), &map(&[]), true).is_some());
    clock::sleep(Duration::from_secs(6)).await;
    assert_eq!(stock.take(session(1), &map(&[]), true), None);
}
