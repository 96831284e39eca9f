//! A configuration space decoded: the header, the BARs, both chains of capabilities.
//!
//! The bytes come from a server that is not trusted: every offset is checked, and a list that
//! contains a loop is read up to its repetition.

use serde::Serialize;

use super::bytes::Bytes;
use super::capabilities::{self, Capability};
use super::{extended, names};

/// A PCI function.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Function {
    pub(super) vendor_id: u16,
    pub(super) device_id: u16,
    pub(super) subsystem_vendor_id: u16,
    pub(super) subsystem_id: u16,
    pub(super) revision: u8,
    /// Base class, subclass and programming interface.
    pub(super) class_code: u32,
    pub(super) class: &'static str,
    pub(super) header_type: u8,
    pub(super) multifunction: bool,
    pub(super) command: u16,
    pub(super) status: u16,
    pub(super) interrupt_line: u8,
    /// `A` to `D`, where it has one.
    pub(super) interrupt_pin: Option<char>,
    pub(super) bars: Vec<Bar>,
    pub(super) capabilities: Vec<Capability>,
    /// Contradictions in the space.
    pub(super) warnings: Vec<String>,
}

/// A base address register in use.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bar {
    pub(super) index: u32,
    pub(super) kind: BarKind,
    pub(super) address: u64,
    /// The region's size in bytes.
    pub(super) size: u64,
    pub(super) prefetchable: bool,
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum BarKind {
    Io,
    Memory32,
    Memory64,
}

/// Decodes a space; `sizes` are those of the regions.
pub(super) fn decode(bytes: &[u8], sizes: &[u64]) -> Function {
    let space = Bytes(bytes);
    let header_type = space.u8(0x0e);
    let mut warnings = Vec::new();
    if bytes.len() < 64 {
        warnings.push(format!("the configuration space has only {} bytes", bytes.len()));
    }
    if header_type & 0x7f != 0 {
        warnings.push(format!("header type {} is not that of an endpoint", header_type & 0x7f));
    }
    let status = space.u16(0x06);
    let mut all = Vec::new();
    if status & 0x10 != 0 {
        chain(space, &mut all, &mut warnings);
    }
    if bytes.len() > 0x100 {
        extended::chain(space, &mut all, &mut warnings);
    }
    Function {
        vendor_id: space.u16(0x00),
        device_id: space.u16(0x02),
        subsystem_vendor_id: space.u16(0x2c),
        subsystem_id: space.u16(0x2e),
        revision: space.u8(0x08),
        class_code: space.u32(0x08) >> 8,
        class: names::class(space.u8(0x0b), space.u8(0x0a)),
        header_type: header_type & 0x7f,
        multifunction: header_type & 0x80 != 0,
        command: space.u16(0x04),
        status,
        interrupt_line: space.u8(0x3c),
        interrupt_pin: match space.u8(0x3d) {
            pin @ 1..=4 => Some(char::from(b'A' + pin - 1)),
            _ => None,
        },
        bars: bars(space, sizes, &mut warnings),
        capabilities: all,
        warnings,
    }
}

fn bars(space: Bytes<'_>, sizes: &[u64], warnings: &mut Vec<String>) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut index = 0;
    while index < 6 {
        let at = 0x10 + 4 * index;
        let low = space.u32(at);
        let size = sizes.get(index).copied().unwrap_or(0);
        let wide = low & 0b111 == 0b100;
        let kind = match low & 0b111 {
            bits if bits & 1 != 0 => BarKind::Io,
            _ if wide => BarKind::Memory64,
            _ => BarKind::Memory32,
        };
        if size != 0 {
            let address = match kind {
                BarKind::Io => u64::from(low & !0b11),
                BarKind::Memory32 => u64::from(low & !0xf),
                BarKind::Memory64 => space.u64(at) & !0xf,
            };
            let prefetchable = kind != BarKind::Io && low & 8 != 0;
            bars.push(Bar { index: index as u32, kind, address, size, prefetchable });
        }
        index += 1;
        if wide {
            if sizes.get(index).is_some_and(|size| *size != 0) {
                warnings.push(format!(
                    "BAR{index} is the upper half of a 64-bit BAR, but has a region"
                ));
            }
            index += 1;
        }
    }
    bars
}

