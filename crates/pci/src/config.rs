//! The type 0 configuration space: bytes, and which bits of them a guest may write.
//!
//! Accesses may have any length and alignment. A bit is read-only or writable; those that a guest
//! clears by writing 1 (errors in Status and Device Status, PCIe 7.5.1.1.4 and 7.5.3.5) are
//! read-only here, because no error is ever logged. Three things are not just stored: the
//! interrupt status and MSI's pending bits, which are looked up when read, and the power state
//! and Initiate FLR, which do something when written.

use vfiod_core::{Errno, Error, Result};

use crate::capability::{
    EXPRESS_DEVICE_CONTROL, EXPRESS_LINK, EXPRESS_TYPE, INITIATE_FLR, INTEGRATED, NO_SOFT_RESET,
    POWER_CONTROL, POWER_STATE, id,
};
use crate::masked_bytes::MaskedBytes;
use crate::spec::{BarKind, FunctionSpec};

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAPABILITY: usize = 0x40;
const FIRST_EXTENDED: usize = 0x100;

/// Command: bus master, interrupt disable (PCI 6.2.2, PCIe 7.5.1.1.3).
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;
/// Message control: enable (PCI 6.8.1.3, 6.8.2.3).
const MSI_ENABLE: u16 = 1;
const MSIX_ENABLE: u16 = 1 << 15;
/// Status: interrupt status, capabilities list (PCI 6.2.3, PCIe 7.5.1.1.4).
const INTERRUPT_STATUS: u8 = 1 << 3;
const CAPABILITIES_LIST: u8 = 1 << 4;

/// Power states (PCIe 7.5.2.2).
const D0: u16 = 0;
const D3_HOT: u16 = 3;

/// Where the capabilities that have a behaviour are.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    msi: Option<usize>,
    msix: Option<usize>,
    express: Option<usize>,
    power: Option<usize>,
}

/// A reset that a guest asked for through configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestReset {
    /// Initiate Function Level Reset was written (PCIe 6.6.2).
    FunctionLevel,
    /// Back from D3hot without No_Soft_Reset (PCIe 5.3.1.4.1).
    Power,
}

impl std::fmt::Display for GuestReset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FunctionLevel => "function-level reset",
            Self::Power => "reset on the way back from D3hot",
        })
    }
}

/// The parts of the state that the rest of the function acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Controls {
    /// The function is in D0 and may start transactions.
    pub(crate) bus_master: bool,
    /// The function is in D3hot: it sends no interrupts, and of its regions only configuration space
    /// answers (PCIe 5.3.1.4.1).
    pub(crate) in_d3hot: bool,
    pub(crate) intx_disabled: bool,
    /// MSI mask bits, one for each vector.
    pub(crate) msi_mask: u32,
    /// MSI-X function mask.
    pub(crate) msix_mask: bool,
}

impl Controls {
    /// Whether INTx is masked.
    pub(crate) fn intx_masked(self) -> bool {
        self.intx_disabled || self.in_d3hot
    }

    /// The MSI vectors that are masked, a bit each.
    pub(crate) fn msi_masked(self) -> u32 {
        if self.in_d3hot { u32::MAX } else { self.msi_mask }
    }

    /// Whether all MSI-X vectors are masked.
    pub(crate) fn msix_masked(self) -> bool {
        self.msix_mask || self.in_d3hot
    }
}

/// What is read but not stored.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Live {
    /// INTx is asserted.
    pub(crate) intx: bool,
    /// MSI vectors that are pending, a bit each.
    pub(crate) msi_pending: u32,
}

/// A function's configuration space.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    /// As far as there is something; zeros up to `len` from there.
    image: MaskedBytes,
    power_on: Box<[u8]>,
    len: usize,
    places: Places,
}

