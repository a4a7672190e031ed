//! Between the messages of the wire and the types of operations. Everything that arrives is checked
//! here: ids, names, enum values, ranges, sizes of lists.

use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_proto::limits::{
    BATCH_MAX, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, COMMIT_EXTENTS_MAX, COMMIT_FILES_MAX, FILE_SIZE_MAX,
    MUTATIONS_MAX,
};
use cairn_proto::{
    ByteRange, ChunkId, ErrorKind, FileName, InodeId, NodeId, ReplicaSetId, SessionId, SymlinkTarget, v1,
};

use crate::error::OpError;
use crate::leases::{Grant, LEASES_OF_SESSION_MAX};
use crate::ops::access::Caller;
use crate::ops::batch::{Batch, Done, Step};
use crate::ops::commit::{Confirm, FileCommit, NewExtent, StoredChunk};
use crate::ops::found::FoundNames;
use crate::ops::plan::PlanRequest;
use crate::ops::{
    Allocate, Applied, CloneRange, Create, Mutation, NewInode, OpenBy, Rename, RenameMode, SetAttr, SetXattr,
    TimeChange,
};
use crate::sessions::{OPENS_MAX, Open};
use crate::slots::RequestId;
use crate::store::{Chunk, Extent, Inode};

/// Datanodes that a plan may exclude.
const EXCLUDED_MAX: usize = 1024;
/// Bytes that one plan may ask for: 1 TiB.
const PLAN_BYTES_MAX: u64 = 1 << 40;
/// Sessions in which a request may have been sent before.
const EARLIER_MAX: usize = 4096;
/// Longest path in bytes (PATH_MAX less the NUL).
const PATH_MAX: usize = 4095;

fn missing(field: &str) -> OpError {
    OpError::invalid(format!("the field {field} is missing"))
}

fn check_count(what: &str, count: usize, min: usize, max: usize) -> Result<(), OpError> {
    if (min..=max).contains(&count) {
        return Ok(());
    }
    Err(OpError::invalid(format!("{count} {what}; {min} to {max} are possible")))
}

pub(crate) fn caller(credentials: Option<v1::Credentials>) -> Result<Caller, OpError> {
    credentials.ok_or_else(|| missing("credentials")).and_then(checked_caller)
}

fn checked_caller(credentials: v1::Credentials) -> Result<Caller, OpError> {
    Ok(Caller::from_wire(credentials)?)
}

pub(crate) fn request_id(id: Option<v1::RequestId>) -> Result<RequestId, OpError> {
    let id = id.ok_or_else(|| missing("id"))?;
    RequestId::new(SessionId::from_wire(&id.session)?, id.slot, id.sequence)
}

/// The ids under which a request was sent before.
pub(super) fn earlier(ids: Vec<v1::RequestId>) -> Result<Vec<RequestId>, OpError> {
    check_count("earlier requests", ids.len(), 0, EARLIER_MAX)?;
    ids.into_iter().map(|id| request_id(Some(id))).collect()
}

pub(super) fn inode_id(id: u64) -> Result<InodeId, OpError> {
    Ok(InodeId::new(id)?)
}

/// The session on whose behalf something is read; empty: nobody's.
pub(super) fn asker(session: &bytes::Bytes) -> Result<Option<SessionId>, OpError> {
    Ok(if session.is_empty() { None } else { Some(SessionId::from_wire(session)?) })
}

/// Directories that a session says it holds leases on.
pub(super) fn leased(inodes: &[u64]) -> Result<Vec<InodeId>, OpError> {
    check_count("leases", inodes.len(), 0, LEASES_OF_SESSION_MAX)?;
    inodes.iter().map(|&inode| inode_id(inode)).collect()
}

/// Leases that a session gives back.
pub(super) fn grants(leases: &[v1::Lease]) -> Result<Vec<Grant>, OpError> {
    check_count("leases", leases.len(), 0, LEASES_OF_SESSION_MAX)?;
    leases.iter().map(|lease| Ok(Grant { inode: inode_id(lease.inode)?, number: lease.grant })).collect()
}

pub(super) fn lease(grant: Grant) -> v1::Lease {
    v1::Lease { inode: grant.inode.get(), grant: grant.number }
}

fn range(start: u64, length: u64) -> Result<ByteRange, OpError> {
    if length == 0 {
        return Err(OpError::invalid("a range of 0 bytes"));
    }
    ByteRange::new(start, length).ok_or_else(|| too_large(start, length))
}

fn too_large(start: u64, length: u64) -> OpError {
    let message = format!("{length} bytes from {start} end past 2^63 - 1");
    OpError::new(ErrorKind::FileTooLarge, message)
}

