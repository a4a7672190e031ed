use cairn_runtime::clock;

use super::*;
use crate::leases::{Need, ReadGrant};
use crate::ops::tests::{make_file, name, set, tx};
use crate::ops::{Create, NewInode, OpenBy, Rename, RenameMode, SetAttr, SetXattr, TimeChange, reserve};
use crate::sessions::Open;
use crate::store::Count;

const ROOT: InodeId = InodeId::ROOT;

fn session(number: u128) -> SessionId {
    SessionId::from_uuid(uuid::Uuid::from_u128(number))
}

fn by(uid: u32) -> Arc<Caller> {
    Arc::new(Caller::user(uid, uid, vec![]))
}

fn step(mutation: Mutation) -> Step {
    Step { mutation, caller: by(0), at_ns: None, found: None }
}

fn create(parent: InodeId, text: &str, new: NewInode) -> Create {
    Create { parent, name: name(text), new, mode: 0o755, id: None, lease: false }
}

fn mkdir(parent: InodeId, text: &str) -> Mutation {
    Mutation::Create(create(parent, text, NewInode::Directory))
}

fn leased_dir(parent: InodeId, text: &str) -> Mutation {
    Mutation::Create(Create { lease: true, ..create(parent, text, NewInode::Directory) })
}

fn file(parent: InodeId, text: &str) -> Mutation {
    Mutation::Create(create(parent, text, NewInode::File { exclusive: true, open: None }))
}

fn rename(from: (InodeId, &str), to: (InodeId, &str)) -> Mutation {
    let ((parent, old), (new_parent, new)) = (from, to);
    let (old, new) = (name(old), name(new));
    Mutation::Rename(Rename { parent, name: old, new_parent, new_name: new, mode: RenameMode::Replace })
}

fn run_steps(
    tx: &mut Tx,
    of: u128,
    want_leases: bool,
    steps: Vec<Step>,
) -> Result<Vec<Result<Done, OpError>>, OpError> {
    let batch = Batch { steps: steps.into_iter().map(Ok).collect(), want_leases };
    tx.attempt(|tx| run(tx, session(of), &batch))
}

fn one(tx: &mut Tx, of: u128, mutation: Mutation) -> Result<Done, OpError> {
    run_steps(tx, of, false, vec![step(mutation)])?.remove(0)
}

fn made(done: Result<Done, OpError>) -> (InodeId, Vec<InodeId>) {
    let done = done.unwrap();
    (done.applied.inode.unwrap().id, done.leases.iter().map(|grant| grant.inode).collect())
}

