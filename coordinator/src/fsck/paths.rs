//! Which files the damage hits, by path.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::{ChunkId, InodeId};

use super::names::DirectoryPaths;
use super::report::{Finding, Report};
use super::{Abort, PAGE};
use crate::ops::extents;
use crate::store::{Count, Dentry, Extent, Inode, Key, Reader, Scan, Table, list};

/// Files that are named; more are only counted. About 48 bytes each.
const FILES_MAX: usize = 1 << 20;

/// Names the files that refer to these chunks, with the bytes of each that can not be read.
pub(super) fn name_files(
    reader: &dyn Reader,
    report: &mut Report,
    lost: &BTreeSet<ChunkId>,
) -> Result<(), Abort> {
    report.begin("names of damaged files", crate::store::count(reader, Count::Inodes)?)?;
    let mut hit: BTreeMap<InodeId, u64> = BTreeMap::new();
    let mut unnamed = 0u64;
    let mut last: Option<Key> = None;
    loop {
        let page: Vec<Extent> = list(reader, &Scan::behind(Table::Extent, last).limit(PAGE))?;
        let Some(end) = page.last() else { break };
        last = Some(Key::Extent(end.inode, end.offset));
        for extent in page.iter().filter(|extent| lost.contains(&extent.chunk)) {
            if extents::is_dead(reader, extent)? {
                continue;
            }
            if hit.len() < FILES_MAX || hit.contains_key(&extent.inode) {
                *hit.entry(extent.inode).or_default() += extent.length;
            } else {
                unnamed += 1;
            }
        }
    }
    let mut paths = DirectoryPaths::default();
    let mut last: Option<Key> = None;
    let mut named = BTreeSet::new();
    loop {
        let page: Vec<Dentry> = list(reader, &Scan::behind(Table::Dentry, last).limit(PAGE))?;
        let Some(end) = page.last() else { break };
        last = Some(Key::Dentry(end.parent, end.name.clone()));
        report.step(page.len() as u64)?;
        for entry in page {
            let Some(&bytes) = hit.get(&entry.child) else { continue };
            let directory = paths.get(reader, entry.parent)?;
            let path = directory.map(|path| [path.as_slice(), b"/", &entry.name].concat());
            named.insert(entry.child);
            damaged(reader, report, entry.child, path, bytes)?;
        }
    }
    for (&inode, &bytes) in hit.iter().filter(|(inode, _)| !named.contains(inode)) {
        damaged(reader, report, inode, None, bytes)?;
    }
    if unnamed > 0 {
        let text = format!("{unnamed} further extents of damaged files are not named here");
        report.found(Finding::loss("FILE_DAMAGED", text))?;
    }
    Ok(())
}

fn damaged(
    reader: &dyn Reader,
    report: &mut Report,
    id: InodeId,
    path: Option<Vec<u8>>,
    bytes: u64,
) -> Result<(), Abort> {
    let inode: Option<Inode> = crate::store::find(reader, &Key::Inode(id))?;
    let size = inode.map_or(0, |inode| inode.size);
    let text = format!("{bytes} of {size} bytes have no good copy left");
    let finding = Finding::loss("FILE_DAMAGED", text).of_inode(id);
    report.found(Finding { path: path.unwrap_or_default(), bytes, ..finding })
}
