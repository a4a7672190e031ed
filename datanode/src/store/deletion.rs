//! Deleting chunks: the record is marked (in its header and in the footer of a sealed segment), the
//! marks are synced, then the payload becomes a hole. In this order, so that a start after a crash
//! finds the chunk whole, or deleted, never half of it as live.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use cairn_proto::ChunkId;
use tracing::warn;

use super::Shared;
use super::error::StoreError;
use super::record::{
    ALIGN, ENTRY_LEN, EntryState, FooterEntry, HEADER_LEN, RecordHeader, RecordState, record_len,
};
use super::state::{Entry, FooterPlace, SegmentFile};
use super::syncer::drop_segment;

/// Deletes chunks and returns those that could not be, with the reason.
pub(super) fn delete(shared: &Shared, chunks: &[ChunkId]) -> Vec<(ChunkId, StoreError)> {
    let mut failed = Vec::new();
    let mut by_segment: BTreeMap<u32, Vec<(ChunkId, Entry)>> = BTreeMap::new();
    {
        let mut state = shared.lock();
        for &chunk in chunks {
            if state.writing.contains(&chunk.get()) {
                failed.push((chunk, StoreError::Exists(chunk)));
            } else if let Some(entry) = state.remove(chunk) {
                by_segment.entry(entry.segment).or_default().push((chunk, entry));
            }
        }
    }
    for (id, records) in by_segment {
        let place = shared.lock().segments.get(&id).map(|s| (Arc::clone(&s.file), s.footer));
        let Some((file, footer)) = place else { continue };
        match mark_all(shared, &file, footer, &records) {
            Ok(()) => punch_all(shared, &file, footer, &records),
            Err(source) => {
                // Still there as far as the disk is concerned: it has to be asked for again.
                let mut state = shared.lock();
                for &(chunk, entry) in &records {
                    if state.segments.contains_key(&id) {
                        state.insert(chunk, entry);
                    }
                    let source = io::Error::new(source.kind(), source.to_string());
                    failed.push((chunk, shared.io("marking a record as deleted", source)));
                }
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

fn mark_all(
    shared: &Shared,
    file: &SegmentFile,
    footer: Option<FooterPlace>,
    records: &[(ChunkId, Entry)],
) -> io::Result<()> {
    for &(chunk, entry) in records {
        mark_header(file, entry, Some(chunk), RecordState::Deleted)?;
        if let Some(place) = footer {
            mark_footer(file, place, entry, EntryState::Deleted)?;
        }
    }
    if shared.options.sync { file.file.sync() } else { Ok(()) }
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
