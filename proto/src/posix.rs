//! Who may do what with an inode: the rules of path_resolution(7), capabilities(7), chmod(2), chown(2), unlink(2) and
//! mknod(2), as pure functions. The coordinator judges by them when it changes an inode, and a mount ahead of it.

use crate::mode::STICKY;
use crate::{ErrorKind, InodeId, WireError, v1};

/// Read a file, list a directory.
pub const MAY_READ: u32 = 4;
/// Write a file, change a directory.
pub const MAY_WRITE: u32 = 2;
/// Run a file, search a directory.
pub const MAY_EXECUTE: u32 = 1;

/// Supplementary groups of a caller (NGROUPS_MAX).
pub const GROUPS_MAX: usize = 65_536;
/// Ranges of ids in a user namespace, for users and for groups each (user_namespaces(7)).
pub const ID_RANGES_MAX: usize = 340;

/// The capabilities(7) that matter to a file system, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// Gives a file to anybody.
    Chown = 0,
    /// Passes over permission bits.
    DacOverride = 1,
    /// Passes over the permission bits for reading files, and for listing and searching directories.
    DacReadSearch = 2,
    /// Does what only the owner may.
    Fowner = 3,
    /// Keeps set-user-ID and set-group-ID where they would be dropped.
    Fsetid = 4,
    /// Changes `trusted.*` and `security.*`, sees `trusted.*`.
    SysAdmin = 21,
    /// Makes devices.
    Mknod = 27,
    /// Changes `security.capability`.
    Setfcap = 31,
}

impl Capability {
    const ALL: [Self; 8] = [
        Self::Chown,
        Self::DacOverride,
        Self::DacReadSearch,
        Self::Fowner,
        Self::Fsetid,
        Self::SysAdmin,
        Self::Mknod,
        Self::Setfcap,
    ];

    fn bit(self) -> u64 {
        1 << self as u32
    }

    fn all() -> u64 {
        Self::ALL.iter().fold(0, |bits, capability| bits | capability.bit())
    }
}

/// Users or groups: ranges of ids, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ids {
    /// (first, count); empty: all.
    ranges: Vec<(u32, u32)>,
}

impl Ids {
    /// Every id.
    pub fn all() -> Self {
        Self::default()
    }

    /// The ids of these ranges, each its first id and how many there are. `None` when there is not a single one.
    pub fn of(ranges: impl IntoIterator<Item = (u32, u32)>) -> Option<Self> {
        let ranges: Vec<_> = ranges.into_iter().filter(|(_, count)| *count > 0).collect();
        (!ranges.is_empty()).then_some(Self { ranges })
    }

    fn contains(&self, id: u32) -> bool {
        let within = |&(first, count): &(u32, u32)| id.checked_sub(first).is_some_and(|at| at < count);
        self.ranges.is_empty() || self.ranges.iter().any(within)
    }
}

/// The capabilities of a caller, and over whose files they reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Privileges {
    capabilities: u64,
    users: Ids,
    groups: Ids,
}

impl Privileges {
    /// Those of `capabilities`, numbered as in capabilities(7), that matter to a file system, over the files of
    /// everybody.
    pub fn new(capabilities: u64) -> Self {
        Self { capabilities: capabilities & Capability::all(), ..Self::default() }
    }

    /// The same over the files of these owners and groups alone: those that exist in the caller's user namespace.
    pub fn within(capabilities: u64, users: Ids, groups: Ids) -> Self {
        Self { users, groups, ..Self::new(capabilities) }
    }

    /// Whether there are none.
    pub fn are_none(&self) -> bool {
        self.capabilities == 0
    }

    fn reach_all(&self) -> bool {
        self.users.ranges.is_empty() && self.groups.ranges.is_empty()
    }
}

/// An inode, as far as the rules look at it.
pub trait Guarded {
    /// Which one.
    fn id(&self) -> InodeId;
    /// Its owner.
    fn uid(&self) -> u32;
    /// Its group.
    fn gid(&self) -> u32;
    /// Permission bits, 0 to 07777.
    fn mode(&self) -> u32;
    /// Whether it is a directory.
    fn is_directory(&self) -> bool;
}

