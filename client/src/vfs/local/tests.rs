use super::*;

fn directory(mode: u32, gid: u32) -> Attr {
    Attr {
        inode: InodeId::ROOT,
        kind: Kind::Directory,
        mode,
        uid: 0,
        gid,
        rdev: 0,
        nlink: 2,
        size: 0,
        allocated: 0,
        atime_ns: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        btime_ns: 0,
        version: 1,
        parent: Some(InodeId::ROOT),
        symlink_target: None,
        has_xattrs: false,
    }
}

fn made(kind: Kind, mode: u32, parent: &Attr, caller: &Caller) -> Attr {
    let create = v1::Create { mode, ..v1::Create::default() };
    new_attr(InodeId::new(2).unwrap(), &create, kind, parent, 9, caller)
}

#[test]
fn a_set_group_id_directory_gives_its_group_and_the_bit_to_directories() {
    let user = Caller::user(7, 7, vec![]);
    let shared = directory(0o2777, 50);
    let below = made(Kind::Directory, 0o755, &shared, &user);
    assert_eq!((below.gid, below.mode, below.nlink), (50, 0o2755, 2));
    let file = made(Kind::File, 0o644, &shared, &user);
    assert_eq!((file.gid, file.mode, file.nlink), (50, 0o644, 1));
    // Nobody outside of the group makes a program that runs with it.
    assert_eq!(made(Kind::File, 0o2755, &shared, &user).mode, 0o755);
    assert_eq!(made(Kind::File, 0o2755, &shared, &Caller { groups: vec![50], ..user }).mode, 0o2755);
    assert_eq!(made(Kind::File, 0o2755, &shared, &Caller::root()).mode, 0o2755);
}

#[test]
fn a_change_of_owner_takes_set_user_id_from_files_alone() {
    let give = AttrChange { uid: Some(5), ..AttrChange::default() };
    let mut file = Attr { kind: Kind::File, ..directory(0o6755, 0) };
    set(&mut file, &give, 9, &Caller::root());
    assert_eq!((file.uid, file.mode, file.ctime_ns), (5, 0o755, 9));
    let mut below = directory(0o6755, 0);
    set(&mut below, &give, 9, &Caller::root());
    assert_eq!(below.mode, 0o6755);
}

#[test]
fn times_are_set_to_now_or_as_told() {
    let mut file = directory(0o755, 0);
    let change = AttrChange { atime: Some(Time::At(3)), mtime: Some(Time::Now), ..AttrChange::default() };
    set(&mut file, &change, 9, &Caller::root());
    assert_eq!((file.atime_ns, file.mtime_ns, file.ctime_ns), (3, 9, 9));
}
