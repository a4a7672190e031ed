//! What a start makes of the files that it finds.
//!
//! A segment with an intact footer is taken by its footer. Any other is scanned from the front:
//! every record's payload is verified, from the device where possible. Then:
//! - a record that was being written, or was given up or deleted, is dropped; one in the trash stays there;
//! - a complete record that fails verification is quarantined: never served, counted, kept;
//! - unreadable bytes *before* a readable record, or below what is known to have been synced, are
//!   damage: they are quarantined too, and the scan goes on behind them;
//! - what the end of the file cuts off, or never got its header, is a torn tail: it is truncated.
//!
//! Afterwards the segment is sealed; new chunks go to a new one. Nothing is appended to a file whose
//! past is uncertain.

use std::io;
use std::sync::Arc;

use cairn_proto::ChunkId;
use cairn_proto::checksum::verify_blocks;
use cairn_proto::limits::{BLOCK_SIZE, FRAME_SIZE};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock;
use cairn_runtime::disk::DiskFile;
use tracing::{error, info, warn};

use super::deletion::punch_leftover;
use super::error::StoreError;
use super::record::{
    ALIGN, ENTRY_LEN, EntryState, FooterEntry, HEADER_LEN, RecordHeader, RecordState, SegmentHeader,
    TRAILER_LEN, Trailer, Unreadable, blocks, decode_table, payload_start, record_len,
};
use super::state::{Entry, FooterPlace, SegmentFile, SegmentState};
use super::syncer::write_footer;
use super::{SEGMENTS, Shared, segment_id, segment_path};

/// Stands in a footer for a damaged record whose chunk is not known; such an id is never granted.
const UNKNOWN_CHUNK: u64 = i64::MAX as u64;
/// How much is read at once when looking for the next record behind damage.
const SEARCH_SIZE: u64 = 1 << 20;
/// So much is looked at before the search for a byte that is not zero may end.
const BLANK_STEP: usize = 4096;

/// Builds index and segments from the files below the data directory.
pub(super) fn recover(shared: &Shared) -> Result<(), StoreError> {
    let segments = SEGMENTS.as_ref();
    shared.disk.create_dir(segments).map_err(|e| shared.io("making the directory of segments", e))?;
    let names = shared.disk.list(segments).map_err(|e| shared.io("listing segments", e))?;
    let mut ids: Vec<u32> = names.iter().filter_map(|name| segment_id(name)).collect();
    ids.sort_unstable();
    shared.lock().next_segment = ids.last().map_or(1, |last| last.saturating_add(1));
    for id in ids {
        if let Err(error) = load(shared, id) {
            match error {
                StoreError::Io { doing, source, .. } => {
                    shared.fail(&mut shared.lock(), format!("segment {id:08x}: {doing}: {source}"));
                }
                other => return Err(other),
            }
        }
    }
    shared.disk.sync_dir(segments).map_err(|e| shared.io("syncing the directory of segments", e))?;
    let state = shared.lock();
    info!(
        disk = %shared.name, chunks = state.index.len(), segments = state.segments.len(),
        quarantined = state.quarantined, "chunk store is open"
    );
    Ok(())
}

fn newer(shared: &Shared, id: u32, version: u16) -> StoreError {
    StoreError::Unusable(format!(
        "{}/{}: format {version} was written by a newer version of Cairn; this one reads formats up to {}: run the newer one",
        shared.name,
        segment_path(id).display(),
        super::record::FORMAT,
    ))
}

fn load(shared: &Shared, id: u32) -> Result<(), StoreError> {
    let path = segment_path(id);
    let file = shared.disk.open(&path).map_err(|e| shared.io("opening a segment", e))?;
    let len = file.len().map_err(|e| shared.io("opening a segment", e))?;
    if len <= ALIGN {
        // Not even the first record: a crash while the segment was being made.
        return shared.disk.unlink(&path).map_err(|e| shared.io("removing an empty segment", e));
    }
    let salt = match SegmentHeader::decode(&read(&*file, 0, HEADER_LEN).unwrap_or_default()) {
        Ok(header) => Some(header.salt),
        Err(Unreadable::Newer(version)) => return Err(newer(shared, id, version)),
        Err(Unreadable::Blank | Unreadable::Bad) => None,
    };
    let trailer = read(&*file, len - TRAILER_LEN as u64, TRAILER_LEN)
        .ok()
        .and_then(|bytes| Trailer::decode(&bytes, len))
        .filter(|trailer| salt.is_none_or(|salt| salt == trailer.salt));
    let salt = salt
        .or(trailer.map(|t| t.salt))
        .or_else(|| RecordHeader::claimed_salt(&read(&*file, ALIGN, HEADER_LEN).unwrap_or_default()));
    let Some(salt) = salt else {
        shared.lock().quarantined += 1;
        error!(disk = %shared.name, segment = id, "neither the header nor the first record of a segment is readable; the file is kept, nothing of it is served");
        return Ok(());
    };
    let file = Arc::new(SegmentFile::new(id, salt, file));
    let found = match trailer {
        Some(trailer) => match read_footer(&file, trailer) {
            Some(entries) => Found { entries, tail: trailer.footer, footer: Some(trailer) },
            None => {
                warn!(disk = %shared.name, segment = id, "the footer of a segment is damaged; its records are read instead");
                scan(shared, &file, trailer.footer, true)?
            }
        },
        None => scan(shared, &file, len, false)?,
    };
    adopt(shared, &file, found)
}

