//! Rules of single calls, each by its man page.

use std::ops::Deref;

use bytes::Bytes;
use cairn_proto::{ByteRange, ErrorKind, InodeId, SessionId, SymlinkTarget};
use uuid::Uuid;

use super::*;
use crate::ops::{Allocate, SetXattr, TimeChange, read};
use crate::sessions::Open;
use crate::store::{Inode, Key, ReadThrough, Reader, Readers, Snapshot, StoreError};

const ROOT: InodeId = InodeId::ROOT;

fn attr(tx: &mut Tx, id: InodeId) -> Inode {
    tx.find(&Key::Inode(id)).unwrap().unwrap()
}

fn xattr(tx: &mut Tx, inode: InodeId, name: &'static str, caller: &Caller) -> Result<Applied, OpError> {
    let op = SetXattr {
        inode,
        name: Bytes::from_static(name.as_bytes()),
        value: Bytes::from_static(b"v"),
        create: false,
        replace: false,
    };
    run(tx, Mutation::SetXattr(op), caller)
}

#[test]
fn a_change_of_content_or_owner_takes_the_capability() {
    let mut tx = tx();
    let file = make_file(&mut tx, "f").id;
    let change = |tx: &mut Tx, change: &dyn Fn(&mut Tx)| {
        xattr(tx, file, "security.capability", &root()).unwrap();
        xattr(tx, file, "user.kept", &root()).unwrap();
        assert_eq!(attr(tx, file).xattrs, 2);
        change(tx);
        assert_eq!(attr(tx, file).xattrs, 1);
        let key = Key::Xattr(file, Bytes::from_static(b"security.capability"));
        assert!(tx.get(&key).unwrap().is_none());
    };
    let set_attr = |tx: &mut Tx, op: SetAttr| drop(run(tx, Mutation::SetAttr(op), &root()).unwrap());
    change(&mut tx, &|tx| set_attr(tx, SetAttr { uid: Some(7), ..set(file) }));
    change(&mut tx, &|tx| set_attr(tx, SetAttr { size: Some(100), ..set(file) }));
    for keep_size in [true, false] {
        let range = ByteRange::new(0, 10).unwrap();
        let op = Allocate { inode: file, range, keep_size, make_hole: false };
        change(&mut tx, &|tx| drop(run(tx, Mutation::Allocate(op.clone()), &user(7)).unwrap()));
    }
    // The kernel does so for chown(2) that changes nothing, which everybody may call.
    let name = Bytes::from_static(b"security.capability");
    let remove = Mutation::RemoveXattr { inode: file, name: name.clone() };
    change(&mut tx, &|tx| drop(run(tx, remove.clone(), &user(9)).unwrap()));
    assert_eq!(
        kind_of(xattr(&mut tx, file, "security.capability", &user(9))).unwrap_err(),
        ErrorKind::NotPermitted
    );
    // Nothing to take: nothing changes.
    let version = attr(&mut tx, file).version;
    let range = ByteRange::new(0, 10).unwrap();
    let op = Allocate { inode: file, range, keep_size: true, make_hole: false };
    run(&mut tx, Mutation::Allocate(op), &user(7)).unwrap();
    assert_eq!(attr(&mut tx, file).version, version);
}

#[test]
fn a_set_group_id_directory_gives_its_group() {
    let mut tx = tx();
    let dir = make_dir(&mut tx, ROOT, "d", 0o2777, &root());
    run(&mut tx, Mutation::SetAttr(SetAttr { gid: Some(50), ..set(dir.id) }), &root()).unwrap();
    let file = create(&mut tx, dir.id, "f", plain_file(), 0o2755, &user(7)).unwrap().inode.unwrap();
    assert_eq!((file.uid, file.gid, file.mode), (7, 50, 0o755), "no program for a group that is not his");
    let sub = make_dir(&mut tx, dir.id, "s", 0o755, &user(7));
    assert_eq!((sub.gid, sub.mode), (50, 0o2755));
}

