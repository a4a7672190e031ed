//! Names and inodes: every entry's child exists and is what the entry says, every inode has as many names
//! as it counts, and every directory hangs below the root.

use std::collections::HashMap;

use cairn_proto::InodeId;

use super::report::{Finding, Report};
use super::{Abort, Mend, PAGE};
use crate::ops::mend::Delta;
use crate::sessions::NOBODY;
use crate::store::{Count, Dentry, Inode, Key, Kind, Orphan, Reader, Scan, Table, list};

/// Inodes that are looked at in one run over the names.
const WINDOW: usize = 1 << 20;
/// Directories of which the parents are kept at once; more are not looked at for cycles.
const DIRECTORIES_MAX: usize = 16 << 20;

/// What the names say of one inode.
#[derive(Debug, Clone, Copy, Default)]
struct Named {
    names: u32,
    entries: u32,
    subdirectories: u32,
    /// Of a directory: where its (last) name lies.
    parent: u64,
}

pub(super) fn check(reader: &dyn Reader, report: &mut Report) -> Result<(), Abort> {
    let inodes = crate::store::count(reader, Count::Inodes)?;
    report.begin("names and inodes", inodes.saturating_mul(2))?;
    let mut tree = Tree::default();
    let mut counted = 0;
    let mut last = None;
    loop {
        let window = window(reader, last)?;
        counted += window.ids.len() as u64;
        check_window(reader, report, &window, &mut tree)?;
        match window.last {
            Some(end) => last = Some(end),
            None => break,
        }
    }
    report.summary.inodes = counted;
    if counted != inodes {
        let text = format!("{counted} inodes exist, the counter says {inodes}");
        let mend = Mend::Counter(Count::Inodes, Delta::between(inodes, counted));
        report.found_with(Finding::error("COUNTER", text), mend)?;
    }
    tree.check(report)
}

/// The inodes of a window, in order; it reaches from behind the last one to its own last, or to the end.
struct Window {
    after: u64,
    last: Option<InodeId>,
    ids: Vec<u64>,
    kinds: Vec<Kind>,
}

impl Window {
    fn find(&self, id: u64) -> Result<Option<usize>, ()> {
        if id <= self.after || self.last.is_some_and(|last| id > last.get()) {
            return Err(()); // in another window
        }
        Ok(self.ids.binary_search(&id).ok())
    }
}

fn window(reader: &dyn Reader, after: Option<InodeId>) -> Result<Window, Abort> {
    let mut window =
        Window { after: after.map_or(0, InodeId::get), last: None, ids: Vec::new(), kinds: Vec::new() };
    let mut last = after;
    while window.ids.len() < WINDOW {
        let page: Vec<Inode> = list(reader, &Scan::behind(Table::Inode, last.map(Key::Inode)).limit(PAGE))?;
        let Some(end) = page.last() else { return Ok(window) };
        last = Some(end.id);
        for inode in &page {
            window.ids.push(inode.id.get());
            window.kinds.push(inode.kind);
        }
    }
    window.last = last;
    Ok(window)
}

fn check_window(
    reader: &dyn Reader,
    report: &mut Report,
    window: &Window,
    tree: &mut Tree,
) -> Result<(), Abort> {
    let mut named = vec![Named::default(); window.ids.len()];
    let mut dentries = 0;
    let mut last: Option<Key> = None;
    loop {
        let page: Vec<Dentry> = list(reader, &Scan::behind(Table::Dentry, last).limit(PAGE))?;
        let Some(end) = page.last() else { break };
        last = Some(Key::Dentry(end.parent, end.name.clone()));
        dentries += page.len() as u64;
        report.step(page.len() as u64)?;
        for entry in page {
            count_entry(report, window, &mut named, &entry)?;
        }
    }
    report.summary.dentries = dentries;
    let mut last = InodeId::new(window.after).ok();
    let mut index = 0;
    while index < named.len() {
        let page: Vec<Inode> = list(reader, &Scan::behind(Table::Inode, last.map(Key::Inode)).limit(PAGE))?;
        let Some(end) = page.last() else { break };
        last = Some(end.id);
        report.step(page.len() as u64)?;
        for (inode, named) in page.iter().zip(&named[index..]) {
            check_inode(reader, report, inode, named)?;
            tree.add(inode);
        }
        index += page.len();
    }
    Ok(())
}

