//! Write leases as mounts see them: who waits for whom, and what ends a wait.

use std::time::Duration;

use cairn_proto::{ErrorKind, v1, wire_error_of};
use tokio::time::{Instant, sleep};

use crate::common;
use crate::common::mount::Mount;
use crate::common::{Cluster, dir, file, unlink};

type Result<T = ()> = anyhow::Result<T>;

async fn pair() -> Result<(Cluster, Mount, Mount)> {
    let cluster = Cluster::start().await?;
    let (holder, other) = (Mount::open(&cluster).await?, Mount::open(&cluster).await?);
    Ok((cluster, holder, other))
}

/// A look on behalf of a mount, in a task of its own.
macro_rules! in_background {
    ($mount:ident.$method:ident($($argument:expr),*)) => {{
        let reader = $mount.reader();
        tokio::spawn(async move { reader.$method($($argument),*).await })
    }};
}

#[tokio::test]
async fn a_directory_is_made_with_a_lease_at_once() -> Result {
    let (cluster, mut holder, _) = pair().await?;
    let lease = holder.mkdir(1, "d").await?;
    assert!(lease.grant > 0);
    assert_eq!(holder.lookup(1, "d").await?.inode, lease.inode);
    assert!(holder.is_left_alone().await);
    cluster.stop().await
}

#[tokio::test]
async fn a_look_waits_for_the_holder_and_sees_what_it_applied_meanwhile() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let lease = holder.mkdir(1, "d").await?;
    let d = lease.inode;
    let found = in_background!(other.lookup(d, "late"));
    let listed = in_background!(other.list(d));
    let attributes = in_background!(other.lookup(1, "d"));
    assert_eq!(holder.recalled().await?, lease);
    assert!(holder.is_left_alone().await, "three wait, one question");
    assert!(!found.is_finished() && !listed.is_finished() && !attributes.is_finished());
    let made = holder.apply(file(d, "late")).await?;
    assert_eq!((made.error, made.leases.len()), (0, 0), "the holder goes on, and is promised nothing new");
    holder.give_back(lease).await?;
    assert_eq!(found.await??.inode, made.attr.unwrap().inode);
    assert_eq!(listed.await??, ["late"]);
    assert_eq!(attributes.await??.size, 1);
    assert!(holder.is_left_alone().await);
    cluster.stop().await
}

#[tokio::test]
async fn whatever_shows_a_leased_directory_waits_and_a_bare_name_does_not() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let lease = holder.mkdir(1, "d").await?;
    let inode = lease.inode;
    let (mut grpc, session) = (other.grpc.clone(), other.session.clone());
    let bare =
        v1::ReadDirRequest { inode: 1, limit: 10, session: session.clone(), ..v1::ReadDirRequest::default() };
    let listed = grpc.read_dir(bare).await?.into_inner();
    assert_eq!(cairn_proto::listing::Entries::decode(&listed.entries)?.len(), 1);
    assert!(holder.is_left_alone().await);
    let listed = in_background!(other.list(1));
    let (mut xattr_grpc, mut open_grpc) = (grpc.clone(), grpc);
    let request = v1::GetXattrsRequest { inode, session: session.clone() };
    let xattrs = tokio::spawn(async move { xattr_grpc.get_xattrs(request).await });
    let open = Some(v1::OpenRegistration { session, sequence: 1 });
    let request = v1::DownloadFileRequest { inode, open, ..v1::DownloadFileRequest::default() };
    let opened = tokio::spawn(async move { open_grpc.download_file(request).await });
    assert_eq!(holder.recalled().await?, lease);
    assert!(holder.is_left_alone().await);
    assert!(!listed.is_finished() && !xattrs.is_finished() && !opened.is_finished());
    let name = "user.k".into();
    let set = v1::SetXattr { inode, name, value: "v".into(), ..v1::SetXattr::default() };
    holder.apply(common::mutation(v1::mutation::Op::SetXattr(set))).await?;
    holder.give_back(lease).await?;
    assert_eq!(listed.await??, ["d"]);
    assert_eq!(xattrs.await??.into_inner().xattrs.len(), 1);
    assert!(opened.await??.into_inner().attr.unwrap().has_xattrs);
    cluster.stop().await
}

#[tokio::test]
async fn the_holder_is_never_asked_on_its_own_behalf() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let d = holder.mkdir(1, "d").await?.inode;
    let made = holder.apply(dir(d, "below")).await?;
    assert_eq!(made.leases[0].inode, d, "told again");
    assert_eq!(holder.list(d).await?, ["below"]);
    assert_eq!(holder.get_attr(d).await?.size, 1);
    assert_eq!(holder.lookup(d, "..").await?.inode, 1);
    let below = made.attr.unwrap().inode;
    assert_eq!(other.get_attr(below).await?.parent, d, "that one is nobody's");
    assert!(holder.is_left_alone().await);
    cluster.stop().await
}

