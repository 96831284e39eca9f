//! Doorbells.

use vfiod_sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::waiters::Waiters;

/// A ring has not been taken.
const RUNG: u32 = 1;
/// The newest ring had a value.
const HAS_VALUE: u32 = 2;
/// There has been a ring since the beginning, or since [`Bell::forget`].
const EVER: u32 = 4;

/// A doorbell: it says "changed", with the newest value where that is known.
///
/// Rings may merge or be spurious; none is lost. Each is taken by one of those who wait.
#[derive(Debug, Default)]
pub struct Bell {
    state: AtomicU32,
    value: AtomicU64,
    waiters: Waiters,
}

/// One or several rings of a [`Bell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The newest value, unless the newest ring had none (an ioeventfd carries none).
    pub value: Option<u64>,
}

impl Bell {
    /// A bell that has not been rung.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rings. Takes no lock if the last ring has not been taken yet.
    pub fn ring(&self, value: Option<u64>) {
        if self.ring_silently(value) {
            self.waiters.wake_all();
        }
    }

    /// Remembers a ring without waking anybody, for a caller that may have to call [`Bell::wake`].
    /// Returns whether the ring before it has been taken.
    pub fn ring_silently(&self, value: Option<u64>) -> bool {
        let state = match value {
            Some(value) => {
                self.value.store(value, Ordering::Relaxed);
                RUNG | HAS_VALUE | EVER
            }
            None => RUNG | EVER,
        };
        // Publishes the value to whoever takes this ring or a later one. `SeqCst`: whoever looks
        // at something else next, whether to wake, must not do so before this.
        self.state.swap(state, Ordering::SeqCst) & RUNG == 0
    }

    /// Rings again with the newest value, if the bell has ever been rung: for whoever took the
    /// last ring and did not get to act on it. Wakes nobody.
    pub fn repeat_silently(&self) {
        if self.state.load(Ordering::SeqCst) & EVER != 0 {
            self.state.fetch_or(RUNG, Ordering::SeqCst);
        }
    }

    /// The newest ring, taken or not; `None` if there has been none.
    pub fn newest(&self) -> Option<Ring> {
        let state = self.state.load(Ordering::SeqCst);
        let value = || self.value.load(Ordering::Relaxed);
        (state & EVER != 0).then(|| Ring { value: (state & HAS_VALUE != 0).then(value) })
    }

    /// Forgets all rings.
    pub fn forget(&self) {
        self.state.store(0, Ordering::SeqCst);
    }

    /// Wakes those who wait.
    pub fn wake(&self) {
        self.waiters.wake_all();
    }

    /// Takes what has been rung since the last time.
    pub fn take(&self) -> Option<Ring> {
        if !self.is_rung() {
            return None;
        }
        let state = self.state.fetch_and(!RUNG, Ordering::SeqCst);
        let value = || self.value.load(Ordering::Relaxed);
        (state & RUNG != 0).then(|| Ring { value: (state & HAS_VALUE != 0).then(value) })
    }

    /// Whether there is a ring that has not been taken.
    pub fn is_rung(&self) -> bool {
        self.state.load(Ordering::SeqCst) & RUNG != 0
    }

    /// Waits for a ring, and takes it.
    pub async fn wait(&self) -> Ring {
        self.waiters.wait_for(|| self.take()).await
    }

    /// Waits until `condition`, which may take a ring, returns something. It is asked again after
    /// each ring that nobody had been told of, and after [`Bell::wake`].
    pub async fn wait_for<T>(&self, condition: impl FnMut() -> Option<T>) -> T {
        self.waiters.wait_for(condition).await
    }
}