/// Why a caller may not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The permission bits forbid it (EACCES).
    #[error("uid {uid} has no permission on inode {inode}")]
    Bits {
        /// Who.
        uid: u32,
        /// On what.
        inode: InodeId,
    },
    /// It is the owner's right (EPERM).
    #[error("uid {uid} does not own inode {inode}")]
    NotOwner {
        /// Who.
        uid: u32,
        /// Of what.
        inode: InodeId,
    },
    /// The directory is sticky and neither it nor the entry is the caller's (EPERM).
    #[error("directory {directory} is sticky and inode {inode} belongs to others")]
    Sticky {
        /// Where.
        directory: InodeId,
        /// What.
        inode: InodeId,
    },
    /// It takes a capability (EPERM).
    #[error("uid {uid} lacks the capability {capability:?}")]
    Lacks {
        /// Who.
        uid: u32,
        /// Which.
        capability: Capability,
    },
}

impl Denied {
    /// What to act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bits { .. } => ErrorKind::AccessDenied,
            Self::NotOwner { .. } | Self::Sticky { .. } | Self::Lacks { .. } => ErrorKind::NotPermitted,
        }
    }
}

/// On whose behalf something is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// User; 0 has every capability over everything.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// What another user than root may do beyond its files.
    pub privileges: Privileges,
}

impl Caller {
    /// The super-user.
    pub fn root() -> Self {
        Self::default()
    }

    /// A user without privileges.
    pub fn user(uid: u32, gid: u32, groups: Vec<u32>) -> Self {
        Self { uid, gid, groups, privileges: Privileges::default() }
    }

    /// Whether it is the group of the caller, or one of them.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the caller has a capability over everything, and not only in a user namespace of its own.
    pub fn has(&self, capability: Capability) -> bool {
        let holds = self.privileges.capabilities & capability.bit() != 0;
        self.uid == 0 || holds && self.privileges.reach_all()
    }

    /// Whether the caller has a capability over an inode: its owner and its group exist where the capability counts.
    pub fn has_over(&self, capability: Capability, inode: &impl Guarded) -> bool {
        let privileges = &self.privileges;
        let reaches = || privileges.users.contains(inode.uid()) && privileges.groups.contains(inode.gid());
        self.uid == 0 || privileges.capabilities & capability.bit() != 0 && reaches()
    }

    /// Whether the caller may do all of `wanted` ([`MAY_READ`], [`MAY_WRITE`], [`MAY_EXECUTE`]): one class of bits
    /// decides, the first that fits; a capability may pass over it.
    pub fn may(&self, inode: &impl Guarded, wanted: u32) -> bool {
        let shift = match () {
            () if self.uid == inode.uid() => 6,
            () if self.is_in_group(inode.gid()) => 3,
            () => 0,
        };
        (inode.mode() >> shift) & wanted == wanted || self.may_override(inode, wanted)
    }

    fn may_override(&self, inode: &impl Guarded, wanted: u32) -> bool {
        let looks_only = match inode.is_directory() {
            true => wanted & MAY_WRITE == 0,
            false => wanted == MAY_READ,
        };
        // Nobody executes a file that nobody may.
        let runs = inode.is_directory() || inode.mode() & 0o111 != 0;
        looks_only && self.has_over(Capability::DacReadSearch, inode)
            || (wanted & MAY_EXECUTE == 0 || runs) && self.has_over(Capability::DacOverride, inode)
    }

    /// [`Denied::Bits`] unless [`Self::may`].
    pub fn need(&self, inode: &impl Guarded, wanted: u32) -> Result<(), Denied> {
        if self.may(inode, wanted) {
            return Ok(());
        }
        Err(Denied::Bits { uid: self.uid, inode: inode.id() })
    }

    /// Whether the caller owns the inode, or may do what its owner may.
    pub fn owns(&self, inode: &impl Guarded) -> bool {
        self.uid == inode.uid() || self.has_over(Capability::Fowner, inode)
    }

    /// [`Denied::NotOwner`] unless [`Self::owns`].
    pub fn need_owner(&self, inode: &impl Guarded) -> Result<(), Denied> {
        if self.owns(inode) {
            return Ok(());
        }
        Err(Denied::NotOwner { uid: self.uid, inode: inode.id() })
    }

    /// The entry may be taken out of the directory, as far as S_ISVTX goes (unlink(2)).
    pub fn need_unstuck(&self, directory: &impl Guarded, child: &impl Guarded) -> Result<(), Denied> {
        let free = directory.mode() & STICKY == 0 || self.uid == directory.uid() || self.owns(child);
        if free {
            return Ok(());
        }
        Err(Denied::Sticky { directory: directory.id(), inode: child.id() })
    }

