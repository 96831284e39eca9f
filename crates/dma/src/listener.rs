//! Who wants to know of unmaps, and may delay them.

use std::fmt;

use std::sync::Weak;

use vfiod_sync::{Arc, Mutex, lock};

use crate::ranges::{InUse, Ranges};

/// Wants to know of unmaps in a space: what keeps translations, or has copied them elsewhere.
///
/// Called by whoever unmaps, without any lock of the space held. It must not block; it may call
/// the space, but not unmap the same range.
pub trait Listener: Send + Sync {
    /// The mappings in `[first, last]` have been taken out of the table. The unmap waits, bounded,
    /// until `delay` and all other delays of it are dropped.
    fn unmapping(&self, first: u64, last: u64, delay: Delay);

    /// The unmap of `[first, last]` took too long: its mappings are there again.
    fn restored(&self, first: u64, last: u64);
}

/// Delays an unmap until it is dropped.
pub struct Delay {
    _in_use: InUse,
}

impl fmt::Debug for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Delay")
    }
}

/// The listeners of a space.
#[derive(Default)]
pub(crate) struct Listeners {
    list: Arc<Mutex<Vec<Arc<dyn Listener>>>>,
}

/// A listener is called while this lives; see [`Space::listen`](crate::Space::listen).
#[must_use = "the listener is removed when this is dropped"]
pub struct Listening {
    list: Weak<Mutex<Vec<Arc<dyn Listener>>>>,
    listener: Arc<dyn Listener>,
}

impl Listeners {
    pub(crate) fn add(&self, listener: Arc<dyn Listener>) -> Listening {
        lock(&self.list).push(listener.clone());
        Listening { list: Arc::downgrade(&self.list), listener }
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.list).is_empty()
    }

    fn all(&self) -> Vec<Arc<dyn Listener>> {
        lock(&self.list).clone()
    }

    /// Tells all of an unmap.
    pub(crate) fn unmapping(&self, first: u64, last: u64, ranges: &Arc<Ranges>) {
        for listener in self.all() {
            let delay = Delay { _in_use: ranges.begin(first, last) };
            listener.unmapping(first, last, delay);
        }
    }

    /// Tells all that an unmap has been undone.
    pub(crate) fn restored(&self, first: u64, last: u64) {
        self.all().iter().for_each(|listener| listener.restored(first, last));
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(list) = self.list.upgrade() {
            lock(&list).retain(|known| !Arc::ptr_eq(known, &self.listener));
        }
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listening")
    }
}