#[tokio::test]
async fn a_mutation_waits_likewise_and_is_executed_once() -> Result {
    let (cluster, mut holder, mut other) = pair().await?;
    let lease = holder.mkdir(1, "d").await?;
    let d = lease.inode;
    let request = other.request(vec![file(1, "beside"), file(d, "both")], false);
    let send = || {
        let (mut grpc, request) = (other.grpc.clone(), request.clone());
        tokio::spawn(async move { grpc.apply(request).await })
    };
    let first = send();
    assert_eq!(holder.recalled().await?, lease);
    // The client loses patience and sends it again, and again.
    first.abort();
    let (second, third) = (send(), send());
    assert!(holder.is_left_alone().await);
    let names = in_background!(holder.list(1));
    assert_eq!(names.await??, ["d"], "nothing of the batch is there yet");
    holder.apply(file(d, "mine")).await?;
    holder.give_back(lease).await?;
    let second = second.await??.into_inner();
    assert!(second.results.iter().all(|result| result.error == 0), "{second:?}");
    assert_eq!(second, third.await??.into_inner());
    assert_eq!(other.list(d).await?, ["mine", "both"]);
    cluster.stop().await
}

#[tokio::test]
async fn a_removal_is_judged_by_what_the_holder_has_applied() -> Result {
    let (cluster, mut holder, mut other) = pair().await?;
    let lease = holder.mkdir(1, "d").await?;
    holder.apply(file(lease.inode, "f")).await?;
    let name = "d".into();
    let rmdir = common::mutation(v1::mutation::Op::Rmdir(v1::Rmdir { parent: 1, name }));
    let request = other.request(vec![rmdir], false);
    let mut grpc = other.grpc.clone();
    let removed = tokio::spawn(async move { grpc.apply(request).await });
    assert_eq!(holder.recalled().await?, lease);
    holder.apply(unlink(lease.inode, "f")).await?;
    holder.give_back(lease).await?;
    assert_eq!(removed.await??.into_inner().results[0].error, 0);
    cluster.stop().await
}

#[tokio::test]
async fn a_fought_over_directory_is_not_granted_again_for_a_while() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let d = holder.apply(dir(1, "d")).await?.attr.unwrap().inode;
    let lease = holder.apply(file(d, "a")).await?.leases[0];
    assert_eq!(lease.inode, d);
    let found = in_background!(other.lookup(d, "a"));
    let recalled = holder.recalled().await?;
    assert_eq!(recalled, lease);
    holder.give_back(recalled).await?;
    found.await??;
    assert_eq!(holder.apply(file(d, "b")).await?.leases, [], "too soon");
    other.lookup(d, "b").await?;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(holder.apply(file(d, "c")).await?.leases[0].inode, d);
    cluster.stop().await
}

