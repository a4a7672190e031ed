//! Names and attributes.

use std::sync::Arc;

use cairn_proto::limits::MESSAGE_SIZE_MAX;
use cairn_proto::{FileName, InodeId, SessionId, v1};

use super::coherence::{Look, until_released};
use super::{Shared, wire};
use crate::error::OpError;
use crate::executor::Tx;
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
/// Inode ids that one request may reserve.
const RESERVED_MAX: u32 = 65_536;

pub(super) async fn lookup(
    shared: &Shared,
    request: v1::LookupRequest,
) -> Result<v1::LookupResponse, OpError> {
    let parent = wire::inode_id(request.parent)?;
    let caller = wire::caller(request.credentials)?;
    let name = match request.name.as_ref() {
        b".." => None,
        _ => Some(FileName::new(request.name)?),
    };
    let mut look = Look::begin(shared, &request.session, Some(parent)).await?;
    loop {
        let found = shared.read(false, |reader| match &name {
            Some(name) => ops::read::lookup(reader, parent, name, &caller),
            None => ops::read::lookup_parent(reader, parent, &caller),
        });
        let shown = found.as_ref().ok().and_then(directory_of);
        if look.stands([Some(parent), shown].into_iter().flatten()).await? {
            return Ok(v1::LookupResponse { attr: Some(wire::attr(found?)) });
        }
    }
}

/// Its id if it is a directory: nothing else is ever leased.
fn directory_of(inode: &Inode) -> Option<InodeId> {
    inode.is_directory().then_some(inode.id)
}

pub(super) async fn get_attr(
    shared: &Shared,
    request: v1::GetAttrRequest,
) -> Result<v1::GetAttrResponse, OpError> {
    let id = wire::inode_id(request.inode)?;
    let mut look = Look::begin(shared, &request.session, None).await?;
    loop {
        let inode = shared.read(false, |reader| ops::read::inode(reader, id));
        if look.stands(inode.as_ref().ok().and_then(directory_of).into_iter()).await? {
            return Ok(v1::GetAttrResponse { attr: Some(wire::attr(inode?)) });
        }
    }
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
    let mut look = Look::begin(shared, &request.session, Some(id)).await?;
    loop {
        let page = read_page(shared, wanted).await;
        let inodes = page.as_ref().map_or(&[][..], |page| &page.inodes);
        let shown = inodes.iter().filter_map(directory_of);
        if look.stands(std::iter::once(id).chain(shown)).await? {
            return Ok(page?.into_wire(shared.started_ns));
        }
    }
}

async fn read_page(shared: &Shared, wanted: Wanted) -> Result<Encoded, OpError> {
    let Wanted { directory: id, after, limit, .. } = wanted;
    let read = move |reader: &dyn Reader| Ok(encode(listing::page(reader, wanted)?));
    if limit <= PAGE_ENTRIES_HERE {
        return shared.read(true, read);
    }
    // Most directories are small, whatever page is asked for.
    let directory = shared.read(false, |reader| listing::directory(reader, id))?;
    if directory.size <= PAGE_ENTRIES_HERE as u64 {
        return shared.read(true, read);
    }
    if wanted.inodes {
        return shared.read_many(read).await;
    }
    let key = PageKey { directory: id, after, limit };
    if let Some(listed) = shared.listings.get(&key, directory.version) {
        metrics::listed("memory");
        return Ok(Encoded { directory, listed, inodes: Vec::new() });
    }
    metrics::listed("store");
    let page = shared.read_many(read).await?;
    shared.listings.keep(key, page.listed.clone());
    Ok(page)
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
    let mut look = Look::begin(shared, &request.session, None).await?;
    loop {
        let found = shared.read(true, |reader| ops::read::xattrs(reader, id));
        let shown = found.as_ref().ok().and_then(|(inode, _)| directory_of(inode));
        if look.stands(shown.into_iter()).await? {
            let (inode, xattrs) = found?;
            let xattrs = xattrs.into_iter().map(|xattr| v1::Xattr { name: xattr.name, value: xattr.value });
            return Ok(v1::GetXattrsResponse { xattrs: xattrs.collect(), version: inode.version });
        }
    }
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

pub(super) async fn apply(
    shared: &Shared,
    mut request: v1::ApplyRequest,
) -> Result<v1::ApplyResponse, OpError> {
    let id = wire::request_id(request.id.take())?;
    // What is wrong with the rest is found out inside, so that the sequence counts as used.
    let batch = wire::batch(request).map(Arc::new).map_err(|error| error.to_wire());
    loop {
        let batch = batch.clone();
        let job = move |tx: &mut Tx| {
            slots::once(tx, &id, Method::Apply, |tx| {
                let results = ops::batch::run(tx, id.session, &*batch?)?;
                Ok(v1::ApplyResponse { results: results.into_iter().map(wire::result).collect() })
            })
        };
        match shared.executor.run(job).await {
            Err(OpError::Leased(inodes)) => until_released(shared, Some(id.session), &inodes).await?,
            outcome => return outcome,
        }
    }
}

pub(super) async fn reserve_inodes(
    shared: &Shared,
    request: v1::ReserveInodesRequest,
) -> Result<v1::ReserveInodesResponse, OpError> {
    let session = SessionId::from_wire(&request.session)?;
    let count = request.count;
    if !(1..=RESERVED_MAX).contains(&count) {
        return Err(OpError::invalid(format!("{count} ids; 1 to {RESERVED_MAX} are possible")));
    }
    let first = shared.executor.run(move |tx| ops::reserve::reserve_inodes(tx, session, count)).await?;
    Ok(v1::ReserveInodesResponse { first: first.get(), count })
}
