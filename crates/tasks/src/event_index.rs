//! Sleeping while another party stores to shared memory, and rings only when it was asked to.
//!
//! The other party stores an index, and rings a doorbell if it has moved the index past the *event index*
//! that we have published (NVMe base 2.0, B.5; virtio 1.2, 2.7.10). Whoever wants to sleep publishes the
//! index that it has seen, and then looks once more: what was stored before the publication rings nothing.
//! A full barrier between the two, here and at the other party, lets at least one of them see what the
//! other has stored.

use vfiod_sync::atomic::{Ordering, fence};

/// An index that another party stores, and the event index that it reads.
pub trait SharedIndex {
    /// Why the memory cannot be reached.
    type Error;

    /// Stores the event index.
    ///
    /// # Errors
    /// The memory cannot be reached.
    fn publish(&mut self, event: u32) -> Result<(), Self::Error>;

    /// Loads the index.
    ///
    /// # Errors
    /// The memory cannot be reached.
    fn load(&mut self) -> Result<u32, Self::Error>;
}

/// Asks the other party to ring when it moves the index past `event`, and returns the index as it is then.
/// The caller may sleep only if that is the index that it has seen before.
///
/// # Errors
/// Those of the memory.
pub fn ask<I: SharedIndex>(shared: &mut I, event: u32) -> Result<u32, I::Error> {
    shared.publish(event)?;
    fence(Ordering::SeqCst);
    shared.load()
}

/// Whether the party that moves an index from `old` to `new` is to ring: it has moved past `event`. The
/// indices go round at 2^16, or before that at the size of a queue.
pub fn is_past_event(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::is_past_event;

    #[test]
    fn ring_is_due_only_when_the_event_index_is_passed() {
        for (event, old, new, due) in [
            (0, 0, 1, true),
            (0, 1, 2, false),
            (5, 3, 5, false),
            (5, 3, 6, true),
            // Round a queue of 64 entries.
            (63, 63, 0, true),
            (60, 61, 2, false),
            // Nothing has moved.
            (7, 7, 7, false),
            (u16::MAX, u16::MAX, 0, true),
        ] {
            assert_eq!(is_past_event(event, old, new), due, "{event}, from {old} to {new}");
        }
    }
}

#[cfg(all(test, loom))]
mod exhaustive {
    use std::convert::Infallible;

    use vfiod_sync::Arc;
    use vfiod_sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Memory {
        index: AtomicU32,
        event: AtomicU32,
    }

    impl SharedIndex for &Memory {
        type Error = Infallible;

        fn publish(&mut self, event: u32) -> Result<(), Infallible> {
            self.event.store(event, Ordering::Release);
            Ok(())
        }

        fn load(&mut self) -> Result<u32, Infallible> {
            Ok(self.index.load(Ordering::Acquire))
        }
    }

    /// One of the two sees what the other one has stored, whatever the processor's order.
    #[test]
    fn store_is_seen_or_rings() {
        loom::model(|| {
            let memory = Arc::new(Memory::default());
            memory.index.store(1, Ordering::SeqCst);
            let other = memory.clone();
            let host = loom::thread::spawn(move || {
                other.index.store(2, Ordering::Release);
                fence(Ordering::SeqCst);
                is_past_event(other.event.load(Ordering::Acquire) as u16, 1, 2)
            });
            let seen = ask(&mut &*memory, 1).unwrap_or(0);
            let rings = host.join().expect("ends");
            assert!(rings || seen == 2, "the store is missed");
        });
    }
}
