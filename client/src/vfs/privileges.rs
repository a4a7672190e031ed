//! What falls away from a file when it is written: set-user-ID, set-group-ID (write(2)) and `security.capability`
//! (capabilities(7)).
//!
//! For a write through its page cache the kernel sees to that itself, by the attributes that it knows; what another
//! mount has given to the file since then falls away with the commit. A direct write it leaves to the file system.

use cairn_proto::{ErrorKind, mode};

use super::handles::FileHandle;
use super::xattrs::CAPABILITY;
use super::{AttrChange, HandleId, Result, Vfs, WriteOrigin};
use crate::Caller;
use crate::content::Drops;

/// Who writes, and in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Why the write comes.
    pub origin: WriteOrigin,
    /// The file keeps set-user-ID and set-group-ID: the writer has CAP_FSETID.
    pub keeps_set_id: bool,
}

impl From<WriteOrigin> for Writer {
    fn from(origin: WriteOrigin) -> Self {
        Self { origin, keeps_set_id: true }
    }
}

impl Vfs {
    /// What the commit of a write takes from the file.
    pub(super) fn drops(&self, file: &FileHandle, writer: Writer) -> Drops {
        match writer.origin {
            // ext4 takes nothing for a store to a mapping either.
            WriteOrigin::PageCache => Drops::default(),
            WriteOrigin::Direct => Drops { set_id: !writer.keeps_set_id, capability: true },
            // The kernel has seen set-user-ID and left it.
            WriteOrigin::Call => {
                Drops { set_id: !writer.keeps_set_id && !file.content.has_set_id(), capability: true }
            }
        }
    }

    /// Whether [`Self::take_privileges`] has something to do.
    pub(super) fn has_privileges(&self, file: &FileHandle, writer: Writer) -> bool {
        let has_none = || {
            let known = self.try_getxattr(file.inode, CAPABILITY);
            known.is_some_and(|known| known.is_err_and(|error| error.kind() == ErrorKind::NoData))
        };
        writer.origin == WriteOrigin::Direct
            && (!writer.keeps_set_id && file.content.has_set_id() || !has_none())
    }

    /// Takes from the file what a direct write takes, before it is written: nobody sees the new content with the old
    /// privileges.
    pub(super) async fn take_privileges(
        self: &std::sync::Arc<Self>,
        handle: HandleId,
        file: &FileHandle,
        writer: Writer,
    ) -> Result<()> {
        if !self.has_privileges(file, writer) {
            return Ok(());
        }
        // The right to write was checked at the open.
        let root = Caller::root();
        if !writer.keeps_set_id && file.content.has_set_id() {
            let mode = mode::without_privileges(file.content.attr().mode);
            let change = AttrChange { mode: Some(mode), ..AttrChange::default() };
            self.setattr(file.inode, change, Some(handle), &root).await?;
        }
        match self.getxattr(file.inode, CAPABILITY).await {
            Ok(_) => match self.removexattr(file.inode, CAPABILITY, &root).await {
                Err(error) if error.kind() != ErrorKind::NoData => return Err(error),
                _ => {}
            },
            Err(error) if error.kind() == ErrorKind::NoData => {}
            Err(error) => return Err(error),
        }
        if let Some(pages) = self.pages.get() {
            pages.forget_attributes(file.inode);
        }
        Ok(())
    }
}
