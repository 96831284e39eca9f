//! How many commands of a queue wait for nothing but a sync: they have no memory, and change nothing. A hot reset does
//! not wait for them.

use vfiod_disk::Syncing;
use vfiod_sync::Arc;
use vfiod_sync::atomic::{AtomicUsize, Ordering};

use crate::queues::{Queues, SubmissionQueue};

/// Counts them, those of one task.
pub(crate) struct CountSyncing {
    queues: Arc<Queues>,
    queue: Arc<SubmissionQueue>,
    count: AtomicUsize,
}

/// The same for requests that are two commands.
struct OfPairs(Arc<CountSyncing>);

impl CountSyncing {
    pub(super) fn new(queues: &Arc<Queues>, queue: &Arc<SubmissionQueue>) -> Arc<Self> {
        let (queues, queue) = (queues.clone(), queue.clone());
        Arc::new(Self { queues, queue, count: AtomicUsize::new(0) })
    }

    pub(super) fn of_pairs(self: Arc<Self>) -> Arc<dyn Syncing> {
        Arc::new(OfPairs(self))
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn add(&self, commands: usize) {
        self.count.fetch_add(commands, Ordering::SeqCst);
        if self.queues.parks() {
            // The task is to look whether there are others.
            self.queue.bell.ring(None);
        }
    }

    fn remove(&self, commands: usize) {
        self.count.fetch_sub(commands, Ordering::SeqCst);
    }
}

impl Syncing for CountSyncing {
    fn begun(&self) {
        self.add(1);
    }

    fn ended(&self) {
        self.remove(1);
    }
}

impl Syncing for OfPairs {
    fn begun(&self) {
        self.0.add(2);
    }

    fn ended(&self) {
        self.0.remove(2);
    }
}
