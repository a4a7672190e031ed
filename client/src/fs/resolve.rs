//! From a path to an inode, as path_resolution(7) says.

use bytes::Bytes;
use cairn_proto::limits::SYMLINK_MAX;
use cairn_proto::{ErrorKind, FileName, InodeId};

use super::{Files, Last};
use crate::{Attr, ClientError, Kind, Result};

/// Symlinks followed in one path; more are a loop.
const SYMLINKS_MAX: usize = 40;

/// What a path ends in.
pub(super) enum Place {
    /// A name in a directory, which may exist or not.
    Entry { parent: InodeId, name: FileName },
    /// A directory that was reached without a last name: the root, `.` or `..`.
    Itself(Box<Attr>),
}

/// The way that is left: names still to walk, the next one last.
struct Walk {
    /// Where it begins; the root unless a symlink at the end said otherwise.
    start: InodeId,
    left: Vec<Bytes>,
    symlinks: usize,
}

impl Walk {
    fn new(path: &[u8]) -> Result<Self> {
        let mut walk = Self { start: InodeId::ROOT, left: Vec::new(), symlinks: 0 };
        walk.push(path)?;
        Ok(walk)
    }

    fn push(&mut self, path: &[u8]) -> Result<()> {
        if path.len() > SYMLINK_MAX {
            let message = format!("a path of {} bytes; {SYMLINK_MAX} are possible", path.len());
            return Err(ClientError::new(ErrorKind::NameTooLong, message));
        }
        let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        self.left.extend(names.rev().map(Bytes::copy_from_slice));
        Ok(())
    }

    /// Goes on at a symlink that lies in `parent` and ends the way.
    fn follow_from(&mut self, parent: InodeId, target: &[u8]) -> Result<()> {
        self.start = if target.starts_with(b"/") { InodeId::ROOT } else { parent };
        self.follow(target)
    }

    fn follow(&mut self, target: &[u8]) -> Result<()> {
        self.symlinks += 1;
        if self.symlinks > SYMLINKS_MAX {
            return Err(ClientError::new(ErrorKind::SymlinkLoop, "too many symbolic links"));
        }
        self.push(target)
    }
}

impl Files {
    /// The inode that a path names.
    pub(super) async fn resolve(&self, path: &[u8], last: Last) -> Result<Attr> {
        // A slash at the end asks for a directory, so a symlink there is followed.
        let last = if path.ends_with(b"/") { Last::Follow } else { last };
        let mut walk = Walk::new(path)?;
        loop {
            let (parent, name) = match self.walk(&mut walk).await? {
                Place::Itself(attr) => return Ok(*attr),
                Place::Entry { parent, name } => (parent, name),
            };
            let attr = self.coordinator().lookup(parent, &name, &self.caller).await?;
            match &attr.symlink_target {
                Some(target) if last == Last::Follow => walk.follow_from(parent, target)?,
                _ if path.ends_with(b"/") && attr.kind != Kind::Directory => {
                    return Err(ClientError::new(ErrorKind::NotDirectory, "it is not a directory"));
                }
                _ => return Ok(attr),
            }
        }
    }

    /// The directory and name that a path ends in; a symlink at the end is not followed.
    pub(super) async fn place(&self, path: &[u8]) -> Result<Place> {
        self.walk(&mut Walk::new(path)?).await
    }

    /// As [`Self::place`], but follows a symlink at the end: open(2) with O_CREAT makes what a dangling
    /// symlink points to.
    pub(super) async fn place_followed(&self, path: &[u8]) -> Result<Place> {
        let mut walk = Walk::new(path)?;
        loop {
            let (parent, name) = match self.walk(&mut walk).await? {
                Place::Entry { parent, name } => (parent, name),
                directory => return Ok(directory),
            };
            let target = match self.coordinator().lookup(parent, &name, &self.caller).await {
                Ok(attr) => attr.symlink_target,
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            match target {
                None => return Ok(Place::Entry { parent, name }),
                Some(target) => walk.follow_from(parent, &target)?,
            }
        }
    }

    /// Walks until one name is left.
    async fn walk(&self, walk: &mut Walk) -> Result<Place> {
        let mut here = self.coordinator().get_attr(walk.start).await?;
        while let Some(name) = walk.left.pop() {
            if here.kind != Kind::Directory {
                return Err(ClientError::new(
                    ErrorKind::NotDirectory,
                    "a part of the path is not a directory",
                ));
            }
            match name.as_ref() {
                b"." => continue,
                b".." => {
                    here = self.coordinator().parent_of(here.inode, &self.caller).await?;
                    continue;
                }
                _ => {}
            }
            let name = FileName::new(name)?;
            if walk.left.is_empty() {
                return Ok(Place::Entry { parent: here.inode, name });
            }
            let next = self.coordinator().lookup(here.inode, &name, &self.caller).await?;
            match &next.symlink_target {
                None => here = next,
                Some(target) => {
                    walk.follow(target)?;
                    if target.starts_with(b"/") {
                        here = self.coordinator().get_attr(InodeId::ROOT).await?;
                    }
                }
            }
        }
        Ok(Place::Itself(Box::new(here)))
    }
}