pub(super) fn open_by(open: v1::OpenRegistration) -> Result<OpenBy, OpError> {
    Ok(OpenBy { session: SessionId::from_wire(&open.session)?, sequence: open.sequence })
}

pub(crate) fn opens(files: Vec<v1::OpenFile>) -> Result<Vec<Open>, OpError> {
    check_count("open files", files.len(), 0, OPENS_MAX)?;
    files.into_iter().map(|file| Ok(Open { inode: inode_id(file.inode)?, sequence: file.sequence })).collect()
}

/// A batch of mutations; a bad one gets its error and stops no other.
pub(crate) fn batch(request: v1::ApplyRequest) -> Result<Batch, OpError> {
    let v1::ApplyRequest { mutations, credentials, want_leases, .. } = request;
    check_count("mutations", mutations.len(), 1, MUTATIONS_MAX)?;
    let caller = credentials.map(checked_caller).transpose()?.map(Arc::new);
    let step = |mutation| step(mutation, caller.as_ref()).map_err(|error| error.to_wire());
    Ok(Batch { steps: mutations.into_iter().map(step).collect(), want_leases })
}

/// `caller`: of the batch, for those that do not name their own.
fn step(step: v1::Mutation, caller: Option<&Arc<Caller>>) -> Result<Step, OpError> {
    let own = step.credentials.map(checked_caller).transpose()?.map(Arc::new);
    let caller = own.or_else(|| caller.cloned()).ok_or_else(|| missing("credentials"))?;
    if step.at_ns < 0 {
        return Err(OpError::invalid(format!("a mutation at {} ns", step.at_ns)));
    }
    let at_ns = (step.at_ns != 0).then_some(step.at_ns);
    let found = step.found.map(found_names).transpose()?;
    Ok(Step { mutation: mutation(step.op)?, caller, at_ns, found })
}

fn found_names(found: v1::FoundNames) -> Result<FoundNames, OpError> {
    let one = |inode| if inode == 0 { Ok(None) } else { inode_id(inode).map(Some) };
    Ok(FoundNames { name: one(found.inode)?, new_name: one(found.replaced)? })
}

fn mutation(op: Option<v1::mutation::Op>) -> Result<Mutation, OpError> {
    use v1::mutation::Op;
    Ok(match op.ok_or_else(|| OpError::invalid("a mutation that this build does not know"))? {
        Op::Create(op) => Mutation::Create(create(op)?),
        Op::Link(op) => Mutation::Link {
            inode: inode_id(op.inode)?,
            parent: inode_id(op.parent)?,
            name: FileName::new(op.name)?,
        },
        Op::Unlink(op) => Mutation::Unlink { parent: inode_id(op.parent)?, name: FileName::new(op.name)? },
        Op::Rmdir(op) => Mutation::Rmdir { parent: inode_id(op.parent)?, name: FileName::new(op.name)? },
        Op::Rename(op) => Mutation::Rename(rename(op)?),
        Op::SetAttr(op) => Mutation::SetAttr(set_attr(op)?),
        Op::SetXattr(op) => Mutation::SetXattr(SetXattr {
            inode: inode_id(op.inode)?,
            name: op.name,
            value: op.value,
            create: op.create,
            replace: op.replace,
        }),
        Op::RemoveXattr(op) => Mutation::RemoveXattr { inode: inode_id(op.inode)?, name: op.name },
        Op::CloneRange(op) => Mutation::CloneRange(clone_range(op)?),
        Op::Allocate(op) => Mutation::Allocate(Allocate {
            inode: inode_id(op.inode)?,
            range: range(op.offset, op.length)?,
            keep_size: op.keep_size,
            make_hole: op.make_hole,
        }),
    })
}

fn mode(mode: u32) -> Result<u32, OpError> {
    if mode > 0o7777 {
        return Err(OpError::invalid(format!("mode {mode:#o}; 0 to 07777 are possible")));
    }
    Ok(mode)
}

