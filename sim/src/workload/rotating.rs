//! Names that are reused at once, as log files are rotated: each change acts on what those before it have made, so
//! that changes which are executed twice, or not in their order, show in names and contents.

use std::time::Duration;

use bytes::Bytes;
use cairn_client::vfs::{RenameMode, WriteOrigin};
use cairn_runtime::clock;
use rand::{Rng, RngCore};

use super::{Outcome, Worker};
use crate::model::{FileModel, Node};

const NAMES: [&str; 4] = ["log", "log.1", "log.2", "log.3"];
const CONTENT_MAX: usize = 1500;
/// Longest pause between two turns; mostly there is none, so that many changes wait together.
const PAUSE_MAX: Duration = Duration::from_millis(30);

impl Worker<'_> {
    /// Some turns in quick succession.
    pub(super) async fn rotate(&mut self) -> Outcome<()> {
        let index = self.index;
        self.shared.with(|world| world.rotations[index] += 1);
        for _ in 0..self.rng.random_range(2..=8) {
            match self.rng.random_range(0..10) {
                0..5 => self.turn().await?,
                5..7 => self.replace_newest().await?,
                7 => self.link_newest().await?,
                8 => self.swap().await?,
                _ => clock::sleep(PAUSE_MAX.mul_f64(self.rng.random())).await,
            }
        }
        Ok(())
    }

    fn is_name(&self, path: &str) -> bool {
        self.area(|area| area.names.contains_key(path))
    }

    /// log.2 becomes log.3, log.1 becomes log.2, log becomes log.1, and there is a new log.
    async fn turn(&mut self) -> Outcome<()> {
        let oldest = self.rng.random_range(1..NAMES.len());
        for index in (0..oldest).rev() {
            if self.is_name(NAMES[index]) {
                self.rename_to(NAMES[index], NAMES[index + 1], RenameMode::Replace).await?;
            }
        }
        self.make_newest().await
    }

    async fn replace_newest(&mut self) -> Outcome<()> {
        if self.is_name(NAMES[0]) {
            self.unlink(NAMES[0]).await?;
        }
        self.make_newest().await
    }

    /// A new log; nothing when a rename has left the old one, since both names were of one file.
    async fn make_newest(&mut self) -> Outcome<()> {
        if self.is_name(NAMES[0]) {
            return Ok(());
        }
        let (id, handle) = self.create_at(NAMES[0]).await?;
        let mut data = vec![0; self.rng.random_range(1..=CONTENT_MAX)];
        self.rng.fill_bytes(&mut data);
        let model = data.clone();
        self.area(|area| {
            let end = model.len();
            area.files.entry(id).or_insert_with(FileModel::empty).push_write(model, end);
        });
        let what = format!("{} 0+{}", NAMES[0], data.len());
        let write = self.vfs.write(handle, 0, Bytes::from(data), WriteOrigin::Call);
        self.ask("write", &what, write).await?;
        if self.rng.random_bool(0.15) {
            let durable = self.rng.random_bool(0.5);
            self.settle(NAMES[0], id, handle, durable).await?;
        }
        self.vfs.release(handle);
        Ok(())
    }

    /// The newest gets a second name, if there is one to have.
    async fn link_newest(&mut self) -> Outcome<()> {
        let Some(free) = NAMES.iter().find(|name| !self.is_name(name)) else { return Ok(()) };
        let node = self.area(|area| area.names.get(NAMES[0]).copied());
        let Some(node @ Node::File(_)) = node else { return Ok(()) };
        self.area(|area| {
            let mut after = area.names.clone();
            after.insert((*free).to_owned(), node);
            area.begin(after);
        });
        let link = async {
            let (from, to) = (self.place(NAMES[0]).await?, self.place(free).await?);
            let inode = self.vfs.lookup(from.0, &from.1, &self.me).await?.attr.inode;
            self.vfs.link(inode, to.0, &to.1, &self.me).await
        };
        self.ask("link", &format!("{} {free}", NAMES[0]), link).await?;
        self.area(|area| area.end(true));
        Ok(())
    }

    async fn swap(&mut self) -> Outcome<()> {
        let other = NAMES[self.rng.random_range(1..NAMES.len())];
        if !self.is_name(NAMES[0]) || !self.is_name(other) {
            return Ok(());
        }
        self.rename_to(NAMES[0], other, RenameMode::Exchange).await
    }

    pub(super) async fn rename_to(&self, path: &str, target: &str, mode: RenameMode) -> Outcome<()> {
        self.area(|area| {
            let mut after = area.names.clone();
            let (moved, replaced) = (after.get(path).copied(), after.get(target).copied());
            // Of two names of one file both stay: rename(2).
            if let Some(moved) = moved.filter(|_| moved != replaced) {
                after.remove(path);
                after.insert(target.to_owned(), moved);
                if let Some(replaced) = replaced.filter(|_| mode == RenameMode::Exchange) {
                    after.insert(path.to_owned(), replaced);
                }
            }
            area.begin(after);
        });
        let rename = async {
            let (from, to) = (self.place(path).await?, self.place(target).await?);
            self.vfs.rename(from.0, &from.1, to.0, &to.1, mode, &self.me).await
        };
        let what = if mode == RenameMode::Exchange { "swap" } else { "rename" };
        self.ask(what, &format!("{path} {target}"), rename).await?;
        self.area(|area| area.end(true));
        Ok(())
    }
}