fn count_entry(
    report: &mut Report,
    window: &Window,
    named: &mut [Named],
    entry: &Dentry,
) -> Result<(), Abort> {
    let name = || format!("{:?} in directory {}", String::from_utf8_lossy(&entry.name), entry.parent);
    match window.find(entry.parent.get()) {
        Ok(Some(at)) if window.kinds[at] == Kind::Directory => {
            named[at].entries += 1;
            named[at].subdirectories += u32::from(entry.kind == Kind::Directory);
        }
        Ok(_) => {
            let text = format!("{}, which is none", name());
            report.found(Finding::error("NAME_WITHOUT_DIRECTORY", text).of_inode(entry.child))?;
        }
        Err(()) => {}
    }
    match window.find(entry.child.get()) {
        Ok(Some(at)) => {
            named[at].names += 1;
            named[at].parent = entry.parent.get();
            if window.kinds[at] != entry.kind {
                let text = format!("{} says {:?}, the inode is {:?}", name(), entry.kind, window.kinds[at]);
                report.found(Finding::error("NAME_KIND", text).of_inode(entry.child))?;
            }
        }
        Ok(None) => {
            let text = format!("{} names inode {}, which does not exist", name(), entry.child);
            let finding = Finding::loss("NAME_WITHOUT_INODE", text).of_inode(entry.child);
            report.found_with(finding, Mend::DropName(entry.clone()))?;
        }
        Err(()) => {}
    }
    Ok(())
}

fn check_inode(reader: &dyn Reader, report: &mut Report, inode: &Inode, named: &Named) -> Result<(), Abort> {
    let id = inode.id;
    let is_root = id == InodeId::ROOT;
    if named.names == 0 && !is_root {
        return check_nameless(reader, report, inode);
    }
    let nlink = if inode.is_directory() { 2 + named.subdirectories } else { named.names };
    if inode.nlink != nlink {
        let text = format!("inode {id} counts {} links, there are {nlink}", inode.nlink);
        let mend = Mend::Links(id, Delta::between(inode.nlink.into(), nlink.into()));
        report.found_with(Finding::error("LINKS", text).of_inode(id), mend)?;
    }
    if !inode.is_directory() {
        return Ok(());
    }
    if inode.size != u64::from(named.entries) {
        let text = format!("directory {id} counts {} entries, there are {}", inode.size, named.entries);
        let mend = Mend::Entries(id, Delta::between(inode.size, named.entries.into()));
        report.found_with(Finding::error("ENTRIES", text).of_inode(id), mend)?;
    }
    if named.names > 1 || (is_root && named.names > 0) {
        let text = format!("directory {id} has {} names", named.names);
        report.found(Finding::error("DIRECTORY_NAMES", text).of_inode(id))?;
    }
    let parent = if is_root { id.get() } else { named.parent };
    if inode.parent != parent {
        let text = format!("directory {id} lies in {parent} and says {}", inode.parent);
        report.found_with(
            Finding::error("PARENT", text).of_inode(id),
            Mend::Parent(id, inode.parent, parent),
        )?;
    }
    Ok(())
}

/// An inode without a name is held open, or being deleted; its rows of orphans say so.
fn check_nameless(reader: &dyn Reader, report: &mut Report, inode: &Inode) -> Result<(), Abort> {
    let id = inode.id;
    let last = cairn_proto::SessionId::from_uuid(uuid::Uuid::max());
    let scan = Scan::between(Key::Orphan(id, NOBODY), Key::Orphan(id, last)).limit(1);
    if !list::<Orphan>(reader, &scan)?.is_empty() {
        if inode.nlink != 0 {
            let text = format!("inode {id} counts {} links, it has no name and is held open", inode.nlink);
            let mend = Mend::Links(id, Delta::between(inode.nlink.into(), 0));
            report.found_with(Finding::error("LINKS", text).of_inode(id), mend)?;
        }
        return Ok(());
    }
    let text =
        format!("inode {id} ({:?}, {} bytes) has no name and nobody holds it open", inode.kind, inode.size);
    report.found_with(Finding::error("UNREACHABLE", text).of_inode(id), Mend::Adopt(id))
}