#[test]
fn create_checks_search_then_existence_then_write() {
    let mut tx = tx();
    let dir = make_dir(&mut tx, ROOT, "d", 0o555, &root());
    create(&mut tx, dir.id, "there", plain_file(), 0o644, &root()).unwrap();
    let mut made = |text| kind_of(create(&mut tx, dir.id, text, plain_file(), 0o644, &user(8))).unwrap_err();
    assert_eq!(made("there"), ErrorKind::Exists);
    assert_eq!(made("new"), ErrorKind::AccessDenied);
    run(&mut tx, Mutation::SetAttr(SetAttr { mode: Some(0o666), ..set(dir.id) }), &root()).unwrap();
    let blind = create(&mut tx, dir.id, "there", plain_file(), 0o644, &user(8));
    assert_eq!(kind_of(blind).unwrap_err(), ErrorKind::AccessDenied);
}

#[test]
fn create_without_exclusive_takes_what_is_there() {
    let mut tx = tx();
    let file = make_file(&mut tx, "f");
    let again = NewInode::File { exclusive: false, open: None };
    let taken = create(&mut tx, ROOT, "f", again.clone(), 0o600, &user(9)).unwrap().inode.unwrap();
    assert_eq!((taken.id, taken.mode), (file.id, 0o644));
    make_dir(&mut tx, ROOT, "d", 0o755, &root());
    let dir = create(&mut tx, ROOT, "d", again, 0o600, &root());
    assert_eq!(kind_of(dir).unwrap_err(), ErrorKind::IsDirectory);
}

#[test]
fn only_root_makes_devices() {
    let mut tx = tx();
    let open = make_dir(&mut tx, ROOT, "d", 0o777, &root());
    let device = NewInode::CharDevice { rdev: 0x103 };
    let refused = create(&mut tx, open.id, "null", device.clone(), 0o666, &user(7));
    assert_eq!(kind_of(refused).unwrap_err(), ErrorKind::NotPermitted);
    let made = create(&mut tx, open.id, "null", device, 0o666, &root()).unwrap().inode.unwrap();
    assert_eq!(made.rdev, 0x103);
    create(&mut tx, open.id, "pipe", NewInode::Fifo, 0o600, &user(7)).unwrap();
}

#[test]
fn a_symlink_has_the_length_of_its_target() {
    let mut tx = tx();
    let target = NewInode::Symlink(SymlinkTarget::new(&b"some/where"[..]).unwrap());
    let made = create(&mut tx, ROOT, "l", target, 0o600, &root()).unwrap().inode.unwrap();
    assert_eq!((made.size, made.mode, made.nlink), (10, 0o777, 1));
}

#[test]
fn a_sticky_directory_protects_what_belongs_to_others() {
    let mut tx = tx();
    let tmp = make_dir(&mut tx, ROOT, "tmp", 0o1777, &root());
    create(&mut tx, tmp.id, "f", plain_file(), 0o666, &user(7)).unwrap();
    create(&mut tx, tmp.id, "mine", plain_file(), 0o666, &user(8)).unwrap();
    assert_eq!(kind_of(unlink(&mut tx, tmp.id, "f", &user(8))).unwrap_err(), ErrorKind::NotPermitted);
    let over = rename(&mut tx, (tmp.id, "mine"), (tmp.id, "f"), RenameMode::Replace, &user(8));
    assert_eq!(kind_of(over).unwrap_err(), ErrorKind::NotPermitted);
    unlink(&mut tx, tmp.id, "f", &user(7)).unwrap();
    unlink(&mut tx, tmp.id, "mine", &root()).unwrap();
}

