//! Deleting chunks, at first into the trash: the record is marked (in its header and in the footer of a
//! sealed segment) and the marks are synced; for good, the payload then becomes a hole. In this order,
//! so that a start after a crash finds the chunk whole, in the trash, or deleted, never half of it as
//! live.
//!
//! What is in the trash is not served and can be brought back by the same marks. It goes for good after
//! a while, or when its room is needed, oldest first. [`Shared::changes`] lets one of these happen at a
//! time; marks that a failure leaves behind say what was asked for.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;

use cairn_proto::ChunkId;
use cairn_runtime::clock::{self, Instant};
use tracing::warn;

use super::Shared;
use super::error::StoreError;
use super::record::{
    ALIGN, ENTRY_LEN, EntryState, FooterEntry, HEADER_LEN, RecordHeader, RecordState, record_len,
};
use super::state::{Entry, FooterPlace, SegmentFile};
use super::syncer::drop_segment;

/// Deletes chunks (into the trash, unless none is kept) and returns those that could not be, with the
/// reason. A damaged copy goes for good: bringing it back would bring nothing.
pub(super) fn delete(shared: &Shared, chunks: &[ChunkId]) -> Vec<(ChunkId, StoreError)> {
    let _changes = shared.lock_changes();
    let keep = !shared.options.trash_time.is_zero();
    let mut failed = Vec::new();
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    {
        let mut state = shared.lock();
        for &chunk in chunks {
            if state.writing.contains(&chunk.get()) {
                failed.push((chunk, StoreError::Exists(chunk)));
                continue;
            }
            let Some(entry) = state.index.get(&chunk.get()).copied() else { continue };
            if keep && !entry.quarantined {
                if !entry.trash {
                    state.set_trash(chunk, true);
                    kept.push((chunk, entry));
                }
            } else if let Some(entry) = state.remove(chunk) {
                gone.push((chunk, entry));
            }
        }
    }
    failed.extend(erase(shared, gone));
    let unmarked = mark(shared, &kept, RecordState::Trash, EntryState::Trash);
    let now = clock::now();
    let mut state = shared.lock();
    for (chunk, _) in kept {
        match unmarked.iter().any(|(other, _)| *other == chunk) {
            true => state.set_trash(chunk, false),
            false => state.trash.push_back((now, chunk)),
        }
    }
    drop(state);
    failed.extend(unmarked);
    failed
}

/// Brings chunks back from the trash; one that was never deleted is fine. Returns those that could not
/// be, with the reason. Durable on return.
pub(super) fn restore(shared: &Shared, chunks: &[ChunkId]) -> Vec<(ChunkId, StoreError)> {
    let _changes = shared.lock_changes();
    let mut failed = Vec::new();
    let mut found = Vec::new();
    let mut unsealed = HashSet::new();
    {
        let state = shared.lock();
        for &chunk in chunks {
            match state.index.get(&chunk.get()) {
                Some(entry) if entry.trash => {
                    found.push((chunk, *entry));
                    if state.segments.get(&entry.segment).is_some_and(|segment| segment.footer.is_none()) {
                        unsealed.insert(entry.segment);
                    }
                }
                Some(entry) if !entry.quarantined => {}
                _ => failed.push((chunk, StoreError::NotFound(chunk))),
            }
        }
    }
    let unmarked = mark(shared, &found, RecordState::Complete, EntryState::Live);
    let restored: HashSet<ChunkId> = found
        .iter()
        .map(|&(chunk, _)| chunk)
        .filter(|chunk| !unmarked.iter().any(|(other, _)| other == chunk))
        .collect();
    let mut state = shared.lock();
    for &chunk in &restored {
        state.set_trash(chunk, false);
    }
    state.trash.retain(|(_, chunk)| !restored.contains(chunk));
    // Sealed meanwhile, with a footer that says what was so before. One that is sealed from here on is
    // compared with the index by who seals it.
    found.retain(|(chunk, entry)| {
        let sealed = state.segments.get(&entry.segment).is_some_and(|segment| segment.footer.is_some());
        sealed && unsealed.contains(&entry.segment) && restored.contains(chunk)
    });
    drop(state);
    failed.extend(unmarked);
    failed.extend(mark(shared, &found, RecordState::Complete, EntryState::Live));
    failed
}

