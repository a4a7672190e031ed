//! What becomes of permission bits: rules of the man pages that the coordinator follows when it changes an inode,
//! and a mount that does the same ahead of it.

/// S_ISUID.
pub const SET_USER_ID: u32 = 0o4000;
/// S_ISGID.
pub const SET_GROUP_ID: u32 = 0o2000;
/// S_ISVTX.
pub const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

/// The mode after a change of content or ownership: set-user-ID falls away, and set-group-ID where
/// the group may execute (without that it once meant mandatory locking).
pub fn without_privileges(mode: u32) -> u32 {
    let mode = mode & !SET_USER_ID;
    if mode & GROUP_EXECUTE != 0 { mode & !SET_GROUP_ID } else { mode }
}

/// The mode of a new file. `trusted`: its creator is root, or in the group that the file gets; nobody else makes a
/// program that runs with that group (open(2)).
pub fn of_new_file(mode: u32, trusted: bool) -> u32 {
    let runs_as_group = mode & (SET_GROUP_ID | GROUP_EXECUTE) == SET_GROUP_ID | GROUP_EXECUTE;
    if runs_as_group && !trusted { mode & !SET_GROUP_ID } else { mode }
}

/// The mode of a new directory: one that gives its group to what is made in it passes that on (mkdir(2)).
pub fn of_new_directory(mode: u32, parent: u32) -> u32 {
    mode | parent & SET_GROUP_ID
}

/// The mode that chmod(2) sets: only root and members of the group (`trusted`) give a file the group's identity.
pub fn changed(mode: u32, trusted: bool) -> u32 {
    if trusted { mode } else { mode & !SET_GROUP_ID }
}
