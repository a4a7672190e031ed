//! Tells a torn end of SQLite's log from damage in its middle.
//!
//! SQLite replays its log up to the first frame that does not verify and says nothing of what follows. After
//! a crash that is right: the rest was never acknowledged. After damage it drops commits that were. With
//! `synchronous=FULL` a commit begins when the one before it is durable, so at most one can be torn: when
//! two or more ended behind the bad frame, the log is damaged.
//!
//! Format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::io;
use std::path::Path;

use cairn_runtime::disk::{DiskFile, RealDisk, open_if_present};

use super::super::StoreError;

pub(super) const LOG: &str = "meta.db-wal";
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The magic number; its last bit is set when checksums read words in big-endian order.
const MAGIC: u32 = 0x377f_0682;
/// Commits behind a bad frame that a crash can explain: the one that was being written.
const TORN_MAX: usize = 1;

/// `Unusable`: the log is damaged, so that opening the store would undo acknowledged changes.
pub(super) fn check(disk: &RealDisk, directory: &Path) -> Result<(), StoreError> {
    let place = directory.join(LOG);
    let unreadable =
        |error: io::Error| StoreError::Unusable(format!("can not read {}: {error}", place.display()));
    let Some(file) = open_if_present(disk, Path::new(LOG)).map_err(unreadable)? else {
        return Ok(());
    };
    match lost(&*file).map_err(unreadable)? {
        None => Ok(()),
        Some(loss) => Err(StoreError::Unusable(format!(
            "{} is damaged {loss}, so that acknowledged changes would be undone; restore the metadata from a \
             backup into another directory (`cairn coordinator restore`), or move this file away to go \
             on with the older state in meta.db",
            place.display()
        ))),
    }
}

/// What makes the log damaged; `None` when a crash explains its state.
fn lost(file: &dyn DiskFile) -> io::Result<Option<String>> {
    let length = file.len()?;
    let mut header = [0; HEADER];
    if length <= HEADER as u64 {
        return Ok(None);
    }
    file.read_at(&mut header, 0)?;
    // The header is durable before the first frame is written.
    let Some(mut log) = Log::begin(&header) else {
        return Ok(Some(String::from("in its header")));
    };
    let mut frame = vec![0; FRAME_HEADER + log.page];
    let mut at = HEADER as u64;
    let mut bad_at = None;
    let mut commits_behind = 0;
    while at + frame.len() as u64 <= length {
        file.read_at(&mut frame, at)?;
        if bad_at.is_none() && !log.follows(&frame) {
            bad_at = Some(at);
        }
        if bad_at.is_some() && log.is_of_this_round(&frame) && word(&frame, 4) != 0 {
            commits_behind += 1;
        }
        at += frame.len() as u64;
    }
    let damaged = bad_at.filter(|_| commits_behind > TORN_MAX);
    Ok(damaged.map(|at| format!("at byte {at} with {commits_behind} commits behind it")))
}

/// The big-endian word at `at`.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Where a reader of the log stands.
struct Log {
    page: usize,
    big_endian: bool,
    salts: (u32, u32),
    sums: (u32, u32),
}

impl Log {
    fn begin(header: &[u8; HEADER]) -> Option<Self> {
        let magic = word(header, 0);
        let page = word(header, 8) as usize;
        if magic & !1 != MAGIC || !page.is_power_of_two() || !(512..=65_536).contains(&page) {
            return None;
        }
        let mut log = Self {
            page,
            big_endian: magic & 1 == 1,
            salts: (word(header, 16), word(header, 20)),
            sums: (0, 0),
        };
        log.add(&header[..24]);
        (log.sums == (word(header, 24), word(header, 28))).then_some(log)
    }

    /// Written since the log was last begun anew; older frames may follow those.
    fn is_of_this_round(&self, frame: &[u8]) -> bool {
        self.salts == (word(frame, 8), word(frame, 12))
    }

    /// Whether the frame is the next one, whole.
    fn follows(&mut self, frame: &[u8]) -> bool {
        self.add(&frame[..8]);
        self.add(&frame[FRAME_HEADER..]);
        self.is_of_this_round(frame) && self.sums == (word(frame, 16), word(frame, 20))
    }

    fn add(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks_exact(8) {
            let (mut first, mut second) = (word(pair, 0), word(pair, 4));
            if !self.big_endian {
                (first, second) = (first.swap_bytes(), second.swap_bytes());
            }
            self.sums.0 = self.sums.0.wrapping_add(first).wrapping_add(self.sums.1);
            self.sums.1 = self.sums.1.wrapping_add(second).wrapping_add(self.sums.0);
        }
    }
}
