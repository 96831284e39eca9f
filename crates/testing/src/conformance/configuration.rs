//! Configuration space: header, capabilities, BARs, read-only bits.

use vfiod_core::IrqIndex;
use vfiod_pci::{Model, irq_index};

use super::Subject;
use crate::driver::{CONFIG, Driver};

const PCI_HEADER: usize = 0x40;
const EXTENDED: u64 = 0x100;

const POWER: u8 = 0x01;
const MSI: u8 = 0x05;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

/// Bits of the type 0 header that a guest may change (PCI 6.1), by offset. Of the status
/// register, those that are cleared by writing 1, and the interrupt status, which lives.
fn may_change(offset: usize) -> u8 {
    match offset {
        0x04 => 0x47,               // command: I/O, memory, bus master, parity
        0x05 => 0x05,               // SERR, interrupt disable
        0x06 => 0x08,               // status: interrupt
        0x07 => 0xf9,               // errors
        0x0c | 0x0d | 0x0f => 0xff, // cache line size, latency timer, self-test
        0x10..=0x27 => 0xff,        // BARs; `bar_sizes` looks at them
        0x3c => 0xff,               // interrupt line
        _ => 0,
    }
}

/// The bits of a capability that are fixed, from its start: (offset, length, mask of each byte).
fn fixed(id: u8) -> &'static [(u64, &'static [u8])] {
    match id {
        POWER => &[(2, &[0xff, 0xff])],                  // capabilities
        MSI => &[(2, &[0x8e, 0xff])],                    // all but enable and message count
        MSIX => &[(2, &[0xff, 0x3f]), (4, &[0xff; 8])],  // size; where table and bits are
        EXPRESS => &[(2, &[0xff; 6]), (12, &[0xff; 4])], // capabilities of device and link
        _ => &[],
    }
}

/// Offsets of the capabilities, in the order of the chain.
fn capabilities(device: &Driver) -> Vec<u64> {
    let mut found = Vec::new();
    let mut next = u64::from(device.config8(0x34));
    while next != 0 {
        assert!(
            (0x40..=0xfc).contains(&next) && next.is_multiple_of(4),
            "a capability at {next:#x}"
        );
        assert!(!found.contains(&next), "a loop at {next:#x}");
        found.push(next);
        next = device.config8(next + 1).into();
    }
    found
}

/// Offsets of the extended capabilities. Fails at a loop or a misplaced one.
fn extended_capabilities(device: &Driver) -> Vec<u64> {
    let mut found = Vec::new();
    if device.size(CONFIG.0) <= EXTENDED || device.config32(EXTENDED) == 0 {
        return found;
    }
    let mut next = EXTENDED;
    while next != 0 {
        assert!(
            (0x100..=0xffc).contains(&next) && next.is_multiple_of(4),
            "a capability at {next:#x}"
        );
        assert!(!found.contains(&next), "a loop at {next:#x}");
        found.push(next);
        next = u64::from(device.config32(next) >> 20);
    }
    found
}