/// Gives up what has been in the trash since before `old`, and more, oldest first, until `bytes` are
/// free; at most `count` chunks. Returns the bytes that became free.
pub(super) fn purge(shared: &Shared, old: Option<Instant>, bytes: u64, count: usize) -> u64 {
    let _changes = shared.lock_changes();
    let mut gone: Vec<(ChunkId, Entry)> = Vec::new();
    let mut freed = 0;
    {
        let mut state = shared.lock();
        while gone.len() < count {
            let Some(&(since, chunk)) = state.trash.front() else { break };
            if freed >= bytes && old.is_none_or(|old| since > old) {
                break;
            }
            state.trash.pop_front();
            if state.index.get(&chunk.get()).is_some_and(|entry| entry.trash)
                && let Some(entry) = state.remove(chunk)
            {
                freed += entry.record_len();
                gone.push((chunk, entry));
            }
        }
    }
    let lengths: BTreeMap<ChunkId, u64> =
        gone.iter().map(|(chunk, entry)| (*chunk, entry.record_len())).collect();
    for (chunk, error) in erase(shared, gone) {
        // Who asks until there is room must not be told of room that is none.
        freed -= lengths.get(&chunk).copied().unwrap_or(0).min(freed);
        warn!(disk = %shared.name, %chunk, %error, "a chunk stays in the trash");
        shared.lock().trash.push_back((clock::now(), chunk));
    }
    freed
}

/// Deletes for good what was taken out of the index. What fails is put back.
fn erase(shared: &Shared, records: Vec<(ChunkId, Entry)>) -> Vec<(ChunkId, StoreError)> {
    let mut failed = Vec::new();
    for (id, records) in by_segment(records) {
        let place = shared.lock().segments.get(&id).map(|s| (Arc::clone(&s.file), s.footer));
        let Some((file, footer)) = place else { continue };
        match mark_all(shared, &file, footer, &records, RecordState::Deleted, EntryState::Deleted) {
            Ok(()) => punch_all(shared, &file, footer, &records),
            Err(source) => {
                // Still there as far as the disk is concerned: it has to be asked for again.
                let mut state = shared.lock();
                for &(chunk, entry) in &records {
                    if state.segments.contains_key(&id) {
                        state.insert(chunk, entry);
                    }
                }
                drop(state);
                failed.extend(unmarked(shared, &records, &source));
                continue;
            }
        }
        let mut state = shared.lock();
        let empty = state.segments.get(&id).is_some_and(|s| s.live == 0 && s.footer.is_some());
        if empty {
            drop_segment(shared, &mut state, id);
        }
    }
    failed
}

/// Marks records and syncs the marks. Returns those that could not be marked.
fn mark(
    shared: &Shared,
    records: &[(ChunkId, Entry)],
    state: RecordState,
    listed: EntryState,
) -> Vec<(ChunkId, StoreError)> {
    let mut failed = Vec::new();
    for (id, records) in by_segment(records.to_vec()) {
        let place = shared.lock().segments.get(&id).map(|s| (Arc::clone(&s.file), s.footer));
        let Some((file, footer)) = place else { continue };
        if let Err(source) = mark_all(shared, &file, footer, &records, state, listed) {
            failed.extend(unmarked(shared, &records, &source));
        }
    }
    failed
}

fn by_segment(records: Vec<(ChunkId, Entry)>) -> BTreeMap<u32, Vec<(ChunkId, Entry)>> {
    let mut segments: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (chunk, entry) in records {
        segments.entry(entry.segment).or_default().push((chunk, entry));
    }
    segments
}

fn unmarked(shared: &Shared, records: &[(ChunkId, Entry)], source: &io::Error) -> Vec<(ChunkId, StoreError)> {
    let again = || io::Error::new(source.kind(), source.to_string());
    records.iter().map(|&(chunk, _)| (chunk, shared.io("marking a record", again()))).collect()
}

