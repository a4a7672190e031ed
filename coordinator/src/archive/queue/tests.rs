use super::*;
use crate::store::{Count, Counter};

fn batch(sequence: u64) -> Batch {
    Batch { puts: vec![Counter { name: Count::Sequence, value: sequence }.into()], deletes: vec![] }
}

#[test]
fn without_a_place_nothing_is_kept() {
    let shipping = Shipping::off();
    shipping.add(1, &batch(1)).unwrap();
    shipping.check().unwrap();
    assert!(shipping.standing().is_none());
    assert_eq!(shipping.oldest(100).len(), 0);
}

#[test]
fn commits_are_collected_from_the_moment_that_was_told() {
    let shipping = Shipping::new(Some(LogAck::Async), 7);
    shipping.add(8, &batch(8)).unwrap();
    assert_eq!(shipping.collect(), 8, "the base is to hold what was not collected");
    shipping.add(9, &batch(9)).unwrap();
    shipping.add(10, &batch(10)).unwrap();
    let sequences = |bytes| shipping.oldest(bytes).iter().map(|entry| entry.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(1), [9]);
    assert_eq!(sequences(usize::MAX), [9, 10]);
    shipping.shipped(9);
    assert_eq!(sequences(usize::MAX), [10]);
    let standing = shipping.standing().unwrap();
    assert_eq!((standing.committed, standing.shipped, standing.covered), (10, 9, false));
    shipping.shipped(10);
    shipping.covered(None);
    assert_eq!(shipping.standing().unwrap().behind, Duration::ZERO);
}

#[test]
fn a_full_queue_is_emptied_and_leaves_a_gap() {
    let shipping = Shipping::new(Some(LogAck::Async), 0);
    shipping.collect();
    shipping.covered(None);
    let value = Bytes::from(vec![0; 1 << 16]);
    let row = crate::store::Xattr { inode: cairn_proto::InodeId::ROOT, name: value.slice(..5), value };
    let large = Batch { puts: vec![Row::Xattr(row); 16], deletes: vec![] };
    for sequence in 1..200 {
        shipping.add(sequence, &large).unwrap();
        let state = shipping.state();
        assert!(state.bytes <= QUEUE_BYTES_MAX);
        assert_eq!(state.bytes, state.queue.iter().map(|entry| entry.body.len()).sum::<usize>());
    }
    assert!(shipping.has_gap());
    assert!(!shipping.standing().unwrap().covered);
    assert_eq!(shipping.collect(), 199);
}
