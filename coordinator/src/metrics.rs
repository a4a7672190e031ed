//! The coordinator's metrics, with their units and meaning.

use std::time::Duration;

use cairn_proto::health::Condition;

cairn_runtime::metric_catalogue! {
    histogram GROUP_SECONDS = "cairn_coordinator_group_commit_seconds", "From taking a group of jobs until it is committed, seconds.";
    counter JOBS = "cairn_coordinator_jobs_total", "Jobs executed.";
    counter SLOW_JOBS = "cairn_coordinator_slow_jobs_total", "Jobs that took more than 100 ms, in which nobody else was served.";
    counter ROWS = "cairn_coordinator_rows_written_total", "Rows written.";
    histogram_events REQUEST_SECONDS = "cairn_coordinator_request_seconds", "Time to answer a request, seconds, by method.";
    events REFUSED = "cairn_coordinator_requests_refused_total", "Requests refused, by method and kind of error.";
    counter LISTINGS = "cairn_coordinator_listing_pages_total" ["from": "store", "memory", "ahead"], "Pages of large directories: sent from the store or from memory, or made ahead.";
    gauge SESSIONS = "cairn_coordinator_sessions", "Sessions that are open.";
    gauge LEASES = "cairn_coordinator_leases", "Write leases that sessions hold.";
    counter RECALLED = "cairn_coordinator_leases_recalled_total", "Write leases asked back because another session needed them.";
    gauge READ_LEASES = "cairn_coordinator_read_leases", "Read leases that sessions hold.";
    counter READS_RECALLED = "cairn_coordinator_read_leases_recalled_total", "Read leases asked back because another session changed their subject.";
    counter FENCED = "cairn_coordinator_sessions_fenced_total", "Sessions ended because they did not give a lease back.";
    gauge NODES = "cairn_coordinator_datanodes", "Datanodes of the cluster by state; removed ones are not counted.";
    gauge HEALTH = "cairn_coordinator_health", "1 while the health code of the label holds, else 0.";
    counter SHIPPED = "cairn_coordinator_log_shipped_total", "Commits that have arrived in the second place of the log.";
    counter SHIPPED_BYTES = "cairn_coordinator_log_shipped_bytes_total", "Bytes of log written to the second place.";
    gauge LOG_BEHIND = "cairn_coordinator_log_behind_seconds", "For how long the second place of the log has lacked something, seconds.";
    counter REPAIRED = "cairn_coordinator_copies_repaired_total" ["outcome": "made", "failed"], "Attempts to make a copy again, by outcome.";
    counter REPAIRED_BYTES = "cairn_coordinator_repaired_bytes_total", "Bytes that datanodes fetched to make copies again.";
}

/// Commits have arrived in the second place.
pub(crate) fn shipped(commits: usize, bytes: u64) {
    metrics::counter!(SHIPPED).increment(commits as u64);
    metrics::counter!(SHIPPED_BYTES).increment(bytes);
}

/// How far the second place is behind.
pub(crate) fn log_behind(behind: Duration) {
    metrics::gauge!(LOG_BEHIND).set(behind.as_secs_f64());
}

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

/// How many datanodes are in a state.
pub(crate) fn nodes(state: &'static str, count: usize) {
    metrics::gauge!(NODES, "state" => state).set(count as f64);
}

/// Which conditions hold at present.
pub(crate) fn health(holds: impl Fn(Condition) -> bool) {
    for &condition in Condition::ALL {
        let severity = if condition.is_error() { "error" } else { "warning" };
        metrics::gauge!(HEALTH, "code" => condition.code(), "severity" => severity)
            .set(if holds(condition) { 1.0 } else { 0.0 });
    }
}
