//! Garbage, orphans and extended attributes.

use cairn_proto::ReplicaSetId;
use std::collections::BTreeSet;

use super::chunks::Rows;
use super::report::{Finding, Report};
use super::{Abort, Mend, PAGE};
use crate::ops::mend::Delta;
use crate::store::{Count, Garbage, Inode, Key, Orphan, Reader, ReplicaSet, Scan, Table, Xattr, find, list};

pub(super) fn check(reader: &dyn Reader, report: &mut Report) -> Result<(), Abort> {
    garbage(reader, report)?;
    orphans(reader, report)?;
    xattrs(reader, report)
}

fn garbage(reader: &dyn Reader, report: &mut Report) -> Result<(), Abort> {
    let counted = crate::store::count(reader, Count::Garbage)?;
    report.begin("garbage", counted)?;
    let sets: BTreeSet<ReplicaSetId> =
        list::<ReplicaSet>(reader, &Scan::all(Table::ReplicaSet))?.into_iter().map(|set| set.id).collect();
    let mut rows = Rows::<Garbage>::new(Table::Garbage);
    while let Some(row) = rows.next_if(reader, |_| true)? {
        report.step(1)?;
        if reader.get(&Key::Chunk(row.chunk))?.is_some() {
            let text = format!("chunk {} is in use and queued for deletion", row.chunk);
            let finding = Finding::error("GARBAGE_IN_USE", text).of_chunk(row.chunk);
            report.found_with(finding, Mend::DropGarbage(row.not_before_ns, row.chunk))?;
        } else if !sets.contains(&row.replica_set) {
            let text = format!("garbage {} lies on set {}, which does not exist", row.chunk, row.replica_set);
            report.found(
                Finding::new("GARBAGE_WITHOUT_SET", super::Severity::Note, text).of_chunk(row.chunk),
            )?;
        }
    }
    if rows.seen != counted {
        let text = format!("{} chunks are garbage, the counter says {counted}", rows.seen);
        let mend = Mend::Counter(Count::Garbage, Delta::between(counted, rows.seen));
        report.found_with(Finding::error("COUNTER", text), mend)?;
    }
    Ok(())
}

fn orphans(reader: &dyn Reader, report: &mut Report) -> Result<(), Abort> {
    report.begin("files held open", 0)?;
    let mut rows = Rows::<Orphan>::new(Table::Orphan);
    while let Some(row) = rows.next_if(reader, |_| true)? {
        report.step(1)?;
        let inode: Option<Inode> = find(reader, &Key::Inode(row.inode))?;
        if inode.is_none() {
            let text = format!("inode {} is held open and does not exist", row.inode);
            let finding = Finding::error("ORPHAN_WITHOUT_INODE", text).of_inode(row.inode);
            report.found_with(finding, Mend::DropOrphan(row.inode, row.session))?;
        }
    }
    Ok(())
}

fn xattrs(reader: &dyn Reader, report: &mut Report) -> Result<(), Abort> {
    report.begin("extended attributes", crate::store::count(reader, Count::Inodes)?)?;
    let mut xattrs = Rows::<Xattr>::new(Table::Xattr);
    let mut last: Option<Key> = None;
    let stranger = |xattr: Xattr| {
        let text = format!("an extended attribute of inode {}, which does not exist", xattr.inode);
        (
            Finding::error("XATTR_WITHOUT_INODE", text).of_inode(xattr.inode),
            Mend::DropXattr(xattr.inode, xattr.name),
        )
    };
    loop {
        let page: Vec<Inode> = list(reader, &Scan::behind(Table::Inode, last).limit(PAGE))?;
        let Some(end) = page.last() else { break };
        last = Some(Key::Inode(end.id));
        report.step(page.len() as u64)?;
        for inode in page {
            while let Some(xattr) = xattrs.next_if(reader, |xattr| xattr.inode < inode.id)? {
                let (finding, mend) = stranger(xattr);
                report.found_with(finding, mend)?;
            }
            let mut found = 0u32;
            while xattrs.next_if(reader, |xattr| xattr.inode == inode.id)?.is_some() {
                found += 1;
            }
            if found != inode.xattrs {
                let text = format!("inode {} counts {} xattrs, there are {found}", inode.id, inode.xattrs);
                let mend = Mend::Xattrs(inode.id, Delta::between(inode.xattrs.into(), found.into()));
                report.found_with(Finding::error("XATTRS", text).of_inode(inode.id), mend)?;
            }
        }
    }
    while let Some(xattr) = xattrs.next_if(reader, |_| true)? {
        let (finding, mend) = stranger(xattr);
        report.found_with(finding, mend)?;
    }
    Ok(())
}