impl ConfigSpace {
    /// Lays out a function's configuration space. `EINVAL`: the spec contradicts itself;
    /// `ENOSPC`: the capabilities do not fit.
    pub(crate) fn new(spec: &FunctionSpec) -> Result<Self> {
        spec.check()?;
        let len = if spec.is_express() { 4096 } else { 256 };
        let mut image = MaskedBytes::new(len);
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
        image.bytes[INTERRUPT_PIN] = spec.pin.map_or(0, |pin| pin as u8);

        let (places, end) = lay_out(spec, &mut image)?;
        // Most of an extended space is empty: 10,000 idle functions need not hold 120 MB of it.
        image.bytes.truncate(end);
        image.bytes.shrink_to_fit();
        image.writable.truncate(end);
        image.writable.shrink_to_fit();
        let power_on = image.bytes.clone().into_boxed_slice();
        Ok(Self { image, power_on, len, places })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Changes what is there after power-on, and now.
    fn set_power_on(&mut self, place: usize, change: impl Fn(u8) -> u8) {
        self.image.bytes[place] = change(self.image.bytes[place]);
        self.power_on[place] = change(self.power_on[place]);
    }

    /// Marks one of several functions of a slot (PCI 6.2.1). Its pin, if it has one, becomes
    /// that of its number (PCI 2.2.6): A for function 0, B for 1, and so on, around.
    pub(crate) fn set_multifunction(&mut self, function: u8) {
        self.set_power_on(HEADER_TYPE, |byte| byte | 0x80);
        self.set_power_on(INTERRUPT_PIN, |pin| if pin == 0 { 0 } else { 1 + function % 4 });
    }

    /// Makes a PCI Express endpoint a root complex integrated one, which has no link
    /// (PCIe 7.5.3.2, 7.5.3.6).
    pub(crate) fn set_integrated(&mut self) {
        let Some(express) = self.places.express else { return };
        self.set_power_on(express + EXPRESS_TYPE, |byte| byte & 0x0f | INTEGRATED);
        for place in EXPRESS_LINK.into_iter().flatten() {
            self.set_power_on(express + place, |_| 0);
            self.image.writable[express + place] = 0;
        }
    }

    /// Back to the values after power-on.
    pub(crate) fn reset(&mut self) {
        let Self { image, power_on, len: _, places: _ } = self;
        image.bytes.copy_from_slice(power_on);
    }

    /// What is saved: everything, so that a restore detects the state of another function.
    pub(crate) fn state(&self) -> &[u8] {
        &self.image.bytes
    }

    /// Checks a state that is to be restored. `EINVAL`: of another function (its read-only bits
    /// differ), or a power state that the function does not have.
    pub(crate) fn check_state(&self, state: &[u8]) -> Result<()> {
        let MaskedBytes { bytes, writable } = &self.image;
        if state.len() != bytes.len() {
            let what = format!("{} bytes of configuration space, not {}", state.len(), bytes.len());
            return Err(Error::new(Errno::INVAL, what));
        }
        let differs =
            |((state, bytes), writable): ((&u8, &u8), &u8)| (state ^ bytes) & !writable != 0;
        if let Some(at) = state.iter().zip(bytes).zip(writable).position(differs) {
            let what = format!("the configuration space of another function: byte {at:#x} differs");
            return Err(Error::new(Errno::INVAL, what));
        }
        let power = self.places.power.map(|power| u16::from(state[power + POWER_CONTROL]));
        match power.map(|register| register & POWER_STATE) {
            None | Some(D0 | D3_HOT) => Ok(()),
            Some(state) => Err(Error::new(Errno::INVAL, format!("power state D{state}"))),
        }
    }

    /// Restores what [`ConfigSpace::check_state`] has found sound.
    pub(crate) fn restore(&mut self, state: &[u8]) {
        self.image.bytes.copy_from_slice(state);
    }

    fn read16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.image.bytes[offset], self.image.bytes[offset + 1]])
    }

    fn read32(&self, offset: usize) -> u32 {
        u32::from(self.read16(offset)) | u32::from(self.read16(offset + 2)) << 16
    }

    /// Turns off bus mastering, MSI and MSI-X.
    pub(crate) fn disable(&mut self) {
        let Places { msi, msix, .. } = self.places;
        let enables = [
            (Some(COMMAND), BUS_MASTER),
            (msi.map(|place| place + 2), MSI_ENABLE),
            (msix.map(|place| place + 2), MSIX_ENABLE),
        ];
        for (place, bit) in enables {
            let Some(place) = place else { continue };
            let off = self.read16(place) & !bit;
            self.image.bytes[place..place + 2].copy_from_slice(&off.to_le_bytes());
        }
    }

    pub(crate) fn controls(&self) -> Controls {
        let command = self.read16(COMMAND);
        let in_d3hot = self.power_state() == D3_HOT;
        Controls {
            bus_master: command & BUS_MASTER != 0 && !in_d3hot,
            in_d3hot,
            intx_disabled: command & INTERRUPT_DISABLE != 0,
            msi_mask: self.places.msi.map_or(0, |place| self.read32(place + 16)),
            msix_mask: self.places.msix.is_some_and(|place| self.read16(place + 2) & 0x4000 != 0),
        }
    }

    /// The low two bits of PMCSR; D0 where there is no power management.
    fn power_state(&self) -> u16 {
        self.places.power.map_or(D0, |power| self.read16(power + POWER_CONTROL) & POWER_STATE)
    }

    /// Reads any bytes; `offset + data.len()` is within the space.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8], live: Live) {
        let kept = self.image.bytes.get(offset..).unwrap_or_default();
        let (from_image, empty) = data.split_at_mut(kept.len().min(data.len()));
        from_image.copy_from_slice(&kept[..from_image.len()]);
        empty.fill(0);
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

    /// Writes any bytes; bits that cannot be written keep their value. Tells which reset the
    /// guest asked for by it, which is for the caller to do.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Option<GuestReset> {
        let state_before = self.power_state();
        let MaskedBytes { bytes, writable } = &mut self.image;
        let places = bytes.iter_mut().zip(writable.iter()).skip(offset);
        for ((byte, writable), value) in places.zip(data) {
            *byte = *byte & !writable | value & writable;
        }
        let power = self.write_power(state_before);
        let control = self.places.express.map(|express| express + EXPRESS_DEVICE_CONTROL + 1);
        let written = control.and_then(|high| data.get(high.checked_sub(offset)?));
        match written {
            Some(high) if u16::from(*high) << 8 & INITIATE_FLR != 0 => {
                Some(GuestReset::FunctionLevel)
            }
            _ => power,
        }
    }

    /// After a write that may have changed the power state.
    fn write_power(&mut self, before: u16) -> Option<GuestReset> {
        let control = self.places.power? + POWER_CONTROL;
        let register = self.read16(control);
        match (before, register & POWER_STATE) {
            (D3_HOT, D0) if register & NO_SOFT_RESET == 0 => Some(GuestReset::Power),
            (_, D0 | D3_HOT) => None,
            // A state that the function does not have: the write is dropped (PCIe 7.5.2.2).
            (before, _) => {
                let register = register & !POWER_STATE | before;
                self.image.bytes[control] = register as u8;
                None
            }
        }
    }
}

