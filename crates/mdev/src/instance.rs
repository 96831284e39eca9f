//! Instances: one mediated device each.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use vfiod_core::contain::contain;
use vfiod_core::{DeviceRef, Errno, Error, Registration, Result};
use vfiod_sync::{Mutex, lock};

use crate::bus::ParentEntry;
use crate::parent::{Attributes, TypeInfo};

/// The way by which clients come to an instance. Dropping it ends those who are there.
pub trait Door: Send {
    /// Lets nobody in any more; those who are there stay. Called before an instance's users are
    /// asked to let go.
    fn shut(&mut self);
}

/// No way in but this process's own: for instances used through [`Instance::device`].
#[derive(Clone, Copy, Debug)]
pub struct NoDoor;

impl Door for NoDoor {
    fn shut(&mut self) {}
}

/// How an instance is removed that may be in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Not at all while it is in use (`EBUSY`).
    Refuse,
    /// Its users are asked to let go, again and again, for as long as it takes.
    Wait,
    /// Its users are asked to let go; after this time it is taken from them.
    Deadline(Duration),
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It can be used.
    Live,
    /// It is being removed: nobody new gets in.
    Leaving,
}

/// A mediated device. Cheap to clone; does not keep the instance from being removed.
#[derive(Clone)]
pub struct Instance {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) uuid: Uuid,
    pub(crate) parent: Arc<ParentEntry>,
    /// The type's index in the parent's spec.
    pub(crate) kind: usize,
    pub(crate) device: DeviceRef,
    attributes: Option<Arc<dyn Attributes>>,
    /// `None` once it is leaving: whoever took it sees to the rest.
    live: Mutex<Option<Live>>,
}

/// What a live instance consists of, in the order in which it goes: the clients' connections
/// end before the device is unregistered at the latest.
pub(crate) struct Live {
    pub(crate) door: Box<dyn Door>,
    pub(crate) registration: Registration,
}

impl Shared {
    pub(crate) fn new(
        uuid: Uuid,
        parent: Arc<ParentEntry>,
        kind: usize,
        attributes: Option<Arc<dyn Attributes>>,
        live: Live,
    ) -> Self {
        let device = live.registration.device().clone();
        Self { uuid, parent, kind, device, attributes, live: Mutex::new(Some(live)) }
    }

    /// Makes the caller the one who removes the instance; `None` if somebody does already.
    pub(crate) fn take(&self, removal: Removal) -> Result<Option<Live>> {
        let mut live = lock(&self.live);
        if removal == Removal::Refuse {
            let Some(live) = &*live else {
                let what = format!("{} is being removed already", self.uuid);
                return Err(Error::new(Errno::BUSY, what));
            };
            live.registration.bar_opens_if_unused()?;
        }
        Ok(live.take())
    }
}

impl Live {
    /// Sends the users away and ends the instance.
    pub(crate) fn end(self, removal: Removal) {
        let Self { mut door, registration } = self;
        shut(&mut *door, registration.device().name());
        registration.unregister(match removal {
            // Nobody has it open, and nobody can.
            Removal::Refuse | Removal::Wait => None,
            Removal::Deadline(time) => Some(time),
        });
        if let Err(panic) = contain(|| drop(door)) {
            tracing::error!(error = %panic, "a door could not be taken away");
        }
    }
}

fn shut(door: &mut dyn Door, device: &str) {
    if let Err(panic) = contain(|| door.shut()) {
        tracing::error!(device, error = %panic, "shutting the door failed");
    }
}

impl Instance {
    /// Its UUID.
    pub fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    /// Its parent's name.
    pub fn parent(&self) -> &str {
        &self.shared.parent.spec.name
    }

    /// Its type.
    pub fn kind(&self) -> &TypeInfo {
        &self.shared.parent.spec.types[self.shared.kind]
    }

    /// The device, called by the UUID in the core's registry.
    pub fn device(&self) -> &DeviceRef {
        &self.shared.device
    }

    /// Where it is in its life.
    pub fn stage(&self) -> Stage {
        if lock(&self.shared.live).is_some() { Stage::Live } else { Stage::Leaving }
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// `ENOENT`: its type has no such attribute; what the parent says; `EIO`: the parent panicked.
    pub fn attribute(&self, name: &str) -> Result<String> {
        let kind = self.kind();
        kind.attribute(name)?;
        let attributes = of(self.shared.attributes.as_ref(), kind)?;
        contained(kind, || attributes.get(name))
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// `ENOENT`: its type has no such attribute; `EACCES`: it can only be read; `EINVAL`, `EBUSY`:
    /// as [`Attributes::set`] says; `EIO`: the parent panicked.
    pub fn set_attribute(&self, name: &str, value: &str) -> Result<()> {
        set(self.shared.attributes.as_ref(), self.kind(), name, value)
    }
}

/// Sets an attribute of an instance that may not be there yet.
pub(crate) fn set(
    attributes: Option<&Arc<dyn Attributes>>,
    kind: &TypeInfo,
    name: &str,
    value: &str,
) -> Result<()> {
    if !kind.attribute(name)?.writable {
        let what = format!("attribute `{name}` of {} can only be read", kind.id);
        return Err(Error::new(Errno::ACCESS, what));
    }
    let attributes = of(attributes, kind)?;
    contained(kind, || attributes.set(name, value))
}

fn of<'a>(
    attributes: Option<&'a Arc<dyn Attributes>>,
    kind: &TypeInfo,
) -> Result<&'a Arc<dyn Attributes>> {
    attributes.ok_or_else(|| {
        let what = format!("type {} lists attributes, but its instances have none", kind.id);
        Error::new(Errno::IO, what)
    })
}

/// Calls a parent; its panic is `EIO`.
pub(crate) fn contained<R>(kind: &TypeInfo, call: impl FnOnce() -> Result<R>) -> Result<R> {
    contain(call).unwrap_or_else(|panic| {
        tracing::error!(kind = kind.id, error = %panic, "a parent failed");
        let what = format!("the parent of {} failed", kind.id);
        Err(Error::new(Errno::IO, what).because(panic))
    })
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("uuid", &self.uuid()).finish_non_exhaustive()
    }
}
