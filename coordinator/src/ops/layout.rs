//! DownloadFile: where the bytes of a range are. Reads committed state.

use std::collections::BTreeSet;

use cairn_proto::{ByteRange, ErrorKind, InodeId, NodeId};
use uuid::Uuid;

use super::{clone_range, extents};
use crate::error::OpError;
use crate::store::{Chunk, Extent, Fault, Inode, Key, Reader, Scan};

/// Where the bytes of a range are.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) inode: Inode,
    /// Those that touch the range, in order, whole.
    pub(crate) extents: Vec<Extent>,
    /// Each chunk that they name, with the members that have no good copy.
    pub(crate) chunks: Vec<(Chunk, Vec<NodeId>)>,
    /// The layout is complete up to here.
    pub(crate) covered: u64,
}

/// At most `extents_max` extents. Without a range: attributes only.
pub(crate) fn layout(
    reader: &dyn Reader,
    id: InodeId,
    range: Option<ByteRange>,
    extents_max: usize,
) -> Result<Layout, OpError> {
    let inode = super::read::inode(reader, id)?;
    let Some(range) = range else {
        return Ok(Layout { inode, extents: Vec::new(), chunks: Vec::new(), covered: 0 });
    };
    clone_range::need_file(&inode)?;
    let extents = extents::touching(&mut { reader }, &inode, range, extents_max)?;
    let covered = match extents.last() {
        Some(last) if extents.len() >= extents_max => last.end().min(range.end()).max(range.start()),
        _ => range.end(),
    };
    let named: BTreeSet<_> = extents.iter().map(|extent| extent.chunk).collect();
    let mut chunks = Vec::with_capacity(named.len());
    for id in named {
        let lost =
            || OpError::new(ErrorKind::Corrupt, format!("an extent names chunk {id}, which has no row"));
        let chunk: Chunk = crate::store::find(reader, &Key::Chunk(id))?.ok_or_else(lost)?;
        let missing = match chunk.faults {
            0 => Vec::new(),
            _ => {
                let [first, last] =
                    [Uuid::nil(), Uuid::max()].map(|node| Key::Fault(id, NodeId::from_uuid(node)));
                let faults: Vec<Fault> = crate::store::list(reader, &Scan::between(first, last))?;
                faults.into_iter().map(|fault| fault.node).collect()
            }
        };
        chunks.push((chunk, missing));
    }
    Ok(Layout { inode, extents, chunks, covered })
}
