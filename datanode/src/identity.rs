//! What a data directory says of itself: which node it belongs to, in which cluster, in which format, with
//! which other disks; and the highest position of the metadata that the node has seen, below which no
//! deletion is obeyed.
//!
//! An empty directory is made a disk of the node, unless the node's other disks know that one of theirs was
//! there: then that one is missing, and most likely not mounted. Only [`NEW_DISK`] says that another disk
//! has taken its place.

mod file;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use cairn_proto::{ClusterId, NodeId, v1};
use cairn_runtime::disk::{Disk, remove_if_present};
use cairn_runtime::random;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use crate::store::StoreError;
use file::{io, read, replace};

/// Stands in every data directory.
pub(crate) const IDENTITY: &str = "identity.json";
const FENCE: &str = "fence.json";
const SCRUB: &str = "scrub.json";
const SCRUB_KEYS: &[&str] =
    &["cursor", "started_ns", "finished_ns", "chunks_done", "bytes_done", "bad", "bad_last"];
/// Version of the data directory's layout.
const FORMAT: u32 = 1;
/// Made by an operator in an empty directory that takes the place of a disk which is gone for good.
const NEW_DISK: &str = "NEW_DISK";
/// Names that may stand in a directory without an identity.
const HARMLESS: &[&str] = &["LOCK", "lost+found", "identity.json.new", "probe", NEW_DISK];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    node: Uuid,
    cluster: Option<Uuid>,
    disk: Uuid,
    /// All disks of the node, this one too, as they were at its last start; files of older versions have none.
    #[serde(default)]
    disks: BTreeSet<KnownDisk>,
}

/// A disk, and the directory in which it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct KnownDisk {
    path: String,
    disk: Uuid,
}

/// Who this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    /// `None` until the node has joined a cluster.
    pub(crate) cluster: Option<ClusterId>,
}

/// Position of the coordinator's history that a deletion must not lie behind. Each part of it only
/// rises, unless the metadata went back to an older state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fence {
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    /// Commits of the metadata store; files of older versions have none.
    #[serde(default)]
    pub(crate) sequence: u64,
}

impl Fence {
    /// Whether any part is lower than in `other`. A later term does not excuse a lower sequence: a
    /// coordinator on a restored backup starts a new term too.
    pub(crate) fn is_behind(self, other: Self) -> bool {
        self.term < other.term || self.epoch < other.epoch || self.sequence < other.sequence
    }

    /// The highest of each part.
    pub(crate) fn join(self, other: Self) -> Self {
        Self {
            term: self.term.max(other.term),
            epoch: self.epoch.max(other.epoch),
            sequence: self.sequence.max(other.sequence),
        }
    }

    /// Whether a metadata store can be there: its numbers are signed. A fence beyond would shut out
    /// every deletion to come.
    pub(crate) fn is_possible(self) -> bool {
        [self.term, self.epoch, self.sequence].iter().all(|&part| part <= i64::MAX as u64)
    }

    pub(crate) fn from_wire(fence: &v1::Fence) -> Self {
        Self { term: fence.term, epoch: fence.epoch, sequence: fence.sequence }
    }

    pub(crate) fn to_wire(self) -> v1::Fence {
        v1::Fence { term: self.term, epoch: self.epoch, sequence: self.sequence }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}, epoch {}, sequence {}", self.term, self.epoch, self.sequence)
    }
}

/// The data directories of a node, once each is known to be its own.
pub(crate) struct Opened {
    pub(crate) identity: Identity,
    pub(crate) disks: Vec<Arc<dyn Disk>>,
    /// Directories whose disk is not there, with why that is believed.
    pub(crate) missing: Vec<(String, String)>,
}