fn in_the_way<T: std::fmt::Debug>(result: Result<T, OpError>) -> Vec<InodeId> {
    match result {
        Err(OpError::Leased(inodes)) => inodes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reserved_id_is_taken_once_and_others_are_refused() {
    let mut tx = tx();
    let made_as = |tx: &mut Tx, text: &str, id: InodeId| {
        let op = Create { id: Some(id), ..create(ROOT, text, NewInode::Directory) };
        one(tx, 1, Mutation::Create(op)).map(|done| done.applied.inode.unwrap().id)
    };
    tx.context.sessions.open(session(1), String::new(), true).unwrap();
    let first = tx.attempt(|tx| reserve::reserve_inodes(tx, session(1), 10)).unwrap();
    let later = InodeId::new(first.get() + 9).unwrap();
    assert_eq!(made_as(&mut tx, "later", later).unwrap(), later);
    assert_eq!(made_as(&mut tx, "first", first).unwrap(), first);
    let beyond = InodeId::new(first.get() + 10).unwrap();
    for id in [first, ROOT, beyond] {
        let refused = made_as(&mut tx, "again", id).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{id}");
    }
    assert_eq!(one(&mut tx, 1, file(ROOT, "f")).unwrap().applied.inode.unwrap().id, beyond);
    let stranger = tx.attempt(|tx| reserve::reserve_inodes(tx, session(2), 1));
    assert_eq!(stranger.unwrap_err().kind(), ErrorKind::SessionExpired);
}

#[test]
fn a_mutation_happens_when_it_was_performed_and_no_other_with_it() {
    let mut tx = tx();
    let early = clock::wall_ns() - 3_600_000_000_000;
    let touch = |inode, at_ns| {
        let op = SetAttr { mtime: Some(TimeChange::Now), ..set(inode) };
        Step { at_ns, ..step(Mutation::SetAttr(op)) }
    };
    let steps = vec![Step { at_ns: Some(early), ..step(mkdir(ROOT, "d")) }, step(mkdir(ROOT, "e"))];
    let done = run_steps(&mut tx, 1, false, steps).unwrap();
    let [d, e] = [0, 1].map(|at: usize| done[at].as_ref().unwrap().applied.clone());
    let (d_inode, e_inode) = (d.inode.unwrap(), e.inode.unwrap());
    assert_eq!([d_inode.btime_ns, d_inode.ctime_ns, d_inode.mtime_ns], [early; 3]);
    assert_eq!(d.parent.unwrap().mtime_ns, early);
    assert_eq!(e_inode.ctime_ns, tx.job_ns());
    let soon = tx.job_ns() + 900_000_000;
    let far = clock::wall_ns() + 3_600_000_000_000;
    let done =
        run_steps(&mut tx, 1, false, vec![touch(e_inode.id, Some(soon)), touch(d_inode.id, Some(far))]);
    let times: Vec<_> =
        done.unwrap().into_iter().map(|done| done.unwrap().applied.inode.unwrap().mtime_ns).collect();
    assert_eq!(times, [soon, tx.job_ns()], "what would be later than now is now");
    assert!(tx.job_ns() < soon);
}

#[test]
fn each_mutation_has_its_caller() {
    let mut tx = tx();
    let top = Mutation::Create(Create { mode: 0o777, ..create(ROOT, "top", NewInode::Directory) });
    let (top, _) = made(one(&mut tx, 1, top));
    let of = |uid, mutation| Step { caller: by(uid), ..step(mutation) };
    let done = run_steps(&mut tx, 1, false, vec![of(5, mkdir(top, "a")), of(6, mkdir(top, "b"))]).unwrap();
    let owners: Vec<_> = done.into_iter().map(|done| done.unwrap().applied.inode.unwrap().uid).collect();
    assert_eq!(owners, [5, 6]);
}

#[test]
fn a_directory_is_made_with_a_lease_and_loses_it_when_it_is_gone() {
    let mut tx = tx();
    let (d, leases) = made(one(&mut tx, 1, leased_dir(ROOT, "d")));
    assert_eq!(leases, [d]);
    assert_eq!(in_the_way(one(&mut tx, 2, file(d, "f"))), [d]);
    assert_eq!(in_the_way(one(&mut tx, 2, Mutation::Rmdir { parent: ROOT, name: name("d") })), [d]);
    assert!(one(&mut tx, 2, file(ROOT, "f")).is_ok(), "the parent is nobody's");
    one(&mut tx, 1, Mutation::Rmdir { parent: ROOT, name: name("d") }).unwrap();
    assert_eq!(tx.context.leases.len(), 1, "the removal is not committed");
    tx.commit().unwrap();
    assert_eq!(tx.context.leases.len(), 0);
}

#[test]
fn a_replaced_directory_loses_its_lease() {
    let mut tx = tx();
    one(&mut tx, 1, leased_dir(ROOT, "old")).unwrap();
    let (new, _) = made(one(&mut tx, 1, leased_dir(ROOT, "new")));
    one(&mut tx, 1, rename((ROOT, "new"), (ROOT, "old"))).unwrap();
    tx.commit().unwrap();
    assert_eq!(tx.context.leases.conflicts(None, (1..10).filter_map(|id| InodeId::new(id).ok())), [new]);
}

#[test]
fn leases_on_changed_directories_are_granted_where_nobody_minds() {
    let mut tx = tx();
    let granted = |done: Result<Done, OpError>| made(done).1;
    let wanted = |tx: &mut Tx, of, mutation| run_steps(tx, of, true, vec![step(mutation)]).unwrap().remove(0);
    let (d, leases) = made(wanted(&mut tx, 1, mkdir(ROOT, "d")));
    assert_eq!(leases, [ROOT]);
    assert_eq!(granted(wanted(&mut tx, 1, file(d, "f"))), [d]);
    assert_eq!(granted(wanted(&mut tx, 1, rename((d, "f"), (ROOT, "f")))), [d, ROOT], "told again");
    let touch = Mutation::RemoveXattr { inode: d, name: "user.x".into() };
    assert!(wanted(&mut tx, 1, touch).is_err());
    tx.context.leases.recall(None, &[d], Need::Look);
    assert_eq!(granted(wanted(&mut tx, 1, file(d, "g"))), [], "it is asked back");
}

#[test]
fn a_conflict_leaves_nothing_of_the_whole_batch() {
    let mut tx = tx();
    let (theirs, _) = made(one(&mut tx, 2, leased_dir(ROOT, "theirs")));
    // The id that the second one is going to get: their making of it was not committed.
    let next = InodeId::new(theirs.get() + 2).unwrap();
    tx.context.leases.grant(session(2), next);
    let inodes = count_of(&mut tx);
    let named = vec![step(leased_dir(ROOT, "a")), step(file(theirs, "f"))];
    assert_eq!(in_the_way(run_steps(&mut tx, 1, true, named)), [theirs]);
    let found = vec![step(leased_dir(ROOT, "a")), step(mkdir(ROOT, "b")), step(file(theirs, "f"))];
    tx.context.leases.remove(&[theirs]);
    assert_eq!(in_the_way(run_steps(&mut tx, 1, true, found)), [next]);
    assert_eq!(tx.context.leases.len(), 1, "what was granted on the way is not kept");
    assert_eq!(count_of(&mut tx), inodes);
    tx.context.leases.end(session(2));
    let steps = vec![step(leased_dir(ROOT, "a")), step(file(theirs, "f"))];
    assert!(run_steps(&mut tx, 1, true, steps).unwrap().iter().all(Result::is_ok));
}

fn count_of(tx: &mut Tx) -> u64 {
    tx.find::<crate::store::Counter>(&Key::Counter(Count::Inodes)).unwrap().unwrap().value
}

#[test]
fn a_failure_that_may_be_due_to_a_lease_is_none() {
    let mut tx = tx();
    let (theirs, _) = made(one(&mut tx, 2, leased_dir(ROOT, "theirs")));
    one(&mut tx, 2, file(theirs, "f")).unwrap();
    one(&mut tx, 1, mkdir(ROOT, "mine")).unwrap();
    // They may have emptied it, and made what is missing.
    for mutation in [
        Mutation::Rmdir { parent: ROOT, name: name("theirs") },
        rename((ROOT, "mine"), (ROOT, "theirs")),
        Mutation::Unlink { parent: theirs, name: name("missing") },
        rename((theirs, "missing"), (ROOT, "x")),
        rename((ROOT, "missing"), (theirs, "x")),
    ] {
        assert_eq!(in_the_way(one(&mut tx, 1, mutation)), [theirs]);
    }
}

#[test]
fn files_do_not_wait_for_absent_sessions() {
    let mut tx = tx();
    let f = make_file(&mut tx, "f").id;
    tx.commit().unwrap();
    let context = Arc::get_mut(&mut tx.context).unwrap();
    context.leases = crate::leases::Leases::new(
        Arc::clone(&context.attendance),
        std::time::Duration::from_secs(10),
        [session(9)],
    );
    let set = |inode| Mutation::RemoveXattr { inode, name: "user.x".into() };
    assert_eq!(one(&mut tx, 1, set(f)).unwrap_err().kind(), ErrorKind::NoData);
    assert_eq!(in_the_way(one(&mut tx, 1, set(ROOT))), [ROOT]);
    assert_eq!(in_the_way(one(&mut tx, 1, file(ROOT, "g"))), [ROOT]);
    assert!(one(&mut tx, 9, file(ROOT, "g")).is_ok(), "the absent one itself may go on");
}

fn unlink(parent: InodeId, text: &str) -> Mutation {
    Mutation::Unlink { parent, name: name(text) }
}

fn chmod(inode: InodeId) -> Mutation {
    Mutation::SetAttr(SetAttr { mode: Some(0o700), ..set(inode) })
}

/// A directory d with files f and g and a directory below, which session 2 has listed.
struct Listed {
    tx: Tx,
    d: InodeId,
    f: InodeId,
    g: InodeId,
    below: InodeId,
    read: ReadGrant,
}

impl Listed {
    fn new() -> Self {
        let mut tx = tx();
        let (d, _) = made(one(&mut tx, 2, mkdir(ROOT, "d")));
        let [f, g] = ["f", "g"].map(|text| made(one(&mut tx, 2, file(d, text))).0);
        let (below, _) = made(one(&mut tx, 2, mkdir(d, "below")));
        one(&mut tx, 2, file(ROOT, "elsewhere")).unwrap();
        end_group(&mut tx);
        for number in [1, 2] {
            tx.context.sessions.open(session(number), String::new(), true).unwrap();
            tx.context.leases.attach(session(number));
        }
        let leases = &tx.context.leases;
        let read = leases.grant_reads(session(2), d, &[f, g, below], leases.committed()).unwrap();
        assert_eq!(read.without, [0; 0]);
        Self { tx, d, f, g, below, read }
    }

    fn give_back(&self, inodes: &[InodeId]) {
        let grant = |&inode: &InodeId| Grant { inode, number: self.read.number };
        let grants: Vec<_> = inodes.iter().map(grant).collect();
        self.tx.context.leases.give_back_reads(session(2), &grants);
    }
}

/// As the executor does it.
fn end_group(tx: &mut Tx) {
    tx.commit().unwrap();
    tx.context.leases.group_ended();
}

type Change = fn(&Listed) -> (Mutation, Vec<InodeId>);

/// Changes to what session 2 has listed, each with the inodes that it shows otherwise afterwards.
fn changes_of_listed() -> Vec<Change> {
    vec![
        |t| (chmod(t.f), vec![t.f]),
        |t| (chmod(t.d), vec![t.d]),
        |t| (file(t.d, "new"), vec![t.d]),
        |t| (leased_dir(t.d, "new"), vec![t.d]),
        |t| (unlink(t.d, "f"), vec![t.d, t.f]),
        |t| (Mutation::Rmdir { parent: t.d, name: name("below") }, vec![t.d, t.below]),
        |t| (Mutation::Link { inode: t.f, parent: ROOT, name: name("link") }, vec![t.f]),
        |t| (rename((t.d, "f"), (t.d, "g")), vec![t.d, t.f, t.g]),
        |t| (rename((t.d, "g"), (ROOT, "g")), vec![t.d, t.g]),
        |t| (rename((ROOT, "elsewhere"), (t.below, "f")), vec![t.below]),
        |t| {
            let (name, value) = ("user.x".into(), "y".into());
            let op = SetXattr { inode: t.g, name, value, create: false, replace: false };
            (Mutation::SetXattr(op), vec![t.g])
        },
        |t| (Mutation::SetAttr(SetAttr { size: Some(100), ..set(t.f) }), vec![t.f]),
    ]
}

#[test]
fn what_another_session_may_show_is_not_changed_until_it_has_given_that_back() {
    for change in changes_of_listed() {
        let mut t = Listed::new();
        let (mutation, changed) = change(&t);
        let wanted = |tx: &mut Tx| run_steps(tx, 1, true, vec![step(mutation.clone())]);
        assert_eq!(in_the_way(wanted(&mut t.tx)), changed, "{mutation:?}");
        assert_eq!(t.tx.changed_rows(), 0, "{mutation:?} has left something");
        assert_eq!(t.tx.context.leases.len(), 0, "a lease came with {mutation:?}, which was not done");
        let (last, others) = changed.split_last().unwrap();
        t.give_back(others);
        assert_eq!(in_the_way(wanted(&mut t.tx)), [*last], "{mutation:?}");
        t.give_back(&[*last]);
        assert!(wanted(&mut t.tx).unwrap()[0].is_ok(), "{mutation:?}");
        assert!(t.tx.changed_rows() > 0);
    }
}

#[test]
fn who_may_show_something_may_change_it() {
    for change in changes_of_listed() {
        let mut t = Listed::new();
        let (mutation, _) = change(&t);
        assert!(one(&mut t.tx, 2, mutation.clone()).is_ok(), "{mutation:?}");
        let still = t.tx.context.leases.changing(Some(session(1)), &[t.d, t.f, t.g, t.below]);
        assert_eq!(still.len(), 4, "its own change takes nothing from it");
    }
}

#[test]
fn what_a_batch_leaves_as_it_is_may_be_shown() {
    let mut t = Listed::new();
    let steps = vec![
        step(file(ROOT, "new")),
        step(Mutation::RemoveXattr { inode: t.f, name: "user.x".into() }),
        step(file(t.d, "f")),
        Step { caller: by(7), ..step(chmod(t.f)) },
        step(rename((t.d, "f"), (t.d, "f"))),
    ];
    let results = run_steps(&mut t.tx, 1, false, steps).unwrap();
    let kinds: Vec<_> = results.into_iter().map(|result| result.err().map(|error| error.kind())).collect();
    let failed = [ErrorKind::NoData, ErrorKind::Exists, ErrorKind::NotPermitted].map(Some);
    assert_eq!(kinds, [None, failed[0], failed[1], failed[2], None]);
}

#[test]
fn one_change_in_the_way_stops_the_whole_batch_and_all_of_them_are_told() {
    let mut t = Listed::new();
    let steps = || vec![leased_dir(ROOT, "new"), chmod(t.f), unlink(ROOT, "elsewhere"), chmod(t.g)];
    let steps: Vec<_> = steps().into_iter().map(step).collect();
    assert_eq!(in_the_way(run_steps(&mut t.tx, 1, true, steps.clone())), [t.f, t.g]);
    assert_eq!((t.tx.changed_rows(), t.tx.context.leases.len()), (0, 0));
    t.give_back(&[t.f, t.g]);
    assert!(run_steps(&mut t.tx, 1, true, steps).unwrap().iter().all(Result::is_ok));
    assert_eq!(t.tx.context.leases.len(), 2, "on the root and on the new one");
}

#[test]
fn what_a_group_has_changed_is_covered_by_no_lease_until_it_is_committed() {
    let mut t = Listed::new();
    let list = |t: &Listed, committed| {
        t.tx.context.leases.grant_reads(session(2), t.d, &[t.f, t.g, t.below], committed)
    };
    t.give_back(&[t.d, t.f, t.g, t.below]);
    let before = t.tx.context.leases.committed();
    one(&mut t.tx, 1, chmod(t.g)).unwrap();
    for committed in [before, t.tx.context.leases.committed()] {
        assert_eq!(list(&t, committed).unwrap().without, [1]);
    }
    one(&mut t.tx, 1, file(t.d, "new")).unwrap_err();
    t.give_back(&[t.d, t.f, t.below]);
    end_group(&mut t.tx);
    assert_eq!(list(&t, before).map(|grant| grant.without), None, "a refused change may come any moment");
    assert_eq!(list(&t, t.tx.context.leases.committed()).unwrap().without, [0; 0]);
}

#[test]
fn nobody_holds_open_what_was_not_created_in_the_end() {
    let mut t = Listed::new();
    let open = Some(OpenBy { session: session(1), sequence: 1 });
    let opened = create(t.d, "new", NewInode::File { exclusive: true, open });
    assert_eq!(in_the_way(one(&mut t.tx, 1, Mutation::Create(opened))), [t.d]);
    // Somebody else's file has its id now.
    let (made, _) = made(one(&mut t.tx, 2, file(t.d, "other")));
    one(&mut t.tx, 2, unlink(t.d, "other")).unwrap();
    assert_eq!(t.tx.find::<Inode>(&Key::Inode(made)).unwrap(), None, "it is kept for nobody");
}

#[test]
fn a_file_that_was_not_removed_in_the_end_can_be_opened() {
    let mut t = Listed::new();
    assert_eq!(in_the_way(one(&mut t.tx, 1, unlink(t.d, "f"))), [t.d, t.f]);
    let open = Open { inode: t.f, sequence: 1 };
    t.tx.context.sessions.register(session(2), open).unwrap();
    t.give_back(&[t.d, t.f]);
    let removed = one(&mut t.tx, 1, unlink(t.d, "f")).unwrap().applied.inode.unwrap();
    assert_eq!(t.tx.find::<Inode>(&Key::Inode(t.f)).unwrap(), Some(removed), "its holder keeps it");
}

#[test]
fn a_file_that_has_lost_its_name_is_opened_by_nobody_who_did_not_hold_it() {
    let mut tx = tx();
    let f = made(one(&mut tx, 1, file(ROOT, "f"))).0;
    for number in [1, 2] {
        tx.context.sessions.open(session(number), String::new(), true).unwrap();
    }
    let open = |tx: &Tx, number, sequence| {
        let opened = tx.context.sessions.register(session(number), Open { inode: f, sequence });
        opened.map_err(|error| error.kind())
    };
    open(&tx, 1, 1).unwrap();
    tx.commit().unwrap();
    // A removal that comes to nothing in the end has taken no name.
    let failed: Result<(), OpError> = tx.attempt(|tx| {
        apply(tx, &unlink(ROOT, "f"), &by(0))?;
        Err(OpError::invalid("something else"))
    });
    assert!(failed.is_err());
    open(&tx, 2, 1).unwrap();
    tx.context.sessions.close(session(2), &[Open { inode: f, sequence: 1 }]);
    one(&mut tx, 1, unlink(ROOT, "f")).unwrap();
    // Before the commit, too: who opens it now sees a name still, and would hold what is deleted with the last holder.
    for is_committed in [false, true] {
        if is_committed {
            tx.commit().unwrap();
        }
        assert_eq!(open(&tx, 2, 2), Err(ErrorKind::StaleHandle), "committed: {is_committed}");
        open(&tx, 1, 2).unwrap();
    }
}
