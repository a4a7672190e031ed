//! Names and attributes.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use cairn_proto::limits::{MESSAGE_SIZE_MAX, PAGE_NAMES};
use cairn_proto::{ByteRange, FileName, InodeId, SessionId, v1};
use cairn_runtime::{clock, net};

use super::coherence::{Look, until_released};
use super::{Shared, wire};
use crate::error::OpError;
use crate::executor::Tx;
use crate::leases::{Grant, Granted, Need, READ_LEASE, ReadGrant};
use crate::listings::{Listed, PageKey};
use crate::metrics;
use crate::ops;
use crate::ops::listing::{self, Wanted};
use crate::slots::ended::{self, Earlier};
use crate::slots::{self, Method};
use crate::store::{Inode, Key, Kind, Reader};

/// Entries of one page at most.
const PAGE_ENTRIES_MAX: usize = 65_536;
/// Pages of more entries are read on a thread of the pool.
const PAGE_ENTRIES_HERE: usize = 512;
/// A page ends when it has about so many bytes: well below what a message can have, and little enough
/// that several callers at once do not matter.
const PAGE_BYTES_MAX: usize = MESSAGE_SIZE_MAX / 4;
/// A listing tells where the bytes of files are that have at most so many, and at most so many extents.
const SHORT_FILE: u64 = 128 << 10;
const SHORT_EXTENTS_MAX: usize = 16;
/// Of so many files at most; more than those here are read on a thread of the pool.
const LAYOUTS_MAX: usize = 4096;
const LAYOUTS_HERE: usize = 128;
/// What an inode with its name takes in the store, with indexes and the log: an estimate on the safe side.
const INODE_BYTES: u64 = 512;
/// About how many bytes of a reply are needed for the result of a change, for an entry with attributes and where its
/// bytes are, for a name, for all xattrs of an inode, and for the rest.
const RESULT_BYTES: usize = 1024;
const ENTRY_BYTES: usize = 512;
const NAME_BYTES: usize = 64;
const XATTRS_BYTES: usize = 1 << 20;
const REPLY_BYTES: usize = 1024;
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
    let v1::ReadDirRequest {
        after,
        attributes,
        want_leases,
        layouts,
        map_revision,
        want_write_lease,
        leases_of_part,
        ..
    } = request;
    let wanted = Wanted { directory: id, after, limit, inodes: attributes, bytes_max: PAGE_BYTES_MAX };
    let mut look = Look::begin(shared, &request.session, Some(id)).await?;
    let holder = look.asker.filter(|_| want_leases && attributes && (after == 0 || leases_of_part));
    let write_lease = match look.asker.filter(|_| want_write_lease) {
        Some(session) => lease_for_writing(shared, session, id).await?.map(wire::lease),
        None => None,
    };
    loop {
        net::reply_room(page_room(limit, attributes)).await;
        let committed = shared.context.leases.committed();
        let page = read_page(shared, wanted).await;
        let inodes = page.as_ref().map_or(&[][..], |page| &page.inodes);
        let shown = inodes.iter().filter_map(directory_of);
        if look.stands(std::iter::once(id).chain(shown)).await? {
            let page = page?;
            let holder = holder.filter(|_| page.listed.end || leases_of_part);
            if let (Some(session), true) = (holder, leases_of_part) {
                shared.context.leases.drop_reads_of_part(session, id);
            }
            let Some(cover) = holder.and_then(|session| cover(shared, session, &page, committed)) else {
                return Ok(v1::ReadDirResponse { write_lease, ..page.into_wire(shared.started_ns) });
            };
            let known = if layouts { short_layouts(shared, &cover, &page.inodes).await? } else { Vec::new() };
            return Ok(v1::ReadDirResponse {
                lease_grant: cover.number,
                lease_ms: u32::try_from(READ_LEASE.as_millis()).unwrap_or(u32::MAX),
                unleased: cover.without.iter().filter_map(|&at| u32::try_from(at).ok()).collect(),
                layouts: known,
                write_lease,
                map: shared.context.cluster.map_if_newer(map_revision).filter(|_| layouts),
                ..page.into_wire(shared.started_ns)
            });
        }
    }
}

/// Bytes that a reply with a page may have.
fn page_room(limit: usize, attributes: bool) -> usize {
    let of_entry = if attributes { ENTRY_BYTES } else { NAME_BYTES };
    REPLY_BYTES + (limit * of_entry).min(2 * PAGE_BYTES_MAX)
}