#[test]
fn unlink_and_rmdir_keep_to_their_kinds() {
    let mut tx = tx();
    make_file(&mut tx, "f");
    let dir = make_dir(&mut tx, ROOT, "d", 0o755, &root());
    assert_eq!(kind_of(unlink(&mut tx, ROOT, "d", &root())).unwrap_err(), ErrorKind::IsDirectory);
    assert_eq!(kind_of(rmdir(&mut tx, ROOT, "f", &root())).unwrap_err(), ErrorKind::NotDirectory);
    make_dir(&mut tx, dir.id, "sub", 0o755, &root());
    assert_eq!(kind_of(rmdir(&mut tx, ROOT, "d", &root())).unwrap_err(), ErrorKind::NotEmpty);
    rmdir(&mut tx, dir.id, "sub", &root()).unwrap();
    assert_eq!(rmdir(&mut tx, ROOT, "d", &root()).unwrap().inode.unwrap().nlink, 0);
    let late = create(&mut tx, dir.id, "x", plain_file(), 0o644, &root());
    assert_eq!(kind_of(late).unwrap_err(), ErrorKind::NotFound);
}

#[test]
fn hard_links_share_an_inode_and_directories_have_none() {
    let mut tx = tx();
    let file = make_file(&mut tx, "f");
    let linked = link(&mut tx, file.id, ROOT, "g").unwrap().inode.unwrap();
    assert_eq!(linked.nlink, 2);
    assert!(linked.ctime_ns >= file.ctime_ns && linked.mtime_ns == file.mtime_ns);
    assert_eq!(kind_of(link(&mut tx, file.id, ROOT, "g")).unwrap_err(), ErrorKind::Exists);
    let dir = make_dir(&mut tx, ROOT, "d", 0o755, &root());
    assert_eq!(kind_of(link(&mut tx, dir.id, ROOT, "e")).unwrap_err(), ErrorKind::NotPermitted);
    // Renaming one name over the other of the same inode does nothing.
    rename(&mut tx, (ROOT, "f"), (ROOT, "g"), RenameMode::Replace, &root()).unwrap();
    assert_eq!(attr(&mut tx, file.id).nlink, 2);
    unlink(&mut tx, ROOT, "f", &root()).unwrap();
    unlink(&mut tx, ROOT, "g", &root()).unwrap();
    assert_eq!(kind_of(link(&mut tx, file.id, ROOT, "h")).unwrap_err(), ErrorKind::NotFound);
}

#[test]
fn names_and_subdirectories_end_at_65000() {
    let mut tx = tx();
    let mut file = make_file(&mut tx, "f");
    file.nlink = 65_000;
    tx.put(file.clone());
    assert_eq!(kind_of(link(&mut tx, file.id, ROOT, "g")).unwrap_err(), ErrorKind::TooManyLinks);
    let mut dir = make_dir(&mut tx, ROOT, "d", 0o755, &root());
    dir.nlink = 65_000;
    tx.put(dir.clone());
    let one_more = create(&mut tx, dir.id, "x", NewInode::Directory, 0o755, &root());
    assert_eq!(kind_of(one_more).unwrap_err(), ErrorKind::TooManyLinks);
    create(&mut tx, dir.id, "x", plain_file(), 0o644, &root()).unwrap();
}

#[test]
fn rename_moves_directories_but_never_below_themselves() {
    let mut tx = tx();
    let a = make_dir(&mut tx, ROOT, "a", 0o755, &root());
    let b = make_dir(&mut tx, a.id, "b", 0o755, &root());
    let c = make_dir(&mut tx, ROOT, "c", 0o755, &root());
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        let loops = rename(&mut tx, (ROOT, "a"), (b.id, "x"), mode, &root());
        assert_eq!(kind_of(loops).unwrap_err(), ErrorKind::InvalidArgument);
    }
    for (from, to) in [((ROOT, "a"), (a.id, "b")), ((a.id, "b"), (ROOT, "a"))] {
        let loops = rename(&mut tx, from, to, RenameMode::Exchange, &root());
        assert_eq!(kind_of(loops).unwrap_err(), ErrorKind::InvalidArgument);
    }
    rename(&mut tx, (a.id, "b"), (c.id, "b"), RenameMode::Replace, &root()).unwrap();
    assert_eq!(attr(&mut tx, b.id).parent, c.id.get());
    assert_eq!([a.id, c.id].map(|id| attr(&mut tx, id).nlink), [2, 3]);
    // Moving a directory writes its "..".
    let d = make_dir(&mut tx, ROOT, "open", 0o777, &root());
    make_dir(&mut tx, d.id, "theirs", 0o755, &user(9));
    let e = make_dir(&mut tx, ROOT, "open2", 0o777, &root());
    let moved = rename(&mut tx, (d.id, "theirs"), (e.id, "x"), RenameMode::Replace, &user(8));
    assert_eq!(kind_of(moved).unwrap_err(), ErrorKind::AccessDenied);
    rename(&mut tx, (d.id, "theirs"), (d.id, "x"), RenameMode::Replace, &user(8)).unwrap();
}

