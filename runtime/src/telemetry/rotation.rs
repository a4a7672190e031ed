//! A log file that is kept below a size.
#![allow(clippy::disallowed_methods)] // a log, no data of the cluster

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// A log file of this size moves aside, to `.1` behind its name, and a new one begins: a process that runs for years
/// keeps its last 16 to 32 MiB of log.
pub const LOG_SIZE_MAX: u64 = 16 << 20;

/// Standard error, which somebody has pointed at a file.
///
/// At the size that is possible, the file is renamed and standard output and error are pointed at a new one. So
/// nothing is lost or copied, and what does not come from the log (a panic) goes to the same place.
#[derive(Debug, Clone)]
pub(super) struct Rotating(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    length: u64,
    length_max: u64,
    redirect: fn(&std::fs::File) -> io::Result<()>,
}

impl Rotating {
    /// For a process whose standard output and error go to `path`.
    pub(super) fn of_process(path: PathBuf) -> Self {
        let redirect = |file: &std::fs::File| {
            rustix::stdio::dup2_stdout(file)?;
            Ok(rustix::stdio::dup2_stderr(file)?)
        };
        Self::new(path, LOG_SIZE_MAX, redirect)
    }

    fn new(path: PathBuf, length_max: u64, redirect: fn(&std::fs::File) -> io::Result<()>) -> Self {
        let length = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        Self(Arc::new(Mutex::new(State { path, length, length_max, redirect })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes room for `length` more bytes. When that is not possible, the log goes on where it is.
    fn make_room(&mut self, length: u64) {
        if self.length > 0 && self.length + length > self.length_max {
            // Counted from the beginning in any case, so that a failure is not tried again with each line.
            self.length = 0;
            if let Err(error) = self.rotate() {
                let _ =
                    writeln!(io::stderr(), "the log {} can not be moved aside: {error}", self.path.display());
            }
        }
        self.length += length;
    }

    fn rotate(&self) -> io::Result<()> {
        let mut aside = self.path.as_os_str().to_owned();
        aside.push(".1");
        std::fs::rename(&self.path, aside)?;
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        (self.redirect)(&file)
    }
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The lock is held while a line is written, so that none goes to two files.
        let mut state = self.lock();
        state.make_room(bytes.len() as u64);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Rotating {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_moves_aside_before_it_is_larger_than_it_may_be() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("service.log");
        std::fs::write(&path, "0123456789").unwrap();
        let log = Rotating::new(path.clone(), 16, |_| Ok(()));
        log.lock().make_room(6);
        assert!(!place.path().join("service.log.1").exists(), "it fits");
        log.lock().make_room(1);
        assert_eq!(std::fs::read(place.path().join("service.log.1")).unwrap(), b"0123456789");
        assert_eq!(std::fs::read(&path).unwrap(), b"", "a new one has begun");
        std::fs::write(&path, "second").unwrap();
        log.lock().make_room(16);
        assert_eq!(std::fs::read(place.path().join("service.log.1")).unwrap(), b"second", "one is kept");
    }
}
