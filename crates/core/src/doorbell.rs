//! Doorbells of a registered device: its data path gets them without the device's lock, or they wake
//! the task that waits for them.

use std::sync::Arc;

use vfiod_tasks::Ring;

use crate::contain::{Panicked, contain};
use crate::context::DataPath;
use crate::dma::Attachment;
use crate::event::Event;
use crate::registered::Registered;

impl Registered {
    /// Rings a doorbell: delivers it to the data path, or wakes the task that waits for it. Then
    /// carries out the reset that the data path has asked for. Called without the device lock.
    #[inline]
    pub(crate) fn ring(self: &Arc<Self>, bell: usize, value: Option<u64>) {
        let work = self.context.work();
        let Some(path) = &self.data_path else { return work.keep(|| work.ring(bell, value)) };
        work.keep(|| {
            work.ring_through(bell, value, |ring| self.deliver(&**path, bell, ring));
        });
        self.reset_after_call();
    }

    /// Delivers the rings that came while the gate, or that of a queue, was closed to the data path.
    pub(crate) fn deliver_pending_rings(&self) {
        let Some(path) = &self.data_path else { return };
        self.context.work().deliver_rings(|bell, ring| self.deliver(&**path, bell, ring));
    }

    /// Lets the device look at doorbells in its shared memory, as a call of the data path. Then carries out the reset
    /// that it has asked for. Called without the device lock.
    pub(crate) fn look(self: &Arc<Self>, look: &dyn Fn(&Attachment)) {
        let dma = self.context.attachment();
        let work = self.context.work();
        let Some(inside) = work.enter() else { return };
        if let Err(panic) = contain(|| work.keep(|| look(dma))) {
            self.fail_in("a look at doorbells", &panic);
        }
        drop(inside);
        self.reset_after_call();
    }

    #[inline]
    fn reset_after_call(self: &Arc<Self>) {
        if self.context.reset_requested() {
            self.function_reset_if_requested();
        }
    }

    fn fail_in(&self, what: &str, panic: &Panicked) {
        self.fail(&format!("{what}: {panic}"));
        tracing::error!(device = self.name(), what, error = %panic, "the device is in the error state");
        self.emit(Event::Failed);
    }

    #[inline]
    fn deliver(&self, path: &dyn DataPath, bell: usize, ring: Ring) {
        let dma = self.context.attachment();
        if let Err(panic) = contain(|| path.doorbell(bell, ring.value, dma)) {
            self.fail_in(&format!("doorbell {bell}"), &panic);
        }
    }
}
