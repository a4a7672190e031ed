//! Many seeds, each in a process of its own, two at a time.
#![allow(clippy::disallowed_methods)] // runs on the real machine

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use cairn_runtime::bugs::Bug;

/// Runs at once.
const PARALLEL: usize = 2;
/// Each so many-th seed runs twice.
const REPEAT_EVERY: u64 = 10;
/// Bugs, and seeds of 60 s that find them.
const KNOWN: &[(Bug, &[u64])] = &[
    (Bug::DatanodeNoSync, &[]),
    (Bug::FailedSyncForgiven, &[]),
    (Bug::DirectoryNotSynced, &[]),
    (Bug::AckBeforeReplicas, &[]),
    (Bug::AckBeforeOwnSync, &[]),
    (Bug::ChecksumSkipped, &[]),
    (Bug::TornTailKept, &[]),
    (Bug::FailedMembersCounted, &[]),
    (Bug::AnswerBeforeCommit, &[]),
    (Bug::MetadataNoSync, &[]),
    (Bug::ReplyForgotten, &[]),
    (Bug::OpenKeepsOldLayout, &[]),
    (Bug::CommitOrderIgnored, &[]),
    (Bug::UnsyncedForgotten, &[]),
    (Bug::GcTakesLive, &[]),
    (Bug::GcTakesStraysAtOnce, &[]),
    (Bug::RepairUnverified, &[]),
    (Bug::BackfillTooEarly, &[]),
];

/// What a run said.
struct Said {
    fine: bool,
    /// Its last lines.
    text: String,
    digest: String,
}

fn arguments(seed: u64, seconds: u64, bug: Option<Bug>) -> Vec<String> {
    let mut arguments = vec!["seed".into(), seed.to_string(), "--seconds".into(), seconds.to_string()];
    if let Some(bug) = bug {
        arguments.extend(["--bug".into(), format!("{bug:?}")]);
    }
    arguments
}

fn run(seed: u64, seconds: u64, bug: Option<Bug>) -> anyhow::Result<Said> {
    let program = std::env::current_exe()?;
    let output = Command::new(program)
        .args(arguments(seed, seconds, bug))
        .stderr(Stdio::inherit())
        .output()
        .context("can not run itself")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digest = text.split("digest ").nth(1).and_then(|rest| rest.split(':').next());
    let digest = digest.unwrap_or_default().to_owned();
    Ok(Said { fine: output.status.success(), text, digest })
}

/// Does `work` for each number from `first` on, two at a time, until one says `false`.
fn each(first: u64, count: u64, work: impl Fn(u64) -> anyhow::Result<bool> + Sync) -> anyhow::Result<()> {
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= first + count {
                        break;
                    }
                    match work(number) {
                        Ok(true) => {}
                        Ok(false) => stop.store(true, Ordering::Relaxed),
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn replay(seed: u64, seconds: u64, bug: Option<Bug>) -> String {
    format!("cairn-sim {} --trace", arguments(seed, seconds, bug).join(" "))
}

/// Runs seeds and says which broke a promise. Whether none did.
pub(crate) fn run_seeds(first: u64, count: u64, seconds: u64) -> anyhow::Result<bool> {
    let began = Instant::now();
    let bad = AtomicU64::new(0);
    each(first, count, |seed| {
        let said = run(seed, seconds, None)?;
        if !said.fine {
            bad.fetch_add(1, Ordering::Relaxed);
            println!("{}seed {seed} FAILED; replay: {}\n", said.text, replay(seed, seconds, None));
        } else if seed.is_multiple_of(REPEAT_EVERY) {
            let again = run(seed, seconds, None)?;
            if again.digest != said.digest {
                bad.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed} does NOT REPEAT: {} and {}", said.digest, again.digest);
            }
        }
        Ok(true)
    })?;
    let bad = bad.load(Ordering::Relaxed);
    println!(
        "{count} seeds of {seconds} s from {first}: {bad} bad, {:.0} s on {PARALLEL} processes",
        began.elapsed().as_secs_f64()
    );
    Ok(bad == 0)
}

/// Plants bugs and says by which seed each is found. Whether all were.
pub(crate) fn find_bugs(only: Option<String>, seeds: u64, seconds: u64, known: bool) -> anyhow::Result<bool> {
    let wanted = KNOWN.iter().filter(|(bug, _)| only.as_ref().is_none_or(|name| *name == format!("{bug:?}")));
    let (mut tried, mut all) = (0, true);
    for (bug, finders) in wanted {
        tried += 1;
        let found = Mutex::new(None);
        let try_seed = |seed: u64| {
            let said = run(seed, seconds, Some(*bug))?;
            // A seed that fails without the bug as well says nothing about it.
            if said.fine || !run(seed, seconds, None)?.fine {
                return Ok(true);
            }
            let why =
                said.text.lines().find(|line| line.starts_with("VIOLATION") || line.starts_with("PANIC"));
            let why = why.unwrap_or("no violation was named").to_owned();
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            found.get_or_insert((seed, why));
            Ok(false)
        };
        match known {
            true => each(0, finders.len() as u64, |index| try_seed(finders[index as usize]))?,
            false => each(1, seeds, try_seed)?,
        }
        match found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((seed, why)) => println!("{bug:?}: found by seed {seed}: {why}"),
            None => {
                all = false;
                println!("{bug:?}: NOT FOUND");
            }
        }
    }
    anyhow::ensure!(tried > 0, "no such bug");
    Ok(all)
}
