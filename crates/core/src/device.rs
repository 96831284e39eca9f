//! What a device is to the core: the [`Device`] trait and the powers that a device may have.

use std::any::Any;
use std::fmt;

use crate::context::Context;
pub use crate::description::{Description, DeviceFlags};
use crate::error::Result;
use crate::ids::{FileId, Owner};
use crate::region::RegionIndex;
use crate::state::{Persistence, ReadTraits};

/// Why a device is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// First open, where the state is not retained.
    Open,
    /// DEVICE_RESET from a client.
    Client,
    /// The guest's own means (a function-level reset).
    Function,
    /// The set is being reset.
    Set,
}

impl ResetCause {
    /// Its name, for logs and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Client => "client",
            Self::Function => "function",
            Self::Set => "set",
        }
    }
}

/// A device model. The core calls every method with the device's own lock held, so one at a
/// time; a panic is caught and puts the device into the error state (every access `EIO`) until
/// it is reset. Methods should be quick: a client gives up after five seconds. They must not
/// open, close or access the device through a [`crate::File`]: that waits for the lock that
/// the caller holds. Interrupts that a method raises are sent when it has returned.
///
/// Every `open` that succeeds is followed by exactly one `release`, every `open_device` that
/// succeeds by exactly one `close_device`, and no access comes outside of them. In one device
/// set, `open_device`, `close_device` and resets of [`ResetCause::Open`] and
/// [`ResetCause::Set`] never overlap.
///
/// A device with work of its own starts tasks ([`crate::DeviceTask::spawn`]), and has the power
/// [`Worker`]. The core drops the device after unregistering it, with no lock held.
pub trait Device: Any + Send {
    /// What the device has. Called once, before `init`.
    fn describe(&self) -> Description;

    /// Called once while the device is being registered. An error refuses the registration.
    fn init(&mut self, ctx: &Context) -> Result<()>;

    /// First open: claim what the device needs while in use. The set is marked as opening. After
    /// an error the device is not open, and `close_device` is not called.
    fn open_device(&mut self) -> Result<()>;

    /// Last close: give back what `open_device` claimed, and lower all interrupts. The device has
    /// quiesced, unless it is stuck. The set is marked as closing.
    fn close_device(&mut self);

    /// A file was opened. After an error `release` is not called for it.
    fn open(&mut self, _file: FileId, _owner: &Owner) -> Result<()> {
        Ok(())
    }

    /// A file was closed or revoked. Called once for each `open` that succeeded.
    fn release(&mut self, _file: FileId) {}

    /// Reads a region. The core has checked region, bounds and permission; `data` is not empty
    /// and within the region.
    fn read(&mut self, region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()>;

    /// What a read of these bytes does, as far as the device declares it. The core has checked
    /// region and bounds.
    fn read_traits(&self, _region: RegionIndex, _offset: u64, _len: usize) -> ReadTraits {
        ReadTraits::default()
    }

    /// Writes a region. The core has checked region, bounds and permission; `data` is not empty
    /// and within the region.
    fn write(&mut self, region: RegionIndex, offset: u64, data: &[u8]) -> Result<()>;

    /// Sets every register to its value after power-on. The core has already cleared interrupt
    /// levels and masks. After an error the device is in the error state, because its registers are
    /// undefined. Also called for devices without [`DeviceFlags::RESET`], which only says what
    /// clients may ask for.
    ///
    /// The device has quiesced, and the core has zeroed the memory that the device shares with
    /// clients; a device whose memory is not zero after power-on writes it here
    /// ([`Context::shared_memory`]). With [`ResetCause::Set`] a device with such memory may be
    /// reset twice, because other members were reset in between.
    fn reset(&mut self, cause: ResetCause) -> Result<()>;

    /// Whether and how the device is saved.
    fn persistence(&mut self) -> Persistence<'_>;

    /// How the device stops and resumes its tasks and data path, if it has any. Called at
    /// registration, and whenever the device is to stop; always returns the same.
    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        None
    }

    /// The device's own way to ask its user to close it, if it has one.
    fn as_request(&mut self) -> Option<&mut dyn Request> {
        None
    }

    /// The device's check of who may open it, if it has one.
    fn as_admission(&mut self) -> Option<&mut dyn Admission> {
        None
    }

    /// DEVICE_FEATURE indices of the device, if it has any.
    fn as_features(&mut self) -> Option<&mut dyn Features> {
        None
    }
}

/// Power: the device can ask its user to close it (the kernel's `request` callback).
pub trait Request {
    /// Called at growing intervals (`n` = 0, 1, …) while an unregister waits for the last file.
    /// Returns whether a request was sent to the user, for the log.
    fn request(&mut self, n: u32) -> bool;
}

/// A secret by which an opener proves to act together with another user, such as the VF token of
/// an SR-IOV device. Messages never show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Power: the device decides who may open it (the kernel's `match` callback). An open of a device
/// without this power fails if it presents a token (`EINVAL`).
pub trait Admission {
    /// Called for every open that the policy allows, before the file is counted. The set is marked
    /// as opening. An error refuses the open. The kernel's errors are `EACCES` for a token that is
    /// missing or wrong, and `EINVAL` for a token that the device cannot use.
    fn admit(&mut self, token: Option<Token>) -> Result<()>;
}

/// Power: features of DEVICE_FEATURE.
pub trait Features {
    /// Whether `get` and `set` work for an index: (get, set).
    fn probe(&mut self, index: u16) -> (bool, bool);
    /// Returns the data of a feature. `ENOTTY` if the device does not have it.
    fn get(&mut self, index: u16, argument: &[u8]) -> Result<Vec<u8>>;
    /// Sets a feature. `ENOTTY` if the device does not have it.
    fn set(&mut self, index: u16, data: &[u8]) -> Result<()>;
}

/// Why a device is to quiesce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is about to be reset, by whatever cause.
    Reset,
    /// Its set is about to be reset; that may be abandoned.
    HotReset,
    /// The last file is being released.
    Close,
    /// It is being unregistered.
    Unregister,
    /// Its state is about to be saved.
    Save,
    /// Its state is about to move to another program of this host.
    Upgrade,
    /// Its state is about to move to another host.
    Migration,
}

impl Why {
    /// Whether unfinished work is to be discarded. Otherwise [`Worker::resume`] may follow with
    /// nothing changed, and the guest must see each piece of work complete exactly once.
    pub fn ends(self) -> bool {
        match self {
            Self::Reset | Self::Close | Self::Unregister => true,
            Self::HotReset | Self::Save | Self::Upgrade | Self::Migration => false,
        }
    }
}

/// How a device quiesces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiesce {
    /// No task of the device runs. The core verifies that: if a task runs, it puts the device into
    /// the error state.
    Done,
    /// The core drops the future of each task at its next await; [`Worker::resume`] starts again
    /// the work that the state describes.
    Cancel,
    /// The tasks run to their ends, or to a wait for a doorbell.
    Finish,
}

/// Power: the device has tasks or a data path. Both methods are called with the device's lock held.
///
/// After it has quiesced, no task of the device runs, no ring reaches its data path, and none of
/// its accesses to guest memory is in flight: no DMA, no interrupt, no change of state.
pub trait Worker {
    /// Stops the work. The core then waits, without the lock, until no task, no data-path call and
    /// no access to guest memory is left.
    fn quiesce(&mut self, why: Why) -> Quiesce;

    /// Starts the work that the state describes. Called after the first open, after a reset, after
    /// a save or a restore, and when a hot reset was abandoned. Tasks that did not end meanwhile
    /// still run ([`Context::find_task`]).
    fn resume(&mut self);
}
