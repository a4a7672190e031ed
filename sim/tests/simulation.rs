//! Many seeds, and the bugs that they must find; each seed runs in a process of its own.
#![allow(clippy::disallowed_methods)] // starts processes

use std::process::Command;

/// Seeds of each change; nightly runs take more (`scripts/simulate`).
const SEEDS: u64 = 200;
/// Simulated seconds of each under faults.
const SECONDS: u64 = 60;

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_cairn-sim")).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn no_seed_breaks_a_promise_and_each_tenth_repeats() -> anyhow::Result<()> {
    run(&["seeds", &SEEDS.to_string(), "--seconds", &SECONDS.to_string()])
}

#[test]
fn every_planted_bug_is_found() -> anyhow::Result<()> {
    run(&["bugs", "--seconds", &SECONDS.to_string()])
}