fn vectors(device: &Driver, index: IrqIndex) -> u32 {
    device.file().irq(index).map_or(0, |info| info.count)
}

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// Configuration space has a type 0 header with ids.
    pub fn header(&self) {
        let device = self.open();
        assert!(![0, 0xffff].contains(&device.config16(0)), "vendor id");
        assert_eq!(device.config8(0x0e) & 0x7f, 0, "header type 0");
        assert_eq!(device.config32(0x30), 0, "no expansion ROM");
        assert_eq!(device.config16(4), 0, "all is off after power-on");
        assert!(device.config8(0x3d) <= 4, "interrupt pin");
        assert!([256, 4096].contains(&device.size(CONFIG.0)));
    }

    /// The chains of capabilities end and stay within configuration space. A capability that a
    /// function can have once is there once at most.
    pub fn capabilities(&self) {
        let device = self.open();
        let found = capabilities(&device);
        assert_eq!(device.config16(6) & 0x10 != 0, !found.is_empty(), "status bit and chain agree");
        let ids: Vec<_> = found.iter().map(|&at| device.config8(at)).collect();
        for id in [POWER, MSI, EXPRESS, MSIX] {
            assert!(ids.iter().filter(|&&known| known == id).count() <= 1, "capability {id} twice");
        }
        for at in extended_capabilities(&device) {
            assert_ne!(device.config32(at) & 0xffff, 0, "an extended capability without id");
            assert!(ids.contains(&EXPRESS), "extended ones need PCI Express");
        }
    }

    /// A BAR to which all ones are written reads as the size of its region (PCI 6.2.5.1).
    pub fn bar_sizes(&self) {
        let device = self.open();
        let mut bar = 0;
        while bar < 6 {
            let at = 0x10 + 4 * u64::from(bar);
            let kind = device.config32(at);
            let wide = kind & 1 == 0 && kind & 6 == 4;
            device.set_config32(at, u32::MAX);
            let flags = if kind & 1 == 1 { 3 } else { 15 };
            assert_eq!(device.config32(at) & flags, kind & flags, "flags of BAR {bar} are fixed");
            let low = device.config32(at) & !flags;
            let mut mask = u64::from(low) | 0xffff_ffff_0000_0000;
            if wide {
                device.set_config32(at + 4, u32::MAX);
                mask = u64::from(low) | u64::from(device.config32(at + 4)) << 32;
            }
            let size = if low == 0 && !wide { 0 } else { (!mask).wrapping_add(1) };
            assert_eq!(size, device.size(bar), "BAR {bar}");
            bar += if wide { 2 } else { 1 };
        }
    }

    /// Read-only bits keep their values: ids, class, the headers of capabilities, and what they say
    /// that the device can do.
    pub fn read_only_bits(&self) {
        let device = self.open();
        let (found, extended) = (capabilities(&device), extended_capabilities(&device));
        let look = || -> Vec<(u64, u8)> {
            let mut fixed_bytes: Vec<_> = (0..PCI_HEADER)
                .map(|at| (at as u64, device.config8(at as u64) & !may_change(at)))
                .collect();
            for &at in &found {
                let id = device.config8(at);
                fixed_bytes.extend([(at, id), (at + 1, device.config8(at + 1))]);
                for &(start, masks) in fixed(id) {
                    for (offset, mask) in (at + start..).zip(masks) {
                        fixed_bytes.push((offset, device.config8(offset) & mask));
                    }
                }
            }
            for &at in &extended {
                fixed_bytes.extend((at..at + 4).map(|at| (at, device.config8(at))));
            }
            fixed_bytes
        };
        let before = look();
        for value in [u32::MAX, 0, 0x5555_5555, 0xaaaa_aaaa] {
            for offset in (0..device.size(CONFIG.0)).step_by(4) {
                device.set_config32(offset, value);
            }
            for (&(at, byte), (_, now)) in before.iter().zip(look()) {
                assert_eq!(now, byte, "fixed bits at {at:#x} after {value:#x} was written");
            }
        }
    }

    /// Clients see the interrupts that configuration space describes: pin, MSI and MSI-X.
    pub fn interrupts_agree(&self) {
        let device = self.open();
        let pin = u32::from(device.config8(0x3d) != 0);
        assert_eq!(vectors(&device, irq_index::INTX), pin, "the pin");
        let msi = device.capability(MSI).map_or(0, |at| 1 << (device.config16(at + 2) >> 1 & 7));
        assert_eq!(vectors(&device, irq_index::MSI), msi, "MSI vectors");
        let Some(at) = device.capability(MSIX) else {
            assert_eq!(vectors(&device, irq_index::MSIX), 0, "MSI-X vectors");
            return;
        };
        let msix = u32::from(device.config16(at + 2) & 0x7ff) + 1;
        assert_eq!(vectors(&device, irq_index::MSIX), msix, "MSI-X vectors");
        let (table, bits) = (device.config32(at + 4), device.config32(at + 8));
        for (what, place, len) in
            [("table", table, msix * 16), ("pending bits", bits, msix.div_ceil(64) * 8)]
        {
            let (bar, offset) = (place & 7, place & !7);
            let end = u64::from(offset) + u64::from(len);
            assert!(end <= device.size(bar), "MSI-X {what} does not fit BAR {bar}");
        }
    }
}