/// One that has no snapshot: a change is committed after the look at the directory and at the name.
struct Overtaken {
    before: Snapshot,
    after: Snapshot,
    looks: std::cell::Cell<u32>,
}

impl ReadThrough for Overtaken {
    fn through(&self) -> Result<impl Deref<Target: Reader>, StoreError> {
        let looks = self.looks.replace(self.looks.get() + 1);
        Ok(if looks < 2 { &*self.before } else { &*self.after })
    }
}

#[test]
fn a_name_that_is_replaced_is_found_at_every_moment() {
    let store = MemoryStore::default();
    let mut tx = tx_on(&store, |writer| writer);
    let (old, new) = (make_file(&mut tx, "name"), make_file(&mut tx, "temporary"));
    tx.commit().unwrap();
    let before = store.reader(true).unwrap();
    rename(&mut tx, (ROOT, "temporary"), (ROOT, "name"), RenameMode::Replace, &root()).unwrap();
    tx.commit().unwrap();
    let after = store.reader(true).unwrap();
    assert!(after.get(&Key::Inode(old.id)).unwrap().is_none(), "what was replaced is gone");
    let reader = Overtaken { before, after, looks: 0.into() };
    let found = read::lookup(&reader, ROOT, &name("name"), &root()).unwrap();
    assert_eq!(found.id, new.id);
    // Removed meanwhile, it is not there.
    let before = store.reader(true).unwrap();
    unlink(&mut tx, ROOT, "name", &root()).unwrap();
    tx.commit().unwrap();
    let reader = Overtaken { before, after: store.reader(true).unwrap(), looks: 0.into() };
    assert_eq!(
        kind_of(read::lookup(&reader, ROOT, &name("name"), &root())).unwrap_err(),
        ErrorKind::NotFound
    );
}

#[test]
fn rename_replaces_like_with_like() {
    let mut tx = tx();
    make_file(&mut tx, "f");
    let dir = make_dir(&mut tx, ROOT, "d", 0o755, &root());
    make_dir(&mut tx, ROOT, "e", 0o755, &root());
    create(&mut tx, dir.id, "x", plain_file(), 0o644, &root()).unwrap();
    let mut renamed = |from, to, mode| kind_of(rename(&mut tx, (ROOT, from), (ROOT, to), mode, &root()));
    assert_eq!(renamed("f", "d", RenameMode::Replace).unwrap_err(), ErrorKind::IsDirectory);
    assert_eq!(renamed("d", "f", RenameMode::Replace).unwrap_err(), ErrorKind::NotDirectory);
    assert_eq!(renamed("e", "d", RenameMode::Replace).unwrap_err(), ErrorKind::NotEmpty);
    assert_eq!(renamed("e", "d", RenameMode::NoReplace).unwrap_err(), ErrorKind::Exists);
    assert_eq!(renamed("no", "d", RenameMode::Replace).unwrap_err(), ErrorKind::NotFound);
    assert_eq!(renamed("f", "no", RenameMode::Exchange).unwrap_err(), ErrorKind::NotFound);
    renamed("f", "d", RenameMode::Exchange).unwrap();
    renamed("f", "e", RenameMode::Replace).unwrap();
    assert_eq!(attr(&mut tx, ROOT).nlink, 3);
    assert_eq!(attr(&mut tx, ROOT).size, 2);
}

