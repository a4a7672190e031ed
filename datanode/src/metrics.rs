//! The names of this crate's metrics, with unit and meaning.

/// Payload bytes written to the chunk store.
pub(crate) const WRITTEN_BYTES: &str = "cairn_datanode_chunk_written_bytes_total";
/// Payload bytes read, verified and sent.
pub(crate) const READ_BYTES: &str = "cairn_datanode_chunk_read_bytes_total";
/// Chunks stored here.
pub(crate) const STORED: &str = "cairn_datanode_chunk_stored_total";
/// Chunks refused or given up, by `kind` of error.
pub(crate) const STORE_FAILED: &str = "cairn_datanode_chunk_store_failed_total";
/// From a chunk's header to its final acknowledgement, by `role` (`primary`, `replica`).
pub(crate) const STORE_SECONDS: &str = "cairn_datanode_chunk_store_seconds";
/// One `fdatasync` (and `fsync` of the directory where needed).
pub(crate) const SYNC_SECONDS: &str = "cairn_datanode_sync_seconds";
/// Waiters that those syncs served; divided by their count, the size of a group.
pub(crate) const SYNC_WAITERS: &str = "cairn_datanode_sync_waiters_total";
/// Members that could not store a chunk they were to.
pub(crate) const REPLICA_FAILED: &str = "cairn_datanode_replica_failed_total";
/// Replication streams that broke or went silent.
pub(crate) const LINKS_LOST: &str = "cairn_datanode_replication_link_lost_total";
/// Payload bytes that the scrub has read.
pub(crate) const SCRUBBED_BYTES: &str = "cairn_datanode_scrub_bytes_total";
/// Bad copies that the scrub has found.
pub(crate) const SCRUB_BAD: &str = "cairn_datanode_scrub_bad_total";
/// Records that failed verification.
pub(crate) const QUARANTINED: &str = "cairn_datanode_record_quarantined_total";
/// Disks that failed.
pub(crate) const DISK_FAULTS: &str = "cairn_datanode_disk_fault_total";
/// Reads that a disk failed.
pub(crate) const READ_FAULTS: &str = "cairn_datanode_disk_read_fault_total";
/// Chunks deleted.
pub(crate) const DELETED: &str = "cairn_datanode_chunk_deleted_total";
/// Chunks held (gauge).
pub(crate) const CHUNKS: &str = "cairn_datanode_chunks";
/// Bytes of records in use (gauge).
pub(crate) const USED_BYTES: &str = "cairn_datanode_used_bytes";
/// Bytes that new chunks could take (gauge).
pub(crate) const ROOM_BYTES: &str = "cairn_datanode_room_bytes";
/// Chunks under way (gauge).
pub(crate) const TRANSFERS: &str = "cairn_datanode_transfers";
/// Chunks that were made to be here for repair: fetched, or found to be here already.
pub(crate) const COPIED: &str = "cairn_datanode_chunk_copied_total";
/// Chunks that could not be fetched for repair.
pub(crate) const COPY_FAILED: &str = "cairn_datanode_chunk_copy_failed_total";
/// Chunks made out of parts of others.
pub(crate) const REPACKED: &str = "cairn_datanode_chunk_repacked_total";
/// Chunks that went from a slow disk to another one of the node.
pub(crate) const DRAINED: &str = "cairn_datanode_chunk_drained_total";
/// Payload bytes fetched for repair.
pub(crate) const COPIED_BYTES: &str = "cairn_datanode_chunk_copied_bytes_total";
