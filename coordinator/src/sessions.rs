//! Who is connected: sessions with their leases, and which inodes each of them holds open.
//!
//! The rows of sessions are in the store; this is what else is known of them. After a restart every
//! recorded session counts as "may hold anything open" until it has returned and said what it
//! holds, or its lease has run out. So does a new one that replaces a session which has expired.
//!
//! One mutex guards it all, held for map look-ups only. The executor asks it when an inode loses
//! its last name; opens are registered by readers beside the executor. So that an open can not slip
//! in between "nobody holds it" and the commit that deletes the inode, the executor *condemns* the
//! inode under the same mutex, and opens of condemned inodes are refused.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{ErrorKind, InodeId, SessionId};
use cairn_runtime::clock;
use uuid::Uuid;

use crate::attendance::{Attendance, Moment};
use crate::error::OpError;
use crate::store::{Orphan, Session};

/// Sessions at once; more are refused with `Overloaded`.
pub(crate) const SESSIONS_MAX: usize = 4096;
/// Inodes that one session may hold open.
pub(crate) const OPENS_MAX: usize = 1 << 20;
/// Opens noted at a time.
const HOLD_STEP: usize = 4096;
/// For how long the orphans of a session that fell silent are kept. Its mount may be on a machine that was suspended, and
/// comes back in a new session with the temporary files of its programs.
const SILENT_KEPT: Duration = Duration::from_secs(600);
/// Stands for "nobody" in rows of orphans: the inode is being removed step by step.
pub(crate) const NOBODY: SessionId = SessionId::from_uuid(Uuid::nil());

/// One open as its session names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) inode: InodeId,
    pub(crate) sequence: u64,
}

#[derive(Debug)]
struct Live {
    description: String,
    last_seen: Moment,
    last_seen_ns: i64,
    /// Recorded by an earlier reign.
    recovered: bool,
    /// Has said what it holds open.
    returned: bool,
    /// Inode → sequence of its last open.
    opens: HashMap<InodeId, u64>,
}

#[derive(Debug, Default)]
struct Inner {
    live: BTreeMap<SessionId, Live>,
    /// Who has an inode open; and sessions that are over, until `ended` has come to it.
    holders: HashMap<InodeId, Vec<SessionId>>,
    /// What sessions had open that are over; dropped step by step.
    ended: Vec<(SessionId, Vec<InodeId>)>,
    /// Rows of orphans, as executed.
    orphans: BTreeSet<(InodeId, SessionId)>,
    /// Sessions that ended by silence and left orphans, and when.
    silent: BTreeMap<SessionId, Moment>,
    condemned: HashSet<InodeId>,
}

/// What is shown of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionView {
    pub(crate) id: SessionId,
    pub(crate) description: String,
    pub(crate) last_seen_ns: i64,
    pub(crate) open_files: usize,
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
    lease: Duration,
    attendance: Arc<Attendance>,
}

