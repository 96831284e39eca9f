//! The type 0 configuration space: bytes, and which bits of them a guest may write.

use vfiod_core::Result;

use crate::capability::{EXPRESS_DEVICE_CONTROL, INITIATE_FLR, id};
use crate::spec::{BarKind, FunctionSpec};

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
const FIRST_EXTENDED: usize = 0x100;

/// Command: bus master, interrupt disable (PCI 6.2.2).
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;
/// Status: interrupt status (PCI 6.2.3).
const INTERRUPT_STATUS: u8 = 1 << 3;

/// Bytes and the bits of them that can be written.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) writable: Vec<u8>,
}

impl Image {
    pub(crate) fn new(len: usize) -> Self {
        Self { bytes: vec![0; len], writable: vec![0; len] }
    }

    pub(crate) fn set16(&mut self, offset: usize, value: u16, writable: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        self.writable[offset..offset + 2].copy_from_slice(&writable.to_le_bytes());
    }

    pub(crate) fn set32(&mut self, offset: usize, value: u32, writable: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        self.writable[offset..offset + 4].copy_from_slice(&writable.to_le_bytes());
    }
}

/// Where the capabilities that have a behaviour are.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    msi: Option<usize>,
    msix: Option<usize>,
    express: Option<usize>,
}

/// The parts of the state that the rest of the function acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Controls {
    pub(crate) bus_master: bool,
    pub(crate) intx_disabled: bool,
    /// MSI mask bits, one for each vector.
    pub(crate) msi_mask: u32,
    /// MSI-X function mask.
    pub(crate) msix_masked: bool,
}

/// What is read but not stored.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Live {
    /// INTx is asserted.
    pub(crate) intx: bool,
    /// MSI vectors that are held back.
    pub(crate) msi_pending: u32,
}

/// A function's configuration space.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    image: Image,
    power_on: Vec<u8>,
    places: Places,
}

impl ConfigSpace {
    /// Lays out a function's configuration space. `EINVAL` if the spec contradicts itself or
    /// the capabilities do not fit.
    pub(crate) fn new(spec: &FunctionSpec) -> Result<Self> {
        spec.check()?;
        let mut image = Image::new(if spec.is_express() { 4096 } else { 256 });
        image.set16(0x00, spec.vendor, 0);
        image.set16(0x02, spec.device, 0);
        // I/O, memory, bus master, parity, SERR, interrupt disable.
        image.set16(COMMAND, 0, 0x0547);
        image.set32(0x08, spec.class << 8 | u32::from(spec.revision), 0);
        image.writable[0x0c] = 0xff; // Cache Line Size: kept, no effect (PCIe 7.5.1.1.7)
        for (index, bar) in spec.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let offset = 0x10 + 4 * index;
            let mask = !(bar.size - 1);
            let prefetch = |prefetchable| if prefetchable { 8 } else { 0 };
            match bar.kind {
                BarKind::Io => image.set32(offset, 1, mask as u32 & !3),
                BarKind::Memory32 { prefetchable } => {
                    image.set32(offset, prefetch(prefetchable), mask as u32 & !15);
                }
                BarKind::Memory64 { prefetchable } => {
                    image.set32(offset, 4 | prefetch(prefetchable), mask as u32 & !15);
                    image.set32(offset + 4, 0, (mask >> 32) as u32);
                }
            }
        }
        image.set16(0x2c, spec.subsystem.0, 0);
        image.set16(0x2e, spec.subsystem.1, 0);
        image.writable[0x3c] = 0xff; // Interrupt Line: software's own
        image.bytes[0x3d] = spec.pin.map_or(0, |pin| pin as u8);