#[test]
fn changing_entries_changes_the_times_of_the_directory() {
    let mut tx = tx();
    let before = attr(&mut tx, ROOT);
    let made = create(&mut tx, ROOT, "f", plain_file(), 0o644, &root()).unwrap();
    let after = made.parent.unwrap();
    assert!(after.mtime_ns > before.mtime_ns && after.ctime_ns == after.mtime_ns);
    assert!(after.version > before.version);
    let inode = made.inode.unwrap();
    let moved = rename(&mut tx, (ROOT, "f"), (ROOT, "g"), RenameMode::Replace, &root()).unwrap();
    let moved_inode = moved.inode.unwrap();
    assert!(moved_inode.ctime_ns > inode.ctime_ns && moved_inode.mtime_ns == inode.mtime_ns);
    let gone = unlink(&mut tx, ROOT, "g", &root()).unwrap();
    assert!(gone.parent.unwrap().mtime_ns > after.mtime_ns);
}

#[test]
fn chmod_is_the_owners_right() {
    let mut tx = tx();
    let open = make_dir(&mut tx, ROOT, "d", 0o777, &root());
    let file = create(&mut tx, open.id, "f", plain_file(), 0o4666, &user(7)).unwrap().inode.unwrap();
    let mut chmod = |mode, caller: &Caller| {
        let op = SetAttr { mode: Some(mode), ..set(file.id) };
        kind_of(run(&mut tx, Mutation::SetAttr(op), caller)).map(|applied| applied.inode.unwrap().mode)
    };
    assert_eq!(chmod(0o600, &user(8)), Err(ErrorKind::NotPermitted));
    assert_eq!(chmod(0o666, &user(8)), Ok(0o666), "what a write by another user does");
    assert_eq!(chmod(0o4666, &user(8)), Err(ErrorKind::NotPermitted));
    assert_eq!(chmod(0o2755, &user(7)), Ok(0o2755));
    let mut stranger = user(7);
    stranger.gid = 99;
    assert_eq!(chmod(0o2755, &stranger), Ok(0o755), "the group is not his");
}

#[test]
fn chown_is_roots_right_but_for_ones_own_groups() {
    let mut tx = tx();
    let open = make_dir(&mut tx, ROOT, "d", 0o777, &root());
    let file = create(&mut tx, open.id, "f", plain_file(), 0o6755, &user(7)).unwrap().inode.unwrap();
    let mut chown = |uid, gid, caller: &Caller| {
        let op = SetAttr { uid, gid, ..set(file.id) };
        kind_of(run(&mut tx, Mutation::SetAttr(op), caller)).map(|applied| {
            let inode = applied.inode.unwrap();
            (inode.uid, inode.gid, inode.mode)
        })
    };
    assert_eq!(chown(Some(8), None, &user(7)), Err(ErrorKind::NotPermitted));
    assert_eq!(chown(None, Some(50), &user(7)), Err(ErrorKind::NotPermitted));
    assert_eq!(chown(None, Some(8), &user(8)), Err(ErrorKind::NotPermitted));
    let member = Caller { groups: vec![50], ..user(7) };
    assert_eq!(chown(Some(7), Some(50), &member), Ok((7, 50, 0o755)));
    assert_eq!(chown(Some(8), Some(8), &root()), Ok((8, 8, 0o755)));
    assert_eq!(chown(None, None, &user(9)), Ok((8, 8, 0o755)));
}

