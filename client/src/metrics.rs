//! The names of this crate's metrics, in one place.

use metrics::{counter, gauge, histogram};
use std::time::Duration;

/// A call to the coordinator ended.
pub(crate) fn coordinator_call(method: &'static str, took: Duration, ok: bool) {
    let outcome = if ok { "ok" } else { "error" };
    histogram!("cairn_client_coordinator_call_seconds", "method" => method, "outcome" => outcome)
        .record(took.as_secs_f64());
}

/// A chunk was stored on its members.
pub(crate) fn chunk_stored(bytes: u64, took: Duration) {
    counter!("cairn_client_stored_bytes_total").increment(bytes);
    counter!("cairn_client_stored_chunks_total").increment(1);
    histogram!("cairn_client_store_seconds").record(took.as_secs_f64());
}

/// A chunk has to be stored again, elsewhere.
pub(crate) fn store_retried() {
    counter!("cairn_client_store_retries_total").increment(1);
}

/// A commit took this many files.
pub(crate) fn committed(files: usize, took: Duration) {
    counter!("cairn_client_committed_files_total").increment(files as u64);
    histogram!("cairn_client_commit_seconds").record(took.as_secs_f64());
}

/// Bytes came from a datanode.
pub(crate) fn fetched(bytes: usize) {
    counter!("cairn_client_fetched_bytes_total").increment(bytes as u64);
}

/// Another replica had to be asked.
pub(crate) fn fetch_failed_over() {
    counter!("cairn_client_fetch_failovers_total").increment(1);
}

/// A second replica was asked because the first was late.
pub(crate) fn fetch_hedged() {
    counter!("cairn_client_fetch_hedges_total").increment(1);
}

/// A block was looked for in the cache.
pub(crate) fn blocks_from_cache(hits: usize, misses: usize) {
    counter!("cairn_client_cache_hits_total").increment(hits as u64);
    counter!("cairn_client_cache_misses_total").increment(misses as u64);
}

/// The session had to be opened anew or resumed.
pub(crate) fn session_reconnected(resumed: bool) {
    let how = if resumed { "resumed" } else { "new" };
    counter!("cairn_client_session_reconnects_total", "how" => how).increment(1);
}

/// Memory in use.
pub(crate) fn memory(written: usize, fetching: usize, cached: u64) {
    gauge!("cairn_client_memory_written_bytes").set(written as f64);
    gauge!("cairn_client_memory_fetching_bytes").set(fetching as f64);
    gauge!("cairn_client_memory_cache_bytes").set(cached as f64);
}

/// Changes of names that were made locally have been applied.
pub(crate) fn applied_behind(changes: usize, took: Duration) {
    counter!("cairn_client_local_changes_total").increment(changes as u64);
    histogram!("cairn_client_apply_local_changes_seconds").record(took.as_secs_f64());
}

/// Something was answered under a read lease.
pub(crate) fn covered(operation: &'static str) {
    counter!("cairn_client_covered_total", "operation" => operation).increment(1);
}

/// An open that nobody was asked about has been registered.
pub(crate) fn registered_late() {
    counter!("cairn_client_late_registrations_total").increment(1);
}

/// The coordinator refused a change that was made locally.
pub(crate) fn behind_refused() {
    counter!("cairn_client_local_changes_refused_total").increment(1);
}
