use cairn_runtime::clock;

use super::*;
use cooling::LEASE_COOL;

pub(super) const LEASE: Duration = Duration::from_secs(10);

pub(super) fn session(number: u128) -> SessionId {
    SessionId::from_uuid(uuid::Uuid::from_u128(number))
}

pub(super) fn inode(id: u64) -> InodeId {
    InodeId::new(id).unwrap()
}

/// Leases whose clock counts all time.
pub(super) fn new_leases(absent: impl IntoIterator<Item = SessionId>) -> Leases {
    Leases::new(Arc::new(Attendance::unbroken()), LEASE, absent)
}

/// Leases with a session 1 that has a stream.
pub(super) fn with_one() -> (Leases, SessionId, Stream) {
    let leases = new_leases([]);
    let stream = leases.attach(session(1));
    (leases, session(1), stream)
}

fn asked(leases: &Leases, holder: SessionId, stream: &Stream) -> Vec<Grant> {
    match leases.take_recalls(holder, stream, 100) {
        Recalls::Ask { leases, reads } => {
            assert_eq!(reads, []);
            leases
        }
        other => panic!("{other:?}"),
    }
}

fn number(granted: Option<Granted>) -> u64 {
    granted.unwrap().grant().number
}

#[tokio::test]
async fn a_lease_is_in_the_way_of_all_but_its_holder() {
    let (leases, one, _) = with_one();
    assert!(leases.conflicts(None, [inode(5)]).is_empty());
    let first = leases.grant(one, inode(5)).unwrap();
    assert_eq!(first, Granted::New(Grant { inode: inode(5), number: 1 }));
    assert_eq!(leases.grant(one, inode(5)).unwrap(), Granted::Already(first.grant()));
    assert_eq!(leases.grant(session(2), inode(5)), None);
    assert!(leases.conflicts(Some(one), [inode(5)]).is_empty());
    for asker in [None, Some(session(2))] {
        assert_eq!(leases.conflicts(asker, [inode(4), inode(5), inode(6)]), [inode(5)]);
    }
}

#[tokio::test]
async fn a_lease_is_asked_back_once_however_many_wait() {
    let (leases, one, stream) = with_one();
    let number = number(leases.grant(one, inode(5)));
    assert!(leases.recall(Some(one), &[inode(5)], Need::Look).is_none(), "its holder is not asked");
    for asker in [None, Some(session(2)), Some(session(3))] {
        let obstacles = leases.recall(asker, &[inode(5), inode(6)], Need::Look).unwrap();
        assert_eq!(obstacles.holder, Some((one, inode(5))));
        assert!(obstacles.overdue.is_empty());
    }
    assert_eq!(asked(&leases, one, &stream), [Grant { inode: inode(5), number }]);
    assert_eq!(asked(&leases, one, &stream), []);
    assert_eq!(leases.grant(one, inode(5)), None, "what is asked back is not promised again");
}

#[tokio::test]
async fn giving_back_ends_that_grant_and_no_newer_one() {
    let (leases, one, stream) = with_one();
    let old = leases.grant(one, inode(5)).unwrap().grant();
    leases.give_back(one, &stream, &[old]);
    assert_eq!(leases.len(), 0);
    let new = leases.grant(one, inode(5)).unwrap().grant();
    assert!(new.number > old.number);
    leases.give_back(one, &stream, &[old]);
    assert_eq!(leases.len(), 1, "the message was about the grant before");
    let two = leases.attach(session(2));
    leases.give_back(session(2), &two, &[new]);
    assert_eq!(leases.len(), 1, "it is not theirs to give back");
    leases.give_back(one, &stream, &[new]);
    assert_eq!(leases.len(), 0);
}

#[tokio::test]
async fn who_read_before_the_end_of_a_lease_reads_again_if_it_is_about_that_directory() {
    let (leases, one, stream) = with_one();
    let before = leases.generation();
    let look = |id: u64| leases.verdict(Some(session(2)), before, [inode(id)].into_iter());
    assert_eq!(look(5), Verdict::Stands);
    let grant = leases.grant(one, inode(5)).unwrap().grant();
    assert_eq!(look(5), Verdict::Leased(vec![inode(5)]));
    assert_eq!(look(6), Verdict::Stands);
    assert_eq!(leases.verdict(Some(one), before, [inode(5)].into_iter()), Verdict::Stands);
    leases.give_back(one, &stream, &[grant]);
    assert_eq!(look(5), Verdict::ReadAgain);
    assert_eq!(look(6), Verdict::Stands);
}

#[tokio::test]
async fn who_waits_is_woken_by_the_end_of_a_lease() {
    let (leases, one, stream) = with_one();
    let grant = leases.grant(one, inode(5)).unwrap().grant();
    let mut changes = leases.subscribe();
    leases.grant(one, inode(6));
    assert!(!changes.has_changed().unwrap(), "a grant lets nobody go on");
    leases.give_back(one, &stream, &[grant]);
    changes.changed().await.unwrap();
    leases.end(one);
    changes.changed().await.unwrap();
    assert_eq!(leases.len(), 0);
    assert_eq!(leases.take_recalls(one, &stream, 1), Recalls::Over);
}

