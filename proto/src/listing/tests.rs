use proptest::prelude::*;

use super::*;

const KINDS: [v1::InodeKind; 7] = [
    v1::InodeKind::File,
    v1::InodeKind::Directory,
    v1::InodeKind::Symlink,
    v1::InodeKind::Fifo,
    v1::InodeKind::Socket,
    v1::InodeKind::CharDevice,
    v1::InodeKind::BlockDevice,
];

#[derive(Debug, Clone)]
struct Owned {
    name: Vec<u8>,
    inode: InodeId,
    kind: v1::InodeKind,
    cookie: u64,
}

impl Owned {
    fn as_ref(&self) -> EntryRef<'_> {
        EntryRef { name: &self.name, inode: self.inode, kind: self.kind, cookie: self.cookie }
    }
}

fn encode(entries: &[Owned]) -> Bytes {
    let mut builder = Builder::with_capacity(entries.len());
    entries.iter().for_each(|entry| builder.push(entry.as_ref()));
    assert_eq!((builder.len(), builder.is_empty()), (entries.len(), entries.is_empty()));
    builder.encode()
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 || byte == b'/' { b'x' } else { byte });
    let short = proptest::collection::vec(byte.clone(), 1..4);
    let any_length = proptest::collection::vec(byte, 1..256);
    prop_oneof![short, any_length].prop_filter("a name", |name| name != b"." && name != b"..")
}

/// Rising cookies, some far apart, up to the largest.
fn entries() -> impl Strategy<Value = Vec<Owned>> {
    let number = prop_oneof![1..300u64, 1..=i64::MAX as u64];
    let entry = (name(), number.clone(), 0..KINDS.len(), number);
    proptest::collection::vec(entry, 0..60).prop_map(|entries| {
        let mut entries: Vec<_> = entries
            .into_iter()
            .map(|(name, inode, kind, cookie)| Owned {
                name,
                inode: InodeId::new(inode).unwrap(),
                kind: KINDS[kind],
                cookie,
            })
            .collect();
        entries.sort_by_key(|entry| entry.cookie);
        entries.dedup_by_key(|entry| entry.cookie);
        entries
    })
}

proptest! {
    #[test]
    fn what_is_decoded_is_what_was_encoded(expected in entries(), from in 0..70usize, cookie: u64) {
        let decoded = Entries::decode(&encode(&expected)).unwrap();
        prop_assert_eq!((decoded.len(), decoded.is_empty()), (expected.len(), expected.is_empty()));
        let all: Vec<_> = expected.iter().map(Owned::as_ref).collect();
        prop_assert_eq!(&decoded.iter().collect::<Vec<_>>(), &all);
        prop_assert_eq!(decoded.iter_from(from).collect::<Vec<_>>(), all.get(from..).unwrap_or_default());
        for (index, entry) in expected.iter().enumerate() {
            let name = decoded.name(index).unwrap();
            prop_assert_eq!(&name, &FileName::new(entry.name.clone()).unwrap());
            prop_assert_eq!(decoded.behind(entry.cookie), index + 1);
        }
        prop_assert_eq!(decoded.name(expected.len()), None);
        prop_assert_eq!(decoded.behind(0), 0);
        prop_assert_eq!(decoded.behind(cookie), expected.iter().filter(|entry| entry.cookie <= cookie).count());
        let named: usize = expected.iter().map(|entry| entry.name.len()).sum();
        prop_assert_eq!(decoded.size_bytes(), named + expected.len() * size_of::<Row>());
        prop_assert_eq!(decoded.first_cookie(), expected.first().map(|entry| entry.cookie));
        prop_assert_eq!(decoded.last_cookie(), expected.last().map(|entry| entry.cookie));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Entries::decode(&bytes);
    }

    /// Columns of about the right form, so that more than the first check is met.
    #[test]
    fn what_passes_the_checks_keeps_the_rules(
        names in "[a-c./\0]{0,12}",
        lengths in proptest::collection::vec(0..4u8, 0..5),
        kinds in proptest::collection::vec(0..9u8, 0..5),
        inode_steps in proptest::collection::vec(prop_oneof![-3..4i64, any::<i64>()], 0..5),
        cookie_steps in proptest::collection::vec(prop_oneof![0..4u64, any::<u64>()], 0..5),
    ) {
        let names = Bytes::from(names.into_bytes());
        let wire = v1::DirEntries { names, lengths: lengths.into(), kinds: kinds.into(), inode_steps, cookie_steps };
        if let Ok(entries) = Entries::decode(&wire.encode_to_vec()) {
            let mut before = 0;
            for entry in entries.iter() {
                prop_assert!(FileName::new(entry.name.to_vec()).is_ok());
                prop_assert!(InodeId::new(entry.inode.get()).is_ok());
                prop_assert!(KINDS.contains(&entry.kind));
                prop_assert!(entry.cookie > before && i64::try_from(entry.cookie).is_ok());
                before = entry.cookie;
            }
        }
    }
}