/// Reads the identities of all data directories and gives new directories the node's. `configured` are the
/// paths of all of them, those too that could not be opened.
///
/// `Unusable`, with a sentence: directories of different nodes or clusters, a newer format, a
/// damaged identity, a directory with other things in it.
pub(crate) fn open(disks: &[Arc<dyn Disk>], configured: &[String]) -> Result<Opened, StoreError> {
    let mut found: Vec<(&Arc<dyn Disk>, IdentityFile)> = Vec::new();
    let mut empty = Vec::new();
    for disk in disks {
        match read_identity(&**disk)? {
            Some(file) => found.push((disk, file)),
            None => empty.push((disk, has_new_disk(&**disk)?)),
        }
    }
    let (node, cluster) = agree(&found)?.unwrap_or_else(|| (random::uuid(), None));
    let present: BTreeSet<Uuid> = found.iter().map(|(_, file)| file.disk).collect();
    // A disk that the configuration no longer has a place for was taken out.
    let known = found.iter().flat_map(|(_, file)| &file.disks);
    let mut absent: BTreeSet<KnownDisk> = known
        .filter(|known| !present.contains(&known.disk) && configured.contains(&known.path))
        .cloned()
        .collect();
    let mut missing = Vec::new();
    let mut fresh = Vec::new();
    for (disk, is_new) in empty {
        let path = disk.describe();
        match absent.iter().find(|known| known.path == path) {
            Some(known) if !is_new => missing.push((path, not_there(known))),
            _ => {
                absent.retain(|known| known.path != path);
                fresh.push((disk, random::uuid()));
            }
        }
    }
    let here = found.iter().map(|(disk, file)| (*disk, file.disk)).chain(fresh.iter().copied());
    let here: Vec<(&Arc<dyn Disk>, Uuid)> = here.collect();
    let mut all = absent;
    all.extend(here.iter().map(|(disk, id)| KnownDisk { path: disk.describe(), disk: *id }));
    let file = |disk| IdentityFile { format: FORMAT, node, cluster, disk, disks: all.clone() };
    for &(disk, id) in &fresh {
        replace(&**disk, IDENTITY, &file(id))?;
        forget_new_disk(&**disk);
        if !found.is_empty() {
            info!(disk = disk.describe(), "a new disk is taken in");
        }
    }
    for (disk, before) in &found {
        // One that can not be written has still what it had.
        if before.disks != all
            && let Err(error) = replace(&***disk, IDENTITY, &file(before.disk))
        {
            warn!(%error, "the list of the node's disks could not be recorded");
        }
    }
    let identity = Identity { node: NodeId::from_uuid(node), cluster: cluster.map(ClusterId::from_uuid) };
    Ok(Opened { identity, disks: here.iter().map(|(disk, _)| Arc::clone(disk)).collect(), missing })
}

/// The node and cluster that all directories name; `None` when none names any.
fn agree(found: &[(&Arc<dyn Disk>, IdentityFile)]) -> Result<Option<(Uuid, Option<Uuid>)>, StoreError> {
    let Some((place, first)) = found.first() else { return Ok(None) };
    let mut cluster = first.cluster;
    for (disk, file) in found {
        let same_cluster = match (cluster, file.cluster) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if file.node != first.node || !same_cluster {
            return Err(StoreError::Unusable(format!(
                "{} and {} belong to different datanodes; give each datanode its own directories",
                place.describe(),
                disk.describe()
            )));
        }
        cluster = cluster.or(file.cluster);
    }
    Ok(Some((first.node, cluster)))
}

fn not_there(known: &KnownDisk) -> String {
    format!(
        "the directory is empty, and disk {} of this datanode was in it; mount that disk and start the datanode again, \
         or, when it is gone for good, make an empty file {NEW_DISK} in the directory first",
        known.disk
    )
}

/// Whether an operator says that an empty directory is a new disk. `Unusable`: it is not empty.
fn has_new_disk(disk: &dyn Disk) -> Result<bool, StoreError> {
    let names = disk.list(Path::new("")).map_err(|source| io(disk, "listing the directory", source))?;
    match names.iter().find(|name| !HARMLESS.iter().any(|ok| name.as_os_str() == *ok)) {
        None => Ok(names.iter().any(|name| name.as_os_str() == NEW_DISK)),
        Some(name) => Err(StoreError::Unusable(format!(
            "{} holds {} but no {IDENTITY}; name an empty directory, or one that a datanode made",
            disk.describe(),
            name.display()
        ))),
    }
}

fn forget_new_disk(disk: &dyn Disk) {
    if let Err(error) = remove_if_present(disk, Path::new(NEW_DISK)) {
        warn!(disk = disk.describe(), %error, "{NEW_DISK} could not be removed");
    }
}

/// Whether a directory says which node it belongs to; `Io` when it can not be read.
pub(crate) fn is_known(disk: &dyn Disk) -> Result<bool, StoreError> {
    Ok(read_identity(disk)?.is_some())
}

/// Records that the node has joined a cluster, in every directory that can be read, one at least. Durable
/// on return.
///
/// `Unusable`: a directory belongs to another cluster.
pub(crate) fn join(disks: &[Arc<dyn Disk>], cluster: ClusterId) -> Result<(), StoreError> {
    let mut joined = 0;
    let mut failed = Ok(());
    for disk in disks {
        match join_one(&**disk, cluster) {
            Ok(true) => joined += 1,
            Ok(false) => {
                let text = format!("{} has lost its {IDENTITY}", disk.describe());
                failed = Err(StoreError::Unusable(text));
            }
            Err(error @ StoreError::Io { .. }) => failed = Err(error),
            Err(error) => return Err(error),
        }
    }
    if joined > 0 { Ok(()) } else { failed }
}

