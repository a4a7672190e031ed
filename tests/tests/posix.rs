//! System calls on a real mount that must answer as on a local file system: each is made in a directory of the local
//! disk and in one of the mount, and the answers are compared.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_tests::identity::Identity;
use cairn_tests::syscalls::{FileHandle, leave_working_directory, truncate};
use cairn_tests::{Builder, Cluster, need_root, shell, wait};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, renameat_with,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

/// What was asked, and what came of it.
type Answers = Vec<(String, String)>;

/// Everybody may enter.
fn open_to_all() -> Builder {
    need_root();
    Cluster::builder().mount_flag("--allow-other")
}

/// The same, and nothing is answered from the kernel's cache.
fn uncached() -> Builder {
    open_to_all().env("CAIRN_MOUNT__ATTR_TIMEOUT", "0s")
}

/// Has `ask` make the same calls in a new directory of the local disk and of the mount.
#[track_caller]
fn compare(cluster: &Cluster, name: &str, ask: impl Fn(&Path) -> Answers) {
    let answers = [cluster.local(), cluster.mount_path()].map(|top| {
        let place = top.join(name);
        fs::create_dir(&place).expect("mkdir");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("chmod");
        ask(&place)
    });
    let [local, mounted] = answers;
    let differing: Vec<_> = local.iter().zip(&mounted).filter(|(local, mounted)| local != mounted).collect();
    assert!(differing.is_empty(), "{name}, (local, mounted): {differing:#?}");
    assert_eq!(local.len(), mounted.len());
}

fn told<T>(result: Result<T, Errno>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

/// Collects answers under the names of their questions.
#[derive(Default)]
struct Asking(Answers);

impl Asking {
    fn note<T>(&mut self, question: &str, result: Result<T, Errno>) {
        self.0.push((question.to_owned(), told(result)));
    }

    fn note_io<T>(&mut self, question: &str, result: std::io::Result<T>) {
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        self.note(question, result.map_err(errno));
    }

    fn value(&mut self, question: &str, value: impl std::fmt::Debug) {
        self.0.push((question.to_owned(), format!("{value:?}")));
    }
}

fn attributes(fd: BorrowedFd<'_>) -> Result<(u32, u32, u32, u64, i64), Errno> {
    let stat = fstat(fd)?;
    Ok((stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink as u64, stat.st_size))
}

fn at_second(second: i64) -> Timestamps {
    let time = Timespec { tv_sec: second, tv_nsec: 7 };
    Timestamps { last_access: time, last_modification: time }
}

/// What a program asks that holds something without a name: by descriptor, and by its own path to it.
fn ask_of_held(asking: &mut Asking, what: &str, held: &OwnedFd, is_path_only: bool) {
    let question = |call: &str| format!("{what}: {call}");
    asking.value(&question("fstat"), attributes(held.as_fd()));
    let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(held));
    if is_path_only {
        asking.note(&question("chmod"), chmodat(CWD, &*own, Mode::from_raw_mode(0o711), AtFlags::empty()));
        asking.note(&question("utimensat"), utimensat(CWD, &*own, &at_second(99), AtFlags::empty()));
    } else {
        asking.note(&question("fchmod"), fchmod(held, Mode::from_raw_mode(0o711)));
        asking.note(&question("fchown"), fchown(held, Some(Uid::from_raw(5)), Some(Gid::from_raw(6))));
        asking.note(&question("futimens"), futimens(held, &at_second(99)));
    }
    asking.value(&question("fstat afterwards"), attributes(held.as_fd()));
    asking.value(&question("mtime"), fstat(held).map(|stat| (stat.st_mtime, stat.st_mtime_nsec)));
}

