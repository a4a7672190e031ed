//! Directories under read leases: what is answered without asking, and that nobody sees anything old by it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{AttrChange, HandleId, Listing, OpenFlags, Opened, Vfs, WriteOrigin};
use cairn_client::{Caller, ClientConfig, Kind};
use cairn_proto::{ErrorKind, FileName, InodeId};

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;
const FILES: usize = 12;
const READ: OpenFlags = OpenFlags {
    read: true,
    write: false,
    append: false,
    truncate: false,
    exclusive: false,
    sync: false,
    direct: false,
};

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

fn file(index: usize) -> FileName {
    name(&format!("f{index}"))
}

struct Setup {
    cluster: Cluster,
    /// Makes its changes at the coordinator, and knows nothing by leases.
    maker: Arc<Vfs>,
    vfs: Arc<Vfs>,
    me: Caller,
    directory: InodeId,
}

impl Setup {
    /// A directory with files `f0` to `f11`, each with its name in it.
    async fn new() -> Self {
        let cluster = Cluster::start().await.unwrap();
        let durable = ClientConfig { durable_names: true, ..ClientConfig::default() };
        let maker = Vfs::new(cluster.client_with(durable).await.unwrap(), Duration::from_secs(1));
        let vfs = Vfs::new(cluster.client().await.unwrap(), Duration::from_secs(1));
        let me = Caller::root();
        let directory = maker.mkdir(ROOT, &name("d"), 0o755, &me).await.unwrap().attr.inode;
        let setup = Self { cluster, maker, vfs, me, directory };
        for index in 0..FILES {
            setup.write(&file(index), &format!("this is f{index}")).await;
        }
        // A directory is looked up before it is used.
        setup.vfs.lookup(ROOT, &name("d"), &setup.me).await.unwrap();
        setup
    }

    /// A file with this content, made or replaced by the other mount.
    async fn write(&self, name: &FileName, content: &str) {
        let flags = OpenFlags { write: true, truncate: true, ..READ };
        let made = self.maker.create_open(self.directory, name, 0o644, flags, &self.me).await.unwrap();
        let content = Bytes::copy_from_slice(content.as_bytes());
        self.maker.write(made.handle, 0, content, WriteOrigin::Call).await.unwrap();
        self.maker.flush(made.handle).await.unwrap();
        self.maker.release(made.handle);
    }

    /// Lists the directory as a kernel does that will look at what is in it.
    async fn list(&self) -> usize {
        let handle = self.vfs.opendir(self.directory);
        let count = self.vfs.readdir(handle, 0, Listing::Attributes).await.unwrap().iter().count();
        self.vfs.releasedir(handle);
        count - 2 // "." and ".."
    }

    async fn look(&self, index: usize) -> Result<InodeId, ErrorKind> {
        let found = self.vfs.lookup(self.directory, &file(index), &self.me).await;
        found.map(|entry| entry.attr.inode).map_err(|error| error.kind())
    }

    /// Opens files until it knows where their bytes are, then this one, without asking.
    async fn open_without_asking(&self, index: usize) -> Opened {
        loop {
            for other in (0..FILES).filter(|&other| other != index) {
                let Ok(inode) = self.look(other).await else { continue };
                let opened = self.vfs.open(inode, READ, &self.me).await.unwrap();
                self.vfs.release(opened.handle);
            }
            let inode = self.look(index).await.unwrap();
            if let Some(opened) = self.vfs.try_open(inode, READ) {
                return opened;
            }
        }
    }

    async fn read(&self, handle: HandleId) -> String {
        String::from_utf8(self.vfs.read(handle, 0, 100).await.unwrap().to_vec()).unwrap()
    }

