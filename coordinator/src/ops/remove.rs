//! What becomes of an inode that loses a name.
//!
//! With the last name it is deleted, unless a session holds it open: then it becomes an orphan, one
//! row for each holder, and is deleted with the last of them. A file of many extents is deleted in
//! steps, so that no single transaction grows without bound; meanwhile nobody is its holder.

use cairn_proto::{InodeId, SessionId};

use super::chunks::LiveChanges;
use super::extents;
use crate::error::OpError;
use crate::executor::Tx;
use crate::sessions::NOBODY;
use crate::store::{Count, Inode, Key, Kind, Orphan, Scan, Xattr};

/// Takes one name from an inode whose entry is gone; returns it as it is now.
pub(super) fn drop_name(tx: &mut Tx, mut inode: Inode) -> Result<Inode, OpError> {
    inode.nlink = if inode.is_directory() { 0 } else { inode.nlink.saturating_sub(1) };
    inode.changed(tx.now_ns());
    if inode.nlink > 0 {
        tx.put(inode.clone());
        return Ok(inode);
    }
    let holders = tx.context.sessions.orphan(inode.id);
    tx.nameless.push(inode.id);
    if holders.is_empty() {
        delete(tx, inode.clone())?;
    } else {
        let since_ns = tx.job_ns();
        for session in holders {
            tx.put(Orphan { inode: inode.id, session, since_ns });
        }
        tx.put(inode.clone());
    }
    Ok(inode)
}

/// Does one job's part of what is done step by step. Whether there is more.
pub(crate) fn go_on(tx: &mut Tx) -> Result<bool, OpError> {
    if tx.steps.first.is_some() {
        return extents::reap(tx).map(|_| true);
    }
    Ok(release_step(tx)? || reap_step(tx)? || extents::reap(tx)?)
}

/// Goes on with orphans that their holders have closed: as many as fit one job. Whether there are more.
pub(super) fn release_step(tx: &mut Tx) -> Result<bool, OpError> {
    while let Some(&(inode, session)) = tx.steps.released.front() {
        if !tx.has_room() {
            return Ok(true);
        }
        tx.steps.next_released();
        // It may have been opened again before its turn.
        if !tx.context.sessions.holds_open(session, inode) {
            release(tx, inode, session)?;
        }
    }
    Ok(false)
}

/// A session no longer holds an orphan; the inode goes with the last holder.
fn release(tx: &mut Tx, id: InodeId, session: SessionId) -> Result<(), OpError> {
    tx.context.sessions.orphan_released(id, session);
    let key = Key::Orphan(id, session);
    if tx.get(&key)?.is_none() {
        return Ok(());
    }
    tx.delete(key);
    if !holders(tx, id, 1)?.is_empty() {
        return Ok(());
    }
    let Some(inode) = tx.find::<Inode>(&Key::Inode(id))?.filter(|inode| inode.nlink == 0) else {
        return Ok(());
    };
    let others = tx.context.sessions.keep_orphan(id);
    if others.is_empty() {
        return delete(tx, inode);
    }
    let since_ns = tx.job_ns();
    others.into_iter().for_each(|session| tx.put(Orphan { inode: id, session, since_ns }));
    Ok(())
}

/// One more session holds an orphan. Nothing happens when it is gone, or on its way.
pub(super) fn hold(tx: &mut Tx, id: InodeId, session: SessionId) -> Result<(), OpError> {
    // Nobody comes first.
    let first = holders(tx, id, 1)?.into_iter().next();
    if first.is_some_and(|row| row.session != NOBODY) {
        tx.put(Orphan { inode: id, session, since_ns: tx.job_ns() });
        tx.context.sessions.orphan_held(id, session);
    }
    Ok(())
}

fn holders(tx: &mut Tx, inode: InodeId, limit: usize) -> Result<Vec<Orphan>, OpError> {
    let last = SessionId::from_uuid(uuid::Uuid::max());
    Ok(tx.list(&Scan::between(Key::Orphan(inode, NOBODY), Key::Orphan(inode, last)).limit(limit))?)
}

/// Removes an inode that nobody names or holds: at once when it has few extents, else in steps.
fn delete(tx: &mut Tx, inode: Inode) -> Result<(), OpError> {
    if !step(tx, inode.clone())? {
        tx.put(Orphan { inode: inode.id, session: NOBODY, since_ns: tx.job_ns() });
        tx.steps.reap.insert(inode.id);
    }
    Ok(())
}

/// Removes some extents and attributes of an inode, and with the last of them the inode itself: then true.
fn step(tx: &mut Tx, mut inode: Inode) -> Result<bool, OpError> {
    let limit = tx.extents_left();
    if inode.kind == Kind::File {
        let mut live = LiveChanges::default();
        let empty = extents::remove_first(tx, &mut inode, limit, &mut live)?;
        live.apply(tx)?;
        if !empty {
            tx.put(inode);
            return Ok(false);
        }
    }
    if inode.xattrs > 0 {
        let xattrs: Vec<Xattr> = tx.list(&super::xattr::all_of(inode.id).limit(limit))?;
        inode.xattrs = inode.xattrs.saturating_sub(u32::try_from(xattrs.len()).unwrap_or(u32::MAX));
        let more = xattrs.len() >= limit;
        xattrs.into_iter().for_each(|xattr| tx.delete(Key::Xattr(xattr.inode, xattr.name)));
        if more {
            tx.put(inode);
            return Ok(false);
        }
    }
    tx.delete(Key::Inode(inode.id));
    tx.count(Count::Inodes, -1)?;
    Ok(true)
}

/// Goes on with one inode that is being deleted in steps. Whether there is more to do.
fn reap_step(tx: &mut Tx) -> Result<bool, OpError> {
    let Some(&id) = tx.steps.reap.first() else { return Ok(false) };
    let queued = tx.get(&Key::Orphan(id, NOBODY))?.is_some();
    let done = match tx.find::<Inode>(&Key::Inode(id))? {
        // Whoever queued it may have failed in the end: then it still has a name.
        Some(inode) if queued && inode.nlink == 0 => step(tx, inode)?,
        _ => true,
    };
    if done {
        tx.delete(Key::Orphan(id, NOBODY));
        tx.steps.reaped(id);
    }
    Ok(!tx.steps.reap.is_empty())
}