/// False when the directory has no identity any more.
fn join_one(disk: &dyn Disk, cluster: ClusterId) -> Result<bool, StoreError> {
    let Some(mut identity) = read_identity(disk)? else { return Ok(false) };
    match identity.cluster {
        Some(own) if own == cluster.as_uuid() => {}
        Some(own) => {
            return Err(StoreError::Unusable(format!(
                "{} belongs to cluster {own}, not to {cluster}; name that cluster's coordinator, or another directory",
                disk.describe()
            )));
        }
        None => {
            identity.cluster = Some(cluster.as_uuid());
            replace(disk, IDENTITY, &identity)?;
        }
    }
    Ok(true)
}

/// The highest fence that any directory has recorded.
pub(crate) fn read_fence(disks: &[Arc<dyn Disk>]) -> Result<Fence, StoreError> {
    let mut highest = Fence::default();
    for disk in disks {
        highest = highest.join(read(&**disk, FENCE, &["term", "epoch", "sequence"])?.unwrap_or_default());
    }
    Ok(highest)
}

/// Records a fence in every directory that takes it, one at least. Durable on return.
pub(crate) fn write_fence(disks: &[Arc<dyn Disk>], fence: Fence) -> Result<(), StoreError> {
    let mut written = 0;
    let mut failed = Ok(());
    for disk in disks {
        match replace(&**disk, FENCE, &fence) {
            Ok(()) => written += 1,
            Err(error) => failed = Err(error),
        }
    }
    if written > 0 { Ok(()) } else { failed }
}

/// The progress of the scrub as each directory that can be read has it; damaged files count as none.
pub(crate) fn read_scrub<T: DeserializeOwned>(disks: &[Arc<dyn Disk>]) -> Vec<T> {
    disks.iter().filter_map(|disk| read(&**disk, SCRUB, SCRUB_KEYS).ok().flatten()).collect()
}

/// Records the progress of the scrub in every directory that takes it.
pub(crate) fn write_scrub(disks: &[Arc<dyn Disk>], progress: &impl Serialize) -> Result<(), StoreError> {
    let results: Vec<_> = disks.iter().map(|disk| replace(&**disk, SCRUB, progress)).collect();
    if results.iter().any(Result::is_ok) { Ok(()) } else { results.into_iter().collect() }
}

