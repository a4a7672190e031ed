//! The metrics of this crate, with unit and meaning.

cairn_runtime::metric_catalogue! {
    counter WRITTEN_BYTES = "cairn_datanode_chunk_written_bytes_total", "Payload bytes written to the chunk store.";
    counter READ_BYTES = "cairn_datanode_chunk_read_bytes_total", "Payload bytes read, verified and sent.";
    histogram READ_SECONDS = "cairn_datanode_chunk_read_seconds", "One read of a part of a chunk from its disk, verified, seconds.";
    counter STORED = "cairn_datanode_chunk_stored_total", "Chunks stored here.";
    counter STORE_FAILED = "cairn_datanode_chunk_store_failed_total", "Chunks refused or given up.";
    histogram STORE_SECONDS = "cairn_datanode_chunk_store_seconds" ["role": "primary", "replica"], "From a chunk's header to its final acknowledgement, seconds, by role (primary, replica).";
    histogram SYNC_SECONDS = "cairn_datanode_sync_seconds", "One fdatasync (and fsync of the directory where needed), seconds.";
    counter SYNC_WAITERS = "cairn_datanode_sync_waiters_total", "Waiters that those syncs served; divided by their count, the size of a group.";
    counter REPLICA_FAILED = "cairn_datanode_replica_failed_total", "Members that could not store a chunk they were to.";
    counter LINKS_LOST = "cairn_datanode_replication_link_lost_total", "Replication streams that broke or went silent.";
    counter SCRUBBED_BYTES = "cairn_datanode_scrub_bytes_total", "Payload bytes that the scrub has read.";
    counter SCRUB_BAD = "cairn_datanode_scrub_bad_total", "Bad copies that the scrub has found.";
    counter QUARANTINED = "cairn_datanode_record_quarantined_total", "Records that failed verification.";
    counter DISK_FAULTS = "cairn_datanode_disk_fault_total", "Disks that failed.";
    counter READ_FAULTS = "cairn_datanode_disk_read_fault_total", "Reads that a disk failed.";
    counter DELETED = "cairn_datanode_chunk_deleted_total", "Chunks deleted.";
    gauge CHUNKS = "cairn_datanode_chunks", "Chunks held.";
    gauge USED_BYTES = "cairn_datanode_used_bytes", "Bytes of records in use.";
    gauge ROOM_BYTES = "cairn_datanode_room_bytes", "Bytes that new chunks could take.";
    gauge TRANSFERS = "cairn_datanode_transfers", "Chunks under way.";
    counter COPIED = "cairn_datanode_chunk_copied_total", "Chunks that were made to be here for repair: fetched, or found to be here already.";
    counter COPY_FAILED = "cairn_datanode_chunk_copy_failed_total", "Chunks that could not be fetched for repair.";
    counter REPACKED = "cairn_datanode_chunk_repacked_total", "Chunks made out of parts of others.";
    counter DRAINED = "cairn_datanode_chunk_drained_total", "Chunks that went from a slow disk to another one of the node.";
    counter COPIED_BYTES = "cairn_datanode_chunk_copied_bytes_total", "Payload bytes fetched for repair.";
}