fn create(op: v1::Create) -> Result<Create, OpError> {
    use v1::InodeKind;
    let kind = InodeKind::try_from(op.kind)
        .map_err(|_| OpError::invalid(format!("inode kind {}, which this build does not know", op.kind)))?;
    if op.open.is_some() && kind != InodeKind::File {
        return Err(OpError::invalid("only files are opened as they are made"));
    }
    if op.lease && kind != InodeKind::Directory {
        return Err(OpError::invalid("only directories have write leases"));
    }
    let new = match kind {
        InodeKind::Unspecified => return Err(missing("kind")),
        InodeKind::File => {
            NewInode::File { exclusive: op.exclusive, open: op.open.map(open_by).transpose()? }
        }
        InodeKind::Directory => NewInode::Directory,
        InodeKind::Symlink => NewInode::Symlink(SymlinkTarget::new(op.symlink_target)?),
        InodeKind::Fifo => NewInode::Fifo,
        InodeKind::Socket => NewInode::Socket,
        InodeKind::CharDevice => NewInode::CharDevice { rdev: op.rdev },
        InodeKind::BlockDevice => NewInode::BlockDevice { rdev: op.rdev },
    };
    Ok(Create {
        parent: inode_id(op.parent)?,
        name: FileName::new(op.name)?,
        new,
        mode: mode(op.mode)?,
        id: (op.inode != 0).then(|| inode_id(op.inode)).transpose()?,
        lease: op.lease,
    })
}

fn rename(op: v1::Rename) -> Result<Rename, OpError> {
    let mode = match (op.no_replace, op.exchange) {
        (false, false) => RenameMode::Replace,
        (true, false) => RenameMode::NoReplace,
        (false, true) => RenameMode::Exchange,
        (true, true) => return Err(OpError::invalid("no_replace and exchange exclude one another")),
    };
    Ok(Rename {
        parent: inode_id(op.parent)?,
        name: FileName::new(op.name)?,
        new_parent: inode_id(op.new_parent)?,
        new_name: FileName::new(op.new_name)?,
        mode,
    })
}

fn set_attr(op: v1::SetAttr) -> Result<SetAttr, OpError> {
    if op.size.is_some_and(|size| size > FILE_SIZE_MAX) {
        return Err(too_large(0, op.size.unwrap_or_default()));
    }
    Ok(SetAttr {
        inode: inode_id(op.inode)?,
        mode: op.mode.map(mode).transpose()?,
        uid: op.uid,
        gid: op.gid,
        size: op.size,
        atime: op.atime.map(time_change).transpose()?,
        mtime: op.mtime.map(time_change).transpose()?,
        via_handle: op.via_handle,
    })
}

fn time_change(change: v1::TimeChange) -> Result<TimeChange, OpError> {
    match change.to {
        Some(v1::time_change::To::Now(true)) => Ok(TimeChange::Now),
        Some(v1::time_change::To::AtNs(time_ns)) => Ok(TimeChange::At(time_ns)),
        Some(v1::time_change::To::Now(false)) | None => {
            Err(OpError::invalid("a change of time without the time"))
        }
    }
}

fn clone_range(op: v1::CloneRange) -> Result<CloneRange, OpError> {
    // Cut at the largest offset, as it is cut at the end of the source later.
    let length = op.length.min(FILE_SIZE_MAX.saturating_sub(op.source_offset));
    Ok(CloneRange {
        source: inode_id(op.source)?,
        source_range: range(op.source_offset, length)?,
        destination: inode_id(op.destination)?,
        destination_offset: op.destination_offset,
    })
}

pub(crate) fn plan(request: v1::UploadFileRequest, default: u64) -> Result<PlanRequest, OpError> {
    let session = SessionId::from_wire(&request.session)?;
    let inode = match (request.inode, request.path.is_empty()) {
        (0, _) => None,
        (_, false) => return Err(OpError::invalid("inode and path exclude one another")),
        (inode, true) => Some(inode_id(inode)?),
    };
    if request.path.len() > PATH_MAX {
        let message = format!("a path of {} bytes; {PATH_MAX} are possible", request.path.len());
        return Err(OpError::new(ErrorKind::NameTooLong, message));
    }
    let chunk_size = match request.chunk_size {
        0 => default,
        size if (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&size) => size,
        size => {
            let message = format!("chunk size {size}; {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX} are possible");
            return Err(OpError::invalid(message));
        }
    };
    let chunks = match (request.chunks, request.bytes) {
        (0, bytes @ 1..=PLAN_BYTES_MAX) => bytes.div_ceil(chunk_size).min(BATCH_MAX as u64),
        (0, bytes) => {
            let message = format!("{bytes} bytes to be stored; 1 to {PLAN_BYTES_MAX} are possible");
            return Err(OpError::invalid(message));
        }
        (chunks, _) => u64::from(chunks),
    };
    if chunks > BATCH_MAX as u64 {
        return Err(OpError::invalid(format!("{chunks} chunks; at most {BATCH_MAX} are possible")));
    }
    check_count("datanodes to exclude", request.exclude.len(), 0, EXCLUDED_MAX)?;
    let excluded = nodes(&request.exclude)?;
    let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
    Ok(PlanRequest { session, inode, chunk_size, chunks, excluded })
}

