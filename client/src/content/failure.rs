//! What a store in the background met, and who was told of it: each descriptor once, as Linux has it
//! (errseq_t; fsync(2), "Errors").
//!
//! While nobody was told, the file can not be read: what would be read is older than what was written.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{ClientError, Result};

/// Of how many failures of its file one descriptor has been told.
#[derive(Debug, Default)]
pub struct Told(AtomicU64);

impl Told {
    /// For one close(2) of a descriptor that may have others: processes that were forked share it, and the close of one of
    /// them, whose error most programs ignore, must not take the error from the fsync(2) of another.
    pub fn for_close(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }
}

/// The failures of one file.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u64,
    last: Option<ClientError>,
    /// Somebody was told of the last one.
    seen: bool,
}

impl Failures {
    /// Those of a file of which an earlier content has left an error that nobody was told of.
    pub(super) fn after(untold: Option<ClientError>) -> Self {
        Self { count: untold.is_some().into(), last: untold, seen: false }
    }

    pub(super) fn add(&mut self, error: ClientError) {
        self.count += 1;
        self.last = Some(error);
        self.seen = false;
    }

    /// For a descriptor that is opened now: what nobody was told of is its business, too.
    pub(super) fn told(&self) -> Told {
        Told(AtomicU64::new(if self.seen { self.count } else { self.count.saturating_sub(1) }))
    }

    /// The last failure, unless the descriptor was told of it.
    pub(super) fn tell(&mut self, told: &Told) -> Result<()> {
        match &self.last {
            Some(error) if told.0.swap(self.count, Ordering::Relaxed) < self.count => {
                self.seen = true;
                Err(error.clone())
            }
            _ => Ok(()),
        }
    }

    /// Whether [`Self::tell`] has something to say.
    pub(super) fn concern(&self, told: &Told) -> bool {
        told.0.load(Ordering::Relaxed) < self.count
    }

    /// [`Self::unseen`] as an error: what is stored is older than what was written.
    pub(super) fn check(&self) -> Result<()> {
        self.unseen().cloned().map_or(Ok(()), Err)
    }

    /// The last failure while nobody was told of it.
    pub(super) fn unseen(&self) -> Option<&ClientError> {
        self.last.as_ref().filter(|_| !self.seen)
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::ErrorKind;

    use super::*;

    #[test]
    fn each_descriptor_is_told_once_and_a_later_one_of_what_nobody_knows() {
        let error = || ClientError::new(ErrorKind::NoSpace, "full");
        let mut failures = Failures::default();
        let (first, second) = (failures.told(), failures.told());
        assert!(failures.tell(&first).is_ok() && !failures.concern(&first));
        failures.add(error());
        assert!(failures.unseen().is_some());
        let late = failures.told();
        assert!(failures.tell(&first).is_err() && failures.tell(&first).is_ok());
        assert!(failures.unseen().is_none() && failures.concern(&second));
        let later = failures.told();
        assert!(failures.tell(&later).is_ok(), "it was opened after somebody was told");
        assert!(failures.tell(&late.for_close()).is_err() && failures.tell(&late.for_close()).is_err());
        assert!(failures.tell(&late).is_err(), "nobody had been told when it was opened");
        assert!(failures.tell(&late.for_close()).is_ok(), "it was told");
        // Two failures in a row are told at once.
        failures.add(error());
        failures.add(error());
        assert!(failures.tell(&second).is_err() && failures.tell(&second).is_ok());
        let left = failures.unseen().cloned();
        assert!(left.is_none() && Failures::after(left).told().0.into_inner() == 0);
        assert!(Failures::after(Some(error())).tell(&Told::default()).is_err());
    }
}
