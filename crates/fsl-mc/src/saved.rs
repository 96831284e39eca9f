//! The saved state of the devices: a container's has its portal and the container, an object's
//! has its portal.

use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error, Format, Result, SaveState, Saved};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::WORDS;
use crate::container::{ContainerImage, ContainerState};
use crate::device::{ContainerDevice, ObjectDevice};
use crate::object::ObjectId;

const CONTAINER: Format = Format { kind: "fsl-mc container", version: 1 };
const OBJECT: Format = Format { kind: "fsl-mc object", version: 1 };

/// A container's device as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainerDeviceState {
    portal: [u64; WORDS],
    container: ContainerState,
}

/// An object's device as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectDeviceState {
    object: ObjectId,
    portal: [u64; WORDS],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ContainerDeviceImage {
    portal: [U64; WORDS],
    container: ContainerImage,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ObjectDeviceImage {
    kind: U32,
    id: U32,
    portal: [U64; WORDS],
}

#[cold]
fn wrong_size(format: Format) -> Error {
    Error::new(Errno::INVAL, format!("the image of an {} has another size", format.kind))
}

impl SaveState for ContainerDevice {
    fn save(&self) -> Result<Saved> {
        let Self { container, portal, plugged: _ } = self;
        let state = ContainerDeviceState { portal: portal.words(), container: container.save() };
        Saved::new(CONTAINER, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<()> {
        let ContainerDeviceState { portal, container } = saved.read(CONTAINER)?;
        self.container.restore(container)?;
        self.portal.restore(portal);
        Ok(())
    }

    fn image_len(&self) -> usize {
        size_of::<ContainerDeviceImage>()
    }

    fn save_image(&self, image: &mut [u8]) {
        // Cannot fail: the caller has asked for the size.
        let Ok(image) = ContainerDeviceImage::mut_from_bytes(image) else { return };
        image.portal = self.portal.words().map(U64::new);
        self.container.save_image(&mut image.container);
    }

    fn restore_image(&mut self, image: &[u8]) -> Result<()> {
        let image = ContainerDeviceImage::ref_from_bytes(image);
        let image = image.map_err(|_| wrong_size(CONTAINER))?;
        self.container.restore(image.container.state()?)?;
        self.portal.restore(image.portal.map(U64::get));
        Ok(())
    }
}

impl ObjectDevice {
    fn must_be(&self, object: ObjectId) -> Result<()> {
        let own = self.plugged.id();
        if object == own {
            return Ok(());
        }
        Err(Error::new(Errno::INVAL, format!("the state of {object}, not of {own}")))
    }
}

impl SaveState for ObjectDevice {
    fn save(&self) -> Result<Saved> {
        let Self { plugged, portal } = self;
        let state = ObjectDeviceState { object: plugged.id(), portal: portal.words() };
        Saved::new(OBJECT, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<()> {
        let ObjectDeviceState { object, portal } = saved.read(OBJECT)?;
        self.must_be(object)?;
        self.portal.restore(portal);
        Ok(())
    }

    fn image_len(&self) -> usize {
        size_of::<ObjectDeviceImage>()
    }

    fn save_image(&self, image: &mut [u8]) {
        // Cannot fail: the caller has asked for the size.
        let Ok(image) = ObjectDeviceImage::mut_from_bytes(image) else { return };
        let ObjectId { kind, id } = self.plugged.id();
        image.kind = (kind as u32).into();
        image.id = id.into();
        image.portal = self.portal.words().map(U64::new);
    }

    fn restore_image(&mut self, image: &[u8]) -> Result<()> {
        let image = ObjectDeviceImage::ref_from_bytes(image).map_err(|_| wrong_size(OBJECT))?;
        let ObjectId { kind, id } = self.plugged.id();
        if (image.kind.get(), image.id.get()) != (kind as u32, id) {
            return Err(Error::new(
                Errno::INVAL,
                format!("the image of another object than {kind}.{id}"),
            ));
        }
        self.portal.restore(image.portal.map(U64::get));
        Ok(())
    }
}
