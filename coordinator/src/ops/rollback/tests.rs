use cairn_proto::NodeId;
use uuid::Uuid;

use super::*;
use crate::ops::gc;
use crate::ops::tests::tx;

fn node() -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(4))
}

/// A store in reign 1, at commit 50, with chunks up to 99 granted.
fn store() -> Tx {
    let mut tx = tx();
    tx.put(Counter { name: Count::NextChunk, value: 100 });
    tx.put(Counter { name: Count::Epoch, value: 7 });
    tx.context.sequence.set(50);
    tx
}

fn seen(term: u64, epoch: u64, sequence: u64, chunk_max: u64) -> Seen {
    Seen { position: Position { term, epoch, sequence }, chunk_max }
}

#[test]
fn a_datanode_that_has_seen_no_more_than_there_is_changes_nothing() {
    let mut tx = store();
    tx.commit().unwrap();
    for seen in [seen(0, 0, 0, 0), seen(1, 7, 50, 99), seen(0, 3, 51, 1)] {
        assert!(!compare(&mut tx, node(), &seen).unwrap(), "{seen:?}");
        assert_eq!(tx.changed_rows(), 0);
    }
}

#[test]
fn a_map_that_was_never_committed_is_no_evidence_but_skipped() {
    let mut tx = store();
    assert!(!compare(&mut tx, node(), &seen(0, 9, 40, 5)).unwrap());
    assert_eq!(value(&mut tx, Count::Epoch).unwrap(), 9);
    assert_eq!(tx.context.cluster.members().epoch, 9);
}

#[test]
fn a_later_reign_or_more_of_this_one_is_refused_and_says_what_to_do() {
    for seen in [seen(2, 1, 1, 1), seen(1, 7, 51, 1)] {
        let mut tx = store();
        let error = compare(&mut tx, node(), &seen).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotActive);
        assert!(error.to_string().contains("cairn coordinator restore"), "{error}");
    }
}

#[test]
fn later_metadata_stops_deletion_until_it_is_accepted_and_no_id_is_granted_twice() {
    let mut tx = store();
    assert!(compare(&mut tx, node(), &seen(0, 12, 400, 250)).unwrap());
    assert!(tx.take_ids(Count::NextChunk, 1).unwrap() > 250);
    assert_eq!(gc::claim(&mut tx, &[]).unwrap_err().kind(), ErrorKind::Busy);
    // Others come with more, or with less: the highest counts.
    compare(&mut tx, node(), &seen(0, 11, 500, 2)).unwrap();
    assert!(!compare(&mut tx, node(), &seen(0, 7, 50, 99)).unwrap());
    tx.commit().unwrap();
    assert!(accept(&mut tx).unwrap());
    tx.commit().unwrap();
    let position = gc::position(&mut tx).unwrap();
    assert!(position.epoch > 12 && position.sequence > 500, "{position:?}");
    assert_eq!(tx.context.cluster.members().epoch, position.epoch);
    assert!(gc::claim(&mut tx, &[]).is_ok());
    assert!(!accept(&mut tx).unwrap());
    // The same datanode once more: it has seen nothing that is not.
    assert!(!compare(&mut tx, node(), &seen(0, 12, 500, 250)).unwrap());
}

#[test]
fn restored_metadata_deletes_nothing_until_it_is_accepted() {
    let mut tx = store();
    tx.put(Counter { name: Count::Restored, value: 5 });
    assert_eq!(gc::claim(&mut tx, &[]).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(gc::resume(&mut tx).unwrap_err().kind(), ErrorKind::Busy);
    assert!(accept(&mut tx).unwrap());
    assert!(gc::claim(&mut tx, &[]).is_ok());
}

#[test]
fn an_absurd_id_does_not_use_up_all_ids() {
    let mut tx = store();
    assert!(compare(&mut tx, node(), &seen(0, 1, 1, i64::MAX as u64)).unwrap());
    assert_eq!(value(&mut tx, Count::NextChunk).unwrap(), 100);
}