#[test]
fn times_are_set_by_the_owner_and_touched_by_writers() {
    let mut tx = tx();
    let open = make_dir(&mut tx, ROOT, "d", 0o777, &root());
    let file = create(&mut tx, open.id, "f", plain_file(), 0o666, &user(7)).unwrap().inode.unwrap();
    let mut times = |atime, mtime, caller: &Caller| {
        let op = SetAttr { atime, mtime, ..set(file.id) };
        kind_of(run(&mut tx, Mutation::SetAttr(op), caller)).map(|applied| applied.inode.unwrap())
    };
    let (now, at) = (Some(TimeChange::Now), Some(TimeChange::At(-5)));
    assert!(times(now, now, &user(8)).is_ok());
    assert_eq!(times(at, now, &user(8)).unwrap_err(), ErrorKind::NotPermitted);
    assert_eq!(times(now, None, &user(8)).unwrap_err(), ErrorKind::NotPermitted);
    let set = times(None, at, &user(7)).unwrap();
    assert_eq!(set.mtime_ns, -5);
    assert!(set.ctime_ns > 0 && set.atime_ns > 0);
    run(&mut tx, Mutation::SetAttr(SetAttr { mode: Some(0o600), ..super::set(file.id) }), &root()).unwrap();
    let op = SetAttr { atime: now, mtime: now, ..super::set(file.id) };
    assert_eq!(kind_of(run(&mut tx, Mutation::SetAttr(op), &user(8))).unwrap_err(), ErrorKind::AccessDenied);
}

#[test]
fn truncate_asks_for_write_permission_unless_by_a_handle() {
    let mut tx = tx();
    let open = make_dir(&mut tx, ROOT, "d", 0o777, &root());
    let file = create(&mut tx, open.id, "f", plain_file(), 0o4444, &user(7)).unwrap().inode.unwrap();
    let op = SetAttr { size: Some(10), ..set(file.id) };
    let refused = run(&mut tx, Mutation::SetAttr(op.clone()), &user(7));
    assert_eq!(kind_of(refused).unwrap_err(), ErrorKind::AccessDenied);
    let by_handle = SetAttr { via_handle: true, ..op.clone() };
    let done = run(&mut tx, Mutation::SetAttr(by_handle), &user(7)).unwrap().inode.unwrap();
    assert_eq!((done.size, done.mode), (10, 0o444));
    assert!(done.mtime_ns > file.mtime_ns);
    let dir = run(&mut tx, Mutation::SetAttr(SetAttr { inode: ROOT, ..op }), &root());
    assert_eq!(kind_of(dir).unwrap_err(), ErrorKind::IsDirectory);
}

#[test]
fn allocate_extends_unless_it_keeps_the_size() {
    let mut tx = tx();
    let file = make_file(&mut tx, "f");
    let range = ByteRange::new(10, 90).unwrap();
    for (keep_size, size) in [(true, 0), (false, 100)] {
        let op = Allocate { inode: file.id, range, keep_size, make_hole: false };
        let done = run(&mut tx, Mutation::Allocate(op), &root()).unwrap().inode.unwrap();
        assert_eq!((done.size, done.allocated), (size, 0));
    }
}

#[test]
fn attributes_follow_their_namespaces() {
    let mut tx = tx();
    let open = make_dir(&mut tx, ROOT, "d", 0o1777, &root());
    let file = create(&mut tx, open.id, "f", plain_file(), 0o644, &user(7)).unwrap().inode.unwrap();
    let fifo = create(&mut tx, open.id, "p", NewInode::Fifo, 0o666, &user(7)).unwrap().inode.unwrap();
    let mut refused = |inode, name, caller| kind_of(xattr(&mut tx, inode, name, &caller)).unwrap_err();
    assert_eq!(refused(fifo.id, "user.a", root()), ErrorKind::NotPermitted);
    assert_eq!(refused(open.id, "user.a", user(7)), ErrorKind::NotPermitted);
    assert_eq!(refused(file.id, "user.a", user(8)), ErrorKind::AccessDenied);
    assert_eq!(refused(file.id, "trusted.a", user(7)), ErrorKind::NotPermitted);
    assert_eq!(refused(file.id, "security.a", user(7)), ErrorKind::NotPermitted);
    assert_eq!(refused(file.id, "system.posix_acl_access", root()), ErrorKind::NotSupported);
    assert_eq!(refused(file.id, "other", root()), ErrorKind::NotSupported);
    assert_eq!(refused(file.id, "user.", root()), ErrorKind::InvalidArgument);
    let set = xattr(&mut tx, file.id, "user.a", &user(7)).unwrap().inode.unwrap();
    assert_eq!(set.xattrs, 1);
    assert_eq!(xattr(&mut tx, file.id, "user.a", &user(7)).unwrap().inode.unwrap().xattrs, 1);
    let removal = |name: &'static str| Mutation::RemoveXattr {
        inode: file.id,
        name: Bytes::from_static(name.as_bytes()),
    };
    assert_eq!(run(&mut tx, removal("user.a"), &user(7)).unwrap().inode.unwrap().xattrs, 0);
    assert_eq!(kind_of(run(&mut tx, removal("user.a"), &user(7))).unwrap_err(), ErrorKind::NoData);
}