fn chain(space: Bytes<'_>, all: &mut Vec<Capability>, warnings: &mut Vec<String>) {
    let mut at = usize::from(space.u8(0x34) & !3);
    let mut seen = Vec::new();
    while at != 0 {
        if at < 0x40 || at + 2 > space.0.len().min(0x100) {
            warnings.push(format!(
                "the capability list points to {at:#x}, outside the first 256 bytes"
            ));
            return;
        }
        if seen.contains(&at) {
            warnings.push(format!("the capability list comes back to {at:#x}"));
            return;
        }
        seen.push(at);
        all.push(capabilities::decode(space, at));
        at = usize::from(space.u8(at + 1) & !3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An endpoint with power management at 0x40, MSI at 0x48 and a serial number at 0x100.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(0x00, &[0x34, 0x12, 0xe8, 0x11, 0x06, 0x00, 0x10, 0x00, 0x10, 0x00, 0xff, 0x00]);
        put(0x10, &0xfe00_0000u32.to_le_bytes());
        put(0x18, &0x0000_000cu32.to_le_bytes());
        put(0x1c, &0x0000_0001u32.to_le_bytes());
        put(0x24, &0x0000_e001u32.to_le_bytes());
        put(0x34, &[0x40]);
        put(0x3d, &[1]);
        put(0x40, &[0x01, 0x48, 0x03, 0x00, 0x08, 0x00]);
        put(0x48, &[0x05, 0x00, 0x80, 0x01]);
        put(0x100, &[0x03, 0x00, 0x01, 0x00, 8, 7, 6, 5, 4, 3, 2, 1]);
        bytes
    }

    #[test]
    fn endpoint_is_decoded() {
        let function = decode(&sample(), &[1 << 20, 0, 1 << 14, 0, 0, 32]);
        assert_eq!((function.vendor_id, function.device_id), (0x1234, 0x11e8));
        assert_eq!(function.interrupt_pin, Some('A'));
        let bars: Vec<_> = function.bars.iter().map(|b| (b.index, b.kind, b.address)).collect();
        assert_eq!(
            bars,
            [
                (0, BarKind::Memory32, 0xfe00_0000),
                (2, BarKind::Memory64, 1 << 32),
                (5, BarKind::Io, 0xe000)
            ]
        );
        let found: Vec<_> = function.capabilities.iter().map(|c| (c.offset, c.id)).collect();
        assert_eq!(found, [(0x40, 1), (0x48, 5), (0x100, 3)]);
        assert!(function.warnings.is_empty(), "{:?}", function.warnings);
    }

    #[test]
    fn loops_and_pointers_outside_the_space_are_reported() {
        let mut bytes = sample();
        bytes[0x49] = 0x40;
        let function = decode(&bytes, &[]);
        assert_eq!(function.capabilities.len(), 3);
        assert_eq!(function.warnings, ["the capability list comes back to 0x40"]);
        bytes[0x49] = 0x10;
        bytes[0x103] = 0x10;
        let function = decode(&bytes, &[]);
        assert_eq!(function.warnings.len(), 2, "{:?}", function.warnings);
    }

    #[test]
    fn arbitrary_bytes_are_decoded_without_a_panic() {
        for len in [0, 1, 63, 64, 255, 256, 257, 4095, 4096] {
            for fill in [0x00, 0xff, 0x10, 0x44, 0xfc] {
                let mut bytes = vec![fill; len];
                if let Some(status) = bytes.get_mut(6) {
                    *status = 0x10;
                }
                decode(&bytes, &[u64::MAX; 9]);
            }
        }
    }
}
