//! The sets that the calling thread has marked, the devices that it has stopped, and those of which it
//! opens or releases a file.
//!
//! Where a runtime has no workers, a thread that waits runs tasks meanwhile. With a set marked, or a
//! device stopped, further down the thread's own stack, a task must not wait for the end of that: it
//! would wait for ever. So an operation that can fail fails at once, and one that cannot (the release
//! of a file, unregistering) is deferred until the thread holds nothing any more. What another thread
//! holds is waited for, but not without limit, as that thread may be waiting for this one. The same
//! goes for the callbacks of a device.

use std::cell::RefCell;

/// Something that the calling thread holds. Dropping the last one carries out what was deferred; a
/// lock that this needs must not be held then.
pub(crate) struct Held {
    key: usize,
}

/// The calling thread opens or releases a file of a device, for which an unregistering waits. Dropping
/// the last one carries out what was deferred, as for [`Held`].
pub(crate) struct Inside {
    key: usize,
}

type Work = Box<dyn FnOnce()>;

#[derive(Default)]
struct Thread {
    held: Vec<usize>,
    inside: Vec<usize>,
    /// Carried out as soon as nothing is held.
    releases: Vec<Work>,
    /// Carried out after the releases, which they wait for, and not inside of anything.
    unregistrations: Vec<Work>,
}

impl Thread {
    /// What was deferred and can be done now.
    fn take_due(&mut self) -> Option<Vec<Work>> {
        if !self.held.is_empty() {
            return None;
        }
        let mut due = std::mem::take(&mut self.releases);
        if self.inside.is_empty() {
            due.append(&mut self.unregistrations);
        }
        (!due.is_empty()).then_some(due)
    }
}

crate::sync::thread_local! {
    static THREAD: RefCell<Thread> = RefCell::default();
}

/// `None`: the thread ends. It runs no task, so what it holds is not looked for.
#[inline]
fn with<R>(look: impl FnOnce(&mut Thread) -> R) -> Option<R> {
    THREAD.try_with(|thread| look(&mut thread.borrow_mut())).ok()
}

fn key_of<T>(object: &T) -> usize {
    std::ptr::from_ref(object).addr()
}

fn remove(keys: &mut Vec<usize>, key: usize) {
    if let Some(at) = keys.iter().rposition(|known| *known == key) {
        keys.remove(at);
    }
}

/// Ends something that the thread held, and does what was deferred until then.
fn end(end: impl FnOnce(&mut Thread)) {
    let due = with(|thread| {
        end(thread);
        thread.take_due()
    });
    for work in due.flatten().into_iter().flatten() {
        work();
    }
}

impl Held {
    /// Remembers that the calling thread holds an object, which stays where it is. The same thread
    /// drops this.
    pub(crate) fn new<T>(object: &T) -> Self {
        let key = key_of(object);
        with(|thread| thread.held.push(key));
        Self { key }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        end(|thread| remove(&mut thread.held, self.key));
    }
}

impl Inside {
    /// Remembers that the calling thread opens or releases a file of a device. The same thread drops
    /// this.
    pub(crate) fn new<T>(device: &T) -> Self {
        let key = key_of(device);
        with(|thread| thread.inside.push(key));
        Self { key }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        end(|thread| remove(&mut thread.inside, self.key));
    }
}

/// Whether the calling thread holds an object.
pub(crate) fn is_held<T>(object: &T) -> bool {
    let key = key_of(object);
    with(|thread| thread.held.contains(&key)).unwrap_or(false)
}

/// Whether the calling thread holds anything.
pub(crate) fn holds_any() -> bool {
    with(|thread| !thread.held.is_empty()).unwrap_or(false)
}

/// Whether the calling thread holds anything, or opens or releases a file of a device.
pub(crate) fn holds_any_or_is_inside<T>(device: &T) -> bool {
    let key = key_of(device);
    with(|thread| !thread.held.is_empty() || thread.inside.contains(&key)).unwrap_or(false)
}

/// Completes the release of a file when the calling thread, which holds something, holds nothing any
/// more.
pub(crate) fn defer_release(work: impl FnOnce() + 'static) {
    with(|thread| thread.releases.push(Box::new(work)));
}

/// Unregisters a device when the calling thread holds nothing any more, and all releases have been
/// completed.
pub(crate) fn defer_unregister(work: impl FnOnce() + 'static) {
    with(|thread| thread.unregistrations.push(Box::new(work)));
}
