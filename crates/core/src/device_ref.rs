//! A registered device, as the program sees it.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::contain::contain;
use crate::context::QuiesceTimes;
use crate::device::{Description, Device};
use crate::dma::{MappingInfo, Summary};
use crate::error::{Errno, Error, Result};
use crate::file_state::FileStatus;
use crate::ids::{DeviceId, FileId, SetKey};
use crate::input_log::InputLog;
use crate::irq::{IrqIndex, VectorCounters};
use crate::region::{Region, RegionIndex};
use crate::registered::Registered;
use crate::report::Metrics;
use crate::set::WAIT;
use crate::state::ReadTraits;
use crate::sync::lock;
use crate::timeout::Timeout;
use crate::work::TaskInfo;

/// A registered device. Keeps it allocated, not registered.
#[derive(Clone)]
pub struct DeviceRef {
    pub(crate) registered: Arc<Registered>,
}

impl DeviceRef {
    /// The device's number.
    pub fn id(&self) -> DeviceId {
        self.registered.id()
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.registered.name()
    }

    /// Where it is, in the words of its bus; see [`crate::DeviceSpec::location`].
    pub fn location(&self) -> Option<&str> {
        self.registered.location.as_deref()
    }

    /// The name of its set; a set of its own is called like the device.
    pub fn set_name(&self) -> &str {
        self.registered.set_name()
    }

    /// Identifies the set, also among sets of one name: devices of one set have the same key.
    pub fn set_key(&self) -> SetKey {
        self.registered.set_key()
    }

    /// How often an interrupt vector did what. `EINVAL`: there is no such vector.
    pub fn irq_counters(&self, index: IrqIndex, vector: u32) -> Result<VectorCounters> {
        self.registered.context.irqs().counters(index, vector)
    }

    /// Whether any vector of an interrupt index has an eventfd.
    pub fn irq_enabled(&self, index: IrqIndex) -> bool {
        self.registered.context.irqs().is_enabled(index)
    }

    /// The DMA mappings of the device's address space: how many, their bytes, and the first few.
    pub fn dma_summary(&self, few: usize) -> Summary {
        self.registered.context.attached_space().summary(few)
    }

    /// The DMA mappings of the device's address space, by address. Its clients decide how many there are:
    /// see [`DeviceRef::dma_summary`].
    pub fn dma_mappings(&self) -> Vec<MappingInfo> {
        self.registered.context.attached_space().mappings()
    }

    /// What the device has.
    pub fn description(&self) -> &Description {
        &self.registered.description
    }

    /// What a read of a region does, as far as the device declares it. Takes the device lock.
    ///
    /// # Errors
    /// `EINVAL`: no such region, or outside it; `ENODEV`: the device has been unregistered.
    pub fn read_traits(&self, region: RegionIndex, offset: u64, len: usize) -> Result<ReadTraits> {
        let found = self.description().regions.get(region.0 as usize);
        let within =
            |found: &Region| offset.checked_add(len as u64).is_some_and(|end| end <= found.size);
        match found {
            Some(found) if within(found) => {
                self.registered.call(|device| Ok(device.read_traits(region, offset, len)))
            }
            _ => {
                let what = format!("{} has no {len} bytes at {offset:#x} of {region}", self.name());
                Err(Error::new(Errno::INVAL, what))
            }
        }
    }

    /// Whether it is a device of this type.
    pub fn is<D: Device>(&self) -> bool {
        self.registered.device_type == TypeId::of::<D>()
    }

    /// Calls `step` with the device, which is of type `D`, under its lock, whether it is open or not: for
    /// whoever manages the device. As in every call of the device, nothing in it may wait. Waits for two
    /// seconds at most while another call runs, or while the device is stopped for a reset, a save or a close.
    ///
    /// Takes the device lock: not to be called from a device callback.
    ///
    /// # Errors
    /// `EINVAL`: it is of another type; `ENODEV`: it has been unregistered; `EIO`: it is in the error state,
    /// or `step` has panicked; `EBUSY`: it is busy or stopped for too long.
    pub fn step<D: Device, R>(&self, step: impl FnOnce(&mut D) -> R) -> Result<R> {
        let device = &self.registered;
        let name = self.name();
        let mut found = false;
        let call = |any: &mut dyn Device| {
            found = true;
            if device.is_in_error_state() {
                return Err(device.has_failed());
            }
            let any: &mut dyn Any = any;
            let other = || Error::new(Errno::INVAL, format!("{name} is another kind of device"));
            any.downcast_mut().map(step).ok_or_else(other)
        };
        let result = device.call_within(&mut Timeout::new(WAIT), call).unwrap_or_else(|| {
            let what = format!("{name} is busy, or has been stopped for too long; try again");
            Err(Error::new(Errno::BUSY, what))
        });
        if device.context.reset_requested() {
            device.function_reset_if_requested();
        }
        match result {
            Err(error) if error.errno() == Errno::NODEV && !found => {
                Err(Error::new(Errno::NODEV, format!("{name} has been unregistered")))
            }
            result => result,
        }
    }

