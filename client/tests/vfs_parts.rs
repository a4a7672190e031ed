//! Walks through a directory that is too large to be covered whole, and changes by another mount meanwhile.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{AttrChange, Listing, RenameMode, Vfs};
use cairn_client::{Caller, ClientConfig, Kind};
use cairn_proto::{ErrorKind, FileName, InodeId};

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;
/// More than is covered whole.
const ENTRIES: usize = 5000;

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

struct Setup {
    cluster: Cluster,
    /// Makes its changes at the coordinator, and knows nothing by leases.
    maker: Arc<Vfs>,
    vfs: Arc<Vfs>,
    me: Caller,
    large: InodeId,
}

impl Setup {
    /// A directory of many files made by one mount, which the other one has listed.
    async fn new() -> Self {
        let cluster = Cluster::start().await.unwrap();
        let filler = Vfs::new(cluster.client().await.unwrap(), Duration::from_secs(1));
        let durable = ClientConfig { durable_names: true, ..ClientConfig::default() };
        let maker = Vfs::new(cluster.client_with(durable).await.unwrap(), Duration::from_secs(1));
        let vfs = Vfs::new(cluster.client().await.unwrap(), Duration::from_secs(1));
        let me = Caller::root();
        let large = filler.mkdir(ROOT, &name("large"), 0o755, &me).await.unwrap().attr.inode;
        for index in 0..ENTRIES {
            filler.mknod(large, &name(&format!("f{index}")), Kind::File, 0o644, 0, &me).await.unwrap();
        }
        // With the session the leases of the one that has filled it end.
        filler.client().close().await.unwrap();
        vfs.lookup(ROOT, &name("large"), &me).await.unwrap();
        Self { cluster, maker, vfs, me, large }
    }

    async fn end(self) {
        self.maker.client().close().await.unwrap();
        self.vfs.client().close().await.unwrap();
        self.cluster.stop().await.unwrap();
    }

    /// The names in the order of the directory.
    async fn list(&self) -> Vec<FileName> {
        let handle = self.vfs.opendir(self.large);
        let (mut names, mut position) = (Vec::new(), 0);
        loop {
            let listing = if position == 0 { Listing::Attributes } else { Listing::Names };
            let entries = self.vfs.readdir(handle, position, listing).await.unwrap();
            let before = position;
            for entry in entries.iter() {
                position = entry.next;
                if !entry.name.starts_with(b".") {
                    names.push(FileName::new(Bytes::copy_from_slice(entry.name)).unwrap());
                }
            }
            if position == before {
                break;
            }
        }
        self.vfs.releasedir(handle);
        names
    }

    /// Looks a name up; `true`: nobody was asked.
    async fn look(&self, name: &FileName) -> Result<(InodeId, u32, bool), ErrorKind> {
        let (found, local) = match self.vfs.try_lookup(self.large, name, &self.me) {
            Some(found) => (found, true),
            None => (self.vfs.lookup(self.large, name, &self.me).await, false),
        };
        found.map(|entry| (entry.attr.inode, entry.attr.mode, local)).map_err(|error| error.kind())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_through_a_large_directory_is_answered_by_pages() {
    let t = Setup::new().await;
    let names = t.list().await;
    assert_eq!(names.len(), ENTRIES);
    let mut asked = 0;
    for name in &names {
        asked += usize::from(!t.look(name).await.unwrap().2);
    }
    assert!(asked < ENTRIES / 4, "{asked} of {ENTRIES} look-ups were asked one by one");
    // What is not in the part is not known to be absent.
    assert_eq!(t.look(&name("none")).await, Err(ErrorKind::NotFound));
    t.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_mount_changes_in_a_part_is_seen_at_once() {
    let t = Setup::new().await;
    let names = t.list().await;
    let mut local_before = 0;
    for round in 0..5usize {
        let at = round * 100;
        for name in &names[at..at + 20] {
            local_before += usize::from(t.look(name).await.unwrap().2);
        }
        let changed = &names[at + 20..at + 25];
        let inode = t.look(&changed[0]).await.unwrap().0;
        let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
        t.maker.setattr(inode, change, None, &t.me).await.unwrap();
        assert_eq!(t.look(&changed[0]).await.unwrap().1 & 0o777, 0o600);

        t.maker.unlink(t.large, &changed[1], &t.me).await.unwrap();
        assert_eq!(t.look(&changed[1]).await, Err(ErrorKind::NotFound));

        let moved = name(&format!("moved{round}"));
        let inode = t.look(&changed[2]).await.unwrap().0;
        t.maker.rename(t.large, &changed[2], t.large, &moved, RenameMode::Replace, &t.me).await.unwrap();
        assert_eq!(t.look(&changed[2]).await, Err(ErrorKind::NotFound));
        assert_eq!(t.look(&moved).await.unwrap().0, inode);

        let replaced = t.look(&changed[3]).await.unwrap().0;
        t.maker.unlink(t.large, &changed[3], &t.me).await.unwrap();
        let new = t.maker.mknod(t.large, &changed[3], Kind::File, 0o644, 0, &t.me).await.unwrap();
        assert_ne!(new.attr.inode, replaced);
        assert_eq!(t.look(&changed[3]).await.unwrap().0, new.attr.inode);
    }
    assert!(local_before > 0, "nothing was covered, and nothing shown");
    t.end().await;
}