        let places = lay_out(spec, &mut image)?;
        let power_on = image.bytes.clone();
        Ok(Self { image, power_on, places })
    }

    pub(crate) fn len(&self) -> usize {
        self.image.bytes.len()
    }

    /// Marks one of several functions of a slot (PCI 6.2.1). Its pin, if it has one, becomes
    /// that of its number (PCI 2.2.6): A for function 0, B for 1, and so on, around.
    pub(crate) fn set_multifunction(&mut self, function: u8) {
        for bytes in [&mut self.image.bytes, &mut self.power_on] {
            bytes[0x0e] |= 0x80;
            if bytes[0x3d] != 0 {
                bytes[0x3d] = 1 + function % 4;
            }
        }
    }

    /// Back to the values after power-on.
    pub(crate) fn reset(&mut self) {
        let Self { image, power_on, places: _ } = self;
        image.bytes.copy_from_slice(power_on);
    }

    fn read16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.image.bytes[offset], self.image.bytes[offset + 1]])
    }

    fn read32(&self, offset: usize) -> u32 {
        u32::from(self.read16(offset)) | u32::from(self.read16(offset + 2)) << 16
    }

    pub(crate) fn controls(&self) -> Controls {
        let command = self.read16(COMMAND);
        Controls {
            bus_master: command & BUS_MASTER != 0,
            intx_disabled: command & INTERRUPT_DISABLE != 0,
            msi_mask: self.places.msi.map_or(0, |place| self.read32(place + 16)),
            msix_masked: self.places.msix.is_some_and(|place| self.read16(place + 2) & 0x4000 != 0),
        }
    }

    /// Reads any bytes; `offset + data.len()` is within the space.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8], live: Live) {
        data.copy_from_slice(&self.image.bytes[offset..offset + data.len()]);
        let mut patch = |place: usize, bits: &[u8]| {
            for (index, &bits) in bits.iter().enumerate() {
                let byte = (place + index).checked_sub(offset).and_then(|at| data.get_mut(at));
                if let Some(byte) = byte {
                    *byte |= bits;
                }
            }
        };
        if live.intx {
            patch(STATUS, &[INTERRUPT_STATUS]);
        }
        if let Some(place) = self.places.msi {
            patch(place + 20, &live.msi_pending.to_le_bytes());
        }
    }

    /// Writes any bytes; bits that cannot be written keep their value. Returns whether a
    /// function-level reset was asked for.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        for (index, &value) in data.iter().enumerate() {
            let place = offset + index;
            let writable = self.image.writable[place];
            let byte = &mut self.image.bytes[place];
            *byte = *byte & !writable | value & writable;
        }
        let Some(express) = self.places.express else { return false };
        let high = express + EXPRESS_DEVICE_CONTROL + 1;
        let written = high.checked_sub(offset).and_then(|at| data.get(at));
        written.is_some_and(|byte| u16::from(*byte) << 8 & INITIATE_FLR != 0)
    }
}

/// Chains the capabilities behind the header, the extended ones from 0x100.
fn lay_out(spec: &FunctionSpec, image: &mut Image) -> Result<Places> {
    let mut places = Places::default();
    let mut next = FIRST_CAPABILITY;
    let mut link = CAPABILITIES_POINTER;
    let mut extended = FIRST_EXTENDED;
    let mut extended_link = None;
    for capability in &spec.capabilities {
        let (id, body) = capability.image();
        let (place, header, end) = if capability.is_extended() {
            (&mut extended, 4, image.bytes.len())
        } else {
            (&mut next, 2, FIRST_EXTENDED)
        };
        let at = *place;
        let body_at = at + header;
        if body_at + body.bytes.len() > end {
            return Err(vfiod_core::Error::new(
                vfiod_core::Errno::NOSPC,
                "the capabilities do not fit the configuration space",
            ));
        }
        if capability.is_extended() {
            image.set32(at, u32::from(id) | 1 << 16, 0);
            if let Some(before) = extended_link.replace(at) {
                image.bytes[before + 2] |= (at << 4) as u8;
                image.bytes[before + 3] = (at >> 4) as u8;
            }
        } else {
            image.bytes[STATUS] |= 1 << 4; // Capabilities List
            image.bytes[at] = id as u8;
            image.bytes[link] = at as u8;
            link = at + 1;
            match id as u8 {
                id::MSI => places.msi = Some(at),
                id::MSIX => places.msix = Some(at),
                id::EXPRESS => places.express = Some(at),
                _ => {}
            }
        }
        image.bytes[body_at..body_at + body.bytes.len()].copy_from_slice(&body.bytes);
        image.writable[body_at..body_at + body.bytes.len()].copy_from_slice(&body.writable);
        *place = (body_at + body.bytes.len()).next_multiple_of(4);
    }
    Ok(places)
}
