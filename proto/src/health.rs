//! The named conditions that `cairn status` reports: what each means, and what to do about it.
//!
//! One table for all: the coordinator names a condition and gives its details, commands explain it also
//! while nothing can be reached, and the table in `docs/operations.md` is compared with it by a test.

macro_rules! conditions {
    ($($name:ident = $code:literal, $error:literal, $meaning:literal, $remedy:literal;)*) => {
        /// Something that is not well.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)] // each is described by its meaning
        pub enum Condition { $($name),* }

        impl Condition {
            /// All of them, errors and warnings.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name, such as `NODE_DOWN`.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// Whether the cluster can not do its work, or data is in danger; else it is a warning.
            pub fn is_error(self) -> bool {
                match self { $(Self::$name => $error),* }
            }

            /// What has happened.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }

            /// What to do next.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy),* }
            }
        }
    };
}

conditions! {
    StoreFailed = "STORE_FAILED", true,
        "The disk of the metadata store has failed; nothing can be changed.",
        "Look at the coordinator's log and its disk, make room or replace it, then restart the coordinator. A store that is damaged is restored with `cairn coordinator restore`.";
    NoWrites = "NO_WRITES", true,
        "Fewer datanodes are up than must store a chunk before it is acknowledged (`min_replicas`).",
        "Start more datanodes; writers wait and go on by themselves.";
    NoSpace = "NO_SPACE", true,
        "Fewer datanodes have room for another chunk than must store it (`min_replicas`): writes fail with ENOSPC.",
        "Add disks or datanodes, or delete files; `cairn gc run` gives the room of deleted files back at once. `cairn node list` shows which are full.";
    ChunksLost = "CHUNKS_LOST", true,
        "Of some chunks no copy is known to be sound. Files that use them can not be read there.",
        "Bring back datanodes and disks that are away: their copies are used. `cairn fsck` names the files.";
    MetadataRolledBack = "METADATA_ROLLED_BACK", true,
        "The metadata is older than what datanodes have seen, as after a restored backup. Nothing is deleted, so that chunks which newer files used are still there.",
        "Run `cairn fsck`. When the files are as you want them, `cairn gc resume --accept-rollback` lets deletion go on.";
    DiskFault = "DISK_FAULT", true,
        "A disk of a datanode failed a read, a write or a sync. It takes no more chunks; what can not be read there is made again elsewhere.",
        "Replace the disk, then start the datanode with an empty directory in its place that holds an empty file `NEW_DISK`; it is filled by itself.";
    GcPaused = "GC_PAUSED", false,
        "An operator has stopped the deletion of chunks; the room of deleted files does not come back.",
        "`cairn gc resume` lets it go on.";
    LogBehind = "LOG_BEHIND", false,
        "The second place of the metadata log (`log_ship`) lacks the last changes. With `log_ack = \"shipped\"` changes wait for it, and this is an error.",
        "Bring the place back: what is missing is sent by itself. To go on without it, set `log_ack = \"async\"` and restart the coordinator.";
    BackupFailed = "BACKUP_FAILED", false,
        "The last backup of the metadata failed.",
        "Look at the place (`log_ship`) and at the coordinator's log; it is tried again by itself.";
    NodeLost = "NODE_LOST", false,
        "A datanode has been silent for so long (`lost_after`) that its copies are made again elsewhere.",
        "Start it again with the same data directory: what is still good there is used. If it is gone for good, `cairn node remove`.";
    NodeDown = "NODE_DOWN", false,
        "A datanode is silent (`down_after`) or was stopped. Its chunks are read from other copies.",
        "Start it again with the same data directory; what it missed is copied to it.";
    NodeSuspect = "NODE_SUSPECT", false,
        "A datanode has been silent for a moment (`suspect_after`), or its connection broke. No new chunks are placed there.",
        "If it does not come back within seconds, look at its process and network.";
    NodeDraining = "NODE_DRAINING", false,
        "A datanode is being emptied: its places in replica sets move to others.",
        "Wait until it has no place left, then `cairn node remove`; or let it serve again with `cairn node undrain`.";
    NodeNearFull = "NODE_NEAR_FULL", false,
        "A datanode has less than 10 % of its room left.",
        "Add disks or datanodes: chunks move to those with room. Deleting files frees room after `garbage_grace` and `trash_time`.";
    DiskFull = "DISK_FULL", false,
        "A disk of a datanode has no room for more chunks. They go to its other disks.",
        "Look at what else fills it. Add disks or datanodes, or delete files.";
    DiskSlow = "DISK_SLOW", false,
        "A disk answers far slower than others, or than it used to. No new chunks are placed there while there are others; what it holds goes to the other disks of its datanode when it stays so (`drain_slow_after`).",
        "Look at the disk (smartctl, dmesg); replace it before it fails. When its datanode has no other, `cairn node drain` empties it.";
    RedundancyReduced = "REDUNDANCY_REDUCED", false,
        "Fewer datanodes serve than each chunk has copies (`replicas`): copies are missing, and there is no place to make them again.",
        "Start the datanodes that are away, or add one (`cairn datanode`, or `cairn up` with a higher --datanodes): the missing copies are then made by themselves.";
    ChunksDegraded = "CHUNKS_DEGRADED", false,
        "Some chunks have fewer copies than there shall be. They are made again by themselves, the worst protected first.",
        "Wait: `cairn worker list` shows how far `repair` is, and what hinders it. It also waits for room: add disks or datanodes when they are full.";
    RepairStalled = "REPAIR_STALLED", false,
        "Copies are to be made, and the attempt fails again and again.",
        "The detail says why: a disk without room, a datanode that does not answer. It is tried again by itself.";
    WorkPaused = "WORK_PAUSED", false,
        "An operator has paused work in the background.",
        "`cairn worker resume NAME` lets it go on (`cairn gc resume` for deletion).";
}

impl Condition {
    /// The condition of that name, in letters of any case.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|condition| condition.code().eq_ignore_ascii_case(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_is_found_by_its_name_and_says_what_to_do() {
        for &condition in Condition::ALL {
            assert_eq!(Condition::from_code(condition.code()), Some(condition));
            assert_eq!(Condition::from_code(&condition.code().to_lowercase()), Some(condition));
            assert!(condition.meaning().ends_with('.') && condition.remedy().ends_with('.'), "{condition:?}");
        }
        assert_eq!(Condition::from_code("NO_SUCH"), None);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // reads the documentation beside the code
    fn the_operators_manual_lists_each_condition_with_its_remedy() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let manual = std::fs::read_to_string(path).expect("the manual");
        for condition in Condition::ALL {
            let kind = if condition.is_error() { " (error)" } else { "" };
            let row = format!(
                "| `{}`{kind} | {} | {} |",
                condition.code(),
                condition.meaning(),
                condition.remedy()
            );
            assert!(manual.contains(&row), "docs/operations.md lacks this row:\n{row}");
        }
    }
}
