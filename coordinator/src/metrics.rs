//! Names of the coordinator's metrics, with their units and meaning.

use std::time::Duration;

/// Time from taking a group of jobs until it is committed, seconds.
const GROUP_SECONDS: &str = "cairn_coordinator_group_commit_seconds";
/// Jobs executed.
const JOBS: &str = "cairn_coordinator_jobs_total";
/// Jobs that took more than 100 ms, in which nobody else was served.
const SLOW_JOBS: &str = "cairn_coordinator_slow_jobs_total";
/// Rows written.
const ROWS: &str = "cairn_coordinator_rows_written_total";
/// Time to answer a request, seconds, by method.
const REQUEST_SECONDS: &str = "cairn_coordinator_request_seconds";
/// Requests refused, by method and kind of error.
const REFUSED: &str = "cairn_coordinator_requests_refused_total";
/// Pages of large directories that were sent, by where they came from: the store, or memory; and those that were made
/// ahead.
const LISTINGS: &str = "cairn_coordinator_listing_pages_total";
/// Sessions that are open.
const SESSIONS: &str = "cairn_coordinator_sessions";
/// Write leases that sessions hold.
const LEASES: &str = "cairn_coordinator_leases";
/// Write leases asked back because another session needed them.
const RECALLED: &str = "cairn_coordinator_leases_recalled_total";
/// Read leases that sessions hold.
const READ_LEASES: &str = "cairn_coordinator_read_leases";
/// Read leases asked back because another session changed what they cover.
const READS_RECALLED: &str = "cairn_coordinator_read_leases_recalled_total";
/// Sessions ended because they did not give a lease back.
const FENCED: &str = "cairn_coordinator_sessions_fenced_total";
/// Datanodes, by state.
const NODES: &str = "cairn_coordinator_datanodes";

/// Commits that have arrived in the second place.
const SHIPPED: &str = "cairn_coordinator_log_shipped_total";
/// Bytes of log written to the second place.
const SHIPPED_BYTES: &str = "cairn_coordinator_log_shipped_bytes_total";
/// For how long the second place has lacked something, seconds.
const LOG_BEHIND: &str = "cairn_coordinator_log_behind_seconds";

/// Commits have arrived in the second place.
pub(crate) fn shipped(commits: usize, bytes: u64) {
    metrics::counter!(SHIPPED).increment(commits as u64);
    metrics::counter!(SHIPPED_BYTES).increment(bytes);
}

/// How far the second place is behind.
pub(crate) fn log_behind(behind: Duration) {
    metrics::gauge!(LOG_BEHIND).set(behind.as_secs_f64());
}

/// Copies that were made again, or could not be, by outcome.
const REPAIRED: &str = "cairn_coordinator_copies_repaired_total";
/// Bytes that datanodes fetched for that.
const REPAIRED_BYTES: &str = "cairn_coordinator_repaired_bytes_total";

/// A copy was made again, or could not be.
pub(crate) fn repaired(done: bool, bytes: u64) {
    metrics::counter!(REPAIRED, "outcome" => if done { "made" } else { "failed" }).increment(1);
    metrics::counter!(REPAIRED_BYTES).increment(bytes);
}

/// A group of jobs was committed.
pub(crate) fn group(jobs: usize, rows: usize, took: Duration) {
    metrics::histogram!(GROUP_SECONDS).record(took.as_secs_f64());
    metrics::counter!(JOBS).increment(jobs as u64);
    metrics::counter!(ROWS).increment(rows as u64);
}

/// A job held up all others for longer than any should.
pub(crate) fn slow_job() {
    metrics::counter!(SLOW_JOBS).increment(1);
}

/// A request was answered.
pub(crate) fn request(method: &'static str, took: Duration) {
    metrics::histogram!(REQUEST_SECONDS, "method" => method).record(took.as_secs_f64());
}

/// A request was refused.
pub(crate) fn refused(method: &'static str, kind: cairn_proto::ErrorKind) {
    metrics::counter!(REFUSED, "method" => method, "kind" => format!("{kind:?}")).increment(1);
}

/// A page of names of a large directory was sent.
pub(crate) fn listed(from: &'static str) {
    metrics::counter!(LISTINGS, "from" => from).increment(1);
}

/// How many sessions are open.
pub(crate) fn sessions(count: usize) {
    metrics::gauge!(SESSIONS).set(count as f64);
}

/// How many write leases and read leases are held.
pub(crate) fn leases(writes: usize, reads: usize) {
    metrics::gauge!(LEASES).set(writes as f64);
    metrics::gauge!(READ_LEASES).set(reads as f64);
}

/// Leases were asked back.
pub(crate) fn recalled(leases: u64) {
    metrics::counter!(RECALLED).increment(leases);
}

/// Read leases were asked back.
pub(crate) fn reads_recalled(leases: usize) {
    metrics::counter!(READS_RECALLED).increment(leases as u64);
}

/// A session was ended because it did not give a lease back.
pub(crate) fn session_fenced() {
    metrics::counter!(FENCED).increment(1);
}

/// How many datanodes are up, suspect and down.
pub(crate) fn nodes(up: usize, suspect: usize, down: usize) {
    for (state, count) in [("up", up), ("suspect", suspect), ("down", down)] {
        metrics::gauge!(NODES, "state" => state).set(count as f64);
    }
}
