//! Many seeds, each in a process of its own, two at a time.
#![allow(clippy::disallowed_methods)] // runs on the real machine

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use cairn_runtime::bugs::Bug;

/// Runs at once.
const PARALLEL: usize = 2;
/// A seed that takes longer, and two seconds for each simulated one, stands still. They take about one.
const SEED_MAX: Duration = Duration::from_secs(120);
/// How often it is looked whether a seed has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Each so many-th seed runs twice.
const REPEAT_EVERY: u64 = 10;
/// Bugs, and seeds of 60 s that find them.
const KNOWN: &[(Bug, &[u64])] = &[
    (Bug::DatanodeNoSync, &[2]),
    (Bug::FailedSyncForgiven, &[9]),
    (Bug::DirectoryNotSynced, &[3]),
    (Bug::AckBeforeReplicas, &[9]),
    (Bug::AckBeforeOwnSync, &[37]),
    (Bug::ChecksumSkipped, &[6]),
    (Bug::TornTailKept, &[19]),
    (Bug::FailedMembersCounted, &[25]),
    (Bug::AnswerBeforeCommit, &[2]),
    (Bug::MetadataNoSync, &[2]),
    (Bug::ReplyForgotten, &[2]),
    (Bug::OpenKeepsOldLayout, &[77]),
    (Bug::CommitOrderIgnored, &[1]),
    (Bug::UnsyncedForgotten, &[5]),
    (Bug::GcTakesLive, &[2]),
    (Bug::GcTakesStraysAtOnce, &[123]),
    (Bug::RepairUnverified, &[6]),
    (Bug::BackfillTooEarly, &[25]),
    (Bug::ReadLeasesIgnored, &[2]),
    (Bug::BatchExecutedTwice, &[34]),
    (Bug::OpensNotToldAgain, &[98]),
    (Bug::PauseCountsAsSilence, &[63]),
];

/// What a run said.
struct Said {
    fine: bool,
    /// Its last lines.
    text: String,
    digest: String,
    /// What was done, by kind.
    figures: BTreeMap<String, u64>,
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
    let mut child = Command::new(program)
        .args(arguments(seed, seconds, bug))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("can not run itself")?;
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.map_or(Ok(0), |mut output| output.read_to_end(&mut bytes)).map(|_| bytes)
    });
    let limit = SEED_MAX + Duration::from_secs(seconds) * 2;
    let ended = wait(&mut child, limit)?;
    let bytes = reader.join().map_err(|_| anyhow::anyhow!("the output of seed {seed} is lost"))??;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if !ended {
        text.push_str(&format!("VIOLATION the run stands still: it did not end within {limit:?}\n"));
    }
    let digest = text.split("digest ").nth(1).and_then(|rest| rest.split(':').next());
    let digest = digest.unwrap_or_default().to_owned();
    let figures = text.lines().find_map(|line| line.strip_prefix("figures ")).unwrap_or_default();
    let figures = figures.split("; ").filter_map(|figure| figure.rsplit_once('='));
    let figures = figures.filter_map(|(kind, count)| Some((kind.to_owned(), count.parse().ok()?)));
    let figures = figures.collect();
    let fine = ended && child.wait()?.success();
    Ok(Said { fine, text, digest, figures })
}

/// Waits for a process, and ends it when it takes too long. Whether it ended by itself.
fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<bool> {
    let began = Instant::now();
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if began.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
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
                            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn replay(seed: u64, seconds: u64, bug: Option<Bug>) -> String {
    format!("cairn-sim {} --trace", arguments(seed, seconds, bug).join(" "))
}

/// Runs seeds and says which broke a promise, and what was done in all. Whether none did.
pub(crate) fn run_seeds(first: u64, count: u64, seconds: u64) -> anyhow::Result<bool> {
    let began = Instant::now();
    let (bad, repeated) = (AtomicU64::new(0), AtomicU64::new(0));
    let sum = Mutex::new(BTreeMap::<String, u64>::new());
    each(first, count, |seed| {
        let said = run(seed, seconds, None)?;
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        said.figures.iter().for_each(|(kind, count)| *sum.entry(kind.clone()).or_default() += count);
        drop(sum);
        if !said.fine {
            bad.fetch_add(1, Ordering::Relaxed);
            println!("{}seed {seed} FAILED; replay: {}\n", said.text, replay(seed, seconds, None));
        } else if seed.is_multiple_of(REPEAT_EVERY) {
            let again = run(seed, seconds, None)?;
            if again.digest == said.digest {
                repeated.fetch_add(1, Ordering::Relaxed);
            } else {
                bad.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed} does NOT REPEAT: {} and {}", said.digest, again.digest);
            }
        }
        Ok(true)
    })?;
    let bad = bad.load(Ordering::Relaxed);
    let took = began.elapsed().as_secs_f64();
    println!("| what | count |\n| --- | --- |\n| seeds of {seconds} s, from {first} | {count} |");
    for (kind, count) in sum.into_inner().unwrap_or_else(PoisonError::into_inner) {
        println!("| {kind} | {count} |");
    }
    println!("| seeds run twice, with the same digest | {} |", repeated.load(Ordering::Relaxed));
    println!("| seeds that broke a promise | {bad} |");
    println!("| seconds on the clock, {PARALLEL} at a time | {took:.0} |");
    Ok(bad == 0)
}

/// Plants bugs and says by which seed each is found: those known to do so come first. Whether all were.
pub(crate) fn find_bugs(only: Option<String>, seeds: u64, seconds: u64) -> anyhow::Result<bool> {
    let wanted = KNOWN.iter().filter(|(bug, _)| only.as_ref().is_none_or(|name| *name == format!("{bug:?}")));
    let wanted: Vec<_> = wanted.collect();
    anyhow::ensure!(!wanted.is_empty(), "no such bug; one of {:?}", Bug::ALL);
    let mut all = true;
    for (bug, finders) in wanted {
        match find_bug(*bug, finders, seeds, seconds)? {
            Some((seed, why)) => println!("{bug:?}: found by seed {seed}: {why}"),
            None => {
                all = false;
                println!("{bug:?}: NOT FOUND by {seeds} seeds");
            }
        }
    }
    Ok(all)
}

fn find_bug(bug: Bug, known: &[u64], seeds: u64, seconds: u64) -> anyhow::Result<Option<(u64, String)>> {
    let found = Mutex::new(None);
    let try_seed = |seed: u64| {
        let said = run(seed, seconds, Some(bug))?;
        // A seed that fails without the bug as well says nothing about it.
        if said.fine || !run(seed, seconds, None)?.fine {
            return Ok(true);
        }
        let why = said.text.lines().find(|line| line.starts_with("VIOLATION") || line.starts_with("PANIC"));
        let why = why.unwrap_or("no violation was named").to_owned();
        found.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((seed, why));
        Ok(false)
    };
    let is_open = || found.lock().unwrap_or_else(PoisonError::into_inner).is_none();
    each(0, known.len() as u64, |index| try_seed(known[index as usize]))?;
    if is_open() {
        each(1, seeds, try_seed)?;
    }
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}
