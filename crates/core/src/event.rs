//! What happened, for people and programs that watch.

use crate::device::ResetCause;
use crate::ids::{DeviceId, FileId, Owner};

/// Receives every [`Event`] in the order in which it happened to a device. Called with the
/// device's set lock possibly held: must not block, open or close.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync> Observer for F {
    fn event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// Names of what an event is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The device's number.
    pub device: DeviceId,
    /// The device's name.
    pub name: &'a str,
    /// The device set's name.
    pub set: &'a str,
}

/// Something that happened in a registry.
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
    /// A file is gone; `count` files are left.
    FileReleased { subject: Subject<'a>, file: FileId, count: u32 },
    /// Last close: `close_device` has been called.
    DeviceClosed(Subject<'a>),
    /// The device was reset.
    Reset { subject: Subject<'a>, cause: ResetCause },
    /// A callback panicked or failed where it must not; the device is in the error state.
    Failed(Subject<'a>),
    /// The device's users were asked to let go, for the nth time.
    Requested { subject: Subject<'a>, n: u32 },
    /// A file was taken from its user.
    Revoked { subject: Subject<'a>, file: FileId },
    /// A device is gone.
    Unregistered(Subject<'a>),
    /// The last member of a set left.
    SetGone(Subject<'a>),
}
