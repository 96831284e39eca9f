//! A disk of an instance: its image, and its attributes.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use vfiod_core::{Errno, Error, Result};
use vfiod_mdev::{AttributeInfo, Attributes, End, Uuid};
use vfiod_sync::atomic::{AtomicU64, Ordering};
use vfiod_sync::{Mutex, lock};

use super::images::{Found, Images};
use super::types::{Allocation, DiskType, OnRemove};
use crate::rate::{RateLimit, RateLimits};

/// The attributes of every type.
pub(super) fn attributes() -> Vec<AttributeInfo> {
    let attribute = |name: &str, values: &str, summary: &str, writable| AttributeInfo {
        name: name.to_owned(),
        values: values.to_owned(),
        summary: summary.to_owned(),
        writable,
    };
    let rate = "a number; 0: no limit";
    vec![
        attribute(
            "allocation",
            "sparse or full",
            "how the image is made, if it is not there",
            true,
        ),
        attribute(
            "on_remove",
            "keep or delete",
            "what becomes of the image when it is removed",
            true,
        ),
        attribute("iops", rate, "I/O commands per second", true),
        attribute("bandwidth", rate, "bytes per second", true),
        attribute("image", "a path", "its image", false),
        attribute("size", "bytes", "bytes of the disk", false),
        attribute("serial", "a string", "its serial number", false),
        attribute("disk_uuid", "a UUID", "the UUID by which hosts know the disk", false),
    ]
}

/// That an attribute can have a value.
pub(super) fn check(name: &str, value: &str) -> Result<()> {
    match name {
        "allocation" => allocation(value).map(drop),
        "on_remove" => on_remove(value).map(drop),
        _ => rate(name, value).map(drop),
    }
}

fn wrong(name: &str, value: &str, expected: &str) -> Error {
    let value = value.escape_debug();
    Error::new(Errno::INVAL, format!("`{name}` is `{value}`; must be {expected}"))
}

fn allocation(value: &str) -> Result<Allocation> {
    match value.trim() {
        "sparse" => Ok(Allocation::Sparse),
        "full" => Ok(Allocation::Full),
        _ => Err(wrong("allocation", value, "sparse or full")),
    }
}

fn on_remove(value: &str) -> Result<OnRemove> {
    match value.trim() {
        "keep" => Ok(OnRemove::Keep),
        "delete" => Ok(OnRemove::Delete),
        _ => Err(wrong("on_remove", value, "keep or delete")),
    }
}

fn rate(name: &str, value: &str) -> Result<u64> {
    let expected = "a number from 0 to 2^64 - 1, where 0 is no limit";
    value.trim().parse().map_err(|_| wrong(name, value, expected))
}

/// The image of an instance, which is made and opened when the instance is registered.
#[derive(Debug)]
pub(crate) struct ManagedImage {
    images: Arc<Images>,
    uuid: Uuid,
    /// Bytes of an image that is made.
    size: u64,
    settings: Mutex<Settings>,
    /// Bursts of the type.
    of_type: RateLimits,
    rate: OnceLock<Arc<RateLimit>>,
    opened: OnceLock<Opened>,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    allocation: Allocation,
    on_remove: OnRemove,
    limits: RateLimits,
    /// `None`: nobody has looked.
    found: Option<Found>,
}

/// What is known of a disk that is open.
#[derive(Debug)]
struct Opened {
    size: AtomicU64,
    serial: String,
    uuid: Uuid,
}

impl ManagedImage {
    pub(super) fn new(images: Arc<Images>, uuid: Uuid, disk: &DiskType) -> Self {
        let DiskType { size, allocation, on_remove, .. } = *disk;
        let of_type = disk.limits();
        let settings = Settings { allocation, on_remove, limits: of_type, found: None };
        Self {
            images,
            uuid,
            size,
            settings: Mutex::new(settings),
            of_type,
            rate: OnceLock::new(),
            opened: OnceLock::new(),
        }
    }

    /// What limits the controller.
    pub(super) fn set_rate(&self, rate: Arc<RateLimit>) {
        _ = self.rate.set(rate);
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.images.path(self.uuid)
    }

    /// Makes the image, unless it is there.
    ///
    /// # Errors
    /// As [`Images::find_or_make`].
    pub(crate) fn prepare(&self) -> Result<()> {
        let allocation = lock(&self.settings).allocation;
        let found = self.images.find_or_make(self.uuid, self.size, allocation)?;
        lock(&self.settings).found = Some(found);
        Ok(())
    }

    /// The refusal of an image, with a remedy that there is here: its disk has no options of its own.
    pub(crate) fn refused(&self, error: Error) -> Error {
        let remedy = match error.errno() {
            Errno::BADMSG | Errno::LOOP | Errno::EXIST => {
                format!(
                    "remove {}, and it is a new disk for its guest",
                    self.images.names(self.uuid).display()
                )
            }
            Errno::OPNOTSUPP | Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOSPC => {
                "take another `directory` of the parent".to_owned()
            }
            _ => return error,
        };
        let what = format!(
            "image {}: as a parent makes the disk, it has none of the options that are named here; {remedy}",
            self.path().display()
        );
        Error::new(error.errno(), what).because(error)
    }

