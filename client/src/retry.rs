//! How long one operation keeps trying: a deadline for each try, a jittered pause between tries and
//! one budget for all of them, given by the policy for an unreachable cluster.

use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use cairn_proto::ErrorKind;
use cairn_runtime::clock::{self, Instant};
use cairn_runtime::random;
use tracing::warn;

use crate::config::Unreachable;
use crate::error::{ClientError, Result};

/// One try of one call.
pub(crate) const TRY_TIME: Duration = Duration::from_secs(5);
/// First pause between tries; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A wait that takes longer than this is logged.
const WARN_AFTER: Duration = Duration::from_secs(5);
/// And again this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// An operation that lasts longer is told to whoever asked for that by [`on_long_waits`].
const NOTICE_AFTER: Duration = Duration::from_secs(2);

static NOTICE: OnceLock<fn(&str)> = OnceLock::new();

/// Has `say` called with what an operation tries to do, such as "look up a name", each time that it has not been
/// answered for two seconds and more. For commands, whose user waits; the first call in a process counts.
pub fn on_long_waits(say: fn(&str)) {
    let _ = NOTICE.set(say);
}

/// The patience of one operation.
#[derive(Debug)]
pub(crate) struct Patience {
    what: &'static str,
    started: Instant,
    limit: Option<Duration>,
    pause: Duration,
    warn_at: Instant,
}

impl Patience {
    pub(crate) fn new(what: &'static str, policy: Unreachable) -> Self {
        Self::limited(what, policy.limit())
    }

    /// Tries until `limit`; `None`: for ever.
    pub(crate) fn limited(what: &'static str, limit: Option<Duration>) -> Self {
        let started = clock::now();
        Self { what, started, limit, pause: PAUSE_MIN, warn_at: started + WARN_AFTER }
    }

    pub(crate) fn what(&self) -> &'static str {
        self.what
    }

    /// What one try may take: [`TRY_TIME`], or what is left.
    pub(crate) fn try_time(&self) -> Duration {
        let left = self.limit.map(|limit| limit.saturating_sub(self.started.elapsed()));
        left.unwrap_or(TRY_TIME).clamp(Duration::from_millis(100), TRY_TIME)
    }

    /// Runs one try with its deadline.
    pub(crate) async fn attempt<T, E: Into<ClientError>>(
        &self,
        call: impl Future<Output = std::result::Result<T, E>>,
    ) -> Result<T> {
        let call = clock::timeout(self.try_time(), call);
        let outcome = match NOTICE.get() {
            None => call.await,
            Some(say) => self.with_notice(call, say).await,
        };
        match outcome {
            Ok(result) => result.map_err(Into::into),
            Err(_) => Err(ClientError::new(
                ErrorKind::TimedOut,
                format!("{}: no answer within {:?}", self.what, self.try_time()),
            )),
        }
    }

    async fn with_notice<T>(&self, call: impl Future<Output = T>, say: &fn(&str)) -> T {
        let mut call = pin!(call);
        let quiet = NOTICE_AFTER.saturating_sub(self.started.elapsed());
        match clock::timeout(quiet, &mut call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                say(self.what);
                call.await
            }
        }
    }

    /// Waits before the next try after `error`.
    ///
    /// `GaveUp`: the time is over.
    pub(crate) async fn pause(&mut self, error: &ClientError) -> Result<()> {
        let waited = self.started.elapsed();
        let pause = random::jitter(self.pause);
        if self.limit.is_some_and(|limit| waited + pause >= limit) {
            return Err(ClientError::GaveUp { what: self.what, waited, last: Box::new(error.clone()) });
        }
        if clock::now() >= self.warn_at {
            warn!(seconds = waited.as_secs(), %error, "still waiting to {}", self.what);
            self.warn_at = clock::now() + WARN_EVERY;
        }
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        clock::sleep(pause).await;
        Ok(())
    }
}

/// Whether the same call, sent again as it is, may succeed: the other side can not be reached, or
/// has not answered, or not now.
pub(crate) fn same_call_may_succeed(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::NotActive | ErrorKind::Overloaded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_without_an_answer_are_sent_again() {
        for &kind in ErrorKind::ALL {
            if same_call_may_succeed(kind) {
                assert!(kind.is_retryable(), "{kind:?}");
            }
        }
        assert!(!same_call_may_succeed(ErrorKind::TooFewReplicas));
        assert!(!same_call_may_succeed(ErrorKind::SessionExpired));
    }

    #[tokio::test(start_paused = true)]
    async fn a_soft_operation_gives_up_in_time_and_says_why() {
        let mut patience = Patience::new("read", Unreachable::Soft(Duration::from_secs(3)));
        let error = ClientError::new(ErrorKind::Unavailable, "gone");
        let started = clock::now();
        let last = loop {
            if let Err(error) = patience.pause(&error).await {
                break error;
            }
        };
        assert!(started.elapsed() <= Duration::from_secs(3));
        assert_eq!(last.kind(), ErrorKind::Unavailable);
        assert!(last.to_string().contains("gone"), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hard_operation_goes_on() {
        let mut patience = Patience::new("read", Unreachable::Hard);
        let error = ClientError::new(ErrorKind::Unavailable, "gone");
        for _ in 0..1000 {
            assert!(patience.pause(&error).await.is_ok());
        }
    }
}
