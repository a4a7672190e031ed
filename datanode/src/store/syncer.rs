//! The thread of a disk that makes things durable: one `fdatasync` per dirty segment for all who wait
//! at that moment, the footers of full segments, and the next segment before it is needed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ChunkId, ErrorKind};
use cairn_runtime::bugs::{Bug, planted};
use cairn_runtime::clock;
use cairn_runtime::threads::{Cause, Turn};
use tracing::{debug, warn};

use super::record::{ALIGN, EntryState, FooterEntry, Trailer, align_up};
use super::state::{Entry, FooterPlace, SegmentFile, SyncCallback};
use super::{SEGMENTS, Shared, segment_path};
use crate::metrics;

/// The thread looks around this often even when nobody calls.
const TICK: Duration = Duration::from_secs(1);
/// What nobody asked to sync is synced after as many ticks, about when the kernel writes it back
/// anyway.
const WRITE_BACK_TICKS: u32 = 30;

/// What the thread does next.
enum Work {
    Sync(Vec<(u32, SyncCallback)>),
    Seal(u32),
    Spare(u32),
    Wait,
    Stop,
}

/// Does what is most urgent.
pub(super) fn step(shared: &Arc<Shared>, cause: Cause) -> Turn {
    match next(shared, cause) {
        Work::Sync(waiters) => sync(shared, waiters),
        Work::Seal(id) => seal(shared, id),
        Work::Spare(id) => match shared.create_segment(id, 0) {
            Ok(spare) => shared.lock().spare = Some(spare),
            Err(_) => debug!(disk = %shared.name, "no segment could be prepared ahead of time"),
        },
        Work::Wait => return Turn::Wait(TICK),
        Work::Stop => return Turn::End,
    }
    Turn::Again
}

/// Seals and syncs what is left, after the thread has ended.
pub(super) fn finish(shared: &Arc<Shared>) {
    let retired: Vec<u32> = std::mem::take(&mut shared.lock().seal_queue);
    for id in retired {
        seal(shared, id);
    }
    let spare = shared.lock().spare.take();
    if let Some(spare) = spare
        && let Err(error) = shared.disk.unlink(&segment_path(spare.file.id))
    {
        warn!(disk = %shared.name, %error, "an unused segment stays behind");
    }
    if shared.options.sync {
        let dirty = dirty_segments(shared);
        sync(shared, dirty);
    }
}

fn next(shared: &Shared, cause: Cause) -> Work {
    let mut state = shared.lock();
    if cause == Cause::TimedOut && shared.options.sync {
        let mut due = Vec::new();
        for (&id, segment) in state.segments.iter_mut().filter(|(_, segment)| segment.is_dirty()) {
            segment.dirty_ticks += 1;
            if segment.dirty_ticks >= WRITE_BACK_TICKS {
                due.push((id, Box::new(|_| {}) as SyncCallback));
            }
        }
        state.sync_queue.extend(due);
    }
    if !state.sync_queue.is_empty() {
        return Work::Sync(std::mem::take(&mut state.sync_queue));
    }
    if state.stop {
        return Work::Stop;
    }
    if let Some(id) = state.seal_queue.pop() {
        return Work::Seal(id);
    }
    if shared.wants_spare(&state) {
        let id = state.next_segment;
        state.next_segment = id.saturating_add(1);
        return Work::Spare(id);
    }
    Work::Wait
}

fn dirty_segments(shared: &Shared) -> Vec<(u32, SyncCallback)> {
    let state = shared.lock();
    let dirty = state.segments.iter().filter(|(_, segment)| segment.is_dirty());
    dirty.map(|(&id, _)| (id, Box::new(|_| {}) as SyncCallback)).collect()
}

fn sync(shared: &Shared, waiters: Vec<(u32, SyncCallback)>) {
    let mut by_segment: BTreeMap<u32, Vec<SyncCallback>> = BTreeMap::new();
    for (id, done) in waiters {
        by_segment.entry(id).or_default().push(done);
    }
    for (id, callbacks) in by_segment {
        ::metrics::counter!(metrics::SYNC_WAITERS).increment(callbacks.len() as u64);
        let failed = sync_segment(shared, id).err();
        for done in callbacks {
            done(failed.as_deref().map_or(Ok(()), |fault| Err(shared.faulty(fault))));
        }
    }
}

