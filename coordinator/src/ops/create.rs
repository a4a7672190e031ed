//! open(2) with O_CREAT, mkdir(2), symlink(2), mknod(2).

use bytes::Bytes;
use cairn_proto::{ErrorKind, FileName, InodeId, mode};

use super::access::{Caller, Capability, EXECUTE, WRITE};
use super::{Applied, OpenBy, Target, directory};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Count, Counter, FIRST_COOKIE, Inode, Key, Kind};

/// A new inode and its name.
#[derive(Debug, Clone)]
pub(crate) struct Create {
    pub(crate) parent: InodeId,
    pub(crate) name: FileName,
    pub(crate) new: NewInode,
    /// Permission bits, umask applied.
    pub(crate) mode: u32,
    /// The id to take, one of those that were reserved.
    pub(crate) id: Option<InodeId>,
    /// Directories only: with a write lease on the new one, if there is room for one.
    pub(crate) lease: bool,
}

/// What is to be made.
#[derive(Debug, Clone)]
pub(crate) enum NewInode {
    File {
        /// Otherwise a file that is there is taken as it is.
        exclusive: bool,
        open: Option<OpenBy>,
    },
    Directory,
    Symlink(Target),
    Fifo,
    Socket,
    CharDevice {
        rdev: u32,
    },
    BlockDevice {
        rdev: u32,
    },
}

impl NewInode {
    /// mknod(2): devices, but for the one that stands for a name taken away (a whiteout of overlay file systems).
    fn is_privileged(&self) -> bool {
        match self {
            Self::CharDevice { rdev } => *rdev != 0,
            Self::BlockDevice { .. } => true,
            Self::File { .. } | Self::Directory | Self::Symlink(_) | Self::Fifo | Self::Socket => false,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::File { .. } => Kind::File,
            Self::Directory => Kind::Directory,
            Self::Symlink(_) => Kind::Symlink,
            Self::Fifo => Kind::Fifo,
            Self::Socket => Kind::Socket,
            Self::CharDevice { .. } => Kind::CharDevice,
            Self::BlockDevice { .. } => Kind::BlockDevice,
        }
    }
}

pub(super) fn create(tx: &mut Tx, op: &Create, caller: &Caller) -> Result<Applied, OpError> {
    let mut parent = tx.directory(op.parent)?;
    caller.need(&parent, EXECUTE)?;
    if let Some(entry) = directory::find_entry(tx, op.parent, &op.name)? {
        let inode = directory::entry_inode(tx, &entry)?;
        return existing(tx, op, parent, inode);
    }
    caller.need(&parent, WRITE | EXECUTE)?;
    if op.new.is_privileged() {
        caller.need_capability(Capability::Mknod)?;
    }
    let inode = new_inode(tx, op, &parent, caller)?;
    directory::add_entry(tx, &mut parent, &op.name, &inode)?;
    tx.count(Count::Inodes, 1)?;
    tx.put(inode.clone());
    tx.put(parent.clone());
    register(tx, op, &inode)?;
    if let NewInode::File { open: Some(open), .. } = op.new {
        tx.opened.push((open.session, open.of(inode.id)));
    }
    Ok(Applied { inode: Some(inode), parent: Some(parent), ..Applied::default() })
}

/// The name is taken: fine for O_CREAT without O_EXCL, unless it is a directory.
fn existing(tx: &mut Tx, op: &Create, parent: Inode, inode: Inode) -> Result<Applied, OpError> {
    if !matches!(op.new, NewInode::File { exclusive: false, .. }) {
        return Err(directory::taken(op.parent, &op.name));
    }
    if inode.is_directory() {
        return Err(OpError::new(ErrorKind::IsDirectory, format!("{} is a directory", op.name)));
    }
    register(tx, op, &inode)?;
    Ok(Applied { inode: Some(inode), parent: Some(parent), ..Applied::default() })
}

pub(super) fn register(tx: &mut Tx, op: &Create, inode: &Inode) -> Result<(), OpError> {
    match op.new {
        NewInode::File { open: Some(open), .. } => {
            tx.context.sessions.register(open.session, open.of(inode.id))
        }
        _ => Ok(()),
    }
}

/// `InvalidArgument`: the id was never given out, or is in use.
fn reserved(tx: &mut Tx, id: InodeId) -> Result<InodeId, OpError> {
    let next = tx.find::<Counter>(&Key::Counter(Count::NextInode))?.map_or(1, |row| row.value);
    if id.get() >= next || tx.get(&Key::Inode(id))?.is_some() {
        return Err(OpError::invalid(format!("inode id {id} is not reserved, or in use")));
    }
    Ok(id)
}

fn new_inode(tx: &mut Tx, op: &Create, parent: &Inode, caller: &Caller) -> Result<Inode, OpError> {
    let id = match op.id {
        Some(id) => reserved(tx, id)?,
        None => InodeId::new(tx.take_ids(Count::NextInode, 1)?)?,
    };
    let now_ns = tx.now_ns();
    let kind = op.new.kind();
    // mkdir(2): a set-group-ID directory gives its group to what is made in it, and the bit itself
    // to directories.
    let inherits = parent.mode & mode::SET_GROUP_ID != 0;
    let gid = if inherits { parent.gid } else { caller.gid };
    let mode = match kind {
        Kind::Symlink => 0o777,
        Kind::Directory => mode::of_new_directory(op.mode, parent.mode),
        _ => mode::of_new_file(op.mode, caller.is_trusted_with(gid, parent)),
    };
    let (rdev, symlink_target) = match &op.new {
        NewInode::CharDevice { rdev } | NewInode::BlockDevice { rdev } => (*rdev, Bytes::new()),
        NewInode::Symlink(target) => (0, target.to_bytes()),
        NewInode::File { .. } | NewInode::Directory | NewInode::Fifo | NewInode::Socket => (0, Bytes::new()),
    };
    Ok(Inode {
        id,
        kind,
        mode,
        uid: caller.uid,
        gid,
        rdev,
        nlink: if kind == Kind::Directory { 2 } else { 1 },
        size: symlink_target.len() as u64,
        allocated: 0,
        atime_ns: now_ns,
        mtime_ns: now_ns,
        ctime_ns: now_ns,
        btime_ns: now_ns,
        version: 1,
        parent: if kind == Kind::Directory { parent.id.get() } else { 0 },
        symlink_target,
        next_cookie: FIRST_COOKIE,
        xattrs: 0,
    })
}
