//! A batch of mutations in the face of leases: each is checked against the leases of other
//! sessions, executed, and brings those that its own session is granted with it.
//!
//! What they name is checked before the first of them runs, so that none fails because of rows that
//! somebody has changed locally; the directories that each has touched, after it. A conflict leaves
//! nothing of the whole batch, so that the same batch can be run again. Read leases on all that was changed are
//! in the way, too, at the end.

use std::sync::Arc;

use cairn_proto::{ErrorKind, FileName, InodeId, SessionId, WireError};

use super::access::Caller;
use super::found::{self, FoundNames};
use super::{Applied, Mutation, apply, directory};
use crate::error::OpError;
use crate::executor::Tx;
use crate::leases::{Grant, Granted};
use crate::store::{Inode, Key};

/// One mutation, with who performs it and when.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) mutation: Mutation,
    pub(crate) caller: Arc<Caller>,
    /// `None`: now.
    pub(crate) at_ns: Option<i64>,
    /// What its names led to when it was performed. `None`: whatever they lead to.
    pub(crate) found: Option<FoundNames>,
}

/// Mutations in their order; one that fails stops no other.
#[derive(Debug)]
pub(crate) struct Batch {
    /// What is wrong with a step is its result.
    pub(crate) steps: Vec<Result<Step, WireError>>,
    /// Leases are wanted on the directories whose names change.
    pub(crate) want_leases: bool,
}

/// What one mutation did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) applied: Applied,
    pub(crate) leases: Vec<Grant>,
}

/// Executes a batch for `session`. `Leased`: others hold leases on what it touches.
pub(crate) fn run(
    tx: &mut Tx,
    session: SessionId,
    batch: &Batch,
) -> Result<Vec<Result<Done, OpError>>, OpError> {
    tx.context.leases.note_activity(session);
    check_all(tx, session, batch)?;
    let mut run = Run { session, want_leases: batch.want_leases, granted: Vec::new(), removed: Vec::new() };
    let done = run.steps(tx, &batch.steps).and_then(|results| tx.settle_for(session).map(|()| results));
    match done {
        Ok(results) => {
            tx.removed_directories.append(&mut run.removed);
            Ok(results)
        }
        Err(error) => {
            tx.context.leases.remove(&run.granted);
            Err(error)
        }
    }
}

/// [`run`] of a batch that may have been executed before, nobody knows: all of it or nothing. Step by step some of it
/// might be possible once more (`rm a; mv b a`, two names of one file), all of it only where it ends as it began.
///
/// When one step fails all have failed, the others with `NameChanged`.
pub(crate) fn run_whole(
    tx: &mut Tx,
    session: SessionId,
    batch: &Batch,
) -> Result<Vec<Result<Done, OpError>>, OpError> {
    let mut failed = Vec::new();
    let done = tx.nested(|tx| {
        let results = run(tx, session, batch)?;
        if results.iter().all(Result::is_ok) {
            return Ok(results);
        }
        let granted = results.iter().flatten().flat_map(|done| &done.leases).map(|grant| grant.inode);
        tx.context.leases.remove(&Vec::from_iter(granted));
        failed = results;
        Err(OpError::invalid("a part of it was executed before, or can not be executed"))
    });
    if failed.is_empty() {
        return done;
    }
    let with_others = || OpError::new(ErrorKind::NameChanged, "it belongs to changes that are not possible");
    Ok(failed.into_iter().map(|result| Err(result.err().unwrap_or_else(with_others))).collect())
}

/// Everything that is in the way is found together, and before anything is done. The directory behind a
/// name at a mutation's turn is one that the batch itself has made, or was behind one of its names at
/// the start.
fn check_all(tx: &mut Tx, session: SessionId, batch: &Batch) -> Result<(), OpError> {
    if !tx.context.leases.are_claimed() {
        return Ok(());
    }
    let mut all = Vec::with_capacity(batch.steps.len());
    for step in batch.steps.iter().flatten() {
        all.extend(named(tx, &step.mutation)?);
    }
    all.sort_unstable();
    all.dedup();
    check(tx, session, all)
}

fn check(tx: &mut Tx, session: SessionId, inodes: Vec<InodeId>) -> Result<(), OpError> {
    let mut leased = Vec::new();
    for inode in tx.context.leases.conflicts(Some(session), inodes) {
        // While sessions are absent all are in the way, but a file is never leased.
        if tx.find::<Inode>(&Key::Inode(inode))?.is_none_or(|inode| inode.is_directory()) {
            leased.push(inode);
        }
    }
    if leased.is_empty() { Ok(()) } else { Err(OpError::Leased(leased)) }
}