#[tokio::test]
async fn a_holder_that_never_answers_is_fenced_when_it_can_not_trust_its_lease_any_more() -> Result {
    let cluster = Cluster::start_with(|config| config.lease = Duration::from_secs(2)).await?;
    let (mut holder, other) = (Mount::open(&cluster).await?, Mount::open(&cluster).await?);
    let lease = holder.mkdir(1, "d").await?;
    let began = Instant::now();
    assert_eq!(other.list(lease.inode).await?, Vec::<String>::new());
    // One lease time to give it back, and one from the last answer that it had by then.
    assert!((2..6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let late = holder.apply(file(lease.inode, "late")).await.unwrap_err();
    assert_eq!(wire_error_of(&late).kind, ErrorKind::SessionExpired);
    sleep(Duration::from_millis(100)).await;
    assert!(!holder.is_connected(), "it is told at once");
    assert_eq!(other.list(lease.inode).await?, Vec::<String>::new());
    cluster.stop().await
}

#[tokio::test]
async fn a_holder_whose_stream_broke_is_fenced_when_it_can_not_trust_its_lease_any_more() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let lease = holder.mkdir(1, "d").await?;
    holder.break_stream();
    let began = Instant::now();
    other.get_attr(lease.inode).await?;
    // A reset may have reached only this end.
    assert!((6..13).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let late = holder.apply(file(lease.inode, "late")).await.unwrap_err();
    assert_eq!(wire_error_of(&late).kind, ErrorKind::SessionExpired);
    cluster.stop().await
}

#[tokio::test]
async fn a_holder_that_comes_back_in_time_is_asked_again() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let [kept, dropped] = [holder.mkdir(1, "kept").await?, holder.mkdir(1, "dropped").await?];
    holder.break_stream();
    let found = in_background!(other.lookup(kept.inode, "f"));
    sleep(Duration::from_millis(300)).await;
    let mut holder = holder.resume(&cluster, &[kept.inode]).await?;
    assert_eq!(holder.recalled().await?, kept, "the same grant");
    other.get_attr(dropped.inode).await?;
    let made = holder.apply(file(kept.inode, "f")).await?;
    holder.give_back(kept).await?;
    assert_eq!(found.await??.inode, made.attr.unwrap().inode);
    cluster.stop().await
}

#[tokio::test]
async fn leases_survive_a_restart_when_their_holder_comes_back_and_others_wait_for_it() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let d = holder.mkdir(1, "d").await?.inode;
    let f = holder.apply(file(1, "f")).await?.attr.unwrap().inode;
    let cluster = cluster.restart().await?;
    let other = other.resume(&cluster, &[]).await?;
    other.get_attr(f).await?; // a file is never leased
    let found = in_background!(other.lookup(d, "late"));
    let elsewhere = in_background!(other.lookup(1, "d"));
    sleep(Duration::from_millis(500)).await;
    assert!(!found.is_finished() && !elsewhere.is_finished(), "anything may be leased");
    let mut holder = holder.resume(&cluster, &[d]).await?;
    let recalled = holder.recalled().await?;
    assert_eq!(recalled.inode, d);
    let made = holder.apply(file(d, "late")).await?;
    assert!(!found.is_finished());
    holder.give_back(recalled).await?;
    assert_eq!(found.await??.inode, made.attr.unwrap().inode);
    assert_eq!(elsewhere.await??.size, 1);
    cluster.stop().await
}

#[tokio::test]
async fn after_a_restart_a_session_that_stays_away_is_waited_for_until_it_expires() -> Result {
    let cluster = Cluster::start_with(|config| config.lease = Duration::from_secs(2)).await?;
    let mut away = Mount::open(&cluster).await?;
    away.mkdir(1, "d").await?;
    let cluster = cluster.restart().await?;
    let began = Instant::now();
    let mut other = Mount::open(&cluster).await?;
    assert_eq!(other.list(1).await?, ["d"]);
    assert!((1..5).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(other.apply(file(1, "f")).await?.leases[0].inode, 1);
    cluster.stop().await
}

#[tokio::test]
async fn who_waits_when_the_coordinator_stops_is_told_to_try_again_and_nobody_is_fenced() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let d = holder.mkdir(1, "d").await?.inode;
    let found = in_background!(other.lookup(d, "f"));
    holder.recalled().await?;
    let cluster = cluster.restart().await?;
    let stopped = found.await?.unwrap_err();
    assert_eq!(wire_error_of(&stopped).kind, ErrorKind::Unavailable);
    let mut holder = holder.resume(&cluster, &[d]).await?;
    assert_eq!(holder.apply(file(d, "f")).await?.error, 0, "the other one is not waited for");
    cluster.stop().await
}

#[tokio::test]
async fn goodbye_gives_everything_back() -> Result {
    let (cluster, mut holder, other) = pair().await?;
    let d = holder.mkdir(1, "d").await?.inode;
    let found = in_background!(other.list(d));
    holder.recalled().await?;
    holder.say(v1::session_request::Message::Goodbye(v1::Goodbye {})).await?;
    assert_eq!(found.await??, Vec::<String>::new());
    cluster.stop().await
}

#[tokio::test]
async fn ids_are_reserved_once_for_live_sessions_alone() -> Result {
    let (cluster, holder, other) = pair().await?;
    let reserve = async |session: &bytes::Bytes, count| {
        let request = v1::ReserveInodesRequest { session: session.clone(), count };
        Ok::<_, tonic::Status>(holder.grpc.clone().reserve_inodes(request).await?.into_inner())
    };
    let one = reserve(&holder.session, 1000).await?;
    let two = reserve(&other.session, 65_536).await?;
    assert_eq!((one.count, two.count), (1000, 65_536));
    assert!(one.first + 1000 <= two.first);
    for (session, count, kind) in [
        (&holder.session, 0, ErrorKind::InvalidArgument),
        (&holder.session, 65_537, ErrorKind::InvalidArgument),
        (&vec![7; 16].into(), 1, ErrorKind::SessionExpired),
        (&vec![7; 3].into(), 1, ErrorKind::InvalidArgument),
    ] {
        assert_eq!(wire_error_of(&reserve(session, count).await.unwrap_err()).kind, kind);
    }
    cluster.stop().await
}

