//! One vector's state: what is asserted, what masks it, which eventfd it signals.
//!
//! ```text
//!            trigger, level up              not masked, eventfd set
//!   idle ─────────────────────► asserted ─────────────────────────► signalled
//!                                   ▲ │ masked, or no eventfd            │ AUTOMASKED
//!                                   │ ▼                                  ▼
//!                                  held ◄──── level still up ───── masked by itself
//! ```
//! The state is touched under the vector's own lock only, for a few instructions. The signal
//! itself is sent by the caller afterwards, with no lock held.

use super::eventfd::EventFd;
use crate::ids::FileId;
use crate::sync::Arc;

/// An eventfd and the file that set it up.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) fd: Arc<EventFd>,
    pub(super) file: FileId,
}

/// How often a vector did what, since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorCounters {
    /// Eventfd signals sent.
    pub signalled: u64,
    /// Triggers that became pending: masked, or without an eventfd while the index was enabled.
    /// Several may end in one signal.
    pub held: u64,
    /// Triggers that went nowhere because the index was not enabled.
    pub lost: u64,
    /// Eventfds that were dropped because their client let a signal block on a full counter, or had them
    /// watched so often that signals took milliseconds.
    pub blocked: u64,
}

/// The state of a vector.
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

/// The eventfd to signal, once the vector's lock has been released.
pub(super) type Signal = Option<Arc<EventFd>>;

/// What is due after a change of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// [`Vector::fire`]: something that was held may be sent now.
    Held,
    /// [`Vector::fire`]: something new is asserted. If it cannot be sent, it counts as held.
    New,
}

impl Vector {
    /// Whether [`Vector::fire`] would signal.
    pub(super) fn can_fire(&self) -> bool {
        (self.level || self.pending) && !self.masked() && self.trigger.is_some()
    }

    fn masked(&self) -> bool {
        self.client_masked || self.device_masked
    }

    /// Takes the signal that is due, if nothing holds it back.
    pub(super) fn fire(&mut self, due: Due, automasked: bool) -> Signal {
        if due == Due::Nothing {
            return None;
        }
        if !self.can_fire() {
            self.counters.held += u64::from(due == Due::New);
            return None;
        }
        self.pending = false;
        self.client_masked = automasked;
        self.counters.signalled += 1;
        self.trigger.as_ref().map(|owned| owned.fd.clone())
    }

    /// An edge. `enabled`: whether the client uses the index at all.
    pub(super) fn edge(&mut self, enabled: bool) -> Due {
        if self.trigger.is_none() && !enabled {
            self.counters.lost += 1;
            return Due::Nothing;
        }
        self.pending = true;
        Due::New
    }

    /// A change of the line's level.
    pub(super) fn set_level(&mut self, asserted: bool) -> Due {
        let before = std::mem::replace(&mut self.level, asserted);
        if asserted && !before { Due::New } else { Due::Nothing }
    }

    /// The client's mask.
    pub(super) fn set_client_mask(&mut self, masked: bool) -> Due {
        let before = std::mem::replace(&mut self.client_masked, masked);
        if before && !masked { Due::Held } else { Due::Nothing }
    }

    /// The device's mask.
    pub(super) fn set_device_mask(&mut self, masked: bool) -> Due {
        let before = std::mem::replace(&mut self.device_masked, masked);
        if before && !masked { Due::Held } else { Due::Nothing }
    }

    /// Sets or removes the eventfd. A pending trigger is sent to the first one. Returns the old one,
    /// to be retired.
    pub(super) fn set_trigger(&mut self, trigger: Option<Owned>) -> (Option<Arc<EventFd>>, Due) {
        let old = std::mem::replace(&mut self.trigger, trigger);
        let due = if old.is_none() { Due::Held } else { Due::Nothing };
        (old.map(|old| old.fd), due)
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

    /// Whether a trigger is pending.
    pub(super) fn held(&self) -> bool {
        self.pending || (self.level && self.masked())
    }
}
