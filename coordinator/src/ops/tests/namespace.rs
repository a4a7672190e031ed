//! Random operations on names against a small model, and listings while directories change.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::listing::Entries;
use cairn_proto::{ErrorKind, InodeId};
use proptest::prelude::*;

use super::*;
use crate::ops::listing::{self, Wanted};
use crate::store::{Count, Counter, Dentry, FIRST_COOKIE, Inode, Key, Kind, Readers, Scan};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Create {
        dir: usize,
        name: usize,
        is_dir: bool,
    },
    Link {
        file: usize,
        dir: usize,
        name: usize,
    },
    Unlink {
        dir: usize,
        name: usize,
    },
    Rmdir {
        dir: usize,
        name: usize,
    },
    Rename {
        from: (usize, usize),
        to: (usize, usize),
        mode: u8,
    },
    /// The group ends.
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..8usize, 0..NAMES.len());
    prop_oneof![
        4 => (at(), any::<bool>()).prop_map(|((dir, name), is_dir)| Step::Create { dir, name, is_dir }),
        1 => (0..8usize, at()).prop_map(|(file, (dir, name))| Step::Link { file, dir, name }),
        2 => at().prop_map(|(dir, name)| Step::Unlink { dir, name }),
        2 => at().prop_map(|(dir, name)| Step::Rmdir { dir, name }),
        4 => (at(), at(), 0..3u8).prop_map(|(from, to, mode)| Step::Rename { from, to, mode }),
        1 => Just(Step::Commit),
    ]
}

/// Directories by id, each with its entries; everything else is a file.
#[derive(Debug)]
struct Model {
    dirs: BTreeMap<InodeId, BTreeMap<&'static str, InodeId>>,
}

impl Model {
    fn dir(&self, index: usize) -> InodeId {
        *self.dirs.keys().nth(index % self.dirs.len()).unwrap()
    }

