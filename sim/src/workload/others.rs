//! Files of other clients: listed, opened and read while these work on them.

use std::rc::Rc;
use std::time::Duration;

use cairn_client::vfs::{HandleId, Listing, OpenFlags};
use cairn_proto::InodeId;
use cairn_runtime::clock;
use rand::Rng;

use super::{OPERATION_MAX, Outcome, READ_WRITE, Stop, VALID, Worker, name};
use crate::model::{FileId, FileModel, admissible};
use crate::world::Shared;

/// A change of a file by another client is waited for so long.
const CHANGE_MAX: Duration = Duration::from_secs(1);

impl Worker<'_> {
    /// Reads a file that another client is working on: what was committed when the open began, or
    /// later.
    pub(super) async fn read_other(&mut self) -> Outcome<()> {
        let count = self.shared.with(|world| world.areas.len());
        let other = (self.index + self.rng.random_range(1..count.max(2))) % count.max(1);
        let found = self.shared.with(|world| {
            let area = world.areas[other].last()?;
            let paths = area.paths();
            (!area.closed && !paths.is_empty()).then(|| (area.root.clone(), paths))
        });
        let Some((root, paths)) = found else { return Ok(()) };
        let hot = self.rng.random_bool(0.5);
        let (path, id) = paths[if hot { 0 } else { self.rng.random_range(0..paths.len()) }].clone();
        if self.rng.random_bool(0.3) {
            self.list_of_other(&root).await?;
        }
        // Several times while it is open here, so that what is known of it grows old.
        let mut handles = Vec::new();
        for _ in 0..self.rng.random_range(1..=5) {
            let Some(handle) = self.read_of_other(other, &root, &path, id).await? else { break };
            handles.push(handle);
            if self.rng.random_bool(0.7) {
                self.wait_for_change(other, &root, id).await;
            }
        }
        handles.into_iter().for_each(|handle| self.vfs.release(handle));
        Ok(())
    }

    /// Lists the area of another client as a kernel does that will look at the files: with attributes.
    async fn list_of_other(&self, root: &str) -> Outcome<()> {
        let list = async {
            let directory = self.vfs.lookup(InodeId::ROOT, &name(root)?, &self.me).await?.attr.inode;
            let handle = self.vfs.opendir(directory);
            let listed = self.vfs.readdir(handle, 0, Listing::Attributes).await;
            self.vfs.releasedir(handle);
            listed.map(drop)
        };
        match clock::timeout(OPERATION_MAX, list).await {
            Ok(listed) => self.log("lists", root, &listed.map_err(|error| error.kind())),
            Err(_) => return Err(Stop::TooSlow),
        }
        Ok(())
    }

    /// Waits a little until another client has changed a file, and what it wrote is to be seen.
    async fn wait_for_change(&self, other: usize, root: &str, id: FileId) {
        let settled = || {
            self.shared.with(|world| {
                let area = world.areas[other].iter().find(|area| area.root == root)?;
                area.files.get(&id).filter(|file| file.versions().len() == 1).map(FileModel::last)
            })
        };
        let before = settled();
        let deadline = clock::now() + CHANGE_MAX;
        while clock::now() < deadline {
            clock::sleep(CHANGE_MAX / 40).await;
            let is_same = match (&before, settled()) {
                (Some(before), Some(now)) => Rc::ptr_eq(before, &now),
                (_, now) => now.is_none(),
            };
            if !is_same {
                return;
            }
        }
    }

    /// Opens and reads a file of another client; `None`: it is gone, or not there yet.
    async fn read_of_other(
        &self,
        other: usize,
        root: &str,
        path: &str,
        id: FileId,
    ) -> Outcome<Option<HandleId>> {
        let model = |shared: &Shared| {
            shared.with(|world| {
                let area = world.areas[other].iter().find(|area| area.root == root)?;
                Some((area.files.get(&id)?.clone(), area.stays(path, id)))
            })
        };
        let Some((before, turns)) = model(self.shared) else { return Ok(None) };
        let at_risk = self.shared.with(|world| world.at_risk[other]);
        let turns = turns.filter(|turns| !turns.may_be_unseen(VALID, at_risk));
        let what = format!("{root}/{path}");
        let open = async {
            let mut inode = InodeId::ROOT;
            for part in what.split('/') {
                inode = self.vfs.lookup(inode, &name(part)?, &self.me).await?.attr.inode;
            }
            self.vfs.open(inode, OpenFlags { write: false, ..READ_WRITE }, &self.me).await
        };
        let handle = match clock::timeout(OPERATION_MAX, open).await {
            Ok(Ok(opened)) => opened.handle,
            // It may have gone, or not be there yet.
            Ok(Err(error)) => {
                self.log("looks at", &what, &Err::<(), _>(error.kind()));
                return Ok(None);
            }
            Err(_) => return Err(Stop::TooSlow),
        };
        let read = self.content(&what, handle).await?;
        if let (Ok(read), Some((after, turns_now))) = (read, model(self.shared))
            && turns.is_some()
            && turns == turns_now
            && let Err(wrong) = admissible(after.versions_since(&before), &read)
        {
            self.shared.violation(format_args!("u{} reads {what} of u{other}: {wrong}", self.index));
        }
        Ok(Some(handle))
    }
}
