use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ops::tests::tx;
use crate::store::{Counter, Members as SetMembers};

fn chunk_id(id: u64) -> ChunkId {
    ChunkId::new(id).unwrap()
}

fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

fn duty() -> impl Strategy<Value = Duty> {
    prop_oneof![Just(Duty::Must), Just(Duty::May), Just(Duty::None)]
}

proptest! {
    /// Each id alone says what it is, whatever stands beside it.
    #[test]
    fn a_merge_says_of_each_id_what_looking_at_it_alone_says(
        rows in proptest::collection::btree_map(1..60u64, (1..4u64, duty()), 0..30),
        copies in proptest::collection::btree_map(1..60u64, (1..4u64, any::<bool>(), any::<bool>()), 0..30),
    ) {
        let expected: Vec<_> = rows
            .iter()
            .map(|(&id, &(length, duty))| Expected { chunk: chunk_id(id), length, duty })
            .collect();
        let held: Vec<_> = copies
            .iter()
            .map(|(&chunk, &(length, quarantined, trash))| v1::HeldChunk { chunk, length, quarantined, trash })
            .collect();
        let difference = compare(&expected, &held);
        for id in 1..60 {
            let found = [&difference.missing, &difference.bad, &difference.trashed, &difference.extra]
                .map(|ids| ids.contains(&chunk_id(id)));
            let wanted = match (rows.get(&id), copies.get(&id)) {
                (Some((_, Duty::Must)), None) => [true, false, false, false],
                (Some((_, Duty::Must)), Some((_, _, true))) => [false, false, true, false],
                (Some((length, Duty::Must)), Some((stored, quarantined, _))) => {
                    [false, *quarantined || stored != length, false, false]
                }
                (None | Some((_, Duty::None)), Some((_, _, trash))) => [false, false, false, !trash],
                (Some((_, Duty::May)), _) | (None | Some(_), None) => [false; 4],
            };
            prop_assert_eq!(found, wanted, "id {}", id);
        }
    }
}

#[test]
fn only_what_must_be_there_becomes_a_fault_and_only_once() {
    let mut tx = tx();
    let state = |number, state| crate::store::Member { node: node(number), state };
    let set = ReplicaSet {
        id: ReplicaSetId::new(1).unwrap(),
        members: SetMembers(vec![
            state(1, MemberState::Active),
            state(2, MemberState::Backfilling),
            state(3, MemberState::Leaving),
        ]),
        replicas: 3,
        min_replicas: 2,
        epoch: 1,
    };
    tx.put(set);
    tx.put(Chunk {
        id: chunk_id(5),
        replica_set: ReplicaSetId::new(1).unwrap(),
        length: 9,
        crc32c: 0,
        live: 9,
        faults: 0,
        created_ns: 0,
    });
    // Chunk 6 was deleted meanwhile.
    let chunks = [chunk_id(5), chunk_id(6)];
    assert_eq!(record_missing(&mut tx, node(1), &chunks).unwrap(), 1);
    assert_eq!(record_missing(&mut tx, node(1), &chunks).unwrap(), 0);
    assert_eq!(record_missing(&mut tx, node(2), &chunks).unwrap(), 0);
    assert_eq!(record_missing(&mut tx, node(3), &chunks).unwrap(), 1);
    assert_eq!(record_missing(&mut tx, node(4), &chunks).unwrap(), 0);
    let chunk: Chunk = tx.find(&Key::Chunk(chunk_id(5))).unwrap().unwrap();
    let faults: Counter = tx.find(&Key::Counter(crate::store::Count::Faults)).unwrap().unwrap();
    assert_eq!((chunk.faults, faults.value), (2, 2));
}