/// A write lease on a directory that somebody will change, unless others mind.
async fn lease_for_writing(
    shared: &Shared,
    session: SessionId,
    directory: InodeId,
) -> Result<Option<Grant>, OpError> {
    let job = move |tx: &mut Tx| {
        tx.context.sessions.check(session)?;
        let inode: Option<Inode> = tx.find(&Key::Inode(directory))?;
        let is_there = inode.is_some_and(|inode| inode.is_directory() && inode.nlink > 0);
        Ok(is_there.then(|| tx.context.leases.grant(session, directory)).flatten().map(Granted::grant))
    };
    shared.executor.run(job).await
}

/// Read leases on a directory and on what is in a page of it.
fn cover(shared: &Shared, session: SessionId, page: &Encoded, committed: u64) -> Option<ReadGrant> {
    let entries: Vec<_> = page.inodes.iter().map(|inode| inode.id).collect();
    shared.context.leases.grant_reads(session, page.directory.id, &entries, committed)
}

/// Where the bytes of the short files are that a read lease covers. They are read under the lease, so what is of
/// the version that is shown stays so. One that can not be read is left to who opens it.
async fn short_layouts(
    shared: &Shared,
    cover: &ReadGrant,
    inodes: &[Inode],
) -> Result<Vec<v1::ShortLayout>, OpError> {
    let is_short = |inode: &Inode| inode.kind == Kind::File && (1..=SHORT_FILE).contains(&inode.size);
    let is_covered = |at: usize| cover.without.binary_search(&at).is_err();
    let short = inodes.iter().enumerate().filter(|&(at, inode)| is_short(inode) && is_covered(at));
    let short: Vec<_> = short.map(|(at, inode)| (at, inode.id, inode.version)).take(LAYOUTS_MAX).collect();
    let count = short.len();
    let read = move |reader: &dyn Reader| {
        let one = |(at, id, version)| short_layout(reader, at, id, version);
        Ok(short.into_iter().filter_map(one).collect())
    };
    if count <= LAYOUTS_HERE { shared.read(true, read) } else { shared.read_many(read).await }
}

fn short_layout(reader: &dyn Reader, at: usize, id: InodeId, version: u64) -> Option<v1::ShortLayout> {
    let range = ByteRange::between(0, SHORT_FILE);
    let found = ops::layout::layout(reader, id, range, SHORT_EXTENTS_MAX + 1).ok()?;
    let is_whole = found.inode.version == version && found.extents.len() <= SHORT_EXTENTS_MAX;
    is_whole.then(|| v1::ShortLayout {
        entry: u32::try_from(at).unwrap_or(u32::MAX),
        extents: found.extents.iter().map(wire::extent).collect(),
        chunks: found.chunks.into_iter().map(wire::chunk_ref).collect(),
    })
}

async fn read_page(shared: &Shared, wanted: Wanted) -> Result<Encoded, OpError> {
    let read = move |reader: &dyn Reader| encoded(reader, wanted);
    if wanted.limit <= PAGE_ENTRIES_HERE {
        return shared.read(true, read);
    }
    // Most directories are small, whatever page is asked for.
    let directory = shared.read(false, |reader| listing::directory(reader, wanted.directory))?;
    if directory.size <= PAGE_ENTRIES_HERE as u64 {
        return shared.read(true, read);
    }
    if wanted.inodes {
        return shared.read_page(read).await;
    }
    if let Some(listed) = shared.listings.get(&key(wanted), directory.version) {
        metrics::listed("memory");
        return Ok(Encoded { directory, listed, inodes: Vec::new() });
    }
    metrics::listed("store");
    make_page(shared, wanted).await
}

/// Reads a page of names, and keeps it.
async fn make_page(shared: &Shared, wanted: Wanted) -> Result<Encoded, OpError> {
    let page = shared.read_page(move |reader| encoded(reader, wanted)).await?;
    shared.listings.keep(key(wanted), page.listed.clone());
    Ok(page)
}

/// By which a page of names is kept.
fn key(wanted: Wanted) -> PageKey {
    let Wanted { directory, after, limit, .. } = wanted;
    PageKey { directory, after, limit }
}

/// A page whose entries have the form of the wire: made on the thread that reads them.
struct Encoded {
    directory: Inode,
    listed: Listed,
    inodes: Vec<Inode>,
}

