//! Names and attributes.

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::{FileName, v1};

use super::{Shared, wire};
use crate::error::OpError;
use crate::listings::{Listed, PageKey};
use crate::metrics;
use crate::ops;
use crate::ops::listing::{self, Wanted};
use crate::slots::{self, Method};
use crate::store::{Inode, Reader};

/// Entries of one page at most.
const PAGE_ENTRIES_MAX: usize = 65_536;
/// Pages of more entries are read on a thread of the pool.
const PAGE_ENTRIES_HERE: usize = 512;
/// A page ends when it has about so many bytes: well below what a message can have, and little enough
/// that several callers at once do not matter.
const PAGE_BYTES_MAX: usize = MESSAGE_SIZE_MAX / 4;

pub(super) async fn lookup(
    shared: &Shared,
    request: v1::LookupRequest,
) -> Result<v1::LookupResponse, OpError> {
    let parent = wire::inode_id(request.parent)?;
    let caller = wire::caller(request.credentials)?;
    let inode = if request.name.as_ref() == b".." {
        shared.read(false, |reader| ops::read::lookup_parent(reader, parent, &caller))?
    } else {
        let name = FileName::new(request.name)?;
        shared.read(false, |reader| ops::read::lookup(reader, parent, &name, &caller))?
    };
    Ok(v1::LookupResponse { attr: Some(wire::attr(inode)) })
}

pub(super) async fn get_attr(
    shared: &Shared,
    request: v1::GetAttrRequest,
) -> Result<v1::GetAttrResponse, OpError> {
    let id = wire::inode_id(request.inode)?;
    let inode = shared.read(false, |reader| ops::read::inode(reader, id))?;
    Ok(v1::GetAttrResponse { attr: Some(wire::attr(inode)) })
}

pub(super) async fn read_dir(
    shared: &Shared,
    request: v1::ReadDirRequest,
) -> Result<v1::ReadDirResponse, OpError> {
    let id = wire::inode_id(request.inode)?;
    if request.limit == 0 {
        return Err(OpError::invalid("a page of 0 entries"));
    }
    let limit = (request.limit as usize).min(PAGE_ENTRIES_MAX);
    let v1::ReadDirRequest { after, attributes, .. } = request;
    let wanted = Wanted { directory: id, after, limit, inodes: attributes, bytes_max: PAGE_BYTES_MAX };
    let read = move |reader: &dyn Reader| Ok(encode(listing::page(reader, wanted)?));
    let started_ns = shared.started_ns;
    if limit <= PAGE_ENTRIES_HERE {
        return Ok(shared.read(true, read)?.into_wire(started_ns));
    }
    // Most directories are small, whatever page is asked for.
    let directory = shared.read(false, |reader| listing::directory(reader, id))?;
    if directory.size <= PAGE_ENTRIES_HERE as u64 {
        return Ok(shared.read(true, read)?.into_wire(started_ns));
    }
    if attributes {
        return Ok(shared.read_many(read).await?.into_wire(started_ns));
    }
    let key = PageKey { directory: id, after, limit };
    if let Some(listed) = shared.listings.get(&key, directory.version) {
        metrics::listed("memory");
        return Ok(Encoded { directory, listed, inodes: Vec::new() }.into_wire(started_ns));
    }
    metrics::listed("store");
    let page = shared.read_many(read).await?;
    shared.listings.keep(key, page.listed.clone());
    Ok(page.into_wire(started_ns))
}

/// A page whose entries have the form of the wire: made on the thread that reads them.
struct Encoded {
    directory: Inode,
    listed: Listed,
    inodes: Vec<Inode>,
}

fn encode(page: listing::Page) -> Encoded {
    let listing::Page { directory, entries, inodes, end } = page;
    let listed = Listed { version: directory.version, entries: entries.encode(), end };
    Encoded { directory, listed, inodes }
}

impl Encoded {
    fn into_wire(self, started_ns: i64) -> v1::ReadDirResponse {
        v1::ReadDirResponse {
            entries: self.listed.entries,
            attrs: self.inodes.into_iter().map(wire::attr).collect(),
            end: self.listed.end,
            directory: Some(wire::attr(self.directory)),
            started_ns,
        }
    }
}

pub(super) async fn get_xattrs(
    shared: &Shared,
    request: v1::GetXattrsRequest,
) -> Result<v1::GetXattrsResponse, OpError> {
    let id = wire::inode_id(request.inode)?;
    let (inode, xattrs) = shared.read(true, |reader| ops::read::xattrs(reader, id))?;
    let xattrs = xattrs.into_iter().map(|xattr| v1::Xattr { name: xattr.name, value: xattr.value });
    Ok(v1::GetXattrsResponse { xattrs: xattrs.collect(), version: inode.version })
}

pub(super) async fn stat_fs(shared: &Shared) -> Result<v1::StatFsResponse, OpError> {
    let room = shared.read(true, |reader| {
        ops::read::stat_fs(reader, &shared.context.cluster.members(), &shared.context.policy)
    })?;
    Ok(v1::StatFsResponse {
        capacity: room.capacity,
        used: room.used,
        available: room.available,
        inodes: room.inodes,
        inodes_max: room.inodes_max,
    })
}

pub(super) async fn apply(shared: &Shared, request: v1::ApplyRequest) -> Result<v1::ApplyResponse, OpError> {
    let id = wire::request_id(request.id)?;
    // What is wrong with the rest is found out inside, so that the sequence counts as used.
    let decoded = wire::caller(request.credentials)
        .and_then(|caller| Ok((caller, wire::mutations(request.mutations)?)));
    shared
        .executor
        .run(move |tx| {
            slots::once(tx, &id, Method::Apply, |tx| {
                let (caller, mutations) = decoded?;
                let run = |mutation: Result<ops::Mutation, OpError>| ops::apply(tx, &mutation?, &caller);
                let results = mutations.into_iter().map(run).map(wire::result).collect();
                Ok(v1::ApplyResponse { results })
            })
        })
        .await
}
