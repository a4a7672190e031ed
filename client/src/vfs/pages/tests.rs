use std::ops::Range;

use cairn_proto::listing::{Builder, EntryRef};
use cairn_proto::v1;

use super::*;

/// A page of a directory with entries of these cookies; nothing follows it.
pub(crate) fn page_of(
    directory: u64,
    version: u64,
    after: u64,
    cookies: Range<u64>,
    listing: Listing,
) -> Page {
    let attributes = listing == Listing::Attributes;
    let file = v1::InodeKind::File;
    let mut builder = Builder::default();
    let mut attrs = Vec::new();
    for cookie in cookies {
        let (name, inode) = (format!("n{cookie}"), InodeId::new(1000 + cookie).unwrap());
        builder.push(EntryRef { name: name.as_bytes(), inode, kind: file, cookie });
        let attr = v1::Attr { inode: inode.get(), kind: file.into(), ..v1::Attr::default() };
        attrs.extend(attributes.then_some(attr));
    }
    let kind = v1::InodeKind::Directory.into();
    let parent = v1::Attr { inode: directory, kind, parent: 1, version, ..v1::Attr::default() };
    let (entries, directory) = (builder.encode(), Some(parent));
    let wire =
        v1::ReadDirResponse { entries, attrs, directory, started_ns: 1, ..v1::ReadDirResponse::default() };
    let page = DirPage::from_wire(wire, after, attributes).unwrap();
    Page { after, listing, page, asked: cairn_runtime::clock::now() }
}

pub(crate) fn names(directory: u64, version: u64, after: u64, cookies: Range<u64>) -> Page {
    page_of(directory, version, after, cookies, Listing::Names)
}

fn handle() -> DirHandle {
    DirHandle::new(InodeId::new(2).unwrap(), Counted::default())
}

fn place(handle: &DirHandle, after: u64, listing: Listing) -> Option<(u64, usize)> {
    handle.cached(after, listing).map(|(page, at)| (page.after, at))
}

#[test]
fn a_place_is_found_also_when_its_entry_is_gone() {
    let mut page = names(2, 1, 20, 25..30);
    page.page.end = true;
    assert_eq!(
        [19, 20, 24, 25, 28, 29, 99].map(|after| page.find(after)),
        [None, Some(0), Some(0), Some(1), Some(4), Some(5), Some(5)]
    );
    let more = names(2, 1, 20, 25..30);
    assert_eq!([28, 29].map(|after| more.find(after)), [Some(4), None], "the rest is in the next page");
    assert_eq!((more.last(), names(2, 1, 20, 25..25).last()), (29, 20));
}

#[test]
fn a_page_that_shows_an_earlier_state_does_not_follow() {
    for (version, expected) in [(4, None), (5, Some((0, 4))), (6, Some((0, 4)))] {
        let handle = handle();
        handle.show(&Arc::new(page_of(2, 5, 0, 16..20, Listing::Attributes)));
        let fetching = handle.begin_ahead(0, Listing::Names).unwrap();
        handle.end_ahead(fetching, Some(Arc::new(names(2, version, 0, 16..100))));
        assert_eq!(place(&handle, 19, Listing::Names), expected, "version {version}");
    }
}

#[test]
fn what_is_on_its_way_is_not_asked_for_again() {
    let handle = handle();
    let fetching = handle.begin_ahead(10, Listing::Names).unwrap();
    assert!(handle.begin_ahead(10, Listing::Names).is_none());
    assert!(handle.begin_ahead(12, Listing::Names).is_none());
    let arrived = handle.on_its_way(12, Listing::Names).unwrap();
    assert!(handle.on_its_way(9, Listing::Names).is_none());
    assert!(handle.on_its_way(12, Listing::Attributes).is_none(), "names do not bring attributes");
    assert!(arrived.has_changed().is_ok());
    handle.end_ahead(fetching, Some(Arc::new(names(2, 1, 10, 16..30))));
    assert!(arrived.has_changed().is_err(), "who waits goes on");
    assert!(handle.on_its_way(12, Listing::Names).is_none());
    assert!(handle.begin_ahead(12, Listing::Names).is_none(), "it is there");
    assert!(handle.begin_ahead(12, Listing::Attributes).is_some());
    assert_eq!(place(&handle, 16, Listing::Names), Some((10, 1)));
}

#[tokio::test]
async fn who_comes_while_a_page_arrives_does_not_ask_again() {
    let place = async |handle: &DirHandle, after| {
        handle.wait_for(after, Listing::Names).await.map(|(page, at)| (page.after, at))
    };
    let handle = Arc::new(handle());
    assert_eq!(place(&handle, 16).await, None, "nothing is on its way");
    let fetching = handle.begin_ahead(0, Listing::Names).unwrap();
    let waiting = tokio::spawn({
        let handle = Arc::clone(&handle);
        async move { handle.wait_for(16, Listing::Names).await.map(|(page, at)| (page.after, at)) }
    });
    tokio::task::yield_now().await;
    handle.end_ahead(fetching, Some(Arc::new(names(2, 1, 0, 16..100))));
    assert_eq!(waiting.await.unwrap(), Some((0, 1)));
    // There already, and the one behind it on its way.
    let behind = handle.begin_ahead(99, Listing::Names).unwrap();
    assert_eq!(place(&handle, 20).await, Some((0, 5)));
    drop(behind);
    assert_eq!(place(&handle, 99).await, None, "who fetched it has failed");
}

#[test]
fn a_page_that_was_asked_for_before_a_restart_is_dropped() {
    let handle = handle();
    let old = handle.begin_ahead(0, Listing::Names).unwrap();
    handle.restart();
    let new = handle.begin_ahead(0, Listing::Names).unwrap();
    handle.end_ahead(old, Some(Arc::new(names(2, 1, 0, 16..20))));
    assert_eq!(place(&handle, 16, Listing::Names), None);
    handle.end_ahead(new, Some(Arc::new(names(2, 1, 0, 16..30))));
    assert_eq!(place(&handle, 20, Listing::Names), Some((0, 5)));
}

#[test]
fn who_fails_or_goes_away_holds_nobody_up() {
    let handle = handle();
    let fetching = handle.begin_ahead(0, Listing::Names).unwrap();
    let arrived = handle.on_its_way(0, Listing::Names).unwrap();
    handle.end_ahead(fetching, None);
    assert!(arrived.has_changed().is_err());
    assert_eq!(place(&handle, 0, Listing::Names), None);
    let fetching = handle.begin_ahead(0, Listing::Names).unwrap();
    drop(fetching);
    assert!(handle.on_its_way(0, Listing::Names).is_none());
    assert!(handle.begin_ahead(0, Listing::Names).is_some());
}
