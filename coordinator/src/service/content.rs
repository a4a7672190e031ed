//! File content: plans, commits, layouts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::limits::LIST_MAX;
use cairn_proto::{ByteRange, ChunkId, ErrorKind, FileName, InodeId, SessionId, v1};
use cairn_runtime::net;

use super::coherence::{Look, until_released};
use super::{Shared, wire};
use crate::error::OpError;
use crate::executor::Tx;
use crate::leases::Need;
use crate::ops::layout::{Layout, layout};
use crate::ops::{self, OpenBy};
use crate::sessions::Open;
use crate::slots::{self, Method};
use crate::store::{Inode, Key, Reader};
use crate::workers::sync::sync;

/// Extents of a layout unless the client says otherwise.
const EXTENTS_DEFAULT: usize = 1024;
/// What has not been synced by then is told; less than what a client takes for one try (5 s).
const SYNC_TIME: Duration = Duration::from_secs(4);
/// Bytes of a reply for an extent with its chunk, and for the result of a commit.
const EXTENT_BYTES: usize = 128;
const RESULT_BYTES: usize = 512;
/// Layouts of more extents are read on a thread of the pool.
const EXTENTS_HERE: usize = 2048;

pub(super) async fn upload_file(
    shared: &Shared,
    request: v1::UploadFileRequest,
) -> Result<v1::UploadFileResponse, OpError> {
    let map_revision = request.map_revision;
    check_path(&request.path)?;
    let plan = wire::plan(request, shared.context.policy.chunk_size)?;
    let chunk_size = plan.chunk_size;
    let plans = shared.executor.run(move |tx| ops::plan::plan(tx, &plan)).await?;
    let range = |plan: &crate::store::Plan| v1::PlanRange {
        first: plan.first.get(),
        count: plan.count,
        set: plan.replica_set.get(),
        epoch: plan.epoch,
        token: bytes::Bytes::new(),
    };
    Ok(v1::UploadFileResponse {
        ranges: plans.iter().map(range).collect(),
        expires_in_ms: u64::try_from(shared.context.policy.plan_ns / 1_000_000).unwrap_or(0),
        map: shared.context.cluster.map_if_newer(map_revision),
        chunk_size,
    })
}

/// Each part of a path is a name.
fn check_path(path: &bytes::Bytes) -> Result<(), OpError> {
    for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
        FileName::new(path.slice_ref(part))?;
    }
    Ok(())
}

pub(super) async fn confirm_upload(
    shared: &Shared,
    mut request: v1::ConfirmUploadRequest,
) -> Result<v1::ConfirmUploadResponse, OpError> {
    let id = wire::request_id(request.id.take())?;
    let room = request.files.len() * RESULT_BYTES;
    let decoded = wire::confirm(id.session, request).map(Arc::new).map_err(|error| error.to_wire());
    loop {
        let decoded = decoded.clone();
        let attempt = shared.under_way.enter(id).await;
        net::reply_room(room).await;
        let job = move |tx: &mut Tx| {
            let _attempt = attempt;
            slots::once(tx, &id, Method::ConfirmUpload, |tx| {
                let confirm = decoded?;
                let results = ops::commit::confirm(tx, &confirm)?;
                let results = results
                    .into_iter()
                    .zip(&confirm.files)
                    .map(|(result, file)| wire::committed(result, tx.context.unsynced.is_synced(file.inode)));
                Ok(v1::ConfirmUploadResponse { results: results.collect() })
            })
        };
        match shared.executor.run(job).await {
            Err(OpError::Leased(inodes)) => {
                until_released(shared, Some(id.session), &inodes, Need::Change).await?;
            }
            outcome => return outcome,
        }
    }
}

pub(super) async fn download_file(
    shared: &Shared,
    request: v1::DownloadFileRequest,
) -> Result<v1::DownloadFileResponse, OpError> {
    let inode = wire::inode_id(request.inode)?;
    let range = match request.length {
        0 => None,
        _ => Some(readable(request.offset, request.length)?),
    };
    let extents_max = match request.extents_max as usize {
        0 => EXTENTS_DEFAULT,
        n if n <= LIST_MAX => n,
        n => return Err(OpError::invalid(format!("{n} extents; at most {LIST_MAX} are possible"))),
    };
    let asker = match &request.open {
        Some(open) if request.session.is_empty() => open.session.clone(),
        _ => request.session,
    };
    let open = request.open.map(wire::open_by).transpose()?;
    let mut look = Look::begin(shared, &asker, None).await?;
    // First the registration, then the look: an unlink in between finds the holder.
    if let Some(OpenBy { session, sequence }) = open {
        shared.context.sessions.register(session, Open { inode, sequence })?;
    }
    let read = move |reader: &dyn crate::store::Reader| layout(reader, inode, range, extents_max);
    let found = loop {
        net::reply_room(extents_max * EXTENT_BYTES).await;
        let found =
            if extents_max <= EXTENTS_HERE { shared.read(true, read) } else { shared.read_many(read).await };
        let shown = found.as_ref().ok().filter(|found| found.inode.is_directory()).map(|_| inode);
        if look.stands(shown.into_iter()).await? {
            break found;
        }
    };
    let found = found.and_then(|found| still_there(shared, found, open));
    if let (Err(_), Some(OpenBy { session, sequence })) = (&found, open) {
        // Its last name may have gone meanwhile.
        let orphans = shared.context.sessions.close(session, &[Open { inode, sequence }]);
        super::session::release(shared, session, orphans).await?;
    }
    Ok(response(found?, shared.context.cluster.map_if_newer(request.map_revision)))
}

