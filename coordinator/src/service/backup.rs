//! Backups on request: sent to the caller, or made in the second place.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::{ErrorKind, v1};
use cairn_runtime::clock;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Replies, Shared, refuse};
use crate::archive::base::{self, Piece};
use crate::archive::error::ArchiveError;
use crate::error::OpError;

/// Messages on their way to the caller.
const MESSAGES: usize = 4;
/// A caller that takes nothing for so long is given up: meanwhile the store's log can not be reused.
const SEND_TIME: Duration = Duration::from_secs(30);

impl From<ArchiveError> for OpError {
    fn from(error: ArchiveError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

pub(super) async fn backup(
    shared: Arc<Shared>,
    request: v1::BackupRequest,
) -> Result<Replies<v1::BackupResponse>, OpError> {
    let (answers, stream) = mpsc::channel(MESSAGES);
    if request.to_place {
        let done = in_place(&shared).await?;
        // The channel is empty and not closed.
        let _ = answers.send(Ok(v1::BackupResponse { done: Some(done), ..Default::default() })).await;
    } else {
        let cluster = &shared.context.cluster;
        let pieces = base::start(Arc::clone(&shared.readers), cluster.id(), cluster.term())?;
        shared.shutdown.spawn(send(pieces, answers, shared.shutdown.requested()));
    }
    Ok(Box::pin(ReceiverStream::new(stream)))
}

async fn in_place(shared: &Shared) -> Result<v1::BackupDone, OpError> {
    let Some(backups) = &shared.backups else {
        return Err(OpError::invalid("the coordinator has no second place; set log_ship, or name a file"));
    };
    let stopping = || OpError::new(ErrorKind::Unavailable, "the coordinator is stopping");
    let (answer, made) = oneshot::channel();
    backups.send(answer).await.map_err(|_| stopping())?;
    let done =
        made.await.map_err(|_| stopping())?.map_err(|why| OpError::new(ErrorKind::Unavailable, why))?;
    Ok(v1::BackupDone { sequence: done.sequence, rows: done.rows, bytes: done.bytes, file: done.name })
}

type Answers = mpsc::Sender<Result<v1::BackupResponse, Status>>;

async fn send(
    mut pieces: mpsc::Receiver<Result<Piece, ArchiveError>>,
    answers: Answers,
    stop: impl Future<Output = ()>,
) {
    tokio::pin!(stop);
    let mut done = v1::BackupDone::default();
    loop {
        let piece = tokio::select! {
            () = &mut stop => return,
            piece = pieces.recv() => piece,
        };
        let answer = match piece {
            Some(Ok(Piece::Header(header))) => {
                done.sequence = header.sequence;
                continue;
            }
            Some(Ok(Piece::Data(data))) => {
                done.bytes += data.len() as u64;
                Ok(v1::BackupResponse { data, done: None })
            }
            Some(Ok(Piece::Done(rows))) => {
                done.rows = rows;
                Ok(v1::BackupResponse { done: Some(done.clone()), ..Default::default() })
            }
            Some(Err(error)) => Err(refuse("Backup", &error.into())),
            None => return,
        };
        match clock::timeout(SEND_TIME, answers.send(answer)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}
