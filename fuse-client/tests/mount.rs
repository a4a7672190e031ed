//! A real mount of a cluster in this process: what programs do to files, through the kernel.
//!
//! Needs `/dev/fuse` and root (or `fusermount3`). The system calls run on threads of their own, since
//! this process also answers them.
#![allow(clippy::disallowed_methods)] // these tests are a program that uses the mount

#[path = "../../client/tests/common/mod.rs"]
mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cairn_client::fs::{Files, RemoveOptions};
use cairn_client::{Caller, Client};
use cairn_fuse::{MountConfig, MountError, Mounted, mount};
use cairn_proto::v1::{self, mutation::Op};
use cairn_runtime::shutdown::Shutdown;
use common::Cluster;
use rustix::fs::{FallocateFlags, IFlags, RenameFlags, SeekFrom as Sparse};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

/// A system call that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(120);

struct Setup {
    cluster: Cluster,
    client: Arc<Client>,
    place: tempfile::TempDir,
    mounted: Mounted,
}

impl Setup {
    async fn new() -> Result<Self> {
        let cluster = Cluster::start().await?;
        let client = cluster.client().await?;
        let place = tempfile::tempdir()?;
        let mounted = mount(Arc::clone(&client), config(place.path()), &Shutdown::new()).await?;
        Ok(Self { cluster, client, place, mounted })
    }

    /// Runs system calls on the mount.
    async fn on<T, F>(&self, calls: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(PathBuf) -> Result<T> + Send + 'static,
    {
        let root = self.place.path().to_owned();
        on_thread(move || calls(root)).await?
    }

    async fn end(self) -> Result<()> {
        self.mounted.unmount().await?;
        ensure!(fs::read_dir(self.place.path())?.next().is_none(), "something was written beside the mount");
        self.client.close().await?;
        self.cluster.stop().await
    }
}

async fn on_thread<T: Send + 'static>(calls: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (answer, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || answer.send(calls()));
    Ok(tokio::time::timeout(LIMIT, result).await.context("a system call hangs")??)
}

