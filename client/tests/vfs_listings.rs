//! Listings of a large directory through two mounts, as a kernel asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{Listing, RenameMode, Vfs, VfsError};
use cairn_client::{Caller, Kind};
use cairn_proto::{FileName, InodeId};

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;
/// More than a first page has, so that pages are kept, here and there.
const ENTRIES: usize = 1500;
/// Entries that a buffer of the kernel holds.
const BUFFER: usize = 400;

type Entries = BTreeMap<Vec<u8>, (InodeId, Kind)>;

fn name(text: &str) -> FileName {
    FileName::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

/// What a directory shows; each name once. A kernel asks for attributes first, then for names.
async fn list(vfs: &Arc<Vfs>, directory: InodeId, attributes_too: bool) -> Result<Entries, VfsError> {
    let handle = vfs.opendir(directory);
    let (mut all, mut position) = (Entries::new(), 0);
    loop {
        let plus = position == 0 || attributes_too;
        let listing = if plus { Listing::Attributes } else { Listing::Names };
        let entries = match vfs.try_readdir(handle, position, listing) {
            Some(known) => known?,
            None => vfs.readdir(handle, position, listing).await?,
        };
        let before = all.len();
        for entry in entries.iter().take(BUFFER) {
            let attr = entry.entry.map(|known| (known.attr.inode, known.attr.kind));
            assert!(attr.is_none_or(|attr| attr == (entry.inode, entry.kind)), "attributes of another inode");
            assert!(attr.is_some() || !plus || entry.name.starts_with(b"."), "attributes were asked for");
            let twice = all.insert(entry.name.to_vec(), (entry.inode, entry.kind));
            assert!(twice.is_none(), "a name is shown twice");
            position = entry.next;
        }
        if all.len() == before {
            break;
        }
    }
    vfs.releasedir(handle);
    assert!(all.remove(&b"."[..]).is_some() && all.remove(&b".."[..]).is_some());
    Ok(all)
}

struct Setup {
    cluster: Cluster,
    mounts: [Arc<Vfs>; 2],
    me: Caller,
    large: InodeId,
    other: InodeId,
}

impl Setup {
    async fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        let mount = async || anyhow::Ok(Vfs::new(cluster.client().await?, Duration::from_secs(1)));
        let mounts = [mount().await?, mount().await?];
        let me = Caller::root();
        let large = mounts[0].mkdir(ROOT, &name("large"), 0o755, &me).await?.attr.inode;
        let other = mounts[0].mkdir(ROOT, &name("other"), 0o755, &me).await?.attr.inode;
        let makers = (0..8).map(|part| {
            let (vfs, me) = (Arc::clone(&mounts[0]), me.clone());
            tokio::spawn(async move {
                for index in (part..ENTRIES).step_by(8) {
                    vfs.mknod(large, &name(&format!("f{index}")), Kind::File, 0o644, 0, &me).await?;
                }
                Ok::<_, VfsError>(())
            })
        });
        for maker in makers.collect::<Vec<_>>() {
            maker.await??;
        }
        Ok(Self { cluster, mounts, me, large, other })
    }

    async fn end(self) -> anyhow::Result<()> {
        for mount in &self.mounts {
            mount.client().close().await?;
        }
        self.cluster.stop().await
    }
}

/// A change of the directory, by its number; `false`: there is no such.
async fn change(t: &Setup, by: &Arc<Vfs>, number: usize, round: usize) -> Result<bool, VfsError> {
    let (large, other, me) = (t.large, t.other, &t.me);
    let file = |index: usize| name(&format!("f{}", index + round * 100));
    let new = |what: &str| name(&format!("{what}{round}"));
    let inode = async |of: FileName| Ok::<_, VfsError>(by.lookup(large, &of, me).await?.attr.inode);
    match number {
        0 => drop(by.mknod(large, &new("made"), Kind::File, 0o644, 0, me).await?),
        1 => drop(by.mkdir(large, &new("dir"), 0o755, me).await?),
        2 => drop(by.link(inode(file(0)).await?, large, &new("link"), me).await?),
        3 => by.unlink(large, &file(1), me).await?,
        4 => by.rename(large, &file(2), large, &new("renamed"), RenameMode::Replace, me).await?,
        5 => by.rename(large, &file(3), large, &file(90), RenameMode::Replace, me).await?,
        6 => by.rename(large, &file(4), large, &new("dir"), RenameMode::Exchange, me).await?,
        7 => by.rename(large, &file(4), large, &new("dir"), RenameMode::Exchange, me).await?,
        8 => by.rename(large, &file(5), other, &new("out"), RenameMode::NoReplace, me).await?,
        9 => by.rename(other, &new("out"), large, &new("in"), RenameMode::NoReplace, me).await?,
        10 => by.rmdir(large, &new("dir"), me).await?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_never_one_of_before() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    // By the mount whose listing is looked at first, then by the other one.
    for (round, by) in [&t.mounts[1], &t.mounts[0]].into_iter().enumerate() {
        for number in 0.. {
            // Both have it at hand, from just before.
            let before = list(&t.mounts[0], t.large, false).await?;
            assert_eq!(list(&t.mounts[1], t.large, false).await?, before);
            if !change(&t, by, number, round).await? {
                break;
            }
            let seen = list(&t.mounts[1], t.large, false).await?;
            assert_ne!(seen, before, "change {number} is shown");
            assert_eq!(list(&t.mounts[0], t.large, false).await?, seen, "change {number}");
            assert_eq!(list(&t.mounts[0], t.large, true).await?, seen, "change {number}, with attributes");
            // Name by name, which is asked for each time.
            for (text, (inode, kind)) in seen.iter().filter(|(text, _)| !before.contains_key(*text)) {
                let found = t.mounts[1].lookup(t.large, &FileName::new(text.clone())?, &t.me).await?.attr;
                assert_eq!((found.inode, found.kind), (*inode, *kind));
            }
        }
    }
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_over_when_a_listing_began_is_in_it() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    let (done, listings) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let maker = {
        let (vfs, me, large, done) = (Arc::clone(&t.mounts[0]), t.me.clone(), t.large, Arc::clone(&done));
        let listings = Arc::clone(&listings);
        tokio::spawn(async move {
            for round in 1..=300u64 {
                // Moved to the end of the directory: in each listing under one name or the other.
                let (old, new) = (name(&format!("f{round}")), name(&format!("moved{round}")));
                vfs.rename(large, &old, large, &new, RenameMode::NoReplace, &me).await?;
                vfs.mknod(large, &name(&format!("made{round}")), Kind::File, 0o644, 0, &me).await?;
                done.store(round, Ordering::SeqCst);
                // Changes under a lease are over before a listing has begun: not too far ahead of them.
                while listings.load(Ordering::SeqCst) < round / 10 {
                    tokio::task::yield_now().await;
                }
            }
            Ok::<_, VfsError>(())
        })
    };
    while !maker.is_finished() {
        let over = done.load(Ordering::SeqCst);
        let seen = list(&t.mounts[1], t.large, false).await?;
        let has = |text: String| seen.contains_key(text.as_bytes());
        for index in 0..ENTRIES as u64 {
            let (old, moved) = (has(format!("f{index}")), has(format!("moved{index}")));
            assert!(old || moved, "f{index} is in neither place");
            assert!(!(1..=over).contains(&index) || (!old && moved && has(format!("made{index}"))));
        }
        listings.fetch_add(1, Ordering::SeqCst);
    }
    maker.await??;
    assert!(listings.load(Ordering::SeqCst) > 0);
    t.end().await
}