#[test]
fn what_has_lost_its_last_name_answers_whoever_holds_it() {
    let cluster = uncached().start();
    compare(&cluster, "held", |place| {
        let mut asking = Asking::default();
        let open = |name: &str, flags| {
            openat(CWD, place.join(name), flags | OFlags::CLOEXEC, Mode::empty()).expect("open")
        };
        let make = |name: &str, kind| {
            mknodat(CWD, place.join(name), kind, Mode::from_raw_mode(0o644), 0x103).expect("mknod");
        };
        fs::create_dir(place.join("directory")).expect("mkdir");
        fs::create_dir(place.join("by path")).expect("mkdir");
        make("fifo", FileType::Fifo);
        make("socket", FileType::Socket);
        make("device", FileType::CharacterDevice);
        fs::write(place.join("file"), "content").expect("write");
        symlinkat("target", CWD, place.join("link")).expect("symlink");
        let nofollow = OFlags::PATH | OFlags::NOFOLLOW;
        let held = [
            ("directory", open("directory", OFlags::DIRECTORY), false),
            ("by path", open("by path", nofollow), true),
            ("fifo", open("fifo", OFlags::RDWR | OFlags::NONBLOCK), false),
            ("socket", open("socket", nofollow), true),
            ("device", open("device", nofollow), true),
            ("file", open("file", nofollow), true),
            ("link", open("link", nofollow), true),
        ];
        for (name, ..) in &held {
            let flags = if name.contains("dir") || name.contains("by") {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            unlinkat(CWD, place.join(name), flags).expect("remove");
        }
        for (name, fd, is_path_only) in held.iter().filter(|(name, ..)| *name != "link") {
            ask_of_held(&mut asking, name, fd, *is_path_only);
        }
        let link = &held[6].1;
        asking.value("link: fstat", attributes(link.as_fd()));
        asking.value("link: readlink", readlinkat(link, "", Vec::new()));
        for (name, directory) in [("directory", &held[0].1), ("by path", &held[1].1)] {
            let question = |call: &str| format!("{name}: {call}");
            asking.note(&question("stat of a name"), statat(directory, "x", AtFlags::empty()));
            asking.value(
                &question("stat of itself"),
                statat(directory, ".", AtFlags::empty()).map(|stat| stat.st_nlink),
            );
            asking.value(
                &question("stat above"),
                statat(directory, "..", AtFlags::empty()).map(|stat| stat.st_nlink),
            );
            asking.note(&question("mkdir"), mkdirat(directory, "x", Mode::RWXU));
            asking.note(
                &question("create"),
                openat(directory, "x", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU),
            );
            asking.note(&question("symlink"), symlinkat("to", directory, "x"));
            asking.note(&question("link"), linkat(directory, "x", directory, "y", AtFlags::empty()));
            asking
                .note(&question("open of itself"), openat(directory, ".", OFlags::DIRECTORY, Mode::empty()));
        }
        let listing = rustix::fs::Dir::read_from(&held[0].1).expect("dir");
        let names: Vec<_> = listing.map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect();
        asking.value("listing", names);
        let directory = File::from(held[0].1.try_clone().expect("dup"));
        asking.note_io("fsync", directory.sync_all());
        asking.note_io("getxattr", xattr::FileExt::get_xattr(&directory, "user.a"));
        asking.value("listxattr", xattr::FileExt::list_xattr(&directory).map(|names| names.count()).ok());
        asking.0
    });
}

#[test]
fn a_working_directory_that_was_removed_can_be_looked_at() {
    let cluster = uncached().start();
    compare(&cluster, "working", |place| {
        let directory = place.join("d");
        fs::create_dir(&directory).expect("mkdir");
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| {
                leave_working_directory().expect("a working directory of its own");
                rustix::process::chdir(&directory).expect("chdir");
                fs::remove_dir(&directory).expect("rmdir");
                let mut asking = Asking::default();
                let stat = |path| {
                    statat(CWD, path, AtFlags::empty())
                        .map(|stat| (stat.st_nlink, stat.st_size, stat.st_mode))
                };
                asking.value("stat .", stat("."));
                asking.value(
                    "stat ..",
                    statat(CWD, "..", AtFlags::empty()).map(|stat| (stat.st_nlink, stat.st_mode)),
                );
                asking.value(
                    "listing",
                    fs::read_dir(".").map(|entries| entries.map(|e| e.is_ok()).collect::<Vec<_>>()).ok(),
                );
                asking.note("stat of a name", stat("x"));
                asking.note("mkdir", mkdirat(CWD, "x", Mode::RWXU));
                asking.note_io("create", File::create("x"));
                asking.note("chmod", chmodat(CWD, ".", Mode::RWXU, AtFlags::empty()));
                asking.note("utimensat", utimensat(CWD, ".", &at_second(5), AtFlags::empty()));
                asking.value("stat . afterwards", stat("."));
                asking.note("getcwd", rustix::process::getcwd(Vec::new()));
                asking.0
            });
            asks.join().expect("the thread that asks")
        })
    });
}