/// Two entries, "ab" and "c".
fn good() -> v1::DirEntries {
    v1::DirEntries {
        names: Bytes::from_static(b"abc"),
        lengths: Bytes::from_static(&[2, 1]),
        kinds: Bytes::from_static(&[1, 2]),
        inode_steps: vec![7, -3],
        cookie_steps: vec![16, 1],
    }
}

fn refused(change: impl FnOnce(&mut v1::DirEntries)) -> ListingError {
    let mut wire = good();
    change(&mut wire);
    Entries::decode(&wire.encode_to_vec()).unwrap_err()
}

#[test]
fn columns_of_different_length_are_refused() {
    assert_eq!(Entries::decode(&good().encode_to_vec()).unwrap().len(), 2);
    let columns = |error: &ListingError| matches!(error, ListingError::Columns { .. });
    assert!(columns(&refused(|wire| wire.kinds = Bytes::from_static(&[1]))));
    assert!(columns(&refused(|wire| wire.kinds = Bytes::from_static(&[1, 1, 1]))));
    assert!(columns(&refused(|wire| wire.inode_steps.truncate(1))));
    assert!(columns(&refused(|wire| wire.inode_steps.push(1))));
    assert!(columns(&refused(|wire| wire.cookie_steps.clear())));
    assert!(columns(&refused(|wire| wire.lengths = Bytes::from_static(&[3]))));
}

#[test]
fn lengths_that_do_not_sum_up_are_refused() {
    for lengths in [&[2, 2], &[1, 1], &[255, 255]] {
        let error = refused(|wire| wire.lengths = Bytes::from_static(lengths));
        assert!(matches!(error, ListingError::Lengths { names: 3, .. }), "{error}");
    }
}

#[test]
fn names_that_are_none_are_refused() {
    assert_eq!(
        refused(|wire| wire.lengths = Bytes::from_static(&[3, 0])),
        ListingError::Name(NameError::Empty)
    );
    for names in [b"a/c", b"a\0c", b"ab/", b"ab.", b"..c"] {
        let error = refused(|wire| wire.names = Bytes::from_static(names));
        assert_eq!(error, ListingError::Name(NameError::Forbidden), "{names:?}");
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    for kind in [0, 8, 255] {
        let error = refused(|wire| wire.kinds = vec![1, kind].into());
        assert_eq!(error, ListingError::Kind(kind));
    }
    for step in [-7, i64::MAX] {
        let error = refused(|wire| wire.inode_steps[1] = step);
        assert!(matches!(error, ListingError::Inode(_)), "{error}");
    }
    for step in [-8, i64::MIN] {
        let error = refused(|wire| wire.inode_steps[1] = step);
        assert_eq!(error, ListingError::InodeStep { before: 7, step });
    }
    for step in [0, i64::MAX as u64, u64::MAX] {
        let error = refused(|wire| wire.cookie_steps[1] = step);
        assert_eq!(error, ListingError::Cookie { before: 16, step });
    }
    assert_eq!(refused(|wire| wire.cookie_steps[0] = 0), ListingError::Cookie { before: 0, step: 0 });
}

#[test]
fn what_is_no_message_is_refused() {
    let cut = good().encode_to_vec();
    let error = Entries::decode(&cut[..cut.len() - 1]).unwrap_err();
    assert!(matches!(error, ListingError::Message(_)), "{error}");
}