/// A range to read may reach past the largest offset; nothing lies there.
fn readable(offset: u64, length: u64) -> Result<ByteRange, OpError> {
    let end = offset.saturating_add(length).min(cairn_proto::limits::FILE_SIZE_MAX);
    ByteRange::between(offset, end)
        .ok_or_else(|| OpError::new(ErrorKind::FileTooLarge, format!("offset {offset} is past 2^63 - 1")))
}

/// An inode without names can be opened again only by a session that holds it.
fn still_there(shared: &Shared, found: Layout, open: Option<OpenBy>) -> Result<Layout, OpError> {
    match open {
        Some(OpenBy { session, .. })
            if found.inode.nlink == 0 && !shared.context.sessions.holds_orphan(session, found.inode.id) =>
        {
            Err(OpError::new(ErrorKind::StaleHandle, format!("inode {} is removed", found.inode.id)))
        }
        _ => Ok(found),
    }
}

pub(super) async fn sync_file(
    shared: &Shared,
    request: v1::SyncFileRequest,
) -> Result<v1::SyncFileResponse, OpError> {
    let chunks = match request.inode {
        0 => {
            let session = wire::asker(&request.session)?;
            let nobody = || OpError::invalid("neither an inode nor a session is named");
            unsynced_of_session(shared, session.ok_or_else(nobody)?).await?
        }
        id => {
            let inode = wire::inode_id(id)?;
            match apply_elsewhere(shared, &request.session, inode).await? {
                true => unsynced_of_file(shared, inode).await?,
                false => Vec::new(),
            }
        }
    };
    sync(shared, chunks, SYNC_TIME).await?;
    Ok(v1::SyncFileResponse {})
}

/// Waits until others have applied what they were answered for under a lease on `inode`. Whether it is a file.
async fn apply_elsewhere(shared: &Shared, asker: &Bytes, inode: InodeId) -> Result<bool, OpError> {
    let mut look = Look::begin(shared, asker, None).await?;
    loop {
        let find = |reader: &dyn Reader| Ok(crate::store::find::<Inode>(reader, &Key::Inode(inode))?);
        let found = shared.read(true, find)?;
        let directory = found.as_ref().filter(|found| found.is_directory());
        if look.stands(directory.map(|found| found.id).into_iter()).await? {
            return Ok(found.is_some_and(|found| !found.is_directory()));
        }
    }
}

async fn unsynced_of_file(shared: &Shared, file: InodeId) -> Result<Vec<ChunkId>, OpError> {
    let mut known = shared.context.unsynced.of_file(file);
    if !known.complete {
        known.chunks.extend(shared.read_many(move |reader| ops::unsynced::of_extents(reader, file)).await?);
        known.chunks.sort_unstable();
        known.chunks.dedup();
    }
    Ok(known.chunks)
}

/// What the index does not have may be the session's.
async fn unsynced_of_session(shared: &Shared, session: SessionId) -> Result<Vec<ChunkId>, OpError> {
    let mut known = shared.context.unsynced.of_session(session);
    let mut after = None;
    while !known.complete {
        let page = shared.read_many(move |reader| Ok(ops::unsynced::page(reader, after, LIST_MAX)?)).await?;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        known.chunks.extend(page.into_iter().filter(|&chunk| !shared.context.unsynced.has(chunk)));
    }
    Ok(known.chunks)
}

fn response(layout: Layout, map: Option<v1::ClusterMap>) -> v1::DownloadFileResponse {
    v1::DownloadFileResponse {
        attr: Some(wire::attr(layout.inode)),
        extents: layout.extents.iter().map(wire::extent).collect(),
        chunks: layout.chunks.into_iter().map(wire::chunk_ref).collect(),
        covered: layout.covered,
        map,
    }
}