    fn get(&self, (dir, name): (InodeId, &'static str)) -> Option<InodeId> {
        self.dirs[&dir].get(name).copied()
    }

    fn set(&mut self, (dir, name): (InodeId, &'static str), inode: Option<InodeId>) {
        let entries = self.dirs.get_mut(&dir).unwrap();
        match inode {
            Some(inode) => drop(entries.insert(name, inode)),
            None => drop(entries.remove(name)),
        }
    }

    fn is_dir(&self, inode: InodeId) -> bool {
        self.dirs.contains_key(&inode)
    }

    fn files(&self) -> BTreeMap<InodeId, u32> {
        let mut files = BTreeMap::new();
        for inode in self.dirs.values().flat_map(BTreeMap::values).filter(|inode| !self.is_dir(**inode)) {
            *files.entry(*inode).or_insert(0) += 1;
        }
        files
    }

    /// Whether `inode` is `dir` or above it.
    fn is_above(&self, inode: InodeId, dir: InodeId) -> bool {
        inode == dir
            || self.dirs.get(&inode).is_some_and(|entries| {
                entries.values().any(|child| self.is_dir(*child) && self.is_above(*child, dir))
            })
    }

    fn remove(&mut self, at: (InodeId, &'static str), dirs: bool) -> Result<(), ErrorKind> {
        let inode = self.get(at).ok_or(ErrorKind::NotFound)?;
        match (self.is_dir(inode), dirs) {
            (true, false) => return Err(ErrorKind::IsDirectory),
            (false, true) => return Err(ErrorKind::NotDirectory),
            (true, true) if !self.dirs[&inode].is_empty() => return Err(ErrorKind::NotEmpty),
            _ => {}
        }
        self.set(at, None);
        self.dirs.remove(&inode);
        Ok(())
    }

    fn rename(
        &mut self,
        from: (InodeId, &'static str),
        to: (InodeId, &'static str),
        mode: RenameMode,
    ) -> Result<(), ErrorKind> {
        let inode = self.get(from).ok_or(ErrorKind::NotFound)?;
        let other = self.get(to);
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => return Err(ErrorKind::Exists),
            (RenameMode::Exchange, None) => return Err(ErrorKind::NotFound),
            (_, Some(other)) if other == inode => return Ok(()),
            _ => {}
        }
        let moves = from.0 != to.0;
        if moves && self.is_dir(inode) && self.is_above(inode, to.0) {
            return Err(ErrorKind::InvalidArgument);
        }
        if let (RenameMode::Exchange, Some(other)) = (mode, other) {
            if moves && self.is_dir(other) && self.is_above(other, from.0) {
                return Err(ErrorKind::InvalidArgument);
            }
            self.set(from, Some(other));
        } else {
            if let Some(other) = other {
                match (self.is_dir(inode), self.is_dir(other)) {
                    (true, false) => return Err(ErrorKind::NotDirectory),
                    (false, true) => return Err(ErrorKind::IsDirectory),
                    (true, true) if !self.dirs[&other].is_empty() => return Err(ErrorKind::NotEmpty),
                    _ => {}
                }
                self.dirs.remove(&other);
            }
            self.set(from, None);
        }
        self.set(to, Some(inode));
        Ok(())
    }
}

fn entries(tx: &mut Tx, dir: InodeId) -> Vec<Dentry> {
    let last = Bytes::from_static(&[0xff; 256]);
    tx.list(&Scan::between(Key::Dentry(dir, Bytes::new()), Key::Dentry(dir, last))).unwrap()
}

fn execute(tx: &mut Tx, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    match *step {
        Step::Create { dir, name, is_dir } => {
            let at = (model.dir(dir), NAMES[name]);
            let new = if is_dir { NewInode::Directory } else { plain_file() };
            let done = kind_of(create(tx, at.0, at.1, new, 0o755, &root()));
            match (model.get(at), done) {
                (Some(_), done) => prop_assert_eq!(done.unwrap_err(), ErrorKind::Exists),
                (None, done) => {
                    let id = done.unwrap().inode.unwrap().id;
                    model.set(at, Some(id));
                    if is_dir {
                        model.dirs.insert(id, BTreeMap::new());
                    }
                }
            }
        }
        Step::Link { file, dir, name } => {
            let at = (model.dir(dir), NAMES[name]);
            let files: Vec<_> = model.files().into_keys().collect();
            let Some(&inode) = files.get(file) else { return Ok(()) };
            let done = kind_of(link(tx, inode, at.0, at.1));
            match model.get(at) {
                Some(_) => prop_assert_eq!(done.unwrap_err(), ErrorKind::Exists),
                None => {
                    done.unwrap();
                    model.set(at, Some(inode));
                }
            }
        }
        Step::Unlink { dir, name } => {
            let at = (model.dir(dir), NAMES[name]);
            let done = kind_of(unlink(tx, at.0, at.1, &root())).map(drop);
            prop_assert_eq!(done, model.remove(at, false));
        }
        Step::Rmdir { dir, name } => {
            let at = (model.dir(dir), NAMES[name]);
            let done = kind_of(rmdir(tx, at.0, at.1, &root())).map(drop);
            prop_assert_eq!(done, model.remove(at, true));
        }
        Step::Rename { from, to, mode } => {
            let [from, to] = [from, to].map(|(dir, name)| (model.dir(dir), NAMES[name]));
            let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][usize::from(mode)];
            let done = kind_of(rename(tx, from, to, mode, &root())).map(drop);
            prop_assert_eq!(done, model.rename(from, to, mode));
        }
        Step::Commit => tx.commit().unwrap(),
    }
    Ok(())
}

fn check(tx: &mut Tx, model: &Model) -> Result<(), TestCaseError> {
    for (&dir, expected) in &model.dirs {
        let inode = tx.inode(dir).unwrap();
        let found = entries(tx, dir);
        let names: BTreeMap<_, _> = found
            .iter()
            .map(|entry| (NAMES.into_iter().find(|name| name.as_bytes() == entry.name).unwrap(), entry.child))
            .collect();
        prop_assert_eq!(&names, expected);
        let cookies: BTreeSet<_> = found.iter().map(|entry| entry.cookie).collect();
        prop_assert_eq!(cookies.len(), found.len());
        prop_assert!(cookies.iter().all(|cookie| (FIRST_COOKIE..inode.next_cookie).contains(cookie)));
        let subdirs = expected.values().filter(|child| model.is_dir(**child)).count();
        prop_assert_eq!(
            (inode.kind, inode.nlink, inode.size),
            (Kind::Directory, 2 + subdirs as u32, found.len() as u64)
        );
        for &child in expected.values().filter(|child| model.is_dir(**child)) {
            prop_assert_eq!(tx.inode(child).unwrap().parent, dir.get());
        }
    }
    let files = model.files();
    for (&file, &names) in &files {
        prop_assert_eq!(tx.inode(file).unwrap().nlink, names);
    }
    let inodes = tx.find::<Counter>(&Key::Counter(Count::Inodes)).unwrap().unwrap().value;
    prop_assert_eq!(inodes, (model.dirs.len() + files.len()) as u64);
    let rows: Vec<Inode> = tx.list(&Scan::all(crate::store::Table::Inode)).unwrap();
    prop_assert_eq!(rows.len() as u64, inodes);
    Ok(())
}

/// Versions and entries of directories, as they were last seen.
type Seen = BTreeMap<InodeId, (u64, Vec<Dentry>)>;

/// Pages of listings are kept by the version of their directory.
fn check_versions(tx: &mut Tx, model: &Model, seen: &mut Seen) -> Result<(), TestCaseError> {
    for &dir in model.dirs.keys() {
        let (version, entries) = (tx.inode(dir).unwrap().version, entries(tx, dir));
        if let Some((before, old)) = seen.get(&dir) {
            prop_assert!(version >= *before);
            prop_assert!(version > *before || *old == entries, "{dir} has changed, but not its version");
        }
        seen.insert(dir, (version, entries));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn names_behave_as_in_a_model(steps in proptest::collection::vec(step(), 1..80)) {
        let mut tx = tx();
        let mut model = Model { dirs: [(InodeId::ROOT, BTreeMap::new())].into() };
        let mut seen = Seen::new();
        for step in &steps {
            execute(&mut tx, &mut model, step)?;
            check(&mut tx, &model)?;
            check_versions(&mut tx, &model, &mut seen)?;
        }
    }

    #[test]
    fn what_is_there_throughout_a_listing_is_seen_once(
        page in 1usize..5, changes in proptest::collection::vec((0..20usize, 0..20usize, 0..3u8), 0..60),
    ) {
        let store = crate::store::memory::MemoryStore::default();
        let mut tx = tx_on(&store, |writer| writer);
        let name_of = |index: usize| format!("f{index}");
        for index in 0..20 {
            make_file(&mut tx, &name_of(index));
        }
        tx.commit().unwrap();
        let mut touched = BTreeSet::new();
        let mut seen: Vec<String> = Vec::new();
        let mut changes = changes.into_iter();
        let mut after = 0;
        loop {
            let reader = store.reader(true).unwrap();
            let wanted = Wanted { directory: InodeId::ROOT, after, limit: page, inodes: true, bytes_max: usize::MAX };
            let page = listing::page(&*reader, wanted).unwrap();
            drop(reader);
            let entries = Entries::decode(&page.entries.encode()).unwrap();
            let named: Vec<_> = entries.iter().map(|entry| entry.inode).collect();
            prop_assert_eq!(named, page.inodes.iter().map(|inode| inode.id).collect::<Vec<_>>());
            seen.extend(entries.iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()));
            after = entries.last_cookie().unwrap_or(after);
            if page.end {
                break;
            }
            for (from, to, what) in changes.by_ref().take(3) {
                let (old, new) = (name_of(from), name_of(to));
                let done = match what {
                    0 => unlink(&mut tx, InodeId::ROOT, &old, &root()).is_ok(),
                    1 => create(&mut tx, InodeId::ROOT, &old, plain_file(), 0o644, &root()).is_ok(),
                    _ => rename(&mut tx, (InodeId::ROOT, &old), (InodeId::ROOT, &new), RenameMode::Replace, &root()).is_ok(),
                };
                // The name that a rename replaces was there all the time.
                if done {
                    touched.insert(old);
                    if what == 2 {
                        touched.insert(new);
                    }
                }
            }
            tx.commit().unwrap();
        }
        for index in 0..20 {
            let name = name_of(index);
            let times = seen.iter().filter(|seen| **seen == name).count();
            prop_assert!(times == 1 || touched.contains(&name), "{name} was seen {times} times");
        }
    }
}
