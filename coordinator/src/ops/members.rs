//! Records datanodes.

use crate::error::OpError;
use crate::executor::Tx;
use crate::store::{Datanode, Key};

/// A datanode has registered. What the operator wants of it stays.
pub(crate) fn record(tx: &mut Tx, mut node: Datanode) -> Result<(), OpError> {
    if let Some(known) = tx.find::<Datanode>(&Key::Datanode(node.id))? {
        node.admin = known.admin;
    }
    tx.put(node);
    Ok(())
}
