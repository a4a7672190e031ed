use super::*;
use crate::leases::cooling::LEASE_COOL;
use crate::leases::tests::{inode, new_leases, session, with_one};
use crate::leases::{Need, Recalls, Stream};

const A_MOMENT: Duration = Duration::from_millis(1);

/// What all tests list: a directory and what its two entries name.
fn directory() -> InodeId {
    inode(10)
}

fn entries() -> [InodeId; 2] {
    [inode(11), inode(12)]
}

fn all() -> [InodeId; 3] {
    [inode(10), inode(11), inode(12)]
}

fn list(leases: &Leases, of: SessionId) -> Option<ReadGrant> {
    leases.grant_reads(of, directory(), &entries(), leases.committed())
}

/// The number of a grant on everything.
fn granted(leases: &Leases, to: SessionId) -> u64 {
    let grant = list(leases, to).unwrap();
    assert_eq!(grant.without, [0; 0]);
    grant.number
}

/// What is in the way of a change, which is committed then.
fn in_the_way(leases: &Leases, asker: Option<SessionId>, inodes: &[InodeId]) -> Vec<InodeId> {
    let found = leases.changing(asker, inodes);
    leases.group_ended();
    found
}

fn asked(leases: &Leases, holder: SessionId, stream: &Stream, limit: usize) -> Vec<Grant> {
    match leases.take_recalls(holder, stream, limit) {
        Recalls::Ask { leases, mut reads } => {
            assert_eq!(leases, []);
            reads.sort_unstable_by_key(|grant| grant.inode);
            reads
        }
        other => panic!("{other:?}"),
    }
}

fn grants(number: u64, inodes: impl IntoIterator<Item = InodeId>) -> Vec<Grant> {
    inodes.into_iter().map(|inode| Grant { inode, number }).collect()
}

#[tokio::test]
async fn only_a_connected_session_is_granted_them() {
    let leases = new_leases([]);
    let one = session(1);
    assert_eq!(list(&leases, one), None, "nobody knows it");
    let stream = leases.attach(one);
    assert!(granted(&leases, one) > 0);
    leases.detach(one, &stream);
    assert_eq!(list(&leases, one), None, "it could not be asked");
    leases.resume(one, &[]);
    granted(&leases, one);
    leases.end(one);
    assert_eq!(list(&leases, one), None);
}

#[tokio::test]
async fn they_are_in_the_way_of_all_but_their_holder() {
    let (leases, one, _) = with_one();
    granted(&leases, one);
    let asked_for = (9..=13).map(inode).collect::<Vec<_>>();
    assert_eq!(in_the_way(&leases, Some(one), &asked_for), []);
    for asker in [None, Some(session(2))] {
        assert_eq!(in_the_way(&leases, asker, &asked_for), all());
    }
    assert!(leases.recall(Some(one), &asked_for, Need::Change).is_none());
    assert!(leases.recall(None, &[inode(9), inode(13)], Need::Change).is_none());
    leases.attach(session(2));
    granted(&leases, session(2));
    assert_eq!(leases.reads_len(), 6, "several may show the same");
    assert_eq!(in_the_way(&leases, Some(one), &asked_for), all(), "the other one may");
}

#[tokio::test(start_paused = true)]
async fn they_end_by_themselves() {
    let (leases, one, _) = with_one();
    granted(&leases, one);
    clock::sleep(READ_LEASE - A_MOMENT).await;
    assert_eq!(in_the_way(&leases, None, &all()), all());
    assert_eq!(leases.reads_len(), 3);
    clock::sleep(A_MOMENT).await;
    assert_eq!(in_the_way(&leases, None, &all()), []);
    assert!(leases.recall(None, &all(), Need::Change).is_none());
    assert_eq!(leases.reads_len(), 0, "nothing is kept of them");
}

