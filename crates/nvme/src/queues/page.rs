//! The page of doorbells that a host maps (`doorbells = "mapped"`): what is there, and what was taken of it.
//!
//! A store rings nothing, so whoever polls compares each doorbell with the value that was taken last. The task of a
//! queue may take one at any time as well. A host that then stores the value before is heard all the same.

use std::sync::Arc;

use vfiod_core::Result;
use vfiod_core::memory::SharedMemory;
use vfiod_nvme_spec::registers::{DOORBELLS, QUEUES};
use vfiod_sync::atomic::{AtomicU32, Ordering};

const BELLS: usize = 2 * QUEUES;
/// Bytes of a doorbell (CAP.DSTRD is 0).
const LEN: usize = 4;

/// The page, from one enable to the next disable.
#[derive(Debug)]
pub(crate) struct MappedPage {
    memory: Arc<SharedMemory>,
    /// By doorbell: the value that was taken last. Written with the lock of the doorbell held.
    taken: [AtomicU32; BELLS],
    /// By doorbell of no queue: the value that was found last.
    found: [AtomicU32; BELLS],
}

impl MappedPage {
    /// A page of zeroes.
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Arc<Self> {
        let zeroes = || [const { AtomicU32::new(0) }; BELLS];
        Arc::new(Self { memory, taken: zeroes(), found: zeroes() })
    }

    fn load(&self, bell: usize) -> Result<u32> {
        self.memory.load(DOORBELLS + (bell * LEN) as u64).map(u32::from_le)
    }

    /// Takes the value of a doorbell, if it is another one than was taken last.
    ///
    /// # Errors
    /// Those of the memory.
    pub(super) fn take(&self, bell: usize) -> Result<Option<u32>> {
        let now = self.load(bell)?;
        let is_new = now != self.taken(bell);
        if is_new {
            self.restore(bell, now);
        }
        Ok(is_new.then_some(now))
    }

    /// The value that was taken last.
    pub(super) fn taken(&self, bell: usize) -> u32 {
        self.taken[bell].load(Ordering::Relaxed)
    }

    /// Makes this the value that was taken last.
    pub(super) fn restore(&self, bell: usize, value: u32) {
        self.taken[bell].store(value, Ordering::Relaxed);
    }

    /// Gives a doorbell a value that is taken.
    ///
    /// # Errors
    /// Those of the memory.
    pub(super) fn set(&self, bell: usize, value: u32) -> Result<()> {
        // Whoever polls amid this finds it, of a queue that is not there yet.
        self.found[bell].store(self.load(bell)?, Ordering::Relaxed);
        self.restore(bell, value);
        self.memory.store(DOORBELLS + (bell * LEN) as u64, value.to_le(), Ordering::SeqCst)
    }

    /// Whether there is something to take of a doorbell; also where the page cannot be read.
    pub(super) fn has_moved(&self, bell: usize) -> bool {
        self.load(bell).ok() != Some(self.taken(bell))
    }

    /// Calls `hear` for each doorbell that has something to take, which takes it and returns `true`; or `false`, where the
    /// doorbell is one of no queue. Then calls `nobody`, once for each value. Returns whether any has been heard.
    pub(super) fn hear_moved(
        &self,
        mut hear: impl FnMut(usize, u32) -> bool,
        mut nobody: impl FnMut(usize),
    ) -> bool {
        let mut bytes = [0; BELLS * LEN];
        if self.memory.read(DOORBELLS, &mut bytes).is_err() {
            // Its opening has ended.
            return false;
        }
        let mut heard = false;
        for (bell, now) in bytes.as_chunks().0.iter().enumerate() {
            let now = u32::from_le_bytes(*now);
            if now == self.taken(bell) {
                continue;
            }
            if hear(bell, now) {
                heard = true;
            } else if self.found[bell].swap(now, Ordering::Relaxed) != now {
                nobody(bell);
            }
        }
        heard
    }
}
