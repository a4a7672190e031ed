//! Read leases as mounts see them: what comes with a listing, who waits for whom, and for how long.

use std::time::Duration;

use bytes::Bytes;
use cairn_proto::v1;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use v1::mutation::Op;

use crate::common;
use crate::common::mount::Mount;
use crate::common::{Client, Cluster, Datanode, dir, file};

type Result<T = ()> = anyhow::Result<T>;

/// As long as a read lease.
const READ_LEASE: Duration = Duration::from_secs(2);

/// A directory with the files `f` and `g`, one mount that lists it and one that changes it.
struct Setup {
    cluster: Cluster,
    holder: Mount,
    other: Mount,
    d: u64,
    f: u64,
    g: u64,
}

impl Setup {
    async fn new() -> Result<Self> {
        let cluster = Cluster::start().await?;
        let mut client = cluster.client().await?;
        let d = made(&mut client, dir(1, "d")).await?;
        let (f, g) = (made(&mut client, file(d, "f")).await?, made(&mut client, file(d, "g")).await?);
        client.goodbye().await?;
        let (holder, other) = (Mount::open(&cluster).await?, Mount::open(&cluster).await?);
        Ok(Self { cluster, holder, other, d, f, g })
    }

    /// The holder lists the directory; returns the number of its leases on everything in it.
    async fn granted(&self) -> Result<u64> {
        let listed = self.holder.list_leased(self.d).await?;
        assert_ne!(listed.lease_grant, 0);
        assert_eq!(listed.unleased, [0; 0]);
        Ok(listed.lease_grant)
    }
}

async fn made(client: &mut Client, mutation: v1::Mutation) -> Result<u64> {
    let done = client.apply(vec![mutation]).await?.remove(0);
    anyhow::ensure!(done.error == 0, "{}", done.message);
    Ok(done.attr.unwrap_or_default().inode)
}

fn chmod(inode: u64) -> v1::Mutation {
    common::mutation(Op::SetAttr(v1::SetAttr { inode, mode: Some(0o600), ..v1::SetAttr::default() }))
}

type Applying = JoinHandle<std::result::Result<v1::MutationResult, tonic::Status>>;

/// One mutation of a mount, in a task of its own.
fn apply(mount: &mut Mount, mutation: v1::Mutation) -> Applying {
    let (mut grpc, request) = (mount.grpc.clone(), mount.request(vec![mutation], false));
    tokio::spawn(async move { Ok(grpc.apply(request).await?.into_inner().results.remove(0)) })
}

/// A chunk of 10 bytes in each of these files; they are stored nowhere.
async fn write(client: &mut Client, files: &[u64]) -> Result {
    let plan = client.plan(files.len() as u32).await?;
    let map = plan.map.clone().unwrap_or_default();
    let grants = Datanode::granted(&plan).into_iter();
    let chunks: Vec<_> = grants.map(|grant| common::stored(&map, grant, 10)).collect();
    let commit =
        |(&inode, chunk): (&u64, &v1::StoredChunk)| common::commit(inode, &[(0, 10, chunk.chunk, 0)]);
    let files = files.iter().zip(&chunks).map(commit).collect();
    let done = client.confirm_new(chunks, files).await?;
    anyhow::ensure!(done.iter().all(|result| result.error == 0), "{done:?}");
    Ok(())
}

#[tokio::test]
async fn a_listing_comes_with_leases_and_with_the_layouts_of_its_short_files() -> Result {
    let t = Setup::new().await?;
    let _nodes = t.cluster.datanodes(3).await?;
    let mut client = t.cluster.client().await?;
    write(&mut client, &[t.g]).await?;
    let listed = t.holder.list_leased(t.d).await?;
    assert_ne!(listed.lease_grant, 0);
    assert_eq!((listed.lease_ms, listed.unleased), (2000, vec![]));
    let attrs: Vec<_> = listed.attrs.iter().map(|attr| (attr.inode, attr.size)).collect();
    assert_eq!(attrs, [(t.f, 0), (t.g, 10)]);
    let [layout] = &listed.layouts[..] else { panic!("{:?}", listed.layouts) };
    let opened = client.layout(t.g, 0, 100).await?;
    assert_eq!(layout.entry, 1);
    assert_eq!((&layout.extents, &layout.chunks), (&opened.extents, &opened.chunks));
    let map = listed.map.unwrap();
    assert!(map.sets.iter().any(|set| set.id == layout.chunks[0].set), "it says where they are");
    let request = v1::ReadDirRequest { map_revision: map.revision, ..t.holder.listing_leased(t.d) };
    let again = t.holder.grpc.clone().read_dir(request.clone()).await?.into_inner();
    assert!(again.lease_grant > listed.lease_grant);
    assert_eq!((again.layouts, again.map), (listed.layouts, None), "that map is known");
    let bare = v1::ReadDirRequest { layouts: false, ..request };
    let bare = t.holder.grpc.clone().read_dir(bare).await?.into_inner();
    assert!(bare.lease_grant > again.lease_grant);
    assert_eq!((bare.layouts, bare.map), (vec![], None));
    t.cluster.stop().await
}