#[tokio::test(start_paused = true)]
async fn the_same_inode_under_two_names_counts_once() {
    let (leases, one, _) = with_one();
    leases.grant_reads(one, directory(), &[inode(11), inode(11)], leases.committed()).unwrap();
    assert_eq!(leases.reads_len(), 2);
    clock::sleep(READ_LEASE).await;
    assert_eq!(leases.reads_len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_newer_listing_holds_longer_than_the_one_before() {
    let (leases, one, _) = with_one();
    let first = granted(&leases, one);
    clock::sleep(READ_LEASE / 2).await;
    assert!(granted(&leases, one) > first);
    assert_eq!(leases.reads_len(), 3, "in place of the older ones");
    clock::sleep(READ_LEASE * 3 / 4).await;
    assert_eq!(leases.reads_len(), 3);
    assert_eq!(in_the_way(&leases, None, &all()), all());
    clock::sleep(READ_LEASE / 4).await;
    assert_eq!(in_the_way(&leases, None, &all()), []);
    assert_eq!(leases.reads_len(), 0);
}

#[tokio::test(start_paused = true)]
async fn they_are_asked_back_once_however_many_wait() {
    let (leases, one, stream) = with_one();
    let number = granted(&leases, one);
    let until = clock::now() + READ_LEASE;
    for asker in [None, Some(session(2)), Some(session(3))] {
        clock::sleep(A_MOMENT).await;
        let obstacles = leases.recall(asker, &[inode(11), inode(13)], Need::Change).unwrap();
        assert_eq!(clock::now() + obstacles.wait, until, "then it has ended anyway");
        assert_eq!((obstacles.overdue.len(), obstacles.holder), (0, None), "nobody is to blame");
    }
    assert_eq!(asked(&leases, one, &stream, 100), grants(number, [inode(11)]));
    assert_eq!(asked(&leases, one, &stream, 100), []);
    leases.recall(None, &all(), Need::Change).unwrap();
    assert_eq!(asked(&leases, one, &stream, 100), grants(number, [inode(10), inode(12)]), "only the others");
    assert_eq!(in_the_way(&leases, None, &all()), all(), "being asked gives nothing back");
}

#[tokio::test(start_paused = true)]
async fn a_stream_asks_for_many_in_parts() {
    let (leases, one, stream) = with_one();
    let number = granted(&leases, one);
    leases.recall(None, &all(), Need::Change).unwrap();
    clock::timeout(A_MOMENT, stream.wake.notified()).await.unwrap();
    let first = asked(&leases, one, &stream, 2);
    clock::timeout(A_MOMENT, stream.wake.notified()).await.unwrap();
    let second = asked(&leases, one, &stream, 2);
    assert_eq!((first.len(), second.len()), (2, 1));
    let mut both: Vec<_> = first.into_iter().chain(second).collect();
    both.sort_unstable_by_key(|grant| grant.inode);
    assert_eq!(both, grants(number, all()));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_they_are_given_back() {
    let (leases, one, stream) = with_one();
    granted(&leases, one);
    leases.attach(session(2));
    let other = granted(&leases, session(2));
    leases.recall(None, &all(), Need::Change).unwrap();
    let recalled = asked(&leases, one, &stream, 100);
    let mut changes = leases.subscribe();
    leases.give_back_reads(one, &recalled);
    clock::timeout(A_MOMENT, changes.changed()).await.unwrap().unwrap();
    assert!(leases.recall(None, &all(), Need::Change).is_some(), "the other one has not answered yet");
    assert_eq!(leases.reads_len(), 3);
    leases.give_back_reads(session(2), &grants(other, [inode(11)]));
    assert!(leases.recall(None, &[inode(11)], Need::Change).is_none());
    assert_eq!(in_the_way(&leases, None, &all()), [inode(10), inode(12)]);
    leases.give_back_reads(session(2), &grants(other, all()));
    assert!(leases.recall(None, &all(), Need::Change).is_none());
    assert_eq!(leases.reads_len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_without_an_answer_when_the_time_of_the_last_one_is_up() {
    let (leases, one, _) = with_one();
    granted(&leases, one);
    clock::sleep(READ_LEASE / 2).await;
    leases.attach(session(2));
    leases.grant_reads(session(2), directory(), &[inode(11)], leases.committed()).unwrap();
    let until = clock::now() + leases.recall(None, &all(), Need::Change).unwrap().wait;
    assert_eq!(until, clock::now() + READ_LEASE);
    clock::sleep_until(until - A_MOMENT).await;
    assert_eq!(clock::now() + leases.recall(None, &all(), Need::Change).unwrap().wait, until);
    clock::sleep_until(until).await;
    assert!(leases.recall(None, &all(), Need::Change).is_none());
}

#[tokio::test]
async fn who_only_looks_does_not_mind_them() {
    let (leases, one, stream) = with_one();
    granted(&leases, one);
    assert!(leases.recall(None, &all(), Need::Look).is_none());
    assert_eq!(leases.conflicts(None, all()), []);
    // Not even beside a write lease that is in the way.
    leases.attach(session(2));
    leases.grant(session(2), inode(13));
    assert!(leases.recall(None, &[inode(11), inode(13)], Need::Look).is_some());
    assert_eq!(asked(&leases, one, &stream, 100), []);
}

#[tokio::test]
async fn rows_older_than_a_change_are_not_covered() {
    let (leases, one, _) = with_one();
    let without = |committed| leases.grant_reads(one, directory(), &entries(), committed).unwrap().without;
    for asker in [None, Some(one)] {
        let before = leases.committed();
        assert_eq!(leases.changing(asker, &[inode(12), inode(13)]), []);
        let beside = leases.committed();
        assert_eq!((without(before), without(beside)), (vec![1], vec![1]), "it is not committed");
        leases.group_ended();
        assert_eq!((without(before), without(beside)), (vec![1], vec![1]), "the rows may be of before");
        assert_eq!(without(leases.committed()), [0; 0]);
    }
}

#[tokio::test]
async fn a_refused_entry_is_not_in_the_way_and_the_others_are() {
    let (leases, one, _) = with_one();
    leases.changing(None, &[inode(11)]);
    assert_eq!(list(&leases, one).unwrap().without, [0]);
    assert_eq!(in_the_way(&leases, None, &all()), [inode(10), inode(12)]);
    assert_eq!(leases.reads_len(), 2);
}

#[tokio::test]
async fn a_directory_that_is_being_changed_gives_no_leases_at_all() {
    let (leases, one, _) = with_one();
    let before = leases.committed();
    leases.changing(Some(one), &[directory()]);
    assert_eq!(list(&leases, one), None);
    leases.group_ended();
    assert_eq!(leases.grant_reads(one, directory(), &entries(), before), None);
    assert_eq!(leases.reads_len(), 0);
    granted(&leases, one);
}

#[tokio::test]
async fn rows_from_so_long_ago_that_nobody_knows_what_changed_are_not_covered() {
    let (leases, one, _) = with_one();
    let before = leases.committed();
    for _ in 0..70 {
        in_the_way(&leases, None, &[inode(1); 1000]);
    }
    assert_eq!(leases.grant_reads(one, directory(), &entries(), before), None);
    granted(&leases, one);
}

#[tokio::test]
async fn what_another_may_change_locally_is_not_covered() {
    let (leases, one, _) = with_one();
    let two = session(2);
    leases.attach(two);
    leases.grant(two, inode(11)).unwrap();
    assert_eq!(list(&leases, one).unwrap().without, [0]);
    granted(&leases, two);
    assert_eq!(leases.grant(two, directory()), None, "it is shown by the other one");
    leases.forget_reads(one);
    leases.grant(two, directory()).unwrap();
    assert_eq!(list(&leases, one), None);
    granted(&leases, two);
}

#[tokio::test(start_paused = true)]
async fn what_was_fought_over_is_not_granted_to_anybody_for_a_while() {
    let (leases, one, _) = with_one();
    leases.attach(session(2));
    let number = granted(&leases, one);
    leases.recall(Some(session(2)), &[inode(12)], Need::Change).unwrap();
    leases.give_back_reads(one, &grants(number, [inode(12)]));
    for of in [one, session(2)] {
        assert_eq!(list(&leases, of).unwrap().without, [1]);
    }
    clock::sleep(LEASE_COOL - A_MOMENT).await;
    assert_eq!(list(&leases, one).unwrap().without, [1]);
    clock::sleep(A_MOMENT).await;
    let number = granted(&leases, one);
    leases.recall(None, &[directory()], Need::Change).unwrap();
    leases.give_back_reads(one, &grants(number, all()));
    for of in [one, session(2)] {
        assert_eq!(list(&leases, of), None);
    }
    clock::sleep(LEASE_COOL).await;
    granted(&leases, session(2));
    // Given back unasked: nobody fights.
    leases.give_back_reads(session(2), &grants(u64::MAX, all()));
    granted(&leases, one);
}

#[tokio::test]
async fn with_a_new_stream_a_session_has_none() {
    let (leases, one, old) = with_one();
    leases.attach(session(2));
    granted(&leases, session(2));
    for is_resumed in [false, true] {
        granted(&leases, one);
        assert_eq!(leases.reads_len(), 6);
        leases.detach(one, &old);
        assert_eq!(leases.reads_len(), 6, "it may still show what it knows");
        if is_resumed {
            leases.resume(one, &[]).unwrap()
        } else {
            leases.attach(one)
        };
        assert_eq!(leases.reads_len(), 3);
        assert_eq!(in_the_way(&leases, Some(session(2)), &all()), []);
        assert_eq!(in_the_way(&leases, None, &all()), all(), "those of others stay");
    }
    granted(&leases, one);
    leases.recall(Some(session(2)), &all(), Need::Change).unwrap();
    let new = leases.resume(one, &[]).unwrap();
    assert_eq!(asked(&leases, one, &new, 100), [], "there is nothing to ask any more");
}

#[tokio::test(start_paused = true)]
async fn who_shows_nothing_any_more_is_not_waited_for() {
    let (leases, one, _) = with_one();
    leases.attach(session(2));
    for of in [one, session(2)] {
        granted(&leases, of);
    }
    leases.recall(None, &all(), Need::Change).unwrap();
    for (of, left) in [(one, 3), (session(2), 0)] {
        let mut changes = leases.subscribe();
        leases.forget_reads(of);
        clock::timeout(A_MOMENT, changes.changed()).await.unwrap().unwrap();
        assert_eq!(leases.reads_len(), left);
    }
    assert!(leases.recall(None, &all(), Need::Change).is_none());
}

#[tokio::test]
async fn giving_back_ends_that_grant_and_no_newer_one() {
    let (leases, one, _) = with_one();
    let old = granted(&leases, one);
    let new = granted(&leases, one);
    leases.give_back_reads(one, &grants(old, all()));
    assert_eq!(in_the_way(&leases, None, &all()), all(), "the message was about the grant before");
    leases.attach(session(2));
    leases.give_back_reads(session(2), &grants(new, all()));
    assert_eq!(leases.reads_len(), 3, "they are not theirs to give back");
    leases.give_back_reads(one, &grants(new, all()));
    assert_eq!(leases.reads_len(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_anybody_absent_may_show_anything_for_the_time_of_a_lease() {
    let leases = new_leases([session(1), session(2)]);
    let three = session(3);
    leases.attach(three);
    let until = clock::now() + READ_LEASE;
    assert_eq!(in_the_way(&leases, Some(three), &all()), all());
    let obstacles = leases.recall(Some(three), &all(), Need::Change).unwrap();
    assert_eq!((clock::now() + obstacles.wait, obstacles.absent, obstacles.reads), (until, 2, true));
    assert_eq!(list(&leases, three), None, "an absent one may change it locally");
    leases.resume(session(1), &[]);
    assert_eq!(in_the_way(&leases, Some(session(1)), &all()), all(), "the other one may");
    assert_eq!(in_the_way(&leases, Some(session(2)), &all()), [], "only 2 itself is absent");
    clock::sleep(READ_LEASE - A_MOMENT).await;
    assert_eq!(in_the_way(&leases, Some(three), &all()), all());
    clock::sleep(A_MOMENT).await;
    assert_eq!(in_the_way(&leases, Some(three), &all()), [], "what they knew they do not show any more");
    let obstacles = leases.recall(Some(three), &all(), Need::Change).unwrap();
    assert!(!obstacles.reads, "only write leases may be left");
    clock::sleep(LEASE_COOL).await;
    assert_eq!(list(&leases, three), None, "what they hold for writing they still do");
    leases.end(session(2));
    granted(&leases, three);
}

#[tokio::test]
async fn after_a_restart_nobody_waits_for_sessions_that_are_all_back() {
    let leases = new_leases([session(1), session(2)]);
    leases.resume(session(1), &[]);
    leases.end(session(2));
    assert_eq!(in_the_way(&leases, Some(session(3)), &all()), []);
    assert!(leases.recall(Some(session(3)), &all(), Need::Change).is_none());
    granted(&leases, session(1));
}

#[tokio::test(start_paused = true)]
async fn they_have_a_bound() {
    let (leases, one, _) = with_one();
    let many: Vec<_> = (100..).map(inode).take(READS_MAX).collect();
    let of = |many: &[InodeId]| leases.grant_reads(one, directory(), many, leases.committed());
    assert_eq!(of(&many), None);
    assert!(of(&many[1..]).is_some());
    assert_eq!(leases.reads_len(), READS_MAX);
    assert_eq!(of(&[]), None, "one more, even of the same session");
    clock::sleep(READ_LEASE).await;
    assert!(of(&many[1..]).is_some(), "the room of those that have ended is free");
}

#[tokio::test]
async fn a_part_takes_the_place_of_the_one_before_and_of_nothing_else() {
    let leases = new_leases([]);
    let (one, two) = (session(1), session(2));
    let (_one, _two) = (leases.attach(one), leases.attach(two));
    let list = |of: SessionId, directory: u64, entry: u64| {
        leases.drop_reads_of_part(of, inode(directory));
        leases.grant_reads(of, inode(directory), &[inode(entry)], leases.committed()).unwrap();
    };
    list(one, 10, 11);
    list(one, 20, 21);
    list(two, 10, 11);
    list(one, 10, 12);
    assert_eq!(leases.reads_len(), 6, "of three directories with an entry each");
    assert_eq!(in_the_way(&leases, Some(two), &[inode(11)]), [], "the first one has given it up");
    assert_eq!(in_the_way(&leases, Some(one), &[inode(11)]), [inode(11)]);
    for entry in [12, 21, 10, 20] {
        assert_eq!(in_the_way(&leases, Some(two), &[inode(entry)]), [inode(entry)]);
    }
}