    async fn stop(self) {
        for vfs in [&self.maker, &self.vfs] {
            vfs.client().close().await.unwrap();
        }
        self.cluster.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_tells_what_is_there_and_what_is_not() {
    let t = Setup::new().await;
    assert_eq!(t.list().await, FILES);
    let known = |text: &str| t.vfs.try_lookup(t.directory, &name(text), &t.me);
    for index in 0..FILES {
        let attr = known(&format!("f{index}")).unwrap().unwrap().attr;
        assert_eq!((attr.kind, attr.size), (Kind::File, format!("this is f{index}").len() as u64));
    }
    assert_eq!(known("g").unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    let nobody = Caller::user(1000, 1000, vec![]);
    assert!(t.vfs.try_lookup(t.directory, &file(0), &nobody).unwrap().is_ok());
    // Once more, without asking.
    let handle = t.vfs.opendir(t.directory);
    let again = t.vfs.try_readdir(handle, 0, Listing::Attributes).unwrap().unwrap();
    assert_eq!(again.iter().count(), FILES + 2);
    t.vfs.releasedir(handle);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_answers_for_a_second() {
    let t = Setup::new().await;
    t.list().await;
    assert!(t.vfs.try_lookup(t.directory, &file(0), &t.me).is_some());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(t.vfs.try_lookup(t.directory, &file(0), &t.me).is_none());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_name_that_is_looked_up_brings_all() {
    let t = Setup::new().await;
    t.look(0).await.unwrap();
    assert!(t.vfs.try_lookup(t.directory, &file(2), &t.me).is_none());
    t.look(1).await.unwrap();
    assert!(t.vfs.try_lookup(t.directory, &file(2), &t.me).unwrap().is_ok());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_mount_changes_is_seen_at_once() {
    let t = Setup::new().await;
    let (d, me) = (t.directory, &t.me);
    t.list().await;
    let inode = t.look(0).await.unwrap();

    t.maker.unlink(d, &file(1), me).await.unwrap();
    assert_eq!(t.look(1).await, Err(ErrorKind::NotFound));
    t.list().await;
    t.write(&name("new"), "new").await;
    assert!(t.vfs.lookup(d, &name("new"), me).await.is_ok());
    t.list().await;
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    t.maker.setattr(inode, change, None, me).await.unwrap();
    assert_eq!(t.vfs.lookup(d, &file(0), me).await.unwrap().attr.mode, 0o600);
    t.list().await;
    t.write(&file(2), "longer than it was before").await;
    assert_eq!(t.vfs.lookup(d, &file(2), me).await.unwrap().attr.size, 25);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_mount_changes_is_seen_at_once() {
    let t = Setup::new().await;
    let (d, me) = (t.directory, &t.me);
    t.list().await;
    t.vfs.unlink(d, &file(1), me).await.unwrap();
    assert_eq!(t.look(1).await, Err(ErrorKind::NotFound));
    assert_eq!(t.list().await, FILES - 1);
    t.vfs.mknod(d, &name("new"), Kind::File, 0o644, 0, me).await.unwrap();
    assert!(t.vfs.lookup(d, &name("new"), me).await.is_ok());
    assert_eq!(t.list().await, FILES);
    let inode = t.look(0).await.unwrap();
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    t.vfs.setattr(inode, change, None, me).await.unwrap();
    assert_eq!(t.vfs.lookup(d, &file(0), me).await.unwrap().attr.mode, 0o600);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_mount_changed_and_a_kernel_forgot_is_not_shown_as_it_was_listed() {
    let t = Setup::new().await;
    t.list().await;
    let inode = t.look(0).await.unwrap();
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    t.vfs.setattr(inode, change, None, &t.me).await.unwrap();
    t.vfs.forget(inode);
    let handle = t.vfs.opendir(t.directory);
    let entries = match t.vfs.try_readdir(handle, 0, Listing::Attributes) {
        Some(known) => known.unwrap(),
        None => t.vfs.readdir(handle, 0, Listing::Attributes).await.unwrap(),
    };
    let shown = entries.iter().find(|entry| entry.inode == inode).unwrap();
    assert_eq!(shown.entry.unwrap().attr.mode, 0o600);
    t.vfs.releasedir(handle);
    assert_eq!(t.vfs.lookup(t.directory, &file(0), &t.me).await.unwrap().attr.mode, 0o600);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_change_in_a_listed_directory_brings_its_names() {
    let t = Setup::new().await;
    let (d, me) = (t.directory, &t.me);
    t.list().await;
    t.vfs.unlink(d, &file(0), me).await.unwrap();
    // Under the write lease that came with it, at once.
    assert!(t.vfs.try_unlink(d, &file(0), me).unwrap().is_err());
    assert!(t.vfs.try_unlink(d, &file(1), me).unwrap().is_ok());
    assert!(t.vfs.try_lookup(d, &file(2), me).unwrap().is_ok(), "its attributes are known");
    for index in 2..FILES {
        t.vfs.unlink(d, &file(index), me).await.unwrap();
    }
    assert_eq!(t.list().await, 0);
    t.vfs.rmdir(ROOT, &name("d"), me).await.unwrap();
    assert!(t.maker.lookup(ROOT, &name("d"), me).await.is_err());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_in_one_that_is_being_emptied_are_leased_when_they_are_listed() {
    let t = Setup::new().await;
    let (d, me) = (t.directory, &t.me);
    let mut below = Vec::new();
    for index in 0..3 {
        let inner = t.maker.mkdir(d, &name(&format!("d{index}")), 0o755, me).await.unwrap().attr.inode;
        t.maker.mknod(inner, &name("x"), Kind::File, 0o644, 0, me).await.unwrap();
        below.push(inner);
    }
    t.list().await;
    t.vfs.unlink(d, &file(0), me).await.unwrap();
    for (index, inner) in below.into_iter().enumerate() {
        let handle = t.vfs.opendir(inner);
        assert_eq!(t.vfs.readdir(handle, 0, Listing::Attributes).await.unwrap().iter().count(), 3);
        t.vfs.releasedir(handle);
        assert!(t.vfs.try_unlink(inner, &name("x"), me).unwrap().is_ok());
        assert!(t.vfs.try_rmdir(d, &name(&format!("d{index}")), me).unwrap().is_ok());
    }
    assert!(t.maker.lookup(d, &name("d1"), me).await.is_err());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_opened_without_asking_and_never_old() {
    let t = Setup::new().await;
    t.list().await;
    let opened = t.open_without_asking(3).await;
    assert_eq!(t.read(opened.handle).await, "this is f3");
    t.vfs.release(opened.handle);
    assert!(t.vfs.try_open(opened.entry.attr.inode, OpenFlags { write: true, ..READ }).is_none());

    t.write(&file(3), "changed").await;
    let inode = t.look(3).await.unwrap();
    let opened = t.vfs.open(inode, READ, &t.me).await.unwrap();
    assert_eq!(t.read(opened.handle).await, "changed");
    t.vfs.release(opened.handle);
    t.stop().await;
}

/// What a file that has lost its name is to the coordinator.
async fn is_held(t: &Setup, inode: InodeId) -> bool {
    match t.maker.client().coordinator().get_attr(inode).await {
        Ok(attr) => {
            assert_eq!(attr.nlink, 0);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::StaleHandle);
            false
        }
    }
}

async fn until_gone(t: &Setup, inode: InodeId) {
    while is_held(t, inode).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_opened_without_asking_lives_when_another_mount_removes_it() {
    let t = Setup::new().await;
    t.list().await;
    let opened = t.open_without_asking(3).await;
    let inode = opened.entry.attr.inode;
    t.maker.unlink(t.directory, &file(3), &t.me).await.unwrap();
    assert!(is_held(&t, inode).await);
    assert_eq!(t.read(opened.handle).await, "this is f3");
    t.vfs.release(opened.handle);
    until_gone(&t, inode).await;
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_opened_without_asking_lives_when_this_mount_removes_it() {
    let t = Setup::new().await;
    let (d, me) = (t.directory, &t.me);
    t.list().await;
    let [one, two, three] =
        [t.open_without_asking(3).await, t.open_without_asking(4).await, t.open_without_asking(5).await];
    // At the coordinator, then locally, then by what takes the name.
    t.vfs.unlink(d, &file(3), me).await.unwrap();
    t.vfs.unlink(d, &file(4), me).await.unwrap();
    let mode = cairn_client::vfs::RenameMode::Replace;
    t.vfs.rename(d, &file(6), d, &file(5), mode, me).await.unwrap();
    let handle = t.vfs.opendir(d);
    t.vfs.fsyncdir(handle).await.unwrap();
    t.vfs.releasedir(handle);
    for (opened, text) in [(one, "this is f3"), (two, "this is f4"), (three, "this is f5")] {
        let inode = opened.entry.attr.inode;
        assert!(is_held(&t, inode).await);
        assert_eq!(t.read(opened.handle).await, text);
        t.vfs.release(opened.handle);
        until_gone(&t, inode).await;
    }
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_stays_open_is_registered_before_its_lease_ends() {
    let t = Setup::new().await;
    t.list().await;
    let opened = t.open_without_asking(3).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    t.maker.unlink(t.directory, &file(3), &t.me).await.unwrap();
    assert!(is_held(&t, opened.entry.attr.inode).await);
    assert_eq!(t.read(opened.handle).await, "this is f3");
    t.vfs.release(opened.handle);
    t.stop().await;
}
