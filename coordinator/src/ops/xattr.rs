//! setxattr(2) and removexattr(2), with the rules of xattr(7).

use bytes::Bytes;
use cairn_proto::limits::{NAME_MAX, XATTR_LIST_MAX, XATTR_SIZE_MAX};
use cairn_proto::mode::STICKY;
use cairn_proto::xattr::Namespace;
use cairn_proto::{ErrorKind, InodeId};

use super::Applied;
use super::access::{Caller, Capability, WRITE};
use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Inode, Key, Kind, Scan, Xattr};

/// Values of one inode together, bytes; more would not fit one answer.
const VALUES_MAX: usize = 1 << 20;
/// The only attribute that the kernel removes by itself.
const CAPABILITY: &[u8] = b"security.capability";

/// How much the attributes of an inode take, as of one version of it: whoever sets one after the other does not read
/// all of them each time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    inode: InodeId,
    version: u64,
    /// Names with a NUL each, and values, bytes.
    names: usize,
    values: usize,
}

/// A value for a name.
#[derive(Debug, Clone)]
pub(crate) struct SetXattr {
    pub(crate) inode: InodeId,
    pub(crate) name: Bytes,
    pub(crate) value: Bytes,
    /// `Exists` when the name is there.
    pub(crate) create: bool,
    /// `NoData` when it is not.
    pub(crate) replace: bool,
}

/// Scan for all attributes of an inode.
pub(super) fn all_of(inode: InodeId) -> Scan {
    let last = Bytes::from_static(&[0xff; NAME_MAX + 1]);
    Scan::between(Key::Xattr(inode, Bytes::new()), Key::Xattr(inode, last))
}

pub(super) fn set(tx: &mut Tx, op: &SetXattr, caller: &Caller) -> Result<Applied, OpError> {
    let mut inode = tx.inode(op.inode)?;
    may_change(&inode, &op.name, caller)?;
    if op.value.len() > XATTR_SIZE_MAX {
        let message = format!("{} bytes; {XATTR_SIZE_MAX} are possible", op.value.len());
        return Err(OpError::new(ErrorKind::TooBig, message));
    }
    let key = Key::Xattr(inode.id, op.name.clone());
    let known = tx.find::<Xattr>(&key)?;
    match (&known, op.create, op.replace) {
        (Some(_), true, _) => return Err(OpError::new(ErrorKind::Exists, "the attribute is there already")),
        (None, _, true) => return Err(no_data()),
        _ => {}
    }
    let mut totals = totals(tx, &inode)?;
    totals.drop(known.as_ref());
    totals.names += op.name.len() + 1;
    totals.values += op.value.len();
    if totals.names > XATTR_LIST_MAX || totals.values > VALUES_MAX {
        let message = format!("inode {} has no room for more attributes", inode.id);
        return Err(OpError::new(ErrorKind::NoSpace, message));
    }
    if known.is_none() {
        inode.xattrs += 1;
    }
    tx.put(Xattr { inode: inode.id, name: op.name.clone(), value: op.value.clone() });
    inode.changed(tx.now_ns());
    tx.xattr_totals = Some(Totals { version: inode.version, ..totals });
    tx.put(inode.clone());
    Ok(Applied::inode(inode))
}

pub(super) fn remove(tx: &mut Tx, id: InodeId, name: &Bytes, caller: &Caller) -> Result<Applied, OpError> {
    let mut inode = tx.inode(id)?;
    // It goes with a change of content or owner. The kernel removes it then, on behalf of whoever makes the change and
    // once it has allowed that: chown(2) that changes nothing is allowed to everybody.
    if name != CAPABILITY {
        may_change(&inode, name, caller)?;
    }
    let key = Key::Xattr(id, name.clone());
    let known = tx.find::<Xattr>(&key)?;
    if known.is_none() {
        return Err(no_data());
    }
    let mut totals = tx.xattr_totals.filter(|totals| totals.is_of(&inode));
    tx.delete(key);
    inode.xattrs = inode.xattrs.saturating_sub(1);
    inode.changed(tx.now_ns());
    if let Some(totals) = &mut totals {
        totals.drop(known.as_ref());
        totals.version = inode.version;
    }
    tx.xattr_totals = totals;
    tx.put(inode.clone());
    Ok(Applied::inode(inode))
}

/// What a change of content or owner does. The caller puts the inode.
pub(super) fn drop_capability(tx: &mut Tx, inode: &mut Inode) -> Result<(), OpError> {
    let key = Key::Xattr(inode.id, Bytes::from_static(CAPABILITY));
    if inode.xattrs > 0 && tx.get(&key)?.is_some() {
        tx.delete(key);
        tx.xattr_totals = None;
        inode.xattrs -= 1;
    }
    Ok(())
}

fn no_data() -> OpError {
    OpError::new(ErrorKind::NoData, "no such attribute")
}

fn may_change(inode: &Inode, name: &[u8], caller: &Caller) -> Result<(), OpError> {
    let denied = |message: &str| Err(OpError::new(ErrorKind::NotPermitted, message));
    match namespace_of(name)? {
        Namespace::User if !matches!(inode.kind, Kind::File | Kind::Directory) => {
            denied("only files and directories have user attributes")
        }
        Namespace::User if inode.is_directory() && inode.mode & STICKY != 0 && !caller.owns(inode) => {
            denied("the directory is sticky and belongs to others")
        }
        Namespace::User => Ok(caller.need(inode, WRITE)?),
        Namespace::Security if name == CAPABILITY => {
            Ok(caller.need_capability_over(Capability::Setfcap, inode)?)
        }
        Namespace::Trusted | Namespace::Security => Ok(caller.need_capability(Capability::SysAdmin)?),
    }
}

fn namespace_of(name: &[u8]) -> Result<Namespace, OpError> {
    let refused =
        |kind| OpError::new(kind, "a name is 255 bytes at most: user., trusted. or security., and a word");
    Namespace::of(name).map_err(refused)
}

impl Totals {
    fn is_of(&self, inode: &Inode) -> bool {
        (self.inode, self.version) == (inode.id, inode.version)
    }

    fn drop(&mut self, xattr: Option<&Xattr>) {
        let Some(xattr) = xattr else { return };
        let (names, values) = (xattr.name.len() + 1, xattr.value.len());
        assert!(self.names >= names && self.values >= values, "{self:?} without {names} and {values} bytes");
        self.names -= names;
        self.values -= values;
    }
}

/// What the attributes of an inode take now.
fn totals(tx: &mut Tx, inode: &Inode) -> Result<Totals, OpError> {
    if let Some(totals) = tx.xattr_totals.filter(|totals| totals.is_of(inode)) {
        return Ok(totals);
    }
    let all: Vec<Xattr> = match inode.xattrs {
        0 => Vec::new(),
        _ => tx.list(&all_of(inode.id))?,
    };
    let names = all.iter().map(|xattr| xattr.name.len() + 1).sum();
    let values = all.iter().map(|xattr| xattr.value.len()).sum();
    Ok(Totals { inode: inode.id, version: inode.version, names, values })
}