    /// chown(2): who owns a file gives it to groups of his own; all else takes a capability.
    pub fn need_to_give(
        &self,
        inode: &impl Guarded,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Denied> {
        let owns = self.uid == inode.uid();
        let uid_fits = uid.is_none_or(|uid| owns && uid == inode.uid());
        let gid_fits = gid.is_none_or(|gid| owns && (gid == inode.gid() || self.is_in_group(gid)));
        if uid_fits && gid_fits || self.has_over(Capability::Chown, inode) {
            return Ok(());
        }
        match owns {
            true => Err(Denied::Lacks { uid: self.uid, capability: Capability::Chown }),
            false => Err(Denied::NotOwner { uid: self.uid, inode: inode.id() }),
        }
    }

    /// Whether the caller may let a file run as this group. `inode`: the file, or the directory that it is made in.
    pub fn is_trusted_with(&self, gid: u32, inode: &impl Guarded) -> bool {
        self.is_in_group(gid) || self.has_over(Capability::Fsetid, inode)
    }

    /// [`Denied::Lacks`] unless [`Self::has`].
    pub fn need_capability(&self, capability: Capability) -> Result<(), Denied> {
        if self.has(capability) {
            return Ok(());
        }
        Err(Denied::Lacks { uid: self.uid, capability })
    }

    /// [`Denied::Lacks`] unless [`Self::has_over`].
    pub fn need_capability_over(&self, capability: Capability, inode: &impl Guarded) -> Result<(), Denied> {
        if self.has_over(capability, inode) {
            return Ok(());
        }
        Err(Denied::Lacks { uid: self.uid, capability })
    }

    /// As it travels.
    pub fn to_wire(&self) -> v1::Credentials {
        let wire =
            |ids: &Ids| ids.ranges.iter().map(|&(first, count)| v1::IdRange { first, count }).collect();
        v1::Credentials {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            capabilities: self.privileges.capabilities,
            users_reached: wire(&self.privileges.users),
            groups_reached: wire(&self.privileges.groups),
        }
    }

    /// Checks what came over the wire. `InvalidArgument`: longer lists than a kernel keeps.
    pub fn from_wire(credentials: v1::Credentials) -> Result<Self, WireError> {
        let v1::Credentials { uid, gid, groups, capabilities, users_reached, groups_reached } = credentials;
        check_count("supplementary groups", groups.len(), GROUPS_MAX)?;
        let privileges = Privileges::within(capabilities, ids(users_reached)?, ids(groups_reached)?);
        Ok(Self { uid, gid, groups, privileges })
    }
}

fn ids(ranges: Vec<v1::IdRange>) -> Result<Ids, WireError> {
    if ranges.is_empty() {
        return Ok(Ids::all());
    }
    check_count("ranges of ids", ranges.len(), ID_RANGES_MAX)?;
    let ids = Ids::of(ranges.into_iter().map(|range| (range.first, range.count)));
    ids.ok_or_else(|| WireError::new(ErrorKind::InvalidArgument, "ranges of ids without a single id"))
}

fn check_count(what: &str, count: usize, max: usize) -> Result<(), WireError> {
    if count <= max {
        return Ok(());
    }
    Err(WireError::new(ErrorKind::InvalidArgument, format!("{count} {what}; {max} are possible")))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Inode(u32, u32, u32, bool);

    impl Guarded for Inode {
        fn id(&self) -> InodeId {
            InodeId::ROOT
        }
        fn uid(&self) -> u32 {
            self.0
        }
        fn gid(&self) -> u32 {
            self.1
        }
        fn mode(&self) -> u32 {
            self.2
        }
        fn is_directory(&self) -> bool {
            self.3
        }
    }

    fn with(capability: Capability) -> Caller {
        Caller { privileges: Privileges::new(capability.bit()), ..Caller::user(7, 7, vec![]) }
    }

    #[test]
    fn one_class_of_bits_decides_and_capabilities_pass_over_it() {
        let file = |mode| Inode(1, 1, mode, false);
        let directory = |mode| Inode(1, 1, mode, true);
        let nobody = Caller::user(7, 7, vec![]);
        assert!(nobody.may(&file(0o004), MAY_READ) && !nobody.may(&file(0o770), MAY_READ));
        assert!(!Caller::user(1, 7, vec![]).may(&file(0o077), MAY_READ), "the owner's bits alone");
        assert!(!Caller::user(7, 7, vec![1]).may(&file(0o707), MAY_READ), "the group's bits alone");
        let overrides = with(Capability::DacOverride);
        assert!(overrides.may(&file(0), MAY_READ | MAY_WRITE) && overrides.may(&directory(0), 7));
        assert!(!overrides.may(&file(0o600), MAY_EXECUTE) && overrides.may(&file(0o100), MAY_EXECUTE));
        let reads = with(Capability::DacReadSearch);
        assert!(reads.may(&file(0), MAY_READ) && reads.may(&directory(0), MAY_READ | MAY_EXECUTE));
        assert!(!reads.may(&file(0o600), MAY_WRITE) && !reads.may(&directory(0), MAY_WRITE));
        assert!(!reads.may(&file(0o111), MAY_READ | MAY_EXECUTE));
        assert!(
            Caller::root().may(&file(0), MAY_READ | MAY_WRITE) && !Caller::root().may(&file(0), MAY_EXECUTE)
        );
    }

    #[test]
    fn capabilities_of_a_namespace_reach_the_ids_that_exist_there() {
        let ids = |first| Ids::of([(first, 65_536)]).unwrap();
        let privileges = Privileges::within(u64::MAX, ids(100_000), ids(200_000));
        let root = Caller { privileges, ..Caller::user(100_000, 200_000, vec![]) };
        assert!(root.may(&Inode(100_500, 200_500, 0, false), MAY_WRITE));
        for (uid, gid) in [(99_999, 200_000), (165_536, 200_000), (100_000, 199_999), (0, 0)] {
            assert!(!root.may(&Inode(uid, gid, 0, false), MAY_WRITE), "{uid}:{gid}");
        }
        assert!(!root.has(Capability::Mknod), "devices take it everywhere");
        assert_eq!(Caller::from_wire(root.to_wire()), Ok(root));
    }

    #[test]
    fn owners_give_files_to_their_groups_and_nobody_else_does() {
        let file = Inode(7, 7, 0o644, false);
        let owner = Caller::user(7, 7, vec![50]);
        assert!(owner.need_to_give(&file, Some(7), Some(50)).is_ok());
        assert!(owner.need_to_give(&file, Some(8), None).is_err());
        assert!(owner.need_to_give(&file, None, Some(51)).is_err());
        let other = Caller::user(8, 8, vec![7]);
        assert!(
            other.need_to_give(&file, Some(7), None).is_err()
                && other.need_to_give(&file, None, Some(7)).is_err()
        );
        assert!(with(Capability::Fowner).need_to_give(&Inode(1, 1, 0, false), Some(1), None).is_err());
        assert!(with(Capability::Chown).need_to_give(&Inode(1, 1, 0, false), Some(3), Some(4)).is_ok());
    }

    #[test]
    fn a_sticky_directory_keeps_what_belongs_to_others() {
        let (sticky, child) = (Inode(1, 1, 0o1777, true), Inode(2, 2, 0o644, false));
        for (caller, may) in [
            (Caller::user(1, 9, vec![]), true),
            (Caller::user(2, 9, vec![]), true),
            (Caller::user(3, 9, vec![]), false),
            (with(Capability::Fowner), true),
            (with(Capability::DacOverride), false),
            (Caller::root(), true),
        ] {
            assert_eq!(caller.need_unstuck(&sticky, &child).is_ok(), may, "{caller:?}");
        }
    }

    #[test]
    fn what_no_kernel_sends_is_refused() {
        let many = |count: usize| vec![v1::IdRange { first: 0, count: 1 }; count];
        let wire = |users_reached| v1::Credentials { users_reached, ..v1::Credentials::default() };
        assert!(Caller::from_wire(wire(many(ID_RANGES_MAX))).is_ok());
        for bad in [many(ID_RANGES_MAX + 1), vec![v1::IdRange { first: 5, count: 0 }]] {
            assert_eq!(Caller::from_wire(wire(bad)).unwrap_err().kind, ErrorKind::InvalidArgument);
        }
        let groups = vec![0; GROUPS_MAX + 1];
        assert!(Caller::from_wire(v1::Credentials { groups, ..v1::Credentials::default() }).is_err());
    }
}
