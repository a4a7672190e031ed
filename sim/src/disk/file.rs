//! The content of one simulated file.

use std::collections::BTreeMap;
use std::io;

use rand::Rng;
use rand::rngs::StdRng;

/// What reaches the device as one, unless it is torn.
pub(super) const PAGE: usize = 4096;
/// What is never torn.
const SECTOR: usize = 512;

type Page = Box<[u8; PAGE]>;

/// Pages that hold anything but zeros, and what the device has in place of those that were changed
/// since the last sync.
#[derive(Debug, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Page>,
    length: u64,
    /// Bytes given back within the length.
    punched: u64,
    /// Changed page → what the device has; `None`: zeros.
    unsynced: BTreeMap<u64, Option<Page>>,
    synced_length: u64,
    handles: u32,
}

impl Content {
    pub(super) fn open(&mut self) {
        self.handles += 1;
    }

    pub(super) fn close(&mut self) {
        self.handles = self.handles.saturating_sub(1);
    }

    pub(super) fn close_all(&mut self) {
        self.handles = 0;
    }

    pub(super) fn is_open(&self) -> bool {
        self.handles > 0
    }

    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// Bytes that it takes on the device.
    pub(super) fn space(&self) -> u64 {
        self.length.saturating_sub(self.punched)
    }

    /// Pages that hold something.
    pub(super) fn filled_pages(&self) -> Vec<u64> {
        self.pages.keys().copied().collect()
    }

    fn page_for_change(&mut self, index: u64) -> &mut Page {
        let before = self.pages.get(&index).cloned();
        self.unsynced.entry(index).or_insert(before);
        self.pages.entry(index).or_insert_with(|| Box::new([0; PAGE]))
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let count = (PAGE - within).min(data.len() - done);
            let page = self.page_for_change(at / PAGE as u64);
            page[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buffer.len() as u64 > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let count = (PAGE - within).min(buffer.len() - done);
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => buffer[done..done + count].copy_from_slice(&page[within..within + count]),
                None => buffer[done..done + count].fill(0),
            }
            done += count;
        }
        Ok(())
    }

    pub(super) fn set_len(&mut self, length: u64) {
        if length < self.length {
            let within = (length % PAGE as u64) as usize;
            let first_gone = length.div_ceil(PAGE as u64);
            let gone: Vec<u64> = self.pages.range(first_gone..).map(|(&index, _)| index).collect();
            for index in gone {
                self.page_for_change(index);
                self.pages.remove(&index);
            }
            if within > 0 && self.pages.contains_key(&(length / PAGE as u64)) {
                self.page_for_change(length / PAGE as u64)[within..].fill(0);
            }
        }
        self.length = length;
        self.punched = self.punched.min(length);
    }

    pub(super) fn punch(&mut self, offset: u64, length: u64) {
        let first = offset.div_ceil(PAGE as u64);
        let last = (offset + length) / PAGE as u64;
        let gone: Vec<u64> = self.pages.range(first..last.max(first)).map(|(&index, _)| index).collect();
        for index in gone {
            self.page_for_change(index);
            self.pages.remove(&index);
        }
        self.punched = (self.punched + (last.saturating_sub(first)) * PAGE as u64).min(self.length);
    }

    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
        self.synced_length = self.length;
    }

    /// Flips one bit, here and on the device.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        let (index, within) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
        if let Some(page) = self.pages.get_mut(&index) {
            page[within] ^= 1 << bit;
        }
    }

    /// Decides what the device has of unsynced changes. Returns how many pages changed by it.
    pub(super) fn cut_power(&mut self, rng: &mut StdRng) -> u64 {
        let mut lost = 0;
        for (index, old) in std::mem::take(&mut self.unsynced) {
            let new = self.pages.get(&index).cloned();
            let zeros = || Box::new([0; PAGE]);
            let kept = match rng.random_range(0..3) {
                0 => new,
                1 => old,
                _ => {
                    let (old, new) = (old.unwrap_or_else(zeros), new.unwrap_or_else(zeros));
                    let mut mix = old;
                    for sector in (0..PAGE).step_by(SECTOR) {
                        if rng.random_bool(0.5) {
                            mix[sector..sector + SECTOR].copy_from_slice(&new[sector..sector + SECTOR]);
                        }
                    }
                    Some(mix)
                }
            };
            lost += u64::from(kept != self.pages.get(&index).cloned());
            match kept {
                Some(page) => drop(self.pages.insert(index, page)),
                None => drop(self.pages.remove(&index)),
            }
        }
        if self.length != self.synced_length && rng.random_bool(0.5) {
            let length = self.synced_length;
            self.set_len(length);
            lost += 1;
        }
        self.unsynced.clear();
        self.synced_length = self.length;
        lost
    }
}
