//! Doorbells: rings that arrive without the device's lock, and the page that is polled.

use std::sync::Arc;

use vfiod_core::DataPath;
use vfiod_core::dma::Attachment;
use vfiod_core::memory::SharedMemory;
use vfiod_core::region::Doorbell;
use vfiod_pci::Task;
use vfiod_tasks::{Bell, yield_now};

use super::Bench;
use super::registers::{BY_DATAMATCH, BY_EVENTFD, DOORBELLS, QUEUES, SELECT};

/// The doorbells of BAR 2: one for each queue, then one value of the common one for each.
pub(super) fn registers() -> impl Iterator<Item = Doorbell> {
    let own = (0..QUEUES).map(|queue| {
        let offset = DOORBELLS + 4 * queue as u64;
        let eventfd = queue < BY_EVENTFD;
        if eventfd { Doorbell::eventfd(offset, 4) } else { Doorbell::message(offset, 4) }
    });
    let common = (0..QUEUES).map(|queue| {
        let eventfd = (BY_EVENTFD..BY_EVENTFD + BY_DATAMATCH).contains(&queue);
        let bell =
            if eventfd { Doorbell::eventfd(SELECT, 4) } else { Doorbell::message(SELECT, 4) };
        bell.matching(queue as u64)
    });
    own.chain(common)
}

/// The doorbells of the page that is polled: one for each queue.
pub(super) fn page() -> impl Iterator<Item = Doorbell> {
    (0..QUEUES).map(|queue| Doorbell::message(4 * queue as u64, 4))
}

/// The bells that the queues' tasks wait for.
#[derive(Debug)]
pub(super) struct Doorbells {
    bells: [Bell; QUEUES],
}

impl Doorbells {
    pub(super) fn new() -> Self {
        Self { bells: [(); QUEUES].map(|()| Bell::new()) }
    }

    /// The bell of a queue.
    pub(super) fn of(&self, queue: usize) -> &Bell {
        &self.bells[queue % QUEUES]
    }

    /// Wakes every queue, to look whether it is to stop.
    pub(super) fn ring_all(&self) {
        self.bells.iter().for_each(|bell| bell.ring(None));
    }
}

impl DataPath for Doorbells {
    /// The value does not matter: how much was submitted is in guest memory. The description has
    /// groups of [`QUEUES`] doorbells.
    fn doorbell(&self, bell: usize, _value: Option<u64>, _dma: &Attachment) {
        self.of(bell).ring(None);
    }
}

/// Polls the page until the device stops.
pub(super) async fn poll(task: Task<Bench>, page: Arc<SharedMemory>, doorbells: Arc<Doorbells>) {
    let mut last = [0; QUEUES];
    loop {
        for (queue, last) in last.iter_mut().enumerate() {
            // Its opening has ended.
            let Ok(value) = page.load::<u32>(4 * queue as u64) else { return };
            if std::mem::replace(last, value) != value {
                doorbells.of(queue).ring(None);
            }
        }
        task.task().pause_point().await;
        yield_now().await;
    }
}
