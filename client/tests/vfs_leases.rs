//! Names changed locally, under leases: seen by others at once, and the same as at the coordinator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{
    AllocateMode, AttrChange, HandleId, Listing, NewNode, OpenFlags, RenameMode, Time, Vfs, VfsError,
    WriteOrigin,
};
use cairn_client::{Attr, Caller, ClientConfig, Kind};
use cairn_proto::posix::Privileges;
use cairn_proto::{ErrorKind, FileName, InodeId, SymlinkTarget};

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

async fn mount(cluster: &Cluster, leases: bool) -> Arc<Vfs> {
    let durable = ClientConfig { durable_names: true, ..ClientConfig::default() };
    let client = match leases {
        true => cluster.client().await,
        false => cluster.client_with(durable).await,
    };
    Vfs::new(client.unwrap(), Duration::from_secs(1))
}

/// A directory that `vfs` holds the lease of.
async fn leased(vfs: &Arc<Vfs>, text: &str) -> InodeId {
    let me = Caller::root();
    let outer = vfs.mkdir(ROOT, &name(text), 0o755, &me).await.unwrap().attr.inode;
    // The first change brings the lease of the directory, in which the second is local.
    vfs.mkdir(outer, &name("first"), 0o755, &me).await.unwrap();
    vfs.mkdir(outer, &name("second"), 0o755, &me).await.unwrap().attr.inode
}