fn config(place: &Path) -> MountConfig {
    MountConfig { mountpoint: place.to_owned(), ..MountConfig::default() }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_find_a_file_system() -> Result<()> {
    let t = Setup::new().await?;
    t.on(|root| {
        let file = root.join("file");
        fs::write(&file, b"hello")?;
        ensure!(fs::read(&file)? == b"hello");
        ensure!(fs::metadata(&file)?.len() == 5);
        fs::rename(&file, root.join("moved"))?;
        ensure!(errno(fs::metadata(&file)) == Some(libc::ENOENT));
        fs::create_dir_all(root.join("a/b/c"))?;
        symlink("moved", root.join("link"))?;
        ensure!(fs::read(root.join("link"))? == b"hello");
        ensure!(fs::read_link(root.join("link"))? == Path::new("moved"));
        fs::hard_link(root.join("moved"), root.join("a/hard"))?;
        ensure!(fs::metadata(root.join("moved"))?.nlink() == 2);
        fs::set_permissions(root.join("a/hard"), fs::Permissions::from_mode(0o4711))?;
        ensure!(fs::metadata(root.join("moved"))?.permissions().mode() & 0o7777 == 0o4711);
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            root.join("moved"),
            rustix::fs::CWD,
            root.join("a"),
            RenameFlags::EXCHANGE,
        )?;
        ensure!(fs::metadata(root.join("moved"))?.is_dir() && fs::metadata(root.join("a"))?.is_file());
        ensure!(errno(fs::remove_dir(root.join("moved"))) == Some(libc::ENOTEMPTY));
        fs::remove_dir_all(root.join("moved"))?;
        ensure!(fs::metadata(root.join("a"))?.nlink() == 1);
        let long = root.join("n".repeat(255));
        fs::write(&long, b"")?;
        ensure!(errno(fs::write(root.join("n".repeat(256)), b"")) == Some(libc::ENAMETOOLONG));
        let room = rustix::fs::statvfs(&root)?;
        ensure!(room.f_blocks > 0 && room.f_namemax == 255);
        Ok(())
    })
    .await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn file_content_behaves() -> Result<()> {
    let t = Setup::new().await?;
    t.on(|root| {
        let path = root.join("f");
        let data: Vec<u8> = (0..5_000_003u32).map(|at| (at ^ (at >> 7)) as u8).collect();
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        for piece in data.chunks(70_001) {
            file.write_all(piece)?;
        }
        let mut back = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut back)?;
        ensure!(back == data, "read back while it is open");
        file.sync_all()?;
        drop(file);
        ensure!(fs::read(&path)? == data, "read back after the close");

        let mut tail = OpenOptions::new().append(true).open(&path)?;
        tail.write_all(b"tail")?;
        drop(tail);
        ensure!(fs::metadata(&path)?.len() == data.len() as u64 + 4);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        file.set_len(1000)?;
        file.set_len(3000)?;
        let mut expected = data[..1000].to_vec();
        expected.resize(3000, 0);
        ensure!(fs::read(&path)? == expected);

        fs::remove_file(&path)?;
        file.write_all_at(b"unlinked", 0)?;
        let mut part = [0; 8];
        file.read_exact_at(&mut part, 0)?;
        ensure!(&part == b"unlinked" && file.metadata()?.nlink() == 0);

        let direct = root.join("direct");
        fs::write(&direct, vec![7; 100_000])?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&direct)?;
        file.write_all_at(&vec![8; 8192], 4096)?;
        let mut part = vec![0; 16384];
        file.read_exact_at(&mut part, 0)?;
        ensure!(
            part[..4096].iter().all(|&byte| byte == 7) && part[4096..12288].iter().all(|&byte| byte == 8)
        );
        drop(file);
        ensure!(fs::read(&direct)?[4096..12288].iter().all(|&byte| byte == 8));
        fs::write(&direct, b"short")?;
        ensure!(fs::read(&direct)? == b"short", "O_TRUNC");
        Ok(())
    })
    .await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_clones_and_mappings() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let t = Setup::new().await?;
    t.on(|root| {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(root.join("f"))?;
        file.write_all_at(&vec![1; 3 << 20], 0)?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, MIB, MIB)?;
        let mut part = vec![9; 2 << 20];
        file.read_exact_at(&mut part, MIB / 2)?;
        ensure!(part[..1 << 19].iter().all(|&byte| byte == 1));
        ensure!(part[1 << 19..3 << 19].iter().all(|&byte| byte == 0));
        ensure!(rustix::fs::seek(&file, Sparse::Hole(0))? == MIB);
        ensure!(rustix::fs::seek(&file, Sparse::Data(MIB))? == 2 * MIB);
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 3 * MIB - 10, 20)?;
        ensure!(file.metadata()?.len() == 3 * MIB + 10);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4 * MIB)?;
        ensure!(file.metadata()?.len() == 4 * MIB);
        let collapse = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, MIB);
        ensure!(collapse == Err(rustix::io::Errno::OPNOTSUPP));

        let copy = OpenOptions::new().read(true).write(true).create_new(true).open(root.join("copy"))?;
        let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 4 << 20)?;
        ensure!(copied == 4 << 20, "copied {copied}");
        ensure!(fs::read(root.join("copy"))? == fs::read(root.join("f"))?);

        let len = 1 << 20;
        let shared = |file: &File| {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            #[allow(unsafe_code)]
            unsafe {
                rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0)
            }
        };
        let map = shared(&copy)?.cast::<u8>();
        // SAFETY: the mapping has `len` bytes, is used by this thread alone and unmapped once.
        #[allow(unsafe_code)]
        unsafe {
            ensure!(*map == 1);
            std::ptr::write_bytes(map.add(5000), 0xab, 100_000);
            rustix::mm::msync(map.cast(), len, MsyncFlags::SYNC)?;
            rustix::mm::munmap(map.cast(), len)?;
        }
        let seen = fs::read(root.join("copy"))?;
        ensure!(
            seen[4999] == 1 && seen[5000..105_000].iter().all(|&byte| byte == 0xab) && seen[105_000] == 1
        );
        let map = shared(&file)?.cast::<u8>();
        // SAFETY: as above; the pages are left dirty for the unmap and close to write back.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::write_bytes(map, 0xcd, len);
            rustix::mm::munmap(map.cast(), len)?;
        }
        ensure!(file.as_raw_fd() >= 0);
        Ok(())
    })
    .await?;
    t.on(|root| {
        ensure!(
            fs::read(root.join("f"))?[..1 << 20].iter().all(|&byte| byte == 0xcd),
            "dirty pages of a mapping"
        );
        Ok(())
    })
    .await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes() -> Result<()> {
    let t = Setup::new().await?;
    t.on(|root| {
        let file = root.join("f");
        fs::write(&file, b"x")?;
        ensure!(xattr::get(&file, "user.none")?.is_none());
        xattr::set(&file, "user.a", b"value")?;
        xattr::set(&file, "user.b", b"")?;
        ensure!(xattr::get(&file, "user.a")?.as_deref() == Some(&b"value"[..]));
        let mut names: Vec<_> = xattr::list(&file)?.collect();
        names.sort();
        ensure!(names == ["user.a", "user.b"]);
        xattr::remove(&file, "user.a")?;
        ensure!(xattr::list(&file)?.count() == 1);

        Ok(())
    })
    .await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_directory_is_listed_whole() -> Result<()> {
    const ENTRIES: usize = 5000;
    let t = Setup::new().await?;
    // Of another session: a mount takes no notice of what its own client does elsewhere.
    let other = t.cluster.client().await?;
    let files = Files::new(Arc::clone(&other), Caller::root());
    let directory = files.make_dir("/many", 0o755, false).await?.inode;
    for part in 0..ENTRIES / 500 {
        let create = |index: usize| {
            Op::Create(v1::Create {
                parent: directory.get(),
                name: format!("name-{part}-{index}").into(),
                kind: v1::InodeKind::File.into(),
                mode: 0o644,
                ..v1::Create::default()
            })
        };
        for made in other.coordinator().apply_many((0..500).map(create).collect(), &Caller::root()).await? {
            made?;
        }
    }
    t.on(|root| {
        let mut seen = std::collections::HashSet::new();
        for entry in fs::read_dir(root.join("many"))? {
            let entry = entry?;
            ensure!(entry.metadata()?.is_file());
            ensure!(seen.insert(entry.file_name()), "{:?} twice", entry.file_name());
        }
        ensure!(seen.len() == ENTRIES, "{} entries", seen.len());
        fs::rename(root.join("many/name-0-0"), root.join("moved"))?;
        ensure!(fs::read_dir(root.join("many"))?.count() == ENTRIES - 1);
        Ok(())
    })
    .await?;
    let all = RemoveOptions { recursive: true, force: false };
    ensure!(files.remove("/many", all).await? == ENTRIES as u64);
    other.close().await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_stored_when_the_unmount_returns() -> Result<()> {
    let t = Setup::new().await?;
    t.on(|root| Ok(fs::write(root.join("f"), vec![5; 9 << 20])?)).await?;
    let Setup { cluster, client, place, mounted } = t;
    mounted.unmount().await?;
    client.close().await?;
    let again = cluster.client().await?;
    let mounted = mount(Arc::clone(&again), config(place.path()), &Shutdown::new()).await?;
    let t = Setup { cluster, client: again, place, mounted };
    t.on(|root| {
        let data = fs::read(root.join("f"))?;
        ensure!(data.len() == 9 << 20 && data.iter().all(|&byte| byte == 5));
        Ok(())
    })
    .await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_mount_is_detached_and_its_writes_are_stored() -> Result<()> {
    let t = Setup::new().await?;
    let held = t.on(|root| Ok(File::create(root.join("held"))?)).await?;
    let Setup { cluster, client, place, mounted } = t;
    mounted.unmount().await?;
    ensure!(fs::read_dir(place.path())?.next().is_none());
    let (answer, done) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut held = held;
        let _ = answer.send(held.write_all(b"late").and_then(|()| held.sync_all()));
    });
    tokio::time::timeout(LIMIT, done).await???;
    client.close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_mount_is_refused_and_a_foreign_unmount_noticed() -> Result<()> {
    let t = Setup::new().await?;
    let second = mount(Arc::clone(&t.client), config(t.place.path()), &Shutdown::new()).await;
    ensure!(matches!(second, Err(MountError::AlreadyMounted { .. })), "{second:?}");
    let path = t.place.path().to_owned();
    let status = tokio::process::Command::new("umount").arg(&path).status().await?;
    ensure!(status.success());
    tokio::time::timeout(Duration::from_secs(10), t.mounted.unmounted()).await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_waits_for_a_cluster_that_is_gone_can_be_stopped() -> Result<()> {
    let t = Setup::new().await?;
    t.on(|root| Ok(fs::create_dir(root.join("d"))?)).await?;
    let Setup { cluster, client, place, mounted } = t;
    cluster.stop().await?;
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT] {
        let mut program = tokio::process::Command::new("mkdir").arg(place.path().join("d/new")).spawn()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(program.try_wait()?.is_none(), "a hard mount waits");
        let pid =
            program.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).context("no pid")?;
        let signal = rustix::process::Signal::from_named_raw(signal).context("no such signal")?;
        rustix::process::kill_process(pid, signal)?;
        tokio::time::timeout(Duration::from_secs(5), program.wait()).await.context("it does not end")??;
    }
    drop(mounted);
    drop(client);
    ensure!(fs::read_dir(place.path())?.next().is_none(), "a dropped mount is detached");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mount_is_replaced() -> Result<()> {
    let t = Setup::new().await?;
    let device = t.on(|root| Ok(fs::metadata(root)?.dev())).await?;
    let abort = format!("/sys/fs/fuse/connections/{}/abort", rustix::fs::minor(device));
    if fs::write(&abort, "1").is_err() {
        return t.end().await; // only root can make one dead from outside
    }
    let Setup { cluster, client, place, mounted } = t;
    tokio::time::timeout(Duration::from_secs(10), mounted.unmounted()).await?;
    ensure!(errno(fs::metadata(place.path())) == Some(libc::ENOTCONN));
    drop(mounted);
    let mounted = mount(Arc::clone(&client), config(place.path()), &Shutdown::new()).await?;
    let t = Setup { cluster, client, place, mounted };
    t.on(|root| Ok(fs::write(root.join("f"), b"alive")?)).await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_mountpoint_takes_no_files_while_nothing_is_mounted() -> Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client().await?;
    let place = tempfile::tempdir()?;
    let protected = MountConfig { protect_mountpoint: true, ..config(place.path()) };
    for content in ["first", "second"] {
        let mounted = mount(Arc::clone(&client), protected.clone(), &Shutdown::new()).await?;
        let inside = place.path().join("f");
        on_thread(move || fs::write(inside, content)).await??;
        mounted.unmount().await?;
        let beside = errno(fs::write(place.path().join("f"), b"beside"));
        // Undone by hand, as the documentation says; the test's directory is to be removed.
        unprotect(place.path())?;
        ensure!(matches!(beside, Some(libc::EPERM | libc::EACCES)), "{beside:?}");
    }
    client.close().await?;
    cluster.stop().await
}

fn unprotect(place: &Path) -> Result<()> {
    let directory = File::open(place)?;
    if let Ok(flags) = rustix::fs::ioctl_getflags(&directory)
        && flags.contains(IFlags::IMMUTABLE)
    {
        rustix::fs::ioctl_setflags(&directory, flags - IFlags::IMMUTABLE)?;
    }
    Ok(fs::set_permissions(place, fs::Permissions::from_mode(0o700))?)
}