fn nodes(list: &[bytes::Bytes]) -> Result<BTreeSet<NodeId>, OpError> {
    list.iter().map(|node| Ok(NodeId::from_wire(node)?)).collect()
}

/// `session` is that of the request's id.
pub(crate) fn confirm(session: SessionId, request: v1::ConfirmUploadRequest) -> Result<Confirm, OpError> {
    check_count("chunks", request.chunks.len(), 0, COMMIT_EXTENTS_MAX)?;
    check_count("files", request.files.len(), 1, COMMIT_FILES_MAX)?;
    let extents = request.files.iter().map(|file| file.extents.len()).sum();
    check_count("extents", extents, 0, COMMIT_EXTENTS_MAX)?;
    Ok(Confirm {
        session,
        chunks: request.chunks.into_iter().map(stored_chunk).collect::<Result<_, _>>()?,
        files: request.files.into_iter().map(file_commit).collect::<Result<_, _>>()?,
    })
}

fn stored_chunk(chunk: v1::StoredChunk) -> Result<StoredChunk, OpError> {
    Ok(StoredChunk {
        id: ChunkId::new(chunk.chunk)?,
        set: ReplicaSetId::new(chunk.set)?,
        epoch: chunk.epoch,
        length: chunk.length,
        crc32c: chunk.crc32c,
        stored_by: nodes(&chunk.stored_by)?,
        synced: chunk.synced,
    })
}

fn file_commit(file: v1::FileCommit) -> Result<FileCommit, OpError> {
    let extent = |extent: v1::Extent| {
        Ok::<_, OpError>(NewExtent {
            range: range(extent.offset, extent.length)?,
            chunk: ChunkId::new(extent.chunk)?,
            chunk_offset: extent.chunk_offset,
        })
    };
    Ok(FileCommit {
        inode: inode_id(file.inode)?,
        extents: file.extents.into_iter().map(extent).collect::<Result<_, _>>()?,
        mtime_ns: (file.mtime_ns != 0).then_some(file.mtime_ns),
        keep_privileges: file.keep_privileges,
        drop_capability: file.drop_capability,
    })
}

pub(super) fn attr(inode: Inode) -> v1::Attr {
    v1::Attr {
        inode: inode.id.get(),
        kind: v1::InodeKind::from(inode.kind).into(),
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        nlink: inode.nlink,
        size: inode.size,
        allocated: inode.allocated,
        atime_ns: inode.atime_ns,
        mtime_ns: inode.mtime_ns,
        ctime_ns: inode.ctime_ns,
        btime_ns: inode.btime_ns,
        version: inode.version,
        parent: if inode.is_directory() { inode.parent } else { 0 },
        symlink_target: inode.symlink_target,
        has_xattrs: inode.xattrs > 0,
    }
}

/// A chunk, with the members that have no good copy.
pub(super) fn chunk_ref((chunk, missing): (Chunk, Vec<NodeId>)) -> v1::ChunkRef {
    v1::ChunkRef {
        chunk: chunk.id.get(),
        set: chunk.replica_set.get(),
        length: chunk.length,
        crc32c: chunk.crc32c,
        missing: missing.into_iter().map(NodeId::to_wire).collect(),
    }
}

pub(super) fn extent(extent: &Extent) -> v1::Extent {
    v1::Extent {
        offset: extent.offset,
        length: extent.length,
        chunk: extent.chunk.get(),
        chunk_offset: extent.chunk_offset,
    }
}

/// The outcome of one file's commit; `synced`: all of the file survives power loss.
pub(super) fn committed(result: Result<Applied, OpError>, synced: bool) -> v1::MutationResult {
    let synced = synced && result.is_ok();
    let result = self::result(result.map(|applied| Done { applied, leases: Vec::new() }));
    v1::MutationResult { synced, ..result }
}

/// The outcome of one mutation.
pub(super) fn result(result: Result<Done, OpError>) -> v1::MutationResult {
    match result {
        Ok(Done { applied, leases }) => v1::MutationResult {
            error: 0,
            message: String::new(),
            attr: applied.inode.map(attr),
            parent: applied.parent.map(attr),
            new_parent: applied.new_parent.map(attr),
            replaced: applied.replaced.map(attr),
            leases: leases.into_iter().map(lease).collect(),
            copied: applied.copied,
            synced: false,
        },
        Err(error) => v1::MutationResult {
            error: error.kind().number(),
            message: error.to_string(),
            ..v1::MutationResult::default()
        },
    }
}
