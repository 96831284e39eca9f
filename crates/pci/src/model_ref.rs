//! A registered model, as whoever manages it reaches it.

use std::fmt;
use std::marker::PhantomData;

use vfiod_core::{DeviceRef, Result};

use crate::cx::Cx;
use crate::function::Function;
use crate::model::Model;

/// A registered device whose model is `M`, for operations that no guest asks for. Cheap to clone; keeps the
/// device allocated, not registered.
pub struct ModelRef<M> {
    device: DeviceRef,
    model: PhantomData<fn() -> M>,
}

impl<M> Clone for ModelRef<M> {
    fn clone(&self) -> Self {
        Self { device: self.device.clone(), model: PhantomData }
    }
}

impl<M> fmt::Debug for ModelRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.device.fmt(f)
    }
}

impl<M: Model> ModelRef<M> {
    /// A device as one of this model; `None` if it is of another.
    pub fn of(device: &DeviceRef) -> Option<Self> {
        let is_one = device.is::<Function<M>>();
        is_one.then(|| Self { device: device.clone(), model: PhantomData })
    }

    /// The device.
    pub fn device(&self) -> &DeviceRef {
        &self.device
    }

    /// Calls `step` with the model, under the device's lock, whether the device is open or not. Nothing in
    /// it may wait: what waits, such as opening a file, happens before or after. Interrupts that it raises
    /// are sent when it has returned.
    ///
    /// # Errors
    /// As [`DeviceRef::step`].
    pub fn step<R>(&self, step: impl FnOnce(&mut M, &Cx<M>) -> R) -> Result<R> {
        let step = |function: &mut Function<M>| {
            let (model, cx) = function.parts()?;
            Ok(step(model, cx))
        };
        self.device.step(step)?
    }
}
