//! How far a transfer is: a bar on a terminal, a line of JSON every second with `--json`, and a
//! sentence at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cairn_runtime::clock::{self, Instant};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use super::REPORT_EVERY;
use crate::args::TransferOptions;
use crate::failure::Exit;
use crate::human;
use crate::output::Output;

/// Counters of one transfer.
pub(super) struct Progress {
    output: Output,
    bar: ProgressBar,
    started: Instant,
    found_files: AtomicU64,
    found_bytes: AtomicU64,
    copied_files: AtomicU64,
    copied_bytes: AtomicU64,
    skipped_files: AtomicU64,
    skipped_bytes: AtomicU64,
    failures: AtomicU64,
    unreachable: AtomicBool,
    all_found: AtomicBool,
    reporter: std::sync::OnceLock<AbortHandle>,
}

impl Progress {
    /// Starts to show progress.
    pub(super) fn start(output: Output, options: &TransferOptions) -> Arc<Self> {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let target = if terminal && !output.quiet && !output.json && !options.no_progress {
            ProgressDrawTarget::stderr_with_hz(8)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let this = Arc::new(Self {
            output,
            bar,
            started: clock::now(),
            found_files: AtomicU64::new(0),
            found_bytes: AtomicU64::new(0),
            copied_files: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
            skipped_files: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            unreachable: AtomicBool::new(false),
            all_found: AtomicBool::new(false),
            reporter: std::sync::OnceLock::new(),
        });
        if output.json && !output.quiet {
            let weak = Arc::downgrade(&this);
            let task = tokio::spawn(async move {
                loop {
                    clock::sleep(REPORT_EVERY).await;
                    let Some(this) = weak.upgrade() else { break };
                    let _ = this.output.json_line(&this.report("progress"));
                }
            });
            let _ = this.reporter.set(task.abort_handle());
        }
        this
    }

    /// The walker has found a file.
    pub(super) fn found(&self, bytes: u64) {
        self.found_files.fetch_add(1, Ordering::Relaxed);
        self.found_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc_length(bytes);
    }

    /// The walker has been everywhere.
    pub(super) fn all_found(&self) {
        self.all_found.store(true, Ordering::Relaxed);
    }

    /// A part of a file is copied.
    pub(super) fn moved(&self, bytes: u64) {
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc(bytes);
    }

    /// A file is complete.
    pub(super) fn copied(&self) {
        let files = self.copied_files.fetch_add(1, Ordering::Relaxed) + 1;
        self.bar.set_message(human::count(files, "file"));
    }

    /// A file was there already.
    pub(super) fn skipped(&self, bytes: u64) {
        self.skipped_files.fetch_add(1, Ordering::Relaxed);
        self.skipped_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc(bytes);
    }

    /// A file could not be copied.
    pub(super) fn failed(&self, exit: Exit) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if exit == Exit::Unreachable {
            self.unreachable.store(true, Ordering::Relaxed);
        }
    }

    /// The exit status that the failures amount to.
    pub(super) fn worst(&self) -> Exit {
        match (self.failures(), self.unreachable.load(Ordering::Relaxed)) {
            (0, _) => Exit::Done,
            (_, false) => Exit::Failed,
            (_, true) => Exit::Unreachable,
        }
    }

    /// How many could not.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Prints something while the bar is away.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Takes the bar away and says what was done.
    pub(super) fn finish(&self) {
        if let Some(reporter) = self.reporter.get() {
            reporter.abort();
        }
        self.bar.finish_and_clear();
        if self.output.json {
            let _ = self.output.json_line(&self.report("done"));
            return;
        }
        let files = self.copied_files.load(Ordering::Relaxed);
        let bytes = self.copied_bytes.load(Ordering::Relaxed);
        let skipped = self.skipped_files.load(Ordering::Relaxed);
        if files == 0 && skipped == 0 && self.failures() > 0 {
            // What went wrong has been said, and there is nothing else to say.
            return;
        }
        let time = self.started.elapsed();
        let mut text = format!(
            "{} ({}) copied in {}",
            human::count(files, "file"),
            human::size(bytes),
            human::span(time)
        );
        if time > Duration::from_millis(100) && bytes > 0 {
            text.push_str(&format!(", {}/s", human::size(rate(bytes, time))));
        }
        match skipped {
            0 => {}
            skipped => text.push_str(&format!("; {skipped} were there already")),
        }
        match self.failures() {
            0 => {}
            failures => text.push_str(&format!("; {failures} failed: run the same command again to go on")),
        }
        self.output.say(text);
    }

    fn report(&self, event: &str) -> Value {
        let time = self.started.elapsed();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (bytes, total) = (load(&self.copied_bytes), load(&self.found_bytes));
        let rate = rate(bytes, time);
        let left = total.saturating_sub(bytes + load(&self.skipped_bytes));
        let known = self.all_found.load(Ordering::Relaxed) && rate > 0;
        json!({
            "event": event,
            "files": load(&self.copied_files),
            "bytes": bytes,
            "skipped_files": load(&self.skipped_files),
            "skipped_bytes": load(&self.skipped_bytes),
            "failed_files": load(&self.failures),
            "total_files": load(&self.found_files),
            "total_bytes": total,
            "total_known": self.all_found.load(Ordering::Relaxed),
            "seconds": time.as_secs_f64(),
            "bytes_per_second": rate,
            "eta_seconds": known.then(|| left / rate.max(1)),
        })
    }
}

fn rate(bytes: u64, time: Duration) -> u64 {
    // A float holds every rate that exists, well enough.
    (bytes as f64 / time.as_secs_f64().max(0.001)) as u64
}
