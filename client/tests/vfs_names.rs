//! Names, attributes and extended attributes through the vfs of a running cluster.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{AttrChange, Entry, Listing, RenameMode, Time, Vfs, VfsError, XattrMode};
use cairn_client::{Caller, Kind};
use cairn_proto::{ErrorKind, FileName, InodeId, SymlinkTarget};

use crate::common::Cluster;

const ROOT: InodeId = InodeId::ROOT;

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

struct Setup {
    cluster: Cluster,
    vfs: Arc<Vfs>,
    me: Caller,
}

impl Setup {
    async fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::start().await?;
        let vfs = Vfs::new(cluster.client().await?, Duration::from_secs(1));
        Ok(Self { cluster, vfs, me: Caller::root() })
    }

    /// Another mount.
    async fn other(&self) -> anyhow::Result<Arc<Vfs>> {
        Ok(Vfs::new(self.cluster.client().await?, Duration::from_secs(1)))
    }

    async fn file(&self, parent: InodeId, text: &str) -> Result<Entry, VfsError> {
        self.vfs.mknod(parent, &name(text), Kind::File, 0o644, 0, &self.me).await
    }

    async fn end(self) -> anyhow::Result<()> {
        self.vfs.client().close().await?;
        self.cluster.stop().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_follow_the_man_pages() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    let (vfs, me) = (&t.vfs, &t.me);
    let d = vfs.mkdir(ROOT, &name("d"), 0o755, me).await?.attr;
    let f = t.file(d.inode, "f").await?.attr;
    assert_eq!(kind(t.file(d.inode, "f").await), ErrorKind::Exists);
    assert_eq!(vfs.lookup(d.inode, &name("f"), me).await?.attr.inode, f.inode);
    assert_eq!(kind(vfs.lookup(f.inode, &name("x"), me).await), ErrorKind::NotDirectory);
    assert_eq!(vfs.lookup_parent(d.inode, me).await?.attr.inode, ROOT);

    assert_eq!(vfs.link(f.inode, ROOT, &name("g"), me).await?.attr.nlink, 2);
    assert_eq!(kind(vfs.rmdir(ROOT, &name("d"), me).await), ErrorKind::NotEmpty);
    assert_eq!(kind(vfs.rmdir(ROOT, &name("g"), me).await), ErrorKind::NotDirectory);
    assert_eq!(kind(vfs.unlink(ROOT, &name("d"), me).await), ErrorKind::IsDirectory);

    let h = t.file(d.inode, "h").await?.attr;
    let no = vfs.rename(d.inode, &name("h"), ROOT, &name("g"), RenameMode::NoReplace, me).await;
    assert_eq!(kind(no), ErrorKind::Exists);
    vfs.rename(d.inode, &name("h"), ROOT, &name("g"), RenameMode::Exchange, me).await?;
    assert_eq!(vfs.lookup(ROOT, &name("g"), me).await?.attr.inode, h.inode);
    assert_eq!(vfs.lookup(d.inode, &name("h"), me).await?.attr.inode, f.inode);
    vfs.rename(d.inode, &name("h"), ROOT, &name("g"), RenameMode::Replace, me).await?;
    assert_eq!(vfs.lookup(ROOT, &name("g"), me).await?.attr.inode, f.inode);
    assert_eq!(kind(vfs.lookup(d.inode, &name("h"), me).await), ErrorKind::NotFound);

    vfs.unlink(d.inode, &name("f"), me).await?;
    vfs.rmdir(ROOT, &name("d"), me).await?;
    assert_eq!(vfs.getattr(f.inode).await?.attr.nlink, 1);
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symlink_is_read_without_asking_again() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    let target = SymlinkTarget::new(&b"some/where"[..])?;
    let link = t.vfs.symlink(ROOT, &name("link"), &target, &t.me).await?.attr;
    assert_eq!(link.size, 10);
    let known = t.vfs.try_readlink(link.inode).expect("it was just made")?;
    assert_eq!(known, "some/where");
    assert_eq!(kind(t.vfs.readlink(ROOT).await), ErrorKind::InvalidArgument);
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_made_by_another_mount_is_there_at_once() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    let d = t.vfs.mkdir(ROOT, &name("d"), 0o755, &t.me).await?.attr.inode;
    let other = t.other().await?;
    for round in 0..10 {
        let (ours, theirs) = (format!("ours-{round}"), format!("theirs-{round}"));
        t.file(d, &ours).await?;
        assert_eq!(kind(t.vfs.lookup(d, &name(&theirs), &t.me).await), ErrorKind::NotFound);
        other.lookup(d, &name(&ours), &t.me).await?;
        other.mknod(d, &name(&theirs), Kind::File, 0o644, 0, &t.me).await?;
        t.vfs.lookup(d, &name(&theirs), &t.me).await?;
    }
    other.client().close().await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_local_for_a_second_at_most() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    let f = t.file(ROOT, "f").await?.attr.inode;
    let known = t.vfs.try_getattr(f).expect("it was just made");
    assert!(known.valid <= Duration::from_secs(1));
    let other = t.other().await?;
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    other.setattr(f, change, None, &t.me).await?;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(t.vfs.try_getattr(f).is_none());
    assert_eq!(t.vfs.getattr(f).await?.attr.mode, 0o600);
    other.client().close().await?;
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn times_and_owners_are_set() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    let f = t.file(ROOT, "f").await?.attr.inode;
    let change =
        AttrChange { uid: Some(7), gid: Some(8), mtime: Some(Time::At(-5)), ..AttrChange::default() };
    let attr = t.vfs.setattr(f, change, None, &t.me).await?.attr;
    assert_eq!((attr.uid, attr.gid, attr.mtime_ns), (7, 8, -5));
    let stranger = Caller::user(1000, 1000, vec![]);
    let change = AttrChange { mode: Some(0o777), ..AttrChange::default() };
    assert_eq!(kind(t.vfs.setattr(f, change, None, &stranger).await), ErrorKind::NotPermitted);
    let change = AttrChange { mtime: Some(Time::Now), ..AttrChange::default() };
    assert!(t.vfs.setattr(f, change, None, &t.me).await?.attr.mtime_ns > 0);
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes_are_answered_locally_until_they_change() -> anyhow::Result<()> {
    let t = Setup::new().await?;
    let (vfs, me) = (&t.vfs, &t.me);
    let f = t.file(ROOT, "f").await?.attr.inode;
    let known = vfs.try_getxattr(f, b"security.capability").map(kind);
    assert_eq!(known, Some(ErrorKind::NoData));
    assert_eq!(vfs.try_listxattr(f).as_deref(), Some(&b""[..]));

    vfs.setxattr(f, b"user.a", b"1", XattrMode::Create, me).await?;
    assert_eq!(kind(vfs.setxattr(f, b"user.a", b"2", XattrMode::Create, me).await), ErrorKind::Exists);
    assert_eq!(kind(vfs.setxattr(f, b"user.b", b"2", XattrMode::Replace, me).await), ErrorKind::NoData);
    vfs.setxattr(f, b"user.b", b"", XattrMode::Set, me).await?;
    assert_eq!(vfs.getxattr(f, b"user.a").await?, "1");
    assert_eq!(vfs.try_getxattr(f, b"user.b").expect("all are known now")?, "");
    assert_eq!(vfs.listxattr(f).await?.len(), 14);
    vfs.removexattr(f, b"user.a", me).await?;
    assert_eq!(kind(vfs.getxattr(f, b"user.a").await), ErrorKind::NoData);
    assert_eq!(vfs.listxattr(f).await?, &b"user.b\0"[..]);
    let acl = vfs.setxattr(f, b"system.posix_acl_access", b"", XattrMode::Set, me).await;
    assert_eq!(kind(acl), ErrorKind::NotSupported);
    t.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_directory_is_listed_once_while_it_changes() -> anyhow::Result<()> {
    const ENTRIES: usize = 5000;
    let t = Setup::new().await?;
    let d = t.vfs.mkdir(ROOT, &name("d"), 0o755, &t.me).await?.attr.inode;
    let makers = (0..8).map(|part| {
        let (vfs, me) = (Arc::clone(&t.vfs), t.me.clone());
        tokio::spawn(async move {
            for index in (part..ENTRIES).step_by(8) {
                vfs.mknod(d, &name(&format!("file-{index}")), Kind::File, 0o644, 0, &me).await?;
            }
            Ok::<_, VfsError>(())
        })
    });
    for maker in makers.collect::<Vec<_>>() {
        maker.await??;
    }

    let handle = t.vfs.opendir(d);
    let (mut seen, mut position, mut removed) = (Vec::new(), 0, false);
    loop {
        // As a kernel does: attributes with the first entries, then names, then attributes again.
        let listing = if (1..3000).contains(&seen.len()) { Listing::Names } else { Listing::Attributes };
        let entries = match t.vfs.try_readdir(handle, position, listing) {
            Some(known) => known?,
            None => t.vfs.readdir(handle, position, listing).await?,
        };
        let dots = usize::from(position == 0) * 2;
        let bare = entries.iter().skip(dots).filter(|entry| entry.entry.is_none()).count();
        assert!(listing == Listing::Names || bare == 0, "{bare} entries lack attributes");
        // As a kernel does: a buffer holds only so many.
        let part: Vec<_> =
            entries.iter().take(100).map(|entry| (entry.name.to_vec(), entry.next, entry.inode)).collect();
        let Some(last) = part.last() else { break };
        position = last.1;
        seen.extend(part.into_iter().map(|(name, ..)| name));
        if !removed && seen.len() > 1000 {
            removed = true;
            // Remove what was seen; the rest is still seen exactly once.
            for gone in &seen[2..102] {
                t.vfs.unlink(d, &FileName::new(gone.clone())?, &t.me).await?;
            }
        }
    }
    assert_eq!(seen.len(), ENTRIES + 2);
    assert_eq!((seen[0].as_slice(), seen[1].as_slice()), (&b"."[..], &b".."[..]));
    let unique: std::collections::HashSet<_> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len());

    let again = t.vfs.readdir(handle, 0, Listing::Names).await?;
    let first = again.iter().nth(2).map(|entry| entry.name.to_vec());
    assert!(first.is_some_and(|first| !seen[2..102].contains(&first)), "rewinding shows it as it is");
    t.vfs.releasedir(handle);
    assert_eq!(t.vfs.open_handles(), 0);
    t.end().await
}
