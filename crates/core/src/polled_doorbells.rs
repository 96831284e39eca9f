//! Doorbells in memory that clients map: a store rings nothing, so the device looks at them again and again.

use std::fmt;
use std::sync::{Arc, Weak};

use vfiod_tasks::{Poll, PollSeat};

use crate::context::{Context, Home};
use crate::dma::Attachment;
use crate::error::{Errno, Error, Result};

/// A place among the devices whose doorbells are polled.
///
/// A worker does not sleep while any is ([`vfiod_tasks::Poll`]).
#[derive(Debug)]
pub struct PolledDoorbells {
    seat: PollSeat,
    context: Context,
}

impl Context {
    /// A place among the devices whose doorbells are polled. Nothing is polled before
    /// [`PolledDoorbells::start`].
    ///
    /// # Errors
    /// `EUSERS`: as many devices are polled as may be ([`vfiod_tasks::Runtime::limit_polled`]).
    pub fn poll_doorbells(&self) -> Result<PolledDoorbells> {
        let seat = self.runtime().poll_seat().map_err(|error| {
            let what = format!(
                "{} other devices have doorbells that are polled, and no more may (limits.polled_devices)",
                error.most
            );
            Error::new(Errno::USERS, what)
        })?;
        Ok(PolledDoorbells { seat, context: self.clone() })
    }
}

impl PolledDoorbells {
    /// Calls `look` again and again from now on, at times on two threads at once, as a call of the data path
    /// ([`crate::DataPath`]): not while the device is quiesced. It looks at the device's
    /// [shared memory](Context::shared_memory), which it compares with what the device has taken of it. It must be
    /// quick, and must not wait.
    ///
    /// # Errors
    /// `ENODEV`: the device is not registered yet.
    pub fn start(&self, look: impl Fn(&Attachment) + Send + Sync + 'static) -> Result<()> {
        let home = self.context.home().ok_or_else(|| {
            Error::new(Errno::NODEV, format!("{} is not registered yet", self.context.name()))
        })?;
        let (home, context) = (Arc::downgrade(&home), self.context.clone());
        self.seat.start(Arc::new(Doorbells { look: Box::new(look), home, context }));
        Ok(())
    }

    /// Polls no more. A look may still be under way on another thread.
    pub fn stop(&self) {
        self.seat.stop();
    }
}

/// What is polled.
struct Doorbells {
    look: Box<dyn Fn(&Attachment) + Send + Sync>,
    home: Weak<dyn Home>,
    context: Context,
}

impl Poll for Doorbells {
    fn poll(&self) {
        // Where it must not answer now, it looks when it may again.
        if self.context.serves_directly()
            && let Some(home) = self.home.upgrade()
        {
            home.look_at_doorbells(&*self.look);
        }
    }
}

impl fmt::Debug for Doorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbells").field("context", &self.context).finish_non_exhaustive()
    }
}
