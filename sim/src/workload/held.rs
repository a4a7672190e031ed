//! Files that stay open, also when they have lost their last name: whatever becomes of the session, they work.

use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{HandleId, WriteOrigin};
use cairn_proto::ErrorKind;
use cairn_runtime::clock;
use rand::{Rng, RngCore};

use super::{Outcome, Stop, Worker, is_outage};
use crate::model::{FileId, FileModel};
use crate::world::Phase;

/// Files that one client keeps open.
const HELD_MAX: usize = 6;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An open file.
#[derive(Debug)]
pub(super) struct Held {
    /// As it was called when it was opened.
    path: String,
    id: FileId,
    handle: HandleId,
    named: Named,
}

/// Whether a file has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Yes,
    /// Not any more; how many sessions of its client were known to be over when that was done.
    Removed(u64),
}

impl Worker<'_> {
    /// Closes all.
    pub(super) fn let_go(&mut self) {
        self.held.drain(..).for_each(|held| self.vfs.release(held.handle));
    }

    /// Opens a file to keep it, removes the names of one that is open, or uses one.
    pub(super) async fn use_held(&mut self, path: &str, id: FileId) -> Outcome<()> {
        if self.held.len() < HELD_MAX && self.rng.random_bool(0.4) {
            let handle = self.open(path).await?;
            self.held.push(Held { path: path.to_owned(), id, handle, named: Named::Yes });
            return Ok(());
        }
        if self.held.is_empty() {
            return Ok(());
        }
        let removed = self.held.iter().position(|held| held.named != Named::Yes);
        let chosen = match removed.filter(|_| self.rng.random_bool(0.5)) {
            Some(removed) => removed,
            None => self.rng.random_range(0..self.held.len()),
        };
        let paths = self.area(|area| area.paths_of(self.held[chosen].id));
        if !paths.is_empty() && self.rng.random_bool(0.4) {
            for path in paths {
                self.unlink(&path).await?;
            }
            self.held[chosen].named = Named::Removed(self.sessions_gone());
            return Ok(());
        }
        let held = self.held.swap_remove(chosen);
        let used = self.use_once(&held).await;
        if used.is_ok() && self.rng.random_bool(0.6) {
            self.held.push(held);
        } else {
            self.vfs.release(held.handle);
        }
        used
    }

    fn sessions_gone(&self) -> u64 {
        self.shared.with(|world| world.sessions_gone[self.index])
    }

    async fn use_once(&mut self, held: &Held) -> Outcome<()> {
        match self.content(&held.path, held.handle).await? {
            Ok(read) => self.compare(&held.path, held.id, &read),
            Err(kind) => self.judge_refusal("read", held, kind).await,
        }
        if !self.rng.random_bool(0.5) {
            return Ok(());
        }
        let mut content = self.last(held.id).to_vec();
        let mut data = vec![0; self.rng.random_range(1..=4096)];
        self.rng.fill_bytes(&mut data);
        let (offset, end) = (content.len(), content.len() + data.len());
        content.extend_from_slice(&data);
        self.area(|area| {
            area.files.entry(held.id).or_insert_with(FileModel::empty).push_write(content, end);
        });
        let written = async {
            self.vfs.write(held.handle, offset as u64, Bytes::from(data), WriteOrigin::Call).await?;
            self.vfs.flush(held.handle).await
        };
        let what = format!("{} {offset}+{}", held.path, end - offset);
        let result = clock::timeout(super::OPERATION_MAX, written).await;
        let kind = result.map_err(|_| Stop::TooSlow)?.err().map(|error| error.kind());
        self.log("writes open", &what, &kind.map_or(Ok(()), Err));
        match kind {
            None => {
                self.on_settled(&held.path, held.id, false);
                Ok(())
            }
            Some(kind) => {
                self.judge_refusal("write", held, kind).await;
                Err(Stop::Unknown(kind))
            }
        }
    }

    /// Waits until it is known which sessions are over by now.
    async fn wait_for_looks(&self) {
        let looks = || self.shared.with(|world| world.looks);
        let (before, deadline) = (looks(), clock::now() + super::OPERATION_MAX);
        while looks() < before + 2 && clock::now() < deadline && self.shared.phase() == Phase::Work {
            clock::sleep(LOOK_EVERY).await;
        }
    }

    /// A file that is open may be gone when it has no name, and its session has ended since it lost it.
    async fn judge_refusal(&self, what: &str, held: &Held, kind: ErrorKind) {
        // What was never synced may be lost with the datanodes' power.
        if is_outage(kind)
            || (what == "read" && !matches!(kind, ErrorKind::StaleHandle | ErrorKind::NotFound))
        {
            return;
        }
        let may_be = match held.named {
            Named::Yes => self.area(|area| area.paths_of(held.id).is_empty()),
            Named::Removed(before) => {
                self.wait_for_looks().await;
                before != self.sessions_gone() || self.shared.phase() != Phase::Work
            }
        };
        if !may_be {
            let (index, path) = (self.index, &held.path);
            self.shared.violation(format_args!("u{index}: {what} of {path}, which is open: {kind:?}"));
        }
    }
}