/// The parents of directories.
#[derive(Debug, Default)]
struct Tree {
    /// In the order of ids.
    directories: Vec<(u64, u64)>,
    incomplete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walked {
    Not,
    /// In this walk.
    Now,
    /// Ends at the root, or its end was reported.
    Done,
}

impl Tree {
    fn add(&mut self, inode: &Inode) {
        if !inode.is_directory() {
            return;
        }
        if self.directories.len() < DIRECTORIES_MAX {
            self.directories.push((inode.id.get(), inode.parent));
        } else {
            self.incomplete = true;
        }
    }

    /// Follows the parents of each directory to the root; each is walked over once.
    fn check(&self, report: &mut Report) -> Result<(), Abort> {
        report.begin("directory tree", self.directories.len() as u64)?;
        if self.incomplete {
            let text = format!("only the first {DIRECTORIES_MAX} directories were looked at for cycles");
            return report.found(Finding::new("NOT_CHECKED", super::Severity::Note, text));
        }
        let mut walked = vec![Walked::Not; self.directories.len()];
        let at = |id: u64| self.directories.binary_search_by_key(&id, |(id, _)| *id).ok();
        for start in 0..self.directories.len() {
            let mut path = Vec::new();
            let mut next = Some(start);
            while let Some(index) = next.filter(|&index| walked[index] == Walked::Not) {
                walked[index] = Walked::Now;
                path.push(index);
                let (id, parent) = self.directories[index];
                next = if id == InodeId::ROOT.get() { None } else { at(parent) };
            }
            if let Some(index) = next.filter(|&index| walked[index] == Walked::Now) {
                let (id, _) = self.directories[index];
                let text = format!("directory {id} is its own ancestor; nothing below it can be reached");
                let mut finding = Finding::error("CYCLE", text);
                finding.inode = InodeId::new(id).ok();
                report.found(finding)?;
            }
            report.step(path.len() as u64)?;
            path.into_iter().for_each(|index| walked[index] = Walked::Done);
        }
        Ok(())
    }
}

/// Paths of directories, found upwards and remembered.
#[derive(Debug, Default)]
pub(super) struct DirectoryPaths(HashMap<InodeId, Option<Vec<u8>>>);

/// Deeper than any path that can be opened; a cycle ends here.
const DEPTH_MAX: usize = 4096;
/// Paths that are remembered.
const PATHS_MAX: usize = 65_536;

impl DirectoryPaths {
    /// `None`: it does not hang below the root.
    pub(super) fn get(&mut self, reader: &dyn Reader, directory: InodeId) -> Result<Option<Vec<u8>>, Abort> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = directory;
        while at != InodeId::ROOT {
            if let Some(known) = self.0.get(&at) {
                let Some(known) = known else { return Ok(None) };
                names.push(known.clone());
                break;
            }
            let inode: Option<Inode> = crate::store::find(reader, &Key::Inode(at))?;
            let parent = inode.and_then(|inode| InodeId::new(inode.parent).ok());
            let Some(parent) = parent.filter(|_| names.len() < DEPTH_MAX) else { return Ok(None) };
            let Some(name) = name_in(reader, parent, at)? else { return Ok(None) };
            names.push([b"/".as_slice(), &name].concat());
            at = parent;
        }
        names.reverse();
        let path = names.concat();
        if self.0.len() < PATHS_MAX {
            self.0.insert(directory, Some(path.clone()));
        }
        Ok(Some(path))
    }
}

fn name_in(reader: &dyn Reader, parent: InodeId, child: InodeId) -> Result<Option<Vec<u8>>, Abort> {
    let mut found = None;
    reader.read_dir(parent, 0, usize::MAX, &mut |entry| {
        if entry.child == child {
            found = Some(entry.name.to_vec());
        }
        found.is_none()
    })?;
    Ok(found)
}