    /// How often the device has quiesced (for resets, closes, saves), and how long that took.
    pub fn quiesce_times(&self) -> QuiesceTimes {
        self.registered.context.quiesces().times()
    }

    /// The log of the device's input from outside: recorded for a capture, or replayed.
    pub fn input_log(&self) -> &InputLog {
        self.registered.context.input_log()
    }

    /// How the device is used now. Takes the set lock, which is never held during a callback.
    pub fn status(&self) -> Status {
        let device = &*self.registered;
        let mut guard = device.set.lock();
        let member = guard.find(device);
        Status {
            leaving: member.as_ref().is_none_or(|member| member.leaving),
            files: member.map_or_else(Vec::new, |member| {
                member.files.values().map(|file| file.status()).collect()
            }),
            failed: device.is_in_error_state(),
            failure: lock(&device.failure).clone(),
            tasks: device.context.tasks(),
        }
    }

    /// Whether the device is stuck: in the error state, and some of its work does not end. Takes no lock
    /// of the device.
    pub fn is_stuck(&self) -> bool {
        self.registered.is_stuck()
    }

    /// What the device reports of itself ([`crate::Report`]), if it reports anything. Takes no lock of the
    /// device, and waits for nothing.
    pub fn model_status(&self) -> Option<serde_json::Value> {
        let report = lock(&self.registered.report).clone()?;
        let status = contain(|| report.status());
        let status = status.map_err(|panic| panic.to_string());
        match status.and_then(|status| status.map_err(|error| error.to_string())) {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::error!(device = self.name(), error, "the device cannot report its status");
                None
            }
        }
    }

    /// The device's own metrics. Takes no lock of the device, and waits for nothing.
    pub fn model_metrics(&self) -> Metrics {
        let report = lock(&self.registered.report).clone();
        let Some(report) = report else { return Metrics::default() };
        contain(|| report.metrics()).unwrap_or_else(|panic| {
            tracing::error!(device = self.name(), error = %panic, "the device cannot report metrics");
            Metrics::default()
        })
    }

    /// Revokes a file: the core calls [`crate::Device::release`] for it, and every later operation on it
    /// fails with `ENODEV`. If its `open` is still running, that open fails with `ENODEV`.
    ///
    /// Blocks while a callback of the device runs or its set is being reset. Takes the set lock and
    /// the device lock: not to be called from a device callback or an observer.
    ///
    /// # Errors
    /// `ENOENT`: the device has no file with this id, or has released it.
    pub fn revoke(&self, file: FileId) -> Result<()> {
        self.registered.revoke(file)
    }

    /// Asks the users of the device to close it ([`crate::Request`]); `n` counts the requests from 0.
    /// Waits no longer than `wait` for a callback of the device that is running. Returns whether the
    /// device was asked.
    pub fn request_close(&self, n: u32, wait: Duration) -> bool {
        self.registered.request(n, wait)
    }

    /// Revokes every file that the device has now, as [`DeviceRef::revoke`]: all of them at the same
    /// time, before the first is released. Returns how many were in use.
    pub fn revoke_all(&self) -> usize {
        self.registered.revoke_present()
    }
}

impl fmt::Debug for DeviceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceRef").field("id", &self.id().0).field("name", &self.name()).finish()
    }
}

/// How a device is used at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Its files, oldest first; `open` or `release` may still be running for one.
    pub files: Vec<FileStatus>,
    /// It is in the error state.
    pub failed: bool,
    /// Why it is in the error state.
    pub failure: Option<String>,
    /// Its tasks.
    pub tasks: Vec<TaskInfo>,
    /// It is being unregistered, or has been.
    pub leaving: bool,
}