fn read_identity(disk: &dyn Disk) -> Result<Option<IdentityFile>, StoreError> {
    let Some(identity) = read::<IdentityFile>(disk, IDENTITY, &["format", "node", "cluster", "disk"])? else {
        return Ok(None);
    };
    if identity.format > FORMAT {
        return Err(StoreError::Unusable(format!(
            "{} has format {}, written by a newer version of Cairn; this one reads formats up to {FORMAT}: run the newer one",
            disk.describe(),
            identity.format
        )));
    }
    Ok(Some(identity))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // looks at files as an operator would
mod tests {
    use super::*;
    use cairn_runtime::disk::RealDisk;

    fn disk(path: &Path) -> Arc<dyn Disk> {
        Arc::new(RealDisk::open(path).unwrap())
    }

    fn put(path: &Path, text: &str) {
        let disk = disk(path);
        let file = disk.create_new(Path::new(IDENTITY)).unwrap();
        file.write_at(text.as_bytes(), 0).unwrap();
    }

    /// As [`super::open`], for a node whose directories can all be opened.
    fn open(disks: &[Arc<dyn Disk>]) -> Result<Identity, StoreError> {
        opened(disks).map(|opened| opened.identity)
    }

    fn opened(disks: &[Arc<dyn Disk>]) -> Result<Opened, StoreError> {
        let paths: Vec<String> = disks.iter().map(|disk| disk.describe()).collect();
        super::open(disks, &paths)
    }

    #[test]
    fn an_empty_directory_where_a_disk_was_is_no_new_disk_until_an_operator_says_so() {
        let top = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| top.path().join(name));
        let start = |paths: &[std::path::PathBuf]| {
            let disks: Vec<_> = paths.iter().map(|path| disk(path)).collect();
            opened(&disks).unwrap()
        };
        let first = start(&paths[..2]);
        assert_eq!((first.disks.len(), first.missing.len()), (2, 0));
        drop(first.disks);
        // The disk of `b` is not mounted: what lies there is the empty mountpoint. `c` is a new one.
        let away = top.path().join("away");
        std::fs::rename(&paths[1], &away).unwrap();
        for _ in 0..2 {
            let second = start(&paths);
            assert_eq!(second.identity, first.identity);
            assert_eq!(second.disks.len(), 2);
            let [(path, why)] = &second.missing[..] else { panic!("{:?}", second.missing) };
            assert!(path.ends_with("/b") && why.contains("mount that disk"), "{path}: {why}");
            assert!(!paths[1].join(IDENTITY).exists(), "it was taken in");
        }
        // Mounted again, and somewhere else than before.
        std::fs::remove_dir_all(&paths[1]).unwrap();
        std::fs::rename(&away, &paths[1]).unwrap();
        let third = start(&paths);
        assert_eq!((third.disks.len(), third.missing.len()), (3, 0));
        drop(third.disks);
        // Gone for good.
        std::fs::remove_dir_all(&paths[1]).unwrap();
        std::fs::create_dir(&paths[1]).unwrap();
        std::fs::write(paths[1].join(NEW_DISK), "").unwrap();
        let fourth = start(&paths);
        assert_eq!((fourth.disks.len(), fourth.missing.len()), (3, 0));
        assert!(paths[1].join(IDENTITY).exists() && !paths[1].join(NEW_DISK).exists());
        drop(fourth.disks);
        // Taken out of the configuration, it is forgotten.
        assert_eq!(start(&[paths[0].clone(), paths[2].clone()]).missing.len(), 0);
        std::fs::remove_dir_all(&paths[1]).unwrap();
        assert_eq!(start(&paths).disks.len(), 3);
    }

    #[test]
    fn disks_that_are_mounted_in_each_others_place_are_found() {
        let top = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| top.path().join(name));
        let start = || opened(&[disk(&paths[0]), disk(&paths[1])]).unwrap().missing;
        assert_eq!(start(), []);
        let other = top.path().join("other");
        std::fs::rename(&paths[0], &other).unwrap();
        std::fs::rename(&paths[1], &paths[0]).unwrap();
        std::fs::rename(&other, &paths[1]).unwrap();
        assert_eq!(start(), []);
    }

    #[test]
    fn a_node_keeps_its_name_and_new_directories_take_it() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = open(&[disk(a.path())]).unwrap();
        let both = [disk(a.path()), disk(b.path())];
        assert_eq!(open(&both).unwrap(), first);
        let cluster = ClusterId::from_uuid(Uuid::from_u128(5));
        join(&both, cluster).unwrap();
        drop(both);
        assert_eq!(open(&[disk(b.path())]).unwrap(), Identity { cluster: Some(cluster), ..first });
    }

    #[test]
    fn another_cluster_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let disks = [disk(dir.path())];
        open(&disks).unwrap();
        join(&disks, ClusterId::from_uuid(Uuid::from_u128(5))).unwrap();
        let error = join(&disks, ClusterId::from_uuid(Uuid::from_u128(6))).unwrap_err().to_string();
        assert!(error.contains("belongs to cluster 00000000-0000-0000-0000-000000000005"), "{error}");
    }

    #[test]
    fn directories_of_two_nodes_do_not_mix() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open(&[disk(a.path())]).unwrap();
        open(&[disk(b.path())]).unwrap();
        let error = open(&[disk(a.path()), disk(b.path())]).unwrap_err().to_string();
        assert!(error.contains("different datanodes"), "{error}");
    }

    #[test]
    fn a_newer_format_a_damaged_identity_and_foreign_files_are_refused() {
        let newer = tempfile::tempdir().unwrap();
        let id = Uuid::from_u128(1);
        put(newer.path(), &format!(r#"{{"format":2,"node":"{id}","cluster":null,"disk":"{id}"}}"#));
        let error = open(&[disk(newer.path())]).unwrap_err().to_string();
        assert!(error.contains("newer version"), "{error}");

        let damaged = tempfile::tempdir().unwrap();
        put(damaged.path(), "{");
        let error = open(&[disk(damaged.path())]).unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");

        let foreign = tempfile::tempdir().unwrap();
        disk(foreign.path()).create_new(Path::new("thesis.tex")).unwrap();
        let error = open(&[disk(foreign.path())]).unwrap_err().to_string();
        assert!(error.contains("thesis.tex"), "{error}");
    }

    #[test]
    fn metadata_that_went_backwards_is_behind_also_in_a_later_term() {
        let seen = Fence { term: 5, epoch: 9, sequence: 1000 };
        assert!(!seen.is_behind(seen) && !Fence { sequence: 1001, ..seen }.is_behind(seen));
        assert!(Fence { term: 6, epoch: 9, sequence: 800 }.is_behind(seen));
        assert!(Fence { term: 6, epoch: 8, sequence: 1001 }.is_behind(seen));
        assert!(Fence { term: 4, epoch: 10, sequence: 1001 }.is_behind(seen));
    }

    #[test]
    fn the_fence_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let disks = [disk(dir.path())];
        assert_eq!(read_fence(&disks).unwrap(), Fence::default());
        let old = disks[0].create_new(Path::new(FENCE)).unwrap();
        old.write_at(br#"{"term":3,"epoch":8}"#, 0).unwrap();
        assert_eq!(read_fence(&disks).unwrap(), Fence { term: 3, epoch: 8, sequence: 0 });
        let fence = Fence { term: 3, epoch: 9, sequence: 70 };
        write_fence(&disks, fence).unwrap();
        write_fence(&disks, fence).unwrap();
        assert_eq!(read_fence(&disks).unwrap(), fence);
    }
}
