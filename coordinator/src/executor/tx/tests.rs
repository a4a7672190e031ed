use bytes::Bytes;

use super::*;
use crate::ops::tests::tx;
use crate::store::Xattr;

fn xattr(inode: u64, name: Bytes, value: Bytes) -> Xattr {
    Xattr { inode: InodeId::new(inode).unwrap(), name, value }
}

#[test]
fn remembered_rows_stay_within_their_share_and_those_used_last_are_among_them() {
    let mut tx = tx();
    let share = tx.context.policy.memory.rows;
    for inode in 1..=1000 {
        tx.put(xattr(inode, Bytes::from_static(b"user.big"), vec![7; 64 << 10].into()));
        if inode % 50 == 0 {
            tx.commit().unwrap();
            assert!(tx.cache.bytes() <= share, "{} of {share} bytes after {inode} rows", tx.cache.bytes());
        }
    }
    assert!(tx.cache.bytes() > share / 4, "it is made use of");
    let last = Key::Xattr(InodeId::new(1000).unwrap(), Bytes::from_static(b"user.big"));
    assert!(tx.cache.get(&last).is_some());
}

#[test]
fn a_row_that_is_kept_keeps_nothing_of_its_message_alive() {
    let message = Bytes::from(vec![7; 1 << 20]);
    let row = Row::from(xattr(1, message.slice(0..8), message.slice(8..100)));
    let (kept, key) = (row.clone().detached(), row.key().detached());
    assert_eq!((&kept, &key), (&row, &row.key()));
    drop(row);
    assert!(message.is_unique());
    drop((kept, key));
}

#[test]
fn bytes_of_a_group_are_counted_until_it_is_committed() {
    let mut tx = tx();
    tx.put(xattr(1, Bytes::from_static(b"user.a"), vec![7; 60_000].into()));
    assert!(tx.changed_bytes() > 60_000);
    tx.commit().unwrap();
    assert_eq!(tx.changed_bytes(), 0);
}