#[test]
fn an_attribute_is_created_or_replaced_as_asked() {
    let mut tx = tx();
    let file = make_file(&mut tx, "f");
    let op = |create, replace, length| {
        Mutation::SetXattr(SetXattr {
            inode: file.id,
            name: Bytes::from_static(b"user.a"),
            value: vec![0; length].into(),
            create,
            replace,
        })
    };
    assert_eq!(kind_of(run(&mut tx, op(false, true, 1), &root())).unwrap_err(), ErrorKind::NoData);
    run(&mut tx, op(true, false, 1), &root()).unwrap();
    assert_eq!(kind_of(run(&mut tx, op(true, false, 1), &root())).unwrap_err(), ErrorKind::Exists);
    run(&mut tx, op(false, true, 65_536), &root()).unwrap();
    assert_eq!(kind_of(run(&mut tx, op(false, false, 65_537), &root())).unwrap_err(), ErrorKind::TooBig);
}

#[test]
fn a_batch_goes_on_behind_a_mutation_that_fails() {
    let mut tx = tx();
    make_file(&mut tx, "f");
    let results = tx
        .attempt(|tx| {
            let twice = [("f", false), ("g", true)].map(|(text, fine)| {
                let op = Create {
                    parent: ROOT,
                    name: name(text),
                    new: plain_file(),
                    mode: 0o644,
                    id: None,
                    lease: false,
                };
                assert_eq!(apply(tx, &Mutation::Create(op), &root()).is_ok(), fine);
            });
            Ok(twice.len())
        })
        .unwrap();
    assert_eq!(results, 2);
    assert_eq!(attr(&mut tx, ROOT).size, 2);
}

#[test]
fn an_orphan_goes_with_its_last_holder() {
    let mut tx = tx();
    let file = make_file(&mut tx, "f");
    let sessions = [1, 2].map(|n| SessionId::from_uuid(Uuid::from_u128(n)));
    for session in sessions {
        tx.attempt(|tx| crate::ops::open::begin_session(tx, session, String::new(), true)).unwrap();
        tx.context.sessions.register(session, Open { inode: file.id, sequence: 1 }).unwrap();
    }
    unlink(&mut tx, ROOT, "f", &root()).unwrap();
    assert_eq!(attr(&mut tx, file.id).nlink, 0);
    let [first, second] = sessions;
    // A later open of the same file keeps it.
    tx.context.sessions.register(first, Open { inode: file.id, sequence: 2 }).unwrap();
    assert_eq!(tx.context.sessions.close(first, &[Open { inode: file.id, sequence: 1 }]), []);
    let closed = tx.context.sessions.close(first, &[Open { inode: file.id, sequence: 2 }]);
    tx.attempt(|tx| crate::ops::open::release(tx, first, &closed)).unwrap();
    assert_eq!(attr(&mut tx, file.id).nlink, 0);
    assert!(tx.attempt(|tx| crate::ops::open::end_session(tx, second, false)).unwrap());
    assert_eq!(tx.find::<Inode>(&Key::Inode(file.id)).unwrap(), None);
}
