//! Records datanodes.

use crate::error::OpError;
use crate::executor::Tx;
use crate::store::Datanode;

/// A datanode has registered.
pub(crate) fn record(tx: &mut Tx, node: Datanode) -> Result<(), OpError> {
    tx.put(node);
    Ok(())
}
