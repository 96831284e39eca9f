//! Connections take turns at opening a device. An open may wait, and one thread that waits is enough.

use std::collections::VecDeque;
use std::sync::Weak;

/// Which connections wait until another one has opened the device, in their order.
///
/// Whoever is taken out is to be woken, and attempts to open the device then: at the end of that the next
/// one is taken out.
pub(crate) struct OpeningQueue<C: ?Sized> {
    /// A connection opens the device.
    opening: bool,
    waiting: VecDeque<(u64, Weak<C>)>,
}

impl<C: ?Sized> Default for OpeningQueue<C> {
    fn default() -> Self {
        Self { opening: false, waiting: VecDeque::new() }
    }
}

impl<C: ?Sized> OpeningQueue<C> {
    /// Connection `number` attempts to open the device. Returns whether it may, and calls
    /// [`OpeningQueue::end`] afterwards. If not, it waits for its turn if it can.
    pub(crate) fn begin(&mut self, number: u64, connection: &Weak<C>, can_wait: bool) -> bool {
        let place = self.waiting.iter().position(|(waiting, _)| *waiting == number);
        match place {
            // One that does not attempt it any more would be woken in vain, and nobody after it.
            Some(place) if !self.opening || !can_wait => _ = self.waiting.remove(place),
            None if self.opening && can_wait => {
                self.waiting.push_back((number, connection.clone()));
            }
            _ => {}
        }
        !std::mem::replace(&mut self.opening, true)
    }

    /// The connection that was opening the device has done so, or not. Takes out the next one.
    pub(crate) fn end(&mut self) -> Option<Weak<C>> {
        self.opening = false;
        self.next()
    }

    /// Takes out the connection that is to open the device next, unless another one does that now.
    pub(crate) fn next(&mut self) -> Option<Weak<C>> {
        if self.opening {
            return None;
        }
        while let Some((_, next)) = self.waiting.pop_front() {
            if next.strong_count() > 0 {
                return Some(next);
            }
        }
        None
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Connections by number.
    fn connections() -> [Arc<u64>; 4] {
        [0, 1, 2, 3].map(Arc::new)
    }

    fn begin(queue: &mut OpeningQueue<u64>, connection: &Arc<u64>, can_wait: bool) -> bool {
        queue.begin(**connection, &Arc::downgrade(connection), can_wait)
    }

    fn number(next: Option<Weak<u64>>) -> Option<u64> {
        next.map(|next| *next.upgrade().expect("it is there"))
    }

    #[test]
    fn connections_open_the_device_one_after_the_other() {
        let [first, second, third, _] = &connections();
        let mut queue = OpeningQueue::default();
        assert!(begin(&mut queue, first, true));
        assert!(!begin(&mut queue, second, true));
        assert!(!begin(&mut queue, third, true));
        // Woken for another reason, it keeps its place.
        assert!(!begin(&mut queue, second, true));
        assert_eq!(number(queue.next()), None, "the first one is not done");
        assert_eq!(number(queue.end()), Some(1));
        assert!(begin(&mut queue, second, true));
        assert_eq!(number(queue.end()), Some(2));
        assert!(begin(&mut queue, third, true));
        assert_eq!(number(queue.end()), None);
    }

    #[test]
    fn connection_that_gives_up_is_not_woken_in_place_of_the_next() {
        let [first, second, third, _] = &connections();
        let mut queue = OpeningQueue::default();
        assert!(begin(&mut queue, first, true));
        assert!(!begin(&mut queue, second, true));
        assert!(!begin(&mut queue, third, true));
        assert!(!begin(&mut queue, second, false));
        assert_eq!(number(queue.end()), Some(2));
    }

    #[test]
    fn connection_that_opens_the_device_out_of_turn_is_not_woken_for_its_place() {
        let [first, second, third, fourth] = &connections();
        let mut queue = OpeningQueue::default();
        assert!(begin(&mut queue, first, true));
        for waiting in [second, third, fourth] {
            assert!(!begin(&mut queue, waiting, true));
        }
        assert_eq!(number(queue.end()), Some(1));
        // Woken for another reason before the second one.
        assert!(begin(&mut queue, third, true));
        assert!(!begin(&mut queue, second, true));
        assert_eq!(number(queue.end()), Some(3));
    }

    #[test]
    fn connection_that_is_gone_is_passed_over() {
        let [first, second, third, _] = connections();
        let mut queue = OpeningQueue::default();
        assert!(begin(&mut queue, &first, true));
        assert!(!begin(&mut queue, &second, true));
        assert!(!begin(&mut queue, &third, true));
        drop(second);
        assert_eq!(number(queue.end()), Some(2));
    }
}
