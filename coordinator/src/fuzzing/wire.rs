//! Messages as anybody may send them: checked, and executed where they pass.

use cairn_proto::v1;
use prost::Message;

use super::{Input, new_tx};
use crate::ops::access::Caller;
use crate::ops::{self, Create, Mutation, NewInode};
use crate::service::fuzzing as check;
use crate::store::{Scan, Table};

/// Decodes one message of a kind chosen by the first byte, checks it, and executes what passed.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 6 {
        0 => apply(input.0),
        1 => confirm(input.0),
        2 => drop(v1::UploadFileRequest::decode(input.0).map(|request| check::plan(request, 8 << 20))),
        3 => drop(v1::RegisterDataNodeRequest::decode(input.0).map(check::registration)),
        4 => drop(v1::HeartbeatRequest::decode(input.0).map(check::heartbeat)),
        _ => drop(v1::ClientHello::decode(input.0).map(|hello| check::opens(hello.open))),
    }
}

fn apply(data: &[u8]) {
    let Ok(request) = v1::ApplyRequest::decode(data) else { return };
    let _ = check::request_id(request.id.clone());
    let Ok(batch) = check::batch(request) else { return };
    let Some(mut tx) = new_tx() else { return };
    let root = Caller::default();
    for (name, new) in [("d", NewInode::Directory), ("f", NewInode::File { exclusive: true, open: None })] {
        let Ok(name) = cairn_proto::FileName::new(bytes::Bytes::from_static(name.as_bytes())) else { return };
        let parent = cairn_proto::InodeId::ROOT;
        let create = Create { parent, name, new, mode: 0o777, id: None, lease: false };
        let made = tx.attempt(|tx| ops::apply(tx, &Mutation::Create(create), &root));
        assert!(made.is_ok(), "{made:?}");
    }
    let session = cairn_proto::SessionId::from_uuid(uuid::Uuid::from_u128(1));
    let done = tx.attempt(|tx| ops::batch::run(tx, session, &batch));
    assert_eq!(done.map(|results| results.len()).ok(), Some(batch.steps.len()), "nobody is in the way");
    let inodes = tx.list::<crate::store::Inode>(&Scan::all(Table::Inode)).unwrap_or_default();
    assert_eq!(super::extents::counter(&mut tx, crate::store::Count::Inodes), inodes.len() as u64);
    assert!(tx.commit().is_ok());
}

fn confirm(data: &[u8]) {
    let Ok(request) = v1::ConfirmUploadRequest::decode(data) else { return };
    let session = cairn_proto::SessionId::from_uuid(uuid::Uuid::from_u128(1));
    let Ok(confirm) = check::confirm(session, request) else { return };
    let Some(mut tx) = new_tx() else { return };
    let _ = tx.attempt(|tx| ops::commit::confirm(tx, &confirm));
}
