//! Containers and objects as the core's devices (Linux, `drivers/vfio/fsl-mc/vfio_fsl_mc.c`).

use std::sync::Arc;

use vfiod_core::irq::{IrqFlags, IrqInfo};
use vfiod_core::{
    Context, Description, Device, DeviceFlags, Errno, Error, Persistence, Region, RegionIndex,
    ResetCause, Result,
};

use crate::container::{Container, Plugged};
use crate::object::Kind;
use crate::portal::{PORTAL_SIZE, Portal};

fn describe(kind: Kind, flags: DeviceFlags) -> Description {
    let irq = IrqInfo { flags: IrqFlags::EVENTFD, count: 1 };
    Description {
        flags: DeviceFlags::FSL_MC | flags,
        regions: vec![Region::registers(PORTAL_SIZE); kind.regions().into()],
        irqs: vec![irq; kind.irqs().into()],
    }
}

/// A container's own device: its portal and its interrupt. Closing it resets the container.
#[derive(Debug)]
pub struct ContainerDevice {
    pub(crate) container: Arc<Container>,
    pub(crate) portal: Portal,
    /// Its place in another container.
    pub(crate) plugged: Option<Plugged>,
}

impl ContainerDevice {
    /// The device of a container. Its set is [`Container::set`].
    pub fn new(container: &Arc<Container>) -> Self {
        Self { container: container.clone(), portal: Portal::default(), plugged: None }
    }

    /// The device of a container inside another, which is taken out of `outer` when this is
    /// dropped. Its set is its own, [`Container::set`].
    ///
    /// # Errors
    /// Those of [`Container::plug_container`].
    pub fn inside(container: &Arc<Container>, outer: &Arc<Container>) -> Result<Self> {
        let plugged = outer.plug_container(container)?;
        let mut device = Self::new(container);
        device.plugged = Some(plugged);
        Ok(device)
    }

    fn set_used(&self, used: bool) {
        if let Some(plugged) = &self.plugged {
            plugged.container().set_used(plugged.id(), used);
        }
    }
}

impl Device for ContainerDevice {
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Saved(self)
    }

    fn describe(&self) -> Description {
        describe(Kind::Dprc, DeviceFlags::RESET)
    }

    fn init(&mut self, ctx: &Context) -> Result<()> {
        self.container.attach(ctx);
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        self.set_used(true);
        Ok(())
    }

    fn close_device(&mut self) {
        self.portal.reset();
        self.container.reset();
        self.set_used(false);
    }

    fn read(&mut self, _region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        self.portal.read(offset, data)
    }

    fn write(&mut self, _region: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        let Self { container, portal, plugged: _ } = self;
        let own = container.object_id();
        portal.write(offset, data, |header, request| container.execute(own, header, request))
    }

    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        let Self { container, portal, plugged: _ } = self;
        portal.reset();
        container.reset();
        Ok(())
    }
}

impl Drop for ContainerDevice {
    fn drop(&mut self) {
        self.container.detach();
    }
}

/// An object's device. Dropping it takes the object out of its container.
#[derive(Debug)]
pub struct ObjectDevice {
    pub(crate) plugged: Plugged,
    pub(crate) portal: Portal,
}

impl ObjectDevice {
    /// The device of an object. Its set is that of its container.
    ///
    /// # Errors
    /// `EINVAL`: a container, whose device is [`ContainerDevice`].
    pub fn new(plugged: Plugged) -> Result<Self> {
        if plugged.id().kind == Kind::Dprc {
            return Err(Error::new(Errno::INVAL, "the device of a container is its own"));
        }
        Ok(Self { plugged, portal: Portal::default() })
    }
}

impl Device for ObjectDevice {
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Saved(self)
    }

    fn describe(&self) -> Description {
        // Only containers can be reset by their users.
        describe(self.plugged.id().kind, DeviceFlags::empty())
    }

    fn init(&mut self, _ctx: &Context) -> Result<()> {
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        self.plugged.container().set_used(self.plugged.id(), true);
        Ok(())
    }

    fn close_device(&mut self) {
        self.portal.reset();
        self.plugged.container().set_used(self.plugged.id(), false);
        self.plugged.container().reset_object(self.plugged.id());
    }

    fn read(&mut self, _region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        self.portal.read(offset, data)
    }

    fn write(&mut self, _region: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        let Self { plugged, portal } = self;
        let (container, own) = (plugged.container(), plugged.id());
        portal.write(offset, data, |header, request| container.execute(own, header, request))
    }

    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        let Self { plugged, portal } = self;
        portal.reset();
        plugged.container().reset_object(plugged.id());
        Ok(())
    }
}
