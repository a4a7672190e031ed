use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_proto::SessionId;
use proptest::prelude::*;

use super::*;
use crate::ops::batch::{self, Batch, Done, Step};
use crate::ops::tests::{name, tx};
use crate::ops::{NewInode, Rename, RenameMode, reserve};
use crate::store::{Dentry, Inode, Key, Scan, Table};

const ROOT: InodeId = InodeId::ROOT;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn session() -> SessionId {
    SessionId::from_uuid(uuid::Uuid::from_u128(1))
}

/// What a mount may do to names, by their numbers.
#[derive(Debug, Clone, Copy)]
enum Change {
    Create(usize),
    Unlink(usize),
    Link(usize, usize),
    Rename(usize, usize, RenameMode),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || 0..NAMES.len();
    prop_oneof![
        at().prop_map(Change::Create),
        at().prop_map(Change::Unlink),
        (at(), at()).prop_map(|(from, to)| Change::Link(from, to)),
        (at(), at(), 0..3usize).prop_map(|(from, to, mode)| {
            let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
            Change::Rename(from, to, modes[mode])
        }),
    ]
}

/// A mount that performs changes under a lease and queues them.
struct Mount {
    names: BTreeMap<usize, InodeId>,
    next: InodeId,
    steps: Vec<Step>,
}

impl Mount {
    fn perform(&mut self, change: Change) {
        let at = |number: &usize| self.names.get(number).copied();
        let (mutation, found) = match change {
            Change::Create(to) if at(&to).is_none() => {
                let id = self.next;
                self.next = InodeId::new(id.get() + 1).unwrap();
                self.names.insert(to, id);
                (create(NAMES[to], Some(id)), (None, None))
            }
            Change::Unlink(from) if at(&from).is_some() => {
                let mutation = Mutation::Unlink { parent: ROOT, name: name(NAMES[from]) };
                (mutation, (self.names.remove(&from), None))
            }
            Change::Link(from, to) if at(&to).is_none() => {
                let Some(inode) = at(&from) else { return };
                self.names.insert(to, inode);
                (Mutation::Link { inode, parent: ROOT, name: name(NAMES[to]) }, (None, None))
            }
            Change::Rename(from, to, mode) => {
                let (moved, target) = (at(&from), at(&to));
                let refused = match mode {
                    RenameMode::Replace => false,
                    RenameMode::NoReplace => target.is_some(),
                    RenameMode::Exchange => target.is_none(),
                };
                if moved.is_none() || refused || moved == target {
                    return;
                }
                let back = target.filter(|_| mode == RenameMode::Exchange);
                self.names.remove(&from);
                self.names.extend(back.map(|inode| (from, inode)));
                self.names.extend(moved.map(|inode| (to, inode)));
                (rename(NAMES[from], NAMES[to], mode), (moved, target))
            }
            _ => return,
        };
        let found = Some(FoundNames { name: found.0, new_name: found.1 });
        self.steps.push(Step { mutation, caller: Arc::default(), at_ns: None, found });
    }
}

fn create(text: &str, id: Option<InodeId>) -> Mutation {
    let new = NewInode::File { exclusive: true, open: None };
    Mutation::Create(Create { parent: ROOT, name: name(text), new, mode: 0o644, id, lease: false })
}

fn rename(from: &str, to: &str, mode: RenameMode) -> Mutation {
    let (name, new_name) = (name(from), name(to));
    Mutation::Rename(Rename { parent: ROOT, name, new_parent: ROOT, new_name, mode })
}

fn batch(steps: &[Step]) -> Batch {
    Batch { steps: steps.iter().cloned().map(Ok).collect(), want_leases: false }
}

type Outcome = Vec<Result<Done, OpError>>;

fn run(tx: &mut Tx, steps: &[Step]) -> Outcome {
    tx.attempt(|tx| batch::run(tx, session(), &batch(steps))).unwrap()
}

fn run_whole(tx: &mut Tx, steps: &[Step]) -> Outcome {
    tx.attempt(|tx| batch::run_whole(tx, session(), &batch(steps))).unwrap()
}

/// Names with their inodes, and how many names each of these has.
fn state(tx: &mut Tx) -> Vec<(bytes::Bytes, InodeId, u32)> {
    let entries: Vec<Dentry> = tx.list(&Scan::all(Table::Dentry)).unwrap();
    let with_links = entries.into_iter().map(|entry| {
        let inode: Inode = tx.find(&Key::Inode(entry.child)).unwrap().unwrap();
        (entry.name, entry.child, inode.nlink)
    });
    with_links.collect()
}