#[test]
fn what_another_mount_removed_answers_whoever_holds_it() {
    let cluster = Cluster::builder().start();
    let second = cluster.mount_at_with(Path::new("second"), &[]);
    let place = cluster.mount_path();
    fs::create_dir(place.join("directory")).expect("mkdir");
    mknodat(CWD, place.join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("mkfifo");
    let directory = File::open(place.join("directory")).expect("open");
    let fifo = OpenOptions::new().read(true).write(true).open(place.join("fifo")).expect("open");
    fs::remove_dir(second.path().join("directory")).expect("rmdir");
    fs::remove_file(second.path().join("fifo")).expect("unlink");
    for (name, held) in [("directory", &directory), ("fifo", &fifo)] {
        let has_no_name = || fstat(held).is_ok_and(|stat| stat.st_nlink == 0);
        wait::until_true(&format!("{name} to have no name"), Duration::from_secs(20), has_no_name);
        fchmod(held, Mode::RWXU).expect("fchmod");
        assert_eq!(fstat(held).expect("fstat").st_mode & 0o777, 0o700, "{name}");
    }
    assert_eq!(mkdirat(&directory, "x", Mode::RWXU), Err(Errno::NOENT));
    assert_eq!(statat(&directory, "x", AtFlags::empty()).map(drop), Err(Errno::NOENT));
    let listing = rustix::fs::Dir::read_from(&directory).expect("dir");
    assert_eq!(listing.filter_map(Result::ok).count(), 0);
    // Whoever comes by the name finds what has it now.
    fs::create_dir(second.path().join("directory")).expect("mkdir");
    fs::write(second.path().join("directory/new"), "new").expect("write");
    assert_eq!(fs::read_to_string(place.join("directory/new")).expect("read"), "new");
    assert_eq!(fstat(&directory).expect("fstat").st_nlink, 0);
}

#[test]
fn a_log_is_truncated_while_somebody_appends_to_it() {
    let cluster = Cluster::builder().start();
    let path = cluster.mount_path().join("log");
    let mut log = OpenOptions::new().append(true).create(true).open(&path).expect("open");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                log.write_all(b"a line of the log\n").expect("write");
            }
        });
        let truncated: Vec<_> = (0..20)
            .map(|_| {
                OpenOptions::new().write(true).truncate(true).open(&path).map(drop).map_err(|e| e.kind())
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        assert_eq!(truncated, [const { Ok(()) }; 20]);
    });
    let left = fs::read_to_string(&path).expect("read");
    assert!(left.lines().all(|line| line == "a line of the log"), "neither holes nor torn lines");
}

