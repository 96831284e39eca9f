//! The list of threads that wait for a future.

use std::fmt;
use std::sync::Arc;
use std::task::Wake;

use vfiod_sync::{Mutex, lock};

use crate::parker::Parker;
use crate::reactor::Reactor;

/// The threads that wait for a future of this runtime.
#[derive(Default)]
pub(crate) struct Blocked {
    threads: Mutex<Vec<Arc<Unblock>>>,
}

impl fmt::Debug for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocked").field(&lock(&self.threads).len()).finish()
    }
}

impl Blocked {
    /// Makes all of them look again who runs tasks.
    pub(crate) fn wake_all(&self) {
        let threads = lock(&self.threads).clone();
        threads.iter().for_each(|thread| thread.wake_by_ref());
    }
}

/// Wakes a thread that waits.
pub(crate) struct Unblock {
    reactor: Arc<Reactor>,
    pub(crate) parker: Parker,
}

impl Wake for Unblock {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.parker.unpark(&self.reactor);
    }
}

/// A thread's place in the list, given up when dropped.
pub(crate) struct Listed<'a> {
    blocked: &'a Blocked,
    pub(crate) thread: Arc<Unblock>,
}

impl Blocked {
    /// Puts the calling thread on the list.
    pub(crate) fn list(&self, reactor: &Arc<Reactor>) -> Listed<'_> {
        let thread = Arc::new(Unblock { reactor: reactor.clone(), parker: Parker::new() });
        lock(&self.threads).push(thread.clone());
        Listed { blocked: self, thread }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.blocked.threads).retain(|thread| !Arc::ptr_eq(thread, &self.thread));
    }
}
