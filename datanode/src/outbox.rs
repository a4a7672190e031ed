//! Acknowledgements on their way back to the sender of a stream.
//!
//! Anyone may put one in without waiting (the syncer's thread, the reader of a replica's stream);
//! the stream takes them out when its peer is ready for more. Bounded: a stream may have
//! [`OPEN_MAX`] chunks whose final acknowledgement it has not taken, and credit is kept as one number
//! per chunk.
//!
//! The stream also drives the work of its incoming half, so that a frame is handled and answered by
//! the one task that the connection wakes: every hop to another task costs a lone writer a wake-up.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use cairn_proto::v1::StoreAck;
use futures::Stream;
use futures::task::AtomicWaker;
use tokio::sync::Notify;
use tonic::Status;

/// Chunks under way on one stream; further headers wait.
pub(crate) const OPEN_MAX: usize = 256;

/// Acknowledgements of one stream.
#[derive(Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    waker: AtomicWaker,
    freed: Notify,
}

#[derive(Default)]
struct State {
    finals: VecDeque<StoreAck>,
    /// (chunk, bytes), at most one per open chunk.
    credit: VecDeque<(u64, u64)>,
    /// Chunks whose final acknowledgement was not taken yet.
    open: usize,
}

impl Outbox {
    /// Waits until one more chunk may be open, and counts it.
    pub(crate) async fn admit(&self) {
        loop {
            let freed = self.freed.notified();
            {
                let mut state = self.lock();
                if state.open < OPEN_MAX {
                    state.open += 1;
                    return;
                }
            }
            freed.await;
        }
    }

    /// Puts in the last acknowledgement of an admitted chunk.
    pub(crate) fn finish(&self, ack: StoreAck) {
        let mut state = self.lock();
        state.credit.retain(|(chunk, _)| *chunk != ack.chunk);
        state.finals.push_back(ack);
        drop(state);
        self.waker.wake();
    }

    /// Puts in how many bytes of an admitted chunk have arrived everywhere.
    pub(crate) fn credit(&self, chunk: u64, received: u64) {
        let mut state = self.lock();
        match state.credit.iter_mut().find(|(known, _)| *known == chunk) {
            Some((_, bytes)) => *bytes = received,
            None => state.credit.push_back((chunk, received)),
        }
        drop(state);
        self.waker.wake();
    }

    /// Chunks whose final acknowledgement was not taken yet.
    pub(crate) fn open(&self) -> usize {
        self.lock().open
    }

    /// Lets the stream send what is waiting, before more frames are handled.
    pub(crate) async fn give_way(&self) {
        let waiting = {
            let state = self.lock();
            !state.finals.is_empty() || !state.credit.is_empty()
        };
        let mut yielded = !waiting;
        std::future::poll_fn(|context| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn take(&self) -> Option<StoreAck> {
        let mut state = self.lock();
        if let Some(ack) = state.finals.pop_front() {
            state.open = state.open.saturating_sub(1);
            drop(state);
            self.freed.notify_one();
            return Some(ack);
        }
        let (chunk, received) = state.credit.pop_front()?;
        Some(StoreAck { chunk, received, ..StoreAck::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outgoing half of a stream, which drives the incoming one.
pub(crate) struct AckStream {
    outbox: Arc<Outbox>,
    intake: Option<Pin<Box<dyn Future<Output = Option<Status>> + Send>>>,
    /// Why the incoming half could not go on; said last.
    failure: Option<Status>,
    /// Something was handed out since the connection last had a chance to send it.
    unsent: bool,
}

impl AckStream {
    /// `intake` handles incoming frames until they end; the stream ends after the last
    /// acknowledgement that it leaves behind, with the error that `intake` returns.
    pub(crate) fn new(
        outbox: Arc<Outbox>,
        intake: impl Future<Output = Option<Status>> + Send + 'static,
    ) -> Self {
        Self { outbox, intake: Some(Box::pin(intake)), failure: None, unsent: false }
    }
}

impl Stream for AckStream {
    type Item = Result<StoreAck, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.outbox.waker.register(context.waker());
        if let Some(ack) = self.outbox.take() {
            self.unsent = true;
            return Poll::Ready(Some(Ok(ack)));
        }
        if self.unsent {
            // tonic sends what it has when there is nothing more right now; handling more frames
            // first would hold the acknowledgements back.
            self.unsent = false;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(intake) = &mut self.intake
            && let Poll::Ready(failure) = intake.as_mut().poll(context)
        {
            self.intake = None;
            self.failure = failure;
        }
        match self.outbox.take() {
            Some(ack) => {
                self.unsent = true;
                Poll::Ready(Some(Ok(ack)))
            }
            None if self.intake.is_none() && self.outbox.open() == 0 => {
                Poll::Ready(self.failure.take().map(Err))
            }
            None => Poll::Pending,
        }
    }
}
