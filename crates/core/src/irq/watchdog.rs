//! Interrupts threads that a client keeps in a write to its eventfd.
//!
//! A write to an eventfd blocks while its counter is full and `O_NONBLOCK` is off. The flag
//! belongs to the description, which the client shares: it can fill the counter and clear the
//! flag at any time. No flag of a single write prevents that (`RWF_NOWAIT` is refused for writes
//! to eventfds). So each thread marks that it is in such a write ([`guarded`]), and a watchdog
//! thread looks at the marks every [`TICK`]. It sends a signal to a thread that is in the same
//! write as a tick ago; the write ends with `EINTR` then. The signal may arrive just before the
//! thread enters the system call, so it is sent again every tick until the thread is out.
//!
//! The watchdog sleeps until it is woken ("parked") when no thread has signalled for [`LINGER`]. The
//! next thread that signals wakes it. Marking and looking whether it is parked, and parking and looking at the
//! marks, are each separated by a full fence: at least one of the two sees the other.

#[cfg(not(any(loom, shuttle)))]
pub use self::thread::forgo_watchdog;
#[cfg(not(any(loom, shuttle)))]
pub(super) use self::thread::guarded;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// A thread's mark: odd while it is in a write.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Mark(AtomicU64);

impl Mark {
    /// Marks the start of a write. Returns whether the watchdog must be woken.
    #[inline]
    pub(crate) fn enter(&self, parked: &Parked) -> bool {
        // Only the thread itself writes its mark.
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        parked.0.load(Ordering::Relaxed)
    }

    /// Marks the end of the write.
    #[inline]
    pub(crate) fn leave(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Identifies a write; odd: the thread is in one.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Whether the watchdog sleeps until it is woken.
#[derive(Debug, Default)]
pub(crate) struct Parked(AtomicBool);

impl Parked {
    #[cfg(not(any(loom, shuttle)))]
    const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// The watchdog is about to sleep until it is woken. Returns `false`, and it must not, if
    /// `busy` finds a thread in a write.
    pub(crate) fn park(&self, busy: impl FnOnce() -> bool) -> bool {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if busy() {
            self.0.store(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Wakes the watchdog. Returns whether the caller is the one to do it.
    #[cfg(not(any(loom, shuttle)))]
    fn wake(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

#[cfg(not(any(loom, shuttle)))]
mod thread {
    use std::io;
    use std::sync::{Arc, OnceLock};
    use std::thread::{self, Thread};
    use std::time::Duration;

    use super::super::thread_signal::{self, ThreadId};
    use super::{Mark, Parked};
    use crate::sync::{Mutex, lock};

    /// How often the watchdog looks. A client can keep a thread for two of these.
    const TICK: Duration = Duration::from_millis(2);

    /// How many ticks the watchdog goes on after the last signal: 100 ms. Waking it costs the
    /// signalling thread a system call.
    const LINGER: u32 = 50;

    static PARKED: Parked = Parked::new();
    static THREADS: Mutex<Vec<Arc<Watched>>> = Mutex::new(Vec::new());
    static WATCHDOG: OnceLock<Option<Thread>> = OnceLock::new();

    /// A thread that signals.
    struct Watched {
        mark: Mark,
        id: ThreadId,
    }

    /// Enters a thread into the list for as long as it runs.
    struct Registration(Option<Arc<Watched>>);

    impl Registration {
        fn new() -> Self {
            if WATCHDOG.get_or_init(start).is_none() {
                return Self(None);
            }
            thread_signal::unblock();
            let watched = Arc::new(Watched { mark: Mark::default(), id: ThreadId::current() });
            lock(&THREADS).push(watched.clone());
            Self(Some(watched))
        }
    }

    impl Drop for Registration {
        fn drop(&mut self) {
            if let Some(own) = &self.0 {
                lock(&THREADS).retain(|watched| !Arc::ptr_eq(watched, own));
            }
        }
    }

    thread_local! {
        static THIS: Registration = Registration::new();
    }

    /// Runs a system call that a client can make block, under the eyes of the watchdog: if it
    /// blocks it fails with `EINTR` after some milliseconds. Returns `None`, without having run
    /// it, where no watchdog can be had: no thread could be started, or this one is ending.
    #[inline]
    pub(in super::super) fn guarded<R>(call: impl FnOnce() -> R) -> Option<R> {
        THIS.try_with(|this| {
            let mark = &this.0.as_ref()?.mark;
            if mark.enter(&PARKED) {
                wake();
            }
            let result = call();
            mark.leave();
            Some(result)
        })
        .ok()?
    }

    /// Lets interrupts be signalled without a watchdog thread, for a program that has no thread
    /// but those that it knows of. Returns `false` if the watchdog runs already: call this before
    /// the first interrupt.
    ///
    /// Each signal of an eventfd asks `poll` first, which costs a system call more. A client that
    /// fills the counter of its eventfd between the two calls, and has made it blocking, keeps the
    /// signalling thread for as long as it likes.
    pub fn forgo_watchdog() -> bool {
        WATCHDOG.get_or_init(|| None).is_none()
    }

    #[cold]
    fn wake() {
        if PARKED.wake()
            && let Some(Some(watchdog)) = WATCHDOG.get()
        {
            watchdog.unpark();
        }
    }

    fn start() -> Option<Thread> {
        let started: io::Result<_> =
            thread::Builder::new().name("irq-watchdog".to_owned()).spawn(watch);
        match started {
            Ok(handle) => Some(handle.thread().clone()),
            Err(error) => {
                tracing::warn!(%error, "cannot start the watchdog of interrupt signals");
                None
            }
        }
    }

    fn watch() {
        let mut seen: Vec<(Arc<Watched>, u64)> = Vec::new();
        let mut idle = 0;
        loop {
            thread::sleep(TICK);
            let mut moved = false;
            // With the list locked, so that no thread of it can end before it gets its signal.
            let threads = lock(&THREADS);
            let now: Vec<_> = threads.iter().map(|t| (t.clone(), t.mark.value())).collect();
            for (thread, value) in &now {
                let before = seen.iter().find(|(other, _)| Arc::ptr_eq(other, thread));
                let same = before.is_some_and(|(_, before)| before == value);
                moved |= !same;
                if same && value % 2 == 1 {
                    moved = true;
                    thread_signal::interrupt(thread.id);
                }
            }
            drop(threads);
            seen = now;
            idle = if moved { 0 } else { idle + 1 };
            if idle < LINGER {
                continue;
            }
            idle = 0;
            let busy = || lock(&THREADS).iter().any(|thread| thread.mark.value() % 2 == 1);
            if PARKED.park(busy) {
                while PARKED.0.load(std::sync::atomic::Ordering::Acquire) {
                    thread::park();
                }
            }
        }
    }
}

/// In a model the eventfds are the test's own, and never full.
#[cfg(any(loom, shuttle))]
pub(super) fn guarded<R>(call: impl FnOnce() -> R) -> Option<R> {
    Some(call())
}