fn encoded(reader: &dyn Reader, wanted: Wanted) -> Result<Encoded, OpError> {
    let listing::Page { directory, entries, inodes, end } = listing::page(reader, wanted)?;
    let listed = Listed { version: directory.version, entries: entries.encode(), end };
    Ok(Encoded { directory, listed, inodes })
}

impl Encoded {
    fn into_wire(self, started_ns: i64) -> v1::ReadDirResponse {
        v1::ReadDirResponse {
            entries: self.listed.entries,
            attrs: self.inodes.into_iter().map(wire::attr).collect(),
            end: self.listed.end,
            directory: Some(wire::attr(self.directory)),
            started_ns,
            ..v1::ReadDirResponse::default()
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
        net::reply_room(XATTRS_BYTES).await;
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
        inodes_max: inodes_max(shared, room),
    })
}

/// How many inodes there can be: a row of each needs room on the disk of the store.
fn inodes_max(shared: &Shared, room: ops::read::Room) -> u64 {
    let free = shared.store_room.as_ref().and_then(|room| room().ok());
    free.map_or(room.inodes_max, |free| room.inodes_max.min(room.inodes + free / INODE_BYTES))
}

pub(super) async fn apply(
    shared: &Arc<Shared>,
    mut request: v1::ApplyRequest,
) -> Result<v1::ApplyResponse, OpError> {
    let id = wire::request_id(request.id.take())?;
    let earlier: Arc<[_]> = wire::earlier(std::mem::take(&mut request.earlier))?.into();
    // What is wrong with the rest is found out inside, so that the sequence counts as used.
    let room = REPLY_BYTES + request.mutations.len() * RESULT_BYTES;
    let batch = wire::batch(request).map(Arc::new).map_err(|error| error.to_wire());
    loop {
        let (batch, earlier) = (batch.clone(), Arc::clone(&earlier));
        let attempt = shared.under_way.enter(id).await;
        net::reply_room(room).await;
        let job = move |tx: &mut Tx| {
            let _attempt = attempt;
            slots::once(tx, &id, Method::Apply, |tx| {
                let whole = match ended::outcome(tx, &earlier)? {
                    Earlier::Executed(response) => return Ok(response),
                    Earlier::NotExecuted => false,
                    Earlier::Unknown => true,
                };
                let batch = batch?;
                let results = match whole {
                    false => ops::batch::run(tx, id.session, &batch)?,
                    true => ops::batch::run_whole(tx, id.session, &batch)?,
                };
                Ok(v1::ApplyResponse { results: results.into_iter().map(wire::result).collect() })
            })
        };
        match shared.executor.run(job).await {
            Err(OpError::Leased(inodes)) => {
                until_released(shared, Some(id.session), &inodes, Need::Change).await?;
            }
            outcome => {
                outcome.iter().for_each(|response| renew_listings(shared, &response.results));
                return outcome;
            }
        }
    }
}

/// Has the first pages of large directories made anew that have changed.
fn renew_listings(shared: &Arc<Shared>, results: &[v1::MutationResult]) {
    let parents = results.iter().flat_map(|result| [&result.parent, &result.new_parent]).flatten();
    let large = parents.filter(|parent| parent.size > PAGE_ENTRIES_HERE as u64);
    // A batch mostly changes one directory, many times.
    let large: BTreeSet<_> = large.filter_map(|parent| InodeId::new(parent.inode).ok()).collect();
    for directory in large {
        if !shared.listings.changed(directory) {
            continue;
        }
        let (weak, stop) = (Arc::downgrade(shared), shared.shutdown.requested());
        shared.shutdown.spawn(async move {
            tokio::select! { () = renew_when_quiet(weak, directory) => {}, () = stop => {} }
        });
    }
}

async fn renew_when_quiet(shared: Weak<Shared>, directory: InodeId) {
    while let Some(strong) = shared.upgrade() {
        if let Some(wait) = strong.listings.until_quiet(directory) {
            drop(strong);
            clock::sleep(wait).await;
            continue;
        }
        let limit = PAGE_NAMES as usize;
        let wanted = Wanted { directory, after: 0, limit, inodes: false, bytes_max: PAGE_BYTES_MAX };
        // Who lists it finds out what is wrong.
        if make_page(&strong, wanted).await.is_ok() {
            metrics::listed("ahead");
        }
        return;
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
