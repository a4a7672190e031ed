//! Open files through the vfs of a running cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use cairn_client::vfs::{
    AllocateMode, AttrChange, HandleId, OpenFlags, Opened, RenameMode, SeekFrom, Time, Vfs, VfsError,
    WriteOrigin,
};
use cairn_client::{Caller, ClientConfig, Unreachable};
use cairn_proto::{ErrorKind, FileName, InodeId};

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;
const READ_WRITE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    append: false,
    truncate: false,
    exclusive: false,
    sync: false,
    direct: false,
};
const READ: OpenFlags = OpenFlags { write: false, ..READ_WRITE };

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes()))
        .unwrap_or_else(|error| unreachable!("{text}: {error}"))
}

fn kind<T: std::fmt::Debug>(result: Result<T, VfsError>) -> ErrorKind {
    match result {
        Ok(value) => panic!("an error was expected, not {value:?}"),
        Err(error) => error.kind(),
    }
}

/// One mount, used as the kernel uses it: first what needs no waiting, then the rest.
#[derive(Clone)]
struct Mount {
    vfs: Arc<Vfs>,
    me: Caller,
}

impl Mount {
    async fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let vfs = Vfs::new(cluster.client().await?, Duration::from_secs(1));
        Ok(Self { vfs, me: Caller::root() })
    }

    /// One that gives up after a second.
    async fn soft(cluster: &Cluster) -> anyhow::Result<Self> {
        let unreachable = Unreachable::Soft(Duration::from_secs(1));
        let config = ClientConfig { unreachable, ..ClientConfig::default() };
        let vfs = Vfs::new(cluster.client_with(config).await?, Duration::from_secs(1));
        Ok(Self { vfs, me: Caller::root() })
    }

    async fn create(&self, text: &str, flags: OpenFlags) -> Result<Opened, VfsError> {
        self.vfs.create_open(ROOT, &name(text), 0o644, flags, &self.me).await
    }

    async fn open(&self, inode: InodeId, flags: OpenFlags) -> Result<Opened, VfsError> {
        self.vfs.open(inode, flags, &self.me).await
    }

    async fn write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        match self.vfs.try_write(handle, offset, data, WriteOrigin::Call) {
            Some(done) => done,
            None => {
                let data = Bytes::copy_from_slice(data);
                self.vfs.write(handle, offset, data, WriteOrigin::Call).await
            }
        }
    }

    async fn read(&self, handle: HandleId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        match self.vfs.try_read(handle, offset, len) {
            Some(known) => known,
            None => self.vfs.read(handle, offset, len).await,
        }
    }

    async fn close(&self, handle: HandleId) -> Result<(), VfsError> {
        let flushed = match self.vfs.try_flush(handle) {
            Some(done) => done,
            None => self.vfs.flush(handle).await,
        };
        self.vfs.release(handle);
        flushed
    }

    async fn size(&self, inode: InodeId) -> Result<u64, VfsError> {
        match self.vfs.try_getattr(inode) {
            Some(entry) => Ok(entry.attr.size),
            None => Ok(self.vfs.getattr(inode).await?.attr.size),
        }
    }
}