impl Sessions {
    /// From the rows of the store; every session gets a whole lease to return.
    pub(crate) fn new(
        attendance: Arc<Attendance>,
        lease: Duration,
        sessions: Vec<Session>,
        orphans: &[Orphan],
    ) -> Self {
        let now = attendance.now();
        let recovered = |row: Session| {
            let live = Live {
                description: row.description,
                last_seen: now,
                last_seen_ns: row.opened_ns,
                recovered: true,
                returned: false,
                opens: HashMap::new(),
            };
            (row.id, live)
        };
        let live: BTreeMap<SessionId, Live> = sessions.into_iter().map(recovered).collect();
        let left = orphans.iter().map(|row| row.session);
        let inner = Inner {
            silent: left.filter(|id| *id != NOBODY && !live.contains_key(id)).map(|id| (id, now)).collect(),
            live,
            orphans: orphans.iter().map(|row| (row.inode, row.session)).collect(),
            ..Inner::default()
        };
        Self { inner: Mutex::new(inner), lease, attendance }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `SessionExpired`: it is over, or never was.
    pub(crate) fn check(&self, session: SessionId) -> Result<(), OpError> {
        if self.lock().live.contains_key(&session) { Ok(()) } else { Err(expired(session)) }
    }

    /// Whether the session was opened in an earlier reign.
    pub(crate) fn is_recovered(&self, session: SessionId) -> bool {
        self.lock().live.get(&session).is_some_and(|live| live.recovered)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().live.len()
    }

    /// How the session has introduced itself; empty when it is over.
    pub(crate) fn description(&self, session: SessionId) -> String {
        self.lock().live.get(&session).map(|live| live.description.clone()).unwrap_or_default()
    }

    pub(crate) fn list(&self) -> Vec<SessionView> {
        let view = |(&id, live): (&SessionId, &Live)| SessionView {
            id,
            description: live.description.clone(),
            last_seen_ns: live.last_seen_ns,
            open_files: live.opens.len(),
        };
        self.lock().live.iter().map(view).collect()
    }

    /// A new session. Unless `returned`, it has still to say what it holds open: [`Self::hold`],
    /// [`Self::returned`]. `Overloaded`: there are too many.
    pub(crate) fn open(
        &self,
        session: SessionId,
        description: String,
        returned: bool,
    ) -> Result<(), OpError> {
        let mut inner = self.lock();
        if inner.live.len() >= SESSIONS_MAX {
            let message = format!("{SESSIONS_MAX} sessions are open; no more are possible");
            return Err(OpError::new(ErrorKind::Overloaded, message));
        }
        let live = Live {
            description,
            last_seen: self.attendance.now(),
            last_seen_ns: clock::wall_ns(),
            recovered: false,
            returned,
            opens: HashMap::new(),
        };
        inner.live.insert(session, live);
        Ok(())
    }

    /// Notes what a session holds open that comes back, or takes the place of one that has expired. Whether
    /// the inodes are still there, whoever asks for them is told.
    pub(crate) fn hold(&self, session: SessionId, opens: &[Open]) {
        for some in opens.chunks(HOLD_STEP) {
            let mut inner = self.lock();
            some.iter().for_each(|open| inner.add(session, *open));
        }
    }

    /// Those among `held` that have no name any more, and are kept for other sessions than this one.
    pub(crate) fn orphans_of_others(&self, session: SessionId, held: &HashSet<InodeId>) -> Vec<InodeId> {
        let inner = self.lock();
        let theirs = |(inode, holder): &&(InodeId, SessionId)| {
            *holder != session && *holder != NOBODY && held.contains(inode)
        };
        let inodes: HashSet<InodeId> = inner.orphans.iter().filter(theirs).map(|(inode, _)| *inode).collect();
        inodes.into_iter().filter(|&inode| !inner.orphans.contains(&(inode, session))).collect()
    }

    /// The session has said what it holds open. Returns the orphans that it does not hold any more.
    pub(crate) fn returned(
        &self,
        session: SessionId,
        held: &HashSet<InodeId>,
    ) -> Result<Vec<InodeId>, OpError> {
        let mut inner = self.lock();
        inner.live.get_mut(&session).ok_or_else(|| expired(session))?.returned = true;
        let of_session =
            inner.orphans.iter().filter(|(inode, holder)| *holder == session && !held.contains(inode));
        let dropped: Vec<InodeId> = of_session.map(|(inode, _)| *inode).collect();
        // Their closes were lost with the stream before.
        dropped.iter().for_each(|&inode| inner.remove(session, inode));
        Ok(dropped)
    }

    /// The session shows a sign of life.
    pub(crate) fn renew(&self, session: SessionId) -> Result<(), OpError> {
        let mut inner = self.lock();
        let live = inner.live.get_mut(&session).ok_or_else(|| expired(session))?;
        live.last_seen = self.attendance.now();
        live.last_seen_ns = clock::wall_ns();
        Ok(())
    }

    /// The wall clock at which every session was known to live; a session that an earlier reign has
    /// left, and that has not returned yet, puts it at the beginning of time. `None`: nobody is there.
    pub(crate) fn all_seen_ns(&self) -> Option<i64> {
        let seen = |live: &Live| if live.returned { live.last_seen_ns } else { i64::MIN };
        self.lock().live.values().map(seen).min()
    }

    /// Sessions whose lease has run out.
    pub(crate) fn overdue(&self) -> Vec<SessionId> {
        let inner = self.lock();
        let late = inner.live.iter().filter(|(_, live)| self.is_overdue(live));
        late.map(|(&session, _)| session).collect()
    }

    fn is_overdue(&self, live: &Live) -> bool {
        let (now, resumed) = self.attendance.look();
        now.since(live.last_seen.max(resumed)) > self.lease
    }

    /// Ends a session (with `only_overdue`, unless it has shown itself meanwhile): its requests are
    /// refused from here on. Returns the orphans that go with it, or `None` when it goes on. Those of one that fell silent
    /// stay for a while ([`Self::take_silent`]).
    pub(crate) fn end(&self, session: SessionId, only_overdue: bool) -> Option<Vec<InodeId>> {
        let mut inner = self.lock();
        let live = inner.live.get(&session)?;
        if only_overdue && !self.is_overdue(live) {
            return None;
        }
        let live = inner.live.remove(&session)?;
        inner.ended.push((session, live.opens.into_keys().collect()));
        let orphans = inner.orphans_of(session);
        if !only_overdue || orphans.is_empty() {
            return Some(orphans);
        }
        inner.silent.insert(session, self.attendance.now());
        Some(Vec::new())
    }

    /// A session that has been over for so long that nobody comes back for its orphans, and these.
    pub(crate) fn take_silent(&self) -> Option<(SessionId, Vec<InodeId>)> {
        let mut inner = self.lock();
        let now = self.attendance.now();
        let (&session, _) = inner.silent.iter().find(|(_, since)| now.since(**since) > SILENT_KEPT)?;
        inner.silent.remove(&session);
        Some((session, inner.orphans_of(session)))
    }

    /// Drops some of what sessions had open that are over. Whether there is more.
    pub(crate) fn forget_ended(&self) -> bool {
        let mut inner = self.lock();
        let Some((session, opens)) = inner.ended.last_mut() else { return false };
        let (session, left) = (*session, opens.len().saturating_sub(HOLD_STEP));
        let some = opens.split_off(left);
        some.into_iter().for_each(|inode| inner.drop_holder(inode, session));
        inner.ended.retain(|(_, opens)| !opens.is_empty());
        !inner.ended.is_empty()
    }

    /// Notes that a session opens an inode. `StaleHandle`: the inode is being deleted, or has lost its last name to
    /// others that hold it, which need not be committed yet.
    pub(crate) fn register(&self, session: SessionId, open: Open) -> Result<(), OpError> {
        let mut inner = self.lock();
        let is_lost =
            inner.orphan_of(open.inode).is_some() && !inner.orphans.contains(&(open.inode, session));
        if inner.condemned.contains(&open.inode) || is_lost {
            let message = format!("inode {} has just been removed", open.inode);
            return Err(OpError::new(ErrorKind::StaleHandle, message));
        }
        let live = inner.live.get(&session).ok_or_else(|| expired(session))?;
        if live.opens.len() >= OPENS_MAX && !live.opens.contains_key(&open.inode) {
            let message = format!("a session can hold {OPENS_MAX} files open");
            return Err(OpError::new(ErrorKind::Overloaded, message));
        }
        inner.add(session, open);
        Ok(())
    }

    /// Notes that opens up to the named ones are over. Returns the orphans among them.
    pub(crate) fn close(&self, session: SessionId, closed: &[Open]) -> Vec<InodeId> {
        let mut inner = self.lock();
        let mut orphans = Vec::new();
        for open in closed {
            let Some(live) = inner.live.get_mut(&session) else { break };
            match live.opens.get(&open.inode) {
                Some(&last) if last > open.sequence => continue,
                _ => inner.remove(session, open.inode),
            }
            if inner.orphans.contains(&(open.inode, session)) {
                orphans.push(open.inode);
            }
        }
        orphans
    }

    /// Whether the session has an inode open.
    pub(crate) fn holds_open(&self, session: SessionId, inode: InodeId) -> bool {
        self.lock().live.get(&session).is_some_and(|live| live.opens.contains_key(&inode))
    }

    /// Whether the session holds an inode that has no name any more.
    pub(crate) fn holds_orphan(&self, session: SessionId, inode: InodeId) -> bool {
        self.lock().orphans.contains(&(inode, session))
    }

    /// For the executor, when an inode has lost its last name: the sessions that hold it open, now
    /// noted as holders of an orphan. When there are none, the inode is condemned.
    pub(crate) fn orphan(&self, inode: InodeId) -> Vec<SessionId> {
        let mut inner = self.lock();
        let mut holders = inner.holders.get(&inode).cloned().unwrap_or_default();
        holders.retain(|holder| inner.live.contains_key(holder));
        holders.extend(inner.absent());
        holders.sort_unstable();
        holders.dedup();
        if holders.is_empty() {
            inner.condemned.insert(inode);
        }
        for &session in &holders {
            inner.orphans.insert((inode, session));
        }
        holders
    }

    /// For the executor, when the last session that was known to hold an orphan has let it go: those that
    /// may hold it all the same, now noted as its holders. What sessions of earlier reigns hold is known.
    pub(crate) fn keep_orphan(&self, inode: InodeId) -> Vec<SessionId> {
        let mut inner = self.lock();
        let mut absent = inner.absent();
        absent.retain(|session| inner.live.get(session).is_some_and(|live| !live.recovered));
        inner.orphans.extend(absent.iter().map(|&session| (inode, session)));
        absent
    }

    /// For the executor: the session holds an orphan, and there is a row of it.
    pub(crate) fn orphan_held(&self, inode: InodeId, session: SessionId) {
        self.lock().orphans.insert((inode, session));
    }

    /// For the executor: the row of an orphan is gone.
    pub(crate) fn orphan_released(&self, inode: InodeId, session: SessionId) {
        self.lock().orphans.remove(&(inode, session));
    }

    /// For the executor: a part of a job has failed that had taken the last names of these inodes, and was to make
    /// those of these opens.
    pub(crate) fn take_back(&self, nameless: &[InodeId], opened: &[(SessionId, Open)]) {
        for (session, open) in opened {
            self.close(*session, &[*open]);
        }
        let mut inner = self.lock();
        for inode in nameless {
            inner.condemned.remove(inode);
            while let Some(orphan) = inner.orphan_of(*inode) {
                inner.orphans.remove(&orphan);
            }
        }
    }

    /// For the executor: the rows of orphans are these, whatever was executed.
    pub(crate) fn reset_orphans(&self, rows: &[Orphan]) {
        self.lock().orphans = rows.iter().map(|row| (row.inode, row.session)).collect();
    }

    /// For the executor: what was condemned is deleted, or will not be.
    pub(crate) fn clear_condemned(&self) {
        self.lock().condemned.clear();
    }
}

impl Inner {
    /// Sessions that have still to say what they hold open.
    fn absent(&self) -> Vec<SessionId> {
        self.live.iter().filter(|(_, live)| !live.returned).map(|(&session, _)| session).collect()
    }

