//! The metrics of this crate, with their units and meaning.

use metrics::{counter, gauge, histogram};
use std::time::Duration;

cairn_runtime::metric_catalogue! {
    histogram_events CALL_SECONDS = "cairn_client_coordinator_call_seconds", "A call to the coordinator with all its tries, seconds, by method and outcome.";
    counter STORED_BYTES = "cairn_client_stored_bytes_total", "Bytes stored on datanodes, each copy counted once.";
    counter STORED_CHUNKS = "cairn_client_stored_chunks_total", "Chunks stored on all their members.";
    histogram STORE_SECONDS = "cairn_client_store_seconds", "Storing one chunk on all its members, seconds.";
    counter STORE_RETRIES = "cairn_client_store_retries_total", "Chunks that had to be stored again, elsewhere.";
    counter COMMITTED_FILES = "cairn_client_committed_files_total", "Files whose new content was committed.";
    histogram COMMIT_SECONDS = "cairn_client_commit_seconds", "Committing the content of files, seconds.";
    counter FETCHED_BYTES = "cairn_client_fetched_bytes_total", "Bytes that came from datanodes.";
    counter FETCH_FAILOVERS = "cairn_client_fetch_failovers_total", "Reads for which another replica had to be asked.";
    counter FETCH_HEDGES = "cairn_client_fetch_hedges_total", "Reads for which a second replica was asked because the first was late.";
    counter CACHE_HITS = "cairn_client_cache_hits_total", "Blocks found in the cache.";
    counter CACHE_MISSES = "cairn_client_cache_misses_total", "Blocks not found in the cache.";
    counter RECONNECTS = "cairn_client_session_reconnects_total" ["how": "resumed", "new"], "Sessions that were resumed or replaced after the connection broke.";
    gauge MEMORY_WRITTEN = "cairn_client_memory_written_bytes", "Memory that holds written data not yet stored.";
    gauge MEMORY_FETCHING = "cairn_client_memory_fetching_bytes", "Memory of reads under way.";
    gauge MEMORY_CACHE = "cairn_client_memory_cache_bytes", "Memory of the block cache.";
    counter LOCAL_CHANGES = "cairn_client_local_changes_total", "Changes of names made locally and applied since.";
    histogram APPLY_SECONDS = "cairn_client_apply_local_changes_seconds", "Applying a batch of changes that were made locally, seconds.";
    counter COVERED = "cairn_client_covered_total" ["operation": "lookup", "readdir", "open"], "Requests answered under a read lease, by operation.";
    counter LATE_REGISTRATIONS = "cairn_client_late_registrations_total", "Opens registered after they were answered.";
    counter LOCAL_CHANGES_REFUSED = "cairn_client_local_changes_refused_total", "Changes made locally that the coordinator refused.";
}

/// A call to the coordinator ended.
pub(crate) fn coordinator_call(method: &'static str, took: Duration, ok: bool) {
    let outcome = if ok { "ok" } else { "error" };
    histogram!(CALL_SECONDS, "method" => method, "outcome" => outcome).record(took.as_secs_f64());
}

/// A chunk was stored on its members.
pub(crate) fn chunk_stored(bytes: u64, took: Duration) {
    counter!(STORED_BYTES).increment(bytes);
    counter!(STORED_CHUNKS).increment(1);
    histogram!(STORE_SECONDS).record(took.as_secs_f64());
}

/// A chunk has to be stored again, elsewhere.
pub(crate) fn store_retried() {
    counter!(STORE_RETRIES).increment(1);
}

/// A commit took this many files.
pub(crate) fn committed(files: usize, took: Duration) {
    counter!(COMMITTED_FILES).increment(files as u64);
    histogram!(COMMIT_SECONDS).record(took.as_secs_f64());
}

/// Bytes came from a datanode.
pub(crate) fn fetched(bytes: usize) {
    counter!(FETCHED_BYTES).increment(bytes as u64);
}

/// Another replica had to be asked.
pub(crate) fn fetch_failed_over() {
    counter!(FETCH_FAILOVERS).increment(1);
}

/// A second replica was asked because the first was late.
pub(crate) fn fetch_hedged() {
    counter!(FETCH_HEDGES).increment(1);
}

/// A block was looked for in the cache.
pub(crate) fn blocks_from_cache(hits: usize, misses: usize) {
    counter!(CACHE_HITS).increment(hits as u64);
    counter!(CACHE_MISSES).increment(misses as u64);
}

/// The session had to be opened anew or resumed.
pub(crate) fn session_reconnected(resumed: bool) {
    let how = if resumed { "resumed" } else { "new" };
    counter!(RECONNECTS, "how" => how).increment(1);
}

/// Memory in use.
pub(crate) fn memory(written: usize, fetching: usize, cached: u64) {
    gauge!(MEMORY_WRITTEN).set(written as f64);
    gauge!(MEMORY_FETCHING).set(fetching as f64);
    gauge!(MEMORY_CACHE).set(cached as f64);
}

/// Changes of names that were made locally have been applied.
pub(crate) fn applied_behind(changes: usize, took: Duration) {
    counter!(LOCAL_CHANGES).increment(changes as u64);
    histogram!(APPLY_SECONDS).record(took.as_secs_f64());
}

/// Something was answered under a read lease.
pub(crate) fn covered(operation: &'static str) {
    counter!(COVERED, "operation" => operation).increment(1);
}

/// An open that nobody was asked about has been registered.
pub(crate) fn registered_late() {
    counter!(LATE_REGISTRATIONS).increment(1);
}

/// The coordinator refused a change that was made locally.
pub(crate) fn behind_refused() {
    counter!(LOCAL_CHANGES_REFUSED).increment(1);
}

/// A directory was made without a lease, because there are too many.
pub(crate) fn unleased() {
    counter!("cairn_client_unleased_directories_total").increment(1);
}