/// Waits until `done`, for a minute at most.
async fn clock_passes_until(done: impl Fn() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not happen within a minute");
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(seed)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_here_at_once_and_elsewhere_after_close() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let (here, there) = (Mount::new(&cluster).await?, Mount::new(&cluster).await?);
    let data = pattern(3 << 20, 1);
    let file = here.create("f", READ_WRITE).await?;
    let inode = file.entry.attr.inode;
    here.write(file.handle, 0, &data).await?;
    here.write(file.handle, 100, b"hole").await?;
    let mut expected = data.clone();
    expected[100..104].copy_from_slice(b"hole");
    assert_eq!(here.size(inode).await?, data.len() as u64);
    assert_eq!(here.read(file.handle, 0, 200).await?, expected[..200]);
    assert_eq!(here.read(file.handle, data.len() as u64 - 3, 10).await?, expected[data.len() - 3..]);
    here.close(file.handle).await?;
    assert_eq!(here.size(inode).await?, data.len() as u64, "also after the commit, from local state");

    let seen = there.open(inode, READ).await?;
    assert_eq!(seen.entry.attr.size, data.len() as u64);
    assert_eq!(there.read(seen.handle, 0, data.len() + 5).await?, expected);
    assert_eq!(kind(there.write(seen.handle, 0, b"x").await), ErrorKind::BadHandle);
    there.close(seen.handle).await?;
    for mount in [&here, &there] {
        assert_eq!(mount.vfs.open_handles(), 0);
        mount.vfs.client().close().await?;
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_go_to_the_end_and_mapped_pages_where_they_belong() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let file = mount.create("f", OpenFlags { append: true, ..READ_WRITE }).await?;
    mount.write(file.handle, 0, b"one").await?;
    mount.write(file.handle, 0, b"two").await?;
    mount.vfs.write(file.handle, 0, Bytes::from_static(b"O"), WriteOrigin::PageCache).await?;
    assert_eq!(mount.read(file.handle, 0, 99).await?, "Onetwo");
    let too_far =
        mount.vfs.write(file.handle, u64::MAX - 1, Bytes::from_static(b"xy"), WriteOrigin::PageCache);
    assert_eq!(kind(too_far.await), ErrorKind::FileTooLarge);
    mount.close(file.handle).await?;
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_truncated_in_order_with_the_appends_of_who_never_pauses() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let log = mount.create("log", OpenFlags { append: true, ..READ_WRITE }).await?;
    let (inode, done) = (log.entry.attr.inode, Arc::new(AtomicBool::new(false)));
    let writer = {
        let (mount, done, handle) = (mount.clone(), Arc::clone(&done), log.handle);
        tokio::spawn(async move {
            let mut next = 1u64; // 0 is what a hole would show
            while !done.load(Ordering::Relaxed) {
                mount.write(handle, 0, &next.to_be_bytes()).await?;
                next += 1;
            }
            Ok::<_, VfsError>(next)
        })
    };
    for _ in 0..30 {
        let truncated = mount.open(inode, OpenFlags { truncate: true, ..READ_WRITE }).await?;
        mount.close(truncated.handle).await?;
    }
    done.store(true, Ordering::Relaxed);
    let next = writer.await??;
    let size = usize::try_from(mount.size(inode).await?)?;
    let written = mount.read(log.handle, 0, size).await?;
    let records: Vec<u64> =
        written.chunks(8).map(|record| Bytes::copy_from_slice(record).get_u64()).collect();
    let expected: Vec<u64> = (next - records.len() as u64..next).collect();
    assert!(records == expected, "neither holes nor gaps: {} records up to {next}", records.len());
    mount.close(log.handle).await?;
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_forgets_what_was_behind() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let file = mount.create("f", READ_WRITE).await?;
    let inode = file.entry.attr.inode;
    mount.write(file.handle, 0, &pattern(10_000, 2)).await?;
    let size = |size| AttrChange { size: Some(size), ..AttrChange::default() };
    let attr = mount.vfs.setattr(inode, size(5000), Some(file.handle), &mount.me).await?.attr;
    assert_eq!(attr.size, 5000);
    mount.vfs.setattr(inode, size(8000), Some(file.handle), &mount.me).await?;
    let mut expected = pattern(5000, 2);
    expected.resize(8000, 0);
    assert_eq!(mount.read(file.handle, 0, 10_000).await?, expected);
    mount.close(file.handle).await?;
    let again = mount.open(inode, OpenFlags { truncate: true, ..READ_WRITE }).await?;
    assert_eq!(again.entry.attr.size, 0);
    assert_eq!(mount.read(again.handle, 0, 10).await?, "");
    mount.close(again.handle).await?;
    let far = mount.vfs.setattr(inode, size(1 << 62), None, &mount.me).await?.attr;
    assert_eq!(far.size, 1 << 62);
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_lives_until_its_last_close() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let file = mount.create("f", READ_WRITE).await?;
    let inode = file.entry.attr.inode;
    mount.write(file.handle, 0, b"before").await?;
    mount.vfs.unlink(ROOT, &name("f"), &mount.me).await?;
    mount.write(file.handle, 6, b" after").await?;
    mount.vfs.fsync(file.handle).await?;
    assert_eq!(mount.read(file.handle, 0, 99).await?, "before after");
    assert_eq!(mount.vfs.getattr(inode).await?.attr.nlink, 0);
    mount.close(file.handle).await?;
    let gone = async {
        while mount.vfs.client().coordinator().get_attr(inode).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await?;
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_pages_are_good_until_another_mount_writes() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let (here, there) = (Mount::new(&cluster).await?, Mount::new(&cluster).await?);
    let file = here.create("f", READ_WRITE).await?;
    let inode = file.entry.attr.inode;
    here.write(file.handle, 0, b"mine").await?;
    here.close(file.handle).await?;
    let again = here.open(inode, READ).await?;
    assert!(again.pages_good && !again.attributes_changed, "nobody else has touched it");
    here.close(again.handle).await?;

    let theirs = there.open(inode, READ_WRITE).await?;
    there.write(theirs.handle, 0, b"their").await?;
    there.close(theirs.handle).await?;
    let again = here.open(inode, READ).await?;
    assert!(!again.pages_good && again.attributes_changed);
    assert_eq!(here.read(again.handle, 0, 99).await?, "their");
    let once_more = here.open(inode, READ).await?;
    assert!(once_more.pages_good);
    here.close(again.handle).await?;
    here.close(once_more.handle).await?;
    for mount in [&here, &there] {
        mount.vfs.client().close().await?;
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn explicit_times_and_set_user_id_survive_the_commit_of_earlier_writes() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let file = mount.create("f", READ_WRITE).await?;
    let inode = file.entry.attr.inode;
    mount.write(file.handle, 0, b"program").await?;
    let change = AttrChange { mode: Some(0o4755), mtime: Some(Time::At(1_000)), ..AttrChange::default() };
    mount.vfs.setattr(inode, change, Some(file.handle), &mount.me).await?;
    mount.close(file.handle).await?;
    let attr = mount.vfs.getattr(inode).await?.attr;
    assert_eq!((attr.mode, attr.mtime_ns, attr.size), (0o4755, 1_000, 7));
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_punched_found_and_shared() -> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let (vfs, me) = (&mount.vfs, &mount.me);
    let file = mount.create("f", READ_WRITE).await?;
    let data = pattern(3 << 20, 3);
    mount.write(file.handle, 0, &data).await?;
    let punch = AllocateMode::Zero { keep_size: true };
    vfs.fallocate(file.handle, MIB, MIB, punch, me).await?;
    let mut expected = data.clone();
    expected[1 << 20..2 << 20].fill(0);
    assert_eq!(mount.read(file.handle, 0, data.len()).await?, expected);
    assert_eq!(vfs.lseek(file.handle, SeekFrom::Hole(0)).await?, MIB);
    assert_eq!(vfs.lseek(file.handle, SeekFrom::Data(MIB)).await?, 2 * MIB);
    assert_eq!(vfs.lseek(file.handle, SeekFrom::Hole(2 * MIB)).await?, 3 * MIB);
    assert_eq!(kind(vfs.lseek(file.handle, SeekFrom::Data(3 * MIB)).await), ErrorKind::NoSuchOffset);
    let reserve = AllocateMode::Reserve { keep_size: false };
    vfs.fallocate(file.handle, 3 * MIB, 5, reserve, me).await?;
    assert_eq!(vfs.getattr(file.entry.attr.inode).await?.attr.size, 3 * MIB + 5);

    let copy = mount.create("copy", READ_WRITE).await?;
    mount.write(copy.handle, 0, b"xy").await?;
    let copied = vfs.copy_file_range(file.handle, 0, copy.handle, 2, u64::MAX >> 2, me).await?;
    assert_eq!(copied, 3 * MIB + 5);
    expected.resize((3 << 20) + 5, 0);
    assert_eq!(mount.read(copy.handle, 0, 2).await?, "xy");
    assert_eq!(mount.read(copy.handle, 2, expected.len() + 9).await?, expected);
    let overlap = vfs.copy_file_range(copy.handle, 0, copy.handle, 1, 100, me).await;
    assert_eq!(kind(overlap), ErrorKind::InvalidArgument);
    let within = vfs.copy_file_range(copy.handle, 0, copy.handle, 10 * MIB, 100, me).await?;
    assert_eq!(within, 100);
    assert_eq!(mount.read(copy.handle, 10 * MIB, 2).await?, "xy");
    mount.close(file.handle).await?;
    mount.close(copy.handle).await?;
    vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_meets_what_is_there() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let first = mount.create("f", READ_WRITE).await?;
    mount.write(first.handle, 0, b"content").await?;
    mount.close(first.handle).await?;
    let exclusive = OpenFlags { exclusive: true, ..READ_WRITE };
    assert_eq!(kind(mount.create("f", exclusive).await), ErrorKind::Exists);
    let same = mount.create("f", READ_WRITE).await?;
    assert_eq!((same.entry.attr.inode, same.entry.attr.size), (first.entry.attr.inode, 7));
    mount.close(same.handle).await?;
    let cut = mount.create("f", OpenFlags { truncate: true, ..READ_WRITE }).await?;
    assert_eq!(cut.entry.attr.size, 0);
    mount.close(cut.handle).await?;
    let stranger = Caller::user(1000, 1000, vec![]);
    let denied = mount.vfs.create_open(ROOT, &name("f"), 0o644, READ_WRITE, &stranger).await;
    assert_eq!(kind(denied), ErrorKind::AccessDenied);
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn o_sync_writes_are_done_when_they_return() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    let file = mount.create("f", OpenFlags { sync: true, ..READ_WRITE }).await?;
    let now = mount.vfs.try_write(file.handle, 0, b"durable", WriteOrigin::Call);
    assert!(now.is_none(), "this needs the disks of the datanodes");
    mount.write(file.handle, 0, b"durable").await?;
    let other = Mount::new(&cluster).await?;
    assert_eq!(other.vfs.getattr(file.entry.attr.inode).await?.attr.size, 7);
    mount.close(file.handle).await?;
    for mount in [&mount, &other] {
        mount.vfs.client().close().await?;
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_last_close_is_told_to_who_opens_the_file_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let mount = Mount::soft(&cluster).await?;
    let created = mount.create("file", READ_WRITE).await?;
    cluster.stop_datanodes().await?;
    // As a mapping that is written after its descriptor was closed.
    mount.write(created.handle, 0, b"lost").await?;
    mount.vfs.release(created.handle);
    let inode = created.entry.attr.inode;
    // Until nobody holds the file: the store gives up, and the close has been a while.
    clock_passes_until(|| mount.vfs.client().existing_content(inode).is_none()).await;

    let again = mount.open(inode, READ_WRITE).await?;
    assert_eq!(again.entry.attr.size, 0);
    assert_eq!(kind(mount.vfs.fsync(again.handle).await), ErrorKind::Unavailable);
    mount.vfs.fsync(again.handle).await?; // once
    mount.close(again.handle).await?;
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_descriptor_is_told_of_a_lost_write_and_nobody_reads_around_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let mount = Mount::soft(&cluster).await?;
    let writer = mount.create("file", READ_WRITE).await?;
    let inode = writer.entry.attr.inode;
    let other = mount.open(inode, READ_WRITE).await?;
    let reader = mount.open(inode, READ).await?;
    cluster.stop_datanodes().await?;
    mount.write(writer.handle, 0, b"lost").await?;
    assert_eq!(mount.read(reader.handle, 0, 9).await?, "lost");
    let content = mount.vfs.client().existing_content(inode).expect("it is open");
    clock_passes_until(|| !content.is_dirty()).await;

    // What is stored is older than what was written: nobody may take it for that.
    assert_eq!(kind(mount.read(reader.handle, 0, 9).await), ErrorKind::Unavailable);
    let copy = mount.create("copy", READ_WRITE).await?;
    let copied = mount.vfs.copy_file_range(reader.handle, 0, copy.handle, 0, 9, &mount.me).await;
    assert_eq!(kind(copied), ErrorKind::Unavailable);
    assert_eq!(kind(mount.vfs.lseek(reader.handle, SeekFrom::Data(0)).await), ErrorKind::Unavailable);
    let late = mount.open(inode, READ_WRITE).await?;
    assert_eq!(kind(mount.vfs.fsync(writer.handle).await), ErrorKind::Unavailable);
    mount.vfs.fsync(writer.handle).await?; // once
    assert_eq!(mount.read(reader.handle, 0, 9).await?, "", "who wrote it knows");
    for descriptor in [&other, &late] {
        // Of a child that ends, and nobody looks; of the next one; and the parent still hears of it.
        assert_eq!(kind(mount.vfs.flush(descriptor.handle).await), ErrorKind::Unavailable);
        assert_eq!(kind(mount.vfs.flush(descriptor.handle).await), ErrorKind::Unavailable);
        assert_eq!(kind(mount.vfs.fsync(descriptor.handle).await), ErrorKind::Unavailable);
        mount.vfs.fsync(descriptor.handle).await?;
        mount.vfs.flush(descriptor.handle).await?;
    }
    let later = mount.open(inode, READ_WRITE).await?;
    mount.vfs.fsync(later.handle).await?;
    for open in [writer, other, reader, copy, late, later] {
        mount.close(open.handle).await?;
    }
    mount.vfs.client().close().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_found_can_be_opened_although_it_was_replaced_meanwhile() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mount = Mount::new(&cluster).await?;
    for (text, content) in [("old", b"old"), ("new", b"new")] {
        let file = mount.create(text, READ_WRITE).await?;
        mount.write(file.handle, 0, content).await?;
        mount.close(file.handle).await?;
    }
    let found = mount.vfs.lookup(ROOT, &name("old"), &mount.me).await?.attr.inode;
    mount.vfs.rename(ROOT, &name("new"), ROOT, &name("old"), RenameMode::Replace, &mount.me).await?;
    let opened = mount.open(found, READ).await?;
    assert_eq!(mount.read(opened.handle, 0, 9).await?, "old");

    let other = Mount::new(&cluster).await?;
    let elsewhere = other.open(found, READ).await;
    assert_eq!(kind(elsewhere), ErrorKind::StaleHandle, "another mount is to look the name up again");
    other.vfs.client().close().await?;
    mount.close(opened.handle).await?;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(kind(mount.open(found, READ).await), ErrorKind::StaleHandle, "it is not kept for ever");
    mount.vfs.client().close().await?;
    cluster.stop().await
}
