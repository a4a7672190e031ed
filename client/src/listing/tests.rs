use bytes::Bytes;
use cairn_proto::listing::Builder;
use cairn_proto::v1::InodeKind;

use super::*;

fn directory() -> v1::Attr {
    v1::Attr { inode: 1, kind: InodeKind::Directory.into(), parent: 1, ..v1::Attr::default() }
}

fn attr(inode: u64) -> v1::Attr {
    v1::Attr { inode, kind: InodeKind::File.into(), ..v1::Attr::default() }
}

/// Files "a" and "b" with cookies 16 and 20, with attributes.
fn good() -> v1::ReadDirResponse {
    let mut builder = Builder::default();
    for (name, inode, cookie) in [(b"a", 7, 16), (b"b", 5, 20)] {
        let inode = InodeId::new(inode).unwrap();
        builder.push(EntryRef { name, inode, kind: InodeKind::File, cookie });
    }
    v1::ReadDirResponse {
        entries: builder.encode(),
        attrs: vec![attr(7), attr(5)],
        end: true,
        directory: Some(directory()),
        started_ns: 1,
        ..v1::ReadDirResponse::default()
    }
}

fn is_refused(after: u64, attributes: bool, change: impl FnOnce(&mut v1::ReadDirResponse)) -> bool {
    let mut page = good();
    change(&mut page);
    match DirPage::from_wire(page, after, attributes) {
        Ok(page) => panic!("it was taken: {page:?}"),
        Err(error) => error.kind() == cairn_proto::ErrorKind::Protocol,
    }
}

#[test]
fn a_page_shows_its_entries_from_any_place_and_each_on_its_own() {
    let page = DirPage::from_wire(good(), 0, true).unwrap();
    assert_eq!((page.len(), page.is_empty(), page.last_cookie()), (2, false, Some(20)));
    let seen = |first| -> Vec<_> {
        let entries = page.iter_from(first);
        entries.map(|entry| (entry.name, entry.cookie, entry.attr.unwrap().inode == entry.inode)).collect()
    };
    assert_eq!(seen(0), [(&b"a"[..], 16, true), (b"b", 20, true)]);
    assert_eq!(seen(1), [(&b"b"[..], 20, true)]);
    assert_eq!(seen(2), []);
    assert_eq!(seen(3), []);
    assert_eq!([0, 16, 17, 20].map(|cookie| page.behind(cookie)), [0, 1, 1, 2]);
    let entries: Vec<_> = page.into_entries().collect();
    assert_eq!(entries[1].name, FileName::new(&b"b"[..]).unwrap());
    assert_eq!((entries[1].inode.get(), entries[1].kind, entries[1].cookie), (5, Kind::File, 20));
    assert!(entries.iter().all(|entry| entry.attr.as_ref().unwrap().inode == entry.inode));
}

#[test]
fn pages_of_one_state_have_directory_version_and_coordinator_in_common() {
    let page = |change: &dyn Fn(&mut v1::ReadDirResponse)| {
        let mut page = good();
        change(&mut page);
        DirPage::from_wire(page, 0, true).unwrap()
    };
    let with = |change: &dyn Fn(&mut v1::Attr)| page(&|page| change(page.directory.as_mut().unwrap()));
    let one = page(&|_| ());
    assert!(one.is_of_same_state(&page(&|page| page.end = false)));
    assert!(one.is_of_same_state(&with(&|directory| directory.nlink = 7)));
    assert!(!one.is_of_same_state(&with(&|directory| directory.version += 1)));
    assert!(!one.is_of_same_state(&with(&|directory| directory.inode += 1)));
    assert!(!one.is_of_same_state(&page(&|page| page.started_ns = 2)));
}

#[test]
fn a_page_of_names_has_no_attributes() {
    let bare = v1::ReadDirResponse { attrs: Vec::new(), ..good() };
    let page = DirPage::from_wire(bare.clone(), 15, false).unwrap();
    assert!(page.iter_from(0).all(|entry| entry.attr.is_none()));
    assert!(page.into_entries().all(|entry| entry.attr.is_none()));
    let empty = v1::ReadDirResponse { entries: Bytes::new(), ..bare };
    assert!(DirPage::from_wire(empty, 0, true).unwrap().is_empty());
}

#[test]
fn pages_that_break_the_protocol_are_refused() {
    assert!(is_refused(16, true, |_| ()), "an entry that is not behind the cookie");
    assert!(is_refused(0, false, |_| ()), "attributes that nobody asked for");
    assert!(is_refused(0, true, |page| page.attrs.truncate(1)), "too few attributes");
    assert!(is_refused(0, true, |page| page.attrs.push(attr(9))), "too many attributes");
    assert!(is_refused(0, true, |page| page.attrs.swap(0, 1)), "attributes of another inode");
    assert!(is_refused(0, true, |page| page.attrs[0].mode = 0o10_000), "attributes out of range");
    assert!(is_refused(0, true, |page| page.directory = None), "no directory");
    assert!(is_refused(0, true, |page| page.entries = page.entries.slice(1..)), "no entries at all");
}

/// The same with read leases on all but "a", and the layout of "b".
fn leased() -> v1::ReadDirResponse {
    let b = v1::Attr { size: 10, ..attr(5) };
    let extents = vec![v1::Extent { offset: 0, length: 10, chunk: 3, chunk_offset: 0 }];
    let chunks = vec![v1::ChunkRef { chunk: 3, set: 1, length: 10, ..v1::ChunkRef::default() }];
    v1::ReadDirResponse {
        attrs: vec![attr(7), b],
        lease_grant: 4,
        lease_ms: 2000,
        unleased: vec![0],
        layouts: vec![v1::ShortLayout { entry: 1, extents, chunks }],
        write_lease: Some(v1::Lease { inode: 1, grant: 3 }),
        ..good()
    }
}

#[test]
fn leases_come_with_what_they_cover() {
    let era = crate::session::leases::Leases::default().era();
    let (page, leases) = PageLeases::split(leased(), 0, era).unwrap();
    let reads = leases.reads.unwrap();
    assert_eq!((page.len(), leases.write, reads.grant), (2, Some(3), 4));
    assert_eq!((reads.lasts, reads.without), (Duration::from_secs(2), BTreeSet::from([0])));
    assert_eq!((reads.layouts[0].attr.inode.get(), reads.layouts[0].extents.len()), (5, 1));

    let (_, none) = PageLeases::split(good(), 0, era).unwrap();
    assert!(none.write.is_none() && none.reads.is_none());
    let foreign = v1::ReadDirResponse { write_lease: Some(v1::Lease { inode: 9, grant: 3 }), ..leased() };
    assert_eq!(PageLeases::split(foreign, 0, era).unwrap().1.write, None, "of another directory");
}

#[test]
fn layouts_that_fit_no_entry_or_no_file_are_refused() {
    let era = crate::session::leases::Leases::default().era();
    let refused = |change: fn(&mut v1::ShortLayout)| {
        let mut answer = leased();
        change(&mut answer.layouts[0]);
        PageLeases::split(answer, 0, era).unwrap_err().kind() == cairn_proto::ErrorKind::Protocol
    };
    assert!(refused(|layout| layout.entry = 2));
    assert!(refused(|layout| layout.extents[0].length = 11));
    assert!(refused(|layout| layout.chunks.clear()));
}