/// The inodes that a mutation names, and the directories behind the names in it.
fn named(tx: &mut Tx, mutation: &Mutation) -> Result<Vec<InodeId>, OpError> {
    Ok(match mutation {
        Mutation::Create(op) => vec![op.parent],
        Mutation::Link { inode, parent, .. } => vec![*inode, *parent],
        Mutation::Unlink { parent, .. } => vec![*parent],
        Mutation::Rmdir { parent, name } => {
            let mut inodes = vec![*parent];
            inodes.extend(directory_behind(tx, *parent, name)?);
            inodes
        }
        Mutation::Rename(op) => {
            let mut inodes = vec![op.parent, op.new_parent];
            inodes.extend(directory_behind(tx, op.parent, &op.name)?);
            inodes.extend(directory_behind(tx, op.new_parent, &op.new_name)?);
            inodes
        }
        Mutation::SetAttr(op) => vec![op.inode],
        Mutation::SetXattr(op) => vec![op.inode],
        Mutation::RemoveXattr { inode, .. } => vec![*inode],
        Mutation::CloneRange(op) => vec![op.source, op.destination],
        Mutation::Allocate(op) => vec![op.inode],
    })
}

fn directory_behind(tx: &mut Tx, parent: InodeId, name: &FileName) -> Result<Option<InodeId>, OpError> {
    let entry = directory::find_entry(tx, parent, name)?;
    Ok(entry.filter(|entry| entry.kind == crate::store::Kind::Directory).map(|entry| entry.child))
}

/// A batch under way.
struct Run {
    session: SessionId,
    want_leases: bool,
    /// Directories leased by this batch, for the case that it comes to nothing.
    granted: Vec<InodeId>,
    removed: Vec<InodeId>,
}

impl Run {
    fn steps(
        &mut self,
        tx: &mut Tx,
        steps: &[Result<Step, WireError>],
    ) -> Result<Vec<Result<Done, OpError>>, OpError> {
        let mut results = Vec::with_capacity(steps.len());
        for step in steps {
            let result = match step {
                Ok(step) => self.step(tx, step),
                Err(error) => Err(error.clone().into()),
            };
            match result {
                Err(error @ (OpError::Leased(_) | OpError::Later(_))) => return Err(error),
                result => results.push(result),
            }
        }
        Ok(results)
    }

    fn step(&mut self, tx: &mut Tx, step: &Step) -> Result<Done, OpError> {
        // A refused lease takes the mutation back.
        tx.nested(|tx| {
            if let Some(applied) = found::check(tx, &step.mutation, step.found)? {
                return Ok(Done { applied, leases: Vec::new() });
            }
            let applied = tx.at(step.at_ns, |tx| apply(tx, &step.mutation, &step.caller))?;
            let shown = [&applied.inode, &applied.parent, &applied.new_parent, &applied.replaced];
            let directories: Vec<&Inode> =
                shown.into_iter().flatten().filter(|inode| inode.is_directory()).collect();
            check(tx, self.session, directories.iter().map(|inode| inode.id).collect())?;
            let removed = directories.iter().filter(|inode| inode.nlink == 0).map(|inode| inode.id);
            self.removed.extend(removed);
            let leases = self.leases(tx, &step.mutation, &applied)?;
            Ok(Done { applied, leases })
        })
    }

    fn leases(&mut self, tx: &mut Tx, mutation: &Mutation, applied: &Applied) -> Result<Vec<Grant>, OpError> {
        let leases = &tx.context.leases;
        let mut granted = Vec::new();
        if let (Mutation::Create(op), Some(inode)) = (mutation, &applied.inode)
            && op.lease
        {
            granted.extend(leases.grant_new(self.session, inode.id)?);
        }
        let changes_names = match mutation {
            Mutation::Create(_)
            | Mutation::Link { .. }
            | Mutation::Unlink { .. }
            | Mutation::Rmdir { .. }
            | Mutation::Rename(_) => true,
            Mutation::SetAttr(_)
            | Mutation::SetXattr(_)
            | Mutation::RemoveXattr { .. }
            | Mutation::CloneRange(_)
            | Mutation::Allocate(_) => false,
        };
        if self.want_leases && changes_names {
            let parents = [&applied.parent, &applied.new_parent].into_iter().flatten();
            granted.extend(parents.filter_map(|parent| leases.grant(self.session, parent.id)));
        }
        for lease in &granted {
            if let Granted::New(grant) = lease {
                self.granted.push(grant.inode);
            }
        }
        Ok(granted.into_iter().map(Granted::grant).collect())
    }
}

#[cfg(test)]
mod tests;