/// What a segment holds.
struct Found {
    entries: Vec<FooterEntry>,
    tail: u64,
    /// Set when the entries were read from the footer.
    footer: Option<Trailer>,
}

/// The entries of a footer; `None` when any of them is damaged.
fn read_footer(file: &SegmentFile, trailer: Trailer) -> Option<Vec<FooterEntry>> {
    let bytes = read(&*file.file, trailer.footer, trailer.count as usize * ENTRY_LEN).ok()?;
    let entries = bytes.chunks_exact(ENTRY_LEN).map(|raw| FooterEntry::decode(raw, file.salt));
    entries
        .map(|entry| entry.filter(|e| e.offset.is_multiple_of(ALIGN) && e.offset < trailer.footer))
        .collect()
}

fn adopt(shared: &Shared, file: &Arc<SegmentFile>, found: Found) -> Result<(), StoreError> {
    let in_use =
        |e: &&FooterEntry| matches!(e.state, EntryState::Live | EntryState::Quarantined | EntryState::Trash);
    if !found.entries.iter().any(|e| in_use(&e)) {
        return shared
            .disk
            .unlink(&segment_path(file.id))
            .map_err(|e| shared.io("removing an empty segment", e));
    }
    let footer = match found.footer {
        Some(trailer) => Some(FooterPlace { offset: trailer.footer, count: trailer.count }),
        None => {
            let kept = found.entries.iter().filter(in_use).copied().collect();
            write_footer(file, found.tail, kept)
                .inspect_err(
                    |error| warn!(disk = %shared.name, segment = file.id, %error, "a segment stays unsealed"),
                )
                .ok()
        }
    };
    if let Some(place) = footer {
        for entry in found.entries.iter().filter(|e| e.state == EntryState::Deleted) {
            if let Err(error) = punch_leftover(file, place, entry) {
                warn!(disk = %shared.name, chunk = %entry.chunk, %error, "the room of a deleted chunk is not given back");
            }
        }
    }
    // A crash of the process alone leaves pages that are not on the device yet: synced means synced.
    let synced = !shared.options.sync || file.file.sync().is_ok();
    let mut segment = SegmentState::new(Arc::clone(file), found.tail);
    segment.tail = found.tail;
    segment.retired = true;
    segment.is_new = false;
    segment.footer = footer;
    let mut state = shared.lock();
    if !synced {
        shared.fail(&mut state, format!("fdatasync of segment {:08x} failed at start", file.id));
    }
    state.segments.insert(file.id, segment);
    for found in found.entries.iter().filter(in_use) {
        let Some(mut entry) = Entry::new(file.id, found.offset, found.length) else { continue };
        entry.synced = synced;
        entry.quarantined = found.state == EntryState::Quarantined;
        entry.trash = found.state == EntryState::Trash;
        state.quarantined += u64::from(entry.quarantined);
        let held = state.index.get(&found.chunk.get()).is_some_and(|held| held.rank() < entry.rank());
        if found.chunk.get() == UNKNOWN_CHUNK || held {
            // Only keeps its segment.
            if let Some(segment) = state.segments.get_mut(&file.id) {
                segment.live += 1;
            }
            continue;
        }
        // Of two copies the newer counts: the older was quarantined, or its deletion not finished.
        state.remove(found.chunk);
        state.insert(found.chunk, entry);
        if entry.trash {
            // How long it has been there is not recorded: it stays as long again.
            state.trash.push_back((clock::now(), found.chunk));
        }
    }
    Ok(())
}