/// A root with names that lead to inodes, some to the same, and a mount that holds its lease.
fn begin(initial: [Option<usize>; 4]) -> (Tx, Mount) {
    let mut tx = tx();
    tx.context.sessions.open(session(), String::new(), true).unwrap();
    let mut names = BTreeMap::new();
    for (number, leads) in initial.into_iter().enumerate() {
        let Some(leads) = leads else { continue };
        let target = initial[..number].iter().position(|other| *other == Some(leads));
        let mutation = match target {
            Some(other) => Mutation::Link { inode: names[&other], parent: ROOT, name: name(NAMES[number]) },
            None => create(NAMES[number], None),
        };
        let step = Step { mutation, caller: Arc::default(), at_ns: None, found: None };
        let done = run(&mut tx, &[step]).remove(0).unwrap();
        names.insert(number, done.applied.inode.unwrap().id);
    }
    let next = tx.attempt(|tx| reserve::reserve_inodes(tx, session(), 100)).unwrap();
    tx.commit().unwrap();
    (tx, Mount { names, next, steps: Vec::new() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_executed_twice_is_as_if_it_were_executed_once(
        initial in prop::array::uniform4(prop::option::of(0..3usize)),
        changes in prop::collection::vec(change(), 1..12),
    ) {
        let (mut tx, mut mount) = begin(initial);
        changes.into_iter().for_each(|change| mount.perform(change));
        for done in run(&mut tx, &mount.steps) {
            prop_assert!(done.is_ok(), "{done:?} of {:?}", mount.steps);
        }
        let once = state(&mut tx);
        let led: Vec<_> = once.iter().map(|(name, inode, _)| (name.clone(), *inode)).collect();
        let performed: Vec<_> =
            mount.names.iter().map(|(&at, &inode)| (bytes::Bytes::from(NAMES[at]), inode)).collect();
        prop_assert_eq!(led, performed);
        run_whole(&mut tx, &mount.steps);
        prop_assert_eq!(state(&mut tx), once, "{:?}", mount.steps);
    }
}

#[test]
fn what_another_mount_has_put_under_a_name_is_neither_removed_nor_replaced() {
    for change in [
        Change::Unlink(0),
        Change::Rename(0, 3, RenameMode::Replace),
        Change::Rename(1, 0, RenameMode::Replace),
        Change::Rename(1, 0, RenameMode::Exchange),
    ] {
        let (mut tx, mut mount) = begin([Some(0), Some(1), None, None]);
        mount.perform(change);
        let unseen = |mutation| Step { mutation, caller: Arc::default(), at_ns: None, found: None };
        let replaced = [unseen(create("new", None)), unseen(rename("new", "a", RenameMode::Replace))];
        assert!(run(&mut tx, &replaced).iter().all(Result::is_ok));
        let before = state(&mut tx);
        let refused = run(&mut tx, &mount.steps).remove(0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NameChanged, "{change:?}: {refused}");
        assert_eq!(state(&mut tx), before, "{change:?}");
    }
}

#[test]
fn a_name_that_was_free_is_not_taken_from_who_took_it_meanwhile() {
    for change in [
        Change::Create(3),
        Change::Link(0, 3),
        Change::Rename(0, 3, RenameMode::Replace),
        Change::Rename(0, 3, RenameMode::NoReplace),
    ] {
        let (mut tx, mut mount) = begin([Some(0), None, None, None]);
        mount.perform(change);
        let theirs = Step { mutation: create("d", None), caller: Arc::default(), at_ns: None, found: None };
        assert!(run(&mut tx, &[theirs])[0].is_ok());
        let before = state(&mut tx);
        let refused = run(&mut tx, &mount.steps).remove(0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NameChanged, "{change:?}: {refused}");
        assert_eq!(state(&mut tx), before, "{change:?}");
    }
}

#[test]
fn a_create_that_was_executed_before_gives_what_it_made() {
    let (mut tx, mut mount) = begin([None; 4]);
    mount.perform(Change::Create(0));
    let made = |outcome: Outcome| outcome.into_iter().next().unwrap().unwrap().applied.inode.unwrap();
    let first = made(run(&mut tx, &mount.steps));
    assert_eq!(made(run(&mut tx, &mount.steps)), first);
}