#[tokio::test]
async fn what_is_wrong_with_one_mutation_stops_no_other() -> Result {
    let (cluster, mut holder, _) = pair().await?;
    let own = Some(v1::Credentials { uid: 7, gid: 7, ..v1::Credentials::default() });
    let leased_file = {
        let mut mutation = file(1, "leased");
        if let Some(v1::mutation::Op::Create(create)) = &mut mutation.op {
            create.lease = true;
        }
        v1::Mutation { credentials: Some(v1::Credentials::default()), ..mutation }
    };
    let before_time = v1::Mutation { at_ns: -1, credentials: own.clone(), ..file(1, "early") };
    let nobodys = file(1, "nobodys");
    let fine =
        v1::Mutation { at_ns: 1_000, credentials: Some(v1::Credentials::default()), ..file(1, "fine") };
    let denied = v1::Mutation { credentials: own, ..file(1, "denied") };
    let mut request = holder.request(vec![leased_file, before_time, nobodys, fine, denied], false);
    request.credentials = None;
    let results = holder.grpc.apply(request).await?.into_inner().results;
    let errors: Vec<_> = results.iter().map(|result| ErrorKind::from_number(result.error)).collect();
    let invalid = Some(ErrorKind::InvalidArgument);
    assert_eq!(errors, [invalid, invalid, invalid, None, Some(ErrorKind::AccessDenied)]);
    assert_eq!(results[3].attr.as_ref().unwrap().btime_ns, 1_000);
    let strange = v1::GetAttrRequest { inode: 1, session: vec![1, 2].into() };
    let strange = holder.grpc.get_attr(strange).await.unwrap_err();
    assert_eq!(wire_error_of(&strange).kind, ErrorKind::InvalidArgument);
    cluster.stop().await
}

#[tokio::test]
async fn what_was_executed_in_a_session_that_is_over_is_not_executed_again() -> Result {
    let mut cluster = Cluster::start().await?;
    let (mut gone, mut other) = (Mount::open(&cluster).await?, Mount::open(&cluster).await?);
    let first = gone.request(vec![file(1, "f"), file(1, "f"), file(1, "g")], false);
    gone.grpc.apply(first.clone()).await?;
    let mut next = Mount::open(&cluster).await?;
    let again = |mount: &mut Mount, first: &v1::ApplyRequest| v1::ApplyRequest {
        earlier: first.id.iter().cloned().collect(),
        ..mount.request(first.mutations.clone(), false)
    };
    let request = again(&mut next, &first);
    let too_early = next.grpc.apply(request).await.unwrap_err();
    assert_eq!(wire_error_of(&too_early).kind, ErrorKind::InvalidArgument, "it may still be executed");
    gone.say(v1::session_request::Message::Goodbye(v1::Goodbye {})).await?;
    while gone.is_connected() {
        sleep(Duration::from_millis(10)).await;
    }
    other.apply(unlink(1, "f")).await?;
    other.say(v1::session_request::Message::Goodbye(v1::Goodbye {})).await?;
    for restart in [false, true] {
        if restart {
            cluster = cluster.restart().await?;
            next = next.resume(&cluster, &[]).await?;
        }
        let request = again(&mut next, &first);
        let results = next.grpc.apply(request).await?.into_inner().results;
        let errors: Vec<_> = results.iter().map(|result| result.error).collect();
        assert_eq!(errors, [0, ErrorKind::Exists.number(), 0], "as it was at that time");
        assert_eq!(next.list(1).await?, ["g"]);
    }
    // One that was not executed is executed now, also when that session has executed others.
    let id = first.id.clone().map(|id| v1::RequestId { sequence: id.sequence + 1, ..id });
    let never = v1::ApplyRequest { id, mutations: vec![file(1, "h"), file(1, "g")], ..first.clone() };
    let request = again(&mut next, &never);
    let results = next.grpc.apply(request).await?.into_inner().results;
    assert_eq!((results[0].error, results[1].error), (0, ErrorKind::Exists.number()));
    // Of a session that nobody knows it is not known: all of it, or nothing.
    let session = bytes::Bytes::from_static(&[7; 16]);
    let id = first.id.clone().map(|id| v1::RequestId { session, ..id });
    let unknown = v1::ApplyRequest { id, mutations: vec![file(1, "i"), file(1, "g")], ..first };
    let request = again(&mut next, &unknown);
    let results = next.grpc.apply(request).await?.into_inner().results;
    assert_eq!(results[0].error, ErrorKind::NameChanged.number());
    assert_eq!(results[1].error, ErrorKind::Exists.number());
    assert_eq!(next.list(1).await?, ["g", "h"]);
    cluster.stop().await
}