#[tokio::test]
async fn no_leases_come_with_a_part_of_a_directory_or_to_who_did_not_ask() -> Result {
    let t = Setup::new().await?;
    let full = t.holder.listing_leased(t.d);
    let first = t.holder.list_leased(t.d).await?;
    let after = cairn_proto::listing::Entries::decode(&first.entries)?.iter().next().unwrap().cookie;
    for (what, request) in [
        ("not wanted", v1::ReadDirRequest { want_leases: false, ..full.clone() }),
        ("names alone", v1::ReadDirRequest { attributes: false, ..full.clone() }),
        ("its beginning", v1::ReadDirRequest { limit: 1, ..full.clone() }),
        ("its end", v1::ReadDirRequest { after, ..full.clone() }),
        ("nobody", v1::ReadDirRequest { session: Bytes::new(), ..full.clone() }),
        ("a stranger", v1::ReadDirRequest { session: vec![7; 16].into(), ..full.clone() }),
    ] {
        let listed = t.holder.grpc.clone().read_dir(request).await?.into_inner();
        assert_eq!((listed.lease_grant, listed.lease_ms, listed.layouts.len()), (0, 0, 0), "{what}");
    }
    assert_ne!(t.holder.grpc.clone().read_dir(full).await?.into_inner().lease_grant, 0);
    t.cluster.stop().await
}

#[tokio::test]
async fn a_change_waits_until_what_it_changes_is_given_back() -> Result {
    let mut t = Setup::new().await?;
    let grant = t.granted().await?;
    let changed = apply(&mut t.other, chmod(t.f));
    let recalled = t.holder.read_recalled().await?;
    assert_eq!(recalled, v1::Lease { inode: t.f, grant });
    assert!(t.holder.may_show_on().await, "the rest, that is");
    assert!(!changed.is_finished());
    assert_eq!(t.other.get_attr(t.f).await?.mode, 0o644, "who looks waits for nobody");
    t.holder.give_back_reads(vec![recalled]).await?;
    assert_eq!(changed.await??.attr.unwrap().mode, 0o600);
    let created = apply(&mut t.other, file(t.d, "new"));
    let recalled = t.holder.read_recalled().await?;
    assert_eq!(recalled, v1::Lease { inode: t.d, grant });
    t.holder.give_back_reads(vec![recalled]).await?;
    assert_eq!(created.await??.error, 0);
    assert_eq!(t.holder.list_leased(t.d).await?.lease_grant, 0, "it was fought over");
    t.cluster.stop().await
}

#[tokio::test]
async fn a_commit_waits_likewise() -> Result {
    let mut t = Setup::new().await?;
    let _nodes = t.cluster.datanodes(3).await?;
    let mut client = t.cluster.client().await?;
    let grant = t.granted().await?;
    let (f, g) = (t.f, t.g);
    let written = tokio::spawn(async move { write(&mut client, &[f, g]).await });
    let recalled = [t.holder.read_recalled().await?, t.holder.read_recalled().await?];
    let mut inodes = recalled.map(|lease| lease.inode);
    inodes.sort_unstable();
    assert_eq!(inodes, [f, g]);
    assert_eq!(recalled.map(|lease| lease.grant), [grant; 2]);
    t.holder.give_back_reads(recalled[..1].to_vec()).await?;
    sleep(Duration::from_millis(200)).await;
    assert!(!written.is_finished());
    t.holder.give_back_reads(recalled[1..].to_vec()).await?;
    written.await??;
    assert_eq!(t.holder.get_attr(g).await?.size, 10);
    let listed = t.holder.list_leased(t.d).await?;
    assert_eq!((listed.unleased, listed.layouts), (vec![0, 1], vec![]), "both were fought over");
    t.cluster.stop().await
}