    /// The disk is open.
    pub(crate) fn opened(&self, size: u64, serial: &str, uuid: [u8; 16]) {
        let (serial, uuid) = (serial.to_owned(), Uuid::from_bytes(uuid));
        _ = self.opened.set(Opened { size: AtomicU64::new(size), serial, uuid });
    }

    /// Keeps room for an image that becomes so large.
    ///
    /// # Errors
    /// As [`Images::grow`].
    pub(crate) fn make_room(self: &Arc<Self>, size: u64) -> Result<Room> {
        self.images.grow(self.uuid, size)?;
        Ok(Room { image: self.clone(), size, is_taken: false })
    }

    /// The image has this size now.
    pub(crate) fn has_size(&self, size: u64) {
        self.images.has_size(self.uuid, size);
        if let Some(opened) = self.opened.get() {
            opened.size.store(size, Ordering::SeqCst);
        }
    }

    /// The instance has ended.
    pub(super) fn ended(&self, why: End) {
        let Settings { on_remove, found, .. } = *lock(&self.settings);
        let deletes = match why {
            End::NotCreated => found == Some(Found::Made),
            End::Removed => on_remove == OnRemove::Delete,
        };
        if why == End::NotCreated && found == Some(Found::There { has_names: false }) {
            self.images.forget_names(self.uuid);
        }
        if deletes {
            self.images.delete(self.uuid);
        } else {
            self.images.release(self.uuid);
        }
    }

    /// What the limits are; an operation of the controller changes them as well.
    fn limits(&self) -> RateLimits {
        self.rate.get().map_or_else(|| lock(&self.settings).limits, |rate| rate.limits())
    }

    /// Sets a limit. A burst is that of the type, unless there is one.
    fn limit(&self, change: impl FnOnce(&mut RateLimits)) {
        let mut limits = self.limits();
        change(&mut limits);
        let burst = |rate: Option<u64>, now: Option<u64>, of_type| {
            if rate == Some(0) { None } else { now.or(of_type) }
        };
        let RateLimits { iops, iops_burst, bandwidth, bandwidth_burst } = limits;
        limits.iops_burst = burst(iops, iops_burst, self.of_type.iops_burst);
        limits.bandwidth_burst = burst(bandwidth, bandwidth_burst, self.of_type.bandwidth_burst);
        lock(&self.settings).limits = limits;
        if let Some(rate) = self.rate.get() {
            rate.set(limits);
        }
    }
}

/// Room in the directory for an image that grows; dropping it gives back what was not taken.
#[derive(Debug)]
pub(crate) struct Room {
    image: Arc<ManagedImage>,
    size: u64,
    is_taken: bool,
}

impl Room {
    /// The image has grown.
    pub(crate) fn take(mut self) {
        self.is_taken = true;
        self.image.has_size(self.size);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.is_taken {
            self.image.images.stop_growing(self.image.uuid);
        }
    }
}

impl Attributes for ManagedImage {
    fn get(&self, name: &str) -> Result<String> {
        let settings = *lock(&self.settings);
        let opened = self.opened.get();
        Ok(match name {
            "allocation" => match settings.allocation {
                Allocation::Sparse => "sparse".to_owned(),
                Allocation::Full => "full".to_owned(),
            },
            "on_remove" => match settings.on_remove {
                OnRemove::Keep => "keep".to_owned(),
                OnRemove::Delete => "delete".to_owned(),
            },
            "iops" => self.limits().iops.unwrap_or(0).to_string(),
            "bandwidth" => self.limits().bandwidth.unwrap_or(0).to_string(),
            "image" => self.path().display().to_string(),
            "size" => {
                let size = opened.map(|opened| opened.size.load(Ordering::SeqCst));
                size.unwrap_or(self.size).to_string()
            }
            "serial" => opened.map_or_else(String::new, |opened| opened.serial.clone()),
            _ => opened.map_or_else(String::new, |opened| opened.uuid.to_string()),
        })
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        match name {
            "allocation" => {
                let allocation = allocation(value)?;
                let mut settings = lock(&self.settings);
                if settings.found.is_some() && settings.allocation != allocation {
                    let what = "the image is there already; `allocation` is set when it is created or defined";
                    return Err(Error::new(Errno::BUSY, what));
                }
                settings.allocation = allocation;
            }
            "on_remove" => lock(&self.settings).on_remove = on_remove(value)?,
            "iops" => {
                let iops = rate(name, value)?;
                self.limit(|limits| limits.iops = Some(iops));
            }
            _ => {
                let bandwidth = rate(name, value)?;
                self.limit(|limits| limits.bandwidth = Some(bandwidth));
            }
        }
        Ok(())
    }
}
