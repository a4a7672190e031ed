//! What the files must look like, by what the clients were told.
//!
//! Each life of a client works in a directory of its own (an [`Area`]), one operation after another,
//! so names have no two opinions. A file may have several names, and a name lead to one file after
//! another. An operation whose outcome stays unknown closes the area: both outcomes are right from then
//! on. A file's content is the list of versions that it may have: a write adds one, a successful flush or
//! fsync leaves only the last.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

pub(crate) type FileId = u64;

/// What names lead to, by path below the area.
pub(crate) type Names = BTreeMap<String, Node>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File(FileId),
}

/// What a file was after one change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Version {
    content: Rc<Vec<u8>>,
    /// Where the write ended that made it.
    end: usize,
}

impl Version {
    fn len(&self) -> usize {
        self.content.len()
    }
}

/// What a file has been, and may be.
#[derive(Debug, Clone)]
pub(crate) struct FileModel {
    /// All that it ever was, oldest first.
    history: Vec<Version>,
    /// From here on it may be each of them.
    settled: usize,
    /// The last version was acknowledged as durable.
    pub(crate) durable: bool,
    /// Something written was seen to be missing; whoever stores the file next must be told.
    pub(crate) lost: bool,
}

impl FileModel {
    pub(crate) fn empty() -> Self {
        Self { history: vec![Version::default()], settled: 0, durable: true, lost: false }
    }

    /// The contents that it may have now, oldest first.
    pub(crate) fn versions(&self) -> &[Version] {
        &self.history[self.settled..]
    }

    /// Those that somebody may see who opened it after `before`, an earlier state, and has read it by now. It
    /// may have been settled, and changed, several times since.
    pub(crate) fn versions_since(&self, before: &Self) -> &[Version] {
        &self.history[before.settled..]
    }

    /// What its writer sees.
    pub(crate) fn last(&self) -> Rc<Vec<u8>> {
        self.history.last().map(|version| Rc::clone(&version.content)).unwrap_or_default()
    }

    /// The last version alone, which is what its writer sees.
    pub(crate) fn last_version(&self) -> &[Version] {
        &self.history[self.history.len() - 1..]
    }

    /// A change of the whole is on its way.
    pub(crate) fn push(&mut self, content: Vec<u8>) {
        let end = content.len();
        self.push_write(content, end);
    }

    /// A write that ends at `end` is on its way.
    pub(crate) fn push_write(&mut self, content: Vec<u8>, end: usize) {
        self.history.push(Version { content: Rc::new(content), end });
        self.durable = false;
    }

    /// All changes are committed; with `durable` for good.
    pub(crate) fn settle(&mut self, durable: bool) {
        self.settled = self.history.len() - 1;
        self.durable |= durable;
    }

    /// Checks what was read against every version it may have.
    pub(crate) fn check(&self, read: &[u8]) -> Result<(), String> {
        admissible(self.versions(), read)
    }
}

/// Full chunks of a large write are committed before the rest of it, at multiples of this.
const PIECE: usize = 64 << 10;

/// Whether each byte is that of a possible version, and the length, too.
pub(crate) fn admissible(versions: &[Version], read: &[u8]) -> Result<(), String> {
    let longest = versions.iter().map(Version::len).max().unwrap_or(0);
    let is_piece = versions.len() > 1 && read.len().is_multiple_of(PIECE) && read.len() < longest;
    // Of several writes a later one may be stored, and an earlier one refused for want of room.
    let shortest = versions.first().map_or(0, Version::len);
    let is_end = |version: &Version| version.end == read.len() && version.end > shortest;
    if !is_piece && !versions.iter().any(|version| version.len() == read.len() || is_end(version)) {
        let lengths: Vec<usize> = versions.iter().map(Version::len).collect();
        return Err(format!("{} bytes, of {lengths:?}", read.len()));
    }
    let versions: Vec<&[u8]> = versions.iter().map(|version| version.content.as_slice()).collect();
    if versions.contains(&read) {
        return Ok(());
    }
    if let [only] = versions.as_slice() {
        let wrong: Vec<usize> = (0..read.len()).filter(|&at| read[at] != only[at]).collect();
        let (first, last) = (wrong.first().copied().unwrap_or(0), wrong.last().copied().unwrap_or(0));
        let zeros = wrong.iter().filter(|&&at| read[at] == 0).count();
        let count = wrong.len();
        return Err(format!(
            "{count} of {} bytes differ, {first} to {last}; {zeros} of them read as zero",
            read.len()
        ));
    }
    let strange = (0..read.len()).find(|&at| {
        // Between the ends of two versions lie zeros.
        let longest = versions.iter().any(|version| version.len() <= at) && read[at] == 0;
        !longest && !versions.iter().any(|version| version.get(at) == Some(&read[at]))
    });
    match strange {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} of {} is of no version", read.len())),
    }
}

