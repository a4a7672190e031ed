//! Runs seeds: one in this process, or many in processes of their own.

mod runner;

use std::process::ExitCode;
use std::time::Duration;

use cairn_runtime::bugs::{self, Bug};
use cairn_sim::Plan;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "The whole cluster in one deterministic process")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one seed and shows what came of it.
    Seed {
        /// Everything follows from it.
        seed: u64,
        /// Simulated seconds of work under faults.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Shows each event.
        #[arg(long)]
        trace: bool,
        /// Shows logs of the services: error, info, cairn_client=debug …
        #[arg(long)]
        log: Option<String>,
        /// Plants a bug.
        #[arg(long)]
        bug: Option<String>,
    },
    /// Runs many seeds, two at a time; each tenth one twice, since its digest must repeat.
    Seeds {
        /// How many.
        count: u64,
        /// The first.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Simulated seconds of work under faults, of each.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Plants each bug and looks for a seed that finds it; those known to do so come first.
    Bugs {
        /// Only this one.
        #[arg(long)]
        bug: Option<String>,
        /// Seeds to try at most.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// Simulated seconds of work under faults, of each.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Seed { seed, seconds, trace, log, bug } => run_seed(seed, seconds, trace, log, bug),
        Command::Seeds { count, first, seconds } => runner::run_seeds(first, count, seconds),
        Command::Bugs { bug, seeds, seconds } => runner::find_bugs(bug, seeds, seconds),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn run_seed(
    seed: u64,
    seconds: u64,
    print: bool,
    log: Option<String>,
    bug: Option<String>,
) -> anyhow::Result<bool> {
    if let Some(filter) = log {
        let filter = tracing_subscriber::EnvFilter::try_new(filter)?;
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    if let Some(text) = bug {
        let known = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == text);
        bugs::plant(known.ok_or_else(|| anyhow::anyhow!("{text} is no bug; one of {:?}", Bug::ALL))?);
    }
    // A panic in a task would only end that task.
    std::panic::set_hook(Box::new(|info| {
        println!("PANIC {info}");
        println!("{}", std::backtrace::Backtrace::force_capture());
        std::process::exit(101);
    }));
    let report = cairn_sim::run(Plan { seed, time: Duration::from_secs(seconds), print });
    for violation in &report.violations {
        println!("VIOLATION {violation}");
    }
    println!("seed {seed} digest {:016x}: {}", report.digest, report.summary);
    let figures: Vec<String> = report.figures.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
    println!("figures {}", figures.join("; "));
    if !report.counts {
        println!("too little happened for this run to count");
    }
    Ok(report.violations.is_empty() && report.counts)
}
