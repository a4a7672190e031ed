//! What a data directory says of itself: which node it belongs to, in which cluster, in which format;
//! and the highest position of the metadata that the node has seen, below which no deletion is obeyed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use cairn_proto::{ClusterId, NodeId, v1};
use cairn_runtime::disk::Disk;
use cairn_runtime::random;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::StoreError;

/// Stands in every data directory.
pub(crate) const IDENTITY: &str = "identity.json";
const FENCE: &str = "fence.json";
const SCRUB: &str = "scrub.json";
/// Version of the data directory's layout.
const FORMAT: u32 = 1;
/// Longest identity or fence file that is read.
const FILE_MAX: u64 = 4096;
/// Names that may stand in a directory without an identity.
const HARMLESS: &[&str] = &["LOCK", "lost+found", "identity.json.new", "probe"];

#[derive(Debug, Clone, Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    node: Uuid,
    cluster: Option<Uuid>,
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

/// Reads the identities of all data directories and gives new directories the node's.
///
/// `Unusable`, with a sentence: directories of different nodes or clusters, a newer format, a
/// damaged identity, a directory with other things in it.
pub(crate) fn open(disks: &[Arc<dyn Disk>]) -> Result<Identity, StoreError> {
    let mut known: Option<(IdentityFile, String)> = None;
    let mut fresh = Vec::new();
    for disk in disks {
        let Some(found) = read_identity(&**disk)? else {
            refuse_foreign_content(&**disk)?;
            fresh.push(disk);
            continue;
        };
        match &mut known {
            None => known = Some((found, disk.describe())),
            Some((first, place)) => {
                let same_cluster = match (first.cluster, found.cluster) {
                    (Some(a), Some(b)) => a == b,
                    _ => true,
                };
                if first.node != found.node || !same_cluster {
                    return Err(StoreError::Unusable(format!(
                        "{place} and {} belong to different datanodes; give each datanode its own directories",
                        disk.describe()
                    )));
                }
                first.cluster = first.cluster.or(found.cluster);
            }
        }
    }
    let (node, cluster) =
        known.map_or_else(|| (random::uuid(), None), |(identity, _)| (identity.node, identity.cluster));
    for disk in fresh {
        let identity = IdentityFile { format: FORMAT, node, cluster, disk: random::uuid() };
        replace(&**disk, IDENTITY, &identity)?;
    }
    Ok(Identity { node: NodeId::from_uuid(node), cluster: cluster.map(ClusterId::from_uuid) })
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
        highest = highest.join(read(&**disk, FENCE)?.unwrap_or_default());
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
    disks.iter().filter_map(|disk| read(&**disk, SCRUB).ok().flatten()).collect()
}

/// Records the progress of the scrub in every directory that takes it.
pub(crate) fn write_scrub(disks: &[Arc<dyn Disk>], progress: &impl Serialize) -> Result<(), StoreError> {
    let results: Vec<_> = disks.iter().map(|disk| replace(&**disk, SCRUB, progress)).collect();
    if results.iter().any(Result::is_ok) { Ok(()) } else { results.into_iter().collect() }
}

fn read_identity(disk: &dyn Disk) -> Result<Option<IdentityFile>, StoreError> {
    let Some(identity) = read::<IdentityFile>(disk, IDENTITY)? else {
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

fn refuse_foreign_content(disk: &dyn Disk) -> Result<(), StoreError> {
    let names = disk.list(Path::new("")).map_err(|source| io(disk, "listing the directory", source))?;
    match names.iter().find(|name| !HARMLESS.iter().any(|ok| name.as_os_str() == *ok)) {
        None => Ok(()),
        Some(name) => Err(StoreError::Unusable(format!(
            "{} holds {} but no {IDENTITY}; name an empty directory, or one that a datanode made",
            disk.describe(),
            name.display()
        ))),
    }
}

fn read<T: DeserializeOwned>(disk: &dyn Disk, name: &str) -> Result<Option<T>, StoreError> {
    let file = match disk.open(Path::new(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io(disk, "opening its identity", source)),
    };
    let len = file.len().map_err(|source| io(disk, "reading its identity", source))?;
    let mut bytes = vec![0; len.min(FILE_MAX) as usize];
    file.read_at(&mut bytes, 0).map_err(|source| io(disk, "reading its identity", source))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        StoreError::Unusable(format!(
            "{}/{name} is damaged ({error}); restore it from a copy, or give up the directory",
            disk.describe()
        ))
    })
}

/// Puts a file in place of another: temporary, sync, rename, sync of the directory.
fn replace(disk: &dyn Disk, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::Unusable(format!("{name} can not be encoded: {error}")))?;
    let temporary = format!("{name}.new");
    let temporary = Path::new(&temporary);
    let write = || {
        match disk.unlink(temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.create_new(temporary)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        disk.rename(temporary, Path::new(name))?;
        disk.sync_dir(Path::new(""))
    };
    write().map_err(|source| io(disk, "writing its identity", source))
}

fn io(disk: &dyn Disk, doing: &'static str, source: std::io::Error) -> StoreError {
    StoreError::Io { disk: disk.describe(), doing, source }
}

#[cfg(test)]
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