/// One directory that one life of one client works in.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) root: String,
    pub(crate) names: Names,
    /// Names after the operation under way.
    pub(crate) after: Option<Names>,
    /// What the names were before each change that was answered and may still be lost with the client, and the
    /// files that it concerned; oldest first. A crash takes them back to one of these.
    past: Vec<(Names, BTreeSet<FileId>)>,
    /// Something of the area, and so its root, can not be lost any more.
    pub(crate) rooted: bool,
    pub(crate) files: BTreeMap<FileId, FileModel>,
    /// Nothing happens here any more; the operation under way may have happened.
    pub(crate) closed: bool,
    next_file: FileId,
    turns: BTreeMap<String, Turns>,
}

/// How a path came to lead where it leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turns {
    /// Changes that were begun, and those that have ended.
    count: u64,
    /// When the last one did.
    last: Duration,
}

impl Turns {
    /// Whether other clients may still be shown what the path led to before: less than `valid` ago, or while the
    /// session of who changed it may end (until `at_risk`), and the changes come only with its return.
    pub(crate) fn may_be_unseen(self, valid: Duration, at_risk: Duration) -> bool {
        // The first change, which made the path, has a beginning and an end.
        self.count > 2 && now() < at_risk.max(self.last + valid)
    }
}

/// The time of the simulation.
fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Area {
    pub(crate) fn new(root: String) -> Self {
        Self {
            root,
            names: Names::new(),
            after: None,
            files: BTreeMap::new(),
            closed: false,
            next_file: 1,
            past: Vec::new(),
            rooted: false,
            turns: BTreeMap::new(),
        }
    }

    pub(crate) fn new_file(&mut self) -> FileId {
        let id = self.next_file;
        self.next_file += 1;
        self.files.insert(id, FileModel::empty());
        id
    }

    /// Files with their paths.
    pub(crate) fn paths(&self) -> Vec<(String, FileId)> {
        let files = self.names.iter().filter_map(|(path, node)| match node {
            Node::File(id) => Some((path.clone(), *id)),
            Node::Directory => None,
        });
        files.collect()
    }

    pub(crate) fn directories(&self) -> Vec<String> {
        let all = self.names.iter().filter(|(_, node)| **node == Node::Directory);
        all.map(|(path, _)| path.clone()).collect()
    }

    /// Paths of one file.
    pub(crate) fn paths_of(&self, file: FileId) -> Vec<String> {
        let all = self.names.iter().filter(|(_, node)| **node == Node::File(file));
        all.map(|(path, _)| path.clone()).collect()
    }

    /// Whether a path leads to a file, and no operation is under way that would change that; how it came to be so.
    pub(crate) fn stays(&self, path: &str, file: FileId) -> Option<Turns> {
        let is_there = |names: &Names| names.get(path) == Some(&Node::File(file));
        let stays = is_there(&self.names) && self.after.as_ref().is_none_or(is_there);
        stays.then(|| self.turns.get(path).copied().unwrap_or_default())
    }

    /// An operation on names begins.
    pub(crate) fn begin(&mut self, after: Names) {
        self.turn(&after);
        self.after = Some(after);
    }

    /// Takes note of all paths that lead elsewhere in `after`.
    fn turn(&mut self, after: &Names) {
        let differs = |path: &&String| self.names.get(*path) != after.get(*path);
        for path in self.names.keys().chain(after.keys()).filter(differs) {
            let turns = self.turns.entry(path.clone()).or_default();
            *turns = Turns { count: turns.count + 1, last: now() };
        }
    }

    /// It happened, or it did not.
    pub(crate) fn end(&mut self, happened: bool) {
        if let Some(after) = self.after.take()
            && happened
        {
            self.turn(&after);
            let concerned = concerned(&self.names, &after);
            let before = std::mem::replace(&mut self.names, after);
            self.past.push((before, concerned));
        }
    }

    /// The last change of the names of a file can not be lost any more, nor can those before it.
    pub(crate) fn settle_names_of(&mut self, file: FileId) {
        self.rooted = true;
        let last = self.past.iter().rposition(|(_, concerned)| concerned.contains(&file));
        drop(self.past.drain(..last.map_or(0, |last| last + 1)));
    }

    /// No change of names can be lost any more.
    pub(crate) fn settle_names(&mut self) {
        self.rooted = true;
        self.past.clear();
    }

    /// The names that may be found when the client has crashed, or not: the newest first.
    pub(crate) fn possible_names(&self) -> Vec<Names> {
        let past = self.past.iter().rev().map(|(names, _)| names).filter(|_| self.closed);
        self.after.iter().chain([&self.names]).chain(past).cloned().collect()
    }
}