/// One group commit. What was completed before it started is durable after it, or given up.
fn sync_segment(shared: &Shared, id: u32) -> Result<(), String> {
    let (file, count, watermark, is_new) = {
        let state = shared.lock();
        let Some(segment) = state.segments.get(&id) else {
            return Ok(()); // all its chunks were deleted meanwhile
        };
        if !segment.is_dirty() {
            return Ok(());
        }
        (Arc::clone(&segment.file), segment.records.len(), segment.next_watermark(), segment.is_new)
    };
    let started = clock::now();
    let named = is_new && !planted(Bug::DirectoryNotSynced);
    let result = if named { shared.disk.sync_dir(SEGMENTS.as_ref()) } else { Ok(()) }
        .and_then(|()| if planted(Bug::DatanodeNoSync) { Ok(()) } else { file.file.sync() })
        .or_else(|error| if planted(Bug::FailedSyncForgiven) { Ok(()) } else { Err(error) })
        .map_err(|error| format!("fdatasync failed: {error}"));
    ::metrics::histogram!(metrics::SYNC_SECONDS).record(started.elapsed().as_secs_f64());

    let took = started.elapsed();
    let mut state = shared.lock();
    state.latency.syncs.note(took);
    if let Err(fault) = &result {
        shared.fail(&mut state, fault.clone());
    }
    let Some(segment) = state.segments.get_mut(&id) else {
        return result;
    };
    let done: Vec<ChunkId> = segment.records[segment.synced..count].to_vec();
    segment.dirty_ticks = 0;
    match &result {
        Ok(()) => {
            segment.synced = count;
            segment.watermark = watermark;
            segment.is_new = false;
            if segment.footer.is_some() && segment.synced == segment.records.len() {
                segment.records = Vec::new();
                segment.synced = 0;
            }
            for chunk in done {
                if let Some(entry) = state.index.get_mut(&chunk.get()).filter(|entry| entry.segment == id) {
                    entry.synced = true;
                }
            }
        }
        Err(_) => {
            // The kernel has dropped the pages: asking again would prove nothing.
            let lost: Vec<ChunkId> = segment.records.split_off(segment.synced);
            warn!(disk = %shared.name, segment = id, chunks = lost.len(), "chunks that were not synced are given up");
            for chunk in lost {
                if state.index.get(&chunk.get()).is_some_and(|entry| entry.segment == id && !entry.synced) {
                    state.remove(chunk);
                    shared.bad.report(chunk, ErrorKind::ChunkNotFound);
                }
            }
        }
    }
    result
}

/// Writes the footer of a segment that takes no more records, and cuts off what it does not need.
/// Without a footer the next start reads the segment instead, so a failure is only logged.
fn seal(shared: &Shared, id: u32) {
    let (file, tail, entries) = {
        let mut state = shared.lock();
        let Some(segment) = state.segments.get(&id) else {
            return;
        };
        if segment.live == 0 && segment.pending.is_empty() {
            drop_segment(shared, &mut state, id);
            return;
        }
        let entries: Vec<(ChunkId, Entry)> = segment
            .records
            .iter()
            .filter_map(|&chunk| Some((chunk, *state.index.get(&chunk.get())?)))
            .filter(|(_, entry)| entry.segment == id)
            .collect();
        (Arc::clone(&segment.file), segment.tail, entries)
    };
    let listed = entries.iter().map(|&(chunk, entry)| footer_entry(chunk, entry)).collect();
    let place = match write_footer(&file, tail, listed) {
        Ok(place) => place,
        Err(error) => {
            warn!(disk = %shared.name, segment = id, %error, "a segment stays unsealed");
            return;
        }
    };
    let changed: Vec<(Entry, EntryState)> = {
        let mut state = shared.lock();
        let changed = entries
            .iter()
            .filter_map(|&(chunk, entry)| {
                let now = state.index.get(&chunk.get()).filter(|now| now.same_place(entry));
                let now = now.map_or(EntryState::Deleted, |&now| footer_entry(chunk, now).state);
                (now != footer_entry(chunk, entry).state).then_some((entry, now))
            })
            .collect();
        if let Some(segment) = state.segments.get_mut(&id) {
            segment.footer = Some(place);
            segment.allocated = tail;
            if segment.synced == segment.records.len() || !shared.options.sync {
                segment.records = Vec::new();
                segment.synced = 0;
            }
        }
        changed
    };
    // Changed while the footer was written: those who changed them saw no footer to mark.
    for (entry, now) in changed {
        if let Err(error) = super::deletion::mark_footer(&file, place, entry, now) {
            warn!(disk = %shared.name, segment = id, %error, "a footer entry could not be marked");
        }
    }
    let mut state = shared.lock();
    if state.segments.get(&id).is_some_and(|segment| segment.live == 0) {
        drop_segment(shared, &mut state, id);
    }
}

fn footer_entry(chunk: ChunkId, entry: Entry) -> FooterEntry {
    let state = match entry {
        Entry { quarantined: true, .. } => EntryState::Quarantined,
        Entry { trash: true, .. } => EntryState::Trash,
        _ => EntryState::Live,
    };
    FooterEntry { chunk, offset: entry.offset(), length: entry.length, state }
}

/// Writes a footer behind the last record and cuts the file after it.
pub(super) fn write_footer(
    file: &SegmentFile,
    tail: u64,
    mut entries: Vec<FooterEntry>,
) -> std::io::Result<FooterPlace> {
    entries.sort_by_key(|entry| entry.offset);
    entries.dedup_by_key(|entry| entry.offset); // a chunk deleted and stored again is listed twice
    let offset = align_up(tail).max(ALIGN);
    let count = u32::try_from(entries.len()).map_err(std::io::Error::other)?;
    let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.encode(file.salt)).collect();
    bytes.extend_from_slice(&Trailer { salt: file.salt, footer: offset, count }.encode());
    file.file.write_at(&bytes, offset)?;
    file.file.set_len(offset + bytes.len() as u64)?;
    Ok(FooterPlace { offset, count })
}

/// Removes a segment without records in use.
pub(super) fn drop_segment(shared: &Shared, state: &mut super::state::State, id: u32) {
    state.segments.remove(&id);
    if let Err(error) = shared.disk.unlink(&segment_path(id)) {
        warn!(disk = %shared.name, segment = id, %error, "an empty segment could not be removed");
    }
}
