//! Instances: one mediated device each.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use vfiod_core::contain::contain;
use vfiod_core::{DeviceRef, Errno, Error, Registration, Result};
use vfiod_sync::atomic::{AtomicUsize, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::parent::{Attributes, ParentEntry, TypeInfo};

/// Where clients connect to an instance, such as a listening socket. Dropping it ends their
/// connections.
pub trait Endpoint: Send {
    /// Accepts no more connections; those that exist stay. Called once, before the instance's
    /// users are asked to close the device.
    fn stop_listening(&mut self);
}

/// No endpoint: for instances that only this process uses, through [`Instance::device`].
#[derive(Clone, Copy, Debug)]
pub struct NoEndpoint;

impl Endpoint for NoEndpoint {
    fn stop_listening(&mut self) {}
}

/// How an instance is removed that may be in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The removal fails with `EBUSY` while the instance is in use.
    Refuse,
    /// Its users are asked to close it, again and again, for as long as it takes.
    Wait,
    /// Its users are asked to close it; after this time their files are revoked.
    Deadline(Duration),
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It can be used.
    Live,
    /// It is being removed: it cannot be opened any more.
    Leaving,
}

/// A handle of a mediated device. Cheap to clone; does not keep the instance from being removed.
#[derive(Clone)]
pub struct Instance {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) uuid: Uuid,
    pub(crate) parent: Arc<ParentEntry>,
    /// The type's index in the parent's spec.
    pub(crate) mdev_type: usize,
    pub(crate) device: DeviceRef,
    attributes: Option<Arc<dyn Attributes>>,
    /// `None` once it is being removed: whoever took it removes the instance.
    live: Mutex<Option<Live>>,
    /// How often it was given back by a removal that was given up.
    pub(crate) given_back: AtomicUsize,
}

/// What a live instance consists of.
pub(crate) struct Live {
    pub(crate) endpoint: Box<dyn Endpoint>,
    pub(crate) registration: Registration,
    /// Whether the endpoint accepts connections.
    pub(crate) listening: bool,
}

impl Shared {
    pub(crate) fn new(
        uuid: Uuid,
        parent: Arc<ParentEntry>,
        mdev_type: usize,
        attributes: Option<Arc<dyn Attributes>>,
        live: Live,
    ) -> Self {
        let device = live.registration.device().clone();
        Self {
            uuid,
            parent,
            mdev_type,
            device,
            attributes,
            live: Mutex::new(Some(live)),
            given_back: AtomicUsize::new(0),
        }
    }

    /// Makes the caller the one who removes the instance. Returns `None` if another thread does
    /// already.
    pub(crate) fn take(&self, removal: Removal) -> Result<Option<Live>> {
        let mut live = lock(&self.live);
        if removal == Removal::Refuse {
            let Some(live) = &*live else {
                let what = format!("{} is being removed already", self.uuid);
                return Err(Error::new(Errno::BUSY, what));
            };
            live.registration.bar_opens_if_unused()?;
        } else if let Some(live) = &*live {
            // From here on no file is added, so that a second remover, which revokes those that there
            // are, waits for no client that opens the device again.
            live.registration.bar_opens();
        }
        Ok(live.take())
    }

    /// Undoes [`Shared::take`]: another thread may remove the instance.
    pub(crate) fn give_back(&self, live: Live) {
        *lock(&self.live) = Some(live);
        self.given_back.fetch_add(1, Ordering::SeqCst);
    }
}

impl Live {
    pub(crate) fn stop_listening(&mut self) {
        if std::mem::take(&mut self.listening) {
            stop_listening(&mut *self.endpoint, self.registration.device().name());
        }
    }

    /// Removes the instance: stops listening, unregisters the device, ends the connections.
    pub(crate) fn end(mut self, removal: Removal) {
        self.stop_listening();
        let Self { endpoint, registration, .. } = self;
        registration.unregister(match removal {
            // Nobody has it open, and nobody can.
            Removal::Refuse | Removal::Wait => None,
            Removal::Deadline(time) => Some(time),
        });
        if let Err(panic) = contain(|| drop(endpoint)) {
            tracing::error!(error = %panic, "dropping an endpoint failed");
        }
    }
}

fn stop_listening(endpoint: &mut dyn Endpoint, device: &str) {
    if let Err(panic) = contain(|| endpoint.stop_listening()) {
        tracing::error!(device, error = %panic, "an endpoint could not stop listening");
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
    pub fn mdev_type(&self) -> &TypeInfo {
        &self.shared.parent.spec.types[self.shared.mdev_type]
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
        let mdev_type = self.mdev_type();
        mdev_type.attribute(name)?;
        let attributes = of(self.shared.attributes.as_ref(), mdev_type)?;
        contained(mdev_type, || attributes.get(name))
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// `ENOENT`: its type has no such attribute; `EACCES`: it can only be read; `EINVAL`, `EBUSY`:
    /// as [`Attributes::set`] says; `EIO`: the parent panicked.
    pub fn set_attribute(&self, name: &str, value: &str) -> Result<()> {
        set(self.shared.attributes.as_ref(), self.mdev_type(), name, value)
    }
}

/// Sets an attribute of an instance that may not be there yet.
pub(crate) fn set(
    attributes: Option<&Arc<dyn Attributes>>,
    mdev_type: &TypeInfo,
    name: &str,
    value: &str,
) -> Result<()> {
    if !mdev_type.attribute(name)?.writable {
        let what = format!("attribute `{name}` of {} can only be read", mdev_type.id);
        return Err(Error::new(Errno::ACCESS, what));
    }
    let attributes = of(attributes, mdev_type)?;
    contained(mdev_type, || attributes.set(name, value))
}

fn of<'a>(
    attributes: Option<&'a Arc<dyn Attributes>>,
    mdev_type: &TypeInfo,
) -> Result<&'a Arc<dyn Attributes>> {
    attributes.ok_or_else(|| {
        let what = format!("type {} lists attributes, but its instances have none", mdev_type.id);
        Error::new(Errno::IO, what)
    })
}

/// Calls a parent; its panic is `EIO`.
pub(crate) fn contained<R>(mdev_type: &TypeInfo, call: impl FnOnce() -> Result<R>) -> Result<R> {
    contain(call).unwrap_or_else(|panic| {
        tracing::error!(mdev_type = mdev_type.id, error = %panic, "a parent failed");
        let what = format!("the parent of {} failed", mdev_type.id);
        Err(Error::new(Errno::IO, what).because(panic))
    })
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("uuid", &self.uuid()).finish_non_exhaustive()
    }
}
