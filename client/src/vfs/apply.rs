//! Applies what was done locally, and gives back the leases that are recalled.

use std::sync::{Arc, Weak};
use std::time::Duration;

use cairn_proto::v1::{self, mutation::Op};
use cairn_proto::{ErrorKind, InodeId, WireError};
use cairn_runtime::clock::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::Vfs;
use crate::behind::{Behind, Pending};
use crate::error::ClientError;
use crate::session::Session;
use crate::{Attr, Coordinator, metrics};

/// Pauses between tries while the coordinator can not apply a batch.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Applies batches until the client is closed; also what is left when the file system is not in use any more.
pub(super) async fn apply_all(
    vfs: Weak<Vfs>,
    coordinator: Coordinator,
    behind: Arc<Behind>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = behind.filled() => {}
            () = stop.cancelled() => return,
        }
        let batch = behind.take();
        let Some((asked, results)) = apply(&coordinator, &behind, &batch).await else { return };
        let took = asked.elapsed();
        metrics::applied_behind(batch.len(), took);
        let Some(vfs) = vfs.upgrade() else {
            behind.landed(batch, took);
            continue;
        };
        for (pending, result) in batch.iter().zip(results) {
            vfs.on_result(pending, result, asked);
        }
        let concerned: Vec<InodeId> = batch.iter().flat_map(|pending| pending.concerns.clone()).collect();
        behind.landed(batch, took);
        vfs.leased.room_again();
        // What is pending on them still is not in these attributes.
        let changing = concerned.into_iter().filter(|&inode| behind.is_pending(inode));
        changing.for_each(|inode| vfs.inodes.expire_unpinned(inode));
        vfs.shed();
    }
}

/// Has one batch applied, as long as it takes. `None`: the client has been closed.
async fn apply(
    coordinator: &Coordinator,
    behind: &Behind,
    batch: &[Pending],
) -> Option<(Instant, Vec<v1::MutationResult>)> {
    let mut pause = PAUSE_MIN;
    let mut earlier = Vec::new();
    loop {
        let asked = clock::now();
        match send(coordinator, behind, batch, &mut earlier).await {
            Ok(results) => return Some((asked, results)),
            // Again, in the next session: the coordinator knows whether it was executed in this one.
            Err(ClientError::SessionExpired { .. }) => {}
            Err(ClientError::Closed) => return None,
            Err(error) => {
                tracing::warn!(changes = batch.len(), %error, "local changes of names can not be applied yet");
                behind.stuck(error);
                clock::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Sends one batch, and tells who waits when that takes longer than they shall wait.
async fn send(
    coordinator: &Coordinator,
    behind: &Behind,
    batch: &[Pending],
    earlier: &mut Vec<v1::RequestId>,
) -> crate::Result<Vec<v1::MutationResult>> {
    let limit = coordinator.policy().limit();
    let sending = coordinator.send_behind(batch, earlier);
    tokio::pin!(sending);
    if let Some(limit) = limit {
        match clock::timeout(limit, &mut sending).await {
            Ok(results) => return results,
            Err(_) => behind.stuck(ClientError::new(
                ErrorKind::Unavailable,
                format!("local changes of names could not be applied within {limit:?}"),
            )),
        }
    }
    sending.await
}

/// Answers recalls until the client is closed.
pub(super) async fn answer_recalls(
    vfs: Weak<Vfs>,
    session: Arc<Session>,
    behind: Arc<Behind>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = session.leases.recalled.notified() => {}
            () = stop.cancelled() => return,
        }
        let (recalls, reads) = (session.leases.take_recalls(), session.leases.take_read_recalls());
        let Some(vfs) = vfs.upgrade() else {
            session.leases.release_reads(reads);
            // An error: the coordinator ends the session when it has waited long enough.
            if behind.all_applied().await.is_ok() {
                recalls.into_iter().for_each(|(directory, grant)| session.leases.release(directory, grant));
            }
            continue;
        };
        vfs.lose_leases();
        vfs.give_back_reads(reads);
        for (directory, grant) in recalls {
            drop(vfs.runtime.spawn(Arc::clone(&vfs).give_back(directory, grant)));
        }
    }
}

impl Vfs {
    fn on_result(self: &Arc<Self>, pending: &Pending, result: v1::MutationResult, asked: Instant) {
        if let Some(error) = WireError::from_fields(result.error, &result.message) {
            return self.on_refused(pending, &error.into());
        }
        if let (Op::Create(create), [parent, made]) = (&pending.op, &*pending.concerns)
            && create.lease
            && !result.leases.iter().any(|lease| lease.inode == made.get())
        {
            self.give_up_unleased(*made, *parent);
        }
        result.leases.iter().for_each(|lease| self.learn_grant(lease));
        let attrs = [result.attr, result.parent, result.new_parent, result.replaced];
        for attr in attrs.into_iter().flatten() {
            match Attr::from_wire(attr) {
                Ok(attr) => self.inodes.adopt_applied(attr, asked),
                Err(error) => tracing::warn!(%error, "an answer without sense"),
            }
        }
    }

    /// What was done here, and answered, can not be done there: the session had expired and somebody else
    /// was faster, or the lease did not do what it is for. What was executed before is not refused.
    fn on_refused(&self, pending: &Pending, error: &ClientError) {
        match error.kind() {
            ErrorKind::NameChanged | ErrorKind::NotFound | ErrorKind::Exists => {
                tracing::error!(change = ?pending.op, %error, "a local change is lost: another mount was faster");
            }
            _ => tracing::error!(change = ?pending.op, %error, "a local change is lost"),
        }
        metrics::behind_refused();
        self.client.behind().lose(&pending.concerns);
        let is_create = matches!(pending.op, Op::Create(_));
        for (index, &inode) in pending.concerns.iter().enumerate() {
            self.reread(inode);
            self.inodes.forget_removal(inode);
            if is_create && index > 0 {
                let mut state = self.leased.lock();
                state.drop_dir(inode);
                state.drop_private(inode);
                drop(state);
                self.inodes.unpin(inode);
            }
        }
    }
}