fn mark_all(
    shared: &Shared,
    file: &SegmentFile,
    footer: Option<FooterPlace>,
    records: &[(ChunkId, Entry)],
    state: RecordState,
    listed: EntryState,
) -> io::Result<()> {
    for &(chunk, entry) in records {
        // A damaged header is written anew to delete the record, never to bring it back.
        let named = (state == RecordState::Deleted).then_some(chunk);
        mark_header(file, entry, named, state)?;
        if let Some(place) = footer {
            mark_footer(file, place, entry, listed)?;
        }
    }
    if shared.options.sync && !records.is_empty() { file.file.sync() } else { Ok(()) }
}

/// Gives the room back. In an unsealed segment the header's page stays, since a scan steps by it.
fn punch_all(shared: &Shared, file: &SegmentFile, footer: Option<FooterPlace>, records: &[(ChunkId, Entry)]) {
    for &(chunk, entry) in records {
        let kept = if footer.is_some() { 0 } else { ALIGN };
        let length = entry.record_len() - kept;
        let punched = match length {
            0 => Ok(()),
            _ => file.file.punch(entry.offset() + kept, length),
        };
        let marked = match footer {
            Some(place) if punched.is_ok() => mark_footer(file, place, entry, EntryState::Punched),
            _ => Ok(()),
        };
        if let Err(error) = punched.and(marked) {
            warn!(disk = %shared.name, %chunk, %error, "the room of a deleted chunk is not given back");
        }
    }
}

/// Marks a damaged record on the disk, as far as that is possible.
pub(super) fn mark_quarantined(shared: &Shared, entry: Entry) {
    let place = shared.lock().segments.get(&entry.segment).map(|s| (Arc::clone(&s.file), s.footer));
    let Some((file, footer)) = place else { return };
    let header = mark_header(&file, entry, None, RecordState::Quarantined);
    let listed = footer.map_or(Ok(()), |place| mark_footer(&file, place, entry, EntryState::Quarantined));
    if let Err(error) = header.and(listed) {
        warn!(disk = %shared.name, segment = entry.segment, %error, "a damaged record could not be marked");
    }
}

/// Changes the state in a record's header. A header that is itself damaged is left as it is, unless
/// the chunk is named: then a new one takes its place.
fn mark_header(
    file: &SegmentFile,
    entry: Entry,
    chunk: Option<ChunkId>,
    state: RecordState,
) -> io::Result<()> {
    let mut bytes = [0u8; HEADER_LEN];
    file.file.read_at(&mut bytes, entry.offset())?;
    let fresh = |chunk| RecordHeader {
        state,
        chunk,
        set: 0,
        length: entry.length,
        table_crc: 0,
        offset: entry.offset(),
        watermark: 0,
    };
    let header = RecordHeader::decode(&bytes, file.salt, entry.offset()).ok().or(chunk.map(fresh));
    match header {
        Some(header) => {
            file.file.write_at(&RecordHeader { state, ..header }.encode(file.salt), entry.offset())
        }
        None => Ok(()),
    }
}

/// Changes the state of a record in the footer; found by its offset, by which the footer is sorted.
pub(super) fn mark_footer(
    file: &SegmentFile,
    place: FooterPlace,
    entry: Entry,
    state: EntryState,
) -> io::Result<()> {
    let (mut low, mut high) = (0u64, u64::from(place.count));
    while low < high {
        let middle = low + (high - low) / 2;
        let at = place.offset + middle * ENTRY_LEN as u64;
        let mut bytes = [0u8; ENTRY_LEN];
        file.file.read_at(&mut bytes, at)?;
        let Some(found) = FooterEntry::decode(&bytes, file.salt) else {
            // A damaged footer is not used at the next start; the header has the mark.
            return Ok(());
        };
        match found.offset.cmp(&entry.offset()) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => {
                return file.file.write_at(&FooterEntry { state, ..found }.encode(file.salt), at);
            }
        }
    }
    Ok(())
}

/// Punches what an earlier run deleted but did not get to punch.
pub(super) fn punch_leftover(file: &SegmentFile, place: FooterPlace, found: &FooterEntry) -> io::Result<()> {
    file.file.punch(found.offset, record_len(found.length))?;
    match Entry::new(file.id, found.offset, found.length) {
        Some(entry) => mark_footer(file, place, entry, EntryState::Punched),
        None => Ok(()),
    }
}
