//! `fsync` of files that another client has written, and only flushed: what was committed by then is durable.

use std::rc::Rc;

use cairn_client::vfs::OpenFlags;
use cairn_proto::{ErrorKind, InodeId};
use cairn_runtime::clock;
use rand::Rng;

use super::{OPERATION_MAX, Outcome, READ_WRITE, Stop, VALID, Worker, is_outage, name};
use crate::model::{FileId, FileModel, Turns};

/// A file of another client.
struct Foreign {
    area: usize,
    root: String,
    path: String,
    id: FileId,
}

impl Worker<'_> {
    /// Syncs a file of another client that was committed and not synced.
    pub(super) async fn sync_other(&mut self) -> Outcome<()> {
        let count = self.shared.with(|world| world.areas.len());
        let area = (self.index + self.rng.random_range(1..count.max(2))) % count.max(1);
        let found = self.shared.with(|world| {
            let area = world.areas[area].last().filter(|area| !area.closed)?;
            let unsynced = |id: &FileId| area.files.get(id).is_some_and(|file| !file.durable);
            let paths = area.paths().into_iter().filter(|(_, id)| unsynced(id));
            Some((area.root.clone(), paths.collect::<Vec<_>>()))
        });
        let Some((root, mut paths)) = found.filter(|(_, paths)| !paths.is_empty()) else { return Ok(()) };
        let (path, id) = paths.swap_remove(self.rng.random_range(0..paths.len()));
        let file = Foreign { area, root, path, id };
        let Some((before, turns)) = self.settled(&file) else { return Ok(()) };
        let at_risk = self.shared.with(|world| world.at_risk[file.area]);
        if self.fsync_of(&file).await?
            && !turns.may_be_unseen(VALID, at_risk)
            && let Some((after, turns_now)) = self.settled(&file)
            && Rc::ptr_eq(&before, &after)
            && turns == turns_now
        {
            // Nor has its place changed: the names that led there were committed before.
            self.shared.with(|world| {
                let areas = world.areas[file.area].iter_mut();
                for area in areas.filter(|area| area.root == file.root) {
                    area.settle_names_of(file.id);
                    area.files.entry(file.id).or_insert_with(FileModel::empty).settle(true);
                }
                world.counts.synced += 1;
            });
        }
        Ok(())
    }

    /// The one content that the file can have now, when nothing is under way that would change it or its place; and
    /// how it came to be there.
    fn settled(&self, file: &Foreign) -> Option<(Rc<Vec<u8>>, Turns)> {
        self.shared.with(|world| {
            let area = world.areas[file.area].iter().find(|area| area.root == file.root)?;
            let turns = area.stays(&file.path, file.id)?;
            let model = area.files.get(&file.id).filter(|model| model.versions().len() == 1)?;
            Some((model.last(), turns))
        })
    }

    /// Whether it was synced.
    async fn fsync_of(&self, file: &Foreign) -> Outcome<bool> {
        let what = format!("{}/{}", file.root, file.path);
        let sync = async {
            let mut inode = InodeId::ROOT;
            for part in what.split('/') {
                inode = self.vfs.lookup(inode, &name(part)?, &self.me).await?.attr.inode;
            }
            let flags = OpenFlags { write: false, ..READ_WRITE };
            let handle = self.vfs.open(inode, flags, &self.me).await?.handle;
            let synced = self.vfs.fsync(handle).await;
            self.vfs.release(handle);
            synced
        };
        let result = match clock::timeout(OPERATION_MAX, sync).await {
            Ok(result) => result,
            Err(_) => return Err(Stop::TooSlow),
        };
        let kind = result.as_ref().err().map(|error| error.kind());
        self.log("syncs another's", &what, &kind.map_or(Ok(()), Err));
        // It may have gone meanwhile, or what was not synced may be lost.
        let may_be = |kind: ErrorKind| {
            is_outage(kind)
                || matches!(kind, ErrorKind::NotFound | ErrorKind::StaleHandle)
                || matches!(kind, ErrorKind::Corrupt | ErrorKind::ChunkNotFound)
        };
        if let Some(kind) = kind.filter(|kind| !may_be(*kind)) {
            self.shared.violation(format_args!("u{} syncs {what}: {kind:?}", self.index));
        }
        Ok(kind.is_none())
    }
}