    fn orphans_of(&self, session: SessionId) -> Vec<InodeId> {
        let of_session = self.orphans.iter().filter(|(_, holder)| *holder == session);
        of_session.map(|(inode, _)| *inode).collect()
    }

    /// One of the holders of an inode that has lost its last name.
    fn orphan_of(&self, inode: InodeId) -> Option<(InodeId, SessionId)> {
        self.orphans.range((inode, NOBODY)..).next().copied().filter(|(orphan, _)| *orphan == inode)
    }

    fn add(&mut self, session: SessionId, open: Open) {
        let Some(live) = self.live.get_mut(&session) else { return };
        let last = live.opens.entry(open.inode).or_insert(0);
        *last = open.sequence.max(*last);
        let holders = self.holders.entry(open.inode).or_default();
        if !holders.contains(&session) {
            holders.push(session);
        }
    }

    fn remove(&mut self, session: SessionId, inode: InodeId) {
        if let Some(live) = self.live.get_mut(&session) {
            live.opens.remove(&inode);
        }
        self.drop_holder(inode, session);
    }

    fn drop_holder(&mut self, inode: InodeId, session: SessionId) {
        if let Some(holders) = self.holders.get_mut(&inode) {
            holders.retain(|&holder| holder != session);
            if holders.is_empty() {
                self.holders.remove(&inode);
            }
        }
    }
}

fn expired(session: SessionId) -> OpError {
    OpError::new(ErrorKind::SessionExpired, format!("session {} is over", session.short()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_had_open_is_forgotten_in_bounded_steps_and_counts_for_nothing_meanwhile() {
        let sessions = Sessions::new(Arc::new(Attendance::unbroken()), Duration::from_secs(10), vec![], &[]);
        let session = |number| SessionId::from_uuid(Uuid::from_u128(number));
        let inode = |number| InodeId::new(number).unwrap();
        for number in 1..=2 {
            sessions.open(session(number), String::new(), true).unwrap();
        }
        let files = 2 * HOLD_STEP as u64 + 1;
        for number in 10..10 + files {
            sessions.register(session(1), Open { inode: inode(number), sequence: 1 }).unwrap();
        }
        sessions.register(session(2), Open { inode: inode(11), sequence: 1 }).unwrap();
        assert_eq!(sessions.end(session(1), false), Some(vec![]));
        assert_eq!(sessions.lock().holders.len() as u64, files, "nobody has waited for that");
        assert_eq!((sessions.orphan(inode(10)), sessions.orphan(inode(11))), (vec![], vec![session(2)]));
        assert!(sessions.forget_ended() && sessions.forget_ended());
        assert!(!sessions.forget_ended());
        assert_eq!(sessions.lock().holders.keys().collect::<Vec<_>>(), [&inode(11)]);
    }
}
