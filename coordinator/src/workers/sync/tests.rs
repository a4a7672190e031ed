use cairn_proto::ReplicaSetId;
use uuid::Uuid;

use super::*;
use crate::attendance::Attendance;
use crate::membership::state::Timing;
use crate::store::{Member, Members as SetMembers, ReplicaSet};

fn node(id: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(id))
}

fn chunk() -> ChunkId {
    ChunkId::new(7).unwrap()
}

/// A round for one chunk on a set with these members, of which some have no good copy.
fn round(members: &[(u128, MemberState)], missing: &[u128]) -> Round {
    let id = ReplicaSetId::new(1).unwrap();
    let members = members.iter().map(|&(id, state)| Member { node: node(id), state }).collect();
    let set = ReplicaSet { id, members: SetMembers(members), replicas: 3, min_replicas: 2, epoch: 1 };
    let time = Duration::from_secs(1);
    let timing = Timing { suspect_after: time, down_after: time, lost_after: time };
    let members = Members::new(timing, Vec::new(), vec![set], 1, Attendance::unbroken().now());
    let missing = missing.iter().copied().map(node).collect();
    Round::new(&members, vec![Wanted { chunk: chunk(), set: id, missing }])
}

fn asked(round: &Round) -> Vec<NodeId> {
    round.ask.keys().copied().collect()
}

fn says_synced(round: &mut Round, id: u128) {
    round.on_answer(node(id), &[chunk()], Ok(BTreeMap::new()));
}

use MemberState::{Active, Backfilling, Lost};

#[test]
fn a_chunk_is_done_when_as_many_as_the_policy_demands_have_synced_it() {
    let mut round = round(&[(1, Active), (2, Active), (3, Active)], &[]);
    assert_eq!(asked(&round), [node(1), node(2), node(3)]);
    says_synced(&mut round, 1);
    assert!(round.done.is_empty());
    says_synced(&mut round, 3);
    assert_eq!(round.done, [chunk()]);
    assert!(round.outcome().is_ok());
}

#[test]
fn a_member_that_has_left_or_has_no_copy_is_neither_asked_nor_missed() {
    let mut lost = round(&[(1, Lost), (2, Active), (4, Active)], &[]);
    assert_eq!(asked(&lost), [node(2), node(4)]);
    says_synced(&mut lost, 2);
    says_synced(&mut lost, 4);
    assert!(lost.outcome().is_ok());

    // Its copy on the third is being made again: until that is done there are too few.
    let mut faulty = round(&[(2, Active), (4, Backfilling)], &[4]);
    assert_eq!(asked(&faulty), [node(2)]);
    says_synced(&mut faulty, 2);
    assert_eq!(faulty.outcome().unwrap_err().kind(), ErrorKind::Unavailable);

    let mut alone = round(&[(1, Lost), (2, Active)], &[]);
    says_synced(&mut alone, 2);
    assert!(alone.outcome().is_ok(), "nobody else is left who could");
}

#[test]
fn who_has_not_synced_is_named_and_failing_is_not_syncing() {
    let mut round = round(&[(1, Active), (2, Active), (3, Active)], &[]);
    says_synced(&mut round, 1);
    let error = WireError::new(ErrorKind::TimedOut, "the disk takes too long");
    round.on_answer(node(2), &[chunk()], Ok(BTreeMap::from([(chunk().get(), error)])));
    round.on_answer(node(3), &[chunk()], Err(OpError::new(ErrorKind::Unavailable, "datanode 3 is not up")));
    let error = round.outcome().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let message = error.to_string();
    assert!(message.contains("1 of 2 copies are"), "{message}");
    assert!(
        message.contains("the disk takes too long") && message.contains("datanode 3 is not up"),
        "{message}"
    );
}

#[test]
fn a_chunk_that_nobody_has_is_told_as_lost() {
    let lost = round(&[(1, Active), (2, Active)], &[1, 2]);
    assert_eq!(lost.outcome().unwrap_err().kind(), ErrorKind::ChunkNotFound);
}
