//! ReserveInodes: ids for inodes that a client makes itself.

use cairn_proto::{InodeId, SessionId};

use crate::error::OpError;
use crate::executor::Tx;
use crate::store::Count;

/// Takes consecutive ids and returns the first. They are never given again, used or not.
pub(crate) fn reserve_inodes(tx: &mut Tx, session: SessionId, count: u32) -> Result<InodeId, OpError> {
    tx.context.sessions.check(session)?;
    Ok(InodeId::new(tx.take_ids(Count::NextInode, count.into())?)?)
}
