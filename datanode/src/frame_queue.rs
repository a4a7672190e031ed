//! The frames that wait for one replication stream.
//!
//! gRPC takes them out when the connection has room. A connection to a node that has stopped reading
//! may never have any, and then holds on to its request body; so the waiting frames (and the memory
//! that they hold) belong to the [`Drain`], and go when the link gives up.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use cairn_proto::v1::StoreFrame;
use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// A frame on its way to another datanode; its memory is given back when gRPC has taken it.
pub(crate) struct Forward {
    pub(crate) frame: StoreFrame,
    /// Held, not read: dropping it gives the memory back.
    pub(crate) _memory: Option<Arc<OwnedSemaphorePermit>>,
}

/// Where frames are put in.
pub(crate) type Queue = mpsc::Sender<Forward>;

/// Where gRPC takes frames out.
pub(crate) struct Frames(Arc<Mutex<Option<mpsc::Receiver<Forward>>>>);

/// Drops what is waiting, and refuses more, when it is dropped.
pub(crate) struct Drain(Arc<Mutex<Option<mpsc::Receiver<Forward>>>>);

/// A queue of at most `depth` frames.
pub(crate) fn frame_queue(depth: usize) -> (Queue, Frames, Drain) {
    let (queue, frames) = mpsc::channel(depth);
    let shared = Arc::new(Mutex::new(Some(frames)));
    (queue, Frames(Arc::clone(&shared)), Drain(shared))
}

impl Stream for Frames {
    type Item = StoreFrame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StoreFrame>> {
        let mut frames = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match frames.as_mut() {
            Some(frames) => frames.poll_recv(context).map(|forward| forward.map(|forward| forward.frame)),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
