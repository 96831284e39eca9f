//! Doorbells in memory that clients map: a store rings nothing, so the page is polled.

use std::sync::{Arc, Weak};

use vfiod_tasks::{Poll, PollSeat};

use crate::context::{Context, Home};
use crate::error::{Errno, Error, Result};
use crate::memory::SharedMemory;
use crate::region::{RegionIndex, SharedDoorbell};
use crate::sync::{Mutex, try_lock};

/// The doorbells in the shared areas of a region, which are polled while the device asks for it: what a client
/// stores there through a mapping rings them as a message does, without a value.
///
/// A worker does not sleep meanwhile ([`vfiod_tasks::Poll`]).
#[derive(Debug)]
pub struct PolledDoorbells {
    seat: PollSeat,
    context: Context,
    region: u32,
}

impl Context {
    /// A place among the devices whose doorbells are polled, for those of a region. Nothing is polled before
    /// [`PolledDoorbells::start`].
    ///
    /// # Errors
    /// `EUSERS`: as many devices are polled as may be ([`vfiod_tasks::Runtime::limit_polled`]).
    pub fn poll_doorbells(&self, region: u32) -> Result<PolledDoorbells> {
        let seat = self.runtime().poll_seat().map_err(|error| {
            let what = format!(
                "{} other devices have doorbells that are polled, and no more may (limits.polled_devices)",
                error.most
            );
            Error::new(Errno::USERS, what)
        })?;
        Ok(PolledDoorbells { seat, context: self.clone(), region })
    }
}

impl PolledDoorbells {
    /// Polls from now on, in the present opening of the device. Each doorbell that is not 0 rings at first.
    ///
    /// # Errors
    /// Those of [`Context::shared_memory`]; `EINVAL`: no doorbell is in the region's shared areas.
    pub fn start(&self) -> Result<()> {
        let memory = self.context.shared_memory(self.region)?;
        let home = self.context.home().ok_or_else(|| {
            Error::new(Errno::NODEV, format!("{} is not registered yet", self.context.name()))
        })?;
        let bells = home.shared_doorbells(RegionIndex(self.region));
        let page = Page::new(memory, bells, Arc::downgrade(&home), self.context.clone());
        self.seat.start(Arc::new(page.ok_or_else(|| {
            let what = format!("region {} shares no doorbells with clients", self.region);
            Error::new(Errno::INVAL, what)
        })?));
        Ok(())
    }

    /// Polls no more. A ring may still be under way on another thread.
    pub fn stop(&self) {
        self.seat.stop();
    }
}

/// What is polled.
struct Page {
    memory: Arc<SharedMemory>,
    /// Where the first of them begins.
    start: u64,
    bells: Vec<SharedDoorbell>,
    home: Weak<dyn Home>,
    context: Context,
    seen: Mutex<Seen>,
}

/// The bytes of all doorbells, from the first to the last.
struct Seen {
    last: Vec<u8>,
    now: Vec<u8>,
}

impl Page {
    fn new(
        memory: Arc<SharedMemory>,
        bells: Vec<SharedDoorbell>,
        home: Weak<dyn Home>,
        context: Context,
    ) -> Option<Self> {
        let start = bells.iter().map(|bell| bell.offset).min()?;
        let end = bells.iter().map(|bell| bell.offset + bell.size as u64).max()?;
        let len = (end - start) as usize;
        let seen = Mutex::new(Seen { last: vec![0; len], now: vec![0; len] });
        Some(Self { memory, start, bells, home, context, seen })
    }
}

impl Poll for Page {
    fn poll(&self) {
        // Another thread is at it.
        let Some(mut seen) = try_lock(&self.seen) else { return };
        let Seen { last, now } = &mut *seen;
        // Its opening has ended, or it must not answer now: then it looks when it may again.
        if !self.context.serves_directly() || self.memory.read(self.start, now).is_err() {
            return;
        }
        // A value that changes while it is copied is seen once more: it is another one the next time.
        if last == now {
            return;
        }
        let Some(home) = self.home.upgrade() else { return };
        for SharedDoorbell { bell, offset, size } in &self.bells {
            let at = (offset - self.start) as usize;
            let at = at..at + size;
            if last[at.clone()] != now[at] {
                home.clone().ring_polled(*bell);
            }
        }
        std::mem::swap(last, now);
    }
}