/// Reads a segment record by record up to `end`.
fn scan(shared: &Shared, file: &Arc<SegmentFile>, end: u64, sealed: bool) -> Result<Found, StoreError> {
    // What the kernel remembers is no proof of what the device holds.
    let _ = file.file.drop_cache(0, end);
    let mut entries = Vec::new();
    let mut gaps = Vec::new();
    let mut watermark = ALIGN;
    let mut at = ALIGN;
    let mut tail = ALIGN;
    while at + HEADER_LEN as u64 <= end {
        let head = read(&*file.file, at, HEADER_LEN).unwrap_or_else(|_| vec![0xff; HEADER_LEN]);
        let header = match RecordHeader::decode(&head, file.salt, at) {
            Ok(header) => header,
            Err(Unreadable::Newer(version)) => return Err(newer(shared, file.id, version)),
            Err(kind) => match next_record(file, at, end) {
                Some(next) => {
                    gaps.push((at, next, kind));
                    at = next;
                    continue;
                }
                None => {
                    gaps.push((at, end, kind));
                    break;
                }
            },
        };
        watermark = watermark.max(header.watermark);
        let next = at + record_len(header.length);
        let payload_end = at + payload_start(header.length) + u64::from(header.length);
        if payload_end > end {
            gaps.push((at, end, Unreadable::Blank)); // cut off by the end of the file
            break;
        }
        match header.state {
            // In the trash, damaged or never synced: nobody will miss it.
            RecordState::Trash if verify(file, &header).is_err() => drop_record(shared, file, at, next),
            RecordState::Complete | RecordState::Trash => {
                let state = match verify(file, &header) {
                    Ok(()) if header.state == RecordState::Trash => EntryState::Trash,
                    Ok(()) => EntryState::Live,
                    Err(what) => {
                        error!(disk = %shared.name, segment = file.id, chunk = %header.chunk, offset = at, what, "a record is damaged and set aside");
                        EntryState::Quarantined
                    }
                };
                entries.push(FooterEntry { chunk: header.chunk, offset: at, length: header.length, state });
                tail = next;
            }
            RecordState::Quarantined => {
                let state = EntryState::Quarantined;
                entries.push(FooterEntry { chunk: header.chunk, offset: at, length: header.length, state });
                tail = next;
            }
            RecordState::Intent | RecordState::Deleted | RecordState::Abandoned => {
                drop_record(shared, file, at, next);
            }
        }
        at = next;
    }
    for (start, stop, kind) in gaps {
        if is_damage(file, start, stop, kind, watermark, tail, sealed) {
            error!(disk = %shared.name, segment = file.id, offset = start, bytes = stop - start, "unreadable records are set aside");
            entries.push(FooterEntry {
                chunk: ChunkId::new(UNKNOWN_CHUNK).map_err(|e| StoreError::Unusable(e.to_string()))?,
                offset: start,
                length: 1,
                state: EntryState::Quarantined,
            });
            tail = tail.max(super::record::align_up(stop));
        } else if start >= tail && !is_blank(file, start, stop) {
            warn!(disk = %shared.name, segment = file.id, offset = start, bytes = stop - start, "a torn tail is truncated");
        }
    }
    Ok(Found { entries, tail, footer: None })
}

fn drop_record(shared: &Shared, file: &SegmentFile, at: u64, next: u64) {
    if let Err(error) = file.file.punch(at, next - at) {
        warn!(disk = %shared.name, segment = file.id, %error, "the room of a dropped record is not given back");
    }
}

/// Tells damage from what was merely never finished.
fn is_damage(
    file: &SegmentFile,
    start: u64,
    stop: u64,
    kind: Unreadable,
    watermark: u64,
    tail: u64,
    sealed: bool,
) -> bool {
    match kind {
        // One sector can not be torn: a header that is there but wrong was damaged later.
        Unreadable::Bad | Unreadable::Newer(_) => true,
        // A sealed segment has holes where chunks were deleted.
        Unreadable::Blank if sealed => start < tail && !is_blank(file, start, stop),
        Unreadable::Blank => start < watermark,
    }
}

/// Whether a range holds only zeros.
fn is_blank(file: &SegmentFile, start: u64, stop: u64) -> bool {
    let mut at = start;
    while at < stop {
        let len = SEARCH_SIZE.min(stop - at);
        match read(&*file.file, at, len as usize) {
            Ok(bytes) if bytes.chunks(BLANK_STEP).all(is_zero) => at += len,
            _ => return false,
        }
    }
    true
}

/// Without an early end, so that many bytes are looked at with one instruction.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

/// The next readable header behind damage.
fn next_record(file: &SegmentFile, from: u64, end: u64) -> Option<u64> {
    let mut at = from + ALIGN;
    while at + HEADER_LEN as u64 <= end {
        let len = SEARCH_SIZE.min(end - at);
        let bytes = match read(&*file.file, at, len as usize) {
            Ok(bytes) => bytes,
            Err(_) => {
                at += ALIGN; // a bad sector: go on page by page
                continue;
            }
        };
        for (index, page) in bytes.chunks(ALIGN as usize).enumerate() {
            let offset = at + index as u64 * ALIGN;
            if page.len() >= HEADER_LEN && RecordHeader::decode(page, file.salt, offset).is_ok() {
                return Some(offset);
            }
        }
        at += SEARCH_SIZE;
    }
    None
}

/// Verifies a complete record against its own checksums.
fn verify(file: &SegmentFile, header: &RecordHeader) -> Result<(), String> {
    let table = read(&*file.file, header.offset + HEADER_LEN as u64, 4 * blocks(header.length))
        .map_err(|error| format!("its checksums can not be read: {error}"))?;
    let crcs = decode_table(&table, header).ok_or("its table of checksums is damaged")?;
    let start = header.offset + payload_start(header.length);
    for (frame, crcs) in crcs.chunks(FRAME_SIZE / BLOCK_SIZE).enumerate() {
        let offset = frame * FRAME_SIZE;
        let len = FRAME_SIZE.min(header.length as usize - offset);
        let data = read(&*file.file, start + offset as u64, len).map_err(|e| format!("at {offset}: {e}"))?;
        if planted(Bug::TornTailKept) {
            continue;
        }
        verify_blocks(&data, crcs).map_err(|mismatch| format!("at {offset}: {mismatch}"))?;
    }
    Ok(())
}

fn read(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    file.read_at(&mut buffer, offset)?;
    Ok(buffer)
}