#[tokio::test(start_paused = true)]
async fn what_was_fought_over_is_not_granted_again_for_a_while() {
    let (leases, one, stream) = with_one();
    let grant = leases.grant(one, inode(5)).unwrap().grant();
    leases.recall(None, &[inode(5)], Need::Look);
    clock::sleep(LEASE_COOL).await;
    leases.give_back(one, &stream, &[grant]);
    assert_eq!(leases.grant(one, inode(5)), None);
    assert!(leases.grant(one, inode(6)).is_some());
    assert!(leases.grant_new(one, inode(5)).unwrap().is_some(), "whoever makes a directory has it");
    leases.remove(&[inode(5)]);
    clock::sleep(LEASE_COOL).await;
    assert!(leases.grant(one, inode(5)).is_some());
    // Given back unasked: nobody fights.
    leases.give_back(one, &stream, &[Grant { inode: inode(5), number: u64::MAX }]);
    assert!(leases.grant(one, inode(5)).is_some());
}

#[tokio::test]
async fn after_a_restart_everything_may_be_leased_by_who_has_not_returned() {
    let leases = new_leases([session(1), session(2)]);
    let before = leases.generation();
    assert_eq!(leases.conflicts(Some(session(3)), [inode(5)]), [inode(5)]);
    assert_eq!(leases.grant(session(3), inode(5)), None);
    let obstacles = leases.recall(Some(session(3)), &[inode(5)], Need::Look).unwrap();
    assert_eq!((obstacles.absent, obstacles.holder), (2, None));
    let mut changes = leases.subscribe();
    let stream = leases.resume(session(1), &[inode(5)]).unwrap();
    changes.changed().await.unwrap();
    assert_eq!(asked(&leases, session(1), &stream), [], "nobody knew what to ask");
    assert!(leases.conflicts(Some(session(1)), [inode(5)]).is_empty(), "it goes on with what it holds");
    assert_eq!(leases.conflicts(Some(session(1)), [inode(6)]), [inode(6)], "2 may have that for all we know");
    assert_eq!(leases.conflicts(Some(session(2)), [inode(5)]), [inode(5)]);
    assert!(leases.conflicts(Some(session(2)), [inode(6)]).is_empty(), "only 2 itself is absent");
    leases.end(session(2));
    assert!(leases.conflicts(Some(session(1)), [inode(5)]).is_empty());
    assert_eq!(leases.conflicts(Some(session(3)), [inode(5), inode(6)]), [inode(5)]);
    let look = leases.verdict(None, before, [inode(6)].into_iter());
    assert_eq!(look, Verdict::ReadAgain, "what the absent did was not known");
}

