//! Threads that are other users: identity is a thread's own, as long as the C library is not asked to change it.

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// A user with the capabilities that he has all the same.
#[derive(Debug, Clone)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub capabilities: CapabilitySet,
}

impl Identity {
    /// A user with a group of the same number and `capabilities`.
    pub fn user(uid: u32, capabilities: CapabilitySet) -> Self {
        Self { uid, gid: uid, groups: Vec::new(), capabilities }
    }

    /// Runs `work` as this user, on a thread of its own.
    #[track_caller]
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                self.assume();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn assume(&self) {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let groups: Vec<Gid> = self.groups.iter().map(|&group| Gid::from_raw(group)).collect();
        set_thread_groups(&groups).expect("setgroups");
        set_thread_res_gid(gid, gid, gid).expect("setresgid");
        set_keep_capabilities(true).expect("PR_SET_KEEPCAPS");
        set_thread_res_uid(uid, uid, uid).expect("setresuid");
        let (effective, permitted) = (self.capabilities, self.capabilities);
        let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).expect("capset");
    }
}