async fn names(vfs: &Arc<Vfs>, directory: InodeId) -> Vec<String> {
    let handle = vfs.opendir(directory);
    let mut names = Vec::new();
    let mut position = 0;
    loop {
        let entries = vfs.readdir(handle, position, Listing::Names).await.unwrap();
        let before = names.len();
        for entry in entries.iter() {
            position = entry.next;
            names.push(String::from_utf8_lossy(entry.name).into_owned());
        }
        if names.len() == before {
            break;
        }
    }
    vfs.releasedir(handle);
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_under_a_lease_needs_nobody_and_is_seen_by_others_at_once() {
    let cluster = Cluster::start().await.unwrap();
    let (one, other) = (mount(&cluster, true).await, mount(&cluster, true).await);
    let me = Caller::root();
    let directory = leased(&one, "d").await;
    for round in 0..20 {
        let text = name(&format!("file-{round}"));
        let flags = OpenFlags { write: true, exclusive: true, ..OpenFlags::default() };
        if round < 5 {
            assert!(matches!(one.try_lookup(directory, &text, &me), Some(Err(_))), "its absence is known");
        }
        let opened = one.create_open(directory, &text, 0o640, flags, &me).await.unwrap();
        one.write(opened.handle, 0, Bytes::from_static(b"content"), WriteOrigin::Call).await.unwrap();
        one.flush(opened.handle).await.unwrap();
        one.release(opened.handle);
        if round % 5 == 4 {
            let seen = other.lookup(directory, &text, &me).await.unwrap().attr;
            assert_eq!((seen.mode, seen.size), (0o640, 7));
            assert_eq!(names(&other, directory).await.len(), round + 1);
        }
    }
    // Changes of the other one are seen as well, whoever holds the lease.
    other.unlink(directory, &name("file-3"), &me).await.unwrap();
    assert!(one.lookup(directory, &name("file-3"), &me).await.is_err());
    assert_eq!(names(&one, directory).await.len(), 19);
    one.client().close().await.unwrap();
    other.client().close().await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synced_file_has_its_name_when_the_mount_is_gone() {
    let cluster = Cluster::start().await.unwrap();
    let one = mount(&cluster, true).await;
    let me = Caller::root();
    let directory = leased(&one, "d").await;
    let flags = OpenFlags { write: true, exclusive: true, ..OpenFlags::default() };
    let opened = one.create_open(directory, &name("f"), 0o600, flags, &me).await.unwrap();
    one.write(opened.handle, 0, Bytes::from_static(b"kept"), WriteOrigin::Call).await.unwrap();
    one.fsync(opened.handle).await.unwrap();
    let other = mount(&cluster, false).await;
    // By the number, which no lease covers: what is there is committed.
    assert_eq!(other.getattr(opened.entry.attr.inode).await.unwrap().attr.size, 4);
    assert_eq!(other.lookup(directory, &name("f"), &me).await.unwrap().attr.inode, opened.entry.attr.inode);
    one.client().close().await.unwrap();
    other.client().close().await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_removed_before_its_creation_is_applied_lives_while_it_is_open() {
    let cluster = Cluster::start().await.unwrap();
    let one = mount(&cluster, true).await;
    let me = Caller::root();
    let directory = leased(&one, "d").await;
    let flags = OpenFlags { read: true, write: true, exclusive: true, ..OpenFlags::default() };
    for _ in 0..10 {
        let opened = one.create_open(directory, &name("f"), 0o600, flags, &me).await.unwrap();
        one.unlink(directory, &name("f"), &me).await.unwrap();
        one.write(opened.handle, 0, Bytes::from_static(b"held"), WriteOrigin::Call).await.unwrap();
        one.flush(opened.handle).await.unwrap();
        assert_eq!(&one.read(opened.handle, 0, 10).await.unwrap()[..], b"held");
        assert_eq!(one.getattr(opened.entry.attr.inode).await.unwrap().attr.nlink, 0);
        one.release(opened.handle);
    }
    one.client().close().await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_grows_under_a_lease_without_asking() {
    let cluster = Cluster::start().await.unwrap();
    let (one, other) = (mount(&cluster, true).await, mount(&cluster, false).await);
    let me = Caller::user(1000, 100, vec![]);
    let directory = leased(&one, "d").await;
    let flags = OpenFlags { read: true, write: true, exclusive: true, ..OpenFlags::default() };
    let opened = one.create_open(directory, &name("f"), 0o4755, flags, &Caller::root()).await.unwrap();
    let (inode, handle) = (opened.entry.attr.inode, Some(opened.handle));
    one.write(opened.handle, 0, Bytes::from_static(b"content"), WriteOrigin::Call).await.unwrap();
    one.flush(opened.handle).await.unwrap();
    let grown = |size| AttrChange { size: Some(size), ..AttrChange::default() };
    for size in 8..200 {
        let attr = one.try_setattr(inode, grown(size), handle, &me).unwrap().unwrap().attr;
        assert_eq!((attr.size, attr.mode), (size, 0o755));
    }
    assert!(one.try_setattr(inode, grown(5), handle, &me).is_none(), "to cut it is the coordinator's part");
    assert!(one.try_setattr(inode, grown(300), None, &me).is_none(), "the right to write it as well");
    let mut whole = b"content".to_vec();
    whole.resize(199, 0);
    assert_eq!(one.read(opened.handle, 0, 1000).await.unwrap(), whole);
    one.write(opened.handle, 250, Bytes::from_static(b"end"), WriteOrigin::Call).await.unwrap();
    one.fallocate(opened.handle, 100, 300, AllocateMode::Reserve { keep_size: false }, &me).await.unwrap();
    one.flush(opened.handle).await.unwrap();
    let seen = other.lookup(directory, &name("f"), &Caller::root()).await.unwrap().attr;
    assert_eq!((seen.size, seen.mode, seen.inode), (400, 0o755, inode));
    let read = OpenFlags { read: true, ..OpenFlags::default() };
    let there = other.open(inode, read, &Caller::root()).await.unwrap().handle;
    whole.resize(250, 0);
    whole.extend_from_slice(b"end");
    whole.resize(400, 0);
    assert_eq!(other.read(there, 0, 1000).await.unwrap(), whole);
    one.client().close().await.unwrap();
    other.client().close().await.unwrap();
    cluster.stop().await.unwrap();
}

/// Small, seeded, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// One of two trees that get the same operations.
struct Tree {
    vfs: Arc<Vfs>,
    /// Their numbers differ between the trees, their places do not.
    dirs: Vec<InodeId>,
}

#[derive(Debug, Clone)]
enum Step {
    Make(usize, String, u64),
    Unlink(usize, String),
    Rmdir(usize, String),
    Rename(usize, String, usize, String, RenameMode),
    Link(usize, String, usize, String),
    Chmod(usize, String, u32),
    Touch(usize, String),
    /// To a size, by ftruncate(2) or fallocate(2).
    Grow(usize, String, u64, bool),
    Give(usize, String, u32),
    Look(usize, String),
    /// As a kernel lists that will look at the entries.
    List(usize),
    ChmodDir(usize, u32),
}

fn step(dice: &mut Dice, dirs: usize) -> Step {
    let mut dir = || dice.below(dirs as u64) as usize;
    let (a, b) = (dir(), dir());
    let mut text = || format!("n{}", dice.below(7));
    let (x, y) = (text(), text());
    match dice.below(100) {
        0..30 => Step::Make(a, x, dice.below(8)),
        30..45 => Step::Unlink(a, x),
        45..52 => Step::Rmdir(a, x),
        52..70 => {
            let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
            Step::Rename(a, x, b, y, modes[dice.below(9) as usize / 4])
        }
        70..75 => Step::Link(a, x, b, y),
        75..80 => Step::Chmod(a, x, [0o600, 0o4755, 0o2755, 0o777][dice.below(4) as usize]),
        80..82 => Step::Touch(a, x),
        82..85 => Step::Grow(a, x, dice.below(30), dice.below(2) == 0),
        85..88 => Step::Give(a, x, [0, 1000, 2000][dice.below(3) as usize]),
        88..93 => Step::Look(a, x),
        93..97 => Step::List(a),
        _ => Step::ChmodDir(a, [0o777, 0o1777, 0o2777, 0o755][dice.below(4) as usize]),
    }
}

/// What can be compared between two trees.
fn plain(attr: &Attr) -> (Kind, u32, u32, u32, u32, u64, u64, Option<Bytes>) {
    let Attr { kind, mode, uid, gid, nlink, size, version, symlink_target, .. } = attr.clone();
    (kind, mode, uid, gid, nlink, size, version, symlink_target)
}

impl Tree {
    async fn run(&self, step: &Step, me: &Caller) -> Result<Option<Attr>, VfsError> {
        let (vfs, dirs) = (&self.vfs, &self.dirs);
        let set = async |dir: usize, text: &str, change: AttrChange| {
            let inode = vfs.lookup(dirs[dir], &name(text), me).await?.attr.inode;
            Ok(Some(vfs.setattr(inode, change, None, me).await?.attr))
        };
        match step {
            Step::Make(dir, text, what) => {
                let (dir, text) = (dirs[*dir], name(text));
                let made = match what {
                    0 | 1 => vfs.mkdir(dir, &text, 0o775, me).await?,
                    2 => vfs.symlink(dir, &text, &SymlinkTarget::new(&b"target"[..]).unwrap(), me).await?,
                    3 => vfs.mknod(dir, &text, Kind::CharDevice, 0o600, 7, me).await?,
                    4 => vfs.mknod(dir, &text, Kind::Fifo, 0o2775, 0, me).await?,
                    _ => {
                        let flags = OpenFlags { write: true, exclusive: *what == 5, ..OpenFlags::default() };
                        let opened = vfs.create_open(dir, &text, 0o664, flags, me).await?;
                        vfs.release(opened.handle);
                        opened.entry
                    }
                };
                Ok(Some(made.attr))
            }
            Step::Unlink(dir, text) => vfs.unlink(dirs[*dir], &name(text), me).await.map(|()| None),
            Step::Rmdir(dir, text) => vfs.rmdir(dirs[*dir], &name(text), me).await.map(|()| None),
            Step::Rename(a, x, b, y, mode) => {
                vfs.rename(dirs[*a], &name(x), dirs[*b], &name(y), *mode, me).await.map(|()| None)
            }
            Step::Link(a, x, b, y) => {
                let inode = vfs.lookup(dirs[*a], &name(x), me).await?.attr.inode;
                Ok(Some(vfs.link(inode, dirs[*b], &name(y), me).await?.attr))
            }
            Step::Chmod(dir, text, mode) => {
                set(*dir, text, AttrChange { mode: Some(*mode), ..AttrChange::default() }).await
            }
            Step::Touch(dir, text) => {
                let (atime, mtime) = (Some(Time::At(5)), Some(Time::At(7)));
                set(*dir, text, AttrChange { atime, mtime, ..AttrChange::default() }).await
            }
            Step::Grow(dir, text, size, truncates) => {
                let attr = vfs.lookup(dirs[*dir], &name(text), me).await?.attr;
                if attr.kind != Kind::File {
                    return Ok(Some(attr));
                }
                let flags = OpenFlags { write: true, ..OpenFlags::default() };
                let handle = vfs.open(attr.inode, flags, me).await?.handle;
                let result = if *truncates {
                    let change = AttrChange { size: Some(*size), ..AttrChange::default() };
                    vfs.setattr(attr.inode, change, Some(handle), me).await.map(|entry| Some(entry.attr))
                } else {
                    let mode = AllocateMode::Reserve { keep_size: false };
                    vfs.fallocate(handle, 3, size + 1, mode, me).await.map(|()| None)
                };
                vfs.release(handle);
                result
            }
            Step::Give(dir, text, uid) => {
                set(*dir, text, AttrChange { uid: Some(*uid), ..AttrChange::default() }).await
            }
            Step::Look(dir, text) => Ok(Some(vfs.lookup(dirs[*dir], &name(text), me).await?.attr)),
            Step::List(dir) => {
                let handle = vfs.opendir(dirs[*dir]);
                vfs.readdir(handle, 0, Listing::Attributes).await?;
                vfs.releasedir(handle);
                Ok(None)
            }
            Step::ChmodDir(dir, mode) => {
                let change = AttrChange { mode: Some(*mode), ..AttrChange::default() };
                Ok(Some(vfs.setattr(dirs[*dir], change, None, me).await?.attr))
            }
        }
    }

    /// Every name below the directories with what it names, as this tree's own mount or another sees it.
    async fn all(&self, vfs: &Arc<Vfs>) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (index, &dir) in self.dirs.iter().enumerate() {
            let attr = vfs.getattr(dir).await.unwrap().attr;
            all.insert(format!("{index}"), format!("{:?}", plain(&attr)));
            for text in names(vfs, dir).await {
                let attr = vfs.lookup(dir, &name(&text), &Caller::root()).await.unwrap().attr;
                all.insert(format!("{index}/{text}"), format!("{:?}", plain(&attr)));
            }
        }
        all
    }
}

/// The same operations with leases, through two mounts that take turns, and without: results, attributes and
/// versions are the same, whoever looks.
#[tokio::test(flavor = "multi_thread")]
async fn local_changes_are_what_the_coordinator_would_have_done() {
    let cluster = Cluster::start().await.unwrap();
    let (with, second) = (mount(&cluster, true).await, mount(&cluster, true).await);
    let without = mount(&cluster, false).await;
    let user = Caller::user(2000, 200, vec![]);
    let privileged = Caller { privileges: Privileges::new(u64::MAX), ..Caller::user(3000, 300, vec![]) };
    let callers = [Caller::root(), Caller::user(1000, 100, vec![200]), user, privileged];
    for seed in 1..=6u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut trees = Vec::new();
        for (vfs, text) in [(&with, format!("with{seed}")), (&without, format!("without{seed}"))] {
            let top = leased(vfs, &text).await;
            let mut dirs = Vec::new();
            for index in 0..4 {
                let made = vfs.mkdir(top, &name(&format!("d{index}")), 0o777, &Caller::root()).await;
                dirs.push(made.unwrap().attr.inode);
            }
            trees.push(Tree { vfs: Arc::clone(vfs), dirs });
        }
        let other = Tree { vfs: Arc::clone(&second), dirs: trees[0].dirs.clone() };
        // In some rounds the other mount comes often, in some seldom.
        let turns = if seed % 2 == 0 { 10 } else { 200 };
        for round in 0..600 {
            let step = step(&mut dice, 4);
            let caller = &callers[dice.below(9).saturating_sub(5) as usize];
            let left = if dice.below(turns) == 0 { &other } else { &trees[0] };
            let (a, b) = (left.run(&step, caller).await, trees[1].run(&step, caller).await);
            let show = |result: Result<Option<Attr>, VfsError>| match result {
                Ok(attr) => format!("{:?}", attr.as_ref().map(plain)),
                Err(error) => format!("{:?}", error.kind()),
            };
            assert_eq!(show(a), show(b), "seed {seed}, round {round}: {step:?} by {}", caller.uid);
        }
        let expected = trees[1].all(&without).await;
        assert_eq!(trees[0].all(&with).await, expected, "seed {seed}, seen by itself");
        assert_eq!(trees[0].all(&second).await, expected, "seed {seed}, seen by the other");
    }
    for vfs in [with, second, without] {
        vfs.client().close().await.unwrap();
    }
    cluster.stop().await.unwrap();
}

/// As a kernel does it: it says when nobody holds the inode any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_directory_answers_until_it_is_forgotten() {
    let cluster = Cluster::start().await.unwrap();
    for vfs in [mount(&cluster, true).await, mount(&cluster, false).await] {
        let me = Caller::root();
        let top = leased(&vfs, &format!("of {:p}", &*vfs)).await;
        let make = |text: &'static str| {
            let vfs = &vfs;
            async move { vfs.mkdir(top, &name(text), 0o755, &Caller::root()).await.unwrap().attr.inode }
        };
        let (held, left) = (make("held").await, make("left").await);
        vfs.rmdir(top, &name("held"), &me).await.unwrap();
        vfs.rmdir(top, &name("left"), &me).await.unwrap();
        // Faster than the removal reaches the coordinator.
        vfs.forget(left);
        let handle = vfs.opendir(top);
        vfs.fsyncdir(handle).await.unwrap();
        vfs.releasedir(handle);
        assert_eq!(vfs.getattr(left).await.unwrap_err().kind(), ErrorKind::StaleHandle);
        assert_eq!(vfs.lookup_inode(held).await.unwrap_err().kind(), ErrorKind::StaleHandle);
        let change = AttrChange { mode: Some(0o700), mtime: Some(Time::At(5)), ..AttrChange::default() };
        let changed = vfs.setattr(held, change, None, &me).await.unwrap().attr;
        let seen = vfs.getattr(held).await.unwrap().attr;
        assert_eq!((seen.nlink, seen.mode, seen.mtime_ns, seen.size), (0, 0o700, 5, 0));
        assert_eq!(seen, changed);
        let refused = vfs.mkdir(held, &name("x"), 0o755, &me).await.unwrap_err().kind();
        assert_eq!(refused, ErrorKind::NotFound);
        assert_eq!(vfs.lookup(held, &name("x"), &me).await.unwrap_err().kind(), ErrorKind::NotFound);
        let handle = vfs.opendir(held);
        let listed = vfs.readdir(handle, 0, Listing::Names).await;
        assert_eq!(listed.err().map(|error| error.kind()), Some(ErrorKind::NotFound));
        vfs.releasedir(handle);
        vfs.forget(held);
        assert_eq!(vfs.getattr(held).await.unwrap_err().kind(), ErrorKind::StaleHandle);
        vfs.client().close().await.unwrap();
    }
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_changed_locally_where_none_may_be_shown_twice() {
    let cluster = Cluster::start().await.unwrap();
    let vfs = Vfs::new(cluster.client().await.unwrap(), Duration::ZERO);
    let me = Caller::root();
    let top = leased(&vfs, "d").await;
    let file = vfs.mknod(top, &name("f"), Kind::File, 0o644, 0, &me).await.unwrap().attr.inode;
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    let changed = vfs.try_setattr(file, change, None, &me).expect("under a lease").unwrap();
    assert_eq!((changed.attr.mode, changed.valid), (0o600, Duration::ZERO));
    assert_eq!(vfs.getattr(file).await.unwrap().attr.mode, 0o600);
    vfs.client().close().await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_directories_and_names_stay_within_bounds_and_are_all_there() {
    let cluster = Cluster::start().await.unwrap();
    let (one, other) = (mount(&cluster, true).await, mount(&cluster, true).await);
    let me = Caller::root();
    let top = leased(&one, "d").await;
    let mut below = Vec::new();
    for index in 0..300 {
        let dir = one.mkdir(top, &name(&format!("d{index}")), 0o755, &me).await.unwrap().attr.inode;
        for file in 0..10 {
            one.mknod(dir, &name(&format!("f{file}")), Kind::File, 0o644, 0, &me).await.unwrap();
        }
        below.push(dir);
    }
    let handle: HandleId = one.opendir(top);
    one.fsyncdir(handle).await.unwrap();
    assert_eq!(names(&other, top).await.len(), 300);
    for dir in below.iter().step_by(37) {
        assert_eq!(names(&other, *dir).await.len(), 10);
    }
    assert_eq!(other.getattr(top).await.unwrap().attr.nlink, 302);
    let refused = one.rmdir(top, &name("d0"), &me).await.unwrap_err().kind();
    assert_eq!(refused, ErrorKind::NotEmpty);
    one.client().close().await.unwrap();
    other.client().close().await.unwrap();
    cluster.stop().await.unwrap();
}

/// Makes a directory below `parent` with `owner`, who holds its lease from then on.
async fn leased_by(owner: &Arc<Vfs>, directory: InodeId) {
    let me = Caller::root();
    for number in 0..100 {
        let text = name(&format!("of the owner {number}"));
        if let Some(made) = owner.try_make(directory, &text, &NewNode::Directory, 0o755, &me) {
            made.unwrap();
            return;
        }
        owner.mkdir(directory, &text, 0o755, &me).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await; // what was asked back is not leased again at once
    }
    panic!("no lease is granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_that_rename_directories_of_one_another_wait_for_nobody_who_waits_for_them() {
    let cluster = Cluster::start().await.unwrap();
    let mounts = [mount(&cluster, true).await, mount(&cluster, true).await];
    let me = Caller::root();
    let mut places = Vec::new();
    for (index, vfs) in mounts.iter().enumerate() {
        let parent = vfs.mkdir(ROOT, &name(&format!("p{index}")), 0o755, &me).await.unwrap().attr.inode;
        let child = vfs.mkdir(parent, &name("child"), 0o755, &me).await.unwrap().attr.inode;
        places.push((parent, child));
    }
    // Each holds the lease of its own directory, and that of the directory below the other one's.
    for (index, (_, child)) in places.iter().enumerate() {
        leased_by(&mounts[1 - index], *child).await;
    }
    for (index, (parent, _)) in places.iter().enumerate() {
        leased_by(&mounts[index], *parent).await;
    }
    let sessions = cluster.sessions().await.unwrap();
    let both = [0, 1].map(|index| {
        let (vfs, (parent, _), me) = (Arc::clone(&mounts[index]), places[index], me.clone());
        tokio::spawn(async move {
            let (from, to) = (name("child"), name("renamed"));
            vfs.rename(parent, &from, parent, &to, RenameMode::Replace, &me).await.unwrap();
            let handle = vfs.opendir(parent);
            vfs.fsyncdir(handle).await.unwrap();
            vfs.releasedir(handle);
        })
    });
    for renamed in both {
        renamed.await.unwrap();
    }
    assert_eq!(cluster.sessions().await.unwrap(), sessions, "nobody was fenced");
    for (parent, child) in places {
        for vfs in &mounts {
            let found = vfs.lookup(parent, &name("renamed"), &me).await.unwrap();
            assert_eq!(found.attr.inode, child);
        }
    }
    for vfs in mounts {
        vfs.client().close().await.unwrap();
    }
    cluster.stop().await.unwrap();
}