/// Chains the capabilities behind the header, the extended ones from 0x100 (PCI 6.7,
/// PCIe 7.6.3). Returns also where the last of them ends.
fn lay_out(spec: &FunctionSpec, image: &mut MaskedBytes) -> Result<(Places, usize)> {
    let mut places = Places::default();
    let mut next = FIRST_CAPABILITY;
    let mut link = CAPABILITIES_POINTER;
    let mut extended = FIRST_EXTENDED;
    let mut extended_link = None;
    for capability in &spec.capabilities {
        let (id, body) = capability.image(spec.device);
        let (place, header, end) = if capability.is_extended() {
            (&mut extended, 4, image.bytes.len())
        } else {
            (&mut next, 2, FIRST_EXTENDED)
        };
        let at = *place;
        let body_at = at + header;
        if body_at + body.bytes.len() > end {
            return Err(Error::new(
                Errno::NOSPC,
                format!(
                    "{capability:?}: {} bytes at {at:#x} do not fit the configuration space, \
                     which ends for such at {end:#x}",
                    header + body.bytes.len()
                ),
            ));
        }
        if capability.is_extended() {
            image.set32(at, u32::from(id) | 1 << 16, 0);
            if let Some(before) = extended_link.replace(at) {
                image.bytes[before + 2] |= (at << 4) as u8;
                image.bytes[before + 3] = (at >> 4) as u8;
            }
        } else {
            image.bytes[STATUS] |= CAPABILITIES_LIST;
            image.bytes[at] = id as u8;
            image.bytes[link] = at as u8;
            link = at + 1;
            match id as u8 {
                id::MSI => places.msi = Some(at),
                id::MSIX => places.msix = Some(at),
                id::EXPRESS => places.express = Some(at),
                id::POWER => places.power = Some(at),
                _ => {}
            }
        }
        image.bytes[body_at..body_at + body.bytes.len()].copy_from_slice(&body.bytes);
        image.writable[body_at..body_at + body.bytes.len()].copy_from_slice(&body.writable);
        *place = (body_at + body.bytes.len()).next_multiple_of(4);
    }
    let end = if extended > FIRST_EXTENDED { extended } else { next };
    Ok((places, end))
}
