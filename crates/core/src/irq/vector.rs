//! One vector's state: what is asserted, what holds it back, whom it signals.
//!
//! ```text
//!            trigger, level up              not masked, eventfd set
//!   idle ─────────────────────► asserted ─────────────────────────► signalled
//!                                   ▲ │ masked, or no eventfd            │ AUTOMASKED
//!                                   │ ▼                                  ▼
//!                                  held ◄──── level still up ───── masked by itself
//! ```
//! The state is touched under the vector's own lock only, for a few instructions; the signal
//! itself is sent by the caller afterwards, with no lock held.

use super::eventfd::EventFd;
use crate::ids::FileId;
use crate::sync::Arc;

/// An eventfd and the file that set it up.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) fd: Arc<EventFd>,
    pub(super) file: FileId,
}

/// How often a vector did what, since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorCounters {
    /// Eventfd signals sent.
    pub signalled: u64,
    /// Triggers held back by a mask, or for want of an eventfd while the index was enabled.
    /// Several may end in one signal.
    pub held: u64,
    /// Triggers that went nowhere because the index was not enabled.
    pub lost: u64,
}

#[derive(Debug, Default)]
pub(super) struct Vector {
    pub(super) trigger: Option<Owned>,
    pub(super) unmask: Option<Box<Owned>>,
    pub(super) level: bool,
    pub(super) pending: bool,
    pub(super) client_masked: bool,
    pub(super) device_masked: bool,
    pub(super) counters: VectorCounters,
}

/// Whom to signal, once the vector's lock has been dropped.
pub(super) type Signal = Option<Arc<EventFd>>;

impl Vector {
    fn masked(&self) -> bool {
        self.client_masked || self.device_masked
    }

    /// Sends what is asserted, if nothing holds it back.
    fn fire(&mut self, automasked: bool) -> Signal {
        if !(self.level || self.pending) || self.masked() {
            return None;
        }
        let fd = self.trigger.as_ref()?.fd.clone();
        self.pending = false;
        self.client_masked = automasked;
        self.counters.signalled += 1;
        Some(fd)
    }

    /// An edge. `enabled`: whether the client uses the index at all.
    pub(super) fn edge(&mut self, automasked: bool, enabled: bool) -> Signal {
        if self.trigger.is_none() && !enabled {
            self.counters.lost += 1;
            return None;
        }
        self.pending = true;
        let signal = self.fire(automasked);
        self.counters.held += u64::from(signal.is_none());
        signal
    }

    /// A change of the line's level.
    pub(super) fn set_level(&mut self, asserted: bool, automasked: bool) -> Signal {
        if std::mem::replace(&mut self.level, asserted) || !asserted {
            return None;
        }
        let signal = self.fire(automasked);
        self.counters.held += u64::from(signal.is_none());
        signal
    }

    /// The client's mask.
    pub(super) fn set_client_mask(&mut self, masked: bool, automasked: bool) -> Signal {
        if std::mem::replace(&mut self.client_masked, masked) && !masked {
            return self.fire(automasked);
        }
        None
    }

    /// The device's mask.
    pub(super) fn set_device_mask(&mut self, masked: bool, automasked: bool) -> Signal {
        if std::mem::replace(&mut self.device_masked, masked) && !masked {
            return self.fire(automasked);
        }
        None
    }

    /// Sets up or takes away the eventfd. The first one gets what was held back. Returns the
    /// old one, to be retired.
    pub(super) fn set_trigger(
        &mut self,
        trigger: Option<Owned>,
        automasked: bool,
    ) -> (Option<Arc<EventFd>>, Signal) {
        let old = std::mem::replace(&mut self.trigger, trigger);
        let signal = if old.is_none() { self.fire(automasked) } else { None };
        (old.map(|old| old.fd), signal)
    }

    /// The client's own trigger (loopback): past every mask, as the kernel does.
    pub(super) fn loopback(&mut self) -> Signal {
        let fd = self.trigger.as_ref()?.fd.clone();
        self.counters.signalled += 1;
        Some(fd)
    }

    /// The index is disabled: what the client set up is gone; the line's level and the
    /// device's mask are the device's.
    pub(super) fn disable(&mut self) -> Option<Arc<EventFd>> {
        self.unmask = None;
        self.forget_client();
        self.trigger.take().map(|old| old.fd)
    }

    /// Drops masks and pending triggers of a client that has gone.
    pub(super) fn forget_client(&mut self) {
        self.pending = false;
        self.client_masked = false;
    }

    /// Device reset.
    pub(super) fn reset(&mut self) {
        self.forget_client();
        self.level = false;
        self.device_masked = false;
    }

    pub(super) fn held(&self) -> bool {
        self.pending || (self.level && self.masked())
    }
}