/// Files whose names differ between two states.
fn concerned(before: &Names, after: &Names) -> BTreeSet<FileId> {
    let differs = |(path, node): &(&String, &Node)| {
        before.get(*path) != after.get(*path) && matches!(node, Node::File(_))
    };
    let of = |(_, node): (&String, &Node)| match node {
        Node::File(id) => Some(*id),
        Node::Directory => None,
    };
    before.iter().chain(after).filter(differs).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_right_when_each_byte_is_of_a_possible_version() {
        let mut file = FileModel::empty();
        file.push(b"aaaa".to_vec());
        file.push(b"aabbbb".to_vec());
        for good in ["", "aaaa", "aabbbb", "aabb"] {
            assert!(file.check(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["aaaac", "aaca", "aabbbc", "a"] {
            assert!(file.check(bad.as_bytes()).is_err(), "{bad}");
        }
        let before = file.clone();
        file.settle(true);
        assert!(file.durable && file.check(b"aabbbb").is_ok() && file.check(b"aaaa").is_err());
        file.push(b"c".to_vec());
        file.settle(true);
        for seen in ["aaaa", "aabbbb", "c"] {
            assert!(admissible(file.versions_since(&before), seen.as_bytes()).is_ok(), "{seen}");
        }
        assert!(file.check(b"aabbbb").is_err());
        file.push_write(b"cdefgh".to_vec(), 6);
        file.push_write(b"cdEfgh".to_vec(), 3);
        assert!(file.check(b"c\0E").is_ok() && file.check(b"cd").is_err(), "the second write alone");
        file.settle(true);
        assert!(file.check(b"c\0E").is_err());
    }

    #[test]
    fn an_operation_under_way_counts_when_it_has_happened() {
        let mut area = Area::new("a".into());
        area.begin(Names::from([("x".into(), Node::Directory)]));
        area.end(false);
        assert!(area.names.is_empty() && area.after.is_none());
        area.begin(Names::from([("x".into(), Node::Directory)]));
        area.end(true);
        assert_eq!(area.directories(), ["x"]);
    }

    #[test]
    fn a_crash_takes_names_back_to_one_moment_since_they_were_synced() {
        let mut area = Area::new("a".into());
        let change = |area: &mut Area, path: &str, node| {
            let mut after = area.names.clone();
            after.insert(path.into(), node);
            area.begin(after);
            area.end(true);
        };
        change(&mut area, "one", Node::File(1));
        change(&mut area, "dir", Node::Directory);
        change(&mut area, "two", Node::File(2));
        assert_eq!(area.possible_names().len(), 1, "while its client lives, nothing is lost");
        area.closed = true;
        assert_eq!(area.possible_names().len(), 4);
        area.settle_names_of(1);
        assert!(area.possible_names().iter().all(|names| names.contains_key("one")));
        area.settle_names();
        assert_eq!(area.possible_names(), [area.names.clone()]);
    }
}
