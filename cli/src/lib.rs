//! The command line of Cairn: one binary that holds all services and all commands. It assembles the
//! other crates and holds no logic of the file system itself.
//!
//! [`args`] says what can be typed, [`config`] merges it with variables and the file, `commands`
//! carries it out.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

pub mod args;
mod background;
mod cluster;
mod commands;
pub mod config;
pub mod failure;
mod helper;
pub mod human;
mod local;
mod notes;
mod output;
mod places;
mod reach;
mod remote;
mod transfer;
mod unmount;
mod up;

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let mut line: Vec<OsString> = std::env::args_os().collect();
    match helper::read(&line) {
        Some(Ok(helper::Request::Mount(wanted))) => line = wanted,
        Some(Ok(helper::Request::Remount { directory, read_only })) => {
            return match helper::remount(&directory, read_only) {
                Ok(()) => failure::Exit::Done.into(),
                Err(failure) => report(&failure),
            };
        }
        Some(Err(failure)) => return report(&failure),
        None => {}
    }
    let cli = match args::Cli::try_parse_from(line) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way, too, and are no error.
            let code = if error.use_stderr() { failure::Exit::Usage } else { failure::Exit::Done };
            let _ = error.print();
            return code.into();
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return report(&failure::Failure::new("start", error)),
    };
    let result = runtime.block_on(commands::run(cli));
    // What still runs by now (a thread that reads standard input) is not waited for.
    runtime.shutdown_background();
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => report(&failure),
    }
}

/// Threads of the runtime: half the cores, so that on a small machine a request is not handed from one
/// sleeping core to the other and back; with one thread on two cores a lone metadata request takes
/// two thirds of the time. `TOKIO_WORKER_THREADS` says otherwise.
fn workers() -> usize {
    let stated = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|value| value.parse().ok());
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    stated.unwrap_or(cores / 2).clamp(1, WORKERS_MAX)
}

/// More threads than this only pass work around.
const WORKERS_MAX: usize = 16;

fn report(failure: &failure::Failure) -> ExitCode {
    let _ = writeln!(anstream::stderr(), "cairn: {failure}");
    failure.exit.into()
}