/// The tree that privileged users work on; only root may change most of it.
fn make_guarded_tree(place: &Path) {
    let directory = |name: &str, mode| {
        fs::create_dir(place.join(name)).expect("mkdir");
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let file = |name: &str, owner: u32, mode| {
        fs::write(place.join(name), "0123456789").expect("write");
        std::os::unix::fs::chown(place.join(name), Some(owner), Some(owner)).expect("chown");
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    directory("closed", 0o755);
    directory("closed/sub", 0o755);
    directory("closed/hidden", 0o700);
    for name in ["file", "other", "moved", "gone"] {
        file(&format!("closed/{name}"), 0, 0o600);
    }
    file("closed/hidden/below", 0, 0o600);
    directory("sticky", 0o1777);
    file("sticky/theirs", 2000, 0o644);
    file("sticky/moved", 2000, 0o644);
    directory("open", 0o777);
    directory("group", 0o777);
    std::os::unix::fs::chown(place.join("group"), None, Some(50)).expect("chown");
    fs::set_permissions(place.join("group"), fs::Permissions::from_mode(0o2777)).expect("chmod");
    file("mine", USER, 0o644);
    std::os::unix::fs::chown(place.join("mine"), None, Some(50)).expect("chown");
    for name in ["setid written", "setid truncated", "setid emptied"] {
        file(name, 2000, 0o6777);
    }
    file("capable", 2000, 0o666);
    xattr::set(place.join("mine"), "trusted.secret", b"t").expect("trusted");
    xattr::set(place.join("mine"), "user.known", b"u").expect("user");
}

const USER: u32 = 1000;

/// VFS_CAP_REVISION_2 with nothing in it.
const NO_CAPABILITIES: [u8; 20] = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What the user tries there, as far as the identity allows.
fn try_everything(place: &Path) -> Answers {
    let mut asking = Asking::default();
    let at = |name: &str| place.join(name);
    let mode = Mode::from_raw_mode;
    let create =
        |name: &str, bits| openat(CWD, at(name), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, mode(bits));
    asking.note("create", create("closed/new", 0o644));
    asking.note("mkdir", mkdirat(CWD, at("closed/new directory"), mode(0o755)));
    asking.note("symlink", symlinkat("x", CWD, at("closed/new link")));
    asking.note("link", linkat(CWD, at("closed/other"), CWD, at("open/second name"), AtFlags::empty()));
    asking.note("unlink", unlinkat(CWD, at("closed/gone"), AtFlags::empty()));
    asking.note("rmdir", unlinkat(CWD, at("closed/sub"), AtFlags::REMOVEDIR));
    asking
        .note("rename", renameat_with(CWD, at("closed/moved"), CWD, at("open/moved"), RenameFlags::empty()));
    asking.note_io("read", fs::read(at("closed/file")));
    asking.note_io("read below", fs::read(at("closed/hidden/below")));
    asking.note_io("list", fs::read_dir(at("closed/hidden")).map(Iterator::count));
    asking.note_io("write", fs::write(at("closed/other"), "x"));
    asking.note_io("truncate", truncate(&at("closed/other"), 3));
    asking.note("chmod", chmodat(CWD, at("closed/file"), mode(0o640), AtFlags::empty()));
    asking.note("utimensat", utimensat(CWD, at("closed/file"), &at_second(3), AtFlags::empty()));
    let chown = |name: &str, uid: Option<u32>, gid: Option<u32>| {
        chownat(CWD, at(name), uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::empty())
    };
    asking.note("chown", chown("closed/hidden", Some(USER), None));
    asking.note("chgrp", chown("closed/file", None, Some(50)));
    asking.note("give away", chown("mine", Some(2000), None));
    asking.note("take back", chown("mine", Some(USER), Some(50)));
    asking.note("unlink in a sticky directory", unlinkat(CWD, at("sticky/theirs"), AtFlags::empty()));
    asking.note(
        "rename in a sticky directory",
        renameat_with(CWD, at("sticky/moved"), CWD, at("sticky/m"), RenameFlags::empty()),
    );
    let node = |name: &str, kind, device| mknodat(CWD, at(name), kind, mode(0o666), device);
    asking.note("device", node("open/device", FileType::CharacterDevice, rustix::fs::makedev(1, 3)));
    asking.note("block device", node("open/block", FileType::BlockDevice, rustix::fs::makedev(7, 0)));
    asking.note("whiteout", node("open/whiteout", FileType::CharacterDevice, 0));
    asking.note("fifo", node("open/fifo", FileType::Fifo, 0));
    let set =
        |name: &str, key: &str, value: &[u8]| rustix::fs::setxattr(at(name), key, value, XattrFlags::empty());
    asking.note("user attribute", set("closed/file", "user.x", b"x"));
    asking.note("trusted attribute", set("mine", "trusted.x", b"x"));
    asking.note("security attribute", set("mine", "security.x", b"x"));
    asking.note("capability", set("capable", "security.capability", &NO_CAPABILITIES));
    asking.note("capability of own", set("mine", "security.capability", &NO_CAPABILITIES));
    asking.note("remove trusted", rustix::fs::removexattr(at("mine"), "trusted.secret"));
    let mut names: Vec<_> = xattr::list(at("mine")).expect("listxattr").collect();
    names.sort();
    asking.value("names", names);
    asking.note("set-group-ID of another group", chmodat(CWD, at("mine"), mode(0o2755), AtFlags::empty()));
    asking.note("set-group-ID in its directory", create("group/made", 0o2755));
    asking.note_io(
        "write to set-user-ID",
        OpenOptions::new().write(true).open(at("setid written")).and_then(|mut file| file.write_all(b"x")),
    );
    asking.note_io("truncate set-user-ID", truncate(&at("setid truncated"), 3));
    asking.note_io(
        "empty set-user-ID",
        OpenOptions::new().write(true).truncate(true).open(at("setid emptied")),
    );
    asking.0
}

/// Owners and modes of everything, as root sees it.
fn what_is_there(place: &Path) -> Answers {
    let mut found = Vec::new();
    let mut below = vec![place.to_owned()];
    while let Some(directory) = below.pop() {
        for entry in fs::read_dir(&directory).expect("readdir") {
            let path = entry.expect("entry").path();
            let meta = fs::symlink_metadata(&path).expect("lstat");
            let size = if meta.is_dir() { 0 } else { meta.len() };
            let name = path.strip_prefix(place).expect("below").display().to_string();
            found.push((
                name,
                format!("{:o} {}:{} {size} {}", meta.mode(), meta.uid(), meta.gid(), meta.rdev()),
            ));
            if meta.is_dir() {
                below.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn capabilities_of_other_users_than_root_count() {
    let cluster = open_to_all().start();
    let capabilities = [
        CapabilitySet::empty(),
        CapabilitySet::CHOWN,
        CapabilitySet::DAC_OVERRIDE,
        CapabilitySet::DAC_READ_SEARCH,
        CapabilitySet::FOWNER,
        CapabilitySet::FSETID,
        CapabilitySet::MKNOD,
        CapabilitySet::SETFCAP,
        CapabilitySet::SYS_ADMIN,
        CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::CHOWN,
    ];
    for capabilities in capabilities {
        compare(&cluster, &format!("as {capabilities:?}").replace('|', "+"), |place| {
            make_guarded_tree(place);
            let user = Identity::user(USER, capabilities);
            let mut answers = user.run(|| try_everything(place));
            answers.extend(what_is_there(place));
            answers
        });
    }
}

#[test]
fn a_capability_counts_from_the_moment_that_a_process_has_it() {
    let cluster = open_to_all().start();
    compare(&cluster, "gained", |place| {
        fs::create_dir(place.join("closed")).expect("mkdir");
        let mut asking = Asking::default();
        // The same thread is known without the capability when it gains it.
        let gaining = Identity::user(USER, CapabilitySet::DAC_OVERRIDE);
        gaining.run(|| {
            let sets = |effective| rustix::thread::CapabilitySets {
                effective,
                permitted: CapabilitySet::DAC_OVERRIDE,
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, sets(CapabilitySet::empty())).expect("capset");
            asking.note("own", chmodat(CWD, place.join("closed"), Mode::RWXU, AtFlags::empty()));
            asking.note("without", mkdirat(CWD, place.join("closed/without"), Mode::RWXU));
            rustix::thread::set_capabilities(None, sets(CapabilitySet::DAC_OVERRIDE)).expect("capset");
            asking.note("with", mkdirat(CWD, place.join("closed/with"), Mode::RWXU));
            rustix::thread::set_capabilities(None, sets(CapabilitySet::empty())).expect("capset");
            asking.note("again without", mkdirat(CWD, place.join("closed/again"), Mode::RWXU));
        });
        asking.0
    });
}

/// Root of a container whose ids begin at 100,000, and what is within its reach and beyond.
const IN_CONTAINER: &str = r#"
unshare --user sleep 100 &
inside=$!
trap 'kill $inside' EXIT
until [ "$(readlink /proc/$inside/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done
echo 0 100000 65536 >/proc/$inside/uid_map
echo 0 100000 65536 >/proc/$inside/gid_map
container() { nsenter --user --target $inside --setuid 0 --setgid 0 -- "$@"; }
mkdir inside beyond
chown 100000:100000 inside
echo inside >inside/of-user; chown 101000:101000 inside/of-user; chmod 600 inside/of-user
echo beyond >beyond/file
container sh -c '
    try() { if "$@" 2>/dev/null; then echo "$*: done"; else echo "$*: refused"; fi; }
    try chown 5:6 inside/of-user
    try chmod 640 inside/of-user
    try touch -d 2001-01-01 inside/of-user
    try cat inside/of-user
    try cp -p inside/of-user inside/copy
    try mkdir inside/made
    try chown 7:7 inside/made
    try rm inside/of-user
    try touch inside/made/below
    try mknod inside/device c 1 3
    try chown 0 beyond/file
    try chmod 777 beyond/file
    try touch beyond/new
    try rm -f beyond/file
'
find . -printf '%p %U:%G %m\n' | sort
"#;

#[test]
fn root_of_a_container_rules_its_own_ids_and_no_others() {
    let cluster = open_to_all().start();
    compare(&cluster, "container", |place| {
        let answer = shell::bash(place, Duration::from_secs(120), IN_CONTAINER);
        answer.lines().map(|line| (String::new(), line.to_owned())).collect()
    });
}

#[test]
fn handles_of_files_outlive_the_kernels_caches() {
    let cluster = open_to_all().start();
    compare(&cluster, "handles", |place| {
        for directory in ["a", "b", "a/kept", "a/moved", "a/gone"] {
            fs::create_dir(place.join(directory)).expect("mkdir");
        }
        for file in ["a/file", "a/renamed", "a/removed", "a/moved/below"] {
            fs::write(place.join(file), file).expect("write");
        }
        let names = ["a/file", "a/renamed", "a/removed", "a/moved/below", "a/kept", "a/moved", "a/gone", "."];
        let handles = names.map(|name| FileHandle::of(&place.join(name)).expect("name_to_handle_at"));
        fs::rename(place.join("a/renamed"), place.join("b/new name")).expect("rename");
        fs::rename(place.join("a/moved"), place.join("b/moved")).expect("rename");
        fs::remove_file(place.join("a/removed")).expect("unlink");
        fs::remove_dir(place.join("a/gone")).expect("rmdir");
        let mut asking = Asking::default();
        for round in ["cached", "forgotten"] {
            let anchor = File::open(place).expect("open");
            if round == "forgotten" {
                cairn_tests::cluster::forget(place);
            }
            for (name, handle) in names.iter().zip(&handles) {
                let opened = handle.open(&anchor, libc::O_RDONLY);
                let what = opened.as_ref().ok().map(|file| {
                    let meta = file.metadata().expect("fstat");
                    let path =
                        fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)));
                    let known = path.ok().filter(|_| meta.is_dir());
                    let path = known.and_then(|path| path.strip_prefix(place).ok().map(PathBuf::from));
                    (meta.is_dir(), path, std::io::read_to_string(file).ok())
                });
                asking.note_io(&format!("{round}: {name}"), opened);
                asking.value(&format!("{round}: {name} is"), what);
            }
        }
        asking.0
    });
}

#[test]
fn extended_attributes_are_refused_as_on_a_local_disk() {
    let cluster = open_to_all().start();
    compare(&cluster, "xattrs", |place| {
        let path = place.join("file");
        fs::write(&path, "x").expect("write");
        let mut asking = Asking::default();
        let both = XattrFlags::CREATE | XattrFlags::REPLACE;
        for (what, flags) in
            [("replace", XattrFlags::REPLACE), ("both", both), ("create", XattrFlags::CREATE)]
        {
            for round in ["absent", "there"] {
                let name = format!("user.{what}");
                if round == "there" {
                    rustix::fs::setxattr(&path, &*name, b"1", XattrFlags::empty()).expect("setxattr");
                }
                asking.note(&format!("{what}, {round}"), rustix::fs::setxattr(&path, &*name, b"2", flags));
            }
        }
        for name in ["foo", "foo.bar", "user", "user.", "system.foo", "trusted.", "security.", ".x", "os2.a"]
        {
            asking.note(&format!("set {name}"), rustix::fs::setxattr(&path, name, b"1", XattrFlags::empty()));
            asking.note(&format!("get {name}"), rustix::fs::getxattr(&path, name, &mut [0u8; 9]));
            asking.note(&format!("remove {name}"), rustix::fs::removexattr(&path, name));
        }
        let mut names: Vec<_> = xattr::list(&path).expect("listxattr").collect();
        names.sort();
        asking.value("names", names);
        asking.0
    });
}

#[test]
fn a_mount_lets_programs_gain_privileges_only_when_root_says_so() {
    let cluster = open_to_all().start();
    let options = |path: &Path| {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == path.to_str()).expect("mounted");
        line.split(' ').nth(3).expect("options").split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let null =
        |place: &Path| OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(place.join("null"));
    let place = cluster.mount_path();
    mknodat(
        CWD,
        place.join("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .expect("mknod");
    for option in ["nosuid", "nodev"] {
        assert!(options(&place).iter().any(|known| known == option), "{option} by default");
    }
    assert_eq!(null(&place).expect_err("nodev").raw_os_error(), Some(libc::EACCES));
    let trusting = cluster.mount_at_with(Path::new("trusting"), &["-o", "suid,dev"]);
    for option in ["nosuid", "nodev"] {
        assert!(
            !options(trusting.path()).iter().any(|known| known == option),
            "no {option} when root says so"
        );
    }
    null(trusting.path()).expect("dev").write_all(b"nothing").expect("write");
    let careful = cluster.mount_at_with(Path::new("careful"), &["-o", "suid,dev", "-o", "nosuid,ro"]);
    for option in ["nosuid", "ro"] {
        assert!(options(careful.path()).iter().any(|known| known == option), "the last one counts: {option}");
    }
}
