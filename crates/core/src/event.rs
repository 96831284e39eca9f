//! Events of a registry, for observers.

use crate::device::ResetCause;
use crate::ids::{DeviceId, FileId, Owner};

/// Receives every [`Event`], in the order of each device. May be called with the set lock held: must
/// not block, and must not open or close a device.
pub trait Observer: Send + Sync {
    /// Receives an event.
    fn event(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync> Observer for F {
    fn event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// The device and set that an event is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The number of the event: counts up by one with each event of the registry, also across a
    /// restored process. An event that another one can have caused has the greater number:
    /// `Unregistered` comes before `Registered` of a device that takes over the name, and `SetCreated`
    /// before `Registered` of each member. Observers receive events of two devices, and of a set, in
    /// another order perhaps; no number is left out, so they can put them in order.
    pub number: u64,
    /// The device's number.
    pub device: DeviceId,
    /// The device's name.
    pub name: &'a str,
    /// The device set's name.
    pub set: &'a str,
}

/// An event of a registry.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Event<'a> {
    /// The first member of a set joined.
    SetCreated(Subject<'a>),
    /// A device became visible.
    Registered(Subject<'a>),
    /// First open: `open_device` has succeeded.
    DeviceOpened(Subject<'a>),
    /// A file was opened; `count` files are open now.
    FileOpened { subject: Subject<'a>, file: FileId, owner: &'a Owner, count: u32 },
    /// A file was released; `count` files are left.
    FileReleased { subject: Subject<'a>, file: FileId, count: u32 },
    /// Last close: `close_device` has been called.
    DeviceClosed(Subject<'a>),
    /// The device was reset.
    Reset { subject: Subject<'a>, cause: ResetCause },
    /// A callback panicked or failed where it must not; the device is in the error state.
    Failed(Subject<'a>),
    /// The device's users are asked to close it; `n` counts the requests from 0.
    Requested { subject: Subject<'a>, n: u32 },
    /// A file was revoked.
    Revoked { subject: Subject<'a>, file: FileId },
    /// A device was unregistered.
    Unregistered(Subject<'a>),
    /// The last member of a set left.
    SetGone(Subject<'a>),
}