#[tokio::test]
async fn a_session_that_comes_back_holds_exactly_what_it_names() {
    let (leases, one, old) = with_one();
    let [kept, lost] = [5, 6].map(|id| leases.grant(one, inode(id)).unwrap().grant());
    leases.recall(None, &[kept.inode], Need::Look);
    assert_eq!(asked(&leases, one, &old), [kept]);
    leases.detach(one, &old);
    leases.attach(session(2));
    leases.grant(session(2), inode(8));
    let new = leases.resume(one, &[kept.inode, inode(7), inode(8)]).unwrap();
    assert_eq!(leases.conflicts(None, (5..=8).map(inode)), [inode(5), inode(7), inode(8)]);
    assert_eq!(leases.conflicts(Some(session(2)), (5..=8).map(inode)), [inode(5), inode(7)]);
    assert_eq!(asked(&leases, one, &new), [kept], "asked again, under its number");
    assert_eq!(leases.take_recalls(one, &old, 1), Recalls::Superseded);
    leases.give_back(one, &old, &[kept]);
    assert_eq!(leases.conflicts(None, [kept.inode]), [kept.inode], "the old stream has no say any more");
    leases.detach(one, &old);
    assert!(!leases.is_overdue(one, kept.inode));
    assert!(leases.grant(session(2), lost.inode).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_come_is_overdue_after_the_lease_time() {
    let (leases, one, _) = with_one();
    leases.grant(one, inode(5));
    let obstacles = leases.recall(None, &[inode(5)], Need::Look).unwrap();
    assert_eq!(obstacles.wait, LEASE);
    clock::sleep(LEASE - Duration::from_millis(1)).await;
    assert!(!leases.is_overdue(one, inode(5)));
    clock::sleep(Duration::from_millis(2)).await;
    let overdue = leases.recall(None, &[inode(4), inode(5)], Need::Look).unwrap().overdue;
    assert_eq!(overdue.into_iter().collect::<Vec<_>>(), [(one, inode(5))]);
    assert!(leases.is_overdue(one, inode(5)));
    assert!(!leases.is_overdue(session(2), inode(5)));
}

#[tokio::test(start_paused = true)]
async fn a_session_at_work_is_waited_for_but_not_for_ever() {
    let (leases, one, _) = with_one();
    leases.grant(one, inode(5));
    leases.recall(None, &[inode(5)], Need::Look);
    let began = clock::now();
    while !leases.is_overdue(one, inode(5)) {
        clock::sleep(LEASE / 2).await;
        leases.note_activity(one);
    }
    assert_eq!(began.elapsed(), LEASE * 6);
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_stream_is_waited_for_while_it_may_trust_its_leases() {
    let (leases, one, stream) = with_one();
    leases.grant(one, inode(5));
    leases.recall(None, &[inode(5)], Need::Look);
    clock::sleep(Duration::from_secs(3)).await;
    assert!(leases.renew(one));
    clock::sleep(Duration::from_secs(2)).await;
    let mut changes = leases.subscribe();
    leases.detach(one, &stream);
    changes.changed().await.unwrap();
    // The other end may not have noticed, and trusts what was answered 2 s ago.
    let left = LEASE - Duration::from_secs(2);
    assert_eq!(leases.recall(None, &[inode(5)], Need::Look).unwrap().wait, left);
    clock::sleep(left - Duration::from_millis(1)).await;
    assert!(!leases.is_overdue(one, inode(5)));
    clock::sleep(Duration::from_millis(1)).await;
    assert!(leases.is_overdue(one, inode(5)));
    leases.resume(one, &[inode(5)]);
    assert!(!leases.is_overdue(one, inode(5)), "it is back, and has a whole lease time");
    // Whoever lost its stream long ago is not waited for at all.
    let (leases, one, stream) = with_one();
    leases.grant(one, inode(5));
    leases.detach(one, &stream);
    clock::sleep(LEASE).await;
    assert_eq!(leases.recall(None, &[inode(5)], Need::Look).unwrap().overdue.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_answers_but_gives_nothing_back_ends_when_it_can_not_trust_its_leases_any_more() {
    let (leases, one, stream) = with_one();
    leases.grant(one, inode(5));
    leases.recall(None, &[inode(5)], Need::Look);
    asked(&leases, one, &stream);
    clock::sleep(LEASE - Duration::from_secs(1)).await;
    assert!(leases.renew(one));
    clock::sleep(Duration::from_secs(1)).await;
    let obstacles = leases.recall(None, &[inode(5)], Need::Look).unwrap();
    assert_eq!((obstacles.overdue.len(), obstacles.wait), (0, LEASE - Duration::from_secs(1)));
    // From here on it gets no answer that would let it trust them longer, and its stream ends.
    assert!(leases.is_condemned(one) && !leases.renew(one));
    assert_eq!(leases.take_recalls(one, &stream, 1), Recalls::Over);
    leases.detach(one, &stream);
    clock::sleep(LEASE - Duration::from_secs(1)).await;
    assert_eq!(leases.recall(None, &[inode(5)], Need::Look).unwrap().overdue.len(), 1);
    assert!(leases.is_overdue(one, inode(5)));
}

#[tokio::test(start_paused = true)]
async fn while_the_coordinator_stands_still_nobody_is_late() {
    let attendance = Arc::new(Attendance::new());
    let leases = Leases::new(Arc::clone(&attendance), LEASE, []);
    let (one, stream) = (session(1), leases.attach(session(1)));
    leases.grant(one, inode(5));
    leases.recall(None, &[inode(5)], Need::Look);
    clock::sleep(LEASE * 3).await;
    let obstacles = leases.recall(None, &[inode(5)], Need::Look).unwrap();
    assert_eq!((obstacles.overdue.len(), obstacles.wait), (0, LEASE), "a whole lease time again");
    leases.detach(one, &stream);
    clock::sleep(LEASE * 3).await;
    assert!(!leases.is_overdue(one, inode(5)));
}

#[tokio::test]
async fn leases_have_bounds() {
    let (leases, one, _) = with_one();
    for id in 1..=LEASES_OF_SESSION_MAX as u64 {
        assert!(leases.grant(one, inode(id)).is_some());
    }
    let more = inode(1 << 20);
    assert_eq!(leases.grant(one, more), None);
    assert_eq!(leases.grant_new(one, more).unwrap(), None, "a directory is made all the same");
    assert!(leases.grant(session(2), more).is_some(), "the bound is that of one session");
    assert!(leases.grant_new(one, inode(1)).unwrap().is_some(), "what it holds anyway");
    let all_of = |number: u64| {
        Vec::from_iter((0..LEASES_OF_SESSION_MAX as u64).map(|id| inode((number << 32) + id + 1)))
    };
    let fit = (3..30).take_while(|&number| leases.resume(session(number.into()), &all_of(number)).is_some());
    assert_eq!(fit.count(), 14, "of all sessions 2^20");
    assert!(leases.resume(session(3), &all_of(3)).is_some(), "it holds them already");
}