#[tokio::test]
async fn a_holder_that_never_answers_is_waited_for_briefly_and_stays() -> Result {
    let mut t = Setup::new().await?;
    let began = Instant::now();
    t.granted().await?;
    sleep(Duration::from_millis(500)).await;
    let changed = apply(&mut t.other, common::unlink(t.d, "f"));
    let recalled = [t.holder.read_recalled().await?, t.holder.read_recalled().await?];
    let mut inodes = recalled.map(|lease| lease.inode);
    inodes.sort_unstable();
    assert_eq!(inodes, [t.d, t.f]);
    assert_eq!(changed.await??.error, 0);
    let took = began.elapsed();
    assert!(took >= READ_LEASE - Duration::from_millis(50), "its time was not up after {took:?}");
    assert!(t.holder.may_show_on().await, "it was asked once");
    assert!(t.holder.is_connected());
    assert_eq!(t.holder.apply(file(t.d, "mine")).await?.error, 0, "its session goes on");
    assert_eq!(t.holder.list(t.d).await?, ["g", "mine"]);
    t.cluster.stop().await
}

#[tokio::test]
async fn a_holder_that_says_goodbye_is_not_waited_for() -> Result {
    let mut t = Setup::new().await?;
    t.granted().await?;
    let changed = apply(&mut t.other, chmod(t.f));
    t.holder.read_recalled().await?;
    t.holder.say(v1::session_request::Message::Goodbye(v1::Goodbye {})).await?;
    assert_eq!(changed.await??.error, 0);
    t.cluster.stop().await
}

#[tokio::test]
async fn the_holder_is_not_asked_on_its_own_behalf_and_nobody_about_what_stays() -> Result {
    let mut t = Setup::new().await?;
    t.granted().await?;
    let (d, f, g) = (t.d, t.f, t.g);
    for mutation in [chmod(f), file(d, "new"), common::unlink(d, "g")] {
        assert_eq!(t.holder.apply(mutation).await?.error, 0);
    }
    assert_eq!(t.other.apply(file(1, "beside")).await?.error, 0);
    assert_eq!(t.other.get_attr(f).await?.mode, 0o600);
    assert!(t.other.get_attr(g).await.is_err());
    assert!(t.holder.may_show_on().await);
    t.cluster.stop().await
}

#[tokio::test]
async fn a_change_after_a_restart_waits_for_what_an_absent_session_may_show_and_no_longer() -> Result {
    let mut t = Setup::new().await?;
    t.granted().await?;
    t.holder.break_stream();
    let cluster = t.cluster.restart().await?;
    let began = Instant::now();
    let mut other = t.other.resume(&cluster, &[]).await?;
    assert_eq!(other.apply(chmod(t.f)).await?.error, 0);
    let took = began.elapsed();
    assert!(took >= READ_LEASE - Duration::from_millis(500), "it may still have been shown after {took:?}");
    cluster.stop().await
}

#[tokio::test]
async fn who_will_change_a_directory_gets_a_write_lease_with_its_listing() -> Result {
    let mut t = Setup::new().await?;
    let first = v1::ReadDirRequest { want_write_lease: true, ..common::listing(t.d, &t.holder.session) };
    let lease = async |mount: &Mount, request: &v1::ReadDirRequest| {
        let listed = mount.grpc.clone().read_dir(request.clone()).await?.into_inner();
        anyhow::Ok(listed.write_lease)
    };
    t.other.list_leased(t.d).await?;
    assert_eq!(lease(&t.holder, &first).await?, None, "the other one shows it");
    t.other.say(v1::session_request::Message::Goodbye(v1::Goodbye {})).await?;
    let granted = loop {
        if let Some(granted) = lease(&t.holder, &first).await? {
            break granted;
        }
        sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(granted.inode, t.d);
    assert_eq!(lease(&t.holder, &first).await?, Some(granted), "it holds it already");
    let file = v1::ReadDirRequest { inode: t.f, ..first };
    assert!(lease(&t.holder, &file).await.is_err());
    // It is recalled for who looks, as any other.
    let reader = Mount::open(&t.cluster).await?;
    let looking = tokio::spawn(reader.reader().list(t.d));
    let recalled = t.holder.recalled().await?;
    assert_eq!(recalled, granted);
    t.holder.give_back(recalled).await?;
    assert_eq!(looking.await??, ["f", "g"]);
    t.cluster.stop().await
}
